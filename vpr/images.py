"""Stage 2, images: photo files -> batches of bytes, decoded by worker processes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from vpr.errors import UserError


class SizeGroup(NamedTuple):
    """Photos of one batch that share a size.

    Attributes:
        places: where in the batch they stand, int64 [b].
        values: uint8 [b, 3, H, W], channels last in memory; or what frozen layers made of it, float16 [b, C, h, w].
        photo_size: their (height, width) in pixels.
    """

    places: torch.Tensor
    values: torch.Tensor
    photo_size: tuple[int, int]


def read_photo(path: Path) -> Image.Image:
    """Read a photo as RGB, upright by its EXIF orientation.

    Raises:
        UserError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as photo:
            return ImageOps.exif_transpose(photo).convert("RGB")
    except Exception as error:  # Pillow raises a dozen kinds of errors on damaged files and damaged EXIF
        raise UserError(f"cannot decode the photo {path} ({error}): get it again or leave it out") from error


def photo_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of a photo once upright; reads the header, not the pixels.

    Raises:
        UserError: the file is no photo.
    """
    try:
        with Image.open(path) as photo:
            sideways = photo.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # turned by a quarter
            return (photo.width, photo.height) if sideways else (photo.height, photo.width)
    except Exception as error:
        raise UserError(f"cannot decode the photo {path} ({error}): get it again or leave it out") from error


def decode(path: Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Read a photo as uint8 [3, H, W].

    Args:
        size: (height, width) in pixels to resize to; None keeps the photo's own.

    Raises:
        UserError: the file cannot be decoded.
    """
    photo = read_photo(path)
    if size is not None:
        photo = photo.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W], same memory


class Photos(Dataset):
    """Photo files by index. A file that cannot be decoded comes as the error, for the parent to raise."""

    def __init__(self, files: Sequence[Path], size: Sequence[int] | None):
        self.files = files
        self.size = tuple(size) if size else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor | UserError:
        try:
            return decode(self.files[index], self.size)
        except UserError as error:  # raised here it would arrive wrapped in a worker's traceback
            return error


def collate(photos: list[torch.Tensor | UserError]) -> list[SizeGroup] | UserError:
    """A batch of decoded photos; the first error takes its place."""
    for photo in photos:
        if isinstance(photo, UserError):
            return photo
    return group_by_size(photos, [tuple(photo.shape[1:]) for photo in photos])


def group_by_size(values: list[torch.Tensor], photo_sizes: list[tuple[int, int]]) -> list[SizeGroup]:
    """Stack what stands for each photo of a batch, [C, h, w], by the photo's size, since sets mix sizes."""
    places = defaultdict(list)
    for place, size in enumerate(photo_sizes):
        places[size].append(place)
    return [
        SizeGroup(torch.tensor(group), _stack([values[place] for place in group]), size)
        for size, group in places.items()
    ]


def _stack(values: list[torch.Tensor]) -> torch.Tensor:
    """[C, h, w] each -> [b, C, h, w], copied once, as they lie in memory: photos have their channels last."""
    if values[0].is_contiguous():
        return torch.stack(values)
    return torch.stack([value.permute(1, 2, 0) for value in values]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class PhotoReader:
    """Photos by their index in `files`, decoded by worker processes ahead of the caller.

    Attributes:
        size: (height, width) in pixels to resize to; None keeps each photo's own.
        workers: processes that decode; 0 decodes in this one.
    """

    files: Sequence[Path]
    size: Sequence[int] | None
    workers: int

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[SizeGroup]]:
        """The photos of each batch of indices, in order.

        Raises:
            UserError: a photo cannot be decoded; the message names it.
        """
        workers = min(self.workers, len(batches))
        loader = DataLoader(
            Photos(self.files, self.size),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate,
            prefetch_factor=4 if workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own, so that loading photos never moves the global random state
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


def in_batches(count: int, batch_size: int) -> list[range]:
    """The indices 0 .. count - 1 in consecutive batches."""
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
