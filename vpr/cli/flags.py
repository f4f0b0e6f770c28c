"""Every flag of `main.py` with its default, unit and help line; `vpr/cli/mode_flags.py` says which modes read it."""

import argparse
import re
from typing import Any, NoReturn

from vpr.cli.argument_types import (
    backbone_name,
    finite_number,
    normalization,
    number_or_all,
    probability,
    quantity,
    share,
    signed_number,
    signed_quantity,
    whole_number,
)
from vpr.cli.database_flags import ENGINE, INDEX, SERVE
from vpr.cli.flag import COUNT, NUMBER, ON, WHOLE, Flag
from vpr.cli.program import program
from vpr.common.errors import UserError
from vpr.common.memory import available_cores
from vpr.data.catalogue import DATASETS, splits_of
from vpr.models.backbones import BACKBONES, FACETS
from vpr.models.poolings import ASSIGNMENTS, POOLINGS
from vpr.models.spec import DEFAULT_SEED

MODES = (
    "cluster", "train", "test", "whiten", "prune", "export", "compare", "spec", "index", "locate", "serve", "import",
)  # fmt: skip
LOOKS = ("soft", "spatial")  # SCORES of vpr/retrieval/matching.py
SPEEDS = (0.8, 1.0, 1.25)  # vpr/search/sequences.py
LOCAL_DIM = 64  # vpr/models/local_projection.py
SPLITS = tuple(dict.fromkeys(split for dataset in DATASETS.values() for split in splits_of(dataset)))
PARALLEL_MODES = ("cluster", "train", "test", "whiten", "index")  # the others run in one process
# A run stores these and a resumed one gets them back. The first group is the model itself.
MODEL_FLAGS = (
    "arch", "weights", "normalization", "fromscratch", "channels", "pooling", "num_clusters", "vladv2", "vladAssign",
    "clusterDim", "cut", "facet",
)  # fmt: skip
TRAINING_FLAGS = (
    "dataset", "imageSize", "seed", "batchSize", "cacheRefreshRate", "optim", "lr", "lrStep", "lrGamma",
    "weightDecay", "momentum", "margin", "nNeg", "nNegSample", "trainFrom", "trainBatchNorm",
)  # fmt: skip
# Beside the flags of a run: what --precision=auto meant when it began.
AUTO_PRECISION = "auto_precision"
# Besides --arch and --dataset, the flags that decide what a centroids file is made from.
CLUSTER_FLAGS = (
    "num_clusters", "weights", "fromscratch", "normalization", "root", "imageSize", "seed", "dataPath", "device",
    "skipBroken", "cut", "facet",
)  # fmt: skip
# What an exported file's card holds, so that the file is tested as its run is.
CARD_FLAGS = (
    "arch", "channels", "pooling", "num_clusters", "vladv2", "vladAssign", "clusterDim", "dataset", "root",
    "imageSize", "seed", "skipBroken", "cut", "facet",
)  # fmt: skip


