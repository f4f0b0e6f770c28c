"""The textbook versions give what the fast code gives, and the measurements see what is there to see."""

import mmap
import os

import h5py
import numpy as np
import pytest
import torch
from drawing import draw_image
from PIL import Image

from benchmarks import measure, textbook, textbook_training
from benchmarks.stages import HeldImages
from benchmarks.textbook_training import EpochRules, train_epoch, train_tuples
from netvlad import NetVLAD
from vpr.cli.options import parse_options
from vpr.cli.specs import model_spec
from vpr.data.reader import ImageReader, in_batches
from vpr.descriptors.describe import describe
from vpr.models.place_model import build_model
from vpr.models.poolings.netvlad_pooling import NetVLADPooling
from vpr.training.losses import triplet_violations

DATABASE, QUERIES = 6, 3
SIZE = (48, 64)  # height, width
ALL = 10**6  # a sample that no database of these tests exceeds
BYTES = 200_000_000
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Unlike images of 64x48 pixels: 6 of the database, then 3 queries."""
    folder = tmp_path_factory.mktemp("photos")
    return [draw_image(folder / f"{index}.png", (64, 48), index) for index in range(DATABASE + QUERIES)]


@pytest.fixture
def model():
    """A fast model whose descriptors tell images apart: its centres lie as near 0 as local descriptors do."""
    options = parse_options(["--arch=alexnet", "--fromscratch", "--num_clusters=4", "--mode=train"])
    torch.manual_seed(0)
    model = build_model(model_spec(options))
    torch.nn.init.normal_(model.pool.centroids, std=0.02)
    torch.nn.init.normal_(model.pool.conv.weight, std=3.0)
    return model


def image_bytes(path, size=SIZE):
    with Image.open(path) as image:
        pixels = np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def fast_descriptors(model, paths, size=SIZE):
    return model(torch.stack([image_bytes(path, size) for path in paths]))


def sgd(model):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=0.01)


def values_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_looped_netvlad_has_the_outputs_and_gradients_of_the_fast_one():
    torch.manual_seed(1)
    fast, plain = NetVLADPooling(5, 7).double(), textbook.LoopNetVLAD(5, 7).double()
    torch.nn.init.normal_(fast.conv.weight)
    torch.nn.init.normal_(fast.centroids)
    plain.load_state_dict(fast.state_dict())
    features = 3 * torch.randn(2, 7, 3, 4, dtype=torch.float64)
    toward = torch.randn(2, 35, dtype=torch.float64)
    results = []
    for layer in (fast, plain):
        inputs = features.clone().requires_grad_()
        output = layer(inputs)
        output.backward(toward)
        results.append([output, inputs.grad, layer.conv.weight.grad, layer.centroids.grad])
    for of_fast, of_plain in zip(*results, strict=True):
        assert of_fast.abs().max() > 1e-2
        torch.testing.assert_close(of_plain, of_fast, rtol=0, atol=1e-9)


def test_textbook_model_is_a_copy_that_is_frozen_where_the_original_is(model):
    model.encoder[0].requires_grad_(False)
    model.pool.centroids.requires_grad_(False)
    plain = textbook.textbook_of(model)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in plain.named_parameters()} == wanted
    assert plain.encoder[3].weight.is_contiguous(), "the textbook computes in NCHW"
    before = values_of(model)
    for parameter in plain.parameters():
        parameter.detach().add_(1)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_a_pooling_the_textbook_does_not_have_is_refused(model):
    model.pool = NetVLAD(4, 256, vladv2=True)
    with pytest.raises(ValueError, match="version 1"):
        textbook.textbook_of(model)


@pytest.mark.parametrize("size", [None, (40, 56)], ids=["own size", "resized"])
def test_descriptors_and_cache_hold_what_the_fast_model_describes(model, files, tmp_path, size):
    plain = textbook.textbook_of(model)
    with torch.no_grad():
        expected = fast_descriptors(model, files, size or SIZE).numpy()
    descriptors = textbook.describe(plain, files, size, batch_size=4, workers=0)
    textbook.write_feature_cache(tmp_path / "cache.h5", plain, files, size, batch_size=2, workers=0)
    assert np.abs(expected[1:] - expected[0]).max(axis=1).min() > 1e-2, "the images must differ"
    assert descriptors.dtype == np.float32
    np.testing.assert_allclose(descriptors, expected, atol=1e-4)
    with h5py.File(tmp_path / "cache.h5") as file:
        assert file["features"].dtype == np.float32
        np.testing.assert_allclose(file["features"][:], expected, atol=1e-4)


@pytest.fixture
def features(tmp_path):
    """150 random database descriptors and 20 queries, in a file."""
    rows = np.random.default_rng(2).normal(size=(170, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        yield file.create_dataset("features", data=rows)


def not_negatives_of(query):
    return np.random.default_rng(query).permutation(150)[:8]  # in no order, as positives too


def mine(features, query, sample, negatives, margin):
    near = not_negatives_of(query)
    generator = np.random.default_rng(query)
    return textbook.mine_query(features, 150 + query, near[:3], near, 150, generator, sample, negatives, margin)


@pytest.mark.parametrize("margin", [-0.4, 0.0, 0.1])
def test_mining_agrees_with_brute_force_when_everything_is_sampled(features, margin):
    lengths = []
    for query in range(20):
        squared = ((features[:].astype(float) - features[150 + query].astype(float)) ** 2).sum(axis=1)
        near = not_negatives_of(query)
        positive = min(near[:3], key=lambda row: squared[row])
        ranked = sorted(set(range(150)) - set(near.tolist()), key=lambda row: squared[row])
        hard = [row for row in ranked if squared[row] < squared[positive] + margin][:5]
        mined = mine(features, query, ALL, 5, margin)
        lengths.append(len(hard))
        assert (mined and (mined[0], mined[1].tolist())) == ((positive, hard) if hard else None)
    assert max(lengths) == 5, "the problem must have a full tuple"
    assert margin > -0.4 or min(lengths) == 0, "the problem must have a query without hard negatives"


def test_mining_draws_as_many_negatives_as_asked_and_keeps_the_hundred_nearest(features):
    drawn = [mine(features, query, 12, 50, 10.0)[1].tolist() for query in range(20)]
    for query, rows in enumerate(drawn):
        assert len(set(rows)) == 12
        assert not set(rows) & set(not_negatives_of(query).tolist())
        assert max(rows) < 150, "a query is no negative"
    assert len(set().union(*drawn)) > 100, "draws differ between queries"
    assert len(mine(features, 0, ALL, 120, 10.0)[1]) == 100


def test_mining_finds_nothing_where_all_of_the_database_is_near(features):
    everything = np.arange(150)
    generator = np.random.default_rng(0)
    assert textbook.mine_query(features, 150, everything[:1], everything, 150, generator, 10, 5, 10.0) is None


TUPLES = [(0, 1, np.array([3, 4])), (1, 2, np.array([0])), (2, 0, np.array([5, 3, 1]))]


def fast_loss(model, files, tuples, margin):
    """The mean over violating pairs, by the project's loss, and the number of those pairs."""
    descriptors = fast_descriptors(model, files)
    violation, violating = triplet_violations(
        descriptors[[DATABASE + query for query, *_ in tuples]],
        descriptors[[positive for _, positive, _ in tuples]],
        descriptors[np.concatenate([negatives for *_, negatives in tuples])],
        torch.tensor(np.repeat(np.arange(len(tuples)), [len(negatives) for *_, negatives in tuples])),
        margin,
    )
    return violation / max(violating, 1), violating


