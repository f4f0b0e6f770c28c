"""Send the frames of a folder to a server one after the other, as a robot would, and print where it is.

The frames are those of a session, in which the server goes by the last ones too; --alone asks for each by itself.

    python main.py serve --resume=runs/RUN ...               # in another terminal
    python examples/stream.py http://127.0.0.1:8000 frames/

What runs on the robot needs the standard library and vpr/client.py alone, which may be copied beside this file.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "vpr"))

from client import Client, ServerError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def main() -> None:
    parser = argparse.ArgumentParser(description="Send frames to a server, and print where each was taken.")
    parser.add_argument(
        "server", help="such as http://127.0.0.1:8000; its token, if any, in the environment: VPR_TOKEN"
    )
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # --near -33.8,151.2,500 as from Python 3.14 on
    parser.add_argument("frames", type=Path, help="folder")
    parser.add_argument("--near", help="LATITUDE,LONGITUDE,METRES: look no farther off; each frame by itself")
    parser.add_argument("--alone", action="store_true", help="each frame by itself, as where the map has no order")
    arguments = parser.parse_args()
    frames = sorted(path for path in arguments.frames.iterdir() if path.suffix.lower() in ENDINGS)
    asked = {"top": 1, "session": f"{arguments.frames.name}-{os.getpid()}"}
    if arguments.alone or arguments.near:
        asked = {"top": 1, **({"near": arguments.near} if arguments.near else {})}
    try:
        with Client(arguments.server) as client:
            began = time.perf_counter()
            for frame in frames:
                print(f"{frame.name}: {place_of(client, frame, asked)}", flush=True)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {arguments.server}: {error}")
    seconds = time.perf_counter() - began
    print(f"{len(frames)} frames, {len(frames) / seconds:.1f} places per second")


def place_of(client: Client, frame: Path, asked: dict) -> str:
    """Where a frame was taken, in words."""
    try:
        answer = client.locate(frame, **asked)
    except ServerError as error:
        return str(error)
    if answer["refused"] or not answer["matches"]:
        return "not sure"
    best, sure = answer["matches"][0], answer["confidence"]
    place = f"{best['latitude']:.6f}, {best['longitude']:.6f}" if best["latitude"] is not None else best["name"]
    return place if sure is None else f"{place} (confidence {sure:.2f})"


if __name__ == "__main__":
    main()
