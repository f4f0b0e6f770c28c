"""Which device a command computes on, and in which number format (--device, --precision)."""

import os

import torch

from vpr.common import processes
from vpr.common.errors import UserError

# An environment variable that says what auto means, whatever the processor: the tests set it to run both ways.
AUTO_VARIABLE = "VPR_AUTO_PRECISION"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Processor flags, as Linux names them, of instructions that multiply bf16 (x86 and ARM).
NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The format that --precision means on a device: auto is bf16 where the hardware multiplies it, else fp32.

    Elsewhere bf16 is converted to float32 and back, and several times slower than float32 itself.
    """
    if precision == "auto":
        precision = os.environ.get(AUTO_VARIABLE) or ("bf16" if multiplies_bf16(device) else "fp32")
    return DTYPES[precision]


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware has instructions for it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # emulated before
    return device.type == "cpu" and bool(NATIVE_BF16 & processor_flags())


def precision_name(dtype: torch.dtype) -> str:
    """fp32, bf16 or fp16."""
    return next(name for name, known in DTYPES.items() if known == dtype)


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


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name as of --device; auto takes a GPU if there is one.

    Raises:
        UserError: it is unknown or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes.world() > 1:
        name = f"cuda:{processes.local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device={name} cannot be used here ({error}): try --device=cpu") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def device_line(device: torch.device) -> str:
    """What was taken, for the console."""
    share = f" in each of {processes.world()} processes" if processes.world() > 1 else ""
    if device.type == "cuda":
        return f"device: {device} ({torch.cuda.get_device_name(device)}){share}"
    return f"device: {device} ({torch.get_num_threads()} threads){share}"
