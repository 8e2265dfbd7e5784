"""Trainers on fake CUDA, and what a step of theirs asks of the device.

    python -m tests.cuda.counts

prints the operations of a step, found from networks of two depths with gates that are all open and
all closed. An operation is one of torch's: a few of them are several kernels.
"""

import logging
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from unittest import mock

import numpy as np
import torch

from sdnet.data.split import Split
from sdnet.data.splits import Data, Normalization
from sdnet.launch import build
from sdnet.training.distributed import ALONE
from tests.config.composed import composed
from tests.cuda import fake

SMALL = ["trainer.batch_size=16", "trainer.threads=1", "++dataset.shift=1", "++dataset.flip=true"]
DEPTHS = 8, 14  # three blocks and six
compose = cache(composed)


def split(count):
    images = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return Split(images, np.arange(count) % 10)


@contextmanager
def maker():
    """Within the block CUDA is there; gives what makes trainers, and the `Watch`.

    There are 24 images for training, in steps of 16 and 8, and 20 for evaluation.
    """
    fitted = Normalization(np.float32([100, 100, 100]), np.float32([50, 50, 50]))
    data = Data(split(24), split(20), split(20), [str(i) for i in range(10)], fitted)

    def make(*overrides, run=None, world=ALONE):
        config = deepcopy(compose(*SMALL, "trainer.device=cuda", *overrides))
        if run is not None and not run.holds_run():
            run.create(config, {})
        trainer = build.build_trainer(config, run, world)
        trainer.model.train()
        return trainer

    read = mock.patch.object(build, "build_data", lambda config, listing=False: data)
    with read, fake.cuda() as watch:
        yield make, watch


def of_a_step(depth, gate, precision):
    """Operations of the loader and of the rest of a step whose gates are all the same."""
    with maker() as (make, watch):
        trainer = make(f"model.depth={depth}", f"trainer.precision={precision}")
        gates = torch.full((len(trainer.gates.modules),), gate)
        trainer.gates.draw = lambda step, sizes: gates
        batches = trainer.loaders["train"].batches()
        trainer.train_step(*next(batches))  # makes the momentum
        watch.clear()
        batch = next(batches)
        loader = watch.ops.total()
        trainer.train_step(*batch)
        return loader, watch.ops.total() - loader


def counts(precision):
    """Operations of a step: for an open block, for a closed one, the loader's, the rest."""
    found = {
        gate: [of_a_step(depth, gate, precision) for depth in DEPTHS] for gate in (True, False)
    }
    loader, shallow = found[True][0]
    blocks = {gate: (steps[1][1] - steps[0][1]) / 3 for gate, steps in found.items()}
    rest = shallow - 3 * blocks[True]
    return {
        "open block": blocks[True],
        "closed block": blocks[False],
        "loader": loader,
        "rest": rest,
    }


def main():
    logging.disable(logging.WARNING)
    names = ("open block", "closed block", "loader", "rest")
    print(f"| ResNet on CIFAR | {' | '.join(names)} | ResNet-110 | p_L = 0.5 |")
    print("|---|---|---|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        found = counts(precision)
        fixed = found["loader"] + found["rest"]
        whole = fixed + 54 * found["open block"]
        half = fixed + 40.25 * found["open block"] + 13.75 * found["closed block"]
        row = " | ".join(f"{found[name]:.0f}" for name in names)
        print(f"| {precision} | {row} | {whole:.0f} | {half:.0f} |")


if __name__ == "__main__":
    main()
