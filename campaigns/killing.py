"""Trainings in processes of their own: started, killed without warning, and what they end with compared to the bit."""

import signal
import subprocess
import sys
from pathlib import Path

MAIN = Path(__file__).resolve().parents[1] / "main.py"
CHECKPOINT = "*/checkpoints/checkpoint.pth.tar"


def call(words: list[str]) -> None:
    """Run main.py to its end, without its output; ends this program if it fails."""
    done = subprocess.run([sys.executable, str(MAIN), *words], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"main.py {' '.join(words)} ended with {done.returncode}")


def start(words: list[str]) -> subprocess.Popen:
    """Start main.py, without its output."""
    return subprocess.Popen([sys.executable, str(MAIN), *words], stdout=subprocess.DEVNULL)


def killed_after(process: subprocess.Popen, seconds: float) -> bool:
    """Send SIGKILL to a process after some seconds; False if it has ended by then."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL
    return False


def run_exists(runs: Path) -> bool:
    """Whether a training has made its run, so that it can be resumed."""
    return any(runs.glob("*/flags.json"))


def newest_checkpoint(runs: Path) -> dict:
    """The newest state of the only run in a folder."""
    import torch

    (path,) = runs.glob(CHECKPOINT)
    return torch.load(path, map_location="cpu", weights_only=True)


def final_state(runs: Path) -> dict:
    """Weights and the optimiser's tensors, by name, of the only run in a folder."""
    import torch

    checkpoint = newest_checkpoint(runs)
    state = dict(checkpoint["state_dict"])
    for index, entry in checkpoint["optimizer"]["state"].items():
        state |= {f"optimizer {index} {name}": value for name, value in entry.items() if torch.is_tensor(value)}
    return state


def different(first: dict, second: dict) -> list[str]:
    """Names of the tensors that are not in both with the same bits."""
    import torch

    names = sorted(first.keys() | second.keys())
    return [name for name in names if name not in first or name not in second
            or not torch.equal(first[name], second[name])]  # fmt: skip
