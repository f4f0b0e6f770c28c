"""What the tests of the report in a browser share."""

import pytest
from report_page import Page


@pytest.fixture
def show(browse):
    """Gives the page after a browser has run it, and then `script`."""

    def run(path, state="", script=""):
        if script:
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        return Page(browse(f"{path.as_uri()}{state}"))

    return run
