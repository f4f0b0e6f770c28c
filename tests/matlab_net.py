"""Small networks in the layout of the MATLAB release, their files in all forms, and what they compute, in NumPy.

`forward` follows MatConvNet's and the release's definitions literally, in float64, layer by layer in the order of the
list, and knows nothing of the program. Arrays are [H, W, C] as MATLAB has them.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.io import savemat

VGG16 = [(2, "conv1"), (2, "conv2"), (3, "conv3"), (3, "conv4"), (3, "conv5")]
AVERAGE = np.array([123.68, 116.779, 103.939], np.float32)


def cell(values):
    """A row of a MATLAB cell."""
    array = np.empty((1, len(values)), object)
    for number, value in enumerate(values):
        array[0, number] = value
    return array


def convolution(draw, name, size, before, after, stride=1.0, pad=0.0, groups=1):
    scale = np.sqrt(2 / (size * size * before / groups))
    weights = draw.normal(0, scale, (size, size, before // groups, after)).astype(np.float32)
    biases = draw.normal(0, 0.1, (1, after)).astype(np.float32)
    return {"type": "conv", "name": name, "weights": cell([weights, biases]), "stride": stride, "pad": pad}


def pool(name, size, pad):
    return {"type": "pool", "name": name, "method": "max", "pool": np.array([[size, size]]), "stride": 2.0, "pad": pad}


def relu(name):
    return {"type": "relu", "name": name, "leak": 0.0}


def vgg16(draw, width=4, pad=0.0):
    """Pooling before ReLU, as the release has it; conv5_3 is the last."""
    layers, before = [], 3
    for block, (count, name) in enumerate(VGG16, 1):
        for number in range(1, count + 1):
            after = width + block
            layers.append(convolution(draw, f"{name}_{number}", 3, before, after, pad=1.0))
            before = after
            if number == count and block < 5:
                layers.append(pool(f"pool{block}", 2, pad))
            layers.append(relu(f"relu{block}_{number}"))
    return layers[:-1]


def caffenet(draw, widths=(6, 8, 4, 8, 6), pad=0.0):
    one, two, three, four, five = widths
    norm = {"type": "lrn", "param": np.array([[5, 1, 2e-5, 0.75]])}
    return [
        convolution(draw, "conv1", 11, 3, one, stride=np.array([[4.0, 4.0]])), pool("pool1", 3, pad), relu("relu1"),
        {**norm, "name": "norm1"},
        convolution(draw, "conv2", 5, one, two, pad=np.array([[2.0, 2, 2, 2]]), groups=2), pool("pool2", 3, pad),
        relu("relu2"), {**norm, "type": "normalize", "name": "norm2"},
        convolution(draw, "conv3", 3, two, three, pad=1.0), relu("relu3"),
        convolution(draw, "conv4", 3, three, four, pad=1.0, groups=2), relu("relu4"),
        convolution(draw, "conv5", 3, four, five, pad=1.0, groups=2),
    ]  # fmt: skip


def unit_norm(name, dim):
    return {"type": "normalize", "name": name, "param": np.array([[2.0 * dim, 1e-12, 1, 0.5]])}


def custom(class_name, name, **properties):
    """An object of a class; `class` is not among its properties."""
    return {"class": class_name, "type": "custom", "name": name, **properties, "precious": False}


def pooling(draw, kind, dim, clusters):
    """The layers from the backbone's end to postL2."""
    end = [custom("layerWholeL2Normalize", "postL2")]
    if kind in ("max", "avg"):
        return [custom(f"layerTotal{kind.title()}Pool", f"{kind}:core"), *end]
    assign = draw.normal(0, 3, (1, 1, dim, clusters)).astype(np.float32)
    centres = draw.normal(0, 0.3, (1, 1, dim, clusters)).astype(np.float32)
    weights = [assign, draw.normal(0, 1, (1, clusters)).astype(np.float32), -centres]
    if kind == "vlad":
        weights.pop(1)
    core = custom(
        "layerVLAD" if kind == "vlad" else "layerVLADv2", "vlad:core", K=float(clusters), D=float(dim),
        vladDim=float(dim * clusters), weights=cell(weights),
    )  # fmt: skip
    return [unit_norm("preL2", dim), core, unit_norm("vlad:intranorm", dim), *end]


def whitening(draw, length, dim):
    layer = convolution(draw, "WPCA", 1, length, dim)
    weights, biases = layer["weights"].ravel()
    weights *= (10.0 ** np.linspace(0, 3, dim)).astype(np.float32)  # as small variances do
    mean = draw.normal(0, 0.5 / np.sqrt(length), length)  # of descriptors of length 1
    biases[:] = -mean @ weights[0, 0]
    return [layer, custom("layerWholeL2Normalize", "finalL2")]


