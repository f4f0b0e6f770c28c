"""Each data set in one entry: its specs or folders, its tolerance and protocol, and what its images ask for.

Imports nothing heavy: the command line reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# How hits are counted: see `Places.protocol`.
PLAIN, OTHER_TIME, PANORAMA = "plain", "other_time", "panorama"
QUERIES_IN_DATABASE = "queries in the database"  # which images are looked up in which
# How a data set says which images there are and which of them match.
MAT = "mat"  # dbStruct files, Pittsburgh's
OWN = "own"  # a folder of own images
UTM = "utm"  # folders of images with @easting@northing@ in their names; metres
FRAMES = "frames"  # two films of one route; frames
PAIRS = "pairs"  # two folders with the same names; each query has one image
CITIES = "cities"  # Mapillary's tables, a folder for each city; metres


@dataclass(frozen=True)
class Role:
    """Where the images of a split may lie."""

    database: str  # their folder below the root
    queries: str  # likewise
    direction: str = QUERIES_IN_DATABASE  # which images are looked up in which, where the folders' names say so


@dataclass(frozen=True)
class Split:
    """A split of a data set that has no .mat files."""

    roles: tuple[Role, ...] = ()  # where its images may lie; the first whose folders are there is taken
    cities: tuple[str, ...] = ()  # that it is made of, of a set with a folder for each city
    official: bool = False  # of such a set, whether only queries of the subtask `all` that have a positive are asked
    # How many database images and queries publications have, where a source says so.
    published: tuple[int, int] | None = None


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set beside its specs."""

    specs: Mapping[str, str]  # which spec in datasets/ each split is, without .mat; none where the layout is another
    zone: str | None = None  # UTM zone of its metres, None if unknown
    protocol: str = PLAIN  # which hits count in a split without time stamps; with them it is `other_time`
    lr: float = 0.001  # the default learning rate
    # Below the root, where the database images lie: the first that has most of them.
    database_folders: tuple[str, ...] = ("", "images")  # Pittsburgh's own, that of the MATLAB release
    # Likewise of the queries, which may also lie among the database where they are database images.
    query_folders: tuple[str, ...] = ("queries_real", "queries", "query")
    database_ending: str | None = None  # of all database images' files where those that the spec names are not there
    # Pixels, to which larger queries are shrunk without --imageSize; None keeps their own size.
    query_longest_side: int | None = None
    layout: str = MAT  # how it says which images there are and which of them match
    splits: Mapping[str, Split] = field(default_factory=dict)  # where the layout has no .mat files
    tolerance: int = 0  # a hit is right within so many frames, of a set of frames
    every: int = 1  # each query of a set of frames is so many database frames behind the one before


_PITTS30K = {split: f"pitts30k_{split}" for split in ("train", "val", "test")}
_PITTS250K = {split: f"pitts250k_{split}" for split in ("train", "val", "test")}
_ALL_PITTS250K = {f"{split}250k": spec for split, spec in _PITTS250K.items()}
_TOKYO_TM = {"train": "tokyoTM_train", "val": "tokyoTM_val"}

_MSLS_TRAIN = (
    "trondheim", "london", "boston", "melbourne", "amsterdam", "helsinki", "tokyo", "toronto", "saopaulo", "moscow",
    "zurich", "paris", "bangkok", "budapest", "austin", "berlin", "ottawa", "phoenix", "goa", "amman", "nairobi",
    "manila",
)  # fmt: skip
_MSLS_TEST = ("miami", "athens", "buenosaires", "stockholm", "bengaluru", "kampala")
_TEST = Role("images/test/database", "images/test/queries")
# Folders that do not tell the seasons.
_UNKNOWN_SEASONS = Role("images/test/database", "images/test/queries", "seasons as whoever made the folders chose")
_WINTER_IN_SUMMER = Role("summer", "winter", "winter queries in summer")
_SUMMER_IN_WINTER = Role("ref", "query", "summer queries in winter")
_OLD_IN_NEW = Role("new", "old", "historical queries in today's images")


