"""Recipes of training side by side: each learnt on a set's train split, measured on the val splits of all sets.

python -m benchmarks.recipes --places DIR --weights DIR --out DIR --learn street --recipes shelf adapt
python -m benchmarks.recipes --out DIR --table
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.hits import DEPTH, MODELS, SETS

LISTED = (1, 5, 10, 20)
SHELF = "shelf"
# Flags of a recipe, the mode first; `shelf` is the model as it was downloaded, with clusters of the train split.
RECIPES = {
    SHELF: ["cluster"],
    "adapt": ["adapt"],
    "adapt, 512-D": ["adapt"],
    "triplet": ["train", "--nEpochs=3", "--patience=0"],
    "places": ["train", "--recipe=adapt", "--nEpochs=20", "--patience=0", "--warmup=5"],
    "places, backbone": [
        "train", "--loss=multi-similarity", "--batchSize=24", "--optim=ADAMW", "--lr=1e-4", "--schedule=cosine",
        "--nEpochs=5", "--patience=0",
    ],
    "distill": ["distill", "--nEpochs=3", "--patience=0"],  # with a teacher, which has clusters of the same images
}  # fmt: skip
TEACHER = "vgg16"


MEASURED = {"adapt, 512-D": ["--pcaDim=512"]}  # flags of the model that is measured


def main(arguments: list[str] | None = None) -> None:
    """Train and measure what is not in the folder yet, or print the table of what is."""
    options = _parser().parse_args(arguments)
    out = Path(options.out)
    if options.table:
        return print_table([json.loads(file.read_text()) for file in sorted(out.glob("*.json"))])
    out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for recipe in options.recipes:
            file = out / f"{options.model}-{options.learn}-{recipe.replace(', ', '_')}-{seed}.json"
            if not file.exists():
                found = measured(options, recipe, seed, out / file.stem)
                file.write_text(json.dumps(found, indent=1))
    return None


def measured(options: argparse.Namespace, recipe: str, seed: int, folder: Path) -> dict[str, Any]:
    """What a recipe makes, in seconds, and its recalls in percent by set and stage."""
    model = [flag.format(options.weights) for flag in MODELS[options.model]]
    same = [*model, f"--seed={seed}", f"--dataPath={folder}/centroids", f"--runsPath={folder}/runs"]
    learner = [f"--root={options.places}/{options.learn}", *same]
    mode, *flags = RECIPES[recipe]
    if recipe == "distill":
        flags = [*flags, f"--teacher={_teacher(options, seed)}"]
    seconds = {}
    for words in (["cluster", *learner], [] if recipe == SHELF else [mode, *learner, *flags]):
        if words:
            started = time.monotonic()
            run(words)
            seconds[words[0]] = round(time.monotonic() - started, 1)
    source = [f"--resume={newest}"] if (newest := _newest(folder / "runs")) else []
    found = {
        name: recalls(options, name, [*learner, *MEASURED.get(recipe, [])], source)
        for name in options.sets
        if (Path(options.places) / name).is_dir()
    }
    head = {
        "model": options.model, "learnt on": options.learn, "recipe": recipe, "seed": seed, "flags": RECIPES[recipe][1:]
    }  # fmt: skip
    return {**head, "seconds": seconds, "sets": found}


def _teacher(options: argparse.Namespace, seed: int) -> Path:
    """The exported file of the teacher, with clusters of the train split; made once."""
    file = Path(options.out) / f"{TEACHER}-{options.learn}-{seed}.onnx"
    if not file.exists():
        model = [flag.format(options.weights) for flag in MODELS[TEACHER]]
        same = [
            *model,
            f"--seed={seed}",
            f"--root={options.places}/{options.learn}",
            f"--dataPath={file.with_suffix('')}",
        ]
        run(["cluster", *same])
        run(["export", *same, f"--out={file}"])
    return file


def run(words: list[str]) -> None:
    """A command of the program, in this process."""
    from vpr.cli.app import main as program

    if status := program(words):
        raise SystemExit(status)


def recalls(options: argparse.Namespace, name: str, learner: list[str], source: list[str]) -> dict[str, Any]:
    """Recalls in percent on a val split: single images and with the session's mean, each searched and re-ranked."""
    from vpr.cli.descriptors import descriptors_of
    from vpr.cli.load import computing, model_of
    from vpr.cli.options import parse_options
    from vpr.cli.specs import places_spec, reading
    from vpr.common.device import choose_device
    from vpr.common.progress import without_progress
    from vpr.data.places import load_places
    from vpr.evaluation.evaluate import measure_each
    from vpr.retrieval.ask import Ask
    from vpr.retrieval.rules import Reranking

    device, ask = choose_device("cpu"), Ask(rerank=DEPTH)
    which = parse_options(["test", "--split=val", f"--root={options.places}/{name}"])
    images = load_places(places_spec(which), "val")
    typed = parse_options(["test", "--split=val", *(source or learner)])
    with without_progress():
        loaded = model_of(typed, device)
        computing(loaded.model, typed, device, 10_000)
        found = descriptors_of(which, loaded, images, reading(which, device), Reranking(DEPTH, "head"))
    rows: dict[str, Any] = {"model": loaded.model.name, "queries": len(images.query_files)}
    for conditions in ("off", "session"):
        stages = list(measure_each(found, loaded.model, images, LISTED, Ask(rerank=ask.rerank, conditions=conditions)))
        for label, (evaluation, _) in zip(("first", "re-ranked"), stages[-2:], strict=True):
            rows[f"{conditions} {label}"] = [100 * evaluation.recalls[n] for n in LISTED]
    return rows


def print_table(found: list[dict[str, Any]]) -> None:
    """Means over seeds, with the spread of R@1 in brackets."""
    runs = defaultdict(list)
    for each in found:
        runs[each["model"], each["learnt on"], each["recipe"]].append(each)
    for (model, learnt_on, recipe), mine in sorted(runs.items()):
        seconds = {name: max(each["seconds"].get(name, 0) for each in mine) for name in mine[0]["seconds"]}
        print(
            f"\n{model}, learnt on {learnt_on}, {recipe}; seeds {[each['seed'] for each in mine]}; seconds {seconds}\n"
        )
        print("| set | first | with the session's mean | re-ranked | both |\n|---|---|---|---|---|")
        for name in mine[0]["sets"]:
            cells = [
                _cell([each["sets"][name][f"{conditions} {label}"] for each in mine])
                for label in ("first", "re-ranked")
                for conditions in ("off", "session")
            ]
            print(f"| {name} | {' | '.join(cells)} |")


def _cell(values: list[list[float]]) -> str:
    first = [value[0] for value in values]
    means = "/".join(f"{sum(column) / len(column):.1f}" for column in zip(*values, strict=True))
    return f"{means} ({min(first):.1f} to {max(first):.1f})"


def _newest(runs: Path) -> Path | None:
    """The run that a recipe made; None of those that make none."""
    found = sorted(file.parent for file in runs.glob("*/flags.json"))
    return found[-1] if found else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, help="folder of what is made and measured")
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.add_argument("--places", help="folder of the sets")
    parser.add_argument("--weights", help="folder of weights")
    parser.add_argument("--model", choices=MODELS, default="fast")
    parser.add_argument("--learn", choices=("street", "tower"), default="street")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS[:-1]))
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
