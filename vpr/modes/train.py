"""--mode=train: weakly supervised training, new or resumed; `vpr.training.trainer` says how it goes."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vpr.cli.flags import AUTO_PRECISION, names
from vpr.cli.load import cluster_command
from vpr.cli.options import run_flags
from vpr.cli.specs import model_spec, places_spec, reading, reranking_rule, training_rules
from vpr.common import processes
from vpr.common.device import Device, choose_device, compute_dtype, device_line, precision_name
from vpr.common.progress import say
from vpr.data.places import PlaceImages, load_places, require_queries
from vpr.descriptors.trunk_cache import cached_split
from vpr.models.place_model import PlaceModel, build_model
from vpr.runs.centroids import init_map, init_pooling
from vpr.runs.pytorch_model import restore_model, start_from
from vpr.runs.run import create_run, load_checkpoint, read_flags
from vpr.training.distilling import with_teacher
from vpr.training.places.walk import grow_by_model
from vpr.training.state import TEACHER, TrainingState, load_state, new_state, splits_of
from vpr.training.trainer import Sources, Trainer
from vpr.training.training_set import TrainingSet, load_training_set
from vpr.training.validation import ValidationReranking, ValidationSet, open_sets, open_test_split
from vpr.training.views.reader import ViewedReader

# A resumed run may get other values of these; it then no longer ends as one that was never stopped.
CHANGES_THE_END = names(lambda flag: flag.alters)


def run(options: argparse.Namespace) -> None:
    """Train a new run, or go on with that of --resume; at the end test the best model."""
    places, rules = places_spec(options), training_rules(options)
    training, validation = load_training_set(places, rules), load_places(places, "val")
    require_queries(validation)
    others = open_sets(places, options.valSets or (), rules.best_by)
    test = open_test_split(places)
    device = choose_device(options.device)
    say(device_line(device))
    training = with_teacher(training, rules, reading(options, device), options.cacheBatchSize)
    splits = splits_of(training.images, validation)
    splits |= {TEACHER: training.teacher} if training.teacher else {}
    splits |= {f"{name}/val": each for name, images in others.items() for each in splits_of(images).values()}
    state, folder = (
        _resume(options, splits, device) if options.run else _start(options, splits, device, training.images)
    )
    rule = reranking_rule(options)
    database = reading(options, device).of(validation.database_files)
    reranking = ValidationReranking(rule, database, options.seed, options.localDim) if rule else None
    train(options, state, training, validation, test, folder, reranking, others)


def train(
    options: argparse.Namespace,
    state: TrainingState,
    training: TrainingSet,
    validation: PlaceImages,
    test: PlaceImages | None,
    folder: Path,
    reranking: ValidationReranking | None = None,
    others: dict[str, PlaceImages] | None = None,
) -> None:
    """Train the epochs that are left, and measure the best model on the test split, or on val where there is none."""
    read, rules, batch = reading(options, state.model.device), training_rules(options), options.cacheBatchSize
    say(f"run: {folder}\n{state.model.name}, trained from {state.model.spec.train_from} on")
    where = options.trunkCache if state.position.epoch <= rules.epochs else "off"
    reader, seen, cache = training.images.reader(read), validation.reader(read), Path(options.cachePath)
    if rules.walk == "again" and training.places and not rules.place_folders:
        if state.walk is None:  # before the first step
            state.walk = grow_by_model(training.places, training.images, reader, state.model, rules.seed, batch)
        training = replace(training, places=replace(training.places, images=[*map(np.array, state.walk)]))
    if rules.views:
        reader = ViewedReader.of(reader, [*rules.views] * rules.cached_views, rules.seed)
    splits = (training.images, reader), (validation, seen)
    sources = Sources(*(cached_split(*split, state.model, where, cache, batch) for split in splits))
    sets = dict[str, ValidationSet]()
    for name, images in (others or {}).items():
        source = cached_split(images, images.reader(read), state.model, where, cache, batch)
        sets[name] = images, source, reranking and replace(reranking, database=read.of(images.database_files))
    trainer = Trainer(state, training, validation, sources, rules, folder, options.savePath, batch, reranking, sets)
    trainer.run()
    trainer.test(test, test.reader(read) if test else None)


def _start(
    options: argparse.Namespace, splits: dict[str, dict], device: Device, images: PlaceImages
) -> tuple[TrainingState, Path]:
    """The state before the first step, and the run made for it; `images` are those it is trained on."""
    torch.manual_seed(options.seed)
    read, start = reading(options, device), options.startFrom and Path(options.startFrom)
    if start:
        model = start_from(start, options.given.get("ckpt", "best"), model_spec(options))
    else:
        model = build_model(model_spec(options))
        with cluster_command(options):
            init_pooling(model, Path(options.dataPath), places_spec(options), read.size)
    model.to_device(device, options.precision)
    if start and read_flags(start).get("clusterDim") != options.clusterDim:
        init_map(model, read.of(images.database_files), options.seed, options.cacheBatchSize)
    state = new_state(model, training_rules(options), splits, options.start_epoch)
    folder: Path | None = None
    if processes.is_main():
        flags, runs = run_flags(options, precision_name(model.dtype)), Path(options.runsPath)
        folder = create_run(runs, options.arch, options.pooling, flags, options.savePath, state.checkpoint())
    folder = processes.broadcast(folder)
    assert folder is not None  # process 0 made it
    return state, folder


def _resume(options: argparse.Namespace, splits: dict[str, dict], device: Device) -> tuple[TrainingState, Path]:
    """The state in which the run of --resume was left, and the run."""
    checkpoint = load_checkpoint(options.run, options.savePath, options.ckpt)
    model = restore_model(checkpoint, model_spec(options), options.run).to_device(device, options.precision)
    if "optimizer" in checkpoint:
        state = load_state(checkpoint, model, training_rules(options), splits, options.run, options.skipBroken)
    else:  # an imported model, which nobody has trained here yet
        state = new_state(model, training_rules(options), splits)
    _say_of_precision(options, model)
    _say_what_changed(options, device)
    return state, options.run


def _say_of_precision(options: argparse.Namespace, model: PlaceModel) -> None:
    """Say so where a run that began with --precision=auto would begin in another number format on this machine."""
    stored, here = read_flags(options.run), compute_dtype("auto", model.device)
    if stored.get("precision") != "auto" or "precision" in options.given:
        return
    if AUTO_PRECISION not in stored:
        say(f"the run is older than its note of what --precision=auto meant: {precision_name(here)} from here on")
    elif here != model.dtype:
        say(
            f"--precision=auto meant {precision_name(model.dtype)} when the run began and would be "
            f"{precision_name(here)} here: it goes on in {precision_name(model.dtype)}"
        )


def _say_what_changed(options: argparse.Namespace, device: Device) -> None:
    """A line for the flags that were typed for a resumed run and change how it ends."""
    stored = read_flags(options.run)
    same = {
        "root": lambda one, other: Path(one).resolve() == Path(other).resolve(),
        "precision": lambda one, other: compute_dtype(one, device) == compute_dtype(other, device),
    }
    changed = [
        f"--{name}={options.given[name]} (was {'its default' if stored[name] is None else stored[name]})"
        for name in CHANGES_THE_END
        if name in options.given
        and name in stored
        and not same.get(name, lambda one, other: one == other)(options.given[name], stored[name])
    ]
    if changed:
        say(f"{', '.join(changed)}: from here on this run differs from one that was never stopped")
