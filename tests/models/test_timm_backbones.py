"""Backbones of timm: their maps are timm's own; what is frozen stays; weights are found; mistakes are one line."""

import contextlib
import functools
import json
import ssl
from email.message import Message
from unittest import mock
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import main
from vpr.cli.options import parse_options
from vpr.cli.specs import model_spec
from vpr.common.errors import UserError
from vpr.data.places import PlacesSpec, load_places
from vpr.data.reader import ImageReader
from vpr.descriptors.trunk_cache import FrozenFeatures, cached_source
from vpr.models.backbones import entry_of
from vpr.models.backbones.base import build_backbone
from vpr.models.backbones.positions import resized
from vpr.models.place_model import build_model, say_of_multiples
from vpr.models.spec import ModelSpec
from vpr.runs.run import load_checkpoint, newest_run, save_checkpoint
from vpr.training import trainer

CPU = torch.device("cpu")
CNNS = ["resnet18", "resnet50", "tf_efficientnet_lite0", "mobilenetv3_large_100", "convnext_tiny"]
SWIN = "swin_tiny_patch4_window7_224"
DINOV2, REGISTERS, DINOV3 = "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"
ALL = [*CNNS, SWIN, DINOV2, REGISTERS, DINOV3]
FIRST_TRAINED = {
    **dict.fromkeys(["resnet18", "resnet50"], "layer3"),
    **dict.fromkeys(["tf_efficientnet_lite0", "mobilenetv3_large_100"], "blocks.4"),
    "convnext_tiny": "stages.2",
    SWIN: "layers.2",
    **dict.fromkeys([DINOV2, REGISTERS, DINOV3], "blocks.8"),
}


@functools.cache
def network_of(arch, **more):
    """timm's own network with random values, of which scales of layers are not as small as timm draws them.

    Made once for all tests, which leave it as it is.
    """
    torch.manual_seed(1)
    if arch not in CNNS and not more:
        more = {"dynamic_img_size": True}
    network = timm.create_model(arch, num_classes=0, **more).eval()
    for name, value in network.named_parameters():
        if value.dim() == 1 and "bias" not in name:
            nn.init.uniform_(value, 0.5, 1)
    for name, value in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            nn.init.uniform_(value, 0.5, 1)
    return network


def filled(arch, network, **more):
    backbone = build_backbone(arch, **more).eval()
    backbone.load_state_dict(backbone.values_in(network.state_dict()))
    return backbone


def timms_map(network, images, index, **more):
    return network.forward_intermediates(images, indices=[index], output_fmt="NCHW", intermediates_only=True, **more)[0]


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def random_images(height=64, width=96, count=2):
    return (255 * noise(count, 3, height, width)).to(torch.uint8)


