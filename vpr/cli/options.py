"""The options of a call: defaults, then the flags of a stored run, then what the user typed.

Nothing changes them after `parse_options`. A typed flag that contradicts a stored model is an error.
"""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from vpr.cli import choice
from vpr.cli.flags import (
    AUTO_PRECISION,
    CARD_FLAGS,
    INSTEAD,
    all_flags,
    as_train,
    check_typed,
    checked_flags,
    defaults,
    names,
)  # fmt: skip
from vpr.cli.parser import MODES_WITH_INPUTS, build_parser, command, nearest, parallel_command, wanted_help, with_mode
from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.files import is_file
from vpr.common.settings import MODEL, MODES, RESUMED, RUN, TRAINING
from vpr.data.catalogue import DATASETS
from vpr.models.backbones import BACKBONES, entry_of
from vpr.models.poolings import pooling_entry
from vpr.models.spec import ModelSpec
from vpr.runs.run import FLAGS_FILE, newest_run
from vpr.runs.stored import is_exported
from vpr.training.choices import UNREAD

Flags = dict[str, Any]  # values by their names in options

MODES_OF_EXPORTED_MODELS = ("test", "index", "locate", "serve")
MODES_OF_OTHER_IMAGES = (*MODES_OF_EXPORTED_MODELS, "train")  # than those of the run
USUAL_CHECKPOINT = {"train": "latest"}  # of a run; in other modes best
NEVER_RESUMED = {
    "cluster": "--mode=cluster always starts anew: drop --resume",
    "compare": "--mode=compare takes runs and files as they are, without --resume: drop the word --resume",
    "import": "--mode=import makes a new run: drop --resume",
}
# An exported file holds its whitening, its number format and its projection of local descriptors inside.
INSIDE_EXPORTED = ("pcaDim", "noWhiten", "precision", "ckpt", "localDim")


def default_root() -> Path:
    """Where --root points: the checkout that this file is part of; of an installed package, the current folder."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "main.py").is_file() else Path.cwd()


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Besides the flags the result has `given` (dict: the flags the user typed), `run` (Path of the
    resumed run or exported file, or None) and `notes` (lines to print of what has no effect).
    Raises a UserError: a flag is unknown, has a bad value, is not read by the mode, or contradicts another one or the
    stored run; a SystemExit: after --help.
    """
    words = with_mode(arguments)
    if (text := wanted_help(words)) is not None:
        print(text, end="")
        raise SystemExit(0)
    return settle(vars(build_parser().parse_args(words)))


def settle(typed: Mapping[str, Any]) -> argparse.Namespace:
    """The options of a call with some flags, by their names as argparse has them; as of `parse_options`."""
    typed, idle = as_train(typed)
    chosen, remark = choice.remembered(typed)
    typed = {**choice.of_short_name(typed), **chosen, **typed}
    recipe, told = choice.of_recipe(typed)
    wished = {"inputs": [], **defaults(), **recipe, **typed}
    mode = wished["mode"]
    if mode is None:
        near = "".join(nearest(word, MODES) for word in wished["inputs"][:1])
        raise UserError(
            f"no mode{near}: begin with one, or add --mode=train; there are {', '.join(MODES)} (see --help)"
        )
    if wished["inputs"] and mode not in MODES_WITH_INPUTS:
        raise UserError(f"unrecognized arguments: {' '.join(wished['inputs'])}; see --help")
    notes = [*idle, *check_typed(mode, typed.keys()), *filter(None, (remark, told))]
    _refuse_pairs(typed)
    given = _settle_model(typed)
    if given.get("arch", "") != (name := typed.get("arch", "").partition(".")[0]):
        notes.append(f"--arch={name}: timm's only such network is {given['arch']}")
    run = _resumed(wished, notes)
    source, wins = (Path(typed["startFrom"]), recipe) if "startFrom" in typed else (run, {})
    stored = _taken_over(source, mode, {**wins, **given}) if source else {}
    choice.refuse_for_hub(given)
    if own := choice.own_images(given, stored, mode):
        given["dataset"] = "folder"
        notes += [] if remark else [own]
    if source is None:
        choice.require_normalization(given)
    else:
        given = _spelled_as_stored(given, stored)
        _refuse_contradictions(given, stored, source)
    exported = run is not None and is_exported(run)
    toy = given.get("dataset", stored.get("dataset")) == "toy"
    if exported and "root" not in {*stored, *given} and not toy:
        notes.append(f"{run} was exported without its --root: images are sought in the project's folder")
    merged = _fill_in({**wished, **stored, **wins, **given}, exported)
    if mode == "train":
        choice.refuse_of_other_losses(typed, merged)
    return argparse.Namespace(**merged, given=given, run=run, notes=notes)