FLAGS: dict[str, list[Flag]] = {
    "places, images and machine": [
        Flag("mode", None, "what to do", {"choices": MODES}),
        Flag("dataset", "pittsburgh", "which places: pittsburgh is pitts30k; toy is drawn on first use; folder: your "
             "own images in --root; the others: docs/datasets.md", {"choices": tuple(DATASETS)}),
        Flag("root", None, "folder with datasets/*.mat and the images (default: the project root; "
             "toy: toy_city in it)", {"metavar": "DIR"}),
        Flag("imageSize", None, "resize every image to this height and width in pixels "
             "(default: the image's own size)", {"nargs": 2, "type": whole_number(1), "metavar": ("H", "W")}),
        Flag("cacheBatchSize", 24, "images described at once; 0: as many as memory holds", WHOLE),
        Flag("precision", "auto", "number format of the backbone's arithmetic; auto: bf16 where the hardware "
             "multiplies it, else fp32; weights and pooling stay fp32", {"choices": ("auto", "fp32", "bf16", "fp16")}),
        Flag("threads", min(8, available_cores()), "workers that decode images ahead: processes beside a "
             "GPU, else threads; 0: none", WHOLE),
        Flag("skipBroken", False, "leave out images that cannot be decoded, and say which; decodes all once more", ON),
        Flag("maxPixels", None, "megapixels of an image, at most (default: 500; serve: of an image that is sent, 50)",
             {"type": quantity}),
        Flag("device", "auto", "auto takes a GPU if there is one; or cpu, cuda, cuda:1, mps"),
        Flag("nocuda", False, "use the CPU even if there is a GPU", ON),
        Flag("nGPU", 1, "GPUs to use; above 1 start with torchrun, which says how many processes there are", COUNT),
        Flag("seed", DEFAULT_SEED, "seed of every random choice", WHOLE),
        Flag("dataPath", "centroids", "folder of centroid files that cluster writes; train and test also "
             "take one file, whatever images it was made from"),
        Flag("runsPath", "runs", "folder under which each training makes its run"),
        Flag("savePath", "checkpoints", "folder of the checkpoints inside a run"),
        Flag("cachePath", "cache", "folder of the trunk cache"),
    ],
    "model": [
        Flag("arch", "vgg16", f"backbone: {', '.join(BACKBONES)}, or any network of timm by its NAME or NAME.TAG",
             {"type": backbone_name, "metavar": "NAME"}),
        Flag("cut", None, "where a backbone of timm ends: the stride of the map of local descriptors in pixels, of a "
             "vision transformer the last block, from 0 or negative from the end (default: 16; the last block)",
             {"type": signed_number, "metavar": "N"}),
        Flag("facet", None, "what of a vision transformer's last block the local descriptors are (default: token)",
             {"choices": FACETS}),
        Flag("weights", None, "pretrained weights of the backbone: a torchvision name (DEFAULT, "
             "IMAGENET1K_V1, for vgg16 also IMAGENET1K_FEATURES), a tag of timm, a .pth or .safetensors file, or none "
             "(default: vgg16 IMAGENET1K_FEATURES, the paper's; alexnet IMAGENET1K_V1; timm's own)"),
        Flag("normalization", None, "what a weights FILE expects of its input: torchvision, caffe, features, unit, or "
             "R,G,B, a mean colour that is subtracted from pixels of 0 to 255 (default: torchvision; of a backbone of "
             "timm what timm says)", {"type": normalization, "metavar": "NAME"}),
        Flag("fromscratch", False, "random weights, all layers trained; the same as --weights=none", ON),
        Flag("channels", None, "filters of each convolution, as --mode=prune leaves them (default: the backbone's own)",
             {"nargs": "+", "type": whole_number(1), "metavar": "N"}),
        Flag("pooling", "netvlad", "how local descriptors become one", {"choices": tuple(POOLINGS)}),
        Flag("num_clusters", 64, "clusters of NetVLAD (visual words)", {"type": whole_number(2)}),
        Flag("vladv2", False, "NetVLAD version 2: assignment by squared distance, with a bias", ON),
        Flag("vladAssign", "soft", "how NetVLAD assigns local descriptors to clusters; hard: each wholly to the "
             "nearest by cosine, as AnyLoc does", {"choices": tuple(ASSIGNMENTS)}),
        Flag("clusterDim", None, "map each cluster of NetVLAD to so many dimensions by one linear map, which is "
             "trained (default: none; SuperPlace's NVL takes 128)", COUNT),
    ],
    "train": [
        Flag("nEpochs", 30, "last epoch", COUNT),
        Flag("start-epoch", 0, "epochs counted as done at the start", WHOLE),
        Flag("batchSize", 4, "queries in a step; those without a violating negative are skipped", COUNT),
        Flag("cacheRefreshRate", 1000, "queries after which all descriptors are computed anew; doubles at "
             "each drop of the learning rate; 0: once an epoch", WHOLE),
        Flag("optim", "SGD", "optimiser", {"choices": ("SGD", "ADAM")}),
        Flag("lr", None, "learning rate (default: 0.001; pitts250k, tokyo247, tokyotm 0.0001)", NUMBER),
        Flag("lrStep", 5, "epochs between drops of the learning rate", COUNT),
        Flag("lrGamma", 0.5, "factor of each drop", NUMBER),
        Flag("weightDecay", 0.001, "weight decay", NUMBER),
        Flag("momentum", 0.9, "momentum of SGD", NUMBER),
        Flag("trainFrom", None, "first layer that is trained, by name: conv1_1 ... conv5_3 of VGG16, conv1 ... conv5 "
             "of AlexNet, layer3, blocks.8, ... of timm (default: conv5_1, conv5, a ResNet's layer3, the last 4 blocks "
             "and norm of a vision transformer, the last stage of others; from random weights and after pruning the "
             "first)", {"metavar": "LAYER"}),
        Flag("trainBatchNorm", False, "let the statistics of BatchNorm layers that are trained follow the training "
             "images", ON),
        Flag("margin", 0.1, "margin of the triplet loss, in squared descriptor distance", NUMBER),
        Flag("nNeg", 10, "hard negatives in a tuple, at most", COUNT),
        Flag("nNegSample", 1000, "random negatives among which the hard ones are sought", COUNT),
        Flag("evalEvery", 1, "epochs between validations", COUNT),
        Flag("trunkCache", "auto", "where to keep what the frozen layers make of each image (auto: in memory if "
             "half of it is enough, else on disk)", {"choices": ("auto", "memory", "disk", "off")}),
        Flag("patience", 10, "epochs without a better validation after which training stops; 0: never", WHOLE),
    ],
    "run and recalls": [
        Flag("resume", None, "go on with (train) or use a run; without DIR the newest under --runsPath; test "
             "also takes an exported FILE.onnx",
             {"nargs": "?", "const": "newest", "metavar": "DIR"}),
        Flag("ckpt", None, "which model of the run (default: train latest, test best)",
             {"choices": ("latest", "best")}),
        Flag("recallValues", [1, 5, 10, 20], "the N of Recall@N", {"nargs": "+", "type": whole_number(1),
                                                                   "metavar": "N"}),
    ],
    "prune": [
        Flag("pruneRatio", 0.5, "share of each convolution's filters that goes; the number left is rounded "
             "down to a multiple of 8", {"type": share}),
        Flag("importance", "taylor", "by what filters are judged: taylor, the training loss's first-order change; "
             "magnitude, the size of their weights", {"choices": ("taylor", "magnitude")}),
        Flag("distill", 4096, "training images, repetitions counted, on which the pruned backbone learns to give "
             "what the whole one gave; 0: none", WHOLE),
    ],
    "export": [
        Flag("format", "onnx", "file format of an exported model", {"choices": ("onnx",)}),
        Flag("quantize", None, "int8: the backbone in 8 bits, set on training images; fp16: in 16 (default: fp32)",
             {"choices": ("int8", "fp16")}),
        Flag("out", None, "file to write (default: in the run)", {"metavar": "FILE"}),
    ],
    "whitening": [
        Flag("pcaDim", None, "dimensions of a whitened descriptor: whiten learns so many (default: 4096), test takes "
             "the first so many (default: all)", COUNT),
        Flag("nPCA", 10_000, "training database images on which whitening is learnt, at most",
             {"type": whole_number(2)}),
        Flag("noWhiten", False, "test without the whitening that the model has", ON),
    ],
    "index and locate": INDEX,
    "how sure": [
        Flag("calibrate", False, "learn from this split how probable it is that a first hit is right, and keep that "
             "beside the model for test and locate; take val", ON),
        Flag("minConfidence", None, "do not guess below this confidence: locate answers that no place was found, test "
             "counts what that leaves", {"type": probability, "metavar": "P"}),
        Flag("heldOutRegion", None, "leave out database images within METRES of a point, by its UTM metres: their "
             "queries ask for places that are not in the map", {"nargs": 3, "type": finite_number,
                                                               "metavar": ("E", "N", "METRES")}),
    ],
    "engine": ENGINE,
    "serve": SERVE,
    "hloc and COLMAP": [
        Flag("hlocFeatures", None, "write global descriptors as hloc does, by image path below --root, into this HDF5 "
             "file", {"metavar": "FILE"}),
        Flag("hlocHalf", False, "write them as float16 instead of float32", ON),
        Flag("pairs", None, "write a list of image pairs, lines 'query database', for hloc and COLMAP; index pairs the "
             "database's images with each other", {"metavar": "FILE"}),
        Flag("pairsTop", 20, "pairs of each image in that list", COUNT),
    ],
    "second look": [
        Flag("rerank", None, "look again at the first K hits of each query: order them anew by how well their local "
             "descriptors match; 0: not (default: locate 50 where the index has local descriptors, else 0)",
             {"type": whole_number(0), "metavar": "K"}),
        Flag("rerankBy", "soft", "which matches count: soft, all by how likely they are; spatial, those that are "
             "each other's nearest, by how well their displacements agree", {"choices": LOOKS}),
        Flag("localDim", LOCAL_DIM, "dimensions that local descriptors are projected to, 1 byte each",
             {"type": whole_number(1, 128)}),
        Flag("localDescriptors", False, "keep local descriptors for --rerank: index beside the index, export as a "
             "second output", ON),
    ],
    "sequences": [
        Flag("sequence", 0, "compare with each query the L frames before and after it in its walk, in which images "
             "differ in the last number of their names alone; 0: single images",
             {"type": whole_number(0), "metavar": "L"}),
        Flag("causal", False, "use no frame after the query", ON),
        Flag("speeds", list(SPEEDS), "how the database's frame numbers go on while the queries' go on by 1; 0: it "
             "stands still, below 0: the other way", {"nargs": "+", "type": signed_quantity, "metavar": "V"}),
        Flag("excludeRecent", None, "loop closure: the N frames before and after a query in its own walk, and itself, "
             "are neither hits nor positives", {"type": whole_number(0), "metavar": "N"}),
    ],
    "search and pictures": [
        Flag("split", "val", "which part of the dataset; svox: also a weather, sfxl: also a set of queries",
             {"choices": SPLITS}),
        Flag("panels", 10, "queries to draw with what was found for them, the worst first: a number, or all; 0: no "
             "pictures and no report", {"type": number_or_all, "metavar": "N"}),
        Flag("explain", False, "show in the pictures which cluster owns each region, and what it adds to the "
             "similarity", ON),
        Flag("index", None, "test also with this FAISS index (Flat, SQfp16, HNSW32, IVF4096,PQ64, ...) and print "
             "what it loses and takes", {"metavar": "FACTORY"}),
        Flag("nprobe", 16, "lists that an inverted-file index (IVF) looks through", COUNT),
        Flag("saveDescriptors", None, "write the split's descriptors into this HDF5 file", {"metavar": "FILE"}),
        Flag("loadDescriptors", None, "take the split's descriptors from this file, or from hloc's global descriptors, "
             "instead of describing images",
             {"metavar": "FILE"}),
    ],
}  # fmt: skip


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad command line as one line, like every other mistake; no flag begins with a minus and a digit."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # A word such as -33.8,151.2,500 is a value. argparse itself has this pattern since Python 3.14.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def build_parser(typed_only: bool = False, shown: set[str] | None = None) -> argparse.ArgumentParser:
    """The parser of all flags.

    Args:
        typed_only: its result holds no defaults.
        shown: names of the flags, and inputs, that its help lists; None lists all.
    """
    parser = OneLineParser(
        prog=program(),
        usage=f"{program()} --mode=MODE [flags] [INPUT ...]",
        description="NetVLAD for visual place recognition: run --mode=cluster, then train, then test.",
        allow_abbrev=False,
        add_help=False,
    )

    def help_of(name: str, line: str) -> str:
        return line if shown is None or name in shown else argparse.SUPPRESS

    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT", default=argparse.SUPPRESS if typed_only else [],
        help=help_of("inputs", "compare: runs and exported files; locate: images and folders; import: a .mat file"),
    )  # fmt: skip
    parser.add_argument("-h", "--help", action="help", help="the modes; with --mode=MODE, the flags that it reads")
    parser.add_argument("--help-all", action="help", help="all flags of all modes")
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            default = argparse.SUPPRESS if typed_only else flag.default
            line = help_of(flag.name, _help_line(flag))
            group.add_argument(f"--{flag.name}", default=default, help=line, **flag.reading)
    return parser


def _help_line(flag: Flag) -> str:
    if flag.default is None or flag.default is False:
        return flag.help
    shown = " ".join(map(str, flag.default)) if isinstance(flag.default, list) else flag.default
    return f"{flag.help} (default: {shown})"