@pytest.mark.parametrize(("stride", "index"), [(8, -3), (16, -2), (32, -1)])
@pytest.mark.parametrize("arch", [*CNNS, SWIN])
def test_the_map_of_a_cnn_is_timms_at_every_stride(arch, stride, index):
    network = network_of(arch)
    backbone, images = filled(arch, network, cut=stride), noise(2, 3, 64, 96)
    with torch.no_grad():
        found, wanted = backbone(images), timms_map(network, images, len(network.feature_info) + index)
        torch.testing.assert_close(backbone.run(backbone.run(images, stop=2), start=2), found)
    assert found.shape[1:] == (backbone.dim, 64 // stride, 96 // stride) == backbone.shape_of(64, 96)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [-1, 5])
@pytest.mark.parametrize("arch", [REGISTERS, DINOV3])
def test_the_map_of_a_vision_transformer_is_timms_at_every_block(arch, cut):
    network = network_of(arch)
    backbone, images = filled(arch, network, cut=cut), noise(2, 3, 112, 224)  # of patches of 14 and of 16
    with torch.no_grad():
        wanted = timms_map(network, images, cut % 12, norm=cut == -1)
        torch.testing.assert_close(backbone(images), wanted, rtol=1e-5, atol=1e-5)
    blocks = {name.split(".")[0] for name in backbone.state_dict() if name.startswith("blocks")}
    assert blocks == {f"blocks{number}" for number in range(cut % 12 + 1)}, "blocks above the cut do not exist"
    assert ("norm.weight" in backbone.state_dict()) == (cut == -1)


def meta_positions(grid, height, width):
    """Position embeddings [37, 37, C] as the authors of DINOv2 resize them for their models without registers."""
    if (height, width) == (37, 37):
        return grid
    scale = ((height + 0.1) / 37, (width + 0.1) / 37)
    resized = F.interpolate(grid.permute(2, 0, 1)[None], scale_factor=scale, mode="bicubic", antialias=False)
    return resized[0].permute(1, 2, 0)


@pytest.mark.parametrize("size", [(5, 8), (37, 37), (37, 36), (50, 41), (1, 3)])
def test_positions_are_resized_as_the_authors_of_the_weights_do(size):
    grid = noise(37, 37, 6) - 0.5
    torch.testing.assert_close(resized(grid, *size, as_dinov2=True), meta_positions(grid, *size), rtol=1e-5, atol=1e-5)
    aligned = F.interpolate(grid.permute(2, 0, 1)[None], size=size, mode="bicubic", antialias=True)
    wanted = aligned[0].permute(1, 2, 0)
    torch.testing.assert_close(resized(grid, *size, as_dinov2=False), wanted, rtol=1e-5, atol=1e-5)


def test_the_map_of_dinov2_without_registers_is_timms_with_metas_positions():
    network = network_of(DINOV2)
    backbone, images = filled(DINOV2, network), noise(1, 3, 70, 98)
    fixed = network_of(DINOV2, img_size=(70, 98))
    state = network.state_dict()
    grid = meta_positions(state["pos_embed"][0, 1:].view(37, 37, -1), 5, 7)
    fixed.load_state_dict({**state, "pos_embed": torch.cat([state["pos_embed"][0, :1], grid.flatten(0, 1)])[None]})
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), timms_map(fixed, images, 11, norm=True), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("facet", ["query", "key", "value"])
@pytest.mark.parametrize("arch", [REGISTERS, DINOV3])
def test_a_facet_is_what_the_attention_of_the_block_is_given(arch, facet):
    network = network_of(arch)
    backbone, images = filled(arch, network, cut=9, facet=facet), noise(2, 3, 112, 224)
    seen = []
    hook = network.blocks[9].attn.qkv.register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        found = backbone(images)
        network.forward_features(images)
    hook.remove()
    tokens = seen[0].chunk(3, dim=2)[["query", "key", "value"].index(facet)]
    patches = tokens[:, 5:]  # without class token and registers
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), patches, rtol=1e-5, atol=2e-5)
    last = {name for name in backbone.state_dict() if name.startswith("blocks9")}
    assert {name.split(".")[1] for name in last} == {"norm1", "qkv"}


@pytest.mark.parametrize("arch", [REGISTERS, DINOV3])
def test_cls_is_the_class_token_after_the_last_norm(arch):
    network = network_of(arch)
    model = build_model(ModelSpec(arch, "none", pooling="cls")).to_device(CPU, "fp32").eval()
    model.backbone.load_state_dict(model.backbone.values_in(network.state_dict()))
    images = random_images(112, 224)
    with torch.no_grad():
        wanted = F.normalize(network.forward_features(model.normalized(images))[:, 0], dim=1)
        torch.testing.assert_close(model(images), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ALL)
def test_what_is_trained_by_default_and_what_a_step_changes(arch):
    """Frozen stages and all statistics of BatchNorm are the same to the bit after a step; trained stages change."""
    entry = entry_of(arch)
    assert entry.train_from == FIRST_TRAINED[arch]
    model = build_model(ModelSpec(arch, "none", pooling="avg", train_from=entry.train_from)).to_device(CPU, "fp32")
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1.0)
    first, second = model(random_images())
    (first @ second).backward()
    optimizer.step()
    changed = {name for name, value in model.backbone.state_dict().items() if not torch.equal(value, before[name])}
    trained = {*dict(model.backbone[model.backbone.first_trained :].named_parameters())}
    assert changed and changed <= trained
    assert {name.split(".")[0] for name in changed} == {name.split(".")[0] for name in trained}
    assert not [name for name in changed if "running" in name or "num_batches" in name]