def flags_of(options: argparse.Namespace) -> Flags:
    """The flags alone, as JSON can hold them: what a run stores."""
    return {name: getattr(options, name) for name in all_flags()}


def run_flags(options: argparse.Namespace, precision: str) -> Flags:
    """What a run stores of its flags: all, and the number format that --precision=auto meant when it began, in which a
    resumed training computes on any machine."""
    return {**flags_of(options), AUTO_PRECISION: precision}


def command_line(options: argparse.Namespace, mode: str, flags: tuple[str, ...]) -> str:
    """The command that runs `mode` with those of `flags` in which the options differ from the defaults."""
    known, own = all_flags(), defaults()
    words = [f"{command()} --mode={mode}", f"--arch={options.arch}"]
    if options.dataset != own["dataset"]:
        words.append(f"--dataset={options.dataset}")
    own = _fill_in({**own, "arch": options.arch, "dataset": options.dataset})  # other defaults follow from these two
    for name in flags:
        value, spelled = getattr(options, name), f"--{known[name].name}"
        if value == own[name] or (name == "weights" and options.fromscratch):
            continue
        several = [spelled, *map(str, value)] if isinstance(value, list) else [f"{spelled}={value}"]
        words += map(shlex.quote, [spelled] if value is True else several)
    return " ".join(words)


def _refuse_pairs(typed: Mapping[str, Any]) -> None:
    """Flags of which one would silently undo the other, or have no effect without it."""
    for first, second in (*INSTEAD.items(), ("saveDescriptors", "loadDescriptors"), ("startFrom", "resume")):
        if first in typed and second in typed:
            _contradict(f"--{first}={typed[first]}", f"--{second}")
    for detail, whole in (("hlocHalf", "hlocFeatures"), ("pairsTop", "pairs"), ("hlocMatches", "pairs")):
        if detail in typed and whole not in typed:
            raise UserError(f"--{detail} has no effect without --{whole} FILE: add that, or drop --{detail}")


def _settle_model(typed: Mapping[str, Any]) -> Flags:
    """What was typed, with one spelling for each wish about --arch and --weights.

    --arch=NAME.TAG, as timm writes a network with its weights, is --arch=NAME --weights=TAG; --fromscratch is
    --weights=none; names of torchvision's weights are upper case; part of a name of timm's is completed.
    """
    given, scratch = dict(typed), typed.get("fromscratch")
    name, dot, tag = given.get("arch", "").partition(".")
    if dot:
        if scratch or given.get("weights", tag) != tag:
            _contradict(f"--arch={given['arch']}", "--fromscratch" if scratch else f"--weights={given['weights']}")
        given |= {"arch": name, "weights": tag}
    weights = given.get("weights", "none" if scratch else None)
    if weights is not None and weights.lower() == "none":
        given |= {"fromscratch": True, "weights": "none"}
    elif weights is not None and scratch:
        _contradict("--fromscratch", f"--weights={weights}")
    elif weights is not None and not is_file(weights) and given.get("arch", "vgg16") in BACKBONES:
        given["weights"] = weights.upper()
    if name and name not in BACKBONES:
        from vpr.models.backbones.timm_names import completed

        given["arch"] = completed(name)
    return given


def _contradict(one: str, other: str) -> NoReturn:
    raise UserError(f"{one} and {other} contradict each other: give one")


def _spelled_as_stored(given: Flags, stored: Flags) -> Flags:
    """What was typed for a run, as the run spells it where both mean the same: case of names, blocks from the end."""
    given = dict(given)
    if "weights" in stored and str(given.get("weights")).upper() == str(stored["weights"]).upper():
        given["weights"] = stored["weights"]
    if given.get("cut", 0) < 0 and stored.get("arch") not in (None, *BACKBONES):
        given["cut"] = entry_of(stored["arch"], given["cut"], stored.get("facet")).cut
    return given


def _resumed(wished: Flags, notes: list[str]) -> Path | None:
    """The run or exported file that --resume names; a newer run that is passed over is noted."""
    if wished["resume"] is None:
        return None
    if wished["mode"] in NEVER_RESUMED:
        raise UserError(NEVER_RESUMED[wished["mode"]])
    if wished["resume"] != "newest":
        return Path(wished["resume"])
    runs, which = Path(wished["runsPath"]), wished["ckpt"] or USUAL_CHECKPOINT.get(wished["mode"], "best")
    run, newest = newest_run(runs, which), newest_run(runs)
    if run != newest:
        notes.append(f"{newest} has no model to use ({which}) yet: taking {run}")
    return run


