"""A rehearsal of the program on a GPU, without one: no operation mixes devices, descriptors are float32 on cuda:0.

Describing (two sizes in a batch, with local descriptors, whitened), a step of a training with a frozen and a trained
part, mining, search, re-ranking and the function that is exported, for every backbone of the table and one of each
family of timm, and for every pooling, in each number format. What values come out is not seen here.
"""

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pretended_gpu import GPU, pretended_gpu
from torch import nn

from vpr.common.device import DTYPES
from vpr.data.reader import SizeGroup
from vpr.descriptors.describe import LocalDescribing, describe
from vpr.descriptors.local_maps import MemorySink
from vpr.models.backbones import BACKBONES, entry_of
from vpr.models.local_projection import LocalProjection
from vpr.models.place_model import PlainPlaceModel, build_model
from vpr.models.spec import ModelSpec
from vpr.models.whitening import Whitening
from vpr.retrieval.rerank import rerank
from vpr.retrieval.rules import Reranking
from vpr.search.exact import nearest
from vpr.training.rules import TrainingRules
from vpr.training.state import new_state
from vpr.training.trainer import BatchDescriber, Sources, Trainer
from vpr.training.triplets import Triplets, block_of

# What a pretended GPU hands back are any values.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")
DATABASE, QUERIES, SIZES = 6, 2, ((64, 96), (80, 64))
VIT, DINOV3 = "vit_tiny_patch16_224", "vit_small_patch16_dinov3"
# Cut early, where the blocks above are as those below; None is the default.
BACKBONES_AND_CUTS = {
    **dict.fromkeys(BACKBONES),
    "resnet18": 4, "tf_efficientnet_lite0": 4, "mobilenetv3_large_100": 8, "convnext_tiny": 8,
    "swin_tiny_patch4_window7_224": 8, VIT: 0, "vit_small_patch14_dinov2": 0, DINOV3: 0,
    "eva02_tiny_patch14_224": 0, "regnetx_002": 4,
}  # fmt: skip
POOLINGS = {
    "netvlad v2": {"vladv2": True},
    "netvlad v1 of cluster rows": {"cluster_dim": 4},
    "hard": {"vlad_assign": "hard"},
    "hard of cluster rows": {"vlad_assign": "hard", "cluster_dim": 4},
    **{name: {"pooling": name} for name in ("gem", "max", "avg")},
    "cls": {"arch": VIT, "cut": 0, "pooling": "cls"},
    "values": {"arch": DINOV3, "cut": 0, "facet": "value"},
}
CASES = [
    *((arch, {"arch": arch, "cut": cut}) for arch, cut in BACKBONES_AND_CUTS.items()),
    *((name, {"arch": "alexnet", **more}) for name, more in POOLINGS.items()),
]


def spec_of(settings):
    """With the first layers frozen, where they can be."""
    spec = ModelSpec(**{"weights": "none", "clusters": 4, **settings})
    entry = entry_of(spec.arch, spec.cut, spec.facet)
    layers = [layer for layer in entry.layers if layer != "map"]
    return ModelSpec(**{**vars(spec), "cut": entry.cut, "facet": entry.facet, "train_from": layers[-1]})


class Photos:
    """A source of images without data, of two sizes in each batch."""

    def __init__(self, model, frozen=False):
        self.model, self.frozen, self.files, self.size = model, frozen, [Path("photo.jpg")] * (DATABASE + QUERIES), None

    def batches(self, batches):
        for batch in batches:
            middle = (len(batch) + 1) // 2
            parts = [part for part in (range(middle), range(middle, len(batch))) if len(part)]
            yield [self.group(part, size) for part, size in zip(parts, SIZES, strict=False)]

    def group(self, rows, size):
        images = np.zeros((len(rows), 3, *size), np.uint8)
        if self.frozen:
            images = self.model.of_array(lambda values: self.model.frozen_features(values).half(), images)
        return SizeGroup(np.arange(rows.start, rows.stop), images, size, self.frozen)


def model_of(settings):
    """With a whitening, as modes make it, and a projection of its local descriptors."""
    model = build_model(spec_of(settings), pretrained=False)
    model.whiten(Whitening(torch.empty(model.pooled_dim), torch.empty(8, model.pooled_dim)))
    return model, LocalProjection(np.ones(model.encoder.dim, np.float32), np.ones((16, model.encoder.dim), np.float32))


def require_on_gpu(descriptors, *shape):
    assert (descriptors.device, descriptors.dtype, tuple(descriptors.shape)) == (GPU, torch.float32, shape)


def rehearse_describing(model, projection):
    """Whole images and images through frozen layers; all at once, in batches, and with what is kept for re-ranking."""
    model.eval()
    images = Photos(model)
    indices = range(DATABASE + QUERIES)
    for source in (images, Photos(model, frozen=True)):
        (batch,) = source.batches([indices])
        with torch.no_grad():
            require_on_gpu(BatchDescriber(model)(batch), len(indices), 8)
    sink = MemorySink(len(indices))
    descriptors, _ = describe(model, images, indices, len(indices), local=LocalDescribing(projection, sink))
    assert descriptors.dtype == np.float16
    return descriptors, sink.finished()


