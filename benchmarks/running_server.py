"""A server in a process of its own, started by the command line, with what benchmarks want to know of it."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LISTENING = "listening at http://"


@dataclass
class RunningServer:
    """A server that listens.

    Attributes:
        said: what it printed so far.
    """

    process: subprocess.Popen
    port: int
    said: list[str]

    def connection(self, timeout: float = 60) -> http.client.HTTPConnection:
        """A new connection, which is kept alive."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        with contextlib.closing(self.connection()) as connection:
            status, text = ask(connection, "GET", "/metrics")
        assert status == 200
        return sum(float(line.split()[-1]) for line in text.decode().splitlines() if line.startswith(f"{name} "))

    def megabytes(self) -> float:
        """Resident memory of the server and its decoders, in MB of 10^6 bytes."""
        return sum(map(resident, family(self.process.pid))) / 1e6

    def processor_seconds(self) -> float:
        """That the server and its decoders have used."""
        return sum(map(processor_seconds, family(self.process.pid)))


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, kind: str = "image/jpeg"
) -> tuple[int, bytes]:
    """Send a request; gives status and content."""
    connection.request(method, path, body, {"content-type": kind} if body is not None else {})
    answer = connection.getresponse()
    return answer.status, answer.read()


@contextlib.contextmanager
def running_server(*flags: str) -> Iterator[RunningServer]:
    """Start `main.py --mode=serve` with flags at a free port; ends it, and requires that it ends well."""
    words = [sys.executable, str(REPOSITORY / "main.py"), "--mode=serve", "--port=0", *flags]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line.rstrip())
        if LISTENING in line:
            break
    else:
        raise RuntimeError("the server did not start:\n" + "\n".join(said))
    port = int(said[-1].split(LISTENING)[1].split()[0].rpartition(":")[2])
    threading.Thread(target=lambda: said.extend(map(str.rstrip, process.stdout)), daemon=True).start()
    try:
        yield RunningServer(process, port, said)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    if code:
        raise RuntimeError(f"the server ended with {code}:\n" + "\n".join(said[-20:]))


@contextlib.contextmanager
def alexnet_on(root: str, weights: str, folder: str | None) -> Iterator[list[str]]:
    """Flags of AlexNet with NetVLAD and of tower's or another data set's folder, whose centroids and index are made.

    Args:
        folder: that keeps centroids and index for the next time; None: none.
    """
    with contextlib.ExitStack() as stack:
        kept = folder or stack.enter_context(tempfile.TemporaryDirectory())
        flags = [
            "--arch=alexnet", f"--weights={weights}", "--dataset=pittsburgh", f"--root={root}", "--device=cpu",
            f"--dataPath={kept}", f"--runsPath={kept}",
        ]  # fmt: skip
        if not list(Path(kept).glob("*.hdf5")):
            run("--mode=cluster", *flags)
        run("--mode=index", *flags)
        yield flags


def run(*words: str) -> None:
    """Run a mode to its end."""
    subprocess.run([sys.executable, str(REPOSITORY / "main.py"), *words], check=True, stdout=subprocess.DEVNULL)


def queries_of(root: str) -> list[bytes]:
    """The query images of a folder in the layout of Pittsburgh, as they are on the disk."""
    return [file.read_bytes() for file in sorted(Path(root, "queries_real").rglob("*.jpg"))]


def family(process: int) -> list[int]:
    """A process and all that it started."""
    with contextlib.suppress(OSError):
        path = Path(f"/proc/{process}/task")
        children = [int(child) for task in path.iterdir() for child in (task / "children").read_text().split()]
        return [process, *(member for child in children for member in family(child))]
    return []


def resident(process: int) -> int:
    """Bytes of a process's resident memory."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def processor_seconds(process: int) -> float:
    """That a process has used, in user and system mode."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values, the smallest that at least a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def timed(connection: http.client.HTTPConnection, image: bytes) -> tuple[float, dict]:
    """Locate an image: seconds that the client waited, and the answer."""
    began = time.perf_counter()
    status, content = ask(connection, "POST", "/locate", image)
    seconds = time.perf_counter() - began
    if status != 200:
        raise RuntimeError(f"{status}: {content[:200]!r}")
    return seconds, json.loads(content)
