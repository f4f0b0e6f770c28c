"""Models of others by torch.hub, held against a folder of the tests' own: descriptors, and what is refused."""

import json

import numpy as np
import pytest
from drawing import draw_image

import main
from vpr.cli.options import parse_options
from vpr.common.errors import UserError
from vpr.models.hub_model import HubModel, read_entry

HUBCONF = '''
import torch

class Means(torch.nn.Module):
    """The mean of each channel in each of some rows, times a number."""
    def __init__(self, rows, factor):
        super().__init__()
        self.rows, self.factor = rows, torch.nn.Parameter(torch.tensor(float(factor)))
        {attributes}
    def forward(self, images):
        if images.shape[2] < self.rows:
            raise ValueError("too\\nfew rows")
        self.seen = images
        return self.factor * torch.nn.functional.adaptive_avg_pool2d(images, (self.rows, 1)).flatten(1)

def means(rows=2, factor=3.0):
    return Means(rows, factor)

def maps():
    return torch.nn.Conv2d(3, 4, 1)

class Several(Means):
    def forward(self, images):
        return super().forward(images), "attention"

def several():
    return Several(2, 1.0)

def nothing():
    return "no model"
'''


@pytest.fixture
def hub(tmp_path):
    """Makes a folder with a hubconf.py whose model has some attributes; gives the beginning of its name."""

    def make(attributes="pass"):
        folder = tmp_path / "of_others"
        folder.mkdir(exist_ok=True)
        (folder / "hubconf.py").write_text(HUBCONF.replace("{attributes}", attributes))
        return f"hub:{folder}"

    return make


def test_a_descriptor_is_what_the_model_makes_of_normalised_pixels(hub):
    model = HubModel(f"{hub()}:means?rows=2&factor=-1", True)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 5), np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = (images / 255 - mean[:, None, None]) / std[:, None, None]
    wanted = -np.stack([pixels[:, :, :4].mean((2, 3)), pixels[:, :, 4:].mean((2, 3))], axis=2).reshape(3, 6)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = model.describe(images)
    assert found.dtype == np.float16 and model.dim == model.pooled_dim == 6 and "6-D" in model.name
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    several = HubModel(f"{hub()}:several", True).describe(images)  # more behind the descriptors
    np.testing.assert_array_equal(several, -found)
    assert model.parameter_count == 1 and model.describe(images[:1]).shape == (1, 6)


def test_it_says_its_own_mean_deviation_and_size(hub):
    name = f"{hub('self.mean, self.std, self.image_size = (0, 0, 0), (1, 1, 1), (4, 6)')}:means"
    model = HubModel(name, True)
    flat = np.full((1, 3, 9, 7), 51, np.uint8)
    np.testing.assert_allclose(model.describe(flat)[0], np.full(6, 6**-0.5), atol=1e-3)
    assert tuple(model.network.seen.shape[2:]) == (4, 6) and float(model.network.seen.mean()) == pytest.approx(0.2)
    assert "resized to 6x4" in model.name
    plain = HubModel(f"{hub()}:means", True)
    assert model.recipe["normalization"] != plain.recipe["normalization"]
    assert plain.recipe["weights_hash"] != HubModel(f"{hub()}:means?factor=4", True).recipe["weights_hash"]


@pytest.mark.parametrize(
    ("entry", "trusted", "said"),
    [
        ("means", False, "--trustRepo"),
        ("maps", True, "wanted a vector for each"),
        ("nothing", True, "wanted a torch.nn.Module"),
        ("none", True, "gives no model none"),
        ("means?rows=999", True, "cannot describe images of 224x224 pixels (too few rows)"),
        ("not an entry", True, "wanted hub:OWNER/REPOSITORY:ENTRY"),
    ],
)
def test_what_is_no_such_model_is_refused_in_one_line(hub, entry, trusted, said):
    with pytest.raises(UserError) as raised:
        HubModel(f"{hub()}:{entry}", trusted)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_nothing_of_a_repository_runs_before_it_is_trusted(hub, tmp_path):
    name = hub()
    mark = tmp_path / "ran"
    with open(tmp_path / "of_others" / "hubconf.py", "a") as file:
        file.write(f"\nopen({str(mark)!r}, 'w').close()\n")
    with pytest.raises(UserError):
        HubModel(f"{name}:means", False)
    assert not mark.exists()
    HubModel(f"{name}:means", True)
    assert mark.exists()


def test_names_of_entries():
    entry = read_entry("hub:gmberton/cosplace:get_trained_model?backbone=ResNet50&fc_output_dim=2048&fast=true")
    assert (entry.where, entry.entry, entry.is_local) == ("gmberton/cosplace", "get_trained_model", False)
    assert entry.arguments == {"backbone": "ResNet50", "fc_output_dim": 2048, "fast": True}


def test_it_locates_and_tests_as_any_model(hub, tmp_path, capsys):
    """Images whose upper and lower halves have colours of their own: the nearest is the image of the same colours."""
    root, name = tmp_path / "own", f"{hub()}:means"
    for number in range(6):
        draw_image(root / "val" / "database" / f"@{585000 + 50 * number}@4477000@.png", (40, 32), [9, number])
        draw_image(root / "val" / "queries" / f"@{585002 + 50 * number}@4477000@.png", (40, 32), [9, number])
    common = [f"--root={root}", f"--model={name}", "--trustRepo", "--panels=0", f"--runsPath={tmp_path / 'runs'}"]
    common.append(f"--dataPath={tmp_path / 'model'}")
    assert main.main(["test", *common]) == 0
    out = capsys.readouterr().out
    assert "R@1: 100.0" in out and f"{name}, 6-D, fp32 by PyTorch" in out and "running the code of" in out
    query = root / "val" / "queries" / "@585102@4477000@.png"
    assert main.main(["locate", *common, "--json", str(query)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["matches"][0]["name"].endswith("/@585100@4477000@.png")
    assert main.main(["test", *common, "--rerank=3"]) == 2
    assert "gives no local descriptors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "is for test, index, locate, serve"),
        (["test", "--arch=vgg16"], "--arch has no effect"),
        (["test", "--pcaDim=64"], "--pcaDim has no effect"),
        (["test", "--model=fastest"], "wanted one of classic, fast, small"),
    ],
)
def test_flags_that_mean_nothing_to_it_are_refused(words, said):
    with pytest.raises(UserError) as raised:
        parse_options([*words[:1], "--model=hub:a/b:c", *words[1:]])
    assert said in str(raised.value)