def network(trunk="vgg16", kind="vlad", white=True, seed=0, clusters=3, dim=5, pad=0.0):
    """All layers of a model."""
    draw = np.random.default_rng(seed)
    layers = (vgg16 if trunk == "vgg16" else caffenet)(draw, pad=pad)
    last = layers[-1]["weights"][0, 0].shape[3]
    layers += pooling(draw, kind, last, clusters)
    if white:
        layers += whitening(draw, last * clusters if kind.startswith("vlad") else last, dim)
    return layers


def write(path, layers, form="struct", average=AVERAGE, saveobj=("layerVLAD", "layerVLADv2"), **more):
    """The file of a model: as structs by SciPy, or with objects by mat-io in format v7 or v7.3."""
    meta = {"netID": "vd16", "epoch": 3.0, "normalization": {"averageImage": average}}
    if form == "struct":
        structs = [{key: value for key, value in layer.items() if key != "class"} for layer in layers]
        savemat(path, {"net": {"layers": cell(structs), "meta": meta, **more}})  # more: other fields, or these anew
        return path
    import matio
    from matio.utils import MatlabOpaque

    def stored(layer):
        layer = dict(layer)
        class_name = layer.pop("class", None)
        if class_name is None:
            return layer
        return MatlabOpaque({"any": layer} if class_name in saveobj else layer, class_name)

    content = {"net": {"layers": cell([stored(layer) for layer in layers]), "meta": meta, **more}}
    matio.save_to_mat(str(path), content, version=form, saveobj_classes=[*saveobj])
    return path


# ------------------------------------------------------------------------------------------- what it computes


def forward(layers, image):
    """The descriptor of an image [H, W, 3] of values 0 to 255, by the layers in their order."""
    x = image.astype(np.float64) - AVERAGE.astype(np.float64)
    for layer in layers:
        x = OPERATIONS[layer.get("class") or layer["type"]](x, layer)
    return x.ravel()


def arrays(layer):
    return [array.astype(np.float64) for array in layer["weights"].ravel()]


def padding(layer):
    above, below, left, right = (int(one) for one in np.broadcast_to(np.ravel(layer["pad"]), 4))
    return (above, below), (left, right), (0, 0)


def vl_nnconv(x, layer):
    filters, biases = arrays(layer)
    stride = int(np.ravel(layer["stride"])[0])
    x = np.pad(x, padding(layer))
    groups, per = x.shape[2] // filters.shape[2], filters.shape[2]
    each = filters.shape[3] // groups
    out = []
    for group in range(groups):
        windows = sliding_window_view(x[:, :, group * per : (group + 1) * per], filters.shape[:2], axis=(0, 1))
        windows = windows[::stride, ::stride]  # [h, w, C, S, S]
        out.append(np.einsum("hwcij,ijco->hwo", windows, filters[..., group * each : (group + 1) * each]))
    return np.concatenate(out, axis=2) + biases.ravel()


def vl_nnpool(x, layer):
    side = int(np.ravel(layer["pool"])[0])
    x = np.pad(x, padding(layer), constant_values=-np.inf)
    return sliding_window_view(x, (side, side), axis=(0, 1))[::2, ::2].max(axis=(3, 4))


def vl_nnnormalize(x, layer):
    window, kappa, alpha, beta = np.ravel(layer["param"])
    y, dim = np.empty_like(x), x.shape[2]
    for d in range(dim):
        first, last = d - int((window - 1) // 2), d + int(np.ceil((window - 1) / 2))
        total = (x[:, :, max(first, 0) : min(last, dim - 1) + 1] ** 2).sum(axis=2)
        y[:, :, d] = x[:, :, d] / (kappa + alpha * total) ** beta
    return y


def vlad(x, layer):
    """y is [1, K, D] with the sum over positions of assignment_k * (x + stored_k)."""
    weights = arrays(layer)
    stored = weights[-1][0, 0]  # [D, K]
    logits = x @ weights[0][0, 0]  # [h, w, K]
    if len(weights) == 3:
        logits = logits + weights[1].ravel()
    shares = np.exp(logits - logits.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)
    y = np.zeros((1, stored.shape[1], stored.shape[0]))
    for k in range(stored.shape[1]):
        y[0, k] = (shares[:, :, k, None] * (x + stored[:, k])).sum(axis=(0, 1))
    return y


def whole_l2(x, layer):
    """Column-major, as MATLAB's reshape."""
    column = x.reshape(-1, order="F")
    return (column / (np.sqrt((column**2).sum()) + 1e-12)).reshape(1, 1, -1)


OPERATIONS = {
    "conv": vl_nnconv,
    "pool": vl_nnpool,
    "relu": lambda x, layer: np.maximum(x, 0),
    "normalize": vl_nnnormalize,
    "lrn": vl_nnnormalize,
    "layerVLAD": vlad,
    "layerVLADv2": vlad,
    "layerTotalMaxPool": lambda x, layer: x.max(axis=(0, 1), keepdims=True),
    "layerTotalAvgPool": lambda x, layer: x.mean(axis=(0, 1), keepdims=True),
    "layerWholeL2Normalize": whole_l2,
}
