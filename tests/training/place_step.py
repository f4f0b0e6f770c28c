"""A program for one process or, by torchrun, several: one step of a training on batches of places, or with a teacher.

    python place_step.py RESULT FLAG ...

Process 0 writes into RESULT the step's loss and figures, and its gradient by parameter.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vpr.cli.options import parse_options
from vpr.cli.specs import model_spec, places_spec, reading, training_rules
from vpr.common import processes
from vpr.data.reader import CPU
from vpr.models.place_model import build_model
from vpr.training.distilling import with_teacher
from vpr.training.state import new_state, splits_of
from vpr.training.trainer import Sources, Trainer
from vpr.training.training_set import load_training_set


def main(result: str, flags: list[str]) -> None:
    options = parse_options(flags)
    with processes.process_group():
        rules = training_rules(options)
        training = load_training_set(places_spec(options), rules)
        training = with_teacher(training, rules, reading(options, CPU), None)
        torch.manual_seed(0)
        model = build_model(model_spec(options))
        nn.init.normal_(model.pool.conv.weight, std=3)
        nn.init.normal_(model.pool.centroids, std=0.02)
        state = new_state(model.to_device(CPU, options.precision), rules, splits_of(training.images))
        source = training.images.reader(reading(options, CPU))
        trainer = Trainer(state, training, training.images, Sources(source, source), rules, Path(result).parent)
        block = next(iter(trainer.objective.batches(state, 1)))
        trainer.train_block(replace(block, batches=block.batches[:1], sizes=block.sizes[:1]))
        if processes.is_main():
            gradient = {name: value.grad for name, value in state.model.named_parameters() if value.requires_grad}
            position = state.position
            found = {"loss": position.loss_sum, "images": position.tuples, "sums": position.sums, "gradient": gradient}
            torch.save(found, result)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
