"""Visual place recognition: the packages in the order of the pipeline.

data          which images, where taken; files to batches
models        the network: backbones, poolings, weights, whitening
descriptors   the network over a set of images
search        the nearest of a database
evaluation    Recall@N; report shows it
training, compression
retrieval     from images to answers; database and runs keep what one command leaves for the next
modes         one file for each --mode; cli reads the command line; api serves other code
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
