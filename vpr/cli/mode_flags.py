"""What each mode does, and which of the flags it reads.

A flag that is typed for a mode that does not read it is refused, except those of pytorch-NetVlad's own command line:
its users type the same flags in every mode, so these are accepted with a line that says they have no effect.
"""

from vpr.cli.flags import FLAGS, MODES, Flag
from vpr.common.errors import UserError

MODE_LINES = {
    "cluster": "visual words (k-means centres) from which NetVLAD starts",
    "train": "train on triplets: a new run, or with --resume go on with one",
    "test": "Recall@N of a run, an exported file or the off-the-shelf model; pictures and a report",
    "whiten": "learn PCA whitening of a model's descriptors",
    "prune": "a smaller run from a trained one, by dropping filters",
    "export": "write a model as one .onnx file",
    "compare": "several runs and exported files on one split, in one table",
    "spec": "write a folder's positions as .mat specs, or specs as a table",
    "index": "describe a database once, for locate",
    "locate": "where were these images taken?",
    "serve": "answer over HTTP where images were taken, with a page to look at",
    "import": "a run from a model of the MATLAB release of NetVLAD",
}
COMMON_FLAGS = (
    "mode", "dataset", "root", "imageSize", "device", "threads", "seed", "dataPath", "runsPath", "arch", "weights",
    "pooling", "num_clusters", "resume", "split",
)  # fmt: skip
PYTORCH_NETVLAD_FLAGS = (
    "mode", "batchSize", "cacheBatchSize", "cacheRefreshRate", "nEpochs", "start-epoch", "nGPU", "optim", "lr",
    "lrStep", "lrGamma", "weightDecay", "momentum", "nocuda", "threads", "seed", "dataPath", "runsPath", "savePath",
    "cachePath", "resume", "ckpt", "evalEvery", "patience", "dataset", "arch", "vladv2", "pooling", "num_clusters",
    "margin", "split", "fromscratch",
)  # fmt: skip
# What --nocuda has become takes part in the exception.
TOLERATED_FLAGS = (*PYTORCH_NETVLAD_FLAGS, "device")


def all_but(*modes: str) -> tuple[str, ...]:
    """All modes without some."""
    return tuple(mode for mode in MODES if mode not in modes)


FINISHED_MODEL = ("test", "export", "compare", "index", "locate", "serve")  # modes that take a whitened model
# The modes that read the flags of a group of `vpr.cli.flags.FLAGS` ...
GROUPS = {
    "places, images and machine": all_but("spec"),
    "model": all_but("spec", "import"),
    "train": ("train", "prune", "import"),  # a pruned or imported run is trained by the flags that it was made with
    "run and recalls": all_but("cluster", "compare", "import"),
    "prune": ("prune",),
    "export": ("export",),
    "whitening": FINISHED_MODEL,
    "index and locate": ("locate",),
    "engine": ("test", "index", "locate", "serve"),
    "serve": ("serve",),
    "how sure": ("test",),
    "hloc and COLMAP": ("test", "index"),
    "sequences": ("test", "locate"),
    "second look": ("train", "test", "compare", "locate"),
    "search and pictures": ("test",),
}
# ... and of flags that are read by others than the rest of their group.
EXCEPTIONS = {
    "mode": all_but(),
    "dataset": all_but(),
    "root": all_but(),
    "skipBroken": all_but(),
    "maxPixels": all_but("import"),
    "threads": all_but("spec", "import"),
    "nGPU": all_but(),
    "cacheBatchSize": all_but("export", "spec"),
    "precision": all_but("export", "spec"),
    "device": all_but("export", "spec"),
    "nocuda": all_but("export", "spec"),
    "seed": all_but("compare", "spec"),
    "dataPath": all_but("prune", "compare", "spec", "import"),
    "runsPath": all_but("cluster"),
    "savePath": all_but("cluster", "spec"),
    "cachePath": ("train",),  # a pruned run has no frozen layers
    "trunkCache": ("train",),
    "trainFrom": ("train", "prune"),
    "trainBatchNorm": ("train",),
    "ckpt": all_but("cluster", "spec", "import"),
    "recallValues": ("train", "test", "prune", "compare", "import"),
    "pcaDim": all_but("cluster", "train", "prune", "spec", "import"),
    "nPCA": ("whiten",),
    "indexFile": ("index", "locate", "serve"),
    "top": ("locate",),
    "utmZone": ("index", "locate", "serve"),
    "add": ("index",),
    "remove": ("index",),
    "onDisk": ("index",),
    "minConfidence": ("test", "locate", "serve"),
    "split": ("test", "compare", "index", "locate", "serve"),
    "panels": ("test", "locate"),
    "excludeRecent": ("test",),
    "rerankBy": ("train", "test", "compare", "locate", "serve"),
    "localDim": ("train", "test", "export", "compare", "index", "locate", "serve"),
    "localDescriptors": ("export", "index"),
    "index": ("test", "index", "locate", "serve"),
    "nprobe": ("test", "index", "locate", "serve"),
}


def modes_that_read(flag: Flag, group: str) -> tuple[str, ...]:
    """The modes in which a flag of a group of `FLAGS` has an effect."""
    return EXCEPTIONS.get(flag.name, GROUPS[group])


def flags_of_mode(mode: str) -> set[str]:
    """Names of the flags that a mode reads."""
    return {flag.name for group, flags in FLAGS.items() for flag in flags if mode in modes_that_read(flag, group)}


def check_typed(mode: str, typed: set[str]) -> list[str]:
    """Refuse typed flags that a mode does not read.

    Args:
        typed: names as argparse has them, with underscores.

    Returns:
        lines to print, of flags that are accepted though they have no effect.

    Raises:
        UserError: a flag has no effect and is none of pytorch-NetVlad's; names the modes that read it.
    """
    idle = []
    for group, flags in FLAGS.items():
        for flag in flags:
            modes = modes_that_read(flag, group)
            if flag.name.replace("-", "_") not in typed or mode in modes:
                continue
            if flag.name not in TOLERATED_FLAGS:
                raise UserError(
                    f"--{flag.name} has no effect in --mode={mode}, only in {', '.join(modes)}: drop it, or see "
                    f"--mode={mode} --help"
                )
            idle.append(f"--{flag.name}")
    return [f"without effect in --mode={mode}: {', '.join(idle)}"] if idle else []
