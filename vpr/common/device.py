"""Which device a command computes on, and in which number format (--device, --precision).

PyTorch takes seconds to import and is asked only about GPUs: a model that another program runs does without it.
"""

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.memory import available_cores
from vpr.common.progress import say

if TYPE_CHECKING:
    import torch

# An environment variable that says what auto means, whatever the processor: the tests set it to run both ways.
AUTO_VARIABLE = "VPR_AUTO_PRECISION"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # by PyTorch's names
# Processor flags, as Linux names them, of instructions that multiply bf16 (x86 and ARM).
NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}

_joint_auto: str | None = None  # what auto means to all processes that have joined, once `choose_device` asked them


class Device(str):
    """The name of a device, such as cpu, cuda:1 or mps. PyTorch takes it wherever it takes a torch.device."""

    __slots__ = ()

    @property
    def type(self) -> str:
        """The name without the index."""
        return self.partition(":")[0]

    @property
    def number(self) -> int:
        """Which of several: 0 where the name does not say."""
        return int(self.partition(":")[2] or 0)


CPU = Device("cpu")


@dataclass(frozen=True)
class Taken:
    """What one of several processes computes on."""

    kind: str = ""  # cpu, cuda, ...
    name: str = ""  # of the GPU or the processor
    gpu: str = ""  # what tells the GPU from all others; empty where it is none
    auto: str = ""  # the number format that --precision=auto means to it alone
    failure: str = ""  # why it has none, for its user; empty where it has one


def compute_precision(precision: str, device: Device) -> str:
    """What --precision means on a device, fp32, bf16 or fp16: auto is bf16 where the hardware multiplies it, else fp32.

    Elsewhere bf16 is converted to float32 and back, and several times slower than float32 itself. Processes that have
    joined compute in one format: auto is bf16 where the hardware of all multiplies it (`choose_device`).
    """
    if precision != "auto":
        return precision
    return (_joint_auto if processes.world() > 1 else None) or own_auto(device)


def compute_dtype(precision: str, device: Device) -> "torch.dtype":
    """PyTorch's type of `compute_precision`."""
    import torch

    return getattr(torch, DTYPES[compute_precision(precision, device)])


def own_auto(device: Device) -> str:
    """What auto means to this process alone."""
    return os.environ.get(AUTO_VARIABLE) or ("bf16" if multiplies_bf16(device) else "fp32")


def multiplies_bf16(device: Device) -> bool:
    """Whether the hardware has instructions for it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_capability(device) >= (8, 0)  # emulated before
    return device.type == "cpu" and bool(NATIVE_BF16 & processor_flags())


def precision_name(dtype: object) -> str:
    """fp32, bf16 or fp16, of a number format as PyTorch or NumPy has it."""
    return next(name for name, known in DTYPES.items() if known == str(dtype).removeprefix("torch."))


def processor_flags() -> set[str]:
    """The instruction sets of this processor by Linux's names; empty where they cannot be read."""
    return set((processor_field("flags") or processor_field("features")).split())


def vector_widths() -> tuple[int, int]:
    """How many float32 this processor's longest instructions name, and how many a core multiplies at a time.

    AMD's family 25 (Zen 4) takes AVX-512's 16 and does them in halves.
    """
    if "avx512f" not in processor_flags():
        return 8, 8
    halves = processor_field("vendor_id") == "AuthenticAMD" and processor_field("cpu family") == "25"
    return 16, 8 if halves else 16


