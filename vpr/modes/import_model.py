"""--mode=import: a run from a model of the MATLAB release of NetVLAD; `vpr.models.matlab` says what is in its files."""

import argparse
from dataclasses import replace
from pathlib import Path

from vpr.cli.options import run_flags
from vpr.cli.parser import command
from vpr.common.device import choose_device, compute_dtype, precision_name
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.models.matlab.network import import_network
from vpr.models.weights import weights_hash
from vpr.models.whitening import ANY_SIZE, StoredWhitening, WhiteningRecipe, save_whitening
from vpr.runs.run import create_run
from vpr.training.state import Position


def run(options: argparse.Namespace) -> None:
    """Make a run of the file that was named: its best checkpoint is the model, with its whitening beside it."""
    if len(options.inputs) != 1:
        raise UserError(f"--mode=import wants one .mat file, found {len(options.inputs)}: --mode=import FILE.mat")
    path = Path(options.inputs[0])
    model, whitening = import_network(path)
    spec = replace(model.spec, train_from=model.spec.first_trained)
    precision = precision_name(compute_dtype(options.precision, choose_device(options.device)))
    flags = {**run_flags(options, precision), **spec.flags(), "trainFrom": spec.train_from}
    state = {"flags": spec.flags(), "state_dict": model.state_dict(), "position": vars(Position())}

    def add_whitening(checkpoints: Path) -> None:
        if whitening is not None:
            recipe = WhiteningRecipe(
                weights_hash(model), spec.arch, spec.pooling, spec.normalization or "", precision="fp32",
                image_size=ANY_SIZE, dataset=f"the set of {path.name}",
            )  # fmt: skip
            save_whitening(recipe.path(checkpoints), StoredWhitening(whitening, whitening.dim, recipe))

    folder = create_run(
        Path(options.runsPath), spec.arch, f"{spec.pooling}_matlab", flags, options.savePath, state, best=True,
        add=add_whitening,
    )  # fmt: skip
    if "dataset" not in options.given:
        say(f"which images it was trained on the file does not say: the run has --dataset={options.dataset}")
    say(model.name)
    if whitening is not None:
        say(f"whitening of the file: {model.pooled_dim}-D -> {whitening.dim}-D")
    say(f"run: {folder}\ntest it: {command()} --mode=test --resume={folder}")
