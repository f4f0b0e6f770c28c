"""Networks of timm without a plan of their own: random weights, any image size, training mode, what gets a gradient."""

import copy
import functools
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from vpr.common.errors import UserError
from vpr.models.backbones.base import build_backbone
from vpr.models.backbones.convolutions import StridedPointwise, protect_strided
from vpr.models.place_model import build_model, say_of_multiples
from vpr.models.spec import ModelSpec
from vpr.training.rules import TrainingRules
from vpr.training.state import new_state

CPU = torch.device("cpu")
DEIT, HRNET = "deit_tiny_distilled_patch16_224", "hrnet_w18_small"
ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def model_of(arch, **more):
    """In eval mode, made once for all tests, which leave its values as they are."""
    return build_model(ModelSpec(arch, "none", pooling="avg", **more)).to_device(CPU, "fp32").eval()


def random_images(height, width, count=2):
    values = torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(0))
    return (255 * values).to(torch.uint8)


@pytest.mark.parametrize("arch", ["regnetx_002", "mobilevit_xxs", DEIT])
def test_random_weights_are_timms_own_of_the_seed(arch):
    """Layers above the cut are drawn too, as timm makes the whole network before it is cut."""
    model = model_of(arch, seed=5)
    torch.manual_seed(5)
    wanted = timm.create_model(arch, num_classes=0).state_dict()
    state = model.backbone.state_dict()
    assert state and all(torch.equal(value, wanted[model.backbone.name_in_file(name)]) for name, value in state.items())
    with torch.no_grad():
        descriptors = model(random_images(64, 96))
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("arch", "multiple", "smallest", "sizes"),
    [
        ("regnetx_002", 1, 16, [(16, 17), (101, 135)]),
        ("rexnet_100", 1, 16, [(101, 135)]),  # BatchNorm of one value behind a global pooling
        ("pvt_v2_b0", 1, 29, [(29, 29), (101, 135)]),  # on a map of a pixel its reduction leaves none
        (DEIT, 16, 16, [(16, 16), (70, 90), (213, 160)]),
        ("dla46_c", 16, 16, [(120, 150)]),
        ("vit_tiny_r_s16_p8_224", 4, 32, [(121, 254)]),  # counts positions otherwise than its convolutions leave them
        (HRNET, 32, 32, [(120, 150)]),
    ],
)
def test_images_of_any_size_are_taken_resized_where_the_network_needs_multiples(
    arch, multiple, smallest, sizes, capsys
):
    say_of_multiples.cache_clear()
    model = model_of(arch)
    assert (model.backbone.multiple, model.smallest_side) == (multiple, smallest)
    for height, width in sizes:
        nearest = [max(1, int(side / multiple + 0.5)) * multiple for side in (height, width)]
        with torch.no_grad():
            images = random_images(height, width, 1)
            values = F.interpolate(model.normalized(images), nearest, mode="bilinear", align_corners=False)
            torch.testing.assert_close(model.local_descriptors(images), model.backbone(values))
    assert ("no multiples" in capsys.readouterr().out) == (multiple > 1)
    with pytest.raises(UserError, match=f"at least {model.smallest_side} each way"):
        model(random_images(model.smallest_side - 1, 200, 1))


@pytest.mark.parametrize("arch", ["coat_lite_tiny"])
def test_a_network_for_one_image_size_is_refused_in_a_line(arch):
    with pytest.raises(UserError, match=f"--arch={arch} of timm cannot take images of any size .*224") as error:
        build_backbone(arch)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("arch", "unused"), [(HRNET, True), ("regnetx_002", False), (DEIT, False)])
def test_whether_all_parameters_get_a_gradient_is_known_beforehand(arch, unused):
    model = copy.deepcopy(model_of(arch)).train()
    (model(random_images(64, 96)) * torch.arange(model.dim)).sum().backward()
    without = [name for name, value in model.backbone.named_parameters() if value.grad is None]
    assert bool(without) == unused == model.backbone.unused_parameters


