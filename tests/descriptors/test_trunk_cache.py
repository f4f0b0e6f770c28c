"""Starting from the trunk cache gives what the whole trunk gives, and no stale cache is ever trusted."""

import errno
import fcntl
import os
import shutil

import numpy as np
import pytest
import torch
from drawing import draw_image
from PIL import Image
from torch import nn

import main
from vpr.cli.options import parse_options
from vpr.cli.specs import model_spec
from vpr.common.errors import UserError
from vpr.data.reader import ImageReader
from vpr.descriptors import trunk_cache
from vpr.descriptors.describe import describe
from vpr.descriptors.trunk_cache import FrozenFeatures, cached_source
from vpr.models.backbones.base import build_backbone
from vpr.models.place_model import build_model
from vpr.runs.run import newest_run
from vpr.training.trainer import BatchDescriber

CPU = torch.device("cpu")
SIZES = [(64, 48), (64, 48), (80, 56), (48, 64), (64, 48)]  # width, height


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of AlexNet in a file: with these its lower layers are frozen, as with pretrained ones."""
    encoder = build_backbone("alexnet")
    encoder.initialize(0)
    path = tmp_path_factory.mktemp("weights") / "lower.pth"
    torch.save({f"features.{name}": value for name, value in encoder.state_dict().items()}, path)
    return path


@pytest.fixture
def other_weights(weights, tmp_path):
    """Writes these weights with another bias of one layer, and gives the flag that names them."""

    def write(name, added):
        state = torch.load(weights, weights_only=True)
        torch.save({**state, name: state[name] + added}, tmp_path / "other.pth")
        return f"--weights={tmp_path / 'other.pth'}"

    return write


@pytest.fixture
def images(tmp_path):
    return [draw_image(tmp_path / f"{number}.png", size, number) for number, size in enumerate(SIZES)]


@pytest.fixture
def make(weights, images, tmp_path):
    """Makes (source, model, options) as a training with some flags does."""

    def run(*flags, paths=images):
        options = parse_options([
            "--mode=train", "--arch=alexnet", f"--weights={weights}", "--num_clusters=4", "--threads=0",
            "--cacheBatchSize=2", f"--cachePath={tmp_path / 'cache'}", *flags,
        ])  # fmt: skip
        torch.manual_seed(1)
        model = build_model(model_spec(options)).to_device(CPU, options.precision).eval()
        nn.init.normal_(model.pool.conv.weight, std=3)
        nn.init.normal_(model.pool.centroids, std=0.02)  # near 0, as local descriptors are: images come out unlike
        source = cached_source(
            ImageReader(paths, None, 0), "places", model, options.trunkCache, tmp_path / "cache", batch_size=2
        )
        return source, model, options

    return run


def described(source, model, options, order=range(5)):
    return torch.from_numpy(describe(model, source, order, options.cacheBatchSize, "test")[0]).float()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["memory", "disk", "auto"])
def test_descriptors_from_the_cache_are_those_of_the_whole_trunk(make, kind, precision):
    flag = f"--precision={precision}"
    cached, whole = make(f"--trunkCache={kind}", flag), make("--trunkCache=off", flag)
    assert isinstance(cached[0], FrozenFeatures) and isinstance(whole[0], ImageReader)
    order = [3, 0, 2, 4, 1]
    found, wanted = described(*cached, order), described(*whole, order)
    assert torch.pdist(wanted).min() > 0.1, "the images must differ"
    assert (found - wanted).norm(dim=1).max() < 2e-3  # float16 has 11 bits
    # The cache is in float16, a float32 trunk is not; the 8 bits of bf16 fit into it.
    assert ((found - wanted).abs().max() > 0) == (precision == "fp32")


def test_gradients_from_the_cache_are_those_of_the_whole_trunk(make):
    gradients = []
    for source, model, _ in (make("--trunkCache=memory"), make("--trunkCache=off")):
        (batch,) = source.batches([[0, 1, 4]])
        BatchDescriber(model)(batch[:1])[0, ::3].sum().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    found, wanted = gradients
    assert found.keys() == wanted.keys() and len(wanted) == 4  # conv5 and the pooling
    for name, value in wanted.items():
        assert (found[name] - value).norm() < 5e-3 * value.norm(), name


def test_batches_of_mixed_sizes_come_from_the_cache_as_from_the_files(make):
    (cached, *_), (whole, *_) = make("--trunkCache=memory"), make("--trunkCache=off")
    wanted = [[4, 2, 0], [3], [1, 1]]
    for found, expected in zip(cached.batches(wanted), whole.batches(wanted), strict=True):
        assert [group.image_size for group in found] == [group.image_size for group in expected]
        assert [group.rows.tolist() for group in found] == [group.rows.tolist() for group in expected]
        assert all(group.values.dtype == np.float16 for group in found)


def test_features_are_pinned_only_for_a_gpu(make, monkeypatch):
    """Beside a GPU that is not in use nothing is: here it could not even be done."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    source, *_ = make("--trunkCache=memory")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    plain, pinned = [], []
    for device, values in ((CPU, plain), (torch.device("cuda"), pinned)):
        source.device = device
        values += [group.values for batch in source.batches([[0, 1], [4]]) for group in batch]
    assert len(plain) == 2 and all(np.array_equal(b, a + 1) for a, b in zip(plain, pinned, strict=True))


