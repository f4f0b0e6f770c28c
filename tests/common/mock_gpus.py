"""GPUs that are not there, for tests of which device is chosen.

Stood in for are, of torch.cuda: is_available, device_count, current_device, get_device_capability, get_device_name and
get_device_properties; the C function behind torch.cuda.set_device, whose checks of its argument are PyTorch's own; and
`has_gpu_driver` and `compute_once` of vpr.common.device, which want a driver and a GPU that computes. All else is real.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch

from vpr.common import device as devices


class Gpu(NamedTuple):
    name: str
    capability: tuple[int, int]
    uuid: str
    fault: str = ""  # what PyTorch says when something is computed on it


A100 = Gpu("NVIDIA A100", (8, 0), "a100-0")
ANOTHER_A100 = A100._replace(uuid="a100-1")
V100 = Gpu("Tesla V100", (7, 0), "v100-0")
NO_DRIVER = "Found no NVIDIA driver on your system."


class Machine:
    """What one process sees: some GPUs, of which one is current.

    Attributes:
        current: index of that GPU.
        set: indices that were made current, in order.
    """

    def __init__(self, gpus: list[Gpu], current: int = 0):
        self.gpus, self.current, self.set = gpus, current, list[int]()

    def install(self, patch: Callable = setattr) -> "Machine":
        """Put it in PyTorch's place, by `patch(object, name, value)`."""
        patch(torch.cuda, "is_available", lambda: bool(self.gpus))
        patch(torch.cuda, "device_count", lambda: len(self.gpus))
        patch(torch.cuda, "current_device", self._current)
        patch(torch.cuda, "get_device_capability", lambda device=None: self._gpu(device).capability)
        patch(torch.cuda, "get_device_name", lambda device=None: self._gpu(device).name)
        patch(torch.cuda, "get_device_properties", self._properties)
        patch(torch._C, "_cuda_setDevice", self._set)
        patch(devices, "has_gpu_driver", lambda: bool(self.gpus))
        patch(devices, "compute_once", self._compute)
        return self

    def _current(self) -> int:
        if not self.gpus:
            raise RuntimeError(NO_DRIVER)
        return self.current

    def _gpu(self, device) -> Gpu:
        index = torch.device(device).index if device is not None else None
        return self.gpus[self.current if index is None else index]

    def _properties(self, device) -> SimpleNamespace:
        gpu = self._gpu(device)
        return SimpleNamespace(name=gpu.name, uuid=gpu.uuid, major=gpu.capability[0], minor=gpu.capability[1])

    def _set(self, index: int) -> None:
        self.current = index
        self.set.append(index)

    def _compute(self, device: torch.device) -> None:
        if device.type != "cuda":
            torch.ones(1, device=device).item()
            return
        if not self.gpus:
            raise RuntimeError(NO_DRIVER)
        if self._gpu(device).fault:
            raise RuntimeError(self._gpu(device).fault)
