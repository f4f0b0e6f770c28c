"""The table of a benchmark as Markdown and JSON."""

import datetime
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.ceilings import Ceilings
from benchmarks.measure import Timing
from vpr.common.files import atomic_write


@dataclass(frozen=True)
class Row:
    """One stage, measured both ways in the same run.

    Attributes:
        stage: what is done.
        setting: on what.
        textbook: the plain way; None where there is none.
        ours: this project's way.
        textbook_bytes, our_bytes: memory that each takes on top of its input, or of the stored result; None
            where not measured.
        limit: what bounds it on this machine and how near it comes, in words.
    """

    stage: str
    setting: str
    textbook: Timing | None
    ours: Timing
    textbook_bytes: int | None = None
    our_bytes: int | None = None
    limit: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times faster."""
        return self.textbook.median / self.ours.median if self.textbook else None

    def cells(self) -> list[str]:
        """For the Markdown table."""
        memory = _bytes(self.our_bytes)
        if self.textbook_bytes is not None:
            memory = f"{_bytes(self.textbook_bytes)} -> {memory}"
        ratio = f"**{self.ratio:.1f}x**" if self.ratio else ""
        return [self.stage, self.setting, _seconds(self.textbook), _seconds(self.ours), ratio, memory, self.limit]


HEADINGS = ["stage", "on", "textbook, s", "here, s", "faster", "memory", "against the limit"]


def machine(device) -> str:
    """Processor or GPU, threads, versions."""
    import faiss
    import torch

    from vpr.common.device import processor_field, processor_flags

    name = processor_field("model name") or platform.processor() or platform.machine()
    wide = sorted(processor_flags() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16"})
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    return (
        f"{gpu}{name} ({', '.join(wide)}), {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"faiss {faiss.__version__}, Python {platform.python_version()}"
    )


def write_report(folder: Path, rows: list[Row], ceilings: Ceilings, precision: str, device) -> Path:
    """Write benchmark.md and benchmark.json into `folder`, each whole or not at all."""
    about, today = machine(device), datetime.date.today().isoformat()
    lines = [
        f"Measured {today} on {about}; {precision}. Ceilings: {ceilings.line()}.", "",
        "Seconds are medians; in brackets fastest to slowest and number of runs. "
        "Memory is what the work takes at its peak beside its input.", "",
        _line(HEADINGS), _line(["---"] * len(HEADINGS)), *(_line(row.cells()) for row in rows), "",
    ]  # fmt: skip
    content = {
        "date": today, "machine": about, "precision": precision, "ceilings": ceilings.rounded(),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }  # fmt: skip
    with atomic_write(folder / "benchmark.json") as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with atomic_write(folder / "benchmark.md") as path:
        path.write_text("\n".join(lines), encoding="utf-8")
    return folder / "benchmark.md"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _seconds(timing: Timing | None) -> str:
    if timing is None:
        return ""
    spread = f" ({timing.low:.3g}-{timing.high:.3g}, {timing.repeats})" if timing.repeats > 1 else " (1)"
    return f"{timing.median:.3g}{spread}"


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f} MB"
