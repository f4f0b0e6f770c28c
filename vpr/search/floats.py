"""Descriptors in float32, a tile at a time: converted by all cores into memory that is used again.

Pages that the kernel has to clear first take longer than a conversion, and NumPy's own takes one core, value by value.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np

from vpr.common.memory import available_cores

Descriptors: TypeAlias = Any  # [N, dim], float16 or float32: np.ndarray, a memory map, or a tensor on the CPU
TILE_BYTES = 256 << 20  # of descriptors that are in float32 at a time
FEW_TILE_BYTES = 8 << 20  # of those that stay in the processor's cache until they are used
PART_BYTES = 1 << 20  # of float32 that a core converts at a time, in its own cache
BIAS = np.float32(2.0**112)  # an exponent of 0 is stored as 15 in float16, as 127 in float32
SIGN_AND_VALUE = np.int32(-0x70000001)  # all bits but the three between sign and exponent of a float16 moved up by 13
INFINITE = 0x7C00  # as bits of float16: from here on infinite or NaN


class Float32Rows:
    """Gives rows in float32, in memory that it keeps for the next ones."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.float32)
        self._threads: ThreadPoolExecutor | None = None

    def __call__(self, descriptors: Descriptors, rows: slice | np.ndarray, own: bool = False) -> np.ndarray:
        """Float32 [n, dim], contiguous; holds until the next call.

        Args:
            descriptors: [N, dim] float16 or float32: an array, a memory map, what gives rows, or a tensor on the CPU.
            rows: which n are wanted.
            own: always a copy; else a slice of contiguous float32 is given as it is.
        """
        wanted: Any = rows
        if isinstance(rows, slice):
            descriptors, wanted = np.asarray(descriptors[rows]), None
            if descriptors.dtype == np.float32 and descriptors.flags.c_contiguous and not own:
                return descriptors
        count, dim = len(descriptors) if wanted is None else len(wanted), descriptors.shape[1]
        if self._memory.size < count * dim:
            self._memory = np.empty(count * dim, np.float32)
        wide = self._memory[: count * dim].reshape(count, dim)

        def convert(part: slice) -> None:
            values = np.asarray(descriptors)
            to_float32(values[part] if wanted is None else values.take(wanted[part], axis=0), wide[part])

        parts = tiles(count, dim, PART_BYTES)
        self._threads = self._threads or (ThreadPoolExecutor(available_cores()) if len(parts) > 1 else None)
        for _ in self._threads.map(convert, parts) if self._threads else map(convert, parts):
            pass
        return wide


def to_float32(values: np.ndarray, wide: np.ndarray) -> None:
    """Write float16 or float32 values into a float32 array of the same shape, exactly.

    The bits of a finite float16 are moved to where float32 has them, and the exponent's bias is made up for by a
    product, which is exact, of subnormal values too.
    """
    halves = values.view(np.int16) if values.dtype == np.float16 and values.flags.c_contiguous else None
    if halves is None or not halves.size or _largest(halves) >= INFINITE:
        np.copyto(wide, values)
        return
    bits = wide.view(np.int32)
    np.copyto(bits, halves)
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, SIGN_AND_VALUE, out=bits)
    np.multiply(wide, BIAS, out=wide)


def _largest(halves: np.ndarray) -> int:
    """The greatest float16 in size, as its bits, of bits int16."""
    return max(int(halves.max()), int(halves.view(np.uint16).max()) - 0x8000)


def tiles(count: int, dim: int, tile_bytes: int = TILE_BYTES) -> list[slice]:
    """Rows 0 .. count - 1 of `dim` numbers in slices of at most so many bytes in float32."""
    rows = max(1, tile_bytes // (4 * dim))
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