def _nordland(role: Role, tolerance: int, every: int, published: tuple[int, int]) -> Dataset:
    split = Split((role, _UNKNOWN_SEASONS), published=published)
    return Dataset({}, layout=FRAMES, tolerance=tolerance, every=every, splits={"test": split})


def _svox(part: str, queries: str) -> Split:
    names = ("gallery", "database")
    return Split(tuple(Role(f"images/{part}/{name}", f"images/{part}/{queries}") for name in names))


_SVOX = {part: _svox(part, "queries") for part in ("train", "val", "test")}
_SVOX |= {weather: _svox("test", f"queries_{weather}") for weather in ("night", "overcast", "rain", "snow", "sun")}


def _sfxl(part: str, queries: str) -> Split:
    parts = [f"{top}{part}" for top in ("", "processed/", "images/")]
    return Split(tuple(Role(f"{folder}/database", f"{folder}/{queries}") for folder in parts))


_SFXL = {
    "val": _sfxl("val", "queries"), "test_v1": _sfxl("test", "queries_v1"), "test_v2": _sfxl("test", "queries_v2"),
    "night": _sfxl("test", "queries_night"), "occlusion": _sfxl("test", "queries_occlusion"),
}  # fmt: skip

DATASETS = {
    "pittsburgh": Dataset({**_PITTS30K, **_ALL_PITTS250K}, zone="17N"),
    "pitts250k": Dataset({**_PITTS250K, **_ALL_PITTS250K}, zone="17N", lr=0.0001),
    # A test set, whose training set is Tokyo Time Machine. Its database is given out as .png; its queries, of several
    # megapixels, are tested at 640 pixels as in the paper; trained with demo.m's rate.
    "tokyo247": Dataset(
        {**_TOKYO_TM, "test": "tokyo247"}, zone="54N", protocol=PANORAMA, lr=0.0001,
        database_folders=("", "images", "database_gsv_vga"), database_ending=".png",
        query_folders=("queries_real", "queries", "query", "247query_subset_v2"), query_longest_side=640,
    ),
    "tokyotm": Dataset(_TOKYO_TM, zone="54N", protocol=OTHER_TIME, lr=0.0001),
    "toy": Dataset({split: f"toy_{split}" for split in ("train", "val", "test")}),
    "folder": Dataset({}, layout=OWN),  # own images, whatever they are
    "msls": Dataset({}, layout=CITIES, splits={
        "train": Split(cities=_MSLS_TRAIN),
        "val": Split(cities=("cph", "sf"), official=True, published=(18_871, 740)),
        "val_all": Split(cities=("cph", "sf")),
        "test": Split(cities=_MSLS_TEST, official=True),
    }),
    # The three published protocols of one film, named by the number of queries.
    "nordland27592": _nordland(_WINTER_IN_SUMMER, tolerance=10, every=1, published=(27_592, 27_592)),
    "nordland2760": _nordland(_SUMMER_IN_WINTER, tolerance=1, every=10, published=(27_592, 2_760)),
    "nordland3450": _nordland(_WINTER_IN_SUMMER, tolerance=2, every=1, published=(3_450, 3_450)),
    "sped": Dataset({}, layout=PAIRS, splits={"test": Split((_TEST, Role("ref", "query")), published=(607, 607))}),
    "amstertime": Dataset({}, layout=PAIRS, splits={"test": Split((_TEST, _OLD_IN_NEW))}),
    "svox": Dataset({}, layout=UTM, splits=_SVOX),
    "stlucia": Dataset({}, layout=UTM, splits={"test": Split((_TEST,))}),
    "eynsham": Dataset({}, layout=UTM, splits={"test": Split((_TEST,))}),
    "sfxl": Dataset({}, layout=UTM, splits=_SFXL),
}  # fmt: skip


def splits_of(dataset: Dataset) -> tuple[str, ...]:
    """The splits that a data set has; a folder of own images may have any of train, val and test."""
    return ("train", "val", "test") if dataset.layout == OWN else (*dataset.specs, *dataset.splits)
