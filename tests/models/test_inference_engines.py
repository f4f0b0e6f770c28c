"""Inference engines give what PyTorch gives, are named, and what cannot be had is said and computed by PyTorch."""

import importlib.util

import numpy as np
import pytest
import torch

from vpr.cli.flags import all_flags
from vpr.models import engines
from vpr.models.engines import ENGINES, cache_folder
from vpr.models.place_model import PlaceModel, build_model
from vpr.models.spec import ModelSpec

CPU = torch.device("cpu")
SPECS = {
    "alexnet": ModelSpec(arch="alexnet", weights="none", clusters=4),
    "lite0": ModelSpec(arch="tf_efficientnet_lite0", weights="none", clusters=4, cut=16),
    "vit": ModelSpec(arch="vit_tiny_patch16_224", weights="none", clusters=4, cut=1, facet="token"),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(engines.CACHE_VARIABLE, str(tmp_path / "cache"))


def model_of(name: str, precision: str = "fp32") -> PlaceModel:
    return build_model(SPECS[name]).to_device(CPU, precision).eval()


def images(*size: int, count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


def require(engine: str) -> None:
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SPECS)
def test_local_descriptors_and_descriptors_are_those_of_pytorch_at_any_size(engine, name):
    require(engine)
    model = model_of(name)
    for size in ((96, 128), (131, 97), (224, 224)):
        values = images(*size)
        with torch.no_grad():
            model.infer_by("torch", 1)
            wanted, pooled = model.local_descriptors(values), model(values)
            model.infer_by(engine, 1)
            assert model.engine is not None
            found, descriptors = model.local_descriptors(values), model(values)
        assert found.shape == wanted.shape
        assert torch.nn.functional.cosine_similarity(found, wanted, dim=1).min() > engines.LEAST_COSINE
        assert (pooled * descriptors).sum(dim=1).min() > engines.LEAST_COSINE


def test_an_engine_is_named_and_its_file_exported_once(capfd):
    model = model_of("alexnet")
    assert model.name.endswith("fp32 by PyTorch")
    model.infer_by("onnxruntime", 1)
    assert model.name.endswith("fp32 by ONNX Runtime")
    (file,) = cache_folder().iterdir()
    before = file.stat().st_mtime_ns
    capfd.readouterr()
    model.infer_by("onnxruntime", 1)
    assert file.stat().st_mtime_ns == before and "wrote" not in capfd.readouterr().out
    with torch.no_grad():  # other weights are another network
        next(model.encoder.parameters()).add_(1)
    model.infer_by("onnxruntime", 1)
    assert len(list(cache_folder().iterdir())) == 2


def test_a_damaged_file_is_exported_again(capfd):
    model = model_of("alexnet")
    model.infer_by("onnxruntime", 1)
    (file,) = cache_folder().iterdir()
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    model.infer_by("onnxruntime", 1)
    assert model.engine is not None and "damaged" in capfd.readouterr().out
    whole[len(whole) // 2] ^= 1
    assert file.read_bytes() == whole


def test_gradients_go_through_pytorch():
    model = model_of("alexnet")
    values = images(96, 96)
    model.infer_by("onnxruntime", 1)
    model(values).sum().backward()
    assert model.encoder[0].weight.grad is not None or model.encoder[-1].weight.grad is not None


def test_few_images_are_not_worth_an_export(monkeypatch):
    opened: list[str] = []
    fake = engines.Engine("Fake", "numpy", ("fp32",), lambda path, precision: opened.append(precision) or _constant)
    monkeypatch.setitem(engines.ENGINES, "openvino", fake)
    monkeypatch.setattr(engines, "_compare", lambda network, session: None)
    model = model_of("lite0")
    model.infer_by("auto", engines.FEWEST_TO_EXPORT - 1)
    assert model.engine is None and not opened and not cache_folder().exists()
    model.infer_by("auto", engines.FEWEST_TO_EXPORT)
    assert model.engine is not None and len(list(cache_folder().iterdir())) == 1
    model.infer_by("auto", engines.FEWEST_TO_OPEN - 1)
    assert model.engine is None
    model.infer_by("auto", engines.FEWEST_TO_OPEN)
    assert model.engine is not None


def _constant(pixels: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
    return [np.zeros((len(pixels), 112, 2, 2), np.float32)]


@pytest.mark.parametrize(
    ("why", "precision", "part"),
    [("missing", "fp32", "is not installed"), ("format", "bf16", "it computes in fp32, not in bf16"),
     ("values", "fp32", "cosine of"), ("shape", "fp32", "its maps of 192x160 pixels are")],
)  # fmt: skip
def test_what_cannot_be_had_is_one_line_and_pytorch(why, precision, part, monkeypatch, capfd):
    def opened(path, precision):
        rows, columns = (9, 11) if why == "values" else (1, 1)
        return lambda pixels, outputs: [np.ones((1, 256, rows, columns), np.float32)]

    package = "no_such_package" if why == "missing" else "numpy"
    monkeypatch.setitem(engines.ENGINES, "onnxruntime", engines.Engine("Fake", package, ("fp32",), opened))
    model = model_of("alexnet", precision)
    model.infer_by("onnxruntime", 1)
    said = [line for line in capfd.readouterr().out.splitlines() if part in line]
    assert model.engine is None and len(said) == 1 and "PyTorch computes" in said[0]
    assert not cache_folder().exists() or not list(cache_folder().iterdir())


def test_the_flag_names_every_engine():
    assert tuple(all_flags()["backend"].choices) == ("auto", "torch", *ENGINES)
