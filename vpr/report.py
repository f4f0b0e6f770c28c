"""report.html: a test on one page that needs no network, to be sorted, filtered and sent to others."""

import base64
import html
import json
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vpr.files import replacing
from vpr.outcomes import Outcome
from vpr.panels import verdict
from vpr.places import PlacePhotos

TEMPLATE = Path(__file__).with_name("report.html")
MOST_EMBEDDED = 300  # panels inside the page, some 40 kB each; further ones are read from beside it


@dataclass(frozen=True)
class ReportFigures:
    """What a report shows beside the queries.

    Attributes:
        lines: what was measured, in sentences.
        recalls: between 0 and 1, by N.
        settings: every flag.
        pictures: captions and files, put into the page.
        panels: by query, a picture file in a folder beside the report.
    """

    title: str
    lines: Sequence[str]
    recalls: dict[int, float]
    settings: dict[str, object]
    pictures: Sequence[tuple[str, Path]]
    panels: dict[int, Path]


def write_report(path: Path, outcomes: Sequence[Outcome], photos: PlacePhotos, figures: ReportFigures) -> None:
    """Write the page, whole or not at all; queries stand in it from the worst on."""
    worst_first = sorted(outcomes, key=lambda outcome: outcome.badness)
    drawn = [outcome.query for outcome in worst_first if outcome.query in figures.panels]
    sources = {query: _embedded(figures.panels[query]) for query in drawn[:MOST_EMBEDDED]}
    sources |= {query: figures.panels[query].relative_to(path.parent).as_posix() for query in drawn[MOST_EMBEDDED:]}
    note = f"{len(drawn)} of {len(outcomes)} queries have a picture (--panels)."
    if len(drawn) > MOST_EMBEDDED:
        note += f" The page holds {MOST_EMBEDDED} of them; it reads the others from the folder panels beside it."
    rows = [_row(outcome, photos, sources.get(outcome.query)) for outcome in worst_first]
    parts = {
        "title": html.escape(figures.title),
        "lines": "\n".join(f"<p>{html.escape(line)}</p>" for line in figures.lines),
        "tiles": "".join(
            f'<div class="tile"><span class="soft">R@{n}</span><b>{100 * recall:.1f}</b></div>'
            for n, recall in figures.recalls.items()
        ),
        "pictures": "".join(
            f'<figure><img src="{_embedded(file)}" alt="{html.escape(caption)}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for caption, file in figures.pictures
        ),
        "panels_note": html.escape(note),
        "settings": "".join(
            f"<tr><td>--{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
            for name, value in figures.settings.items()
        ),
        # "<" would let a file name such as </script> end the data.
        "data": json.dumps(rows).replace("<", "\\u003c"),
    }
    with replacing(path) as temporary:
        temporary.write_text(_filled(TEMPLATE.read_text(encoding="utf-8"), parts), encoding="utf-8")


def _row(outcome: Outcome, photos: PlacePhotos, panel: str | None) -> dict:
    first = outcome.hits[0] if outcome.hits else None
    return {
        "query": outcome.query + 1,
        "name": photos.places.query_names[outcome.query],
        "status": verdict(outcome),
        "rank": outcome.rank,
        "metres": first and first.metres,
        "distance": first and first.distance,
        "hit": first and photos.places.database_names[first.photo],
        "panel": panel,
    }


def _embedded(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0]
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"


def _filled(template: str, parts: dict[str, str]) -> str:
    """The template with each @@name@@ replaced; what is put in is not looked at again."""
    pieces = template.split("@@")
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    return "".join(pieces)
