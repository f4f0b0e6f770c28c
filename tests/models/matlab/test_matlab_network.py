"""Models of MATLAB files compute what MATLAB's layers compute, and files that do something else are refused."""

import matlab_net
import numpy as np
import pytest
import torch
from matlab_net import custom, forward, network, write

from vpr.common.errors import UserError
from vpr.models.matlab.file import read_network
from vpr.models.matlab.network import import_network

INCOMPLETE = np.array([[0.0, 1, 0, 1]])  # a pad below and right
ODD, EVEN = (67, 90), (64, 81)  # sizes at which windows of the poolings are full and not full


def imported(path):
    model, whitening = import_network(path)
    if whitening is not None:
        model.whiten(whitening)
    return model


def named(layers, name):
    return next(layer for layer in layers if layer["name"] == name)


@torch.no_grad()
def described(model, image):
    """The model's descriptor in float32, and the same in float64, which leaves what was imported."""
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    single = model(batch)[0].numpy()
    model.double()
    pooled = model.pool(model.encoder((batch.double() - model.mean) / model.std))
    double = (model.whitening(pooled) if model.whitening else pooled)[0].numpy()
    model.float()
    return single, double


def expected(layers, image, kind, white):
    """As MATLAB has it, but without whitening in this program's order: cluster by cluster."""
    wanted = forward(layers, image)
    if white or not kind.startswith("vlad"):
        return wanted
    core = named(layers, "vlad:core")
    return wanted.reshape(int(core["D"]), int(core["K"])).T.ravel()


@pytest.mark.parametrize("white", [True, False])
@pytest.mark.parametrize("kind", ["vlad", "vladv2", "max", "avg"])
@pytest.mark.parametrize("pad", [0.0, INCOMPLETE], ids=["full", "incomplete"])
@pytest.mark.parametrize("trunk", ["vgg16", "caffenet"])
def test_a_model_computes_what_its_layers_do(trunk, pad, kind, white, tmp_path):
    layers = network(trunk, kind, white, pad=pad)
    model = imported(write(tmp_path / "net.mat", layers))
    arch = {"vgg16": "vgg16", "caffenet": "alexnet_caffe"}[trunk] + ("_ceil" if pad is INCOMPLETE else "")
    assert model.spec.arch == arch
    for size in (ODD, EVEN):
        image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
        wanted = expected(layers, image, kind, white)
        single, double = described(model, image)
        assert double.shape == wanted.shape
        scale = np.abs(wanted).max()
        assert np.abs(double - wanted).max() < 1e-6 * scale
        assert np.abs(single - wanted).max() < 5e-5 * scale


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("form", ["v7", "v7.3"])
@pytest.mark.parametrize("kind", ["vlad", "vladv2", "max", "avg"])
def test_every_form_of_a_file_is_the_same_model(kind, form, tmp_path, mat_io):
    layers = network("caffenet", kind)
    wanted = imported(write(tmp_path / "struct.mat", layers))
    for saveobj in (("layerVLAD", "layerVLADv2"), ()):
        assert same(imported(write(tmp_path / "net.mat", layers, form, saveobj=saveobj)), wanted)


def test_values_are_taken_over_exactly(tmp_path):
    layers = network("vgg16", "vladv2", white=False)
    model = imported(write(tmp_path / "net.mat", layers))
    (assign, bias, minus_centres), pool = named(layers, "vlad:core")["weights"].ravel(), model.pool
    for k in range(3):
        assert np.array_equal(pool.centroids[k].detach().numpy(), -minus_centres[0, 0, :, k])
        assert np.array_equal(pool.conv.weight[k, :, 0, 0].detach().numpy(), assign[0, 0, :, k])
        assert pool.conv.bias[k].item() == bias[0, k]
    stored = named(layers, "conv1_2")["weights"][0, 0]
    assert model.encoder[2].weight[3, 1, 0, 2].item() == stored[0, 2, 1, 3]  # row 0, column 2, from channel 1 to 3
    assert model.spec.channels == (5, 5, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 9)
    assert torch.equal(model.mean.flatten(), torch.from_numpy(matlab_net.AVERAGE)) and model.std.flatten().eq(1).all()


@pytest.mark.parametrize("average", [(3,), (1, 1, 3), (5, 4, 3)])
def test_the_mean_colour_is_that_of_the_average_image_s_first_pixel(average, tmp_path):
    image = np.broadcast_to(matlab_net.AVERAGE, average).copy()
    if len(average) == 3 and average[0] > 1:
        image[1:], image[:, 1:] = 7, 9
    model = imported(write(tmp_path / "net.mat", network("caffenet", "max"), average=image))
    assert torch.equal(model.mean.flatten(), torch.from_numpy(matlab_net.AVERAGE))


def test_files_of_the_first_version_are_read(tmp_path):
    """They have filters and biases, and net.normalization."""
    layers = network("caffenet", "avg")
    wanted = imported(write(tmp_path / "new.mat", layers))
    for layer in layers:
        if layer["type"] == "conv":
            layer["filters"], layer["biases"] = layer.pop("weights").ravel()
    normalization = {"averageImage": matlab_net.AVERAGE}
    assert same(imported(write(tmp_path / "old.mat", layers, meta={}, normalization=normalization)), wanted)


def test_relu_may_come_before_its_pooling(tmp_path):
    layers = network("caffenet", "avg", white=False)
    wanted = imported(write(tmp_path / "one.mat", layers))
    assert [layer["name"] for layer in layers[1:3]] == ["pool1", "relu1"]
    layers[1], layers[2] = layers[2], layers[1]
    assert same(imported(write(tmp_path / "two.mat", layers)), wanted)


def without(name):
    return lambda layers: layers.remove(named(layers, name))


