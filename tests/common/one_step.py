"""A program for torchrun: one optimiser step of a training by one or more processes.

    python one_step.py RESULT FLAG ...

Process 0 writes into RESULT the step's loss, its gradient by parameter, how many images there are, and by parameter the
sum of the absolute values of each image's part of the gradient.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vpr.cli.options import parse_options
from vpr.cli.specs import model_spec, places_spec, reading, training_rules
from vpr.common import processes
from vpr.data.reader import CPU
from vpr.models.place_model import build_model
from vpr.training.losses import triplet_violations
from vpr.training.state import new_state, splits_of
from vpr.training.trainer import BatchDescriber, Sources, Trainer
from vpr.training.training_set import load_training_set
from vpr.training.triplets import block_of
from vpr.training.tuples import TrainingTuple, TupleBatch

TUPLES, NEGATIVES = 4, 2


def tuples_without_a_common_image(training) -> list[TrainingTuple]:
    chosen, taken = [], set()
    for query in training.usable.tolist():
        positive = next((image for image in training.positives[query].tolist() if image not in taken), None)
        if positive is None or len(chosen) == TUPLES:
            continue
        forbidden = {*training.not_negatives[query].tolist(), *taken, positive}
        negatives = [n for n in range(len(training.images.database_files)) if n not in forbidden][:NEGATIVES]
        taken |= {positive, *negatives}
        chosen.append(TrainingTuple(query, positive, np.array(negatives)))
    assert len(chosen) == TUPLES
    return chosen


def parts_of_images(model, source, tuples, database_size, margin) -> tuple[int, dict[str, torch.Tensor]]:
    """The number of images, and the sum over them of what each adds to the gradient, taken absolutely."""
    chosen = TupleBatch.of(tuples, database_size)
    batches = list(source.batches([[image] for image in chosen.images]))
    describer = BatchDescriber(model)
    with torch.no_grad():
        descriptors = torch.cat([describer(batch) for batch in batches])
    descriptors.requires_grad_(True)
    violation, violating = triplet_violations(
        descriptors[chosen.query],
        descriptors[chosen.positive],
        descriptors[chosen.negative],
        chosen.tuple_of_negative,
        margin,
    )
    (violation / violating).backward()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    sums = {name: torch.zeros_like(value) for name, value in trained.items()}
    for batch, gradient in zip(batches, descriptors.grad, strict=True):
        parts = torch.autograd.grad(describer(batch), list(trained.values()), gradient[None])
        for name, part in zip(trained, parts, strict=True):
            sums[name] += part.abs()
    return len(chosen.images), sums


def main(result: str, flags: list[str]) -> None:
    options = parse_options(["--mode=train", *flags])
    with processes.process_group():
        rules = training_rules(options)
        training = load_training_set(places_spec(options), rules)
        torch.manual_seed(0)
        model = build_model(model_spec(options))
        nn.init.normal_(model.pool.conv.weight, std=3)
        nn.init.normal_(model.pool.centroids, std=0.02)
        state = new_state(model.to_device(CPU, options.precision), rules, splits_of(training.images))
        source = training.images.reader(reading(options, CPU))
        tuples = tuples_without_a_common_image(training)
        count, parts = parts_of_images(copy.deepcopy(state.model), source, tuples, 48, rules.margin)
        trainer = Trainer(state, training, training.images, Sources(source, source), rules, Path(result).parent)
        trainer.train_block(block_of([tuples], len(training.images.database_files), "one step"))
        if processes.is_main():
            gradient = {name: value.grad for name, value in state.model.named_parameters() if value.requires_grad}
            found = {"loss": state.position.loss_sum, "gradient": gradient, "photos": count, "parts": parts}
            torch.save(found, result)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