def test_a_step_on_tuples_has_the_loss_and_the_effect_of_the_fast_codes(model, files):
    plain, margin = textbook.textbook_of(model), 0.02
    optimizer = sgd(model)
    before = values_of(model)
    expected, violating = fast_loss(model, files, TUPLES, margin)
    assert 0 < violating < 6, "some pairs must violate, some not"
    expected.backward()
    optimizer.step()
    loss = train_tuples(plain, sgd(plain), [TUPLES], files, DATABASE, SIZE, margin=margin)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    moved = [(now - then).abs().max() for now, then in zip(model.parameters(), before, strict=True)]
    assert min(moved) > 1e-5, "every weight must have moved"
    for of_plain, of_fast in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(of_plain, of_fast, rtol=1e-4, atol=1e-5)


def test_the_loss_of_several_steps_is_their_mean(model, files):
    plain = textbook.textbook_of(model)
    standing = torch.optim.SGD(plain.parameters(), lr=0.0)
    batches = [TUPLES[:2], TUPLES[2:]]
    with torch.no_grad():
        losses = [fast_loss(model, files, batch, 0.3)[0].item() for batch in batches]
    assert abs(losses[0] - losses[1]) > 1e-3
    loss = train_tuples(plain, standing, batches, files, DATABASE, None, margin=0.3)
    assert loss == pytest.approx(np.mean(losses), abs=1e-5)


