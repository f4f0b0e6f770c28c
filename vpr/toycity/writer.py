"""Writes the toy city in Pittsburgh's layout: JPEGs, query JPEGs and one dbStruct `.mat` per split."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from vpr.errors import UserError
from vpr.toycity.camera import Camera
from vpr.toycity.city import SPLITS, Quarter, build_quarter, generator
from vpr.toycity.conditions import Conditions, Difficulty, develop, draw_conditions, survey_conditions
from vpr.toycity.render import render
from vpr.toycity.streets import survey_stations
from vpr.toycity.traffic import scatter_traffic
from vpr.toycity.viewpoints import HEADINGS, draw_query_camera, survey_camera

VERSION = 1  # raise when the pictures or the layout change, so that older cities are drawn anew
SEED = 2016
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
    progress=None,
    *,
    panoramas: int = 60,
    queries: int = 160,
    size: tuple[int, int] = (160, 120),
    difficulty: Difficulty | None = None,
) -> None:
    """Draw three quarters and their specs into `folder`, all or nothing.

    Args:
        folder: is created; an older toy city in it is replaced.
        seed: everything drawn follows from it.
        progress: called as progress(iterable, total=..., description=...), yields the iterable's items.
        panoramas, queries: per quarter; a panorama has 8 photos.
        size: of the pictures, pixels (width, height).
        difficulty: strength of the nuisances in the queries.

    Raises:
        UserError: `folder` holds something that is not a toy city.
    """
    folder = Path(folder).resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / DESCRIPTION_FILE).is_file():
        raise UserError(f"{folder} holds files that are not a toy city: name an empty or new folder with --root")
    work = folder.with_name(f"{folder.name}.drawing-{os.getpid()}")
    work.mkdir(parents=True)
    try:
        steps = _draw_all(work, seed, panoramas, queries, size, difficulty or Difficulty())
        total = len(SPLITS) * (panoramas * HEADINGS + queries)
        for _ in progress(steps, total=total, description="drawing") if progress else steps:
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


def _draw_all(folder: Path, seed: int, panoramas: int, queries: int, size, difficulty: Difficulty) -> Iterator[None]:
    """Draw picture after picture, yielding after each; specs and description follow the pictures."""
    (folder / "datasets").mkdir()
    headings = {}
    for number, split in enumerate(SPLITS):
        quarter = build_quarter(seed, number)
        stations = quarter.plan.to_local(survey_stations(quarter.plan, panoramas))  # [panoramas, 2]
        (folder / f"{number:03d}").mkdir()
        (folder / "queries_real" / f"{number:03d}").mkdir(parents=True)
        names, positions = [], []
        for index, station in enumerate(stations):
            for yaw in range(1, HEADINGS + 1):
                names.append(f"{number:03d}/{index:06d}_pitch1_yaw{yaw}.jpg")
                positions.append(station)
                picture, conditions = draw_database_picture(quarter, seed, number, index, yaw, station, size)
                picture.save(folder / names[-1], quality=conditions.quality)
                yield
        query_names, query_positions, query_headings = [], [], []
        for index in generator(seed, number, "order").permutation(queries):
            picture, conditions, camera = draw_query_picture(quarter, seed, number, index, stations, size, difficulty)
            query_names.append(f"{number:03d}/{index:06d}_query.jpg")
            query_positions.append(camera.position)
            query_headings.append(round(float(np.rad2deg(camera.heading)), 1))
            picture.save(folder / "queries_real" / query_names[-1], quality=conditions.quality)
            yield
        headings[split] = query_headings
        database = names, np.array(positions) + quarter.origin
        asked = query_names, np.array(query_positions) + quarter.origin
        write_spec(folder / "datasets" / f"toy_{split}.mat", split, *database, *asked)
    description = {"version": VERSION, "seed": seed, "query_headings": headings}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description))


def draw_database_picture(
    quarter: Quarter,
    seed: int,
    number: int,
    panorama: int,
    yaw: int,
    station: np.ndarray,
    size: tuple[int, int],
) -> tuple[Image.Image, Conditions]:
    """One heading of one panorama; all headings of a panorama share its exposure and its traffic."""
    random = generator(seed, number, "panorama", panorama)
    conditions = survey_conditions(random)
    traffic = scatter_traffic(quarter, random, station, station, int(random.integers(0, 4)))
    picture = render(quarter, survey_camera(station, yaw, size), conditions.light, traffic)
    return develop(picture, conditions, random), conditions


def draw_query_picture(
    quarter: Quarter,
    seed: int,
    number: int,
    query: int,
    stations: np.ndarray,
    size: tuple[int, int],
    difficulty: Difficulty,
) -> tuple[Image.Image, Conditions, Camera]:
    """One query: its own place near the stations [N, 2], light, traffic and camera."""
    random = generator(seed, number, "query", int(query))
    camera = draw_query_camera(quarter, stations, random, difficulty, size)
    conditions = draw_conditions(random, difficulty)
    ahead = camera.position + 11.0 * camera.forward
    traffic = scatter_traffic(quarter, random, camera.position, ahead, int(random.poisson(difficulty.occluders)))
    picture = render(quarter, _with_margin(camera, ROLL_MARGIN), conditions.light, traffic)
    return develop(_rolled(picture, conditions.roll, ROLL_MARGIN), conditions, random), conditions, camera


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
    turned = np.stack([np.asarray(channel.rotate(degrees, Image.BILINEAR)) for channel in channels], axis=-1)
    return turned[margin:-margin, margin:-margin]


def write_spec(
    path: Path,
    split: str,
    names: list[str],
    positions: np.ndarray,
    query_names: list[str],
    query_positions: np.ndarray,
) -> None:
    """Write a dbStruct as NetVLAD's release has it; positions [N, 2] and [M, 2] are UTM metres."""
    spec = {
        "whichSet": split,
        "dbImageFns": _cell_column(names),
        "utmDb": positions.T,
        "qImageFns": _cell_column(query_names),
        "utmQ": query_positions.T,
        "numImages": np.uint16(len(names)),
        "numQueries": np.uint16(len(query_names)),
        "posDistThr": np.uint8(25),
        "posDistSqThr": np.uint16(625),
        "nonTrivPosDistSqThr": np.uint8(100),
    }
    savemat(path, {"dbStruct": spec}, oned_as="column")


def _cell_column(texts: list[str]) -> np.ndarray:
    cells = np.empty([len(texts), 1], dtype=object)
    cells[:, 0] = texts
    return cells
