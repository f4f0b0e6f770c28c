"""The commands of main.py that make and measure all models, each after those whose output it reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables.models import NETWORKS, ROWS, Row
from benchmarks.tables.steps import CACHE, Step

RERANK = 50  # hits
CLUSTER_IMAGES, PROJECTION_IMAGES, CALIBRATION_IMAGES = 500, 128, 64
# Forward passes that an image is worth in an epoch behind the cached frozen layers and in a distillation; and those in
# which filters are judged (64 tuples) and refitted (256 images for each layer).
EPOCH, DISTILLING, REFITTING = 0.6, 2.5, 4500


@dataclass(frozen=True)
class Wanted:
    """What the tables are of.

    Attributes:
        models: flags that name each network.
        size: height and width of all images.
        training, validation: images of each split.
    """

    dataset: str
    root: Path
    models: dict[str, tuple[str, ...]]
    size: tuple[int, int]
    epochs: int
    distill: int
    training: int
    validation: int

    @property
    def places(self) -> tuple[str, ...]:
        return f"--dataset={self.dataset}", f"--root={self.root}"

    @property
    def resized(self) -> tuple[str, ...]:
        return "--imageSize", *map(str, self.size)


def steps_of(wanted: Wanted) -> list[Step]:
    """All steps, in order."""
    found = [_cluster(network, wanted) for network in NETWORKS]
    found += [_train(network, wanted) for network in NETWORKS if Row(network, "trained", "fp32") in ROWS]
    found.append(_prune(wanted))
    return found + [step for row in ROWS for step in _export_and_measure(row, wanted)]


def _cluster(network: str, wanted: Wanted) -> Step:
    words = (
        "--mode=cluster", *wanted.places, *wanted.resized, *wanted.models[network], "--precision=fp32",
        "--dataPath={here}",
    )  # fmt: skip
    return Step(f"cluster_{network}", words, network, passes=min(CLUSTER_IMAGES, wanted.training))


def _train(network: str, wanted: Wanted) -> Step:
    """A training goes on where it was killed: its run says by itself how."""
    words = (
        "--mode=train", *wanted.places, *wanted.resized, *wanted.models[network], "--precision=fp32",
        f"--nEpochs={wanted.epochs}", f"--dataPath={{cluster_{network}:*.hdf5}}", "--runsPath={here}",
        f"--cachePath={{here}}/{CACHE}",
    )  # fmt: skip
    passes = wanted.training + wanted.validation + EPOCH * wanted.epochs * wanted.training
    return Step(f"train_{network}", words, network, passes, goes_on=("--mode=train", "*_netvlad"))


def _prune(wanted: Wanted) -> Step:
    words = (
        "--mode=prune", "--resume={train_vgg16:*_netvlad}", *wanted.places, "--precision=fp32",
        f"--distill={wanted.distill}", "--runsPath={here}",
    )  # fmt: skip
    passes = wanted.training + REFITTING + DISTILLING * wanted.distill + CLUSTER_IMAGES
    return Step("prune_vgg16", words, "vgg16", passes)


def _export_and_measure(row: Row, wanted: Wanted) -> Iterator[Step]:
    if row.state == "shelf":
        clusters = f"--dataPath={{cluster_{row.network}:*.hdf5}}"
        model = (*wanted.resized, *wanted.models[row.network], clusters, "--runsPath={here}")
    else:
        made = {"trained": "train_{}:*_netvlad", "pruned": "prune_{}:*_pruned"}[row.state].format(row.network)
        model = (f"--resume={{{made}}}",)
    form = () if row.form == "fp32" else (f"--quantize={row.form}",)
    words = ("--mode=export", *wanted.places, *model, *form, "--localDescriptors", f"--out={{here}}/{row.key}.onnx")
    images = min(PROJECTION_IMAGES, wanted.training) + CALIBRATION_IMAGES * (row.form == "int8")
    yield Step(f"export_{row.key}", words, row.network, (0.3 if row.state == "pruned" else 1.0) * images)
    words = (
        "--mode=compare", f"{{export_{row.key}:*.onnx}}", *wanted.places, f"--rerank={RERANK}", "--runsPath={here}",
    )  # fmt: skip
    yield Step(f"measure_{row.key}", words, row.network, row.cost * wanted.validation)
