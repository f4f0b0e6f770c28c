"""Models that PyTorch runs: of a run's checkpoint, or off the shelf, each with the whitening that was learnt for it."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vpr.common.device import compute_dtype, precision_name
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlacesSpec, has_split, is_plain_folder, training_set
from vpr.data.reader import size_text
from vpr.models.place_model import PlaceModel, build_model
from vpr.models.spec import ADDED_FLAGS, ModelSpec
from vpr.models.whitening import ANY_SIZE, StoredWhitening, WhiteningRecipe, load_whitening, whitening_files
from vpr.runs.centroids import OwnImages, init_pooling
from vpr.runs.model import LoadedModel, WhiteningChoice, stored_choice, stored_places
from vpr.runs.run import load_checkpoint, read_flags


def load_run(
    path: Path, which: str, whitened: bool, choice: WhiteningChoice | None, checkpoints: str | None
) -> LoadedModel:
    """The model of a run, as of `load_model`."""
    flags = read_flags(path)
    spec = ModelSpec.from_flags(flags)
    folder = checkpoints or flags.get("savePath", "checkpoints")
    checkpoint = load_checkpoint(path, folder, which)
    model = restore_model(checkpoint, spec, path)
    source = {"run": path.name, "checkpoint": which, "epochs": checkpoint["position"]["epoch"] - 1}
    loaded = LoadedModel(model, source, path / folder, path, flags, _trained_on(checkpoint, flags))
    return _whitened(loaded, model, choice or stored_choice(flags)) if whitened else loaded


def _trained_on(checkpoint: Mapping[str, Any], flags: Mapping[str, Any]) -> str:
    """The hash of a run's training set; of --skipBroken the checkpoint's is that of the images that were left."""
    splits = {} if flags.get("skipBroken") else checkpoint.get("splits", {})
    return str(splits.get("train", {}).get("places", ""))


def off_the_shelf(
    spec: ModelSpec, centroids: Path, choice: WhiteningChoice, whitened: bool = True, own: OwnImages | None = None
) -> LoadedModel:
    """The model of a spec with pretrained weights, NetVLAD starting from the centroids of a training set.
    Raises a MissingCentroids: there are none; a UserError: weights, centroids or whitening are missing, damaged or of
    something else.

    Args:
        centroids: folder of centroids files, or one file.
        choice: of the whitening; the centroids are of its places and image size.
        own: images of which clusters are learnt where there are none of the training set.
    """
    model = build_model(spec)
    source = {"run": None, "centroids": init_pooling(model, centroids, choice.places, choice.reading.size, own)}
    loaded = LoadedModel(model, source, centroids.parent if centroids.is_file() else centroids)
    return _whitened(loaded, model, choice) if whitened else loaded


def start_from(run: Path, which: str, spec: ModelSpec) -> PlaceModel:
    """A model of `spec` with the weights of a run's checkpoint; a --clusterDim that the run lacks is yet to be started.
    Raises a UserError: the run, or the checkpoint, is missing or damaged."""
    flags = read_flags(run)
    checkpoint = load_checkpoint(run, flags.get("savePath", "checkpoints"), which)
    trained, model = restore_model(checkpoint, ModelSpec.from_flags(flags), run), build_model(spec, pretrained=False)
    model.load_state_dict({**model.state_dict(), **trained.state_dict()})
    say(f"starts from {run}, the {which} checkpoint, after epoch {checkpoint['position']['epoch'] - 1}")
    return model


def restore_model(checkpoint: dict[str, Any], spec: ModelSpec, run: Path) -> PlaceModel:
    """The model of a run's checkpoint; UserError where that is of another model than `spec`, as the run's flags say."""
    for name, value in spec.flags().items():
        stored = checkpoint["flags"].get(name, ADDED_FLAGS.get(name))
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


def whitening_recipe(
    model: PlaceModel, choice: WhiteningChoice, dataset: str = "", dataset_hash: str = ""
) -> WhiteningRecipe:
    """What a whitening of a model without one is learnt on, or, without a training set, has to agree with."""
    recipe, size = model.recipe, size_text(choice.reading.size)
    same = {name: recipe[name] for name in ("weights_hash", "arch", "pooling", "normalization")}
    precision = precision_name(compute_dtype(choice.precision, choice.reading.device))
    return WhiteningRecipe(**same, precision=precision, image_size=size, dataset=dataset, dataset_hash=dataset_hash)


def _whitened(loaded: LoadedModel, model: PlaceModel, choice: WhiteningChoice) -> LoadedModel:
    """A model with the whitening that was learnt for it, if it was; its source says on what."""
    folder, found = loaded.folder, None
    wanted = whitening_recipe(model, choice)
    files = whitening_files(folder, wanted.weights_hash)
    stored, reason = _choose(files, wanted, choice, loaded) if files else (None, "run --mode=whiten first, or drop it")
    if stored:
        model.whiten(stored.whitening.cropped(choice.dims or stored.dim))
        say(f"whitening: learnt on {stored.whitening.learnt_on}")
        recipe = asdict(stored.recipe) if stored.recipe else {}
        found = {**recipe, "photos": stored.images, "dim": model.dim}
    elif choice.dims:
        raise UserError(f"--pcaDim={choice.dims}: this model has no whitening that fits; {reason}")
    elif files:
        say(f"the whitening in {folder} is not used: {reason}")
    elif loaded.results and list(folder.glob("whitening_*.pth.tar")):
        say(f"the whitening in {folder} belongs to other weights and is not used: run --mode=whiten again")
    return replace(loaded, source={**loaded.source, "whitening": found})


def _choose(
    files: list[Path], wanted: WhiteningRecipe, choice: WhiteningChoice, loaded: LoadedModel
) -> tuple[StoredWhitening | None, str]:
    """The whitening that serves a choice, or None and why not.

    It was learnt on the training set of the choice, or else of the run. The only whitening that agrees in all else
    is taken where the run was trained on the same set or does not say on which, and where neither set is on this
    machine or places to test have no training set. Last comes that with which a model was imported.
    """
    usable, reasons = [], []
    for file in files:
        stored = load_whitening(file)
        if stored.recipe is None:
            if len(files) > 1:
                continue
            say(f"{file} was written by an earlier version: whether it was learnt for these flags cannot be told")
            return stored, ""
        if difference := stored.recipe.difference(wanted):
            reasons.append(f"{file.name} was learnt with {difference}")
        else:
            usable.append((stored, stored.recipe))
    usable.sort(key=lambda one: one[1].precision != wanted.precision)
    is_adapted = any(stored.whitening.removed is not None for stored, _ in usable)
    unsaid = [] if is_adapted else [""]  # what was adapted to one place is not taken for another
    if len(usable) == 1 and loaded.results and loaded.trained_on in (usable[0][1].dataset_hash, *unsaid):
        return usable[0][0], ""  # whatever other sets are on this machine
    sets, all_known = _training_sets(choice.places, loaded) if usable else ([], False)
    for _, known in sets:
        for stored, recipe in usable:
            if recipe.dataset_hash == known:
                return stored, ""
    if not all_known and len(usable) == 1 and not is_adapted:
        return usable[0][0], ""
    for stored, recipe in usable:
        if recipe.image_size == ANY_SIZE:  # it came with the model
            return stored, ""
    names = " or ".join(name for name, _ in sets) or "not here"
    reasons += [f"one was learnt on {recipe.dataset}, the training set is {names}" for _, recipe in usable]
    return None, f"{'; '.join(reasons)}; run --mode=whiten or adapt with the same flags"


def _training_sets(places: PlacesSpec, loaded: LoadedModel) -> tuple[list[tuple[str, str]], bool]:
    """Name and hash of the training sets that whitening may have been learnt on: of some places, then of the run.

    Only sets that the run says nothing of are read: of other places than its own, and of runs of earlier versions.
    Returns those that are on this machine, and whether the one that counts (the run's, if there is a run) is.
    """
    own = stored_places(loaded.flags, places) if loaded.results else places
    unread = [each for each in dict.fromkeys((places, own)) if each != own or not loaded.trained_on]
    if own in unread and loaded.results:
        say(f"{loaded.results} does not say which images it was trained on: they are read to choose a whitening")
    sets, known = list[tuple[str, str]](), False
    for each in unread:
        try:
            known = has_split(each, "train")
            sets += [training_set(each)] if known or is_plain_folder(each) else []
        except UserError:  # of a training set that nobody asked for
            known = False
    if loaded.trained_on:
        sets, known = [*sets, ("that of the run", loaded.trained_on)], True
    return sets, known
