"""Several processes started by torchrun do what one does, and end together when one of them dies."""

import ast
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import main
from vpr.cli.flags import MODES
from vpr.common.device import multiplies_bf16
from vpr.models.backbones.base import build_backbone
from vpr.runs.run import newest_run

MAIN = Path(main.__file__)
pytestmark = pytest.mark.slow
EPOCHS = 2
CPU = torch.device("cpu")


def command(
    count: int, *arguments: str, program: Path = MAIN, environment: dict | None = None
) -> subprocess.CompletedProcess:
    """Run main.py or another program in `count` processes; one needs no torchrun."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone"] if count > 1 else []
    return subprocess.run(
        [sys.executable, *torchrun, str(program), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(environment or {})},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def flags(toy_root: Path, folder: Path) -> list[str]:
    return [
        "--dataset=toy", f"--root={toy_root}", "--arch=alexnet", "--fromscratch", "--num_clusters=4", "--threads=0",
        "--cacheBatchSize=5", "--imageSize", "64", "80", f"--dataPath={folder / 'centroids'}",
        f"--runsPath={folder / 'runs'}",
    ]  # fmt: skip


def losses(run: Path) -> list[float]:
    """The loss of each epoch, which metrics.csv has to six digits."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def runs(tiny_city, tmp_path_factory):
    """Folders in which one, two and three processes did their work, and what they printed; three only train."""
    done = {}
    cluster, test = ["--mode=cluster"], ["--mode=test", "--split=train"]
    # A training magnifies what a number format rounds: whole trainings are compared in float32, a step in bf16 below.
    train = ["--mode=train", f"--nEpochs={EPOCHS}", "--cacheRefreshRate=6", "--batchSize=4", "--precision=fp32"]
    for count, modes in ((1, (cluster, train, test)), (2, (cluster, train, test)), (3, (train,))):
        folder = tmp_path_factory.mktemp(f"by_{count}")
        printed = []
        if cluster not in modes:
            (folder / "centroids").symlink_to(done[1][0] / "centroids")
        for mode in modes:
            result = command(count, *mode, *flags(tiny_city, folder))
            assert result.returncode == 0, result.stderr
            printed.append(result.stdout)
        done[count] = (folder, printed)
    return done


@pytest.mark.parametrize("count", [2, 3])
def test_training_has_the_same_loss_recalls_and_weights(runs, count):
    """A block of six queries has a batch of four and one of two: of three processes one has no tuple then."""
    (one, _), (many, _) = runs[1], runs[count]
    runs_found = [newest_run(folder / "runs") for folder in (one, many)]
    wanted, found = (losses(run) for run in runs_found)
    assert len(wanted) == EPOCHS and wanted[0] > 0.01 and wanted[0] != wanted[1]
    assert found == pytest.approx(wanted, rel=1e-4)
    results = [json.loads((run / "results.json").read_text())[-1]["recalls"] for run in runs_found]
    # Images of a network that was hardly trained look alike: rounding may put another one first for one of 12 queries.
    assert all(abs(results[0][n] - results[1][n]) < 1.5 / 12 for n in ("1", "5", "10", "20"))
    states = [torch.load(run / "checkpoints" / "checkpoint.pth.tar", weights_only=True) for run in runs_found]
    assert states[0]["position"]["steps"] == states[1]["position"]["steps"] > 2
    assert torch.equal(states[0]["remembered"], states[1]["remembered"])
    for name, value in states[0]["state_dict"].items():
        apart = (states[1]["state_dict"][name] - value).norm()
        assert apart < 1e-4 * value.norm().clamp_min(1e-3), name


