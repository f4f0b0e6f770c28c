"""Real photos and ImageNet weights: off-the-shelf recalls near those an independent implementation measured."""

import json

import pytest

import main

# Percent at 1, 5, 10, 20, measured elsewhere: AlexNet (torchvision V1), 64 clusters, float32, own image size.
TOWER = {"1": 59.6, "5": 83.5, "10": 91.9, "20": 96.5}
CORRIDOR = {"1": 59.5, "5": 84.7, "10": 92.8, "20": 97.3}
# A fresh k-means moves a recall by a point or two, and one query is 0.4 (tower) or 0.9 (corridor) points.
TOLERANCE = 6.0


@pytest.mark.slow
def test_alexnet_off_the_shelf_on_tower_and_corridor(shared, tmp_path):
    weights = shared / "weights" / "alexnet_features_torchvision_imagenet1k.pth"
    common = ["--arch=alexnet", f"--weights={weights}", f"--runsPath={tmp_path / 'runs'}", "--panels=0"]
    tower, corridor = (f"--root={shared / 'places' / name}" for name in ("tower", "corridor"))
    assert main.main(["--mode=cluster", tower, f"--dataPath={tmp_path}", *common]) == 0
    assert main.main(["--mode=test", tower, f"--dataPath={tmp_path}", *common]) == 0
    assert main.main(["--mode=test", corridor, f"--dataPath={next(tmp_path.glob('*.hdf5'))}", *common]) == 0
    for result, wanted in zip(
        json.loads((tmp_path / "runs" / "results.json").read_text()), (TOWER, CORRIDOR), strict=True
    ):
        assert result["descriptor_dim"] == 64 * 256
        for n, percent in wanted.items():
            assert abs(100 * result["recalls"][n] - percent) < TOLERANCE, (result["image_size"], n)
