"""One HTML file of a test: recalls, pictures, settings, and a table of all queries to sort and look through.

The page needs no network and no other program than a browser. It is made of report.html and report.js, and of style.css
and figures.js, which it shares with the server's page.
"""

import base64
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.data.places import PlaceImages
from vpr.evaluation.outcomes import Outcome
from vpr.report import interactive

MAX_EMBEDDED = 300  # panels inside the page, 50 to 150 kB each; more make it slow to open
TEMPLATE, SCRIPT = Path(__file__).with_name("report.html"), Path(__file__).with_name("report.js")


@dataclass(frozen=True)
class ReportFigures:
    """What a report shows besides the queries."""

    title: str
    lines: list[str]  # what was measured
    recalls: dict[int, float]  # between 0 and 1, by N; NaN where there are no queries
    settings: dict[str, object]  # every flag by its name
    pictures: list[tuple[str, Path]]  # captions and image files (PNG, JPEG)
    panels: dict[int, Path]  # JPEG files of single queries with their hits, by the query's index
    recalls_before: dict[int, float] | None = None  # re-ranking, if there was any
    map: dict[str, Any] | None = None  # as of `interactive.map_data`
    curve: list[dict[str, Any]] | None = None  # as of `interactive.curve_data`


def write_report(path: Path, outcomes: Sequence[Outcome], images: PlaceImages, figures: ReportFigures) -> None:
    """Write the page, whole or not at all.

    The panels of the worst MAX_EMBEDDED queries that have one are inside it. Further ones stay where they are, and the
    page finds them by their address relative to its own.
    Raises a UserError: a picture cannot be read, or the page cannot be written.
    """
    worst_first = sorted(outcomes, key=lambda outcome: outcome.sort_key)
    with_panel = [outcome.query for outcome in worst_first if outcome.query in figures.panels]
    embedded, linked = with_panel[:MAX_EMBEDDED], with_panel[MAX_EMBEDDED:]
    addresses = {query: _relative_address(figures.panels[query], path) for query in linked}
    curve, sources = figures.curve, (interactive.STYLE, interactive.FIGURES, SCRIPT)
    page = rendered(
        TEMPLATE,
        figures=figures,
        rows=[_row(outcome, images, addresses.get(outcome.query)) for outcome in worst_first],
        embedded={query: _base64(figures.panels[query]) for query in embedded},
        linked=len(linked),
        pictures=[
            (caption, f"data:image/{'png' if file.suffix.lower() == '.png' else 'jpeg'};base64,{_base64(file)}")
            for caption, file in figures.pictures
        ],
        map_words=_map_in_words(figures.map, outcomes) if figures.map else None,
        curve_rows=list(zip(curve[0]["x"], *(each["y"] for each in curve), strict=True)) if curve else [],
        figure_data={
            "map": figures.map,
            "curve": curve,
            "map_figure": interactive.map_figure() if figures.map else None,
            "curve_figure": interactive.curve_figure() if curve else None,
        },
        bokeh=interactive.bokeh_script() if figures.map or curve else None,
        sources={file.name: file.read_text(encoding="utf-8") for file in sources},
    )
    with atomic_write(path) as temporary:
        # File names that are not UTF-8 hold characters that cannot be written; the JSON escapes its own.
        temporary.write_text(page, encoding="utf-8", errors="replace")


def rendered(template: Path, **values: Any) -> str:
    """A page from a Jinja2 template: values are escaped as HTML, but for those that it marks as `safe` or `tojson`."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def _map_in_words(shown: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """What the map shows, for those who do not see it; the table of queries has each."""
    found, late = sum(each.rank == 1 for each in outcomes), sum((each.rank or 0) > 1 for each in outcomes)
    missed = sum(each.rank is None and each.answerable for each in outcomes)
    nothing = len(outcomes) - found - late - missed
    drawn, whole = len(shown["database"]["x"]), shown["of"]
    part = f", of which {drawn:,} are drawn, evenly spread over all" if drawn < whole else ""
    rest = f", {nothing:,} with nothing within reach" if nothing else ""
    return (
        f"{whole:,} database images{part}, and {len(outcomes):,} queries: {found:,} found at 1, {late:,} found at a "
        f"later rank, {missed:,} missed{rest}. Press a point to open its query in the table below; open a row to see "
        "its query and first hit here. Drag, pinch or scroll to move about, or use the buttons, or the arrow keys, "
        "+ and −."
    )


def _row(outcome: Outcome, images: PlaceImages, address: str | None) -> dict[str, Any]:
    """An outcome with its names; `address` is that of a panel outside the page."""
    places = images.places

    def finite(value: float | None) -> float | None:  # JSON has no NaN
        return float(value) if value is not None and math.isfinite(value) else None

    hits = [
        {"image": hit.image, "name": places.database_names[hit.image], "metres": finite(hit.metres),
         "distance": finite(hit.distance), "right": bool(hit.right)} for hit in outcome.hits
    ]  # fmt: skip
    row = {"query": outcome.query, "name": places.query_names[outcome.query], "status": outcome.status,
           "rank": outcome.rank, "answerable": outcome.answerable, "hits": hits, "panel": address}  # fmt: skip
    return row | ({"before": outcome.rank_before, "change": outcome.change} if outcome.reranked else {})


def _base64(file: Path) -> str:
    try:
        return base64.b64encode(file.read_bytes()).decode("ascii")
    except OSError as error:
        raise UserError(f"cannot read {file} ({error}): it belongs into the report; draw it again") from error


def _relative_address(file: Path, page: Path) -> str:
    """How the page at `page` refers to `file`: percent-encoded, so that no name is taken for another address."""
    relative = os.path.relpath(file, page.parent).replace(os.sep, "/")
    return quote(os.fsencode(relative))