@pytest.fixture(scope="module")
def one_step(tiny_city, tmp_path_factory):
    """Takes the same training step by some processes in a number format; gives its loss, gradient and parts."""
    folder = tmp_path_factory.mktemp("one_step")

    def step(precision: str, count: int) -> dict:
        file = folder / f"{precision}_{count}.pt"
        if not file.exists():
            arguments = [*flags(tiny_city, folder), "--margin=4", "--batchSize=4", f"--precision={precision}"]
            result = command(count, str(file), *arguments, program=Path(__file__).with_name("one_step.py"))
            assert result.returncode == 0, result.stderr
        return torch.load(file, weights_only=True)

    return step


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_has_the_same_loss_and_gradient_but_for_the_rounding_of_sums(one_step, precision, count):
    """The bound: an image's part of a gradient is the same in any batch, and what differs is where sums are rounded.

    In bf16 a process's sum over its images is rounded to 8 significant bits: once by hardware that has the format (if
    oneDNN may use it), else up to once an image. Each time that errs by at most 2^-8 of the partial sum, which the
    images' absolute parts bound. float32 (the sums over processes, and all of the pooling) errs by 2^-24 in each of
    its additions, of which a weight has some 16 images x 192 places: 2^-12, and on the whole of what cancels, so that
    parts do not bound it.
    """
    one, many = one_step(precision, 1), one_step(precision, count)
    assert one["loss"] > 1 and many["loss"] == pytest.approx(one["loss"], rel=1e-6)
    for name, gradient in one["gradient"].items():
        parts = one["parts"][name]
        assert gradient.norm() > 1e-2 * parts.norm() > 0, "the step must do something"
        roundings = 0
        if precision == "bf16" and name.startswith("encoder"):
            once = multiplies_bf16(CPU) and "ONEDNN_MAX_CPU_ISA" not in os.environ
            roundings = 2 if once else 2 * one["photos"]
        bound = 1.01 * 2**-8 * roundings * parts + 2**-12 * parts.max()
        assert ((many["gradient"][name] - gradient).abs() <= bound).all(), name


def test_clusters_and_off_the_shelf_recalls_are_the_same(runs):
    off_the_shelf = [json.loads((runs[count][0] / "runs" / "results.json").read_text())[-1] for count in (1, 2)]
    assert off_the_shelf[0]["recalls"] == off_the_shelf[1]["recalls"]
    assert off_the_shelf[0]["centroids"] == off_the_shelf[1]["centroids"]
    centroids = []
    for (folder, _), result in zip((runs[1], runs[2]), off_the_shelf, strict=True):
        with h5py.File(folder / "centroids" / result["centroids"]) as file:
            centroids.append(file["centroids"][:])
    assert np.abs(centroids[0][1:] - centroids[0][0]).max(axis=1).min() > 1e-2, "clusters differ"
    np.testing.assert_allclose(centroids[1], centroids[0], rtol=0, atol=1e-4)


