"""Generalised-mean pooling: closed forms, its gradient, and that every command takes it."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import main
from vpr.models.place_model import PlaceModel
from vpr.models.poolings.gem import EPS, GeM
from vpr.models.spec import ModelSpec
from vpr.runs.run import newest_run


def positive(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1


def test_with_an_exponent_of_one_it_is_the_mean():
    features = positive(2, 5, 3, 4)
    wanted = F.normalize(features.mean(dim=(2, 3)), dim=1)
    torch.testing.assert_close(GeM(5, p=1.0).double()(features), wanted)


def test_with_a_large_exponent_it_is_the_maximum():
    """Of 12 values that are equal the power mean is that value, else it lies between max / 12^(1/p) and max."""
    features = positive(2, 5, 3, 4)
    wanted = F.normalize(features.amax(dim=(2, 3)), dim=1)
    found = GeM(5, p=1000.0).double()(features)
    assert (found - wanted).abs().max() < 1 - 12 ** (-1 / 1000)
    assert (GeM(5, p=3.0).double()(features) - wanted).abs().max() > 0.01


def test_two_locations_by_hand():
    """(1, 2) and (3, 3) with p = 2: the square roots of 5 / 2 and 9."""
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 3.0]]]], dtype=torch.float64)  # [1, 2, 1, 2]
    wanted = np.sqrt([2.5, 9]) / np.sqrt(11.5)
    np.testing.assert_allclose(GeM(2, p=2.0).double()(features)[0].detach().numpy(), wanted, rtol=1e-7)


def test_what_is_not_positive_counts_as_eps():
    features = torch.tensor([[[[-5.0, 2.0]], [[-1.0, 0.0]]]], dtype=torch.float64)
    found = GeM(2, p=3.0).double()(features)[0].detach()
    wanted = F.normalize(torch.tensor([2.0 * 0.5 ** (1 / 3), EPS], dtype=torch.float64), dim=0)
    torch.testing.assert_close(found, wanted)


def test_large_values_and_exponents_do_not_overflow_in_float32():
    features = torch.tensor([1e4, 2e4]).expand(1, 3, 2, 2)
    found = GeM(3, p=100.0)(features)
    torch.testing.assert_close(found, torch.full((1, 3), 3**-0.5))


def test_gradients_are_those_of_finite_differences():
    """Of the features and of the exponent."""
    layer, features = GeM(4).double(), positive(2, 4, 2, 3).requires_grad_()
    p = torch.tensor([2.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda features, p: functional_call(layer, {"p": p}, (features,)), (features, p))
    toward = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (functional_call(layer, {"p": p}, (features,)) * toward).sum().backward()
    assert abs(p.grad.item()) > 1e-4


def test_the_exponent_starts_at_three_and_is_learnt_and_stored():
    model = PlaceModel(ModelSpec("alexnet", "none", pooling="gem"))
    assert model.dim == 256 and "gem, 256-D" in model.name
    assert model.state_dict()["pool.p"].tolist() == [3.0]
    assert model.pool.p.requires_grad and not model.pool.normalizes_input


@pytest.fixture(scope="module")
def trained(tiny_city, tmp_path_factory):
    """Flags of the places, and a run with GeM of one epoch in fp32; tested without training before."""
    folder = tmp_path_factory.mktemp("gem")
    places = [
        "--dataset=toy", f"--root={tiny_city}", "--threads=0", "--device=cpu", f"--dataPath={folder}",
        f"--runsPath={folder / 'runs'}", "--precision=fp32", "--imageSize", "64", "80",
    ]  # fmt: skip
    model = ["--arch=alexnet", "--fromscratch", "--pooling=gem"]
    assert main.main([*places, *model, "--mode=test", "--split=val", "--panels=0"]) == 0
    assert main.main([*places, *model, "--mode=train", "--nEpochs=1", "--lr=0.01", "--margin=1"]) == 0
    return places, newest_run(folder / "runs")


def test_it_is_tested_without_clusters_and_trained(trained):
    _, run = trained
    before = json.loads((run.parent / "results.json").read_text())[0]
    assert before["descriptor_dim"] == 256 and "gem" in before["model"] and before["queries"] == 12
    stored = torch.load(run / "checkpoints" / "checkpoint.pth.tar", weights_only=True)
    assert stored["flags"]["pooling"] == "gem"
    assert stored["state_dict"]["pool.p"].item() != 3.0, "the exponent learns"


def test_clustering_for_it_is_refused_in_a_line(trained, capsys):
    places, _ = trained
    assert main.main([*places, "--arch=alexnet", "--fromscratch", "--pooling=gem", "--mode=cluster"]) == 2
    assert "--pooling=gem has no clusters" in capsys.readouterr().err


def test_the_hub_and_an_exported_file_describe_alike(trained, tiny_city, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    places, run = trained
    file = run / "gem.onnx"
    places = [flag for flag in places if not flag.startswith("--precision")]
    assert main.main([*places, "--mode=export", f"--resume={run}", f"--out={file}"]) == 0
    hub = torch.hub.load(main.__file__.removesuffix("/main.py"), "netvlad", source="local", checkpoint=str(run))
    hub.model.to_device(torch.device("cpu"), "fp32")
    exported = torch.hub.load(main.__file__.removesuffix("/main.py"), "netvlad", source="local", checkpoint=str(file))
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, wanted = exported(images), hub(images)
    assert found.shape == (2, 256) and (found - wanted).abs().max() < 1e-5
    assert (wanted[0] - wanted[1]).norm() > 1e-3
    assert main.main([*places, "--mode=compare", "--split=val", str(run), str(file)]) == 0
    table = capsys.readouterr().out
    assert table.count(", gem, 256-D") >= 2
