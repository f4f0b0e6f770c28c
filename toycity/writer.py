"""Writes the toy city in Pittsburgh's layout: JPEGs, query JPEGs and one dbStruct `.mat` per split."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from toycity.camera import Camera
from toycity.city import SPLITS, build_quarter, generator
from toycity.conditions import Conditions, Difficulty, develop, draw_conditions, survey_conditions
from toycity.render import render
from toycity.streets import survey_stations
from toycity.traffic import scatter_traffic
from toycity.viewpoints import HEADINGS, draw_query_camera, survey_camera
from vpr.common.errors import UserError
from vpr.common.memory import available_cores

VERSION = 3  # raise when the pictures or the layout change, so that older cities are drawn anew
SEED = 2016
PANORAMAS = 80
# Many to learn from: they differ in light, weather and traffic, which is what training is to see through.
QUERIES = {"train": 480, "val": 160, "test": 240}
DESCRIPTION_FILE = "toy_city.json"
ROLL_MARGIN = 6  # pixels drawn beyond the frame and cut off after the roll


def is_current(folder: Path, seed: int = SEED) -> bool:
    """Whether `folder` holds a toy city of this VERSION and seed."""
    try:
        description = json.loads((Path(folder) / DESCRIPTION_FILE).read_text())
    except (OSError, ValueError):
        return False
    return (description.get("version"), description.get("seed")) == (VERSION, seed)


def make_toy_city(
    folder: Path,
    seed: int = SEED,
    progress: Callable[..., Iterable] | None = None,
    *,
    panoramas: int = PANORAMAS,
    queries: int | None = None,
    size: tuple[int, int] = (160, 120),
    difficulty: Difficulty | None = None,
) -> None:
    """Draw three quarters and their specs into `folder`, all or nothing, on all cores that this process may use.

    Args:
        folder: is created; an older toy city in it is replaced.
        seed: everything drawn follows from it.
        progress: called as progress(iterable, total=..., description=...), yields the iterable's items.
        panoramas: per quarter; a panorama has 8 images.
        queries: per quarter; None for QUERIES.
        size: of the pictures, pixels (width, height).
        difficulty: strength of the nuisances in the queries.

    Raises:
        UserError: `folder` holds something that is not a toy city.
    """
    folder = Path(folder).resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / DESCRIPTION_FILE).is_file():
        raise UserError(f"{folder} holds files that are not a toy city: name an empty or new folder with --root")
    counts = QUERIES if queries is None else dict.fromkeys(SPLITS, queries)
    work = folder.with_name(f"{folder.name}.drawing-{os.getpid()}")
    work.mkdir(parents=True)
    try:
        steps = _draw_all(work, seed, panoramas, counts, size, difficulty or Difficulty())
        total = len(SPLITS) * panoramas + sum(counts.values())
        for _ in progress(steps, total=total, description="drawing places") if progress else steps:
            pass
        _put_in_place(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # whatever is left of it after a failure


def _put_in_place(work: Path, folder: Path) -> None:
    if folder.exists():
        old = work / "replaced"
        folder.rename(old)
        shutil.rmtree(old)
    work.rename(folder)


def _draw_all(
    folder: Path, seed: int, panoramas: int, counts: dict[str, int], size: tuple[int, int], difficulty: Difficulty
) -> Iterator[None]:
    """Draw panorama after panorama and query after query, yielding after each; specs follow the pictures."""
    (folder / "datasets").mkdir()
    headings = {}
    for number, split in enumerate(SPLITS):
        (folder / f"{number:03d}").mkdir()
        (folder / "queries_real" / f"{number:03d}").mkdir(parents=True)
        painter = Painter(folder, seed, number, panoramas, size, difficulty)
        # Names are shuffled: the lists of real sets have no useful order either.
        order = generator(seed, number, "order").permutation(counts[split]).tolist()
        asked = []
        with multiprocessing.Pool(available_cores(), _keep_painter, (painter,)) as pool:
            for _ in pool.imap(_draw_panorama, range(panoramas)):
                yield
            for answer in pool.imap(_draw_query, order):
                asked.append(answer)
                yield
        database = [painter.database_name(index, yaw) for index in range(panoramas) for yaw in range(1, HEADINGS + 1)]
        positions = np.repeat(painter.stations, HEADINGS, axis=0) + painter.quarter.origin
        query_positions = np.array([position for position, _ in asked]) + painter.quarter.origin
        queries = [painter.query_name(index) for index in order]
        # As NetVLAD's release has it, types of numbers included.
        spec = {
            "whichSet": split,
            "dbImageFns": _cell_column(database), "utmDb": positions.T,
            "qImageFns": _cell_column(queries), "utmQ": query_positions.T,
            "numImages": np.uint16(len(database)), "numQueries": np.uint16(len(queries)),
            "posDistThr": np.uint8(25), "posDistSqThr": np.uint16(625), "nonTrivPosDistSqThr": np.uint8(100),
        }  # fmt: skip
        savemat(folder / "datasets" / f"toy_{split}.mat", {"dbStruct": spec}, oned_as="column")
        headings[split] = [heading for _, heading in asked]
    description = {"version": VERSION, "seed": seed, "query_headings": headings}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description))


class Painter:
    """Draws and stores the pictures of one quarter; each process has its own."""

    def __init__(
        self, folder: Path, seed: int, number: int, panoramas: int, size: tuple[int, int], difficulty: Difficulty
    ):
        self.folder, self.seed, self.number, self.size, self.difficulty = folder, seed, number, size, difficulty
        self.quarter = build_quarter(seed, number)
        self.stations = self.quarter.plan.to_local(survey_stations(self.quarter.plan, panoramas))  # [panoramas, 2]

    def database_name(self, panorama: int, yaw: int) -> str:
        """File name in the database, as Pittsburgh's: panorama and heading from 1."""
        return f"{self.number:03d}/{panorama:06d}_pitch1_yaw{yaw}.jpg"

    def query_name(self, query: int) -> str:
        """File name under queries_real."""
        return f"{self.number:03d}/{query:06d}_query.jpg"

    def draw_panorama(self, panorama: int) -> None:
        """Store all headings of a panorama."""
        for yaw in range(1, HEADINGS + 1):
            picture, conditions = self.database_picture(panorama, yaw)
            picture.save(self.folder / self.database_name(panorama, yaw), quality=conditions.quality)

    def draw_query(self, query: int) -> tuple[np.ndarray, float]:
        """Store a query; returns its position [2] in the quarter, metres, and its heading, degrees."""
        picture, conditions, camera = self.query_picture(query)
        picture.save(self.folder / "queries_real" / self.query_name(query), quality=conditions.quality)
        return camera.position, round(float(np.rad2deg(camera.heading)), 1)

    def database_picture(self, panorama: int, yaw: int) -> tuple[Image.Image, Conditions]:
        """One heading of one panorama; all headings of a panorama share its exposure and its traffic."""
        random, station = generator(self.seed, self.number, "panorama", panorama), self.stations[panorama]
        conditions = survey_conditions(random)
        traffic = scatter_traffic(self.quarter, random, station, station, int(random.integers(0, 4)))
        picture = render(self.quarter, survey_camera(station, yaw, self.size), conditions.light, traffic)
        return develop(picture, conditions, random), conditions

    def query_picture(self, query: int) -> tuple[Image.Image, Conditions, Camera]:
        """One query: its own place near the stations, light, traffic and camera."""
        random = generator(self.seed, self.number, "query", query)
        camera = draw_query_camera(self.quarter, self.stations, random, self.difficulty, self.size)
        conditions = draw_conditions(random, self.difficulty)
        ahead, count = camera.position + 11.0 * camera.forward, int(random.poisson(self.difficulty.occluders))
        traffic = scatter_traffic(self.quarter, random, camera.position, ahead, count)
        picture = render(self.quarter, _with_margin(camera, ROLL_MARGIN), conditions.light, traffic)
        return develop(_rolled(picture, conditions.roll, ROLL_MARGIN), conditions, random), conditions, camera


