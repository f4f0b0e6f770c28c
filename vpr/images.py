"""Stage 2, images: photo files -> batches of bytes, decoded by worker processes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from vpr.errors import UserError

# Photos of one batch that share a size: (places in the batch [b], bytes [b, 3, H, W]).
SizeGroup = tuple[torch.Tensor, torch.Tensor]


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
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous()  # [H, W, 3] -> [3, H, W]


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


def group_by_size(photos: list[torch.Tensor | UserError]) -> list[SizeGroup] | UserError:
    """Stack the photos of a batch by size, since sets mix sizes; the first error takes the batch's place."""
    places = defaultdict(list)
    for place, photo in enumerate(photos):
        if isinstance(photo, UserError):
            return photo
        places[photo.shape].append(place)
    return [(torch.tensor(group), torch.stack([photos[place] for place in group])) for group in places.values()]


def photo_batches(
    files: Sequence[Path], size: Sequence[int] | None, batches: Sequence[Sequence[int]], workers: int
) -> Iterator[list[SizeGroup]]:
    """Decode the files of each batch of indices, in order, ahead of the caller.

    Raises:
        UserError: a photo cannot be decoded; the message names it.
    """
    workers = min(workers, len(batches))
    loader = DataLoader(
        Photos(files, size),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=group_by_size,
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