def test_a_cache_on_disk_is_used_again_as_it_is(make, tmp_path, capsys):
    first = described(*make("--trunkCache=disk"))
    (file,) = (tmp_path / "cache").glob("*.float16")
    written = file.stat().st_mtime_ns
    capsys.readouterr()
    second = described(*make("--trunkCache=disk"))
    assert "is used again" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == written and torch.equal(first, second)
    assert not list((tmp_path / "cache").rglob("*.part"))


def spoil_value(file, image):
    np.memmap(file, np.uint8, "r+")[777] ^= 1


SPOILT = {
    "half": lambda file, image: os.truncate(file, file.stat().st_size // 2),
    "value": spoil_value,
    "image": lambda file, image: Image.new("RGB", SIZES[0], (9, 200, 9)).save(image),
    "time": lambda file, image: os.utime(image, ns=(1, 1)),
    "description": lambda file, image: file.with_suffix(".json").write_text("{"),
    "no description": lambda file, image: file.with_suffix(".json").unlink(),
    "size": lambda file, image: Image.open(image).resize((90, 70)).save(image),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_stale_or_damaged_cache_is_made_anew(make, tmp_path, images, capsys, spoil):
    make("--trunkCache=disk")
    (file,) = (tmp_path / "cache").glob("*.float16")
    spoil(file, images[0])
    capsys.readouterr()
    found = described(*make("--trunkCache=disk"))
    assert "is used again" not in capsys.readouterr().out
    assert (found - described(*make("--trunkCache=off"))).norm(dim=1).max() < 2e-3


@pytest.mark.parametrize("change", ["weights", "--normalization=unit", "files", "--precision=bf16"])
def test_a_cache_of_something_else_is_not_used(make, other_weights, images, capsys, change):
    make("--trunkCache=disk", "--precision=fp32")
    paths = list(reversed(images)) if change == "files" else images
    flag = {"weights": other_weights("features.0.bias", 0.5), "files": "--precision=fp32"}.get(change, change)
    capsys.readouterr()
    found = described(*make("--trunkCache=disk", "--precision=fp32", flag, paths=paths))
    assert "is used again" not in capsys.readouterr().out
    whole = described(*make("--trunkCache=off", "--precision=fp32", flag, paths=paths))
    assert (found - whole).norm(dim=1).max() < (2e-2 if "bf16" in change else 2e-3)


@pytest.mark.parametrize("how", ["announced", "while reserving", "no folder"])
def test_without_room_on_the_disk_the_whole_trunk_runs(make, tmp_path, monkeypatch, capsys, how):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if how == "announced":
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(trunk_cache.shutil, "disk_usage", lambda _: usage)
    elif how == "while reserving":
        monkeypatch.setattr(trunk_cache.os, "posix_fallocate", no_room)
    else:
        (tmp_path / "cache").write_text("a file, not a folder")
    source, *_ = make("--trunkCache=disk")
    assert isinstance(source, ImageReader)
    lines = [line for line in capsys.readouterr().out.splitlines() if "no trunk cache" in line]
    assert len(lines) == 1 and "whole trunk" in lines[0]
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.float16"))


def test_values_beyond_float16_are_not_cached(make, other_weights, tmp_path, capsys):
    source, *_ = make("--trunkCache=disk", other_weights("features.8.bias", 1e6))
    assert isinstance(source, ImageReader)
    assert "float16" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.float16"))


def test_a_network_from_scratch_has_nothing_to_cache(make):
    assert isinstance(make("--trunkCache=disk", "--weights=none")[0], ImageReader)


@pytest.mark.slow
def test_training_from_the_cache_ends_where_training_without_it_ends(tiny_city, weights, tmp_path):
    model = ["--arch=alexnet", f"--weights={weights}", "--num_clusters=4", "--imageSize", "64", "80", "--lr=0.01"]
    common = [
        "--dataset=toy", f"--root={tiny_city}", *model, f"--dataPath={tmp_path}", f"--cachePath={tmp_path / 'cache'}",
        "--threads=0", "--device=cpu",
    ]  # fmt: skip
    assert main.main([*common, "--mode=cluster"]) == 0
    ends, layer = {}, {}
    for kind in ("off", "memory", "disk"):
        runs = tmp_path / kind
        assert main.main([*common, "--mode=train", "--nEpochs=2", f"--trunkCache={kind}", f"--runsPath={runs}"]) == 0
        state = torch.load(newest_run(runs) / "checkpoints" / "checkpoint.pth.tar", weights_only=True)
        ends[kind] = [state["position"][name] for name in ("epoch", "steps")]
        layer[kind] = state["state_dict"]["encoder.10.weight"]
    moved = (layer["off"] - torch.load(weights, weights_only=True)["features.10.weight"]).norm()
    assert moved > 1e-3, "training must do something"
    assert (layer["memory"] - layer["off"]).norm() < 0.05 * moved and torch.equal(layer["memory"], layer["disk"])
    assert ends["memory"] == ends["disk"] == ends["off"]
    assert len(list((tmp_path / "cache").glob("*.float16"))) == 2  # train and val


def test_an_image_too_small_for_the_trunk_is_one_line(make, images):
    """As without the cache."""
    Image.new("RGB", (20, 20)).save(images[2])
    for flag in ("--trunkCache=memory", "--trunkCache=disk"):
        with pytest.raises(UserError, match=r"an image is 20x20 pixels, the backbone needs at least 31"):
            make(flag)


def test_two_trainings_share_a_cache_folder(make, other_weights, tmp_path, monkeypatch):
    """The second one makes and ends its cache while the first is half way, with weights of its own."""
    made, fill = {}, trunk_cache._fill
    for second in ([other_weights("features.0.bias", 0.5)], []):  # other weights, then the same

        def fill_with_interruption(source, *rest, second=second):
            fill(source, *rest)
            monkeypatch.setattr(trunk_cache, "_fill", fill)
            source.values[: len(source.values) // 2] = 0  # half way
            made["second"] = make("--trunkCache=disk", *second)
            fill(source, *rest)

        monkeypatch.setattr(trunk_cache, "_fill", fill_with_interruption)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        first = make("--trunkCache=disk")
        for cached, words in ((first, []), (made["second"], second)):
            alone = make("--trunkCache=memory", *words)[0]
            assert isinstance(cached[0], FrozenFeatures) and np.array_equal(cached[0].values, alone.values)
            again = make("--trunkCache=disk", *words)[0]
            assert np.array_equal(again.values, alone.values), "what later runs find"
        assert not list((tmp_path / "cache").rglob("*.part"))


def test_values_stay_though_another_training_replaces_the_file(make, images, tmp_path):
    first = make("--trunkCache=disk")[0]
    wanted = first.values.copy()
    fewer = make("--trunkCache=disk", paths=images[:3])[0]  # same weights and set: the former is stale
    assert len(list((tmp_path / "cache").glob("*.float16"))) == 1 and len(fewer.values) < len(wanted)
    assert np.array_equal(first.values, wanted)


def test_leftovers_of_killed_trainings_and_earlier_versions_go(make, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (part, live, old, other) = (cache / name for name in (
        ".trunk_alexnet_places_0_1.float16.aa-0.part", ".trunk_alexnet_places_0_1.float16.bb-0.part",
        "trunk_alexnet_places.float16", "trunk_alexnet_y.float16",
    ))  # fmt: skip
    for file in (part, live, old, other):
        file.write_bytes(b"12")
        os.utime(file, (1, 1))
    with open(live, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        make("--trunkCache=disk")
    assert [file.exists() for file in (part, live, old, other)] == [False, True, False, True]