def test_nothing_moves_where_no_pair_violates(model, files):
    plain = textbook.textbook_of(model)
    optimizer = sgd(plain)
    train_tuples(plain, optimizer, [TUPLES], files, DATABASE, SIZE, margin=0.3)  # momentum
    before = values_of(plain)
    assert train_tuples(plain, optimizer, [TUPLES[:2], TUPLES[2:]], files, DATABASE, SIZE, margin=-10) == 0
    assert all(torch.equal(now, then) for now, then in zip(plain.parameters(), before, strict=True))
    assert train_tuples(plain, optimizer, [], files, DATABASE, SIZE, margin=1) == 0


def test_an_epoch_describes_anew_for_each_block_and_trains_every_mined_tuple(model, files, tmp_path):
    plain = textbook.textbook_of(model)
    untrained = textbook.describe(plain, files, SIZE, 4, 0)
    near = [np.array([query]) for query in range(QUERIES)]
    rules = EpochRules(SIZE, block=2, batch_size=2, cache_batch_size=4, workers=0, sample=4, negatives=2, margin=5.0)
    cache = tmp_path / "cache.h5"
    loss, count = train_epoch(plain, sgd(plain), files, DATABASE, [2, 0, 1], near, near, cache, rules)
    assert count == QUERIES
    assert 3 < loss < 6  # a margin of 5 and descriptors that are much alike
    with h5py.File(cache) as file:
        second_block = file["features"][:]
    assert second_block.shape == untrained.shape
    assert np.abs(second_block - untrained).max() > 1e-3, "the second block's cache is of the trained model"
    assert np.abs(second_block - textbook.describe(plain, files, SIZE, 4, 0)).max() > 1e-6, "of before its step"


def test_an_epochs_steps_are_of_queries_and_those_that_do_not_violate_are_skipped(model, files, tmp_path, monkeypatch):
    """Of five queries, two in a step, the first and the last violate: two steps of one tuple each."""
    taken = []
    monkeypatch.setattr(textbook_training, "train_tuples", lambda *given: taken.append(given[2]) or 1.0)
    monkeypatch.setattr(
        textbook_training,
        "mine_query",
        lambda _, row, *__: (0, np.array([1])) if row in (DATABASE, DATABASE + 4) else None,
    )
    near = [np.array([0])] * 5
    rules = EpochRules(SIZE, block=5, batch_size=2, cache_batch_size=4, workers=0, sample=4, negatives=2, margin=0.1)
    plain = textbook.textbook_of(model)
    order = [0, 1, 2, 3, 4]
    _, count = train_epoch(plain, sgd(plain), files, DATABASE, order, near, near, tmp_path / "cache.h5", rules)
    assert count == 2
    assert [[query for query, *_ in batch] for batch in taken[0]] == [[0], [4]]


