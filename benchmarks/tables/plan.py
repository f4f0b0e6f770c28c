"""Which models the tables have, and the commands that make, test and time them."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables.steps import Step

CLUSTER_IMAGES = 500  # whose local descriptors k-means takes, at most
EPOCH_COST, PRUNING_COST = 3.0, 4.0  # forward passes that an image of an epoch and one of a distillation are worth
SIZES = ((320, 320), (480, 640))  # height and width at which models are timed
TIMED_AT_ONCE = 4  # images


@dataclass(frozen=True)
class Network:
    """A backbone: flags that name it, and its file in a folder of weights with flags that the file needs."""

    flags: tuple[str, ...]
    file: str
    of_file: tuple[str, ...] = ()


LITE0 = "tf_efficientnet_lite0_imagenet1k.pth"
NETWORKS = {
    "vgg16": Network(("--arch=vgg16",), "vgg16_features_oxford_vd16.pth", ("--normalization=features",)),
    "alexnet": Network(("--arch=alexnet",), "alexnet_features_torchvision_imagenet1k.pth"),
    "lite0_stride16": Network(("--arch=tf_efficientnet_lite0", "--cut=16"), LITE0),
    "lite0_stride8": Network(("--arch=tf_efficientnet_lite0", "--cut=8"), LITE0),
}
NAMES = {
    "vgg16": "VGG16",
    "alexnet": "AlexNet",
    "lite0_stride16": "EfficientNet-Lite0, stride 16",
    "lite0_stride8": "EfficientNet-Lite0, stride 8",
}


@dataclass(frozen=True)
class Wanted:
    """What the user asks for.

    Attributes:
        weights: a folder of weights files; none: random weights; empty: the default downloads.
        size: height and width to which all images are resized; None: their own size.
        images: of the data set, counted.
        sample: folder of some of them, for times.
    """

    root: Path
    dataset: str
    split: str
    weights: str
    size: tuple[int, int] | None
    epochs: int
    distill: int
    clusters: int
    rerank: int
    seed: int
    images: int
    sample: Path


@dataclass(frozen=True)
class Row:
    """A model in a table: its name, the number format, and the steps that test and time it.

    Attributes:
        timed: the exported file that is timed: a model of the same layers, where there is one already.
    """

    name: str
    form: str
    exported: str
    timed: str
    stage: int


def rows() -> list[Row]:
    """The models of both tables, in order."""
    found = []
    for network in ("vgg16", "alexnet"):
        timed = f"export_{network}_trained_fp32"
        found.append(Row(f"{NAMES[network]}, off the shelf", "fp32", f"export_{network}_shelf_fp32", timed, 1))
        found.append(Row(f"{NAMES[network]}, trained", "fp32", timed, timed, 1))
    small = [
        *(("VGG16, trained", "vgg16_trained", form) for form in ("fp32", "int8")),
        *(("VGG16, trained, pruned", "vgg16_pruned", form) for form in ("fp32", "int8")),
        *((f"{NAMES[f'lite0_{cut}']}, off the shelf", f"lite0_{cut}_shelf", form)
          for cut in ("stride16", "stride8") for form in ("fp32", "fp16", "int8")),
    ]  # fmt: skip
    found += [Row(name, form, *2 * (f"export_{model}_{form}",), 2) for name, model, form in small]
    return found


def steps_of(wanted: Wanted) -> list[Step]:
    """All commands, each after those whose output it reads."""
    places = (f"--dataset={wanted.dataset}", f"--root={wanted.root}", f"--seed={wanted.seed}")
    size = ("--imageSize", *map(str, wanted.size)) if wanted.size else ()
    found = []
    for network in NETWORKS:
        model, images = (*places, *size, *_model(network, wanted)), min(CLUSTER_IMAGES, wanted.images)
        words = ("--mode=cluster", *model, "--precision=fp32", "--dataPath={here}")
        found.append(Step(f"cluster_{network}", words, network=network, images=images))
    for network in ("vgg16", "alexnet"):
        words = (
            "--mode=train", *places, *size, *_model(network, wanted), "--precision=fp32", f"--nEpochs={wanted.epochs}",
            f"--dataPath={{cluster_{network}:*.hdf5}}", "--runsPath={here}", "--cachePath={here}/cache",
        )  # fmt: skip
        images = wanted.epochs * wanted.images
        found.append(Step(f"train_{network}", words, network=network, images=images, cost=EPOCH_COST))
    words = (
        "--mode=prune", "--resume={train_vgg16:*_netvlad}", *places, "--precision=fp32", "--pruneRatio=0.5",
        f"--distill={wanted.distill}", "--runsPath={here}",
    )  # fmt: skip
    images = wanted.distill + wanted.images // 2
    found.append(Step("prune_vgg16", words, network="vgg16", images=images, cost=PRUNING_COST))
    for row in rows():
        if row.exported not in {step.name for step in found}:
            found += [_export(row, wanted, places, size), _test(row, wanted, places)]
    files = tuple(f"{{{name}:*.onnx}}" for name in dict.fromkeys(row.timed for row in rows()))
    sample = ("--dataset=folder", f"--root={wanted.sample}", "--split=val", f"--cacheBatchSize={TIMED_AT_ONCE}")
    for height, width in SIZES:
        words = ("--mode=compare", *files, *sample, "--imageSize", str(height), str(width), "--runsPath={here}")
        pixels = height * width / (wanted.size[0] * wanted.size[1] if wanted.size else 320 * 320)
        found.append(Step(f"time_{width}x{height}", words, network="vgg16", images=46, cost=2 * pixels))
    return found


def estimates_of(wanted: Wanted) -> list[Step]:
    """Commands that are timed to say how long the others will take: k-means on the sample, by each network."""
    size = ("--imageSize", *map(str, wanted.size)) if wanted.size else ()
    places = ("--dataset=folder", f"--root={wanted.sample}", "--precision=fp32", "--dataPath={here}")
    return [
        Step(f"estimate_{network}", ("--mode=cluster", *places, *size, *_model(network, wanted)), network=network)
        for network in NETWORKS
    ]


def _model(network: str, wanted: Wanted) -> tuple[str, ...]:
    known, clusters = NETWORKS[network], f"--num_clusters={wanted.clusters}"
    if wanted.weights == "none":
        return (*known.flags, clusters, "--fromscratch")
    if wanted.weights:
        return (*known.flags, clusters, f"--weights={Path(wanted.weights) / known.file}", *known.of_file)
    return (*known.flags, clusters)


def _parts(row: Row) -> tuple[str, str]:
    """Network and state of a row's model: export_NETWORK_STATE_FORMAT."""
    network, state = row.exported.removeprefix("export_").removesuffix(f"_{row.form}").rsplit("_", 1)
    return network, state


