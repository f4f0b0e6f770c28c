"""The model that test, whiten and export start from: a trained run's or the off-the-shelf one, whitened or not."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from vpr.artifacts.centroids import init_pooling
from vpr.artifacts.runs import load_checkpoint, read_flags
from vpr.cli.specs import model_spec
from vpr.common.device import choose_device, compute_dtype, precision_name
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlacesSpec, has_split, training_set
from vpr.models.describer import Describer
from vpr.models.normalization import normalization_of
from vpr.models.onnx_model import OnnxModel
from vpr.models.place_model import PlaceModel, build_model
from vpr.models.spec import ModelSpec
from vpr.models.weights import weights_hash
from vpr.models.whitening import StoredWhitening, WhiteningRecipe, load_whitening, whitening_files


@dataclass(frozen=True)
class LoadedModel:
    """A model on the CPU, and where it comes from.

    Attributes:
        source: for results files.
        folder: where its whitening lies.
        exported: whether it is an exported file, beside which its results go.
    """

    model: Describer
    source: dict
    folder: Path
    exported: bool = False


def results_folder(finished: LoadedModel, options: argparse.Namespace) -> Path:
    """Where results of a model go: its run, beside its exported file, or for the off-the-shelf model --runsPath."""
    return finished.folder if finished.exported else options.run or Path(options.runsPath)


def load_finished(options: argparse.Namespace, whitened: bool = True) -> LoadedModel:
    """The model of --resume, or the off-the-shelf one; with its whitening if it has one, unless --noWhiten.

    Raises:
        UserError: checkpoint, centroids or whitening are missing, damaged or of something else.
    """
    if options.run and options.run.suffix == ".onnx":
        return LoadedModel(OnnxModel(options.run), {"model": options.run.name}, options.run.parent, exported=True)
    if options.run:
        model, epochs = load_model(options, options.run, options.ckpt)
        source = {"run": options.run.name, "checkpoint": options.ckpt, "epochs": epochs}
        folder = options.run / options.savePath
    else:
        model = build_model(model_spec(options))
        source = {"run": None, "centroids": init_pooling(model, options)}
        path = Path(options.dataPath)
        folder = path.parent if path.is_file() else path
    if whitened and not options.noWhiten:
        source["whitening"] = _whiten(model, folder, options)
    return LoadedModel(model, source, folder)


def whitening_recipe(
    model: PlaceModel, options: argparse.Namespace, dataset: str = "", dataset_hash: str = ""
) -> WhiteningRecipe:
    """What a whitening of a model without one is learnt on, or, without a training set, has to agree with."""
    return WhiteningRecipe(
        weights_hash=weights_hash(model),
        arch=options.arch,
        pooling=options.pooling,
        normalization=normalization_of(options.arch, options.weights, options.normalization)[0],
        precision=precision_name(compute_dtype(options.precision, choose_device(options.device))),
        image_size=" ".join(map(str, options.imageSize)) if options.imageSize else "own",
        dataset=dataset,
        dataset_hash=dataset_hash,
    )


def _whiten(model: PlaceModel, folder: Path, options: argparse.Namespace) -> dict | None:
    """Whiten a model as it was learnt for it, if it was.

    Returns:
        what the whitening was learnt on, for results files.
    """
    wanted = whitening_recipe(model, options)
    files = whitening_files(folder, wanted.weights_hash)
    stored, reason = _choose(files, wanted, options) if files else (None, "run --mode=whiten first, or drop it")
    if stored:
        model.whiten(stored.whitening.cropped(options.pcaDim or stored.dim))
        say(f"whitening: learnt on {stored.whitening.learnt_on}")
        recipe = asdict(stored.recipe) if stored.recipe else {}
        return {**recipe, "photos": stored.photos, "dim": model.dim}
    if options.pcaDim:
        raise UserError(f"--pcaDim={options.pcaDim}: this model has no whitening that fits; {reason}")
    if files:
        say(f"the whitening in {folder} is not used: {reason}")
    elif options.run and list(folder.glob("whitening_*.pth.tar")):
        say(f"the whitening in {folder} belongs to other weights and is not used: run --mode=whiten again")
    return None


def _choose(
    files: list[Path], wanted: WhiteningRecipe, options: argparse.Namespace
) -> tuple[StoredWhitening | None, str]:
    """The whitening that serves these flags, or None and why not.

    It was learnt on the training set of --dataset and --root, or else of the run. Where neither is on this machine, or
    places to test have no training set, the only whitening that agrees in all else is taken.
    """
    usable, reasons = [], []
    for file in files:
        stored = load_whitening(file)
        if stored.recipe is None:
            if len(files) > 1:
                continue
            say(f"{file} was written by an earlier version: whether it was learnt for these flags cannot be told")
            return stored, ""
        difference = stored.recipe.difference(wanted)
        if difference:
            reasons.append(f"{file.name} was learnt with {difference}")
        else:
            usable.append(stored)
    usable.sort(key=lambda stored: stored.recipe.precision != wanted.precision)
    sets, all_known = _training_sets(options)
    for known in sets:
        for stored in usable:
            if (stored.recipe.dataset, stored.recipe.dataset_hash) == known:
                return stored, ""
    if not all_known and len(usable) == 1:
        return usable[0], ""
    names = " or ".join(name for name, _ in sets) or "not here"
    reasons += [f"one was learnt on {stored.recipe.dataset}, the training set is {names}" for stored in usable]
    return None, f"{'; '.join(reasons)}; run --mode=whiten with the same flags"


def _training_sets(options: argparse.Namespace) -> tuple[list[tuple[str, str]], bool]:
    """Name and hash of the training sets that whitening may have been learnt on: of the flags, then of the run.

    Returns:
        the sets that are on this machine, and whether the one that counts (the run's, if there is a run) is.
    """
    chosen = [(options.dataset, options.root)]
    if options.run:
        flags = read_flags(options.run)
        chosen.append((flags.get("dataset", options.dataset), flags.get("root", options.root)))
    sets, known = [], False
    for dataset, root in dict.fromkeys(chosen):
        place = PlacesSpec(dataset, Path(root), options.skipBroken)
        try:
            known = has_split(place, "train")
            sets += [training_set(place)] if known else []
        except UserError:  # of a training set that nobody asked for
            known = False
    return sets, known


def load_model(options: argparse.Namespace, run: Path, which: str) -> tuple[PlaceModel, int]:
    """The model of a run's `best` or `latest` checkpoint, and the epochs it was trained for.

    Raises:
        UserError: the checkpoint is missing, damaged, foreign, or of another model than the run's flags.
    """
    checkpoint = load_checkpoint(run, options.savePath, which)
    return restore_model(checkpoint, model_spec(options), run), checkpoint["position"]["epoch"] - 1


def restore_model(checkpoint: dict, spec: ModelSpec, run: Path) -> PlaceModel:
    """The model of a checkpoint that was loaded from a run.

    Raises:
        UserError: the checkpoint is of another model than `spec`, which the run's flags say.
    """
    for name, value in spec.flags().items():
        stored = checkpoint["flags"].get(name)
        if stored != value:
            raise UserError(
                f"the checkpoint in {run} has {name}={stored}, its flags say {name}={value}: "
                "one of the two files was replaced; restore it"
            )
    model = build_model(spec, pretrained=False)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise UserError(f"the checkpoint in {run} does not fit its model: {error}") from error
    return model