def rehearse_searching(descriptors, maps):
    """FAISS and re-ranking take ones for values, on the processor, where all that they are given has to lie."""
    found = nearest(descriptors[:DATABASE], descriptors[DATABASE:], 3)
    assert found.shape == (QUERIES, 3)
    queries, database = maps.part(DATABASE, DATABASE + QUERIES), maps.part(0, DATABASE)
    for by in ("soft", "spatial"):
        again = rerank(found, np.ones(found.shape, np.float32), queries, database, Reranking(3, by))
        assert again.found.shape == found.shape


def rehearse_training(model, frozen, folder):
    """Descriptors of a block, its tuples by distances on the GPU, and a step of the optimiser."""
    model.whitening = None
    rules = TrainingRules(negatives=2, margin=10.0)
    split = SimpleNamespace(database_files=[Path()] * DATABASE, files=[Path()] * (DATABASE + QUERIES))
    training = SimpleNamespace(
        images=split, positives=[np.array([0])] * QUERIES, not_negatives=[np.array([0, 1])] * QUERIES
    )
    source = Photos(model, frozen)
    state = new_state(model, rules, {"train": {"queries": QUERIES}})
    trainer = Trainer(state, training, split, Sources(source, source), rules, folder, batch_size=8)
    tuples = Triplets(rules, training, source, 8).mined(state, np.arange(QUERIES), "block")
    assert len(tuples) == QUERIES, "of equal descriptors each negative is within the margin"
    trainer.train_block(block_of([tuples], DATABASE, "block"))
    trained = [value for value in model.parameters() if value.requires_grad]
    assert trained and state.position.steps == 1
    assert all((value.grad.device, value.grad.dtype) == (GPU, torch.float32) for value in trained)
    assert state.scaler.is_enabled() == (model.dtype == torch.float16)


@pytest.fixture(scope="module", params=[more for _, more in CASES], ids=[name for name, _ in CASES])
def made(request):
    return model_of(request.param)


@pytest.mark.parametrize("precision", DTYPES)
def test_no_operation_mixes_devices_and_descriptors_are_float32_on_the_gpu(made, precision, tmp_path):
    model, projection = copy.deepcopy(made)
    with pretended_gpu() as ones:
        model.to_device(GPU, precision)
        descriptors, maps = rehearse_describing(model, projection)
        assert ones.formats == {getattr(torch, DTYPES[precision]), torch.float32}, (
            "of the backbone, and of what follows it"
        )
        rehearse_searching(descriptors, maps)
        with torch.no_grad():
            exported = PlainPlaceModel(model, projection).to(GPU)
            pooled, local = exported(torch.empty(2, *SIZES[0], 3, dtype=torch.uint8, device=GPU))
            require_on_gpu(pooled, 2, 8)
            assert (local.device, local.dtype, local.shape[:2]) == (GPU, torch.float32, (2, 16))
        if any(value.requires_grad for value in model.parameters()):
            rehearse_training(model, model.backbone.first_trained > 0, tmp_path)


# The rehearsal can fail


class LeftBehind(nn.Module):
    """Adds to a map what nobody moves with the model: it is no buffer."""

    def __init__(self):
        super().__init__()
        self.offset = torch.empty(3, 1, 1)

    def forward(self, features):
        return features + self.offset.to(features.dtype)


@pytest.mark.parametrize("part", ["encoder", "pool"])
def test_a_tensor_that_was_left_on_the_processor_is_found(part):
    model, projection = model_of({"arch": "alexnet", "pooling": "max"})
    with pretended_gpu():
        model.to_device(GPU, "fp32")
        if part == "encoder":
            setattr(model.encoder, "0", nn.Sequential(LeftBehind(), model.encoder[0]))
        else:
            model.whitening.mean = model.whitening.mean.cpu()
        with pytest.raises(RuntimeError, match=r"two different devices|cpu.*cuda|cuda.*cpu"):
            rehearse_describing(model, projection)


class ByProcessor(torch.autograd.Function):
    """The identity, whose gradient comes from the processor."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.cpu()


def test_a_gradient_that_comes_from_the_processor_is_found():
    with pretended_gpu():
        values = torch.empty(3, device=GPU, requires_grad=True)
        with pytest.raises(AssertionError, match="cpu, wanted cuda:0"):
            ByProcessor.apply(values * 2).sum().backward()


def test_numpy_of_a_tensor_on_the_gpu_and_a_wrong_format_are_found():
    with pretended_gpu():
        with pytest.raises(TypeError, match="cuda:0"):
            torch.empty(3, device=GPU).numpy()
        with pytest.raises(TypeError, match="BFloat16"):
            torch.empty(3, dtype=torch.bfloat16).numpy()
        with pytest.raises(RuntimeError, match="wanted one format"):
            torch.empty(2, 3, device=GPU) @ torch.empty(3, 2, device=GPU, dtype=torch.float16)
        with torch.autocast("cuda", torch.float16):
            assert (torch.empty(2, 3, device=GPU) @ torch.empty(3, 2, device=GPU)).dtype == torch.float16
