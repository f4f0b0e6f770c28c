"""Runs: the folder a training leaves behind, its flags and its checkpoints.

runs/<stamp>_<arch>_<pooling>/flags.json                       every flag of the training
runs/<stamp>_<arch>_<pooling>/checkpoints/checkpoint.pth.tar   the newest state
runs/<stamp>_<arch>_<pooling>/checkpoints/model_best.pth.tar   the state of the best validation
"""

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path

from vpr.common.errors import UserError
from vpr.common.files import read_json, write_json
from vpr.common.provenance import load_torch, save_torch

FLAGS_FILE = "flags.json"
CHECKPOINT_FILES = {"latest": "checkpoint.pth.tar", "best": "model_best.pth.tar"}
FORMAT = "netvlad place recognition 1"
STATE = ("flags", "state_dict", "position")  # what every use of a checkpoint needs


def newest_run(runs: Path, which: str | None = None) -> Path:
    """The newest run under `runs`: names begin with their time stamp. Raises a UserError: there is none.
    Runs are preferred that have the checkpoint `which`, a key of CHECKPOINT_FILES."""
    found = sorted(path.parent for path in runs.glob(f"[0-9]*/{FLAGS_FILE}"))
    if not found:
        raise UserError(f"no run under {runs.resolve()}: train first, or name one with --resume DIR")
    having = [run for run in found if any(run.rglob(CHECKPOINT_FILES[which]))] if which else found
    return (having or found)[-1]


def read_flags(run: Path) -> dict:
    """The flags a run was trained with; UserError where `run` is none of this program."""
    if not (run / FLAGS_FILE).is_file():
        raise UserError(f"{run} is not a run ({FLAGS_FILE} is missing): name a folder under runs/ that training made")
    flags = read_json(run / FLAGS_FILE)
    if not isinstance(flags, dict) or "arch" not in flags:
        raise UserError(f"{run / FLAGS_FILE} holds no flags of this program: restore it or train anew")
    return flags


def create_run(
    runs: Path,
    arch: str,
    pooling: str,
    flags: dict,
    checkpoint_folder: str,
    state: dict,
    best: bool = False,
    add: Callable[[Path], None] | None = None,
) -> Path:
    """Make a run with its first checkpoint. The folder appears whole, so it can be resumed from birth.
    What is given as `add` writes further files into the folder of the checkpoints."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S.%f")[:-3]
    run = runs / f"{stamp}_{arch}_{pooling}"
    unfinished = runs / f".{run.name}.part"
    try:
        write_json(unfinished / FLAGS_FILE, flags)
        save_checkpoint(unfinished / checkpoint_folder, state, best)
        if add:
            add(unfinished / checkpoint_folder)
        unfinished.rename(run)
    except OSError as error:
        raise UserError(f"cannot make the run {run} ({error}): make room or choose another --runsPath") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return run


def save_checkpoint(folder: Path, state: dict, best: bool = False) -> None:
    """Write the newest state, and as the best model too if it is that; each file whole or not at all."""
    for which in ("best", "latest") if best else ("latest",):
        save_torch(folder / CHECKPOINT_FILES[which], {"format": FORMAT, **state})


def load_checkpoint(run: Path, checkpoint_folder: str, which: str) -> dict:
    """Read a checkpoint, running no code of it; UserError if it is missing, unreadable or another program's."""
    path = run / checkpoint_folder / CHECKPOINT_FILES[which]
    if not path.is_file():
        other = "; before the first validation there is only --ckpt=latest" if which == "best" else ""
        raise UserError(f"{path} does not exist{other}: choose another run or checkpoint")
    state = load_torch(path, "a checkpoint", "restore it, choose another with --ckpt, or train anew")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = sorted(map(str, state))[:4] if isinstance(state, dict) else type(state).__name__
        raise UserError(f"{path} was written by another program (found {found}): train with this one")
    if missing := [name for name in STATE if name not in state]:
        raise UserError(f"{path} lacks {', '.join(missing)}: restore it, or train anew")
    return state
