"""Steps on batches of places, the plain way and this project's, and the memory that gradient caching saves."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from benchmarks.measure import cuda_peak_memory, peak_memory_alone
from benchmarks.report import Row
from benchmarks.stages import Bench
from benchmarks.textbook import NormalizedImages, optimizer_of, textbook_of
from vpr.models.place_model import PlaceModel
from vpr.training.choices import BY_PLACE
from vpr.training.objective import Block
from vpr.training.places.multi_similarity import multi_similarity
from vpr.training.rules import TrainingRules
from vpr.training.state import new_state, splits_of
from vpr.training.trainer import Sources, Trainer
from vpr.training.training_set import load_training_set

PLACES, OF_EACH, STEPS = 6, 4, 4
CACHED = 4  # images whose layers are in memory at once, with gradient caching


def place_steps(bench: Bench, arch: str) -> list[Row]:
    """Steps from image files, from the same weights; the second row: with gradient caching."""
    rules = TrainingRules(loss=BY_PLACE, batch_size=PLACES, images_per_place=OF_EACH)
    trainer, block = _prepared(bench, arch, rules)
    plain = _plain_steps(trainer.model, trainer, block, bench)
    slow, quick = bench.compare(plain, lambda: trainer.train_block(block))
    cached_trainer, _ = _prepared(bench, arch, replace(rules, gradient_cache=CACHED))
    _, cached = bench.compare(plain, lambda: cached_trainer.train_block(block))
    memory = [_memory(bench, arch, rules, how) for how in ("plain", "ours", "cached")]
    images = sum(block.sizes)
    setting = f"{arch}, {len(block.batches)} steps of {PLACES} x {OF_EACH} images"
    speed = [f"{images / each.median:.3g} images/s" for each in (quick, cached)]
    return [
        Row("steps by places", setting, slow, quick, memory[0], memory[1], speed[0]),
        Row(f"with --gradientCache={CACHED}", setting, slow, cached, memory[0], memory[2], speed[1]),
    ]


def _prepared(bench: Bench, arch: str, rules: TrainingRules) -> tuple[Trainer, Block]:
    """A trainer of the places' train split, and its first steps."""
    training = load_training_set(bench.places, rules)
    state = new_state(bench.model(bench.spec(arch)), rules, splits_of(training.images))
    source = bench.reading().of(training.images.files)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(state, training, training.images, Sources(source, source), rules, Path(folder))
    block = next(iter(trainer.objective.batches(state, 1)))
    return trainer, replace(block, batches=block.batches[:STEPS], sizes=block.sizes[:STEPS])


def _plain_steps(model: PlaceModel, trainer: Trainer, block: Block, bench: Bench) -> Callable[[], object]:
    """The same steps with a plain loop of PyTorch."""
    plain = textbook_of(model).train()
    optimizer = optimizer_of(plain, trainer.rules)
    images = NormalizedImages(trainer.training.images.files, None, plain.mean, plain.std)
    batches = [batch.images for batch in block.batches]

    def work() -> None:
        loader = DataLoader(images, batch_sampler=batches, num_workers=bench.reading().workers)
        for values, batch in zip(loader, block.batches, strict=True):
            losses, _ = multi_similarity(plain(values.to(plain.mean.device)), torch.as_tensor(batch.places))
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()

    return work


def _memory(bench: Bench, arch: str, rules: TrainingRules, how: str) -> int:
    if bench.device.type == "cuda":
        return cuda_peak_memory(_alone(bench, arch, rules, how), bench.device)
    return peak_memory_alone(_alone, bench, arch, rules, how)


def _alone(bench: Bench, arch: str, rules: TrainingRules, how: str) -> Callable[[], object]:
    rules = replace(rules, gradient_cache=CACHED if how == "cached" else 0)
    trainer, block = _prepared(bench, arch, rules)
    first = replace(block, batches=block.batches[:1], sizes=block.sizes[:1])
    if how == "plain":
        return _plain_steps(trainer.model, trainer, first, bench)
    return lambda: trainer.train_block(first)
