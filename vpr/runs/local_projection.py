"""On what the projection of a model's local descriptors is learnt; with PyTorch, without which exported ones do."""

from typing import TYPE_CHECKING, Any

from vpr.common import processes
from vpr.common.progress import say
from vpr.common.provenance import open_hdf5
from vpr.data.reader import ImageReader
from vpr.models.local_projection import LOCAL_DIM, LocalProjection
from vpr.runs.model import LoadedModel

if TYPE_CHECKING:
    from vpr.models.place_model import PlaceModel

IMAGES = 128  # of which local descriptors are sampled: enough for as many directions, and soon described


def projection_for(
    loaded: LoadedModel, database: ImageReader, seed: int, dim: int = LOCAL_DIM, batch_size: int | None = None
) -> LocalProjection | None:
    """The projection of a model's local descriptors to `dim` dimensions.

    It is learnt on the local descriptors that are stored with the centroids of an off-the-shelf model. A trained one's
    have changed since, and others have none: there it is learnt on those of some images of the database.
    Raises a UserError: there are too few local descriptors.

    Args:
        loaded: on its device.
        database: reads the database's images.
        batch_size: images described at once; 0: as many as memory holds.

    Returns:
        in every process; None where the model brings its own, an exported one.
    """
    model: Any = loaded.model
    if not hasattr(model, "local_descriptors"):
        return None
    projection = stored_projection(loaded, dim) or sampled_projection(model, database, seed, dim, batch_size)
    say(f"local descriptors: {projection.dim} dimensions, learnt on {projection.learnt_on}")
    return projection


def stored_projection(loaded: LoadedModel, dim: int = LOCAL_DIM) -> LocalProjection | None:
    """A projection learnt on the local descriptors that are stored with the centroids; None where there are none."""
    stored = str(loaded.source.get("centroids"))
    path = loaded.folder / stored
    if loaded.results is not None or path.suffix != ".hdf5" or not path.is_file():
        return None
    from vpr.models.pca import learn_projection

    with open_hdf5(path, "centroids", "run --mode=cluster again") as file:
        return learn_projection(file["descriptors"][:], dim, f"the descriptors in {stored}")


def sampled_projection(
    model: "PlaceModel", database: ImageReader, seed: int, dim: int = LOCAL_DIM, batch_size: int | None = None
) -> LocalProjection:
    """A projection learnt on local descriptors of some images of a database, in every process; see `projection_for`."""
    from vpr.descriptors.vocabulary import sample_local_descriptors
    from vpr.models.pca import learn_projection

    images = min(IMAGES, len(database.files))
    sampled, projection = sample_local_descriptors(model, database, seed, batch_size, images=images), None
    if processes.is_main():
        projection = learn_projection(sampled, dim, f"{images} images of the database")
    projection = processes.broadcast(projection)
    assert projection is not None  # process 0 learnt it
    return projection
