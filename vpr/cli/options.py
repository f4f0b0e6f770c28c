"""The options of a call: defaults, then the flags of a stored run, then what the user typed.

Nothing changes them after `parse_options`. A typed flag that contradicts a stored model is an error.
"""

import argparse
import shlex
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from vpr.cli.flags import AUTO_PRECISION, CARD_FLAGS, check_typed, defaults, names, spelled
from vpr.cli.parser import MODES_WITH_INPUTS, build_parser, command, parallel_command, wanted_help
from vpr.cli.stored import checked_flags
from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.files import is_file
from vpr.common.settings import MODEL, RESUMED, RUN, TRAINING
from vpr.data.catalogue import DATASETS
from vpr.models.backbones import BACKBONES, entry_of
from vpr.models.poolings import pooling_entry
from vpr.models.spec import ModelSpec
from vpr.runs.run import FLAGS_FILE, newest_run
from vpr.runs.stored import is_exported

NOT_FLAGS = ("given", "run", "inputs", "notes")
MODES_OF_EXPORTED_MODELS = ("test", "index", "locate", "serve")
NEVER_RESUMED = {
    "cluster": "--mode=cluster always starts anew: drop --resume",
    "compare": "--mode=compare takes runs and files as they are, without --resume: drop the word --resume",
    "import": "--mode=import makes a new run: drop --resume",
}


def default_root() -> Path:
    """Where --root points: the checkout that this file is part of; of an installed package, the current folder."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "main.py").is_file() else Path.cwd()


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Besides the flags the result has `given` (dict: the flags the user typed), `run` (Path of the
    resumed run or exported file, or None) and `notes` (lines to print of what has no effect).

    Raises:
        UserError: a flag is unknown, has a bad value, is not read by the mode, or contradicts another one or the
            stored run.
        SystemExit: after --help.
    """
    text = wanted_help(arguments)
    if text is not None:
        print(text, end="")
        raise SystemExit(0)
    return settle(vars(build_parser().parse_args(arguments)))


def settle(typed: Mapping[str, Any]) -> argparse.Namespace:
    """The options of a call with some flags, by their names as argparse has them; as of `parse_options`."""
    wished = {"inputs": [], **defaults(), **typed}
    if wished["inputs"] and wished["mode"] not in MODES_WITH_INPUTS:
        raise UserError(f"unrecognized arguments: {' '.join(wished['inputs'])}; see --help")
    if wished["mode"] is None:
        raise UserError("no mode: add --mode=cluster, --mode=train or --mode=test (see --help)")
    notes = check_typed(wished["mode"], typed.keys())
    _refuse_pairs(typed)
    given = _settle_weights(_settle_tag(dict(typed)))
    given, named = _settle_name(given)
    notes += named
    run, stored = _stored_run(wished, given)
    if run is not None:
        given = _spelled_as_stored(given, stored)
        _refuse_contradictions(given, stored, run)
        notes += _missing_root(run, stored, given)
    else:
        _require_normalization(given)
    return argparse.Namespace(**_fill_in({**wished, **stored, **given}), given=given, run=run, notes=notes)


def flags_of(options: argparse.Namespace) -> dict:
    """The flags alone, as JSON can hold them: what a run stores."""
    return {name: value for name, value in vars(options).items() if name not in NOT_FLAGS}


def run_flags(options: argparse.Namespace, precision: str) -> dict:
    """What a run stores of its flags: all, and the number format that --precision=auto meant when it began.

    A resumed training computes in that format on any machine; other modes take what auto means where they run.
    """
    return {**flags_of(options), AUTO_PRECISION: precision}


def command_line(options: argparse.Namespace, mode: str, flags: tuple[str, ...]) -> str:
    """The command that runs `mode` with those of `flags` in which the options differ from the defaults."""
    words, own = [f"{command()} --mode={mode}", f"--arch={options.arch}"], defaults()
    if options.dataset != own["dataset"]:
        words.append(f"--dataset={options.dataset}")
    # Other defaults follow from these two.
    own = _fill_in({**own, "arch": options.arch, "dataset": options.dataset})
    for name in flags:
        value = getattr(options, name)
        if value == own[name] or (name == "weights" and options.fromscratch):
            continue
        words += map(shlex.quote, _words_of(name, value))
    return " ".join(words)


