"""What the tests of modes share: a mode called in this process."""

from typing import NamedTuple

import pytest
from own_images import MODEL

import main


class Call(NamedTuple):
    """What came of a call."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that is said of a mistake."""
        assert self.code == 2 and self.err.count("\n") == 1, self
        return self.err

    @property
    def last_error(self) -> str:
        """The line that is said of a mistake, behind those that say how far the work is."""
        assert self.code == 2 and self.err.splitlines()[-1].startswith("error: "), self
        return self.err.splitlines()[-1]


@pytest.fixture
def call_on(tmp_path, capsys):
    """Runs a mode on a folder of own images; the model's files and the results lie in the test's folder."""

    def call(root, mode, *words, model=MODEL):
        capsys.readouterr()
        places = ["--dataset=folder", f"--root={root}", f"--dataPath={tmp_path / 'model'}", f"--runsPath={tmp_path}"]
        drawn = mode not in ("test", "locate") or any(str(word).startswith("--panels") for word in words)
        arguments = [f"--mode={mode}", *model, *places, *([] if drawn else ["--panels=0"]), *map(str, words)]
        return Call(main.main(arguments), *capsys.readouterr())

    return call