def _taken_over(run: Path, mode: str, given: Flags) -> Flags:
    """The flags of a run or an exported file that a mode takes over."""
    if is_exported(run):
        _refuse_for_exported(run, mode, given)
        kept = {*CARD_FLAGS}
    else:
        training = (RESUMED,) if mode in ("train", "prune") else ()
        kept = {*names(lambda flag: flag.kept in (MODEL, TRAINING, RUN, *training))}
    # A run or file that is older than a flag has its default.
    added = names(lambda flag: flag.added and flag.key in kept)
    stored = {**{name: defaults()[name] for name in added}, **checked_flags(run)}
    if not is_exported(run):
        # Runs of before the flag trained from its default on.
        stored["trainFrom"] = ModelSpec.from_flags(stored).first_trained
        if mode == "train" and stored.get("precision") == "auto":
            stored["precision"] = stored.get(AUTO_PRECISION, "auto")
    if mode in MODES_OF_OTHER_IMAGES and given.get("dataset", stored.get("dataset")) != stored.get("dataset"):
        kept -= {"root"}  # the run's images are not those of the dataset that was asked for
    kept -= {"valSets", "bestBy"} if mode == "prune" else set()  # which measures the run's own split alone
    if "startFrom" in given:  # where places come from is of the images, and others may be typed
        kept -= {each for each, idle in UNREAD.items() if {"root", "dataset", *idle} & given.keys()}
    return {name: value for name, value in stored.items() if name in kept and INSTEAD.get(name) not in given}


def _refuse_for_exported(file: Path, mode: str, given: Flags) -> None:
    """Raise a UserError for a mode that takes no exported file, or a flag that has no effect on one."""
    if mode not in MODES_OF_EXPORTED_MODELS:
        raise UserError(
            f"--mode={mode} cannot go on from {file}: exported models are for test, index, locate and serve"
        )
    for name in INSIDE_EXPORTED:
        if name in given:
            raise UserError(
                f"--{name} has no effect on {file}, an exported model: drop --{name}, or give it to --mode=export"
                f"{' or to a run' if name == 'precision' else ''}"
            )


def _refuse_contradictions(given: Flags, stored: Flags, run: Path) -> None:
    """A test may look at other images; a training may not change under way; a model never, but for a first map."""
    start, known = "startFrom" in given, all_flags()
    training = given["mode"] == "train" and not start
    fixed = {*names(lambda flag: flag.kept == MODEL or (training and flag.kept == TRAINING))}
    fixed -= {"clusterDim"} if start and stored["clusterDim"] is None else set()
    where = run if is_exported(run) else run / FLAGS_FILE
    for name in sorted(fixed, key="fromscratch".__eq__):  # last, for --weights says more
        if name in given and name in stored and given[name] != stored[name]:
            spelled = f"--{known[name].name}"
            raise UserError(
                f"{spelled}={given[name]} contradicts {where}, which has {name}={stored[name]}: "
                f"drop {spelled}, or work without --{'startFrom' if start else 'resume'}"
            )
    if training and "start_epoch" in given:
        raise UserError("--start-epoch comes from the checkpoint when a run is resumed: drop one of the two")


def _fill_in(merged: Flags, exported: bool = False) -> Flags:
    """Settle the defaults that depend on other flags, and refuse flags that cannot go together.
    An `exported` model is in a file, which knows what it is better than its flags."""
    filled = dict(merged)
    if not filled["root"]:
        filled["root"] = str(default_root() / "toy_city" if filled["dataset"] == "toy" else default_root())
    if not exported:
        spec = ModelSpec.from_flags(filled)
        filled |= {**spec.flags(), "trainFrom": spec.first_trained}
    filled["ckpt"] = filled["ckpt"] or USUAL_CHECKPOINT.get(filled["mode"], "best")
    if filled["lr"] is None:
        filled["lr"] = DATASETS[filled["dataset"]].lr
    if filled["trainBatchNorm"] and filled["gradientCache"]:  # statistics would be of its few images, and taken twice
        _contradict(f"--gradientCache={filled['gradientCache']}", "--trainBatchNorm")
    if filled["nocuda"]:
        if filled["device"] not in ("auto", "cpu"):
            _contradict("--nocuda", f"--device={filled['device']}")
        filled["device"] = "cpu"
    if filled["nGPU"] > 1 and processes.launched() == 1:
        raise UserError(
            f"--nGPU={filled['nGPU']} takes as many processes: start them with "
            f"{parallel_command(filled['nGPU'])} --mode={filled['mode']} ..."
        )
    if filled["normalization"] is not None and not (filled["fromscratch"] or is_file(filled["weights"])):
        raise UserError(
            f"--normalization={filled['normalization']} goes with --weights FILE or --fromscratch: "
            f"{filled['weights']} brings its own; drop --normalization"
        )
    pooling_entry(filled["pooling"], filled["vladAssign"], filled["clusterDim"], filled["vladv2"])
    filled["recallValues"] = sorted(set(filled["recallValues"]))
    return filled
