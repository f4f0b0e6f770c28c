"""--mode=prune: a smaller run from a trained one; `vpr.compression.pruning` says how."""

import argparse
import importlib.util
from pathlib import Path

from vpr.cli.options import run_flags
from vpr.cli.parser import command
from vpr.cli.specs import device_of, model_spec, places_spec, reading, training_rules
from vpr.common.device import precision_name
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.compression.pruning import prune
from vpr.data.places import load_places, require_queries
from vpr.models.backbones import BACKBONES
from vpr.models.card import INSTALL
from vpr.modes.train import train
from vpr.runs.pytorch_model import restore_model
from vpr.runs.run import create_run, load_checkpoint
from vpr.training.distilling import with_teacher
from vpr.training.state import new_state, splits_of
from vpr.training.training_set import load_training_set
from vpr.training.validation import OWN, find_split, measure_split, open_test_split, select


def run(options: argparse.Namespace) -> None:
    """Make the pruned run; with --nEpochs also train it."""
    if importlib.util.find_spec("torch_pruning") is None:
        raise UserError(f"--mode=prune needs torch-pruning, which is not installed: {INSTALL}")
    if not options.run:
        raise UserError("--mode=prune starts from a trained run: train first, then give --resume [DIR]")
    if options.arch not in BACKBONES:
        raise UserError(f"--mode=prune cannot drop filters of {options.arch}: prune {' or '.join(BACKBONES)}")
    device = device_of(options)
    places, rules, read = places_spec(options), training_rules(options), reading(options, device)
    training = with_teacher(load_training_set(places, rules), rules, read, options.cacheBatchSize)
    validation, reason = find_split(places, "val")
    if validation is None:
        say(f"{reason}: the first validation of a training after this replaces the pruned model as the best one")
    checkpoint = load_checkpoint(options.run, options.savePath, options.ckpt)
    model = restore_model(checkpoint, model_spec(options), options.run).to_device(device, options.precision)
    train_from = options.given.get("trainFrom", BACKBONES[options.arch].layers[0])
    pruned = prune(
        model, rules, training, options.pruneRatio, options.importance, read, train_from, options.distill,
        options.cacheBatchSize,
    )  # fmt: skip
    splits = splits_of(training.images, *([validation] if validation else []))
    state = new_state(pruned, rules, splits, options.start_epoch)
    if validation is not None:  # a training has to better these recalls to replace the model
        reader = validation.reader(read)
        evaluation, _ = measure_split(pruned, validation, reader, options.recallValues, options.cacheBatchSize)
        select(state.position, {OWN: evaluation.recalls}, state.position.epoch - 1)
        say(f"pruned, before any training: {evaluation.lines()}")
    spec = pruned.spec.flags()
    flags = {**run_flags(options, precision_name(pruned.dtype)), "channels": spec["channels"], "trainFrom": train_from}
    folder = create_run(
        Path(options.runsPath), options.arch, f"{options.pooling}_pruned", flags, options.savePath,
        state.checkpoint(), best=True,
    )  # fmt: skip
    before, after = (sum(value.numel() for value in part.backbone.parameters()) for part in (model, pruned))
    say(f"{pruned.name}\nbackbone: {before / 1e6:.2f} -> {after / 1e6:.2f} million parameters")
    say(f"run: {folder}")
    if "nEpochs" in options.given:
        places = places_spec(options)
        validation = load_places(places, "val")
        require_queries(validation)
        train(options, state, training, validation, open_test_split(places), folder)
    else:
        say(f"train it: {command()} --mode=train --resume={folder}")