def _words_of(name: str, value: object) -> list[str]:
    """A flag as the words that are typed for it."""
    if value is True:
        return [spelled(name)]
    if isinstance(value, list):
        return [spelled(name), *map(str, value)]
    return [f"{spelled(name)}={value}"]


def _refuse_pairs(typed: Mapping[str, Any]) -> None:
    """Flags of which one would silently undo the other, or have no effect without it."""
    for first, second in (("pcaDim", "noWhiten"), ("saveDescriptors", "loadDescriptors")):
        if first in typed and second in typed:
            raise UserError(f"--{first}={typed[first]} and --{second} contradict each other: give one")
    for detail, whole in (("hlocHalf", "hlocFeatures"), ("pairsTop", "pairs")):
        if detail in typed and whole not in typed:
            raise UserError(f"--{detail} has no effect without --{whole} FILE: add that, or drop --{detail}")


def _settle_tag(given: dict) -> dict:
    """--arch=NAME.TAG, as timm writes a network with its weights, is --arch=NAME --weights=TAG."""
    name, dot, tag = given.get("arch", "").partition(".")
    if not dot:
        return given
    if given.get("fromscratch") or given.get("weights", tag) != tag:
        other = "--fromscratch" if given.get("fromscratch") else f"--weights={given['weights']}"
        raise UserError(f"--arch={given['arch']} and {other} contradict each other: give one")
    return {**given, "arch": name, "weights": tag}


def _settle_name(given: dict) -> tuple[dict, list[str]]:
    """--arch with the full name of a network of timm, and a line where less was typed."""
    arch = given.get("arch")
    if arch is None or arch in BACKBONES:
        return given, []
    from vpr.models.backbones.timm_names import completed

    name = completed(arch)
    return {**given, "arch": name}, [] if name == arch else [f"--arch={arch}: timm's only such network is {name}"]


def _spelled_as_stored(given: dict, stored: dict) -> dict:
    """What was typed for a run, where it means the same as what the run stores: the case of names, blocks counted
    from the end."""
    given = dict(given)
    if "weights" in stored and str(given.get("weights")).upper() == str(stored["weights"]).upper():
        given["weights"] = stored["weights"]
    if given.get("cut", 0) < 0 and stored.get("arch") not in (None, *BACKBONES):
        given["cut"] = entry_of(stored["arch"], given["cut"], stored.get("facet")).cut
    return given


def _settle_weights(given: dict) -> dict:
    """One spelling for each wish: --fromscratch and --weights=none are the same."""
    wants_none = given.get("weights", "none").lower() == "none"
    if given.get("fromscratch") and not wants_none:
        raise UserError(f"--fromscratch and --weights={given['weights']} contradict each other: give one")
    if given.get("fromscratch") or ("weights" in given and wants_none):
        return {**given, "fromscratch": True, "weights": "none"}
    if "weights" in given and not is_file(given["weights"]) and given.get("arch", "vgg16") in BACKBONES:
        return {**given, "weights": given["weights"].upper()}  # torchvision's names are upper case
    return given


def _require_normalization(given: Mapping[str, Any]) -> None:
    """CaffeNet's weights are of pixels minus a mean colour, which their file does not hold; other networks of the table
    have weights of torchvision too, whose input is the default. Raises a UserError for a file of CaffeNet's without
    --normalization."""
    arch, weights = given.get("arch", ""), given.get("weights", "")
    if arch in ("alexnet_caffe", "alexnet_caffe_ceil") and is_file(weights) and "normalization" not in given:
        raise UserError(
            f"--weights={weights} of {arch} does not say which mean colour its pixels are taken minus: give it with "
            "--normalization=R,G,B, or --normalization=caffe for 123.68,116.779,103.939"
        )