# Strided convolutions of one pixel from few channels

STEP = """
import os, sys
os.environ["ONEDNN_MAX_CPU_ISA"] = sys.argv[1]
import torch
from torch import nn
from vpr.models.backbones.convolutions import protect_strided
for channels, stride, kind in ((3, 2, torch.float32), (3, 4, torch.float32), (12, 2, torch.bfloat16), (1, 2, None)):
    for seed in range(3):
        torch.manual_seed(seed)
        plain = nn.Sequential(nn.Conv2d(channels, 48, 1, stride, bias=False), nn.ReLU())
        images = torch.randn(2, channels, 64, 80)
        wanted, = torch.autograd.grad(plain(images).square().sum(), plain[0].weight)
        protect_strided(plain.to(memory_format=torch.channels_last))
        images = images.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=kind, enabled=kind is torch.bfloat16):
            found, = torch.autograd.grad(plain(images).float().square().sum(), plain[0].weight)
        assert (found - wanted).norm() < (0.02 if kind is torch.bfloat16 else 1e-4) * wanted.norm()
torch.randn(1000, 1000).sum()
print("whole")
"""


@pytest.mark.parametrize("instructions", ["AVX2", "DEFAULT"])
def test_the_gradient_of_strided_convolutions_from_few_channels_does_not_crash(instructions):
    """In processes of their own: without the protection each of them ends by a signal on most processors."""
    done = subprocess.run([sys.executable, "-c", STEP, instructions], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr[-2000:]


@pytest.mark.parametrize("arch", ["repvgg_a0", "fastvit_t8"])
def test_the_first_layers_of_such_networks_are_protected_and_compute_the_same(arch):
    model = model_of(arch)
    found = [layer for layer in model.backbone.modules() if isinstance(layer, StridedPointwise)]
    assert found and all(layer.in_channels == 3 for layer in found)
    plain = nn.Conv2d(3, found[0].out_channels, 1, found[0].stride, bias=found[0].bias is not None)
    plain.load_state_dict(found[0].state_dict())
    images = torch.randn(2, 3, 31, 46)
    with torch.no_grad():
        assert torch.equal(found[0](images), plain(images)), "describing is as before to the bit"
    torch.testing.assert_close(found[0](images), plain(images))


def test_other_convolutions_are_left_alone():
    layers = [
        nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(64, 8, 1, 2), nn.Conv2d(8, 8, 1, 2, groups=8),
        nn.Conv2d(8, 8, 1, (1, 2), padding=1), nn.Conv2d(8, 8, 1, (1, 2)),
    ]  # fmt: skip
    network = nn.Sequential(*layers)
    protect_strided(network)
    assert [layer is before for layer, before in zip(network, layers, strict=True)] == [True] * 5 + [False]


# What cannot be


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_a_training_without_anything_to_train_is_one_line(pooling):
    model = build_model(ModelSpec("regnetx_002", "none", pooling=pooling, train_from="pool"))
    with pytest.raises(UserError, match=f"nothing to train: --trainFrom=pool .* --pooling={pooling}") as error:
        new_state(model, TrainingRules(), {"train": {"queries": 3}})
    assert "\n" not in str(error.value)
    with_parameters = build_model(ModelSpec("regnetx_002", "none", pooling="gem", train_from="pool"))
    state = new_state(with_parameters, TrainingRules(), {"train": {"queries": 3}})
    assert [value.numel() for group in state.optimizer.param_groups for value in group["params"]] == [1]


@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_one_cluster_is_refused_where_a_model_is_read(assignment):
    flags = {"arch": "alexnet", "weights": "none", "vladAssign": assignment}
    with pytest.raises(UserError, match="num_clusters='1', wanted a whole number of at least 2"):
        ModelSpec.from_flags({**flags, "num_clusters": 1})
    assert ModelSpec.from_flags({**flags, "num_clusters": 2}).clusters == 2
