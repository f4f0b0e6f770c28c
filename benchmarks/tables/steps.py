"""Steps: commands of main.py, each in a folder of its own, whose output counts when the command has ended well."""

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vpr.common.files import flock, write_json

BEGUN, DONE, LOG = "begun.json", "done.json", "log.txt"
CACHE = "cache"  # folder in a step's that is of no use when it is done
REFERENCE = re.compile(r"\{(\w+):([^}]+)\}")  # {NAME:PATTERN}
LINES_SHOWN = 5  # of the log of a command that failed


class StepFailed(Exception):
    """A command ended with an error, or left nothing where something was wanted."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of its folder.
        words: of main.py; `{here}` is the step's folder, `{NAME:PATTERN}` the one path in the folder of a step before
            it that fits.
        network, passes: how many passes of one image through which network it is worth, for the estimate.
        goes_on: how it goes on when it was killed: its mode and what the run in its folder is called; else from anew.
    """

    name: str
    words: tuple[str, ...]
    network: str
    passes: float
    goes_on: tuple[str, str] | None = None

    def needs(self) -> Iterator[str]:
        """Names of the steps whose output it reads."""
        for word in self.words:
            yield from (name for name, _ in REFERENCE.findall(word))


class Steps:
    """Steps in order, each in a folder under one: `folder/NAME`."""

    def __init__(self, steps: Sequence[Step], folder: Path, main: Sequence[str], cwd: Path) -> None:
        self.steps = {step.name: step for step in steps}
        self.folder, self.main, self.cwd = folder, list(main), cwd
        self.lock: IO | None = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other call works here: neither another program nor the command of one that was killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "ab") as self.lock:
            if flock(self.lock) is False:
                print(f"waiting for the end of another call that works in {self.folder}", flush=True)
                flock(self.lock, wait=True)
            yield

    def fingerprint(self, name: str) -> str:
        """Of a step's command and of all that it builds on: what was made by other flags is made again."""
        step = self.steps[name]
        parts = [*step.words, *(self.fingerprint(needed) for needed in sorted(set(step.needs())))]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def is_done(self, name: str) -> bool:
        """Whether the output of a step is whole and of these flags."""
        return self._is(name, DONE)

    def left(self) -> list[Step]:
        """Steps that are yet to be run."""
        return [step for name, step in self.steps.items() if not self.is_done(name)]

    def path(self, name: str, pattern: str) -> Path:
        """The one path in a step's folder that fits; StepFailed unless there is one."""
        found = sorted((self.folder / name).glob(pattern))
        if len(found) != 1:
            raise StepFailed(f"{self.folder / name}: found {len(found)} paths like {pattern}, wanted one")
        return found[0]

    def read(self, name: str, pattern: str) -> Any:
        """A JSON file of a step that is done."""
        return json.loads(self.path(name, pattern).read_text(encoding="utf-8"))

    def run(self, name: str) -> None:
        """Run a step; a killed attempt's folder is emptied before, unless the step goes on in it."""
        words, here = self._words(name), self.folder / name
        started = time.perf_counter()
        with open(here / LOG, "a", encoding="utf-8") as log:
            # The command holds the lock as well, and on when this program is killed alone.
            code = subprocess.run(
                [*self.main, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.cwd,
                pass_fds=[self.lock.fileno()] if self.lock else [],
            ).returncode  # fmt: skip
        if code:
            lines = (here / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = "\n    ".join(lines[-LINES_SHOWN:])
            raise StepFailed(f"{name} ended with exit code {code}:\n    {last}\n  of {' '.join([*self.main, *words])}")
        shutil.rmtree(here / CACHE, ignore_errors=True)
        seconds = round(time.perf_counter() - started, 1)
        write_json(here / DONE, {"fingerprint": self.fingerprint(name), "seconds": seconds, "words": words})

    def _words(self, name: str) -> list[str]:
        step, here = self.steps[name], self.folder / name
        if step.goes_on and self._is(name, BEGUN):
            mode, run = step.goes_on
            if any(here.glob(run)):
                return [mode, f"--resume={self.path(name, run)}"]
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        write_json(here / BEGUN, {"fingerprint": self.fingerprint(name)})
        return [self._filled(word, here) for word in step.words]

    def _is(self, name: str, file: str) -> bool:
        try:
            found = json.loads((self.folder / name / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return found["fingerprint"] == self.fingerprint(name)

    def _filled(self, word: str, here: Path) -> str:
        word = REFERENCE.sub(lambda match: str(self.path(match[1], match[2])), word)
        return word.replace("{here}", str(here))