def _export(row: Row, wanted: Wanted, places: tuple[str, ...], size: tuple[str, ...]) -> Step:
    network, state = _parts(row)
    if state == "shelf":
        model = (*size, *_model(network, wanted), f"--dataPath={{cluster_{network}:*.hdf5}}", "--runsPath={here}")
    else:
        run = "train_vgg16:*_netvlad" if network == "vgg16" else f"train_{network}:*_netvlad"
        model = ("--resume={" + ("prune_vgg16:*_netvlad_pruned" if state == "pruned" else run) + "}",)
    quantized = () if row.form == "fp32" else (f"--quantize={row.form}",)
    file = f"--out={{here}}/{row.exported.removeprefix('export_')}.onnx"
    words = ("--mode=export", *places, *model, *quantized, "--localDescriptors", file)
    return Step(row.exported, words, network=network, images=64)


def _test(row: Row, wanted: Wanted, places: tuple[str, ...]) -> Step:
    network, state = _parts(row)
    words = (
        "--mode=test", f"--resume={{{row.exported}:*.onnx}}", *places[:2], f"--split={wanted.split}",
        f"--rerank={wanted.rerank}", "--panels=0",
    )  # fmt: skip
    cost = (0.3 if state == "pruned" else 1.0) * (0.5 if row.form == "int8" else 1.0)
    results = f"{{{row.exported}:results.json}}"
    name = row.exported.replace("export_", "test_", 1)
    return Step(name, words, results=results, network=network, images=wanted.images // 2, cost=cost)
