"""The program on a GPU: all that a processor and mocks cannot show. Skipped, with the reason, where there is no CUDA.

pytest tests/gpu                  on the current GPU
pytest tests/gpu --gpu-on=cpu     the same bodies on a processor, to try them
"""

import contextlib
import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from drawing import draw_image

import main
from vpr.common.device import choose_device
from vpr.common.errors import UserError
from vpr.common.memory import out_of_memory_says
from vpr.data.places import PlacesSpec, load_places
from vpr.models.backbones.base import build_backbone
from vpr.runs.run import newest_run

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
MAIN = Path(main.__file__)
SIZE = ["--imageSize", "64", "80"]
QUERIES = 12  # of each split of the tiny city
# How far apart descriptors of length 1 may be, in each number: stored in float16 they are rounded by at most 2^-12, and
# sums of some thousand float32 in another order err by some 1e-5.
APART = 1e-3


def flags(city: Path, folder: Path, on: str) -> list[str]:
    """Those of a small model, with two decoders: beside a GPU these are processes, and what they give is pinned."""
    return [
        "--dataset=toy", f"--root={city}", "--arch=alexnet", "--fromscratch", "--num_clusters=4", "--threads=2", *SIZE,
        f"--device={on}", f"--dataPath={folder / 'centroids'}", f"--runsPath={folder / 'runs'}",
    ]  # fmt: skip


def resuming(run: Path, on: str, *rest: str) -> list[str]:
    return [f"--resume={run}", f"--runsPath={run.parent}", "--threads=2", f"--device={on}", *rest]


def checkpoint_of(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "checkpoint.pth.tar", map_location="cpu", weights_only=True)


def results_of(run: Path) -> list[dict]:
    return json.loads((run / "results.json").read_text())


def do(*words: str) -> str:
    """Run the program in this process; gives what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main.main(list(words))
    assert code == 0, printed.getvalue()[-2000:]
    return printed.getvalue()


@pytest.fixture(scope="module")
def run(tiny_city, tmp_path_factory, gpu):
    """Clustered, and trained for an epoch in float32."""
    folder = tmp_path_factory.mktemp("on_gpu")
    said = do("--mode=cluster", "--precision=fp32", *flags(tiny_city, folder, gpu))
    assert f"device: {gpu}" in said
    do("--mode=train", "--precision=fp32", "--nEpochs=1", *flags(tiny_city, folder, gpu))
    return newest_run(folder / "runs")


@pytest.fixture(scope="module")
def tested(run, gpu, tmp_path_factory):
    """Results of the run's model in float32, and its descriptors of database and queries, on the GPU and on the CPU."""
    folder, found = tmp_path_factory.mktemp("tested"), {}
    for on in (gpu, "cpu"):
        words = ("--noWhiten", "--panels=0", "--precision=fp32", f"--saveDescriptors={folder / on}.h5")
        do("--mode=test", "--split=test", *resuming(run, on, *words))
        with h5py.File(folder / f"{on}.h5") as file:
            found[on] = results_of(run)[-1], *(file[name][:].astype(np.float32) for name in ("database", "queries"))
        (folder / f"{on}.h5").unlink()
    return found[gpu], found["cpu"]


def test_a_training_learns_and_its_run_can_be_read_without_a_gpu(run, gpu):
    checkpoint = checkpoint_of(run)
    start = build_backbone("alexnet")
    start.initialize(json.loads((run / "flags.json").read_text())["seed"])
    assert checkpoint["position"]["steps"] > 0
    assert not torch.equal(checkpoint["state_dict"]["encoder.0.weight"], start.state_dict()["0.weight"])
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["loss"]) > 0 and float(row["memory_mb"]) > 0
    assert len(checkpoint["cuda_random_states"]) == (torch.cuda.device_count() if gpu == "cuda" else 0)


def test_descriptors_and_recalls_are_those_of_the_cpu(tested):
    on_gpu, on_cpu = tested
    for found, wanted in zip(on_gpu[1:], on_cpu[1:], strict=True):
        assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < APART
        assert np.abs(found - wanted).max() < APART
    assert on_gpu[0]["model"] == on_cpu[0]["model"]
    for n, recall in on_gpu[0]["recalls"].items():
        assert abs(recall - on_cpu[0]["recalls"][n]) < 1.01 / QUERIES


