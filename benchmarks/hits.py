"""Scores of the first hits of queries, and which hits are right: what heads are learnt on and tables are made of.

python -m benchmarks.hits --places DIR --weights DIR --out DIR --model fast --seeds 0 1 2
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SETS = ("campus_night", "campus_side_night", "campus_side", "street", "corridor", "tower", "toy")
MODELS = {
    "fast": ["--model=fast", "--weights={}/tf_efficientnet_lite0_imagenet1k.pth"],
    "small": ["--model=small", "--weights={}/tf_efficientnet_lite0_imagenet1k.pth"],
    "alexnet": ["--arch=alexnet", "--weights={}/alexnet_features_torchvision_imagenet1k.pth"],
    "vgg16": ["--arch=vgg16", "--weights={}/vgg16_features_oxford_vd16.pth", "--normalization=caffe"],
}
DEPTH, VERIFIED = 50, 20


@dataclass(frozen=True)
class Place:
    """A set of images with what its pairs have in common, which no model changes."""

    name: str
    options: argparse.Namespace
    inliers: dict[tuple[int, int], tuple[int, int]]


def main(arguments: list[str] | None = None) -> None:
    """Write a file of arrays for each set, model, vocabulary and seed; those that are there are left."""
    options = _parser().parse_args(arguments)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    verifier = Verifier(Path(options.weights) / "xfeat.pth", out / "pairs.json")
    for seed in options.seeds:
        for vocabulary in options.vocabularies:
            for name in options.sets:
                path = out / f"{options.model}-{vocabulary}-{seed}-{name}.npz"
                if path.exists() or (vocabulary == "foreign" and name == options.foreign):
                    continue
                found = dict(scores_of(name, options, seed, vocabulary, verifier))
                np.savez(path, **found)
                verifier.save()
                right = found["plain_right"]
                print(f"{path.stem}: R@1 {100 * right[:, 0].mean():.1f}", file=sys.stderr, flush=True)


class Verifier:
    """Matches of images' keypoints, each pair verified once."""

    def __init__(self, weights: Path, cache: Path) -> None:
        from vpr.retrieval.verification.keypoints import load_network

        self._network, self._kept, self._file = load_network(str(weights)), {}, cache
        self._pairs = (
            {tuple(key): tuple(value) for key, value in json.loads(cache.read_text())} if cache.is_file() else {}
        )

    def save(self) -> None:
        """Keep the pairs for a next run."""
        self._file.write_text(json.dumps([[[str(name) for name in key], value] for key, value in self._pairs.items()]))

    def keypoints(self, file: Path):
        """Of an image's file."""
        from PIL import Image, ImageOps

        if file not in self._kept:
            image = ImageOps.exif_transpose(Image.open(file).convert("RGB"))
            self._kept[file] = self._network.detect(np.ascontiguousarray(np.array(image).transpose(2, 0, 1)))
        return self._kept[file]

    def pair(self, query: Path, hit: Path) -> tuple[int, int]:
        """Inliers and matches."""
        from vpr.retrieval.verification.pairs import verify

        key = str(query), str(hit)
        if key not in self._pairs:
            found = verify(self.keypoints(query), self.keypoints(hit))
            self._pairs[key] = found.inliers, found.matches
        return self._pairs[key]


def scores_of(
    name: str, options: argparse.Namespace, seed: int, vocabulary: str, verifier: Verifier
) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays [M, K] of the hits of a set's queries, plain and with the session's mean."""
    from vpr.cli.descriptors import descriptors_of
    from vpr.cli.load import computing, model_of
    from vpr.cli.options import parse_options
    from vpr.cli.specs import places_spec, reading
    from vpr.common.device import choose_device
    from vpr.common.progress import without_progress
    from vpr.data.places import load_places
    from vpr.retrieval.ask import Ask
    from vpr.retrieval.conditions.centring import MapConditions
    from vpr.retrieval.ranking import search_for
    from vpr.retrieval.rerank import local_scores
    from vpr.retrieval.rules import Reranking
    from vpr.retrieval.split import SplitEngine
    from vpr.retrieval.verification.head import head_of

    def typed(which: str) -> list[str]:
        root = ["--dataset=toy"] if which == "toy" else [f"--root={options.places}/{which}"]
        model = [flag.format(options.weights) for flag in MODELS[options.model]]
        return ["--mode=test", "--split=val", *root, *model, f"--seed={seed}", f"--dataPath={options.out}/{which}"]

    device = choose_device("cpu")
    run = parse_options(typed(name))
    images = load_places(places_spec(run), "val")
    learner = run if vocabulary == "own" else parse_options(typed(options.foreign))
    source = images if vocabulary == "own" else load_places(places_spec(learner), "val")
    with without_progress():
        loaded = model_of(learner, device, database=source)
        computing(loaded.model, run, device, 10_000)
        descriptors = descriptors_of(run, loaded, images, reading(run, device), Reranking(DEPTH, "soft"))
    engine = SplitEngine(descriptors.database, images.places)
    conditions, local, positives = MapConditions(engine, {}), descriptors.local, images.places.positives()
    yield "positives", np.array([len(each) for each in positives])
    for how in ("plain", "session"):
        ask = Ask(conditions="off" if how == "plain" else how)
        answers = search_for(conditions, descriptors.queries, ask, 100, images.places.query_names).answers
        hits = answers.found[:, :DEPTH]
        soft, spatial = (
            np.array([local_scores(n, row, local.queries, local.database, by)[0] for n, row in enumerate(hits)])
            for by in ("soft", "spatial")
        )
        cosines = (1 - answers.distances[:, :DEPTH] ** 2 / 2).astype(float)
        pairs = np.full((*hits.shape, 2), -1)  # of those that are not verified
        for n, row in enumerate(hits):
            ahead = np.argsort(-head_of(False).log_odds({"global": cosines[n], "soft": soft[n]}))[:VERIFIED]
            for rank in {*range(VERIFIED), *ahead.tolist()}:
                pairs[n, rank] = verifier.pair(images.query_files[n], images.database_files[row[rank]])
        yield f"{how}_found", answers.found
        yield f"{how}_right", np.array([np.isin(r, p) for r, p in zip(answers.found, positives, strict=True)])
        yield f"{how}_global", 1 - answers.distances**2 / 2
        yield f"{how}_soft", soft
        yield f"{how}_spatial", spatial
        yield f"{how}_inliers", pairs[..., 0]
        yield f"{how}_matches", pairs[..., 1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--places", required=True, help="folder of the sets")
    parser.add_argument("--weights", required=True, help="folder of weights")
    parser.add_argument("--out", required=True, help="folder of what is written")
    parser.add_argument("--model", choices=MODELS, default="fast")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS[:-1]))
    parser.add_argument("--vocabularies", nargs="+", choices=("own", "foreign"), default=["own", "foreign"])
    parser.add_argument("--foreign", choices=SETS, default="street", help="the set whose vocabulary is the foreign one")
    return parser


if __name__ == "__main__":
    main()
