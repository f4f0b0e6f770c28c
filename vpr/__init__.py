"""Visual place recognition: the packages in the order of the pipeline.

cli/          The command line: every flag, which mode reads it, and the options of a call
common/       What every part uses: errors, files, progress, processes, memory, devices, provenance
compression/  Smaller models: pruning, reconstruction, ONNX export and quantisation
data/         Which images there are, where they were taken, and what matches; images decoded ahead
database/     What is known of each database image, and how it is found again
descriptors/  The network over a set of images: descriptors, the trunk cache, the vocabulary
evaluation/   Recall@N, what came of each query, what a model costs, comparisons, explanations
models/       The network: backbone, pooling, whitening, number formats, exported files
modes/        One file for each --mode: read the options, call the stages, print and write
report/       What people look at: panels, plots, heat maps, the HTML report
retrieval/    From images to answers: the same code for test, locate, serve and Python
runs/         What a run leaves on the disk: checkpoints, models, centroids, descriptors
search/       Nearest database descriptors, exact and approximate, by each data set's protocol
serve/        The server: answers over HTTP where images were taken
training/     Weakly supervised training: mining, losses, steps, state, validation
api.py        models and databases for other Python code: image files in; descriptors, or where they were taken, out
client.py     asks a server where images were taken; one file of the standard library alone
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpr.api import load_describer, load_locator

__all__ = ["load_describer", "load_locator"]


def __getattr__(name: str) -> Any:
    """What other people's code calls, imported when it is asked for: PyTorch takes a while."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vpr import api

    return getattr(api, name)
