"""Find where images were taken, with a trained model and a folder of images whose positions are known.

    python examples/locate.py runs/RUN photos one.jpg two.jpg
    python examples/locate.py runs/RUN/model_best.onnx photos one.jpg two.jpg

The first call describes the folder and keeps an index beside the model; later ones use it. By default the folder is of
the data set that the model was trained on; --dataset=folder takes any images.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import vpr


def main() -> None:
    parser = argparse.ArgumentParser(description="Find where images were taken.")
    parser.add_argument("model", help="a run's folder, or an exported FILE.onnx")
    parser.add_argument("root", help="folder of the database's images")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--dataset")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    flags = {"dataset": arguments.dataset} if arguments.dataset else {}
    locator = vpr.load_locator(arguments.model, arguments.root, device=arguments.device, **flags)
    for image, answer in zip(arguments.images, locator.locate(arguments.images), strict=True):
        best = answer.matches[0]
        print(f"{image} looks like {best.name}, {best.position_text()}: {answer.sure}")


if __name__ == "__main__":
    main()