def test_statistics_follow_the_images_where_that_is_asked_for():
    model = build_model(ModelSpec("resnet18", "none", pooling="avg", train_from="layer3", train_batch_norm=True))
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.train()(random_images())
    moved = {name for name, value in model.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("layer3") for name in moved)
    assert "layer3.0.bn1.running_mean" in moved


@pytest.mark.parametrize("arch", ALL)
def test_the_cache_of_frozen_features_is_within_float16_of_none(arch, tiny_city):
    first = FIRST_TRAINED[arch]
    model = build_model(ModelSpec(arch, "none", pooling="avg", train_from=first)).to_device(CPU, "fp32").eval()
    files = load_places(PlacesSpec("toy", tiny_city), "val").files[:3]
    reader = ImageReader(files, (64, 80), 0)
    source = cached_source(reader, "few", model, "memory")
    assert isinstance(source, FrozenFeatures)
    (images,) = next(reader.batches([range(3)]))
    (cached,) = next(source.batches([range(3)]))
    found, wanted = model.describe(cached.values, frozen=True), model.describe(images.values)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3)


def test_a_network_of_another_family_is_trained_as_a_whole_or_not_at_all():
    network = network_of("regnety_002", in_chans=3)
    backbone, images = filled("regnety_002", network), noise(2, 3, 64, 96)
    assert [*backbone.stage_of] == ["network"]
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), timms_map(network, images, 3), rtol=1e-5, atol=1e-5)
    backbone.train_from("pool")
    assert not any(value.requires_grad for value in backbone.parameters())


def test_sides_that_are_no_multiples_are_resized_and_that_is_said_once(capsys):
    say_of_multiples.cache_clear()
    model = build_model(ModelSpec(REGISTERS, "none", pooling="avg")).to_device(CPU, "fp32").eval()
    with torch.no_grad():
        images = random_images(64, 80)  # nearest: 70x84, 5x6 patches
        found = model.local_descriptors(images)
        model.local_descriptors(images)
        values = F.interpolate(model.normalized(images), (70, 84), mode="bilinear", align_corners=False)
        torch.testing.assert_close(found, model.backbone(values))
    assert found.shape[2:] == (5, 6)
    assert [line for line in capsys.readouterr().out.splitlines() if "multiples of 14" in line] != []
    model.local_descriptors(images)
    assert "multiples" not in capsys.readouterr().out
    with pytest.raises(UserError, match="at least 14"):
        model.local_descriptors(random_images(13, 80))


def test_the_arithmetic_of_a_vision_transformer_is_that_of_its_products():
    model = build_model(ModelSpec(DINOV3, "none", pooling="avg"))
    tokens, dim, blocks = 4 * 6 + 5, 384, 12
    products = blocks * (tokens * dim * 12 * dim + 2 * tokens * tokens * dim) + 4 * 6 * 3 * 16 * 16 * dim
    assert model.gflop(64, 96) == pytest.approx(2 * products / 1e9, rel=1e-3)
    assert model.bytes_per_image(64, 96) > 4 * tokens * 4 * dim


# Weights


def spec_of(*words):
    return model_spec(parse_options(["--mode=test", "--pooling=avg", *words]))


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "encoder.", "model.", "module.backbone."])
def test_weights_of_a_file_are_found_under_any_prefix(prefix, tmp_path, capsys):
    network = network_of("resnet18")
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    state[f"{prefix}fc.weight"] = torch.zeros(1000, 512)  # above the cut: ignored
    torch.save({"state_dict": state}, tmp_path / "own.pth")
    save_file(state, tmp_path / "own.safetensors")
    for file in ("own.pth", "own.safetensors"):
        model = build_model(spec_of("--arch=resnet18", f"--weights={tmp_path / file}"))
        for name, value in model.backbone.state_dict().items():
            assert torch.equal(value, network.state_dict()[name]), name
    assert "pixels 0-255 minus 123.7 116.3 103.5, over 58.4 57.12 57.38" in capsys.readouterr().out


