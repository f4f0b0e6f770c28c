"""Calibrations of a model's answers: files beside the model that say what they were learnt on.

A file serves the model, image size and search that it was learnt with. It holds numbers and text alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.provenance import open_hdf5, recipe_hash, write_hdf5
from vpr.data.catalogue import DATASETS, OWN
from vpr.data.places import PlaceImages
from vpr.data.protocol import tolerance
from vpr.models.describer import Describer
from vpr.retrieval.answer_features import FEATURES
from vpr.retrieval.calibration import SURE, Calibration, Guarantee
from vpr.runs.descriptors_file import model_recipe
from vpr.runs.model import LoadedModel

WHAT, REMEDY = "a calibration", "delete it, or make it anew with --mode=test --split=val --calibrate"
NUMBERS = ("mean", "scale", "weights")
GUARANTEE = ("confidences", "right", "unknown")
NO_PROMISE = (
    "--maxFalseRate refuses all images: no calibration serves such answers; make one with --mode=test --split=val "
    "--calibrate, or drop it"
)
MAY_DIFFER = ("precision",)  # what need not agree: descriptors of one model in two number formats are close


@dataclass(frozen=True)
class LearntOn:
    """The queries that a calibration was learnt on."""

    dataset: str  # see `data_set`
    split: str
    spec: str  # name of the places
    spec_hash: str  # fingerprint of the places
    queries_hash: str  # fingerprint of the queries alone
    queries: int  # how many
    right: str  # when an answer is right, in words, such as `within 25 m`


@dataclass(frozen=True)
class StoredCalibration:
    """A calibration with what it was learnt on, and the recipe of the answers that it serves (`answer_recipe`)."""

    calibration: Calibration
    recipe: Mapping[str, str]
    learnt_on: LearntOn
    guarantee: Guarantee | None = None  # None: of an earlier version, or of frames in order

    @property
    def label(self) -> str:
        """What its probability is of, in words."""
        of = self.learnt_on
        claim = f"lies {of.right}" if of.right.startswith("within") else f"is {of.right}"
        return (
            f"probability that the first hit {claim}, calibrated on {of.spec} (split {of.split}, {of.queries} queries)"
        )

    def promise(self, rate: float) -> str:
        """Which confidence keeps false answers below a rate, and what it costs, in words."""
        if self.guarantee is None:
            return "no bound of false answers was learnt with this calibration: make it anew, or drop --maxFalseRate"
        threshold = self.guarantee.threshold(rate)
        bound = f"at most {100 * rate:g}% false answers, {100 * SURE:g}% sure"
        if threshold == np.inf:
            return f"{bound}: for that {self.learnt_on.queries} queries are too few; none is answered"
        given, false, unknown = (100 * share for share in self.guarantee.answered(threshold))
        return (
            f"{bound}: from confidence {threshold:.3f} on; of the queries of {self.learnt_on.spec} {given:.1f}% are "
            f"answered then, {false:.1f}% falsely; without their places in the database {unknown:.1f}%"
        )

    def learnt_on_these(self, images: PlaceImages) -> bool:
        """Whether a split's queries are those that it was learnt on, whatever the database."""
        return self.learnt_on.queries_hash == queries_hash(images)


def answer_recipe(model: Describer, image_size: Sequence[int] | None, order: str = "none") -> dict[str, str]:
    """What answers depend on beside the images: what descriptors do, and what orders hits (`Ranking.order`)."""
    return {**model_recipe(model, image_size), "order": order}


def learnt_on(images: PlaceImages) -> LearntOn:
    """What a calibration of a split's queries is learnt on."""
    places = images.places
    return LearntOn(
        dataset=data_set(images),
        split=images.split,
        spec=f"{places.name}, {images.left_out}" if images.left_out else places.name,
        spec_hash=places.fingerprint(),
        queries_hash=queries_hash(images),
        queries=len(places.query_names),
        right=tolerance(images),
    )


def data_set(images: PlaceImages) -> str:
    """Of which data set a split is: a key of the catalogue, for own images with their folder's name."""
    if images.dataset in DATASETS and DATASETS[images.dataset].layout == OWN:
        return f"{images.dataset} {images.places.name.removesuffix(f'_{images.split}')}"
    return images.dataset


def queries_hash(images: PlaceImages) -> str:
    """A hash of the names and positions of a split's queries."""
    places = images.places
    return places.only([], list(range(len(places.query_names)))).fingerprint()


def calibration_file(folder: Path, recipe: Mapping[str, str], dataset: str) -> Path:
    """Where the calibration of a recipe, learnt on a data set, lies or shall lie; its name tells them apart."""
    fixed = {name: value for name, value in recipe.items() if name not in MAY_DIFFER}
    return folder / f"calibration_{recipe['weights_hash']}_{recipe_hash({**fixed, 'dataset': dataset})}.h5"


