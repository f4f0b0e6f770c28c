"""One HTML file of a test: recalls, pictures, settings, and a table of all queries to sort and look through.

The page needs no network and no other program than a browser. It is made of report.html and report.js, and of style.css
and figures.js, which it shares with the server's page.
"""

import base64
import html
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.data.places import PlaceImages
from vpr.evaluation.outcomes import Hit, Outcome
from vpr.report import interactive

MAX_EMBEDDED = 300  # panels inside the page, 50 to 150 kB each; more make it slow to open
TEMPLATE, SCRIPT = Path(__file__).with_name("report.html"), Path(__file__).with_name("report.js")
UNKNOWN = "–"


@dataclass(frozen=True)
class ReportFigures:
    """What a report shows besides the queries.

    Attributes:
        title: heading of the page.
        lines: what was measured.
        recalls: between 0 and 1, by N; NaN where there are no queries.
        settings: every flag by its name.
        pictures: captions and image files (PNG, JPEG).
        panels: JPEG files of single queries with their hits, by the query's index.
        recalls_before: as `recalls`, before re-ranking; None where there was none.
        map, curve: what one moves about in, as of `interactive.map_data` and `interactive.curve_data`; None: nothing.
    """

    title: str
    lines: list[str]
    recalls: dict[int, float]
    settings: dict[str, object]
    pictures: list[tuple[str, Path]]
    panels: dict[int, Path]
    recalls_before: dict[int, float] | None = None
    map: dict[str, Any] | None = None
    curve: list[dict[str, Any]] | None = None


def write_report(path: Path, outcomes: list[Outcome], images: PlaceImages, figures: ReportFigures) -> None:
    """Write the page, whole or not at all.

    The panels of the worst MAX_EMBEDDED queries that have one are inside it. Further ones stay where they are,
    and the page finds them by their place relative to its own.

    Raises:
        UserError: a picture cannot be read, or the page cannot be written.
    """
    worst_first = sorted(outcomes, key=lambda outcome: outcome.sort_key)
    with_panel = [outcome.query for outcome in worst_first if outcome.query in figures.panels]
    embedded, linked = with_panel[:MAX_EMBEDDED], with_panel[MAX_EMBEDDED:]
    addresses = {query: _relative_address(figures.panels[query], path) for query in linked}
    rows = [_row(outcome, images, addresses.get(outcome.query)) for outcome in worst_first]
    page = _fill(
        TEMPLATE.read_text(encoding="utf-8"),
        {
            "title": html.escape(figures.title),
            "style": interactive.STYLE.read_text(encoding="utf-8"),
            "script": SCRIPT.read_text(encoding="utf-8"),
            "figures": _figure_frames(figures, outcomes),
            "figure_scripts": _figure_scripts(figures),
            "tiles": "\n".join(_tile(n, recall, figures.recalls_before) for n, recall in figures.recalls.items()),
            "lines": "\n".join(f"<p>{html.escape(line)}</p>" for line in figures.lines),
            "pictures": "\n".join(_picture(caption, file) for caption, file in figures.pictures),
            "settings": "\n".join(_setting(name, value) for name, value in figures.settings.items()),
            "where_panels_are": where_panels_are(len(embedded), len(linked)),
            "outcomes": _json_for_script(rows),
            "panels": "\n".join(_panel(query, figures.panels[query]) for query in embedded),
        },
    )
    with atomic_write(path) as temporary:
        # File names that are not UTF-8 hold characters that cannot be written; the JSON escapes its own.
        temporary.write_text(page, encoding="utf-8", errors="replace")


def _figure_frames(figures: ReportFigures, outcomes: list[Outcome]) -> str:
    """Where the page's script draws the map and the recall curve, with the same in words and as a table."""
    frames = []
    if figures.map:
        words = html.escape(_map_in_words(figures.map, outcomes))
        frames.append(f'<figure><h2>Where queries were found and missed</h2><p class="note" id="map-words">{words}</p>'
                      '<div class="figure" id="map"></div></figure>')  # fmt: skip
    if figures.curve:
        table = f"<details><summary>The curve as a table</summary>{_curve_table(figures.curve)}</details>"
        frames.append(f'<figure><h2>Recall@N</h2><div class="figure" id="curve"></div>{table}</figure>')
    without = "<noscript><p>The map and the curve need JavaScript; their pictures lie beside this file.</p></noscript>"
    return f'<div class="figures">{"".join(frames)}</div>{without}' if frames else ""


