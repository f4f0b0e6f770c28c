"""--mode=prune: drop the filters of a run's trunk that matter least, and start a new, smaller run from the rest.

Filters go whole, with what reads them, by the dependency graph of Torch-Pruning (Fang et al., CVPR 2023): the
model left is an ordinary dense one. How much a filter matters: the first-order Taylor term of the training
loss on mined tuples (Molchanov et al., ICLR 2017), or the size of its weights. Those left then learn to
stand in for those gone (`vpr/reconstruction.py`), before the ordinary training.
"""

import argparse
import importlib.util
from pathlib import Path

import torch

from vpr.artifacts.model import load_model
from vpr.artifacts.runs import create_run
from vpr.cli.specs import model_spec, reading
from vpr.common.device import choose_device, device_line
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.compression.pruning import accumulate_gradients, filters_of, prune_trunk, recluster
from vpr.compression.reconstruction import distill, reconstruct
from vpr.data.places import PlacePhotos
from vpr.models.backbones import BACKBONES
from vpr.models.card import INSTALL
from vpr.models.place_model import build_model
from vpr.modes import train
from vpr.training import trainer
from vpr.training.state import TrainingState, new_state, run_flags, splits_of
from vpr.training.validation import find_split, measure_split, select


def run(options: argparse.Namespace) -> None:
    """Make the pruned run; with --nEpochs also train it."""
    if importlib.util.find_spec("torch_pruning") is None:
        raise UserError(f"--mode=prune needs torch-pruning, which is not installed: {INSTALL}")
    if not options.run:
        raise UserError("--mode=prune starts from a trained run: train first, then give --resume [DIR]")
    device = choose_device(options.device)
    say(device_line(device))
    training = trainer.load_training_set(options)
    validation, reason = find_split(options, "val")
    if validation is None:
        say(f"{reason}: the first validation of a training after this replaces the pruned model as the best one")
    model, _ = load_model(options, options.run, options.ckpt)
    model.to_device(device, options.precision)
    if options.importance == "taylor":
        accumulate_gradients(model, training, options, device)
    encoder, kept = prune_trunk(model.backbone, options.pruneRatio, options.importance)
    changed = {
        "channels": filters_of(encoder),
        "trainFrom": options.given.get("trainFrom", BACKBONES[options.arch].layers[0]),
    }
    smaller = argparse.Namespace(**{**vars(options), **changed})
    pruned = build_model(model_spec(smaller), pretrained=False)
    pruned.backbone.load_state_dict(encoder.state_dict())
    pruned.to_device(device, options.precision)
    reader = reading(options, device).of(training.photos.files)
    reconstruct(pruned, model, kept, reader, options.seed)
    if options.distill:
        distill(pruned, model, kept[-1], reader, options.distill, options.seed)
    recluster(pruned, training, smaller, device)
    state = new_state(pruned, smaller, splits_of(training.photos, *([validation] if validation else [])), device)
    if validation is not None:
        measure_first(state, validation, smaller, device)
    folder = create_run(
        Path(options.runsPath), options.arch, f"{options.pooling}_pruned", run_flags(smaller, pruned),
        options.savePath, state.checkpoint(smaller), best=True,
    )  # fmt: skip
    before, after = (sum(value.numel() for value in part.parameters()) for part in (model.backbone, encoder))
    say(f"{pruned.name}\ntrunk: {before / 1e6:.2f} -> {after / 1e6:.2f} million parameters")
    say(f"run: {folder}")
    if "nEpochs" in options.given:
        train.run(argparse.Namespace(**{**vars(smaller), "mode": "train", "run": folder, "ckpt": "latest"}))
    else:
        say(f"train it: python main.py --mode=train --resume={folder}")


def measure_first(
    state: TrainingState, validation: PlacePhotos, options: argparse.Namespace, device: torch.device
) -> None:
    """Take the model's recalls on val as the best so far: a training has to better them to replace it."""
    reader = validation.reader(reading(options, device))
    evaluation, _ = measure_split(state.model, validation, reader, options, device)
    select(state.position, evaluation.recalls, state.position.epoch - 1)
    say(f"pruned, before any training: {evaluation.lines()}")
