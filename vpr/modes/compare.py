"""--mode=compare: several models on one split, side by side: recall against size, arithmetic and time."""

import argparse
import datetime
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vpr.cli.load import computing, keypoints_of, model_of
from vpr.cli.locating import ask_of
from vpr.cli.options import settle
from vpr.cli.specs import device_of, places_spec, reading, reranking_rule
from vpr.common.device import Device, device_line
from vpr.common.errors import UserError
from vpr.common.files import atomic_write, write_json
from vpr.common.progress import say
from vpr.data.places import PlaceImages, load_places, require_queries
from vpr.evaluation.comparison import Row, measure_model, table
from vpr.report.plots import draw, draw_recall
from vpr.runs.local_projection import projection_for
from vpr.runs.stored import is_exported, stored_flags


def run(options: argparse.Namespace) -> None:
    """Measure all models on the same images; write and print the table."""
    if not options.inputs:
        raise UserError("--mode=compare wants runs or exported files: as in --mode=compare runs/RUN FILE.onnx")
    named = labels(options.inputs)
    each = options_on_one_set(options, list(named))
    device = device_of(options)
    images = load_places(places_spec(each[0]), options.split)
    require_queries(images)
    labelled = zip(each, named.values(), strict=True)
    rows = [row for one, label in labelled for row in measure_one(one, images, label, device)]
    folder = Path(options.runsPath) / f"compare_{options.split}_{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    first = rows[0].evaluation
    about = (
        f"{device_line(device)}; split {first.split} ({first.spec}), {first.queries} queries, "
        f"{first.database_photos} database images"
    )
    text = f"{about}; time: median of single images; protocol: {first.protocol}\n\n{table(rows)}"
    say(text)
    with atomic_write(folder / "comparison.md") as path:
        path.write_text(text, encoding="utf-8")
    write_json(folder / "comparison.json", {"about": about, "rows": [asdict(row) for row in rows]})
    draw(rows, folder / "comparison.png")
    draw_recall(folder / "recall.png", {row.name: row.curve for row in rows}, about)
    say(f"wrote {folder}/comparison.md, .json and .png, and recall.png")


def measure_one(options: argparse.Namespace, images: PlaceImages, label: str, device: Device) -> list[Row]:
    """Recalls and costs of the model that the options of a test name."""
    how = reranking_rule(options)
    loaded, read, ask = model_of(options, device), reading(options, device), ask_of(options)
    model = computing(loaded.model, options, device, len(images.files))
    batch, projection = options.cacheBatchSize, None
    if how and how.takes_local:
        projection = projection_for(loaded, read.of(images.database_files), options.seed, options.localDim, batch)
    keypoints, values = keypoints_of(options, read, None, len(images.files)) if how else None, options.recallValues
    return measure_model(model, images, label, options.run, read, values, batch, ask, projection, keypoints)


def labels(inputs: list[str]) -> dict[str, str]:
    """Each run or file, once, with as much of the end of its path as no other has."""
    paths: dict[Path, str] = {}
    for item in inputs:
        paths.setdefault(Path(item).resolve(), item)
    named = {}
    for path, item in paths.items():
        others = [other.parts for other in paths if other != path]
        length = next(n for n in range(1, len(path.parts) + 1) if all(o[-n:] != path.parts[-n:] for o in others))
        named[item] = str(Path(*path.parts[-length:]))
    return named


def options_on_one_set(options: argparse.Namespace, inputs: list[str]) -> list[argparse.Namespace]:
    """For each model the options of a test, all of the same data set and root.

    These are those that the user typed, else those of the first model that has its own.
    Raises a UserError: a model is missing, or belongs to other images than the first and the user typed neither.
    """
    typed = {name: value for name, value in options.given.items() if name not in ("dataset", "root")}
    stored = {item: _test_options(typed, item, inputs) for item in inputs}
    # Files that were exported before cards held it do not say where their images are.
    own = {item: one for item, one in stored.items() if "root" in stored_flags(Path(item))}
    own = own or {inputs[0]: stored[inputs[0]]}
    (first, chosen), *others = own.items()
    same = {"dataset": options.given.get("dataset", chosen.dataset)}
    roots = [one.root for one in own.values() if one.dataset == same["dataset"]]
    if "root" in options.given or roots:
        same["root"] = options.given.get("root") or roots[0]
    if not {"dataset", "root"} & set(options.given):
        for item, one in others:
            if (one.dataset, Path(one.root).resolve()) != (chosen.dataset, Path(chosen.root).resolve()):
                raise UserError(
                    f"{first} belongs to --dataset={chosen.dataset} in {chosen.root}, {item} to "
                    f"--dataset={one.dataset} in {one.root}: recalls on different images do not compare; "
                    "say by --dataset and --root on which all shall be tested"
                )
    if any(one.skipBroken for one in stored.values()):
        same["skipBroken"] = True
    each = [_test_options({**typed, **same}, item, inputs) for item in inputs]
    for item in inputs:
        if item not in own:
            say(f"{item} does not say where its images are (an older export): tested on those in {each[0].root}")
    return each


def _test_options(typed: dict[str, Any], item: str, inputs: list[str]) -> argparse.Namespace:
    """Those of --mode=test for one model. What only runs obey is not handed to files where there are also runs."""
    mixed = any(not is_exported(Path(other)) for other in inputs)
    left_out = ("precision", "ckpt", "localDim") if mixed and is_exported(Path(item)) else ()
    kept = {name: value for name, value in typed.items() if name not in ("mode", "inputs", *left_out)}
    return settle({**kept, "mode": "test", "resume": item})
