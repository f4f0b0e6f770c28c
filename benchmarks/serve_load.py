"""How fast the server answers one client, and how many images it takes from several.

    python -m benchmarks.serve_load --root ../shared/places/tower --weights ../shared/weights/alexnet_...pth

Clients and server share the machine. All keep their connection, and ask again as soon as they have their answer.
"""

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.running_server import RunningServer, alexnet_on, percentile, queries_of, running_server, timed

WARM_UP = 30  # requests that do not count


@dataclass
class Load:
    """What clients saw.

    Attributes:
        seconds: of each answered request.
        errors: of the others.
        processor: seconds that the server used.
        parts: milliseconds by what took them, as answers say, of each.
        lasted: seconds in all.
    """

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    lasted: float = 0.0
    processor: float = 0.0

    @property
    def rate(self) -> float:
        """Images a second."""
        return len(self.seconds) / self.lasted

    def line(self, name: str) -> str:
        """What is printed."""
        median, high = (1000 * percentile(self.seconds, share) for share in (0.5, 0.99))
        inside = ", ".join(
            f"{part.removesuffix('_ms')} {percentile([each[part] for each in self.parts], 0.5):.1f}"
            for part in self.parts[0]
        )
        used = 1000 * self.processor / len(self.seconds)
        return (
            f"{name}: {len(self.seconds)} images, {self.rate:.1f} images/s, median {median:.1f} ms, 99th percentile "
            f"{high:.1f} ms, {len(self.errors)} errors; {used:.1f} ms of the processor each; medians in the server "
            f"(ms): {inside}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where an image was decoded twice or a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder in the layout of Pittsburgh")
    parser.add_argument("--weights", required=True, help="AlexNet's")
    parser.add_argument("--folder", help="keeps centroids and index (default: made anew)")
    parser.add_argument("--requests", type=int, default=600, help="of the single client")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60, help="for which the clients ask")
    options = parser.parse_args(arguments)
    images = queries_of(options.root)
    with alexnet_on(options.root, options.weights, options.folder) as flags, running_server(*flags) as server:
        return measure(server, images, options.requests, options.clients, options.seconds)


def measure(server: RunningServer, images: Sequence[bytes], requests: int, clients: int, seconds: float) -> int:
    """One client, then several."""
    load(server, images, 1, count=WARM_UP)
    decoded = server.metric("vpr_decoded_images_total")
    one = load(server, images, 1, count=requests)
    print(one.line("1 client"), flush=True)
    load(server, images, clients, seconds=2)
    before, started = server.megabytes(), server.metric("vpr_decoded_images_total")
    batches, described = (server.metric(f"vpr_batch_images_{name}") for name in ("count", "sum"))
    several = load(server, images, clients, seconds=seconds)
    batches = server.metric("vpr_batch_images_count") - batches
    described = server.metric("vpr_batch_images_sum") - described
    print(several.line(f"{clients} clients"))
    print(f"{described / batches:.1f} images a pass; {several.rate / one.rate:.2f} times the images/s of one client")
    print(f"memory of the server and its decoders: {before:.0f} MB before, {server.megabytes():.0f} MB after")
    decoded = server.metric("vpr_decoded_images_total") - started
    asked = len(several.seconds) + len(several.errors)
    print(f"{decoded:.0f} images decoded for {asked} requests")
    return int(bool(one.errors or several.errors) or decoded != asked)


def load(server: RunningServer, images: Sequence[bytes], clients: int, count: int = 0, seconds: float = 0.0) -> Load:
    """Have clients ask `count` times each, or for some seconds."""
    found, lock, began, used = Load(), threading.Lock(), time.perf_counter(), server.processor_seconds()

    def client(number: int) -> None:
        asked = 0
        with contextlib.closing(server.connection()) as connection:
            while asked < count if count else time.perf_counter() - began < seconds:
                image = images[(number * 17 + asked) % len(images)]
                asked += 1
                try:
                    waited, answer = timed(connection, image)
                except (OSError, RuntimeError) as error:
                    connection.close()
                    with lock:
                        found.errors.append(str(error))
                else:
                    with lock:
                        found.seconds.append(waited)
                        found.parts.append(answer["timing"])

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.lasted, found.processor = time.perf_counter() - began, server.processor_seconds() - used
    return found


if __name__ == "__main__":
    sys.exit(main())
