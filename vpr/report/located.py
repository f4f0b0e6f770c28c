"""What --mode=locate draws: an image with its matches, and below what re-ranking found of the first."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from vpr.common.progress import say
from vpr.report.matches import picture_of_matches
from vpr.report.panels import NEUTRAL, cell, file_name, in_a_row, stacked, write_jpeg
from vpr.retrieval.answer import Answer
from vpr.retrieval.ranking import Ranking
from vpr.retrieval.rerank import Compared


def draw_panels(
    folder: Path, files: Sequence[Path], answers: Sequence[Answer], ranking: Ranking, panels: int | str
) -> None:
    """A panel for each of the first `panels` image files, or all, in a new folder; the answers are of the ranking."""
    count = len(answers) if panels == "all" else min(int(panels), len(answers))
    if not count:
        return
    folder /= f"locate_{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    for number, (file, answer) in enumerate(zip(files[:count], answers, strict=False)):
        name = file_name(f"{number + 1}_{file.stem}", ".jpg")
        compared = None
        if ranking.compare and answer.matches:
            compared = ranking.compare(number, int(ranking.only(number)[0]))
        draw(folder / name, file, answer, compared)
    say(f"wrote {count} panels into {folder}")


def draw(path: Path, image: Path, answer: Answer, compared: Compared | None) -> None:
    """A panel: the image, then its matches; below the matches of local descriptors with the first."""
    cells = [cell(image, NEUTRAL, image.name, answer.sure, "")]
    for file, match in zip(answer.files, answer.matches, strict=True):
        text = match.position_text() if match.latitude is None else f"{match.latitude:.6f}, {match.longitude:.6f}"
        cells.append(cell(file, NEUTRAL, f"descriptor distance {match.distance_text()}", text, match.name))
    picture = in_a_row(cells, len(cells))
    if compared:
        picture = stacked([picture, picture_of_matches(image, answer.files[0], compared)])
    write_jpeg(path, picture)
