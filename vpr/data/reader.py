"""Many image files -> batches by size, decoded ahead of the model by threads or processes."""

import contextlib
import itertools
import math
import signal
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vpr.common.device import CPU, Device
from vpr.common.errors import UserError
from vpr.common.memory import available_bytes
from vpr.common.progress import say, track
from vpr.data.images import MAX_PIXELS, decode, image_size, read_image, shrunk

Batch = TypeVar("Batch")
LOST_WORKERS = ("DataLoader worker", "Communication with the workers")  # what PyTorch says of them
BATCHES_AHEAD = 4  # of all threads together, or of each process
BYTES_AHEAD = 2 << 30  # of decoded images that wait for the model, at most


class SizeGroup(NamedTuple):
    """Images of one batch that share a size."""

    rows: np.ndarray  # their indices in the batch, int64 [b]
    # uint8 [b, 3, H, W], channels last in memory; or what frozen layers made of it, float16 [b, C, h, w].
    values: np.ndarray
    image_size: tuple[int, int]  # their (height, width) in pixels
    frozen: bool = False  # whether `values` are what frozen layers made of the images


def collate(images: Iterable[np.ndarray | UserError]) -> list[SizeGroup] | UserError:
    """A batch of decoded images; or the first error in its stead."""
    decoded = []
    for image in images:
        if isinstance(image, UserError):
            return image
        decoded.append(image)
    return group_by_size(decoded, [(image.shape[1], image.shape[2]) for image in decoded])


def group_by_size(values: list[np.ndarray], image_sizes: list[tuple[int, int]]) -> list[SizeGroup]:
    """Stack what stands for each image of a batch, [C, h, w], by the image's size, since sets mix sizes."""
    rows_of = defaultdict(list)
    for row, size in enumerate(image_sizes):
        rows_of[size].append(row)
    return [SizeGroup(np.array(rows), _stack([values[row] for row in rows]), size) for size, rows in rows_of.items()]


def _stack(values: list[np.ndarray]) -> np.ndarray:
    """[C, h, w] each -> [b, C, h, w], copied once, as they lie in memory: images have their channels last."""
    if values[0].flags.c_contiguous:
        return np.stack(values)
    return np.stack([value.transpose(1, 2, 0) for value in values]).transpose(0, 3, 1, 2)


def _as_tensors(images: Iterable[np.ndarray | UserError]) -> Any:
    """As `collate`, in tensors: these PyTorch passes between processes without a copy, and pins in memory."""
    import torch

    batch = collate(images)
    if isinstance(batch, UserError):
        return batch
    return [(torch.from_numpy(rows), torch.from_numpy(values), size) for rows, values, size, _ in batch]


