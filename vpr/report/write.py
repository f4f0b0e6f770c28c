"""What a test shows: recall.png, map.png, panels/ and report.html in its own folder."""

import argparse
from pathlib import Path

import torch

from vpr.cli.options import flags_of
from vpr.common.progress import Progress, say
from vpr.data.places import PlacePhotos
from vpr.evaluation.evaluate import Evaluation, QueryResults
from vpr.evaluation.outcomes import Outcome
from vpr.models.describer import Describer
from vpr.report.heatmaps import explain_pair
from vpr.report.html import ReportFigures, write_report
from vpr.report.panels import panel, stacked, write_jpeg
from vpr.report.plots import draw_map, draw_recall


def write_pictures(
    folder: Path,
    evaluation: Evaluation,
    answers: QueryResults,
    photos: PlacePhotos,
    model: Describer,
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    """Draw a test: the recall curve, the map, --panels queries from the worst on, and the report that shows all."""
    *measured, _ = evaluation.lines().splitlines()  # the recalls stand in the report by themselves
    about = f"{evaluation.spec} ({evaluation.split}), {evaluation.queries} queries"
    title = f"{about}\n{evaluation.model}"
    worst_first = sorted(answers.outcomes, key=lambda outcome: outcome.sort_key)
    count = len(worst_first) if options.panels == "all" else options.panels
    draw_recall(folder / "recall.png", {evaluation.model.split(",")[0]: answers.curve}, title)
    draw_map(folder / "map.png", photos.places, answers.outcomes, title)
    explain = (lambda outcome: explanation(model, photos, outcome, options, device)) if options.explain else None
    panels = write_panels(folder / "panels", photos, worst_first[:count], explain)
    pictures = [("Recall@N", folder / "recall.png"), ("Where queries were found and missed", folder / "map.png")]
    figures = ReportFigures(about, measured, evaluation.recalls, flags_of(options), pictures, panels)
    write_report(folder / "report.html", answers.outcomes, photos, figures)
    say(f"wrote {folder / 'report.html'}, recall.png, map.png and {len(panels)} panels")


def write_panels(folder: Path, photos: PlacePhotos, outcomes: list[Outcome], explain=None) -> dict[int, Path]:
    """A JPEG for each outcome, numbered in their order.

    Args:
        explain: outcome -> a picture to stand below its panel; None is none.

    Returns:
        by query, the file.
    """
    digits, files = len(str(len(outcomes))), {}
    with Progress("panels", len(outcomes), "queries") as progress:
        for number, outcome in enumerate(outcomes, start=1):
            picture = panel(photos, outcome)
            if explain and outcome.hits:
                picture = stacked([picture, explain(outcome)])
            name = f"{number:0{digits}}_query_{outcome.query + 1}_{outcome.status.replace(' ', '_')}.jpg"
            files[outcome.query] = folder / name
            write_jpeg(files[outcome.query], picture)
            progress.advance()
    return files


def explanation(
    model: Describer, photos: PlacePhotos, outcome: Outcome, options: argparse.Namespace, device: torch.device
):
    """Where the model looks in a query and in its first hit."""
    match = photos.database_files[outcome.hits[0].photo]
    query = photos.query_files[outcome.query]
    return explain_pair(model, query, match, options.imageSize, device, photos.query_longest_side)
