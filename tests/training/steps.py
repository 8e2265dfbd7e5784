"""Twenty steps of training, alone or as one of several processes."""

from pathlib import Path

import torch
from torch import nn

from sdnet import config as configs
from sdnet.build import build_trainer
from sdnet.training import distributed

CASES = [  # gates, what befalls a skipped block, normalisation
    ("model.granularity=batch", "optimizer.skipped_update=decay", "group"),
    ("model.granularity=batch", "optimizer.skipped_update=freeze", "group"),
    ("model.granularity=sample", "optimizer.skipped_update=decay", "group"),
    ("model.granularity=batch", "optimizer.skipped_update=decay", "batch"),
    ("model.granularity=subset", "optimizer.skipped_update=decay", "batch"),
]


def with_group_norm(module):
    """Replaces BatchNorm, which sees its own process's images only, and computes in float64."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(4, child.num_features))
        else:
            with_group_norm(child)
    return module.double()


def trained(granularity, update, norm, world):
    from tests.test_config import composed

    small = ["model.depth=8", "dataset.size=8", "trainer.device=cpu", "trainer.threads=1"]
    small += ["trainer.epochs=2", "dataset.shift=1", "schedule=uniform", "optimizer.lr=0.01"]
    config = composed(*small, granularity, update)
    trainer = build_trainer(config, None, world)
    if norm == "group":
        with_group_norm(trainer.model)
        trainer.model.register_forward_pre_hook(lambda _, images: images[0].double())
        trainer.optimizer = configs.instantiate(config, "optimizer", trainer.model.parameters())
    trainer.model.train()
    for epoch in range(2):  # 22 steps, each epoch's last with 13 images
        for images, labels in trainer.loaders["train"].batches(epoch):
            trainer.train_step(images, labels)
    return trainer.model.state_dict() | {"sums": trainer.sums}


def main(folder):
    """What one of several processes does; it writes the networks it ends with to <rank>.pt."""
    with distributed.joined("cpu") as world:
        states = {" ".join(case): trained(*case, world) for case in CASES}
        torch.save(states, Path(folder) / f"{world.rank}.pt")
