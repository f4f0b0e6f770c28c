"""Send the frames of a folder to a server one after the other, as a robot would, and print where it is.

    python main.py --mode=serve --resume=runs/RUN ...        # in another terminal
    python examples/stream.py http://127.0.0.1:8000 frames/

The standard library suffices: what runs on the robot needs neither PyTorch nor this project.
"""

import argparse
import http.client
import json
import os
import re
import time
import urllib.parse
from pathlib import Path

TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Send frames to a server, and print where each was taken.")
    parser.add_argument(
        "server", help="such as http://127.0.0.1:8000; its token, if any, in the environment: VPR_TOKEN"
    )
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # --near -33.8,151.2,500 as from Python 3.14 on
    parser.add_argument("frames", type=Path, help="folder")
    parser.add_argument("--near", help="LATITUDE,LONGITUDE,METRES: look no farther off")
    arguments = parser.parse_args()

    frames = sorted(path for path in arguments.frames.iterdir() if path.suffix.lower() in TYPES)
    server = urllib.parse.urlsplit(arguments.server)
    secure = server.scheme == "https"
    connection = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(server.netloc, timeout=60)
    query = "?top=1" + (f"&near={urllib.parse.quote(arguments.near, safe=',')}" if arguments.near else "")
    token = os.environ.get("VPR_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    began = time.perf_counter()
    for frame in frames:
        # One connection for all: opening one takes as long as a small network.
        connection.request(
            "POST", f"{server.path.rstrip('/')}/locate{query}", frame.read_bytes(),
            {**headers, "Content-Type": TYPES[frame.suffix.lower()]},
        )  # fmt: skip
        response = connection.getresponse()
        print(f"{frame.name}: {place_in(response.status, json.loads(response.read()))}", flush=True)
    seconds = time.perf_counter() - began
    print(f"{len(frames)} frames, {len(frames) / seconds:.1f} places per second")


def place_in(status: int, answer: dict) -> str:
    """Where the frame was taken, in words."""
    if status != 200:
        return f"error {status}: {answer['error']}"
    if answer["refused"] or not answer["matches"]:
        return "not sure"
    best, sure = answer["matches"][0], answer["confidence"]
    place = f"{best['latitude']:.6f}, {best['longitude']:.6f}" if best["latitude"] is not None else best["name"]
    return place if sure is None else f"{place} (confidence {sure:.2f})"


if __name__ == "__main__":
    main()