def fake_clock(monkeypatch, durations):
    """Let the work that `durations` times take as long as it says, one run after the other."""
    now = iter(np.cumsum([value for duration in durations for value in (1.0, duration)]))
    monkeypatch.setattr(measure, "perf_counter", lambda: float(next(now)))


def test_timing_gives_median_and_range_of_the_runs_after_the_warm_up(monkeypatch):
    fake_clock(monkeypatch, [5.0, 1.0, 2.0, 9.0, 3.0])
    calls = []
    timing = measure.time_of(
        lambda: calls.append("work"), repeats=5, warmup=2, synchronize=lambda: calls.append("wait")
    )
    assert (timing.median, timing.low, timing.high, timing.repeats) == (3.0, 1.0, 9.0, 5)
    assert calls == ["work", "work"] + ["wait", "work", "wait"] * 5


def test_comparing_alternates_and_keeps_the_two_apart(monkeypatch):
    durations, calls = {"a": iter([1.0, 3.0, 2.0]), "b": iter([10.0, 30.0, 20.0])}, []
    now = [0.0]

    def work(name):
        calls.append(name)
        if len(calls) > 2:  # after the warm-up
            now[0] += next(durations[name])

    monkeypatch.setattr(measure, "perf_counter", lambda: now[0])
    first, second = measure.compare(lambda: work("a"), lambda: work("b"), repeats=3)
    assert (first, second) == (measure.Timing(2.0, 1.0, 3.0, 3), measure.Timing(20.0, 10.0, 30.0, 3))
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]


def fill(count):
    """Bytes from the kernel: an allocator may hand out what earlier tests have freed, and nothing would rise."""
    pages = np.frombuffer(mmap.mmap(-1, count), np.uint8)
    pages[:] = 1
    return pages


def fill_and_free():
    return int(fill(BYTES)[-1])


@pytest.mark.slow
@pytest.mark.parametrize("by_sampling", [None, True], ids=["kernel's record where it can be reset", "sampling"])
def test_peak_memory_sees_what_is_gone_when_the_work_ends_and_counts_from_what_is_held(by_sampling):
    held = fill(BYTES)
    assert measure.peak_memory(fill_and_free, by_sampling) == pytest.approx(BYTES, rel=0.2)
    assert measure.peak_memory(lambda: None, by_sampling) < BYTES / 20, "an earlier peak does not count"
    assert held[0] == 1


def prepared(count):
    held = np.ones(BYTES // 4)  # not counted
    return lambda: np.ones(count if held[0] else 0)


def prepared_to_die():
    return lambda: os._exit(7)


@pytest.mark.slow
def test_peak_memory_alone_measures_the_work_and_not_its_preparation():
    """The preparation holds 8 * BYTES / 4, twice BYTES: counted, it would be seen."""
    assert BYTES / 2 < measure.peak_memory_alone(prepared, BYTES // 8) < 2 * BYTES


@pytest.mark.parametrize(
    ("target", "arguments", "said"), [(prepared, (-1,), "ValueError"), (prepared_to_die, (), "died")],
    ids=["fails", "dies"],
)  # fmt: skip
def test_peak_memory_alone_says_when_the_work_fails(target, arguments, said):
    with pytest.raises(RuntimeError, match=said):
        measure.peak_memory_alone(target, *arguments)


def test_held_images_give_the_descriptors_of_their_files(files, model):
    """What "the model alone" is timed on is the whole path without decoding."""
    reader = ImageReader(files, SIZE, 0)
    held = HeldImages(files, list(reader.batches(in_batches(len(files), 4))))
    found, wanted = (describe(model, each, range(len(files)), 4, "test")[0] for each in (held, reader))
    assert np.array_equal(found, wanted)
    with pytest.raises(ValueError, match="other batches"):
        held.batches([[0], [1]])
