"""Each data set in one entry: its specs, the UTM zone of its metres, its protocol, and what its images ask for.

Imports nothing heavy: the command line reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# How hits are counted: see `Places.protocol`.
PLAIN, OTHER_TIME, PANORAMA = "plain", "other_time", "panorama"


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set beside its specs.

    Attributes:
        specs: which spec in datasets/ each split is, without .mat.
        zone: UTM zone of its metres, None if unknown.
        protocol: which hits count in a split without time stamps; with them it is `other_time`.
        lr: the default learning rate.
        database_folders: below the root, where the database images lie: the first that has most of them.
        query_folders: likewise of the queries, which may also lie among the database where they are database images.
        database_ending: of all database images' files where those that the spec names are not there.
        query_longest_side: pixels, to which larger queries are shrunk without --imageSize; None keeps their own size.
    """

    specs: Mapping[str, str]
    zone: str | None = None
    protocol: str = PLAIN
    lr: float = 0.001
    database_folders: tuple[str, ...] = ("", "images")  # Pittsburgh's own, that of the MATLAB release
    query_folders: tuple[str, ...] = ("queries_real", "queries", "query")
    database_ending: str | None = None
    query_longest_side: int | None = None


_PITTS30K = {split: f"pitts30k_{split}" for split in ("train", "val", "test")}
_PITTS250K = {split: f"pitts250k_{split}" for split in ("train", "val", "test")}
_ALL_PITTS250K = {f"{split}250k": spec for split, spec in _PITTS250K.items()}
_TOKYO_TM = {"train": "tokyoTM_train", "val": "tokyoTM_val"}

DATASETS = {
    "pittsburgh": Dataset({**_PITTS30K, **_ALL_PITTS250K}, zone="17N"),
    "pitts250k": Dataset({**_PITTS250K, **_ALL_PITTS250K}, zone="17N", lr=0.0001),
    # A test set, whose training set is Tokyo Time Machine. Its database is given out as .png; its queries, of several
    # megapixels, are tested at 640 pixels as in the paper; trained with demo.m's rate.
    "tokyo247": Dataset(
        {**_TOKYO_TM, "test": "tokyo247"},
        zone="54N",
        protocol=PANORAMA,
        lr=0.0001,
        database_folders=("", "images", "database_gsv_vga"),
        query_folders=("queries_real", "queries", "query", "247query_subset_v2"),
        database_ending=".png",
        query_longest_side=640,
    ),
    "tokyotm": Dataset(_TOKYO_TM, zone="54N", protocol=OTHER_TIME, lr=0.0001),
    "toy": Dataset({split: f"toy_{split}" for split in ("train", "val", "test")}),
    "folder": Dataset({}),  # own images, whatever they are
}
