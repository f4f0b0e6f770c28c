from dataclasses import dataclass


@dataclass(frozen=True)
class ReportFigures:
    title: str
    lines: list
    recalls: dict
    settings: dict
    pictures: list
    panels: dict


def write_report(path, *a):
    path.write_text("x")