def test_one_process_prints_and_writes(runs):
    (one, _), (two, printed) = runs[1], runs[2]
    files = []
    for folder in (one, two):
        run = newest_run(folder / "runs")
        names = [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()]
        # A time, a machine and a process are in the name of TensorBoard's file.
        files.append(sorted("events" if name.startswith("events.out.tfevents.") else name for name in names))
    assert files[0] == files[1] and len(set(files[0])) == len(files[0])
    assert {"events", "results.json", "metrics.csv", "checkpoints/checkpoint.pth.tar"} <= set(files[0])
    for text in printed:
        assert text.count("device: ") == 1 and "2 processes" in text


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_run(tiny_city, runs, tmp_path, victim):
    """The victim is killed by its own first optimiser step, without a word to the others."""
    folder, _ = runs[1]
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        f"if os.environ.get('RANK') == '{victim}':\n"
        "    import torch\n"
        "    torch.optim.SGD.step = lambda *_, **__: os._exit(9)\n"
    )
    result = command(
        2, "--mode=train", *flags(tiny_city, folder), f"--runsPath={tmp_path / 'runs'}",
        environment={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode != 0
    assert re.search(rf"rank +: {victim} .*\n +exitcode +: 9 ", result.stderr), "the victim died of what it was told"
    run = newest_run(tmp_path / "runs")
    # The first block's checkpoint may have been written by the time the other's death is noticed.
    position = torch.load(run / "checkpoints" / "checkpoint.pth.tar", weights_only=True)["position"]
    assert position["epoch"] == 1 and not (run / "results.json").exists(), "the other one ended in its first epoch"


def test_an_error_in_all_processes_is_one_line_each(tiny_city, tmp_path):
    result = command(2, "--mode=test", *flags(tiny_city, tmp_path))
    lines = [line for line in result.stderr.splitlines() if "no centroids" in line]
    assert result.returncode != 0 and "UserError" not in result.stderr
    # torchrun may end the second process before it has said the same.
    said = [line.split(":")[0] for line in lines]
    assert said and set(said) <= {"error", "error in process 1"} and len(said) == len(set(said))


def test_the_best_model_is_tested_when_it_is_written_not_before(tiny_city, tmp_path):
    """Process 0 alone writes checkpoints, here slowly; all read the best one for the test at the end."""
    program = tmp_path / "slow_disk.py"
    program.write_text(
        f"import sys, time\nsys.path.insert(0, {str(MAIN.parent)!r})\n"
        "import main\nfrom vpr.training import trainer\n"
        "save = trainer.save_checkpoint\n"
        "trainer.save_checkpoint = lambda *values: (time.sleep(2), save(*values))\n"
        "sys.exit(main.main(sys.argv[1:]))\n"
    )
    train = [*flags(tiny_city, tmp_path), "--pooling=avg", "--nEpochs=1", "--cacheRefreshRate=0", "--precision=fp32"]
    result = command(2, "--mode=train", *train, program=program)
    assert result.returncode == 0, result.stderr


def test_the_group_has_ended_before_python_does(tmp_path):
    """A thread of the group that outlives it may take Python's lock while Python ends, and aborts the process."""
    program = tmp_path / "ends.py"
    program.write_text(
        f"import os, sys\nsys.path.insert(0, {str(MAIN.parent)!r})\n"
        "from vpr.common import processes\n"
        "def threads():\n"
        "    names = [open(f'/proc/self/task/{task}/comm').read() for task in os.listdir('/proc/self/task')]\n"
        "    return sum('gloo' in name for name in names)\n"
        "with processes.process_group():\n"
        "    import torch._dynamo  # as an optimiser or an export does\n"
        "    assert processes.any_process(True) and threads() > 0\n"
        "sys.exit(threads())\n"
    )
    result = command(2, program=program)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("room", [(16, 11)])
def test_processes_with_unequal_memory_agree_on_the_images_at_once(tiny_city, tmp_path, room):
    """--cacheBatchSize=0 where one process finds room for 16 images and the other for 11."""
    program = tmp_path / "unequal.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(MAIN.parent)!r})\n"
        "import main\nfrom vpr.common import processes\nfrom vpr.descriptors import batches as descriptors\n"
        "each = 4 * 2 * 64 * 15 * 19  # bytes: AlexNet's first layer at 80x64 pixels, and its ReLU\n"
        f"descriptors.available_bytes = lambda: 8 * each * {room}[processes.launched_rank()]\n"
        "sys.exit(main.main(sys.argv[1:]))\n"
    )
    described = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        common = [*flags(tiny_city, folder), "--precision=fp32", "--cacheBatchSize=0"]
        result = command(count, "--mode=cluster", *common, program=program if count == 2 else MAIN)
        assert result.returncode == 0, result.stderr
        # 48 images have 3 x 4 local descriptors each.
        assert "4 centroids of 576 descriptors" in result.stdout
        if count == 2:
            assert f"\n{min(room)} images at once\n" in result.stdout
        file = folder / "descriptors.h5"
        arguments = ["--mode=test", "--split=train", *common, "--panels=0", f"--saveDescriptors={file}"]
        # Both with the centroids of one process.
        arguments.append(f"--dataPath={tmp_path / '1' / 'centroids'}")
        result = command(count, *arguments, program=program if count == 2 else MAIN)
        assert result.returncode == 0, result.stderr
        with h5py.File(file) as stored:
            described[count] = np.concatenate([stored["database"][:], stored["queries"][:]]).astype(np.float32)
    assert described[1].shape == (60, 1024)
    assert np.abs(described[2] - described[1]).max() <= 2**-11  # a number below 1 in float16


@pytest.fixture(scope="module")
def lower_weights(tmp_path_factory):
    """A file of AlexNet's weights, with which its lower layers are frozen in a training, and cached."""
    torch.manual_seed(0)
    backbone = build_backbone("alexnet")
    backbone.initialize(0)
    file = tmp_path_factory.mktemp("weights") / "lower.pth"
    torch.save({f"features.{name}": value for name, value in backbone.state_dict().items()}, file)
    return file


def unlike_program(folder: Path) -> Path:
    """main.py in processes of unlike hardware: bf16 is what auto means to the first alone, fp32 to the second.

    Besides they find unlike hashes of what a trunk cache is made of, as where the time of a file is seen differently.
    """
    program = folder / "unlike.py"
    program.write_text(
        f"import os, sys\nsys.path.insert(0, {str(MAIN.parent)!r})\n"
        "rank = os.environ['RANK']\n"
        "os.environ['VPR_AUTO_PRECISION'] = {'0': 'bf16', '1': 'fp32'}[rank]\n"
        "import main\nfrom vpr.descriptors import trunk_cache\n"
        "own = trunk_cache.recipe_hash\n"
        "trunk_cache.recipe_hash = lambda wanted: own({**wanted, 'seen by': rank})\n"
        "sys.exit(main.main(sys.argv[1:]))\n"
    )
    return program


def test_processes_of_unlike_hardware_describe_in_one_number_format_and_say_so(tiny_city, tmp_path):
    """Every row that two of them store is what one process gives in float32, and is labelled so."""
    common = [
        "--mode=test", "--split=train", *flags(tiny_city, tmp_path), "--pooling=max", "--cacheBatchSize=6",
        "--panels=0",
    ]  # fmt: skip
    rows = {}
    for name in ("fp32", "bf16", "auto"):
        file = tmp_path / f"{name}.h5"
        arguments = [*common, f"--precision={name}", f"--saveDescriptors={file}"]
        if name == "auto":
            result = command(2, *arguments, program=unlike_program(tmp_path))
            assert result.returncode == 0, result.stderr
            said = [line for line in result.stdout.splitlines() if "unlike hardware" in line]
            assert len(said) == 1 and said[0].endswith("--precision=auto means fp32 in all")
            assert "(bf16) in process 0" in said[0] and "(fp32) in process 1" in said[0]
            assert "max, 256-D, fp32 by PyTorch; " in result.stdout
        else:
            assert main.main([*arguments, "--device=cpu"]) == 0
        with h5py.File(file) as stored:
            rows[name] = np.concatenate([stored["database"][:], stored["queries"][:]])
    assert (rows["fp32"] != rows["bf16"]).any(axis=1).all(), "every row tells the two formats apart"
    apart = np.abs(rows["auto"].astype(np.float32) - rows["fp32"].astype(np.float32)).max(axis=1)
    assert apart.max() <= 2**-11  # a number below 1 in float16; in bf16 rows are further apart
    from_bf16 = np.abs(rows["bf16"].astype(np.float32) - rows["fp32"].astype(np.float32)).max(axis=1)
    assert (apart < from_bf16).all()


def test_processes_of_unlike_hardware_train_together_from_one_trunk_cache(tiny_city, lower_weights, tmp_path):
    train = [flag for flag in flags(tiny_city, tmp_path) if flag != "--fromscratch"]
    train += ["--mode=train", f"--weights={lower_weights}", "--pooling=max", "--nEpochs=1", "--trunkCache=disk"]
    result = command(2, *train, f"--cachePath={tmp_path / 'cache'}", program=unlike_program(tmp_path))
    assert result.returncode == 0, result.stderr
    run = newest_run(tmp_path / "runs")
    assert json.loads((run / "results.json").read_text())[-1]["model"].endswith(", fp32 by PyTorch")
    assert json.loads((run / "flags.json").read_text())["auto_precision"] == "fp32"
    assert len(list((tmp_path / "cache").glob("*.float16"))) == 2, "one of the training images, one of the validation's"
    assert not list((tmp_path / "cache").glob(".*.part"))


def test_processes_are_counted_only_while_they_have_joined(tmp_path):
    """A program that joined its processes for work of its own is one process to us, and cannot be joined."""
    program = tmp_path / "own.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(MAIN.parent)!r})\n"
        "import torch, torch.distributed as dist\nfrom vpr.common import processes\n"
        "from vpr.common.errors import UserError\n"
        "def counted():\n"
        "    found = [processes.rank(), processes.world(), processes.local_rank(), processes.local_world()]\n"
        "    return [*found, processes.gather(processes.rank())]\n"
        "said = [counted()]\n"
        "with processes.process_group():\n"
        "    said.append(counted())\n"
        "    said.append(processes.all_reduce_min([7, 5][processes.rank()]))\n"
        "where = dict(rank=processes.launched_rank(), world_size=processes.launched())\n"
        f"dist.init_process_group('gloo', init_method='file://{tmp_path}/meeting', **where)\n"
        "said.append(counted())\n"
        "try:\n"
        "    with processes.process_group():\n        said.append('joined')\n"
        "except UserError as error:\n    said.append(str(error))\n"
        "if dist.get_rank() == 0:\n    print(said)\n"
        "dist.destroy_process_group()\n"
    )
    result = command(2, program=program)
    assert result.returncode == 0, result.stderr
    alone = [0, 1, 0, 1, [0]]
    found = ast.literal_eval(result.stdout.strip())
    assert found[:4] == [alone, [0, 2, 0, 2, [0, 1]], 5, alone]
    assert "another program" in found[4]


@pytest.mark.parametrize("mode", sorted({*MODES} - {"cluster", "train", "distill", "test", "whiten", "index"}))
def test_modes_of_one_process_refuse_several_in_one_line(monkeypatch, capsys, mode):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main.main([f"--mode={mode}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"--mode={mode} runs in one process, found 2" in said
    assert "cluster, train, test, whiten and index" in said


def test_more_than_one_gpu_without_torchrun_says_what_to_type(capsys):
    assert main.main(["--mode=train", "--nGPU=4"]) == 2
    assert "torchrun --nproc_per_node=4 main.py --mode=train" in capsys.readouterr().err
