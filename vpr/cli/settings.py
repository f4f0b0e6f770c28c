"""The flags that belong to no part below the command line, as fields of one dataclass like all others."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from vpr.common.settings import (
    MODEL,
    MODES,
    RESUMED,
    RUN,
    TRAINING,
    all_but,
    count,
    finite,
    flag,
    probability,
    quantity,
    share,
    whole,
    whole_number,
)
from vpr.data.catalogue import DATASETS, splits_of
from vpr.database.engines import engine_address
from vpr.models.spec import DEFAULT_SEED, HUB

LOCAL_DIM = 64  # vpr/models/local_projection.py, which imports NumPy
SPLITS = tuple(dict.fromkeys(split for dataset in DATASETS.values() for split in splits_of(dataset)))
FINISHED_MODEL = ("test", "export", "compare", "index", "locate", "serve")  # modes that take a whitened model
SEARCHING = ("test", "index", "locate", "serve")


def number_or_all(text: str) -> int | str:
    """Reads a whole number, or the word all."""
    if text != "all" and not text.isdecimal():
        raise ValueError(f"found {text!r}, wanted a whole number or all")
    return text if text == "all" else int(text)


def filter_reader(name: str) -> Callable[[str], Any]:
    """A function of `vpr.database.filters`, which needs NumPy and is imported when a word is read."""
    return lambda text: getattr(importlib.import_module("vpr.database.filters"), name)(text)


def engine(text: str) -> str:
    """Reads faiss, milvus:FILE.db or milvus:http://HOST:PORT."""
    engine_address(text)
    return text


# Models by a short name: flags, of which those that are typed win.
SHORT_NAMES: dict[str, dict[str, Any]] = {
    "classic": {"arch": "vgg16"},  # the paper's
    "fast": {"arch": "tf_efficientnet_lite0", "cut": 16},  # a tenth of VGG16's time and a twentieth of its bytes
    "small": {"arch": "tf_efficientnet_lite0", "cut": 8},  # 0.3 MB
}


def model_name(text: str) -> str:
    """Reads a short name of a model, or hub:WHERE:ENTRY."""
    if text not in SHORT_NAMES and not text.startswith(HUB):
        raise ValueError(f"found {text!r}, wanted one of {', '.join(SHORT_NAMES)}, or hub:OWNER/REPOSITORY:ENTRY")
    return text


_machine = partial(flag, group="places, images and machine")
_run = partial(flag, group="run and recalls")
_prune = partial(flag, group="prune", modes=("prune",))
_export = partial(flag, group="export", modes=("export",))
_whiten = partial(flag, group="whitening")
_locate = partial(flag, group="index and locate", modes=("locate",))
_index = partial(_locate, modes=("index",))
_engine = partial(flag, group="engine", modes=SEARCHING)
_sure = partial(flag, group="how sure", modes=("test",))
_hloc = partial(flag, group="hloc and COLMAP", modes=("test", "index"))
_look = partial(flag, group="re-ranking")
_test = partial(flag, group="search and pictures", modes=("test",))


