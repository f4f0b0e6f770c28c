"""What the tests of the report in a browser share."""

import pytest
from report_page import Page, figures_with, read

from vpr.report.html import write_report


@pytest.fixture
def show(browse):
    """Gives the page after a browser has run it, and then `script`."""

    def run(path, state="", script=""):
        if script:
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        return Page(browse(f"{path.as_uri()}{state}"))

    return run


@pytest.fixture
def page_of(tmp_path):
    """Writes a report, whose figures are the usual ones but for those that are named, and reads it."""

    def write(outcomes, images, **figures):
        write_report(tmp_path / "report.html", outcomes, images, figures_with(**figures))
        return read(tmp_path / "report.html")

    return write
