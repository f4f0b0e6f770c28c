"""Descriptors in float32, a tile at a time: converted into memory that is used again.

Pages that the kernel has to clear first take longer than a conversion, and NumPy's own takes one value at a time: 2,000
descriptors of 32,768 dimensions take 140 ms by NumPy, 34 by FAISS and 8 by PyTorch (AMD Genoa, two cores).
"""

import sys
import warnings
from typing import Any, TypeAlias

import faiss
import numpy as np

Descriptors: TypeAlias = Any  # [N, dim], float16 or float32: np.ndarray, a memory map, or a tensor on the CPU
TILE_BYTES = 256 << 20  # of descriptors that are in float32 at a time
FEW_TILE_BYTES = 8 << 20  # of those that stay in the processor's cache until they are used


class Float32Rows:
    """Gives rows in float32, in memory that it keeps for the next ones."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.float32)

    def __call__(self, descriptors: Descriptors, rows: slice | np.ndarray, own: bool = False) -> np.ndarray:
        """Float32 [n, dim], contiguous; holds until the next call.

        Args:
            descriptors: [N, dim] float16 or float32: an array, a memory map, what gives rows, or a tensor on the CPU.
            rows: which n are wanted.
            own: always a copy; else a slice of contiguous float32 is given as it is.
        """
        chosen = isinstance(descriptors, np.ndarray) and not isinstance(rows, slice)  # of these `take` is faster
        values = np.asarray(descriptors.take(rows, axis=0) if chosen else descriptors[rows])
        if values.dtype == np.float32 and values.flags.c_contiguous and not own:
            return values
        if self._memory.size < values.size:
            self._memory = np.empty(values.size, np.float32)
        wide = self._memory[: values.size].reshape(values.shape)
        to_float32(values, wide)
        return wide


def to_float32(values: np.ndarray, wide: np.ndarray) -> None:
    """Write float16 or float32 values into a float32 array of the same shape, [n, dim], exactly."""
    torch = sys.modules.get("torch")  # where it is loaded; it is not worth its start
    if values.dtype != np.float16 or not values.flags.c_contiguous or not values.size:
        np.copyto(wide, values)
    elif torch is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch has no read-only tensors; nothing writes there
            torch.from_numpy(wide).copy_(torch.from_numpy(values))
    else:
        coded = faiss.ScalarQuantizer(values.shape[1], faiss.ScalarQuantizer.QT_fp16)
        np.copyto(wide, coded.decode(values.view(np.uint8)))


def tiles(count: int, dim: int, tile_bytes: int = TILE_BYTES) -> list[slice]:
    """Rows 0 .. count - 1 of `dim` numbers in slices of at most so many bytes in float32."""
    rows = max(1, tile_bytes // (4 * dim))
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