# fmt: off
@dataclass(frozen=True)
class Command:
    """What a command is about, beside what the parts of the program are told; names are the flags' own."""

    mode: str | None = _machine(None, "what to do", modes=all_but(), choices=MODES, tolerated=True, common=True)
    imageSize: tuple[int, int] | None = _machine(None, "resize every image to this height and width in pixels "
        "(default: the image's own size)", modes=all_but("spec"), type=count, nargs=2, metavar=("H", "W"),
        kept=TRAINING, on_card=True, clusters=True, common=True)
    longSide: int | None = _machine(None, "shrink larger images to so many pixels of their longer side, in their own "
        "proportions", modes=all_but("spec"), type=count, metavar="N", kept=TRAINING, on_card=True, clusters=True,
        added=True)
    cacheBatchSize: int | None = _machine(None, "images described at once; 0: as many as memory holds (default: on a "
        "processor as many as are fast, at most 24; else 24)",
        modes=all_but("export", "spec"), type=whole, kept=RESUMED, tolerated=True, alters=True)
    precision: str = _machine("auto", "number format of the backbone's arithmetic; auto: bf16 where the hardware "
        "multiplies it, else fp32; weights and pooling stay fp32", modes=all_but("export", "spec"),
        choices=("auto", "fp32", "bf16", "fp16"), kept=RUN, alters=True)
    backend: str = _machine("auto", "what computes the backbone on a processor; auto: the fastest there that is "
        "installed, where some hundred images are described",
        modes=("cluster", "test", "whiten", "adapt", "compare", "index", "locate", "serve"),
        choices=("auto", "torch", "onnxruntime", "openvino"))
    maxPixels: float | None = _machine(None, "megapixels of an image, at most (default: 500; serve: of an image that "
        "is sent, 50)", modes=all_but("import"), type=quantity)
    # What --nocuda of pytorch-NetVlad has become.
    device: str = _machine("auto", "auto takes a GPU if there is one; or cpu, cuda, cuda:1, mps",
        modes=all_but("export", "spec"), clusters=True, common=True, tolerated=True)
    nocuda: bool = _machine(
        False, "use the CPU even if there is a GPU", modes=all_but("export", "spec"), tolerated=True)
    nGPU: int = _machine(1, "GPUs to use; above 1 start with torchrun, which says how many processes there are",
        modes=all_but(), type=count, tolerated=True)
    seed: int = _machine(DEFAULT_SEED, "seed of every random choice", modes=all_but("compare", "spec"),
        type=whole_number(0, 2**31 - 1),  # as FAISS takes it
        kept=TRAINING, on_card=True, clusters=True, tolerated=True, common=True)
    dataPath: str = _machine("centroids", "folder of centroid files that cluster writes; train and test also take one "
        "file, whatever images it was made from", modes=all_but("prune", "compare", "spec", "import"), clusters=True,
        tolerated=True, common=True)
    runsPath: str = _machine("runs", "folder under which each training makes its run", modes=all_but("cluster"),
        tolerated=True, common=True)
    savePath: str = _machine("checkpoints", "folder of the checkpoints inside a run", modes=all_but("cluster", "spec"),
        kept=RUN, tolerated=True)
    cachePath: str = _machine(  # a pruned run has no frozen layers
        "cache", "folder of the trunk cache", modes=("train", "distill"), kept=RESUMED, tolerated=True)

    model: str | None = flag(None, "a model by a short name, beside which typed flags win. classic: VGG16 as in the "
        "paper; fast: Lite0 of EfficientNet at stride 16; small: at stride 8; hub:OWNER/REPOSITORY:ENTRY: a "
        "model of another project, of one descriptor an image", group="model",
        modes=all_but("spec", "import"), type=model_name, metavar="NAME", common=True)
    trustRepo: bool = flag(False, "let --model=hub:... run the code of that repository on this machine", group="model",
        modes=SEARCHING)
    fromscratch: bool = flag(False, "random weights, all layers trained; the same as --weights=none", group="model",
        modes=all_but("spec", "import"), kept=MODEL, clusters=True, tolerated=True)
    start_epoch: int = flag(0, "epochs counted as done at the start", name="start-epoch", group="train",
        modes=("train", "distill", "prune", "import"), type=whole, tolerated=True)
    startFrom: str | None = flag(None, "begin a new run from the best model (--ckpt) of another, with its flags but "
        "for those that are typed; --clusterDim may be added", group="train", modes=("train",), metavar="RUN")
    valSets: tuple[str, ...] | None = flag(None, "folders of other data sets, as --root takes them, whose val splits "
        "are measured", group="train", modes=("train", "distill"), nargs="+", metavar="DIR", kept=RUN, added=True,
        alters=True)
    trunkCache: str = flag("auto", "where to keep what the frozen layers make of each image (auto: in memory if half "
        "of it is enough, else on disk)", group="train", modes=("train", "distill"),
        choices=("auto", "memory", "disk", "off"), kept=RUN, alters=True)
    resume: str | None = _run(None, "go on with (train) or use a run; without DIR the newest under --runsPath; test "
        "also takes an exported FILE.onnx", modes=all_but("cluster", "compare", "import"), nargs="?", const="newest",
        metavar="DIR", tolerated=True, common=True)
    ckpt: str | None = _run(None, "which model of the run (default: train latest, test best)",
        modes=all_but("cluster", "spec", "import"), choices=("latest", "best"), tolerated=True)

    pruneRatio: float = _prune(0.5, "share of each convolution's filters that goes; the number left is rounded down to "
        "a multiple of 8", type=share)
    importance: str = _prune("taylor", "by what filters are judged: taylor, the training loss's first-order change; "
        "magnitude, the size of their weights", choices=("taylor", "magnitude"))
    distill: int = _prune(4096, "training images, repetitions counted, on which the pruned backbone learns to give "
        "what the whole one gave; 0: none", type=whole)
    format: str = _export("onnx", "file format of an exported model", choices=("onnx",))
    quantize: str | None = _export(None, "int8: the backbone in 8 bits, set on training images; fp16: in 16 (default: "
        "fp32)", choices=("int8", "fp16"))
    out: str | None = _export(None, "file to write (default: in the run)", metavar="FILE")
    pcaDim: int | None = _whiten(
        None, "dimensions of a whitened descriptor: whiten learns so many (default: 4096), test takes the first so "
        "many (default: all)", type=count,
        modes=all_but("cluster", "train", "distill", "adapt", "prune", "spec", "import"))
    nPCA: int = _whiten(10_000, "training database images on which whitening is learnt, at most", modes=("whiten",),
        type=whole_number(2))
    noWhiten: bool = _whiten(False, "test without the whitening that the model has", modes=FINISHED_MODEL)

    indexFile: str | None = _index(None, "file of the database's descriptors (default: beside the model)",
        modes=("index", "locate", "serve"), metavar="FILE")
    top: int = _locate(5, "matches shown for each image", type=count)
    add: str | None = _index(None, "also index all images under this folder, wherever it is", metavar="FOLDER")
    remove: tuple[str, ...] | None = _index(None, "take images out of the index, by name (path below the images' "
        "folder) or by a pattern with * or ?", nargs="+", metavar="NAME")
    onDisk: bool = _index(
        False, "leave the lists of an inverted-file index (--index=IVF...) on the disk when it is searched")
    near: tuple[float, float, float] | None = _locate(None, "search only within METRES of a latitude and longitude",
        type=filter_reader("read_near"), metavar="LAT,LON,METRES")
    box: tuple[float, float, float, float] | None = _locate(None, "search only in a box of degrees; a west above the "
        "east crosses the date line", type=filter_reader("read_box"), metavar="SOUTH,WEST,NORTH,EAST")
    where: tuple[Any, ...] | None = _locate(None, "search only images whose row in the table has this value; also "
        "!=, >=, <=; several must all hold", type=filter_reader("read_condition"), nargs="+", metavar="COLUMN=VALUE")
    videoStep: float = _locate(1.0, "seconds from frame to frame of a video that is asked", type=quantity)
    json: bool = _locate(False, "print the matches as JSON")
    engine: str = _engine("faiss", "where descriptors are kept and searched: faiss, files beside the model; "
        "milvus:FILE.db, embedded; milvus:http://HOST:19530, a server or cluster", type=engine, metavar="ENGINE")
    collection: str | None = _engine(
        None, "collection of milvus (default: by the name of the database)", metavar="NAME")

    conditions: str | None = flag(None, "subtract from queries the mean of their condition, such as night, and from "
        "the database its own: session, that of all images asked; running, of those so far; stored, the nearest of "
        "--condition (default: locate session, from five images on, else stored; serve stored; test off)",
        group="conditions", modes=("test", "compare", "locate", "serve"),
        choices=("off", "session", "running", "stored"))
    condition: str | None = flag(None, "learn the mean of a condition from the images under --add, which are not added "
        "to the index", group="conditions", modes=("index",), metavar="NAME")

    calibrate: bool = _sure(False, "learn from this split how probable it is that a first hit is right, and keep that "
        "beside the model for test and locate; take val")
    minConfidence: float | None = _sure(None, "do not guess below this confidence: locate answers that no place was "
        "found, test counts what that leaves", modes=("test", "locate", "serve"), type=probability, metavar="P")
    maxFalseRate: float | None = _sure(None, "do not guess where the calibration does not promise that at most this "
        "share of questions is answered falsely, be their places in the database or not; test --calibrate prints what "
        "that costs (default there: 0.05)", modes=("test", "locate", "serve"), type=probability, metavar="P")
    heldOutRegion: tuple[float, float, float] | None = _sure(
        None, "leave out database images within METRES of a point, by its UTM metres: their queries ask for places "
        "that are not in the map", type=finite, nargs=3, metavar=("E", "N", "METRES"))
    hlocFeatures: str | None = _hloc(
        None, "write global descriptors as hloc does, by image path below --root, into this HDF5 file", metavar="FILE")
    hlocHalf: bool = _hloc(False, "write them as float16 instead of float32")
    pairs: str | None = _hloc(None, "write a list of image pairs, lines 'query database', for hloc and COLMAP; index "
        "pairs the database's images with each other", metavar="FILE")
    hlocMatches: str | None = _hloc(None, "write keypoints of the images of that list, and the matches of its pairs "
        "that agree with one camera's movement, as hloc does, into this HDF5 file", metavar="FILE")
    pairsTop: int = _hloc(20, "pairs of each image in that list", type=count)
    localDim: int = _look(LOCAL_DIM, "dimensions that local descriptors are projected to, 1 byte each",
        modes=("train", "distill", "test", "export", "compare", "index", "locate", "serve"), type=whole_number(1, 128))
    localDescriptors: bool = _look(False, "keep local descriptors for --rerank: index beside the index, export as a "
        "second output", modes=("export", "index"))

    keypointWeights: str | None = _look(None, "XFeat's weights, by which the first hits are verified (default: those "
        "in torch.hub's folder, if they are there)", modes=("test", "compare", "index", "locate", "serve"),
        metavar="FILE")

    split: str = _test("val", "which part of the dataset; svox: also a weather, sfxl: also a set of queries",
        modes=("test", "compare", "index", "locate", "serve"), choices=SPLITS, tolerated=True, common=True)
    panels: int | str = _test(10, "queries to draw with what was found for them, the worst first: a number, or all; 0: "
        "no pictures and no report", modes=("test", "locate"), type=number_or_all, metavar="N")
    explain: bool = _test(
        False, "show in the pictures which cluster owns each region, and what it adds to the similarity")
    index: str | None = _test(None, "test also with this FAISS index (Flat, SQfp16, HNSW32, IVF4096,PQ64, ...) and "
        "print what it loses and takes", modes=SEARCHING, metavar="FACTORY")
    nprobe: int = _test(16, "lists that an inverted-file index (IVF) looks through", modes=SEARCHING, type=count)
    saveDescriptors: str | None = _test(None, "write the split's descriptors into this HDF5 file", metavar="FILE")
    loadDescriptors: str | None = _test(None, "take the split's descriptors from this file, or from hloc's global "
        "descriptors, instead of describing images", metavar="FILE")
# fmt: on
