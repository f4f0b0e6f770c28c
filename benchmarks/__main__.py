"""python -m benchmarks: each stage against the textbook way and against the machine's limit, in one run."""

import argparse
import functools
import sys
import tempfile
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Measure, write benchmark.md and benchmark.json, print the table."""
    options = _parser().parse_args(arguments)
    import torch

    from benchmarks.ceilings import measure_ceilings
    from benchmarks.report import write_report
    from benchmarks.stages import Bench
    from vpr.common.device import compute_dtype, precision_name
    from vpr.common.errors import UserError
    from vpr.common.memory import keep_large_blocks

    keep_large_blocks()
    if options.engines:
        from benchmarks.backbones import engines_table

        for line in engines_table(options.repeats):
            print(line, flush=True)
        return 0
    device = torch.device(options.device)
    dtype = compute_dtype(options.precision, device)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else None
    folder = tempfile.TemporaryDirectory()
    try:
        chosen = _chosen(options)
        dataset, root = _places(options.root)
        ceilings = measure_ceilings(device, dtype, synchronize)
        print(ceilings.line(), flush=True)
        bench = Bench(
            device, ceilings, _weights(options, Path(folder.name)), _images(root), dataset, str(root),
            options.repeats, options.precision,
        )  # fmt: skip
        rows = []
        for name in chosen:
            found = stages(options.full)[name](bench)
            rows += found if isinstance(found, list) else [found]
            for row in found if isinstance(found, list) else [found]:
                print(*row.cells(), sep=" | ", flush=True)
            written = write_report(Path(options.out), rows, ceilings, precision_name(dtype), device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        folder.cleanup()
    print(f"\n{written.read_text(encoding='utf-8')}\nwrote {written} and {written.with_suffix('.json').name}")
    return 0


def stages(full: bool) -> dict:
    """What is measured, by name."""
    from benchmarks import products, programs, training
    from benchmarks import stages as stage
    from benchmarks.place_steps import place_steps
    from benchmarks.reranking import reranking
    from benchmarks.trunk import trunk
    from benchmarks.verification import conditions, verification

    chosen = {
        "layer": lambda bench: stage.layer(bench, backward=False),
        "layer-backward": lambda bench: stage.layer(bench, backward=True),
        "decoding": stage.decoding,
        "extraction-alexnet": lambda bench: stage.extraction(bench, "alexnet", None, 96, 24),
        "trunk-alexnet-320x180": lambda bench: trunk(bench, "alexnet", (180, 320), 24),
        "trunk-alexnet-320x320": lambda bench: trunk(bench, "alexnet", (320, 320), 24),
        "mining": lambda bench: stage.mining(bench, plain_queries=10),
        "search": lambda bench: stage.search(bench, 10_000, 500),
        "conversion": lambda bench: products.conversion(bench, 2000),
        "search-product": lambda bench: products.search_beside_product(bench, 5000, 500),
        "search-product-1": lambda bench: products.search_beside_product(bench, 5000, 1),
        "mining-product": products.mining_beside_product,
        "reranking": reranking,
        "verification": verification,
        "conditions": conditions,
        "epoch-alexnet": lambda bench: training.epoch(bench, "alexnet", None if full else 40),
        "places-alexnet": lambda bench: place_steps(bench, "alexnet"),
    }
    for arch, counts in {"tf_efficientnet_lite0": (240, 96), "alexnet": (240, 96), "vgg16": (24, 8)}.items():
        for size, count in zip(((320, 320), (480, 640)), counts, strict=True):
            name = f"way-in-{arch.removeprefix('tf_efficientnet_')}-{size[1]}x{size[0]}"
            chosen[name] = functools.partial(programs.way_in, arch=arch, size=size, count=count)
    chosen["start-up"] = programs.start_up
    if full:
        for arch, images in {"tf_efficientnet_lite0": 1892, "alexnet": 1892, "vgg16": 400}.items():
            name = f"whole-test-{arch.removeprefix('tf_efficientnet_')}"
            chosen[name] = functools.partial(programs.whole_test, arch=arch, images=images)
        chosen["trunk-vgg16-320x240"] = lambda bench: trunk(bench, "vgg16", (240, 320), 4)
        chosen["trunk-vgg16-640x480"] = lambda bench: trunk(bench, "vgg16", (480, 640), 4)
        chosen["extraction-vgg16"] = lambda bench: stage.extraction(bench, "vgg16", (480, 640), 12, 4)
        chosen["places-vgg16"] = lambda bench: place_steps(bench, "vgg16")
        chosen["epoch-vgg16"] = lambda bench: training.epoch(bench, "vgg16", 40)
    return chosen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="also the long rows: VGG16, whole epochs")
    parser.add_argument("--engines", action="store_true", help="only backbones by each inference engine (--backend)")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="only these stages")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--root", help="places in Pittsburgh's layout with a train split (default: the toy city)")
    parser.add_argument("--alexnet", metavar="FILE", help="weights of AlexNet (default: random)")
    parser.add_argument("--vgg16", metavar="FILE", help="weights of VGG16 (default: random)")
    parser.add_argument("--out", default="benchmarks/out", help="folder of benchmark.md and benchmark.json")
    return parser


def _chosen(options: argparse.Namespace) -> list[str]:
    from vpr.common.errors import UserError

    known = list(stages(options.full))
    unknown = [name for name in options.only or () if name not in known]
    if unknown:
        raise UserError(f"--only: no stage {', '.join(unknown)}; there are {', '.join(known)} (some need --full)")
    return options.only or known


def _places(root: str | None) -> tuple[str, Path]:
    """Dataset and folder, as main.py takes them; the toy city is drawn if need be."""
    from vpr.cli.options import default_root
    from vpr.data.places import draw_toy_city

    if root:
        return "pittsburgh", Path(root)
    draw_toy_city(default_root() / "toy_city")
    return "toy", default_root() / "toy_city"


def _weights(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Weights files of both backbones. Random ones take as long as real ones, and are as frozen."""
    import torch

    from vpr.models.backbones.base import build_backbone

    files = {}
    for arch in ("alexnet", "vgg16"):
        files[arch] = getattr(options, arch) or str(folder / f"{arch}.pth")
        if not getattr(options, arch):
            encoder = build_backbone(arch)
            encoder.initialize(0)
            torch.save(encoder.state_dict(), files[arch])
    return files


def _images(root: Path) -> list[Path]:
    from vpr.common.errors import UserError

    images = sorted(root.glob("[0-9]*/*.jpg"))
    if len(images) < 100:
        raise UserError(f"{root} has {len(images)} images in numbered folders, 100 are wanted: name places with --root")
    return images


if __name__ == "__main__":
    sys.exit(main())