def changed(name, **values):
    return lambda layers: named(layers, name).update(values)


def swapped(first, second):
    def change(layers):
        one, two = (layers.index(named(layers, name)) for name in (first, second))
        layers[one], layers[two] = layers[two], layers[one]

    return change


def added(after, **layer):
    return lambda layers: layers.insert(layers.index(named(layers, after)) + 1, layer)


def resized(name, cell, shape):
    def change(layers):
        named(layers, name)["weights"][0, cell] = np.ones(shape, np.float32)

    return change


def poisoned(layers):
    named(layers, "conv3_1")["weights"][0, 0][0, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("trunk", "kind", "change", "words"),
    [
        ("vgg16", "vlad", without("conv5_3"), ["12 convolutions", "13 (vgg16)"]),
        ("vgg16", "vlad", without("relu3_2"), ["layer 14 (conv3_3) is conv", "wanted relu"]),
        ("vgg16", "vlad", without("preL2"), ["vlad:core", "preL2"]),
        ("vgg16", "vlad", without("vlad:core"), ["0 layers that pool"]),
        ("vgg16", "vlad", without("vlad:intranorm"), ["vlad:intranorm should be"]),
        ("vgg16", "vlad", without("postL2"), ["WPCA", "postL2 should be"]),
        ("vgg16", "vlad", without("finalL2"), ["nothing is where finalL2"]),
        ("vgg16", "max", without("postL2"), ["WPCA", "postL2 should be"]),
        ("vgg16", "avg", added("avg:core", **custom("layerTotalMaxPool", "max:core")), ["2 layers that pool"]),
        ("vgg16", "vlad", added("finalL2", type="softmaxloss", name="loss"), ["loss", "softmaxloss"]),
        ("vgg16", "vlad", added("finalL2", **custom("layerWholeL2Normalize", "L2 again")), ["one too many"]),
        ("vgg16", "max", added("conv5_3", **matlab_net.unit_norm("preL2", 9)), ["(preL2)", "max:core should be"]),
        ("vgg16", "vlad", swapped("relu1_1", "conv1_2"), ["layer 2 (conv1_2) is conv", "relu"]),
        ("vgg16", "vlad", changed("conv2_1", pad=0.0), ["conv2_1", "pad=[0.0, 0.0, 0.0, 0.0]", "[1, 1, 1, 1]"]),
        ("vgg16", "vlad", changed("conv2_1", stride=2.0), ["conv2_1", "stride=[2.0, 2.0]"]),
        ("vgg16", "vlad", changed("pool2", pad=INCOMPLETE), ["poolings with pad", "[0.0, 1.0, 0.0, 1.0]"]),
        ("vgg16", "vlad", changed("pool2", method="avg"), ["pool2", "method=avg"]),
        ("vgg16", "vlad", changed("relu2_1", leak=0.1), ["relu2_1", "leak"]),
        ("caffenet", "vlad", changed("norm1", param=np.array([[5, 1, 1e-4, 0.75]])), ["norm1", "0.0001", "2e-05"]),
        ("caffenet", "vlad", swapped("pool1", "norm1"), ["norm1", "is norm"]),
        ("vgg16", "vlad", changed("preL2", param=np.array([[5, 1e-12, 1, 0.5]])), ["preL2"]),
        ("vgg16", "vlad", changed("vlad:intranorm", param=np.array([[18, 1e-12, 1, 1.0]])), ["intranorm", "1.0]"]),
        ("vgg16", "vlad", resized("vlad:core", 0, (1, 1, 8, 3)), ["vlad:core", "1x1x8x3", "1x1x9x3"]),
        ("vgg16", "vlad", resized("vlad:core", 1, (1, 1, 9, 4)), ["vlad:core", "1x1x9x4", "1x1x9x3"]),
        ("vgg16", "vladv2", resized("vlad:core", 1, (1, 4)), ["vlad:core", "4 biases", "1x1x9x3 and 3"]),
        ("vgg16", "vlad", resized("WPCA", 0, (1, 1, 26, 5)), ["WPCA", "1x1x26x5", "1x1x27x5"]),
        ("vgg16", "vlad", resized("conv3_1", 0, (3, 3, 5, 7)), ["conv3_1", "3x3x5x7", "3x3x6x7"]),
        ("caffenet", "vlad", resized("conv2", 0, (5, 5, 6, 8)), ["conv2", "5x5x6x8", "5x5x3x8"]),
        ("vgg16", "vlad", resized("conv3_1", 1, (1, 3)), ["conv3_1", "3 biases"]),
        ("vgg16", "vlad", changed("conv3_1", weights=np.empty(0)), ["conv3_1", "0 arrays of weights", "MATLAB's path"]),
        ("vgg16", "vlad", changed("conv3_1", stride="wide"), ["conv3_1", "stride='wide'"]),
        ("vgg16", "vlad", poisoned, ["conv3_1", "finite"]),
    ],
)  # fmt: skip
def test_what_is_not_a_model_of_the_release_is_refused_in_one_line(trunk, kind, change, words, tmp_path):
    layers = network(trunk, kind)
    change(layers)  # without it the model is imported, as the tests above do
    with pytest.raises(UserError) as caught:
        import_network(write(tmp_path / "net.mat", layers))
    text = str(caught.value)
    assert "\n" not in text and "net.mat" in text
    assert all(word in text for word in words), text


def test_a_descriptor_s_names_are_those_of_matlab_s_structs(tmp_path):
    """A struct that was an object is told by its weights and its name."""
    layers = network("caffenet", "vladv2", white=False)
    read, _ = read_network(write(tmp_path / "net.mat", layers))
    assert [layer.role for layer in read[-5:]] == ["conv", "norm", "vladv2", "norm", "l2"]