def test_metas_own_files_are_converted_by_timm(tmp_path):
    """DINOv2 with registers: Meta adds a position to the class token, and calls the registers otherwise."""
    network = network_of(REGISTERS)
    state = network.state_dict()
    own = dict(state)
    class_position = noise(1, 1, 384)
    own["register_tokens"] = own.pop("reg_token")
    own["pos_embed"] = torch.cat([class_position, state["pos_embed"]], dim=1)
    own["cls_token"] = state["cls_token"] - class_position
    own["mask_token"] = torch.zeros(1, 384)
    torch.save(own, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    model = build_model(spec_of(f"--arch={REGISTERS}", f"--weights={tmp_path / 'dinov2_vits14_reg4_pretrain.pth'}"))
    for name, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, state[model.backbone.name_in_file(name)])


@pytest.mark.parametrize(
    ("arch", "other", "name"),
    [
        ("vit_tiny_patch16_224", {"img_size": 96}, "pos_embed"),
        (SWIN, {"window_size": 5}, "relative_position_bias_table"),
    ],
)
def test_weights_for_images_of_another_size_are_resized_as_timm_does(arch, other, name, tmp_path, capsys):
    network = network_of(arch, **other)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    model = build_model(spec_of(f"--arch={arch}", f"--weights={tmp_path / 'own.pth'}"))
    overlay = {"file": str(tmp_path / "own.pth")}
    wanted = timm.create_model(arch, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    state = model.backbone.state_dict()
    assert [ours for ours in state if ours.endswith(name)]
    for ours, value in state.items():
        assert torch.equal(value, wanted.state_dict()[model.backbone.name_in_file(ours)]), ours
    assert "another size: timm resizes" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["vit_tiny_patch16_224", "vit_small_patch32_224"])
def test_a_network_of_other_layers_is_no_other_image_size(other, tmp_path):
    """Equal names, but other widths or patches."""
    torch.save(timm.create_model(other, num_classes=0).state_dict(), tmp_path / "own.pth")
    with pytest.raises(UserError, match=r"does not fit vit_small_patch16_224: .*, wanted .*: give weights"):
        build_model(spec_of("--arch=vit_small_patch16_224", f"--weights={tmp_path / 'own.pth'}"))


@pytest.mark.parametrize(("other", "said"), [("resnet34", True), ("resnet18", False)])
def test_the_file_of_a_deeper_network_is_told_by_the_layers_that_are_left(other, said, tmp_path, capsys):
    """ResNet-34 has all names of ResNet-18, in their shapes; its classifier is no sign of anything."""
    torch.save(timm.create_model(other).state_dict(), tmp_path / "own.pth")
    build_model(spec_of("--arch=resnet18", f"--weights={tmp_path / 'own.pth'}"))
    assert ("values that resnet18 lacks, such as layer1.2.conv1.weight" in capsys.readouterr().out) == said


@pytest.fixture
def answer_downloads(monkeypatch):
    """Takes what is called instead of a download of timm's."""

    def answer(download, create=timm.create_model):
        def create_or_answer(*names, pretrained, **more):
            return download() if pretrained else create(*names, pretrained=False, **more)

        monkeypatch.setattr(timm, "create_model", create_or_answer)

    monkeypatch.setattr("vpr.models.backbones.timm_model.urlopen", mock.Mock())
    return answer


def test_a_tag_may_follow_the_name_and_brings_its_pixels_and_licence(answer_downloads, capsys):
    options = parse_options(["--mode=test", "--arch=tf_efficientnet_lite0.in1k"])
    assert (options.arch, options.weights, options.cut, options.facet) == ("tf_efficientnet_lite0", "in1k", 16, None)
    network = network_of("tf_efficientnet_lite0")
    answer_downloads(lambda: network)
    model = build_model(model_spec(options))
    assert model.mean.flatten().tolist() == model.std.flatten().tolist() == [127.5] * 3
    assert "weights of tf_efficientnet_lite0: in1k, licence apache-2.0" in capsys.readouterr().out
    stem = model.backbone.state_dict()["stem.conv_stem.weight"]
    assert torch.equal(stem, network.state_dict()["conv_stem.weight"])


