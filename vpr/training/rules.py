"""The rules of a training: how long, how fast, on which tuples."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vpr.common.settings import RESUMED, RUN, TRAINING, count, flag, number, quantity, whole, whole_number
from vpr.training.choices import OBJECTIVES, OPTIMIZERS, SCHEDULES
from vpr.training.recipes import RECIPES
from vpr.training.views.choices import VIEWS

if TYPE_CHECKING:  # `--help` reads this file, and takes no time
    import numpy as np

# A pruned or imported run is trained by the flags that it was made with.
_rule = partial(flag, group="train", modes=("train", "distill", "prune", "import"), kept=TRAINING)
_kept = partial(_rule, kept=RUN)
_added = partial(_rule, added=True)
_tuple = partial(_rule, modes=("train", "prune", "import"))  # not read where a teacher says what is alike
_place = partial(_tuple, added=True)
_decay = number(lambda value: 0 <= value < 1, "a number from 0 to below 1")


@dataclass(frozen=True)
class TrainingRules:
    """What a training follows; defaults are the paper's. The flags' help says what the fields are."""

    recipe: str = _added(
        "paper", "flags by which others trained, beside which typed flags win", choices=RECIPES, modes=("train",)
    )
    epochs: int = _kept(30, "last epoch", name="nEpochs", type=count, tolerated=True)
    batch_size: int = _rule(
        4, "queries in a step; those without a violating negative are skipped; multi-similarity: places in a step; "
        "distill: images in a step", name="batchSize", type=count, tolerated=True,
    )  # fmt: skip
    refresh_every: int = _tuple(
        1000,
        "queries after which all descriptors are computed anew; doubles at each drop of the learning rate; 0: once an "
        "epoch",
        name="cacheRefreshRate", type=whole, tolerated=True,
    )  # fmt: skip
    optimizer: str = _rule("SGD", "optimiser", name="optim", choices=OPTIMIZERS, tolerated=True)
    lr: float = _rule(
        1e-3, "learning rate (default: 0.001; pitts250k, tokyo247, tokyotm 0.0001)",
        typed=None, type=quantity, tolerated=True,
    )  # fmt: skip
    lr_step: int = _rule(5, "epochs between drops of the learning rate", name="lrStep", type=count, tolerated=True)
    lr_gamma: float = _rule(0.5, "factor of each drop", name="lrGamma", type=quantity, tolerated=True)
    weight_decay: float = _rule(1e-3, "weight decay", name="weightDecay", type=quantity, tolerated=True)
    momentum: float = _rule(0.9, "momentum of SGD", type=quantity, tolerated=True)
    schedule: str = _added(
        "step", "how the learning rate goes on; step: drops at equal intervals; linear: falls from step to step to 0.2 "
        "of it in the last epoch; cosine: likewise to 0", choices=SCHEDULES,
    )  # fmt: skip
    warmup: int = _added(0, "first steps in which the learning rate rises to what it is", type=whole)
    backbone_lr: float = _added(
        1.0, "factor of the learning rate for the backbone's layers", name="backboneLr", type=quantity
    )
    clip: float = _added(0.0, "norm to which a step's gradient is shortened if it is longer; 0: none", type=quantity)
    ema: float = _added(
        0.0, "decay, from step to step, of the mean of the weights that is validated and kept; 0: the weights are",
        type=_decay,
    )  # fmt: skip
    gradient_cache: int = _kept(
        0, "images of a step whose layers are in memory at once: each goes through the layers twice; 0: all",
        name="gradientCache", type=whole, added=True, alters=True,
    )  # fmt: skip
    loss: str = _place(
        "triplet", "what is trained for; triplet: the paper's ranking loss; multi-similarity: batches of places, which "
        "need no queries; distill: what --teacher finds alike", choices=OBJECTIVES,
    )  # fmt: skip
    teacher: str | None = _kept(
        None, "the model to learn from: a run's folder, or an exported file", added=True, alters=True, metavar="PATH"
    )
    images_per_place: int = _place(
        4, "random images of each place in a step, at most", name="imagesPerPlace", type=whole_number(2)
    )
    place_distance: float = _place(
        25.0, "metres between the centres of two places, at least", name="placeDistance", type=quantity
    )
    place_radius: float = _place(
        10.0, "metres from its centre within which images are of a place", name="placeRadius", type=quantity
    )
    place_headings: int = _place(
        0, "sectors of headings, each of which is a place of its own at a spot; headings are those that names tell; 0: "
        "all are one place", name="placeHeadings", type=whole,
    )  # fmt: skip
    hard_every: int = _place(
        0, "epochs after which places are described anew, to make batches of those that look alike; 0: random batches",
        name="hardEvery", type=whole,
    )  # fmt: skip
    alike: bool = _place(
        False, "of a place only images that look alike: with a random one those of other positions that are most like "
        "it, by descriptors of --hardEvery",
    )  # fmt: skip
    place_folders: tuple[str, ...] | None = _place(
        None, "train on the places of these folders, not the data set's: GSV-Cities', or a folder for each place",
        name="placeFolders", nargs="+", metavar="DIR", kept=RUN, alters=True,
    )  # fmt: skip
    walk: str | None = _place(
        None, "the database images of train are frames of walks, without positions: five in a row are a place; again: "
        "places of another visit that the model, as it starts, takes for the same are joined",
        choices=("once", "again"), nargs="?", const="once",
    )  # fmt: skip
    views: tuple[str, ...] | None = _place(
        None, "train on views of the images too, at random: as other light, weather or cameras would change them",
        nargs="+", choices=VIEWS, metavar="NAME",
    )  # fmt: skip
    cached_views: int = _place(
        2, "random views of each image by each name of --views; --trunkCache keeps them", name="cachedViews", type=count
    )
    margin: float = _tuple(
        0.1, "margin of the triplet loss, in squared descriptor distance", type=quantity, tolerated=True
    )
    negatives: int = _tuple(10, "hard negatives in a tuple, at most", name="nNeg", type=count)
    negative_sample: int = _tuple(
        1000, "random negatives among which the hard ones are sought", name="nNegSample", type=count
    )
    eval_every: int = _kept(1, "epochs between validations", name="evalEvery", type=count, alters=True, tolerated=True)
    patience: int = _kept(
        10, "epochs without a better validation after which training stops; 0: never",
        type=whole, alters=True, tolerated=True,
    )  # fmt: skip
    best_by: str = _added(
        "val", "whose recall chooses the best epoch and counts for --patience; val: that of the run's own split; NAME: "
        "of that folder of --valSets; all: the mean", name="bestBy", modes=("train", "distill"), metavar="NAME",
    )  # fmt: skip
    recall_values: tuple[int, ...] = flag(
        (1, 5, 10, 20), "the N of Recall@N", name="recallValues", group="run and recalls", type=count,
        modes=("train", "distill", "test", "prune", "compare", "import"), nargs="+", metavar="N", kept=RESUMED,
    )  # fmt: skip
    seed: int = 123  # of all random choices

    def learning_rate(self, epoch: float, steps: int = 0) -> float:
        """The rate in an epoch (from 1; 1.5 is its middle), after so many steps of the whole training."""
        rate = SCHEDULES[self.schedule](epoch, self.lr, self.lr_step, self.lr_gamma, self.epochs)
        return rate * min(1.0, (steps + 1) / self.warmup) if self.warmup else rate

    def places_apart(self, hit: float) -> float:
        """Metres between the centres of two places of a batch, at least, where images within `hit` metres match: no
        image of one may be a hit for the other."""
        return hit + 2 * self.place_radius

    def query_blocks(self, usable: "np.ndarray", epoch: int) -> "list[np.ndarray]":
        """A fresh permutation of the queries, cut where descriptors are refreshed.

        The interval doubles with each drop of the learning rate: the slower the model changes, the longer
        its descriptors stay true (the original release does so).
        """
        import numpy as np

        order = np.random.default_rng([self.seed, epoch]).permutation(usable)
        if self.refresh_every == 0:
            return [order]
        interval = self.refresh_every * 2 ** ((epoch - 1) // self.lr_step)
        return [order[start : start + interval] for start in range(0, len(order), interval)]