def _stored_run(wished: dict, given: dict) -> tuple[Path | None, dict]:
    """The run that --resume names and those of its flags that this mode takes over."""
    mode, named = wished["mode"], wished["resume"]
    if named is None:
        return None, {}
    if mode in NEVER_RESUMED:
        raise UserError(NEVER_RESUMED[mode])
    run = newest_run(Path(wished["runsPath"])) if named == "newest" else Path(named)
    if is_exported(run):
        if mode not in MODES_OF_EXPORTED_MODELS:
            raise UserError(
                f"--mode={mode} cannot go on from {run}: exported models are for test, index, locate and serve"
            )
        _refuse_for_exported(run, given)
        kept = {*CARD_FLAGS}
        stored = {**_before(kept), **checked_flags(run)}
    else:
        training = (RESUMED,) if mode in ("train", "prune") else ()
        kept = {*names(lambda flag: flag.kept in (MODEL, TRAINING, RUN, *training))}
        stored = {**_before(kept), **checked_flags(run)}
        stored["trainFrom"] = ModelSpec.from_flags(
            stored
        ).first_trained  # runs of before the flag trained from its default on
        if mode == "train" and stored.get("precision") == "auto":
            stored["precision"] = stored.get(AUTO_PRECISION, "auto")
    if mode in MODES_OF_EXPORTED_MODELS and "dataset" in given and given["dataset"] != stored.get("dataset"):
        kept -= {"root"}  # the run's images are not those of the dataset that was asked for
    return run, {name: value for name, value in stored.items() if name in kept}


def _before(kept: Set[str]) -> dict[str, Any]:
    """Those of the flags that are kept which a run does not store that is older than they are."""
    return {name: value for name, value in defaults().items() if name in kept & {*names(lambda flag: flag.added)}}


def _refuse_for_exported(file: Path, given: dict) -> None:
    """An exported file holds its whitening, its number format and its projection of local descriptors inside."""
    for name in ("pcaDim", "noWhiten", "precision", "ckpt", "localDim"):
        if name in given:
            raise UserError(
                f"--{name} has no effect on {file}, an exported model: drop --{name}, or give it to --mode=export"
                f"{' or to a run' if name == 'precision' else ''}"
            )


def _missing_root(run: Path, stored: dict, given: dict) -> list[str]:
    """A line where an exported file does not say where its images are."""
    if not is_exported(run) or "root" in {*stored, *given} or given.get("dataset", stored.get("dataset")) == "toy":
        return []
    return [f"{run} was exported without its --root: images are sought in the project's folder"]


def _refuse_contradictions(given: dict, stored: dict, run: Path) -> None:
    """A test may look at other images; a training may not change under way; a model never."""
    training = given["mode"] == "train"
    fixed = names(lambda flag: flag.kept == MODEL or (training and flag.kept == TRAINING))
    for name in sorted(fixed, key="fromscratch".__eq__):  # last, for --weights says more
        if name in given and name in stored and given[name] != stored[name]:
            raise UserError(
                f"{spelled(name)}={given[name]} contradicts {_flags_of_run(run)}, which has {name}={stored[name]}: "
                f"drop {spelled(name)}, or work without --resume"
            )
    if training and "start_epoch" in given:
        raise UserError("--start-epoch comes from the checkpoint when a run is resumed: drop one of the two")


def _flags_of_run(run: Path) -> Path:
    return run if is_exported(run) else run / FLAGS_FILE


def _fill_in(merged: dict) -> dict:
    """Settle the defaults that depend on other flags, and refuse flags that cannot go together."""
    filled = dict(merged)
    toy = filled["dataset"] == "toy"
    filled["root"] = filled["root"] or str(default_root() / "toy_city" if toy else default_root())
    spec = ModelSpec.from_flags(filled)
    filled |= {**spec.flags(), "trainFrom": spec.first_trained}
    filled["ckpt"] = filled["ckpt"] or ("latest" if filled["mode"] == "train" else "best")
    if filled["lr"] is None:
        filled["lr"] = DATASETS[filled["dataset"]].lr
    if filled["nocuda"]:
        if filled["device"] not in ("auto", "cpu"):
            raise UserError(f"--nocuda and --device={filled['device']} contradict each other: give one")
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