def test_without_a_network_one_line_says_where_the_weights_are(answer_downloads):
    answer_downloads(mock.Mock(side_effect=OSError("no route to host\nand more")))
    wanted = r"cannot fetch a1_in1k of resnet18.*no route.*huggingface.*--weights FILE"
    with pytest.raises(UserError, match=wanted) as error:
        build_model(spec_of("--arch=resnet18"))
    assert "\n" not in str(error.value)


def test_without_a_network_the_library_is_not_asked(answer_downloads, monkeypatch):
    """It would ask for most of a minute. Any answer, and a certificate that it may know, are left to it."""
    network, asked = network_of("resnet18"), mock.Mock()
    answer_downloads(asked)
    asked.return_value = network
    for error, wanted in (
        (URLError(OSError(101, "Network is unreachable")), 0),
        (URLError(ssl.SSLError("self-signed certificate")), 1),
        (HTTPError("https://huggingface.co", 405, "no HEAD", Message(), None), 2),
    ):
        monkeypatch.setattr("vpr.models.backbones.timm_model.urlopen", mock.Mock(side_effect=error))
        with contextlib.nullcontext() if wanted else pytest.raises(UserError, match=r"unreachable.*model\.safetensors"):
            build_model(spec_of("--arch=resnet18"))
        assert asked.call_count == wanted
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "kept")
    monkeypatch.setattr("vpr.models.backbones.timm_model.urlopen", mock.Mock(side_effect=AssertionError))
    build_model(spec_of("--arch=resnet18"))


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(network_of("resnet18").state_dict(), tmp_path / "r18.pth")
    for arch in ("resnet50", "tf_efficientnet_lite0", REGISTERS):
        with pytest.raises(UserError, match=r"--weights=.*does not fit") as error:
            build_model(spec_of(f"--arch={arch}", f"--weights={tmp_path / 'r18.pth'}"))
        assert "\n" not in str(error.value)


# Flags


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arch=resnet19"], "resnet18"),
        (["--arch=vgg61"], "vgg16"),
        (["--arch=resnet18", "--cut=7"], "--cut=7: resnet18 has no map of this stride, only of 2, 4, 8, 16, 32"),
        ([f"--arch={DINOV2}", "--cut=12"], "has 12 blocks: give 0 to 11"),
        (["--arch=resnet18", "--facet=value"], "--facet=value wants a vision transformer"),
        (["--arch=vgg16", "--facet=value"], "--facet=value is for backbones of timm"),
        (["--cut=8"], "--cut=8 is for backbones of timm"),
        (["--arch=resnet18", "--trainFrom=layer4", "--mode=train"], "choose from conv1, layer1, layer2, layer3"),
        (["--arch=resnet18.a1_in1k", "--fromscratch"], "contradict"),
        (["--arch=resnet18", "--cut=x"], "whole number"),
    ],
)
def test_mistakes_are_one_line(words, said, capsys):
    assert main.main(["--mode=test", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (ModelSpec("resnet18", "none", pooling="cls"), "no class token"),
        (ModelSpec("alexnet", "none", pooling="cls"), "no class token"),
        (ModelSpec(DINOV2, "none", pooling="cls", facet="key"), "contradict"),
        (ModelSpec("resnet18", "none", channels=(8,)), "filters of resnet18 cannot be dropped"),
    ],
)
def test_models_that_cannot_be_are_refused(spec, said):
    with pytest.raises(UserError, match=said):
        build_model(spec)


def test_a_block_counted_from_the_end_is_stored_by_its_number():
    options = parse_options(["--mode=train", f"--arch={DINOV2}", "--cut=-3", "--facet=value", "--fromscratch"])
    assert (options.cut, options.facet, options.trainFrom) == (9, "value", "embed")
    spec = model_spec(options)
    assert spec.flags()["cut"] == 9 and spec.backbone_name == f"{DINOV2}-block9-value"
    pretrained = parse_options(["--mode=train", f"--arch={DINOV2}", "--cut=-3", "--facet=value"])
    assert pretrained.trainFrom == "blocks.6", "the last four of those that are kept"
    assert ModelSpec("vgg16").backbone_name == "vgg16"


