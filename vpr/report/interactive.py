"""The map and the recall curve that one moves about in: figures of Bokeh for a page without a network.

Python makes the figures, empty, as the JSON of Bokeh's models. The page's own script (figures.js) fills them, paints
them in the page's colours and answers to mouse, touch and keys through BokehJS, so that the page needs none of
Bokeh's callbacks of text, which a strict Content-Security-Policy forbids.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pittsburgh import Places
from vpr.evaluation.outcomes import Outcome

MOST_POINTS = 20_000  # of the database on a map; more make a slow page
SCRIPT = Path("server", "static", "js", "bokeh.min.js")  # below Bokeh's package; its core, 1.3 MB
FIGURES = Path(__file__).with_name("figures.js")
STYLE = Path(__file__).with_name("style.css")
WITHOUT_BOKEH = "bokeh is missing, so the map and the recall curve are pictures: python -m pip install bokeh"


@functools.cache
def bokeh_script() -> str | None:
    """BokehJS as Bokeh's package has it; None where that is missing."""
    try:
        import bokeh
    except ImportError:
        return None
    file = Path(bokeh.__file__).parent / SCRIPT
    return file.read_text(encoding="utf-8") if file.is_file() else None


def map_figure(tiles: str | None = None) -> dict[str, Any]:
    """An empty map as JSON for BokehJS, in metres; with `tiles`, an address of street tiles with {X}, {Y} and {Z}, in
    those of Web Mercator.

    Its data sources are `database` (x, y), `lines` and `link` (x0, y0, x1, y1, colour), `marks` and `chosen` (x, y,
    marker, size, colour, edge, width).
    """
    from bokeh.models import WMTSTileSource

    figure = _figure("map", "pan,wheel_zoom")
    if tiles:
        figure.add_tile(WMTSTileSource(url=tiles), name="tiles", visible=False)  # until the map is where it should be
        for axis in (figure.xaxis, figure.yaxis):
            axis.visible = False
    lined = {"x0": "x0", "y0": "y0", "x1": "x1", "y1": "y1", "line_color": "colour"}
    marked = {"x": "x", "y": "y", "marker": "marker", "size": "size", "fill_color": "colour", "line_color": "edge",
              "line_width": "width"}  # fmt: skip
    _add(figure.segment, "lines", lined, line_width=1, line_alpha=0.45)
    _add(figure.scatter, "database", {"x": "x", "y": "y"}, size=4, line_color=None)
    _add(figure.segment, "link", lined, line_width=2.5, line_alpha=1)
    _add(figure.scatter, "marks", marked)
    _add(figure.scatter, "chosen", marked)
    return _as_json(figure)


def curve_figure() -> dict[str, Any]:
    """Empty axes of recalls as JSON for BokehJS; data sources `curve0` and `curve1` (x, y), and `chosen` (x, y)."""
    figure, point = _figure("curve", ""), {"x": "x", "y": "y"}
    _add(figure.line, "curve0", point, line_width=2.5)
    _add(figure.line, "curve1", point, line_width=2.5, line_dash="dashed")
    _add(figure.scatter, "chosen", point, size=9)
    figure.xaxis.axis_label = "N, database images looked at"
    figure.yaxis.axis_label = "Recall@N, percent"
    return _as_json(figure)


def map_data(places: Places, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What lies where on a map of a test, in metres from its south-western corner, to decimetres.
    Gives `west`, `south`: UTM metres of the corner; `of`: images of the database; `database`: x, y of those that are
    drawn; `queries`: x, y by index; `hits`: x, y of the first hit of each query, None where there is none."""
    database = places.database_positions[np.isfinite(places.database_positions).all(axis=1)]
    west, south = corner = np.floor(np.concatenate([database, places.query_positions]).min(axis=0))
    first = np.full((len(places.query_names), 2), np.nan)
    for outcome in outcomes:
        if outcome.hits:
            first[outcome.query] = places.database_positions[outcome.hits[0].image]

    def columns(positions: np.ndarray) -> dict[str, list[float | None]]:
        x, y = ([None if math.isnan(m) else m for m in side] for side in np.round(positions - corner, 1).T.tolist())
        return {"x": x, "y": y}

    drawn = {"database": database[thinned(database)], "queries": places.query_positions, "hits": first}
    corner_and_count = {"west": float(west), "south": float(south), "of": len(database)}
    return {**corner_and_count, **{name: columns(positions) for name, positions in drawn.items()}}


def curve_data(curves: dict[str, dict[int, float]]) -> list[dict[str, Any]]:
    """Recall curves for the page: name, n, and recalls in percent, the newest first."""
    return [
        {"name": name, "x": list(recalls), "y": [round(100 * recall, 3) for recall in recalls.values()]}
        for name, recalls in reversed(curves.items())
    ]


def thinned(positions: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Which of positions [N, 2] in metres are shown: the first of each square of a grid, in rising order.

    All, or at most `most`: then the squares are as small as that allows, their side found to a tenth.
    """
    rows = np.arange(len(positions))
    if len(rows) <= most:
        return rows
    corner = positions.min(axis=0)
    side = max(float((positions.max(axis=0) - corner).max()) / most, 1e-3)  # on a line there are `most` of these
    while True:
        squares = ((positions - corner) // side).astype(np.int64)
        _, first = np.unique(squares[:, 0] * (squares[:, 1].max() + 1) + squares[:, 1], return_index=True)
        if len(first) <= most:
            return np.sort(first)
        side *= 1.1


def _figure(name: str, tools: str) -> Any:
    """An empty figure that fills its frame; the page has the buttons."""
    from bokeh.models import BasicTicker, BasicTickFormatter, Range1d
    from bokeh.plotting import figure

    made = figure(
        name=name, tools=tools, toolbar_location=None, sizing_mode="stretch_both",
        x_range=Range1d(start=0, end=1), y_range=Range1d(start=0, end=1), min_border=4,
    )  # fmt: skip
    for axis in (*made.xaxis, *made.yaxis):
        axis.ticker, axis.formatter = BasicTicker(desired_num_ticks=5), BasicTickFormatter(use_scientific=False)
        axis.update(minor_tick_line_color=None, axis_label_text_font_style="normal")
    return made


def _add(draw: Callable[..., Any], name: str, columns: dict[str, str], **looks: Any) -> None:
    """A glyph of a name over an empty data source; `columns` of the source by what of the glyph they say."""
    from bokeh.models import ColumnDataSource

    source = ColumnDataSource({column: [] for column in columns.values()}, name=f"{name}_data")
    draw(source=source, name=name, **columns, **looks)


def _as_json(figure: Any) -> dict[str, Any]:
    from bokeh.embed import json_item

    return dict(json_item(figure))
