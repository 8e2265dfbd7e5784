"""How long a run would take: a few of its steps, timed; nothing is written."""

import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch

from sdnet.launch.build import build_trainer
from sdnet.training.evaluation import evaluate
from sdnet.training.trainer import Trainer

STEPS = 8  # that are timed, after one that warms up
BATCHES = 3  # of an evaluation


def seconds_of(config: dict[str, Any]) -> float:
    """The seconds that a run takes for its training and its evaluations."""
    trainer = build_trainer(config, None)
    trainer.model.train()
    batches = islice(trainer.loaders["train"].batches(), STEPS + 1)
    trainer.train_step(*next(batches))
    step = _timed(trainer, lambda: [trainer.train_step(*batch) for batch in batches])
    per_batch = _timed(
        trainer,
        lambda: [
            evaluate(trainer.model, [batch], config["trainer"]["precision"])
            for batch in islice(trainer.loaders["test"].batches(), BATCHES)
        ],
    )
    if not step:  # an epoch of a single step
        step = 3 * per_batch
    evaluations = -(-trainer.total_steps // trainer.eval_steps)
    batches_of_one = sum(len(part) for name, part in trainer.loaders.items() if name != "train")
    return trainer.total_steps * step + evaluations * batches_of_one * per_batch


def _timed(trainer: Trainer, work: Callable[[], list]) -> float:
    """Seconds for one of what a function does: it gives an element for each."""
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    start = time.perf_counter()
    done = work()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return (time.perf_counter() - start) / max(len(done), 1)
