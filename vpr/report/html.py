"""One HTML file of a test: recalls, pictures, settings, and a table of all queries to sort and look through.

The page needs no network and no other program than a browser. Its style and its script are in report.html.
"""

import base64
import html
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.data.places import PlaceImages
from vpr.evaluation.outcomes import Hit, Outcome

MAX_EMBEDDED = 300  # panels inside the page, 50 to 150 kB each; more make it slow to open
TEMPLATE = Path(__file__).with_name("report.html")
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
    """

    title: str
    lines: list[str]
    recalls: dict[int, float]
    settings: dict[str, object]
    pictures: list[tuple[str, Path]]
    panels: dict[int, Path]
    recalls_before: dict[int, float] | None = None


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