def _map_in_words(places: dict[str, Any], outcomes: list[Outcome]) -> str:
    """What the map shows, for those who do not see it; the table of queries has each."""
    found, late = sum(each.rank == 1 for each in outcomes), sum((each.rank or 0) > 1 for each in outcomes)
    missed = sum(each.rank is None and each.answerable for each in outcomes)
    shown, whole = len(places["database"]["x"]), places["of"]
    drawn = f", of which {shown:,} are drawn, evenly spread over all" if shown < whole else ""
    kinds = f"{found:,} found at 1, {late:,} found at a later rank, {missed:,} missed"
    nothing = len(outcomes) - found - late - missed
    kinds += f", {nothing:,} with nothing within reach" if nothing else ""
    return (
        f"{whole:,} database images{drawn}, and {len(outcomes):,} queries: {kinds}. Press a point to open its query in "
        "the table below; open a row to see its query and first hit here. Drag, pinch or scroll to move about, or use "
        "the buttons, or the arrow keys, + and −."
    )


def _curve_table(curves: list[dict[str, Any]]) -> str:
    names = [html.escape(curve["name"]) if len(curves) > 1 else "Recall@N, percent" for curve in curves]
    heading = "".join(f'<th scope="col">{name}</th>' for name in ["N", *names])
    lines = [
        f'<tr><th scope="row">{n}</th>{"".join(f"<td>{value:.1f}</td>" for value in values)}</tr>'
        for n, *values in zip(curves[0]["x"], *(curve["y"] for curve in curves), strict=True)
    ]
    return f'<div class="scroll" tabindex="0"><table><tr>{heading}</tr>{"".join(lines)}</table></div>'


def _figure_scripts(figures: ReportFigures) -> str:
    """BokehJS, what is drawn by it, and the script that draws; nothing where nothing is."""
    if not figures.map and not figures.curve:
        return ""
    data = {
        "map": figures.map,
        "curve": figures.curve,
        "map_figure": interactive.map_figure() if figures.map else None,
        "curve_figure": interactive.curve_figure() if figures.curve else None,
    }
    own = interactive.FIGURES.read_text(encoding="utf-8")
    return (
        f'<script type="application/json" id="figure-data">{_json_for_script(data)}</script>\n'
        f"<script>{interactive.bokeh_script()}</script>\n<script>{own}</script>"
    )


def where_panels_are(embedded: int, linked: int) -> str:
    """A sentence on how many pictures of queries are inside the page, and how many beside it."""
    if linked:
        return (
            f"The pictures of the worst {embedded:,} queries that have one are inside this file. {linked:,} more are "
            "files of their own: keep them where they are, relative to this one."
        )
    if embedded:
        return f"{embedded:,} queries have a picture; all are inside this file." if embedded > 1 else ""
    return ""


def _row(outcome: Outcome, images: PlaceImages, address: str | None) -> dict:
    """An outcome with its names; `address` is that of a panel outside the page."""
    before = None if outcome.rank_before is None else int(outcome.rank_before)
    return {
        "query": int(outcome.query),
        "name": images.places.query_names[outcome.query],
        "status": outcome.status,
        "rank": None if outcome.rank is None else int(outcome.rank),
        "answerable": bool(outcome.answerable),
        "hits": [_hit(hit, images) for hit in outcome.hits],
        "panel": address,
        **({"before": before, "change": outcome.change} if outcome.reranked else {}),
    }


def _hit(hit: Hit, images: PlaceImages) -> dict:
    return {
        "image": int(hit.image),
        "name": images.places.database_names[hit.image],
        "metres": _finite(hit.metres),
        "distance": _finite(hit.distance),
        "right": bool(hit.right),
    }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


def _json_for_script(content: object) -> str:
    """JSON that can stand inside <script>: without `<` no name can end the element or open a comment."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _tile(n: int, recall: float, before: dict[int, float] | None) -> str:
    percent = UNKNOWN if math.isnan(recall) else f"{100 * recall:.1f}<small> %</small>"
    earlier = f'<dd class="before">{100 * before[n]:.1f} % before re-ranking</dd>' if before else ""
    return f"<div><dt>R@{n}</dt><dd>{percent}</dd>{earlier}</div>"


def _setting(name: str, value: object) -> str:
    return f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>'


def _picture(caption: str, file: Path) -> str:
    text = html.escape(caption)
    kind = "png" if file.suffix.lower() == ".png" else "jpeg"
    source = f"data:image/{kind};base64,{_base64(file)}"
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _panel(query: int, file: Path) -> str:
    """A panel as text that the browser does not decode before its row is opened."""
    return f'<script type="text/plain" id="panel-{query}">{_base64(file)}</script>'


def _base64(file: Path) -> str:
    try:
        return base64.b64encode(file.read_bytes()).decode("ascii")
    except OSError as error:
        raise UserError(f"cannot read {file} ({error}): it belongs into the report; draw it again") from error


def _relative_address(file: Path, page: Path) -> str:
    """How the page at `page` refers to `file`: percent-encoded, so that no name is taken for another address."""
    relative = os.path.relpath(file, page.parent).replace(os.sep, "/")
    return quote(os.fsencode(relative))


def _fill(template: str, parts: dict[str, str]) -> str:
    """Put each part in place of its {{name}}, in one pass: a part that holds a {{name}} stays as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
