"""Which device is taken, and in which number format is computed. No GPU is needed: see mock_gpus.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mock_gpus import A100, ANOTHER_A100, V100, Machine

import main
from vpr.cli.options import parse_options
from vpr.common import device as devices
from vpr.common.device import AUTO_VARIABLE, choose_device, compute_dtype, device_line, find_device
from vpr.common.errors import UserError

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def machine_with(monkeypatch):
    """Gives a machine with some GPUs; what is set of float32 is set back."""
    monkeypatch.delenv(AUTO_VARIABLE, raising=False)
    monkeypatch.setattr(devices, "processor_flags", lambda: {"avx2"})
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield lambda *gpus, current=0: Machine(list(gpus), current).install(
        lambda holder, name, value: monkeypatch.setattr(holder, name, value, raising=False)
    )
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.parametrize(
    ("gpus", "current", "name", "wanted", "auto"),
    [
        ([], 0, "auto", "cpu", torch.float32),
        ([], 0, "cpu", "cpu", torch.float32),
        ([A100], 0, "auto", "cuda:0", torch.bfloat16),
        ([A100], 0, "cuda", "cuda:0", torch.bfloat16),
        ([A100], 0, "cuda:0", "cuda:0", torch.bfloat16),
        ([A100], 0, "cpu", "cpu", torch.float32),
        ([V100], 0, "auto", "cuda:0", torch.float32),
        ([A100, ANOTHER_A100], 0, "auto", "cuda:0", torch.bfloat16),
        ([A100, ANOTHER_A100], 1, "cuda", "cuda:1", torch.bfloat16),
        ([A100, ANOTHER_A100], 0, "cuda:1", "cuda:1", torch.bfloat16),
        ([V100, A100], 0, "auto", "cuda:0", torch.float32),
        ([V100, A100], 0, "cuda:1", "cuda:1", torch.bfloat16),
        ([A100, V100], 0, "cuda:1", "cuda:1", torch.float32),
    ],
)
@pytest.mark.parametrize("environment", [{}, TORCHRUN])
def test_a_program_of_one_process_takes_a_device_with_its_index(
    machine_with, monkeypatch, gpus, current, name, wanted, auto, environment
):
    """torchrun's variables change nothing: they may be another program's, and we have joined nobody."""
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    machine = machine_with(*gpus, current=current)
    found = choose_device(name)
    assert found == wanted and compute_dtype("auto", found) == auto
    assert machine.set == ([found.number] if found.type == "cuda" else [])
    shown = f"{wanted} ({gpus[found.number].name})" if gpus and found.type == "cuda" else "cpu ("
    assert device_line(found).startswith(f"device: {shown}")


def test_no_cuda_is_the_cpu_beside_a_gpu(machine_with):
    machine = machine_with(A100)
    assert choose_device(parse_options(["--mode=test", "--nocuda"]).device) == "cpu"
    assert machine.set == []


@pytest.mark.parametrize(
    ("gpus", "name", "says"),
    [
        ([], "cuda", r"--device=cuda cannot be used here \(.*NVIDIA driver.*try --device=cpu"),
        ([], "cuda:0", r"--device=cuda:0 cannot be used here \(.*NVIDIA driver"),
        ([A100], "cuda:1", r"--device=cuda:1 is not there, found cuda:0: "),
        ([A100, V100], "cuda:2", r"--device=cuda:2 is not there, found cuda:0 to cuda:1: "),
        ([A100], "gpu", r"--device=gpu cannot be used here"),
        ([A100], "cuda:x", r"--device=cuda:x cannot be used here"),
        ([A100], "meta", r"--device=meta cannot be used here"),
        (
            [A100._replace(fault="CUDA error: no kernel image is available\nFor debugging consider ...")],
            "auto",
            r"--device=auto cannot be used here \(CUDA error: no kernel image is available\): try --device=cpu$",
        ),
    ],
)
@pytest.mark.parametrize("choose", [choose_device, find_device])
def test_a_device_that_cannot_be_used_is_one_line(machine_with, gpus, name, says, choose):
    machine = machine_with(*gpus)
    with pytest.raises(UserError, match=says):
        choose(name)
    assert machine.set == []


def test_float32_is_float32_on_a_gpu_of_the_programs_own(machine_with):
    """PyTorch's default are 10 bits of mantissa in convolutions, and NVIDIA's images want them in products too."""
    machine_with(A100)
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    choose_device("cpu")
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    choose_device("auto")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("name", "wanted"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0")])
def test_finding_a_device_for_another_program_sets_nothing(machine_with, name, wanted):
    """The program around the hub's model keeps its current GPU, which is the one taken unless another is named."""
    machine = machine_with(A100, ANOTHER_A100, current=1)
    torch.backends.cudnn.allow_tf32 = True
    assert find_device(name) == wanted
    assert (machine.current, machine.set, torch.backends.cudnn.allow_tf32) == (1, [], True)