@dataclass(frozen=True)
class ImageReader:
    """Images by their index in `files`, decoded by workers ahead of the caller."""

    files: Sequence[Path]
    size: Sequence[int] | None  # (height, width) in pixels to resize to; None keeps each image's own
    workers: int  # that decode: processes beside a GPU, else threads; 0 decodes when the caller asks
    device: Device = CPU  # where the images are wanted
    # Pixels to which larger images are shrunk, by their index, where there is no `size`.
    longest_sides: Mapping[int, int] = field(default_factory=dict)
    max_pixels: int = MAX_PIXELS  # of an image as it lies in its file

    @property
    def applied(self) -> dict:
        """What is done to images once they have their size, as JSON has it; caches of what they became hold it."""
        return {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray | UserError:
        """An image, uint8 [3, H, W]; one that cannot be decoded comes as the error, which from a process would
        otherwise arrive wrapped in its traceback."""
        size = (self.size[0], self.size[1]) if self.size else None
        try:
            return decode(self.files[index], size, self.longest_sides.get(index), self.max_pixels)
        except UserError as error:
            return error

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels that an image is given out at."""
        if self.size:
            return self.size[0], self.size[1]
        return shrunk(image_size(self.files[index], self.max_pixels), self.longest_sides.get(index))

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[SizeGroup]]:
        """The images of each batch of indices, in order; UserError where one cannot be decoded, which it names."""
        most = self._batches_that_wait(batches) if self.workers else 0
        loaded: Iterable[list[SizeGroup] | UserError]
        if self.device.type == "cuda":
            loaded = self._by_processes(batches, min(self.workers, len(batches), most), most)
        elif self.workers:
            loaded = self._by_threads(batches, min(most, BATCHES_AHEAD))
        else:
            loaded = (collate(map(self.__getitem__, batch)) for batch in batches)
        for batch in _without_dead_workers(loaded):
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def _batches_that_wait(self, batches: Sequence[Sequence[int]]) -> int:
        """How many decoded batches memory has room for while they wait; 1 at least."""
        largest = max(batches, key=len, default=())
        height, width = self.size or largest_size([self.files[index] for index in largest], self.max_pixels)
        room = min(BYTES_AHEAD, available_bytes() // 4)
        return max(1, room // max(1, 3 * height * width * len(largest)))

    def _by_threads(self, batches: Sequence[Sequence[int]], most_ahead: int) -> Iterator[list[SizeGroup] | UserError]:
        """Beside a model on the processor, processes would share its memory until it writes, and then copy it all."""
        ahead: deque[list[Future]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            # Empty batches at the end push out the last ones.
            for batch in itertools.chain(batches, itertools.repeat((), most_ahead)):
                ahead.append([pool.submit(self.__getitem__, index) for index in batch])
                if len(ahead) > most_ahead:
                    yield collate(image.result() for image in ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)  # whoever asked has seen enough

    def _by_processes(
        self, batches: Sequence[Sequence[int]], workers: int, most_ahead: int
    ) -> Iterator[list[SizeGroup] | UserError]:
        """Beside a GPU, which wants more images a second than one process can decode; with 0 workers, by the caller."""
        import torch
        from torch.utils.data import DataLoader

        loader: DataLoader = DataLoader(
            self,  # type: ignore[arg-type]  # which has a length and items, all that is asked for
            batch_sampler=[list(batch) for batch in batches],
            num_workers=workers,
            collate_fn=_as_tensors,
            prefetch_factor=max(1, min(BATCHES_AHEAD, most_ahead // workers)) if workers else None,
            pin_memory=True,
            worker_init_fn=_leave_interrupts_to_the_parent,
            generator=torch.Generator(),  # its own, so that loading images never moves the global random state
        )
        for batch in loader:
            if isinstance(batch, UserError):
                yield batch
            else:  # PyTorch 2.8 and 2.9 make a list of a tuple that they pin
                yield [SizeGroup(rows.numpy(), values.numpy(), (high, wide)) for rows, values, (high, wide) in batch]


@dataclass(frozen=True)
class Reading:
    """How images are read, as of `ImageReader`; larger ones than `max_pixels` are refused."""

    # Also (longest side,), to which larger images are shrunk in their own proportions.
    size: tuple[int, ...] | None = None
    workers: int = 0
    device: Device = CPU
    max_pixels: int = MAX_PIXELS

    def of(self, files: Sequence[Path], longest_sides: Mapping[int, int] | None = None) -> ImageReader:
        """A reader of image files."""
        if self.size and len(self.size) == 1:
            longest_sides = dict.fromkeys(range(len(files)), self.size[0])
            return ImageReader(files, None, self.workers, self.device, longest_sides, self.max_pixels)
        return ImageReader(files, self.size, self.workers, self.device, longest_sides or {}, self.max_pixels)


def size_text(size: Sequence[int] | None) -> str:
    """How stored files write the size that images were resized to: `H W` or `longest N` in pixels, or own."""
    if size and len(size) == 1:
        return f"longest {size[0]}"
    return " ".join(map(str, size)) if size else "own"


def largest_size(files: Sequence[Path], max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) in pixels of the largest of some images, by their headers; 0, 0 if none can be read."""
    sizes = [(0, 0)]
    for file in files:
        with contextlib.suppress(UserError):  # whoever decodes it will name it
            sizes.append(image_size(file, max_pixels))
    return max(sizes, key=math.prod)


def _without_dead_workers(loaded: Iterable[Batch]) -> Iterator[Batch]:
    """The batches. Raises a UserError where a process that decodes is lost: mostly for want of shared memory."""
    try:
        yield from loaded
    except RuntimeError as error:
        if not any(words in str(error) for words in LOST_WORKERS):
            raise
        raise UserError(
            f"a process that decodes images was lost ({error}): containers have little shared memory (docker: "
            "--shm-size=8g), or main memory is full; --threads=0 decodes without such processes"
        ) from error


def _leave_interrupts_to_the_parent(_worker: int) -> None:
    """A terminal's Ctrl-C reaches workers too, who would each print a traceback; the parent ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def decodable(files: Sequence[Path], workers: int, name: str, max_pixels: int = MAX_PIXELS) -> list[int]:
    """The indices of the files that can be decoded, found by decoding all; says how many cannot, and the first five.
    `name`: of the set of images, for what is said. `max_pixels`: of an image; larger ones cannot be decoded."""

    def is_whole(file: Path) -> bool:
        try:
            read_image(file, max_pixels)
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(max(1, workers)) as pool:
        whole = list(track(pool.map(is_whole, files), "looking for broken images", len(files)))
    if broken := [str(file) for file, good in zip(files, whole, strict=True) if not good]:
        say(f"{len(broken)} of the {len(files)} images of {name} cannot be decoded, first {', '.join(broken[:5])}")
    return [index for index, good in enumerate(whole) if good]


def in_batches(count: int, batch_size: int) -> list[range]:
    """The indices 0 .. count - 1 in consecutive batches."""
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
