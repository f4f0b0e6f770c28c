"""Steps: commands of main.py whose output is a folder that is either whole or not there."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DONE, LOG, RESULTS = "step.json", "log.txt", "results.json"
REFERENCE = re.compile(r"\{(\w+):([^}]+)\}")  # {NAME:PATTERN}
LINES_SHOWN = 5  # of the log of a command that failed
TESTS_KEPT = 2  # results of a test: of the first search and after re-ranking


class StepFailed(Exception):
    """A command ended with an error, or left nothing where something was wanted."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of its folder.
        words: of main.py; `{here}` is the step's folder, `{NAME:PATTERN}` the one path in the folder of a step before
            it that fits.
        results: where a test writes its results, of which the newest are copied into the step's folder; or nothing.
        images, network, cost: passes of so many images through a network, each of `cost` times its float32 forward
            pass: for the estimate.
    """

    name: str
    words: tuple[str, ...]
    results: str = ""
    network: str = ""
    images: int = 0
    cost: float = 1.0

    def needs(self) -> Iterator[str]:
        """Names of the steps whose output it reads."""
        for word in (*self.words, self.results):
            yield from (name for name, _ in REFERENCE.findall(word))


class Steps:
    """Steps in order, each in a folder under one: `folder/NAME`."""

    def __init__(self, steps: Sequence[Step], folder: Path, main: Sequence[str], cwd: Path) -> None:
        self.steps = {step.name: step for step in steps}
        self.folder, self.main, self.cwd = folder, list(main), cwd

    def fingerprint(self, name: str) -> str:
        """Of a step's command and of all that it builds on: what was made by other flags is made again."""
        step = self.steps[name]
        parts = [*step.words, step.results, *(self.fingerprint(needed) for needed in sorted(set(step.needs())))]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def is_done(self, name: str) -> bool:
        """Whether the output of a step is whole and of these flags."""
        try:
            found = json.loads((self.folder / name / DONE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return found["fingerprint"] == self.fingerprint(name)

    def left(self) -> list[Step]:
        """Steps that are yet to be run."""
        return [step for name, step in self.steps.items() if not self.is_done(name)]

    def seconds(self, name: str) -> float:
        """How long a finished step took."""
        return json.loads((self.folder / name / DONE).read_text(encoding="utf-8"))["seconds"]

    def path(self, name: str, pattern: str) -> Path:
        """The one path in a finished step's folder that fits; StepFailed unless there is one."""
        found = sorted((self.folder / name).glob(pattern))
        if len(found) != 1:
            raise StepFailed(f"{self.folder / name}: found {len(found)} paths like {pattern}, wanted one")
        return found[0]

    def run(self, name: str) -> None:
        """Run a step in a folder of another name, which is renamed when all is written.

        A killed attempt leaves a folder that the next removes. Its command may live on: it writes into its own folder
        still, not into that of the next attempt.
        """
        step, final = self.steps[name], self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in [final, *self.folder.glob(f".{name}.*.part")]:
            shutil.rmtree(left, ignore_errors=True)
        attempt = self.folder / f".{name}.{os.getpid()}-{time.time_ns()}.part"
        attempt.mkdir()
        started = time.perf_counter()
        words = [self._filled(word, attempt) for word in step.words]
        with open(attempt / LOG, "w", encoding="utf-8") as log:
            code = subprocess.run([*self.main, *words], stdout=log, stderr=subprocess.STDOUT, cwd=self.cwd).returncode
        if code:
            lines = (attempt / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = "\n    ".join(lines[-LINES_SHOWN:])
            raise StepFailed(f"{name} ended with exit code {code}:\n    {last}\n  of {' '.join([*self.main, *words])}")
        if step.results:
            entries = json.loads(Path(self._filled(step.results, attempt)).read_text(encoding="utf-8"))
            (attempt / RESULTS).write_text(json.dumps(entries[-TESTS_KEPT:], indent=2), encoding="utf-8")
        done = {"fingerprint": self.fingerprint(name), "seconds": time.perf_counter() - started, "words": words}
        (attempt / DONE).write_text(json.dumps(done, indent=2), encoding="utf-8")
        os.rename(attempt, final)

    def read(self, name: str, file: str = RESULTS) -> Any:
        """A JSON file of a finished step."""
        return json.loads(self.path(name, file).read_text(encoding="utf-8"))

    def _filled(self, word: str, here: Path) -> str:
        word = REFERENCE.sub(lambda match: str(self.path(match[1], match[2])), word)
        return word.replace("{here}", str(here))