def test_a_device_without_memory_is_one_line_wherever_it_ends(monkeypatch, capsys):
    """In any mode, at any place that has no remedy of its own to name."""

    def run(options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of ...")

    monkeypatch.setattr("vpr.modes.cluster.run", run)
    assert main.main(["--mode=cluster", "--device=cpu"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "too little memory (CUDA out of memory)" in said and "--cacheBatchSize" in said


# By a name: the device that is asked for, the GPUs that either process sees (a and b: A100, v: V100), whether the
# processes are of two machines; then what each takes and what --precision=auto means, or what is said.
JOINT = {
    "two": (("auto", ["ab", "ab"], False), ["cuda:0", "cuda:1"], "bf16"),
    "two by name": (("cuda", ["ab", "ab"], False), ["cuda:0", "cuda:1"], "bf16"),
    "unlike": (("auto", ["av", "av"], False), ["cuda:0", "cuda:1"], "fp32"),
    "old ones first": (("cuda", ["va", "va"], False), ["cuda:0", "cuda:1"], "fp32"),
    "each is shown its own": (("auto", ["a", "b"], False), ["cuda:0", "cuda:0"], "bf16"),
    "each is shown its own, by index": (("cuda:0", ["a", "b"], False), ["cuda:0", "cuda:0"], "bf16"),
    "two machines": (("auto", ["ab", "ab"], True), ["cuda:0", "cuda:0"], "bf16"),
    "two machines, by index": (("cuda:1", ["ab", "ab"], True), ["cuda:1", "cuda:1"], "bf16"),
    "two unlike machines": (("auto", ["v", "a"], True), ["cuda:0", "cuda:0"], "fp32"),
    "processors": (("auto", ["", ""], False), ["cpu", "cpu"], "fp32"),
    "processors beside GPUs": (("cpu", ["ab", "ab"], False), ["cpu", "cpu"], "fp32"),
    "one GPU for two": (("auto", ["a", "a"], False), "2 processes take 1 of the GPUs", None),
    "one index for two": (("cuda:1", ["ab", "ab"], False), "2 processes take 1 of the GPUs", None),
    "a machine without": (("auto", ["a", ""], True), "cuda in process 0, cpu in process 1", None),
    "a machine without, by name": (("cuda", ["a", ""], True), "--device=cuda cannot be used here", None),
    "none with that index": (("cuda:7", ["ab", "ab"], False), "--device=cuda:7 is not there", None),
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What came of all of JOINT in two processes that torchrun started, one situation after the other."""
    result = tmp_path_factory.mktemp("joint") / "result.json"
    program, situations = Path(__file__).with_name("two_processes.py"), [case[0] for case in JOINT.values()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # The processor's own auto differs between machines: here it is that of hardware without bf16.
    environment.pop(AUTO_VARIABLE, None)
    done = subprocess.run(
        [*torchrun, str(program), json.dumps(situations), str(result)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "find_unused_parameters" not in done.stderr
    return json.loads(result.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name, (*_, auto) in JOINT.items() if auto])
def test_processes_take_a_gpu_each_and_one_number_format(two_processes, case):
    (_, seen, _), taken, auto = JOINT[case]
    place = list(JOINT).index(case)
    found = [process["outcomes"][place] for process in two_processes]
    assert [each["device"] for each in found] == taken
    if taken[0] != "cpu":
        assert [each["formats"] for each in found] == [[auto, "fp16"]] * 2
        assert [each["set"] for each in found] == [[int(device[-1])] for device in taken]
        assert found[0]["line"].startswith("device: a GPU (") and "2 processes" in found[0]["line"]
    used = [seen[process][int(device[-1])] for process, device in enumerate(taken) if device != "cpu"]
    lines = found[0]["printed"].splitlines()
    if "v" in used:
        names = {"a": "NVIDIA A100 (bf16)", "v": "Tesla V100 (fp32)"}
        hardware = ", ".join(f"{names[letter]} in process {number}" for number, letter in enumerate(used))
        assert lines == [f"unlike hardware, {hardware}: --precision=auto means fp32 in all"]
    else:
        assert lines == []
    assert found[1]["printed"] == "", "the first process speaks for all"


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name, (*_, auto) in JOINT.items() if not auto])
def test_processes_that_cannot_work_together_say_so_in_all_at_once(two_processes, case):
    place = list(JOINT).index(case)
    for process in two_processes:
        assert JOINT[case][1] in process["outcomes"][place]["error"]


@pytest.mark.slow
def test_a_parameter_that_takes_no_part_stops_no_training_of_several_processes(two_processes):
    """As HRNet's last branches. Gradients are summed, and what takes no part gets none, as in one process."""
    for process in two_processes:
        assert process["gradients"] == [[11.0, None], [11.0, None]]


@pytest.mark.slow
def test_rows_are_gathered_in_the_first_process(two_processes):
    own, other = [0.0, 1.0, 2.0], [10.0, 11.0, 12.0]
    assert two_processes[0]["gathered"] == [own, other, other, own]


@pytest.mark.slow
def test_what_the_first_process_of_a_machine_found_holds_for_it(two_processes):
    """Where both are of one machine, and where each is of its own."""
    assert [process["of_machine"] for process in two_processes] == [[0, 0], [0, 1]]