def save_calibration(folder: Path, stored: StoredCalibration) -> Path:
    """Write a calibration, whole or not at all, and give its file."""
    path, learnt = calibration_file(folder, stored.recipe, stored.learnt_on.dataset), stored.calibration
    numbers = {"features": " ".join(learnt.names), "bias": learnt.bias, "slope": learnt.slope}
    arrays = {name: getattr(learnt, name) for name in NUMBERS}
    arrays |= {} if stored.guarantee is None else vars(stored.guarantee)
    write_hdf5(path, arrays, {**stored.recipe, **asdict(stored.learnt_on), **numbers})
    return path


def load_calibration(path: Path, recipe_names: Sequence[str]) -> StoredCalibration:
    """Read what `save_calibration` wrote, with these entries of the recipe.
    Raises a UserError: the file is missing, damaged or foreign, or holds features that are not known."""
    with open_hdf5(path, WHAT, REMEDY) as file:
        found, names = dict(file.attrs), tuple(str(file.attrs["features"]).split())
        values = [np.asarray(file[name][:], float) for name in NUMBERS]
        numbers = np.array([*np.concatenate(values), float(found["bias"]), float(found["slope"])])
        if not names or any(value.shape != (len(names),) for value in values) or not np.isfinite(numbers).all():
            raise ValueError(f"{len(names)} features with {[value.shape for value in values]} finite numbers")
        if (values[1] <= 0).any() or len({*names}) < len(names):
            raise ValueError("scales that are not positive, or a feature twice")
        texts = {field.name: str(found[field.name]) for field in fields(LearntOn) if field.name != "queries"}
        of = LearntOn(**texts, queries=int(found["queries"]))
        recipe = {name: str(found[name]) for name in recipe_names}
        guarantee = None
        if {*GUARANTEE} & {*file}:
            kept = [np.asarray(file[name][:]) for name in GUARANTEE]
            if any(each.shape != (of.queries,) for each in kept) or [each.dtype.kind for each in kept] != [*"fbf"]:
                raise ValueError(f"a guarantee of {[each.shape for each in kept]} numbers of {of.queries} queries")
            guarantee = Guarantee(*kept)
    if unknown := [name for name in names if name not in FEATURES]:
        raise UserError(f"{path} uses the features {', '.join(unknown)}, which this version does not have: {REMEDY}")
    mean, scale, weights = values
    calibration = Calibration(names, mean, scale, weights, float(found["bias"]), float(found["slope"]))
    return StoredCalibration(calibration, recipe, of, guarantee)


def find_calibration(folder: Path, wanted: Mapping[str, str], dataset: str) -> StoredCalibration | None:
    """The calibration that serves a recipe; a line says why those that are there do not.

    One learnt on the data set itself is taken first. Of another data set it is taken if it is the only one: its label
    says where its probabilities come from.
    Raises a UserError: a calibration of this model is damaged.
    """
    serving, reasons = [], []
    for path in sorted(folder.glob(f"calibration_{wanted['weights_hash']}_*.h5")):
        stored = load_calibration(path, list(wanted))
        pairs = ((name, stored.recipe[name], value) for name, value in wanted.items() if name not in MAY_DIFFER)
        if difference := next((f"{name}={found}, not {value}" for name, found, value in pairs if found != value), ""):
            reasons.append(f"{path.name} was learnt with {difference}")
        else:
            serving.append(stored)
    own = [stored for stored in serving if stored.learnt_on.dataset == dataset]
    if own or len(serving) == 1:
        return (own or serving)[0]
    if serving:
        sets = ", ".join(stored.learnt_on.dataset for stored in serving)
        reasons.append(f"there are some of {sets}, none of {dataset or 'this data set'}")
    if reasons:
        say(f"no calibration is used: {'; '.join(reasons)}")
    return None


def calibrated_orders(loaded: LoadedModel) -> list[str]:
    """How answers are ordered (`Ranking.order`) that calibrations of a model serve."""
    files = loaded.folder.glob(f"calibration_{model_recipe(loaded.model, None)['weights_hash']}_*.h5")
    return [load_calibration(file, ["order"]).recipe["order"] for file in sorted(files)]


def calibrations_of(
    loaded: LoadedModel, image_size: Sequence[int] | None, images: PlaceImages
) -> Callable[[str], StoredCalibration | None]:
    """Finds the calibration of a model for answers among a database's images, by how they are ordered."""

    def find(order: str) -> StoredCalibration | None:
        recipe = answer_recipe(loaded.model, image_size, order)
        return find_calibration(loaded.folder, recipe, data_set(images))

    return find