# From end to end


class Stopped(BaseException):
    """What ends a training at once, as the end of its process would."""


def save_and_stop(*values):
    save_checkpoint(*values)
    raise Stopped


# Each cut early, since to export many blocks takes minutes; their whole maps are compared with timm's own above. With
# the first layer that is trained, below which all is frozen and cached; None trains all, as from random weights.
THROUGH_ALL_MODES = [
    ("resnet18", ["--cut=8", "--trainBatchNorm"], "layer2"),
    ("resnet50", ["--cut=4"], "layer1"),
    ("tf_efficientnet_lite0", ["--cut=4"], "blocks.1"),
    ("mobilenetv3_large_100", ["--cut=8"], "blocks.2"),
    ("convnext_tiny", ["--cut=8"], "stages.1"),
    (SWIN, ["--cut=8"], None),
    (DINOV2, ["--cut=-11", "--facet=value"], "blocks.1"),
    (REGISTERS, ["--cut=1", "--pooling=cls"], None),
    (DINOV3, ["--cut=1"], None),
]


def create_short_swin(arch, create=timm.create_model, **more):
    """timm's networks, of Swin's two blocks (of which one shifts its windows) and the merging of patches after them."""
    return create(arch, **more, **({"depths": (2, 0, 2, 2)} if arch == SWIN else {}))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "more", "first"), THROUGH_ALL_MODES)
def test_every_mode_works_with_every_backbone(arch, more, first, tiny_city, tmp_path, capsys, monkeypatch):
    """The first training ends without warning after its first checkpoint, in the middle of an epoch, and is resumed."""
    monkeypatch.setattr(timm, "create_model", create_short_swin)
    places = [
        "--dataset=toy", f"--root={tiny_city}", "--threads=0", "--device=cpu", f"--runsPath={tmp_path / 'runs'}",
        "--imageSize", "48", "64",
    ]  # fmt: skip
    model = [f"--arch={arch}", "--fromscratch", "--num_clusters=4", *more]
    centroids = f"--dataPath={tmp_path / 'centroids'}"
    cluster = [word for word in model if word != "--trainBatchNorm"]
    assert main.main([*places, centroids, *cluster, "--mode=cluster"]) == (2 if "--pooling=cls" in more else 0)
    train = [*places, centroids, f"--cachePath={tmp_path / 'cache'}", "--mode=train", "--margin=1"]
    first = [f"--trainFrom={first}"] if first else []
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(trainer, "save_checkpoint", save_and_stop)
        main.main([*train, *model, *first, "--nEpochs=1", "--cacheRefreshRate=6"])
    run = newest_run(tmp_path / "runs")
    position = load_checkpoint(run, "checkpoints", "latest")["position"]
    assert (position["epoch"], position["blocks_done"]) == (1, 1)
    assert main.main([*train, f"--resume={run}"]) == 0
    assert load_checkpoint(run, "checkpoints", "latest")["position"]["epoch"] == 2
    flags = json.loads((run / "flags.json").read_text())
    assert (flags["cut"], flags["facet"]) == (entry_of(arch, flags["cut"], flags["facet"]).cut, flags["facet"])
    assert main.main([*places, "--mode=test", f"--resume={run}", "--panels=0", "--precision=fp32"]) == 0
    file = tmp_path / "model.onnx"
    assert main.main([*places[:2], "--mode=export", f"--resume={run}", f"--out={file}"]) == 0
    assert main.main([*places, "--mode=test", f"--resume={file}", "--panels=0"]) == 0
    repository = main.__file__.removesuffix("/main.py")
    hub, exported = (torch.hub.load(repository, "netvlad", source="local", checkpoint=str(it)) for it in (run, file))
    hub.model.to_device(CPU, "fp32")
    torch.testing.assert_close(hub(random_images()), exported(random_images()), rtol=1e-5, atol=2e-5)
    assert main.main([*places, "--mode=prune", f"--resume={run}"]) == 2
    assert "cannot drop filters of" in capsys.readouterr().err.strip().splitlines()[-1]
