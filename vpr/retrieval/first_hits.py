"""Local descriptors of the first hits, for a second look at a database that was kept without them."""

import numpy as np

from vpr.data.reader import ImageReader
from vpr.descriptors.describe import LocalDescribing, describe
from vpr.models.describer import Describer
from vpr.models.local_maps import LocalMaps, MemorySink
from vpr.models.local_projection import LocalProjection


def describe_first_hits(
    model: Describer,
    database: ImageReader,
    found: np.ndarray,
    projection: LocalProjection | None,
    batch_size: int = 24,
) -> tuple[LocalMaps, np.ndarray]:
    """Local descriptors of the images that were found, from their files.

    Args:
        database: reads the database's images.
        found: int64 [M, K], the first hits of each query; -1 is none.
        batch_size: images described at once; 0: as many as memory holds.

    Returns:
        those of n images, and the n indices of these in rising order, as `rerank_few` takes them.

    Raises:
        UserError: an image cannot be decoded.
    """
    images = np.unique(found)
    images = images[images >= 0]
    sink = MemorySink(len(images))
    describe(model, database, images.tolist(), batch_size, "first hits", LocalDescribing(projection, sink))
    return sink.finished(), images
