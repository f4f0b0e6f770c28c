"""Which places a command is about; imports nothing heavy, since `--help` reads its flags."""

from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path

from vpr.common.memory import available_cores
from vpr.common.settings import RUN, TRAINING, all_but, flag, whole
from vpr.data.catalogue import DATASETS

MAX_PIXELS = 500_000_000  # of an image that is read where nobody says otherwise

_places = partial(flag, group="places, images and machine", modes=all_but())


def utm_zone(text: str) -> str:
    """Reads a UTM zone's number and hemisphere, such as 17N."""
    if text[-1:].upper() not in ("N", "S") or not text[:-1].isdecimal() or not 1 <= int(text[:-1]) <= 60:
        raise ValueError(f"found {text!r}, wanted a UTM zone and hemisphere such as 17N")
    return f"{int(text[:-1])}{text[-1].upper()}"


@dataclass(frozen=True)
class PlacesSpec:
    """Which places a command is about. The flags' help says what the fields are."""

    dataset: str = _places(
        MISSING,
        "which places: pittsburgh is pitts30k; toy is drawn on first use; folder: your own images in --root; the "
        "others: docs/datasets.md",
        typed="pittsburgh", choices=DATASETS, kept=TRAINING, on_card=True, tolerated=True, common=True,
    )  # fmt: skip
    root: Path = _places(  # noqa: RUF009
        MISSING,
        "folder with datasets/*.mat and the images (default: the project root; toy: toy_city in it)",
        typed=None, metavar="DIR", kept=RUN, on_card=True, clusters=True, common=True, alters=True,
    )  # fmt: skip
    skip_broken: bool = _places(
        False, "leave out images that cannot be decoded, and say which; decodes all once more",
        name="skipBroken", kept=RUN, on_card=True, clusters=True,
    )  # fmt: skip
    workers: int = _places(
        0,
        "workers that decode images ahead: processes beside a GPU, else threads; 0: none",
        name="threads", typed=min(8, available_cores()), modes=all_but("spec", "import"), type=whole, tolerated=True,
        common=True,
    )  # fmt: skip
    utm_zone: str | None = _places(
        None,
        "UTM zone of the database's metres, such as 17N, where neither images nor dataset tell",
        name="utmZone", group="index and locate", modes=("index", "locate", "serve"), type=utm_zone, metavar="ZONE",
    )  # fmt: skip
    max_pixels: int = MAX_PIXELS  # of an image, with `skip_broken`
