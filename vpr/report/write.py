"""What a test shows: recall.png, map.png, panels/ and report.html in its own folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from vpr.common.progress import Progress, say
from vpr.data.places import PlaceImages
from vpr.evaluation.certainty import Certainty
from vpr.evaluation.evaluate import Evaluation, QueryResults
from vpr.evaluation.outcomes import Outcome, recalls_before
from vpr.models.describer import Describer
from vpr.report.html import ReportFigures, write_report
from vpr.report.interactive import WITHOUT_BOKEH, bokeh_script, curve_data, map_data
from vpr.report.matches import picture_of_matches
from vpr.report.panels import RIGHT, WRONG, panel, rank_text, stacked, write_jpeg
from vpr.report.plots import draw_changes, draw_map, draw_precision_recall, draw_recall, draw_reliability
from vpr.retrieval.rerank import Compare

Explain = Callable[[Outcome], Image]
Captioned = list[tuple[str, Path]]
Curves = dict[str, dict[int, float]]  # by name, {N: recall between 0 and 1}


def write_pictures(
    folder: Path,
    evaluation: Evaluation,
    answers: QueryResults,
    images: PlaceImages,
    settings: Mapping[str, Any],
    panels: int | str = 10,
    explain: Explain | None = None,
    compare: Compare | None = None,
    certainty: Certainty | None = None,
) -> None:
    """Draw a test: the recall curve, the map, panels of queries from the worst on, and the report that shows all.

    Args:
        settings: by name, that the report lists.
        panels: how many queries, or all.
        explain, compare: as of `write_panels`.
        certainty: how sure the answers are.
    """
    outcomes = answers.outcomes
    *measured, _ = evaluation.lines().splitlines()  # the recalls stand in the report by themselves
    about = f"{evaluation.spec} ({evaluation.split}), {evaluation.queries} queries"
    title = f"{about}\n{evaluation.model}"
    curves, before = {evaluation.model.split(",")[0]: answers.curve}, None
    if any(outcome.reranked for outcome in outcomes):
        first = recalls_before(outcomes, list(answers.curve))
        curves = {"before re-ranking": first, f"re-ranked: {evaluation.search}": answers.curve}
        before = recalls_before(outcomes, list(evaluation.recalls))
    drawn, others = _draw_plots(folder, curves, images, outcomes, certainty, title)
    measured += certainty.lines().splitlines() if certainty else []
    worst_first = sorted(outcomes, key=lambda outcome: outcome.sort_key)
    shown = worst_first if panels == "all" else worst_first[: int(panels)]
    files = write_panels(folder / "panels", images, shown, explain, compare)
    is_interactive = bool(outcomes) and bokeh_script() is not None
    if outcomes and not is_interactive:
        say(WITHOUT_BOKEH)
    pictures = others if is_interactive else drawn + others
    figures = ReportFigures(
        about, measured, evaluation.recalls, dict(settings), pictures, files, before,
        map=map_data(images.places, outcomes) if is_interactive and len(drawn) > 1 else None,
        curve=curve_data(curves) if is_interactive else None,
    )  # fmt: skip
    write_report(folder / "report.html", outcomes, images, figures)
    names = ", ".join(file.name for _, file in drawn + others)
    say(f"wrote {folder / 'report.html'}, {names} and {len(files)} panels")


def _draw_plots(
    folder: Path, curves: Curves, images: PlaceImages, outcomes: list[Outcome], certainty: Certainty | None, title: str
) -> tuple[Captioned, Captioned]:
    """The recall curve and the map, which the report may have as interactive ones, and further plots."""

    def plot(name: str, caption: str, draw: Callable[..., None], *shown: Any) -> tuple[str, Path]:
        draw(folder / name, *shown, title)
        return caption, folder / name

    places = images.places
    drawn, others = [plot("recall.png", "Recall@N", draw_recall, curves)], []
    if np.isfinite(places.query_positions).all():  # frames and pairs lie nowhere
        drawn.append(plot("map.png", "Where queries were found and missed", draw_map, places, outcomes))
        if len(curves) > 1:
            caption = "Where re-ranking gained and lost queries"
            others.append(plot("map_reranked.png", caption, draw_changes, places, outcomes))
    if certainty:
        caption = "Precision and recall by answering only from a score on"
        others.append(plot("precision_recall.png", caption, draw_precision_recall, certainty))
        if certainty.table is not None:
            note = certainty.scores.note
            caption = f"Whether probabilities hold{': ' if note else ''}{note}"
            others.append(plot("reliability.png", caption, draw_reliability, certainty.table))
    return drawn, others


def write_panels(
    folder: Path, images: PlaceImages, outcomes: list[Outcome], explain: Explain | None, compare: Compare | None
) -> dict[int, Path]:
    """A JPEG for each outcome, numbered in their order -> by query, the file.
    `explain`: outcome -> a picture to stand below its panel. `compare`: finds the matches of a query with its first
    hit, to be drawn below as well."""
    digits, files = len(str(len(outcomes))), {}
    with Progress("panels", len(outcomes), "queries") as progress:
        for number, outcome in enumerate(outcomes, start=1):
            picture = panel(images, outcome)
            if compare and outcome.hits:
                picture = stacked([picture, _matches(images, outcome, compare)])
            if explain and outcome.hits:
                picture = stacked([picture, explain(outcome)])
            name = f"{number:0{digits}}_query_{outcome.query + 1}_{outcome.status.replace(' ', '_')}.jpg"
            files[outcome.query] = folder / name
            write_jpeg(files[outcome.query], picture)
            progress.advance()
    return files


def _matches(images: PlaceImages, outcome: Outcome, compare: Compare) -> Image:
    """A query and its first hit, with what agrees."""
    hit = outcome.hits[0]
    files = images.query_files[outcome.query], images.database_files[hit.image]
    before, after = rank_text(outcome.rank_before), rank_text(outcome.rank)
    ranks = f"rank of the first right hit: {before} before re-ranking, {after} after"
    lines = [f"query {outcome.query + 1} and its first hit", ranks]
    return picture_of_matches(*files, compare(outcome.query, hit.image), RIGHT if hit.right else WRONG, lines)


def explainer(model: Describer, images: PlaceImages, size: tuple[int, ...] | None) -> Explain:
    """Draws where a model looks in a query and its first hit, resized to `size` (height, width) unless that is None."""
    from vpr.report.heatmaps import explain_pair

    def draw(outcome: Outcome) -> Image:
        files = images.query_files[outcome.query], images.database_files[outcome.hits[0].image]
        return explain_pair(model, *files, size, images.query_longest_side)

    return draw