_painter: Painter | None = None  # of a worker process


def _keep_painter(painter: Painter) -> None:
    global _painter
    _painter = painter


def _draw_panorama(panorama: int) -> None:
    assert _painter is not None
    _painter.draw_panorama(panorama)


def _draw_query(query: int) -> tuple[np.ndarray, float]:
    assert _painter is not None
    return _painter.draw_query(query)


def _with_margin(camera: Camera, margin: int) -> Camera:
    """The same view with `margin` more pixels on each side."""
    width, rows = camera.width + 2 * margin, camera.rows + 2 * margin
    return replace(
        camera,
        width=width,
        rows=rows,
        field_of_view=float(2 * np.arctan(0.5 * width / camera.focal)),
        horizon=camera.horizon * camera.rows / rows,
    )


def _rolled(picture: np.ndarray, degrees: float, margin: int) -> np.ndarray:
    """Turn linear light [rows, width, 3] about its centre and cut the margin off."""
    channels = [Image.fromarray(np.ascontiguousarray(picture[..., channel])) for channel in range(3)]
    turned = np.stack([np.asarray(channel.rotate(degrees, Image.Resampling.BILINEAR)) for channel in channels], axis=-1)
    return turned[margin:-margin, margin:-margin]


def _cell_column(texts: list[str]) -> np.ndarray:
    cells = np.empty([len(texts), 1], dtype=object)
    cells[:, 0] = texts
    return cells
