"""What the tests of the report in a browser share."""

import subprocess

import pytest
from report_page import Page


@pytest.fixture
def show(chromium):
    """Gives the page after a browser has run it, and then `script`."""

    def run(path, state="", script=""):
        if script:
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=3000"]
        folder = f"--user-data-dir={path.parent / 'profile'}"
        done = subprocess.run([chromium, *flags, folder, f"{path.as_uri()}{state}"], capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return Page(done.stdout.decode("utf-8"))

    return run
