"""The number format in which the trunk computes: --precision."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Processor flags, as Linux names them, of instructions that multiply bf16 (x86 and ARM).
NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The format that --precision means on a device: auto is bf16 where the hardware multiplies it, else fp32.

    Elsewhere bf16 is converted to float32 and back, and several times slower than float32 itself.
    """
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)  # emulated before
    else:
        native = device.type == "cpu" and bool(NATIVE_BF16 & processor_flags())
    return torch.bfloat16 if native else torch.float32


def precision_name(dtype: torch.dtype) -> str:
    """fp32, bf16 or fp16."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def processor_flags() -> set[str]:
    """The instruction sets of this processor by Linux's names; empty where they cannot be read."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((line for line in file if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        return set()
    return set(line.partition(":")[2].split())