def processor_field(name: str) -> str:
    """What Linux says of the first processor under a name such as vendor_id; empty where it says nothing."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = (line.partition(":") for line in file)
            return next((value.strip() for key, _, value in lines if key.strip().lower() == name), "")
    except OSError:
        return ""


def choose_device(name: str = "auto") -> Device:
    """The device of a name as of --device, for the whole program; auto takes a GPU if there is one.

    Of several processes each takes a GPU of its own, and what --precision=auto means is agreed upon here, so that all
    call this before anything is described. Float32 is float32 from here on: unless told otherwise PyTorch multiplies
    with 10 bits of mantissa (TF32) in a GPU's convolutions. Raises a UserError: it is unknown or not there, two
    processes take one GPU, or some take none; in all processes at once.
    """
    failure, device = "", CPU
    try:
        device = find_device(name)
    except UserError as error:
        if processes.world() == 1:
            raise
        failure = str(error)
    if processes.world() > 1:
        _agree(_taken(device, failure))
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)  # on which memory is pinned
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")  # the default, but for an environment variable of NVIDIA's images
    return device


def find_device(name: str = "auto") -> Device:
    """The device of a name as of --device, with its index. Nothing is set: what is current stays so.

    A GPU without an index is the current one; of processes that have joined each takes that of its number on its
    machine, counting round where it sees fewer, as where each is shown a single one.
    Raises a UserError: it is unknown or not there, or cannot compute.
    """
    if name == "cpu" or (name == "auto" and not has_gpu_driver()):
        return CPU
    import torch

    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        count = torch.cuda.device_count() if device.type == "cuda" else 0
        if count and device.index is None:
            alone = processes.world() == 1
            device = torch.device("cuda", torch.cuda.current_device() if alone else processes.local_rank() % count)
        if count and device.index >= count:
            known = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise UserError(f"--device={name} is not there, found {known}: give one of these, auto or cpu")
        found = Device(device)
        compute_once(found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]  # CUDA's errors go on for a page
        raise UserError(f"--device={name} cannot be used here ({reason}): try --device=cpu") from error
    return found


def has_gpu_driver() -> bool:
    """Whether there is a driver of NVIDIA's or AMD's, without which PyTorch finds no GPU."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def compute_once(device: Device) -> None:
    """Compute something. Raises a RuntimeError where this PyTorch has no code for the GPU, or it has no memory left."""
    import torch

    torch.ones(1, device=device).item()


def _taken(device: Device, failure: str) -> Taken:
    """What this process takes."""
    if failure:
        return Taken(failure=failure)
    if device.type != "cuda":
        return Taken(device.type, processor_field("model name") or "processor", "", own_auto(device))
    import torch

    properties = torch.cuda.get_device_properties(device)
    machine = processes.rank() - processes.local_rank()  # by its first process
    return Taken("cuda", properties.name, f"{machine} {properties.uuid}", own_auto(device))


def _agree(own: Taken) -> None:
    """Compare what all processes take, settle what auto means, and say where their hardware is unlike.
    Raises a UserError: one has no device, some have a GPU and some have none, or two have the same GPU."""
    global _joint_auto
    taken = processes.gather_everywhere(own)
    for number, each in enumerate(taken):
        if each.failure:
            raise UserError(own.failure or f"process {number} has no device: {each.failure}")
    if len({each.kind for each in taken}) > 1:
        kinds = _by_process([each.kind for each in taken])
        raise UserError(f"the processes have unlike devices, {kinds}: give each a GPU, or --device=cpu")
    gpus = {each.gpu for each in taken if each.gpu}
    if 0 < len(gpus) < len(taken):
        raise UserError(
            f"{len(taken)} processes take {len(gpus)} of the GPUs, and each wants its own: start as many processes on "
            "a machine as it has GPUs (--nproc_per_node), with --device=cuda or without --device"
        )
    _joint_auto = "bf16" if all(each.auto == "bf16" for each in taken) else "fp32"
    hardware = [f"{each.name} ({each.auto})" for each in taken]
    if len(set(hardware)) > 1:
        say(f"unlike hardware, {_by_process(hardware)}: --precision=auto means {_joint_auto} in all")


def _by_process(values: list[str]) -> str:
    """Which value the processes have, from that of process 0 on: `A in 0 and 2, B in 1`."""
    numbers: dict[str, list[str]] = {}
    for number, value in enumerate(values):
        numbers.setdefault(value, []).append(str(number))
    return ", ".join(f"{value} in process {' and '.join(found)}" for value, found in numbers.items())


def device_line(device: Device) -> str:
    """What was taken, for the console."""
    share = f" in each of {processes.world()} processes" if processes.world() > 1 else ""
    if device.type == "cuda":
        import torch

        return f"device: {'a GPU' if share else device} ({torch.cuda.get_device_name(device)}){share}"
    return f"device: {device} ({compute_threads()} threads){share}"


def compute_threads() -> int:
    """Threads that a model computes with on the processor: as many as PyTorch takes, whether or not it is loaded.

    That is one for each physical core that this process may use, unless the environment says how many.
    """
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(told) if told.isdecimal() and int(told) else physical_cores()


def physical_cores() -> int:
    """Those of which this process may use a hardware thread; where Linux does not say, all hardware threads."""
    try:
        topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
        return len({Path(topology.format(number)).read_text() for number in os.sched_getaffinity(0)})
    except (OSError, AttributeError):
        return available_cores()
