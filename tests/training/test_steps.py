"""A step belongs to a batch of queries: those without a violating negative are skipped, the others share the loss."""

import copy

import numpy as np
import pytest
import torch
from test_mining import brute_force, make_problem, mine_all, mining_rules, no_memory

import main
import vpr.training.trainer
from vpr.data.places import PlacesSpec
from vpr.data.reader import CPU, Reading
from vpr.models.place_model import build_model
from vpr.models.spec import ModelSpec
from vpr.runs.run import newest_run
from vpr.training.mining import batches_of_queries
from vpr.training.rules import TrainingRules
from vpr.training.state import new_state, splits_of
from vpr.training.trainer import Sources, Trainer
from vpr.training.training_set import load_training_set
from vpr.training.triplets import block_of
from vpr.training.tuples import TrainingTuple


def tuple_of(query):
    return TrainingTuple(query, positive=0, negatives=np.array([1]))


def test_batches_are_of_queries_and_those_without_a_tuple_are_no_batches():
    queries = np.array([7, 3, 9, 1, 4, 8, 2, 6, 5])
    tuples = [tuple_of(query) for query in (7, 1, 8, 5)]
    found = [[item.query for item in batch] for batch in batches_of_queries(queries, tuples, 3)]
    assert found == [[7], [1, 8], [5]]
    found = [[item.query for item in batch] for batch in batches_of_queries(queries, tuples[:2], 4)]
    assert found == [[7, 1]]
    assert batches_of_queries(queries, [], 4) == []


@pytest.mark.parametrize(("margin", "batch_size"), [(0.0, 1), (0.0, 4), (0.1, 4), (0.0, 7)])
def test_a_block_has_a_step_for_each_batch_of_queries_in_which_any_violates(margin, batch_size):
    problem = make_problem(30, 50, seed=3)
    order = np.random.default_rng(2).permutation(50)
    violating = {query for query, *_ in brute_force(problem, order, 10, margin)}
    assert 0 < len(violating) < 50
    wanted = []
    for start in range(0, 50, batch_size):
        left = [query for query in order[start : start + batch_size].tolist() if query in violating]
        wanted += [left] if left else []
    tuples = mine_all(problem, no_memory(50, 10), mining_rules(10, margin), order=order)
    found = batches_of_queries(order, tuples, batch_size)
    assert [[item.query for item in batch] for batch in found] == wanted


def test_an_epoch_steps_once_for_each_batch_of_queries_with_a_violating_one(city_flags, tmp_path, monkeypatch):
    """Of 12 queries the first, and those at places 5, 6 and 7 violate: of three batches two make a step."""
    mine = vpr.training.triplets.mine

    def few(queries, *others):
        chosen = set(queries[[0, 5, 6, 7]].tolist())
        return [item for item in mine(queries, *others) if item.query in chosen]

    monkeypatch.setattr(vpr.training.triplets, "mine", few)
    assert main.main([*city_flags, f"--runsPath={tmp_path}", "--nEpochs=1", "--margin=4", "--batchSize=4"]) == 0
    checkpoint = newest_run(tmp_path) / "checkpoints" / "checkpoint.pth.tar"
    assert torch.load(checkpoint, weights_only=True)["position"]["steps"] == 2


def test_a_step_goes_down_the_sum_of_violations_over_the_number_of_violating_pairs(tiny_city, tmp_path):
    """Against a loop over single images in float32, with momentum and weight decay by hand."""
    rules, spec = TrainingRules(lr=0.01, margin=0.1), ModelSpec("alexnet", "none", pooling="avg")
    training = load_training_set(PlacesSpec("toy", tiny_city), rules)
    images, count = training.images, len(training.images.database_files)
    model = build_model(spec).to_device(CPU, "fp32")
    plain = copy.deepcopy(model)
    state = new_state(model, rules, splits_of(images))
    reader = images.reader(Reading((48, 64)))
    batches = [
        [TrainingTuple(0, int(training.positives[0][0]), np.array([30, 40]))],
        [TrainingTuple(query, int(training.positives[query][0]), np.array([7 * query, 20])) for query in (3, 5)],
    ]
    Trainer(state, training, images, Sources(reader, reader), rules, tmp_path).train_block(
        block_of(batches, count, "steps")
    )

    velocity = [torch.zeros_like(value) for value in plain.parameters()]
    for batch in batches:
        violations = []
        for item in batch:
            rows = [count + item.query, item.positive, *item.negatives.tolist()]
            images = (plain.tensor_of(next(reader.batches([[row]]))[0].values) for row in rows)
            query, positive, *negatives = (plain(image)[0] for image in images)
            for negative in negatives:
                violations.append((query - positive).square().sum() + 0.1 - (query - negative).square().sum())
        violations = [value for value in violations if value > 0]
        assert violations
        plain.zero_grad()
        (sum(violations) / len(violations)).backward()
        with torch.no_grad():
            for value, speed in zip(plain.parameters(), velocity, strict=True):
                speed.mul_(0.9).add_(value.grad + 0.001 * value)
                value.sub_(0.01 * speed)
    assert state.position.steps == 2 and state.position.tuples == 3
    start = build_model(spec)
    for found, wanted, before in zip(model.parameters(), plain.parameters(), start.parameters(), strict=True):
        moved = (wanted - before).norm()
        assert moved > 0 and (found - wanted).norm() < 0.01 * moved
