"""Where the images of a training come from."""

from dataclasses import dataclass
from pathlib import Path

from vpr.data.places import PlaceImages
from vpr.data.reader import Reading
from vpr.descriptors.describe import Source
from vpr.descriptors.trunk_cache import cached_source
from vpr.models.place_model import PlaceModel


@dataclass(frozen=True)
class Sources:
    """Where the images of the two splits come from, each the database's, then the queries'.

    With pretrained weights all passes start from what the frozen layers made of each image, computed once.
    """

    training: Source
    validation: Source

    @classmethod
    def cached(
        cls,
        training: PlaceImages,
        validation: PlaceImages,
        model: PlaceModel,
        reading: Reading,
        where: str,
        folder: Path,
        batch_size: int | None,
    ) -> "Sources":
        """Sources that start from what the frozen layers gave, if any; the last three as of `cached_source`."""
        size = "x".join(map(str, reading.size)) if reading.size else "own"

        def source(images: PlaceImages) -> Source:
            name = f"{images.places.name}-{images.places.fingerprint()[:6]}-{size}"
            return cached_source(images.reader(reading), name, model, where, folder, batch_size)

        return cls(source(training), source(validation))