def test_a_training_goes_on_in_other_number_formats(tiny_city, tmp_path, gpu):
    """bf16, then float16 with its scaled gradients, then float32, as --resume allows; on any GPU, if slowly."""
    common = flags(tiny_city, tmp_path, gpu)
    do("--mode=train", "--pooling=avg", "--precision=bf16", "--nEpochs=1", *common)
    run = newest_run(tmp_path / "runs")
    for epochs, precision in ((2, "fp16"), (3, "fp32")):
        do("--mode=train", *resuming(run, gpu, f"--nEpochs={epochs}", f"--precision={precision}"))
        checkpoint = checkpoint_of(run)
        assert bool(checkpoint["scaler"]) == (precision == "fp16")
        assert checkpoint["position"]["epoch"] == epochs + 1
        assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
        assert results_of(run)[-1]["model"].endswith(f", {precision} by PyTorch")


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_training_starts_from_a_trunk_cache(tiny_city, tmp_path, gpu, where):
    """Of a backbone whose lower layers are frozen, from which pinned features go to the GPU."""
    lower = build_backbone("alexnet")
    lower.initialize(0)
    values = {f"features.{name}": value for name, value in lower.state_dict().items()}
    torch.save(values, tmp_path / "lower.pth")
    common = [flag for flag in flags(tiny_city, tmp_path, gpu) if flag != "--fromscratch"]
    said = do(
        "--mode=train", f"--weights={tmp_path / 'lower.pth'}", "--pooling=avg", "--nEpochs=1", f"--trunkCache={where}",
        f"--cachePath={tmp_path / 'cache'}", "--precision=fp32", *common,
    )  # fmt: skip
    assert "trunk cache: " in said and "no trunk cache" not in said
    state = checkpoint_of(newest_run(tmp_path / "runs"))["state_dict"]
    changed = {
        name for name, value in values.items() if not torch.equal(state[name.replace("features", "encoder")], value)
    }
    assert changed == {"features.10.weight", "features.10.bias"}, "conv5 alone is trained"


def test_as_many_images_as_fit_are_as_many_the_next_time(run, gpu):
    """Once PyTorch holds memory for later tensors; a line says it once."""
    said = do("--mode=test", "--split=test", *resuming(run, gpu, "--cacheBatchSize=0", "--panels=0"))
    assert said.count(" images at once\n") <= 1


