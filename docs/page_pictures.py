"""The server's page as a browser shows it, with an image of the toy city dropped on it."""

import contextlib
import http.server
import io
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vpr.common.errors import UserError

FRAME, DROP, QUERY = "/frame.html", "/drop.js", "/query"
# Narrower windows than 500 pixels a browser does not open, so that the page is shown in a frame.
FRAMED = '<body style="margin:0"><iframe src="/?{scheme}" style="width:{width}px;height:{height}px;border:0"></iframe>'
DROPPING = """
addEventListener("load", async () => {
  if (location.search === "?dark") document.getElementById("scheme").click();
  const image = await (await fetch("query")).blob(), dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([image], NAME, { type: image.type }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
});
"""


@dataclass(frozen=True)
class View:
    """A window: its size in pixels, and whether the page is dark."""

    width: int
    height: int
    dark: bool = False


def page_pictures(command: list[str], image: Path, views: dict[Path, View]) -> None:
    """Pictures of the page of a server.

    Args:
        command: flags that start the server.
        image: that is dropped on the page.
        views: by the file that is written, the window.

    Raises:
        UserError: there is no browser, or the server does not start.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise UserError("no browser shows the server's page: install chromium")
    with served(command) as address, between(address, image) as shown, tempfile.TemporaryDirectory() as folder:
        for path, view in views.items():
            shown.RequestHandlerClass.view = view
            picture = Path(folder, "page.png")
            flags = [
                "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={picture}",
                f"--window-size={max(view.width, 500)},{view.height}", "--virtual-time-budget=20000",
                f"--user-data-dir={folder}/profile", f"http://127.0.0.1:{shown.server_port}{FRAME}",
            ]  # fmt: skip
            subprocess.run([browser, *flags], check=True, capture_output=True, timeout=120)
            taken = Image.open(io.BytesIO(picture.read_bytes())).convert("RGB").crop((0, 0, view.width, view.height))
            taken.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


@contextlib.contextmanager
def served(command: list[str]) -> Iterator[str]:
    """The address of a server, which ends with this."""
    python = [sys.executable, "-u", "main.py", "--mode=serve", "--port=0", *command]
    with subprocess.Popen(python, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            for line in server.stdout:
                if line.startswith("listening at "):
                    yield line.split()[2]
                    return
            raise UserError(f"the server did not start: {' '.join(python)}")
        finally:
            server.terminate()
            server.communicate()  # what it says at its end


@contextlib.contextmanager
def between(address: str, image: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """Gives what the server at `address` gives, and on its page a script that drops `image` on it."""

    class Between(http.server.BaseHTTPRequestHandler):
        view = View(1, 1)

        def do_GET(self) -> None:
            own = {
                FRAME: ("text/html", FRAMED.format(scheme="dark" if self.view.dark else "light",
                                                   width=self.view.width, height=self.view.height).encode()),
                DROP: ("text/javascript", f"const NAME = {json.dumps(image.name)};{DROPPING}".encode()),
                QUERY: ("image/jpeg", image.read_bytes()),
            }  # fmt: skip
            if self.path in own:
                return self.give(200, *own[self.path])
            return self.forward(None)

        def do_POST(self) -> None:
            self.forward(self.rfile.read(int(self.headers["Content-Length"])))

        def forward(self, body: bytes | None) -> None:
            request = urllib.request.Request(address + self.path, body, {"Content-Type": "image/jpeg"} if body else {})
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    content, kind = answer.read(), answer.headers["Content-Type"]
            except urllib.error.HTTPError as error:
                return self.give(error.code, "application/json", error.read())
            if self.path.startswith("/?"):
                content = content.replace(b"</body>", f'<script src="{DROP}" defer></script></body>'.encode())
            return self.give(200, kind, content)

        def give(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Between)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
