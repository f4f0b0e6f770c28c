"""What follows from few words: a model by a short name, the model of a folder, a folder of own images by its content.

`adapt`, `index`, `locate` and `serve` leave the flags that name a model, and the file of keypoint weights, in
DIR/.netvlad.json, unless DIR cannot be written. `export` takes the model too. Whoever types another model, or
--resume, is given that.
"""

import argparse
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpr.cli.flags import INSTEAD, check_flags, defaults, names
from vpr.cli.settings import SHORT_NAMES
from vpr.common.errors import UserError
from vpr.common.files import is_file, read_json, write_json
from vpr.common.settings import MODEL
from vpr.data.catalogue import DATASETS, OWN
from vpr.models.spec import HUB
from vpr.training.choices import BY_PLACE, BY_TEACHER, LOSSES, OF_PLACES, OF_TEACHERS, OF_TRIPLETS, UNREAD
from vpr.training.recipes import RECIPES

FILE = ".netvlad.json"
MODES_OF_PLAIN_FOLDERS = ("cluster", "adapt", "index", "locate", "serve", "export")  # no splits, no positions
MODES = ("adapt", "index", "locate", "serve")
READING = (*MODES, "export")  # which take what these keep
MODES_OF_HUB = ("test", "index", "locate", "serve")
WEIGHTS = "keypointWeights"  # which are those of any model
PATHS = ("weights", "dataPath", "resume", WEIGHTS)  # which may be relative to where the command was typed
NAMING = (*names(lambda flag: flag.kept == MODEL), "model", "resume")  # who types one of these means another model
CHOSEN = (*NAMING, "imageSize", "longSide", "seed", "ckpt", "pcaDim", "noWhiten", "dataPath", WEIGHTS)


def of_short_name(typed: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that --model stands for."""
    return dict(SHORT_NAMES.get(typed.get("model", ""), {}))


def of_recipe(typed: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The flags of --recipe that are not typed, and what they are in words."""
    recipe = RECIPES.get(typed.get("recipe", ""), {})
    named = {*typed, *(NAMING if "startFrom" in typed else ())}  # a run that is started from says what the model is
    flags = {name: value for name, value in recipe.items() if not {name, INSTEAD.get(name)} & named}
    lists = {name: value if isinstance(value, list) else [value] for name, value in flags.items()}
    told = " ".join(f"--{name} {' '.join(map(str, values))}" for name, values in lists.items())
    return flags, f"recipe: {told}" if flags else ""


def refuse_of_other_losses(typed: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Raise a UserError for a typed flag that a training by these flags does not read."""
    loss = merged["loss"]
    read = {**dict.fromkeys(LOSSES, OF_TRIPLETS), BY_PLACE: OF_PLACES, BY_TEACHER: OF_TEACHERS}
    unread = [name for flags in {*read.values()} - {read.get(loss, ())} for name in flags if loss in read]
    for name in unread:
        if name in typed:
            raise UserError(f"--{name} has no effect with --loss={loss}: drop it, or take another loss")
    for source, idle in UNREAD.items():
        if merged[source] and (found := [name for name in idle if name in typed]):
            raise UserError(f"--{found[0]} has no effect with --{source}: drop one of the two")
    for detail, whole in (("alike", "hardEvery"), ("cachedViews", "views")):
        if detail in typed and not merged[whole]:
            raise UserError(f"--{detail} has no effect without --{whole}: add that, or drop --{detail}")


def remembered(typed: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The model of a folder, as flags by their names in options, where none is typed; and in words that it was taken.
    Raises a UserError: the folder's file has nonsense."""
    if typed.get("mode") not in READING or "root" not in typed:
        return {}, ""
    path = Path(typed["root"]) / FILE
    if not path.is_file():
        return {}, ""
    flags = read_json(path)
    if not isinstance(flags, dict):
        raise UserError(f"{path} holds no flags: delete it")
    check_flags(flags, str(path))
    wanted = {WEIGHTS} if any(name in typed for name in NAMING) else set(CHOSEN)
    wanted &= set(names(lambda flag: typed["mode"] in flag.modes)) - ({WEIGHTS} & typed.keys())
    known = {name: value for name, value in flags.items() if name in wanted and INSTEAD.get(name) not in typed}
    implied = of_short_name(known).items()
    told = " ".join(f"--{name}={value}" for name, value in known.items() if (name, value) not in implied)
    return known, f"model, as {path} has it: {told}" if known else ""


def remember(options: argparse.Namespace) -> None:
    """Keep the model of the folder that the options are of, if it is one of own images."""
    chosen = {name: options.given[name] for name in CHOSEN if name in options.given}
    if options.run and "resume" in chosen:
        chosen["resume"] = str(options.run)
    if not chosen or DATASETS[options.dataset].layout != OWN:
        return
    for name in PATHS:
        if name in chosen and Path(chosen[name]).exists():
            chosen[name] = str(Path(chosen[name]).resolve())
    path = Path(options.root) / FILE
    with contextlib.suppress(UserError):  # of a disk that is only read
        if options.mode == "adapt" and path.is_file() and isinstance(kept := read_json(path), dict):
            same_model = all(kept.get(name) == chosen.get(name) for name in NAMING)
            # What adapt does not read stays, but --noWhiten: who adapts wants its whitening.
            chosen |= {name: kept[name] for name in (WEIGHTS, *["pcaDim"] * same_model) if name in kept}
        write_json(path, chosen)


def own_images(given: Mapping[str, Any], stored: Mapping[str, Any], mode: str) -> str:
    """Why --root without --dataset is a folder of own images, in words; empty where it is none."""
    if "root" not in given or "dataset" in given or mode == "import":
        return ""
    from vpr.data.own_folders import holds_own_images

    dataset = stored.get("dataset", defaults()["dataset"])
    if not holds_own_images(Path(given["root"]), dataset, mode in MODES_OF_PLAIN_FOLDERS):
        return ""
    return f"{given['root']} has images and no specs: taken as --dataset=folder"


def refuse_for_hub(given: Mapping[str, Any]) -> None:
    """Raise a UserError for a mode that takes no model of another project, or a flag that has no effect on one."""
    if not (name := given.get("model") or "").startswith(HUB):
        return
    if given["mode"] not in MODES_OF_HUB:
        raise UserError(f"--model={name} is for {', '.join(MODES_OF_HUB)}, found --mode={given['mode']}: name another")
    for flag in sorted(({*NAMING, "pcaDim", "localDescriptors"} - {"model"}) & given.keys()):
        raise UserError(f"--{flag} has no effect on {name}, which is as its project made it: drop one of them")


def require_normalization(given: Mapping[str, Any]) -> None:
    """Raise a UserError for a file of CaffeNet's weights, which does not hold the mean colour, without --normalization.

    Other networks of the table have weights of torchvision too, whose input is the default.
    """
    arch, weights = given.get("arch", ""), given.get("weights", "")
    if arch in ("alexnet_caffe", "alexnet_caffe_ceil") and is_file(weights) and "normalization" not in given:
        raise UserError(
            f"--weights={weights} of {arch} does not say which mean colour its pixels are taken minus: give it with "
            "--normalization=R,G,B, or --normalization=caffe for 123.68,116.779,103.939"
        )