@pytest.mark.parametrize(
    ("words", "last"),
    [
        (("--mode=whiten", "--pcaDim=8"), "-> 8-D"),
        (("--mode=test", "--split=test", "--noWhiten", "--rerank=5", "--explain", "--panels=2"), "R@1:"),
        (("--mode=test", "--split=test", "--noWhiten", "--precision=fp16", "--panels=0"), "R@1:"),
        (("--mode=compare", "--split=test"), "comparison.md"),
        (("--mode=prune", "--pruneRatio=0.3", "--distill=8"), "train it:"),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_other_modes(run, gpu, words, last):
    if "--mode=prune" in words:
        pytest.importorskip("torch_pruning", reason="torch-pruning, an optional package, is not installed")
    arguments = resuming(run, gpu, *words)
    if "--mode=compare" in words:
        arguments = [str(run), *arguments[1:]]
    assert last in do(*arguments)


def test_an_index_is_made_and_located_in(run, gpu, tiny_city, capsys):
    index = ("--split=test", "--noWhiten", f"--indexFile={run / 'gpu.h5'}", "--precision=fp32")
    do("--mode=index", *resuming(run, gpu, *index))
    images = load_places(PlacesSpec("toy", tiny_city), "test")
    asked = images.database_files[3]
    said = do("--mode=locate", str(asked), *resuming(run, gpu, *index, "--json", "--panels=0"))
    assert json.loads(said)[0]["matches"][0]["name"] == images.places.database_names[3]


def test_the_server_answers_as_the_test_counts(run, gpu, tiny_city, tested):
    """For each query the images that are nearest by the descriptors of the test."""
    images = load_places(PlacesSpec("toy", tiny_city), "test")
    (_, database, queries), _ = tested
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers: list = []

    def ask():
        try:
            wait_for(f"http://127.0.0.1:{port}/ready")
            for file in images.query_files:
                head = {"content-type": "image/png"}
                request = urllib.request.Request(f"http://127.0.0.1:{port}/locate?top=3", file.read_bytes(), head)
                with urllib.request.urlopen(request, timeout=60) as answer:
                    answers.append(json.load(answer))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    index = ("--split=test", "--noWhiten", f"--indexFile={run / 'served.h5'}", "--precision=fp32", f"--port={port}")
    do("--mode=serve", *resuming(run, gpu, *index))
    thread.join()
    assert len(answers) == QUERIES
    for answer, query in zip(answers, queries, strict=True):
        distances = np.linalg.norm(database - query, axis=1)
        row = {name: number for number, name in enumerate(images.places.database_names)}
        found = [row[match["name"]] for match in answer["matches"]]
        np.testing.assert_allclose(distances[found], np.sort(distances)[:3], atol=5e-3)


def wait_for(address: str) -> None:
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise TimeoutError(f"{address} did not answer")


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "--standalone", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)


def test_torchrun_with_one_process_trains(tiny_city, tmp_path, gpu):
    train = ["--mode=train", "--pooling=avg", "--nEpochs=1", "--precision=fp32", *flags(tiny_city, tmp_path, gpu)]
    done = torchrun(str(MAIN), *train)
    assert done.returncode == 0, done.stderr
    assert checkpoint_of(newest_run(tmp_path / "runs"))["position"]["steps"] > 0


def test_gradients_go_through_nccl(gpu):
    done = torchrun(str(Path(__file__).with_name("sum_gradients.py")), gpu)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("OK")


def test_the_hub_describes_as_the_test_does_and_leaves_the_current_gpu_alone(run, gpu, tiny_city, tested):
    images = load_places(PlacesSpec("toy", tiny_city), "test")
    before = torch.cuda.current_device() if gpu == "cuda" else None
    name = f"cuda:{torch.cuda.device_count() - 1}" if gpu == "cuda" else gpu
    model = torch.hub.load(
        str(MAIN.parent), "netvlad", source="local", checkpoint=str(run), whitened=False, device=name
    )
    model.model.to_device(model.model.device, "fp32")
    assert str(model.model.device) == name
    found = model.describe_files(images.query_files, workers=2)
    assert np.abs(found - tested[0][2]).max() < APART
    assert before is None or torch.cuda.current_device() == before


def test_images_of_many_sizes_are_described_as_one_by_one(run, gpu, tmp_path):
    """Pinned and copied while others are computed, they neither mix nor change; the sizes come out as they are."""
    sizes = [(96, 72), (80, 88), (64, 64), (120, 80)]
    files = [draw_image(tmp_path / f"{n}.png", sizes[n % 4], n) for n in range(30)]
    model = torch.hub.load(str(MAIN.parent), "netvlad", source="local", checkpoint=str(run), whitened=False, device=gpu)
    model.model.to_device(model.model.device, "fp32")
    model.image_size = None
    together = model.describe_files(files, workers=2)
    alone = np.concatenate([model.describe_files([file]) for file in files])
    assert np.abs(together - alone).max() < APART
    assert np.abs(together[0] - together[4]).max() > 10 * APART, "the images must differ"


def test_float32_is_float32_in_convolutions_and_products(gpu):
    """TF32 has 10 bits of mantissa: to it 1 + 2^-12 is 1, and a product of two such numbers 2^-11 smaller."""
    device, value = choose_device(gpu), 1 + 2.0**-12
    images, kernels = (torch.full(shape, value, device=device) for shape in ((2, 64, 32, 32), (64, 64, 3, 3)))
    rows = torch.full((64, 4096), value, device=device)
    convolved, product = torch.nn.functional.conv2d(images, kernels), rows @ rows.T
    assert (convolved / (64 * 9 * value**2) - 1).abs().max() < 2**-14
    assert (product / (4096 * value**2) - 1).abs().max() < 2**-14


def test_too_little_memory_is_one_line(gpu):
    if gpu == "cpu":
        pytest.skip("a processor's memory ends otherwise")
    with pytest.raises(UserError, match=r"too little memory .*: lower it"), out_of_memory_says("lower it"):
        torch.empty(1 << 50, dtype=torch.uint8, device=gpu)
