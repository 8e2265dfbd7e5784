"""What two processes do together, and an epoch of theirs written down for one."""

import os
import signal
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sdnet import GateSampler, set_gates
from sdnet.config import targets
from sdnet.launch.build import build_trainer
from sdnet.training import distributed
from sdnet.training.distributed import ALONE
from sdnet.training.evaluation import evaluate

CASES = [  # gates, what befalls a skipped block, normalisation
    ("model.granularity=batch", "optimizer.skipped_update=decay", "group"),
    ("model.granularity=batch", "optimizer.skipped_update=freeze", "group"),
    ("model.granularity=sample", "optimizer.skipped_update=decay", "group"),
    ("model.granularity=batch", "optimizer.skipped_update=decay", "batch"),
    ("model.granularity=subset", "optimizer.skipped_update=decay", "batch"),
]


def with_group_norm(module):
    """Replaces BatchNorm, which sees the images of its own process alone; in float64."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(4, child.num_features))
        else:
            with_group_norm(child)
    return module.double()


def make(granularity, update, norm, world=ALONE):
    """A trainer that computes in float64, where the order of a sum makes no difference."""
    from tests.config.composed import composed

    small = ["model.depth=8", "dataset.size=8", "trainer.device=cpu", "trainer.threads=1"]
    small += ["trainer.epochs=2", "dataset.shift=1", "schedule=uniform", "optimizer.lr=0.01"]
    config = composed(*small, granularity, update)
    trainer = build_trainer(config, None, world)
    if norm == "group":
        with_group_norm(trainer.model)
    trainer.model.double().train()
    trainer.model.register_forward_pre_hook(lambda _, images: images[0].double())
    trainer.optimizer = targets.instantiate(config, "optimizer", trainer.model.parameters())
    return trainer


def trained(*case, world):
    """The network after an epoch of 11 steps, of which the last has 13 images; its errors."""
    trainer = make(*case, world)
    for images, labels in trainer.loaders["train"].batches(0):
        trainer.train_step(images, labels)
    found = evaluate(trainer.model, trainer.loaders["test"], "fp32", world.sum)
    results = {"sums": trainer.sums, "evaluation": torch.tensor(found[:2], dtype=torch.float64)}
    return trainer.model.state_dict() | results


def trained_by_hand(granularity, update, norm):
    """The same for two processes, each of which has half of a mini-batch: one after the other."""
    trainer = make(granularity, update, norm)
    model, sampler = trainer.model, GateSampler(trainer.model, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True)
    sums = torch.zeros(2, dtype=torch.float64)
    for step, (images, labels) in enumerate(trainer.loaders["train"].batches(0)):
        half = len(images) // 2
        gates = sampler.draw(step, [half, len(images) - half])
        optimizer.zero_grad()
        before, after = [b.clone() for b in model.buffers()], []
        for rows in (slice(half), slice(half, None)):
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)
            set_gates(model, gates if gates.ndim == 1 else gates[:, rows])
            logits = model(images[rows])
            loss = F.cross_entropy(logits.float(), labels[rows], reduction="sum")
            (loss / len(images)).backward()
            sums += torch.stack([loss.detach(), (logits.argmax(1) != labels[rows]).sum()])
            after.append([b.clone() for b in model.buffers()])
        for buffer, *halves in zip(model.buffers(), *after, strict=True):
            buffer.copy_(sum(halves) / 2)  # running statistics; both counted the same batches
        for parameter in model.parameters():
            if parameter.grad is None and update.endswith("decay"):
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    model.eval()
    ((images, labels),) = [[torch.cat(p) for p in zip(*trainer.loaders["test"], strict=True)]]
    with torch.no_grad():
        logits = model(images)
    loss, wrong = F.cross_entropy(logits, labels), (logits.argmax(1) != labels).double().mean()
    return model.state_dict() | {"sums": sums, "evaluation": torch.stack([loss, 100 * wrong])}


def exchanged(world, folder):
    """What a process gets from the others in each way there is."""
    summed = torch.tensor([world.rank + 1.0, 10.0])
    world.sum(summed)
    state = world.broadcast({"a": torch.tensor([7 + world.rank])} if world.is_main else None)
    with world.one_first():
        came_second = (folder / "first").exists()
        (folder / "first").touch()
    return {
        "sum": summed.tolist(),
        "agree": world.agree(world.rank, 5 - world.rank),
        "broadcast": state["a"].item(),
        "came_second": came_second,
    }


def main(folder):
    """What each of two processes does; it writes what it has in the end to <rank>.pt."""
    with distributed.joined("cpu") as world:
        results = {" ".join(case): trained(*case, world=world) for case in CASES}
        results["exchanged"] = exchanged(world, Path(folder))
        torch.save(results, Path(folder) / f"{world.rank}.pt")


def train_and_fail(rank, what, *arguments):
    """`python train.py ...` in which one process comes to a bad end in its third step.

    As with NCCL, to destroy the group would last until all processes do.
    """
    from sdnet.training.trainer import Trainer
    from tests import commands

    distributed.GRACE_SECONDS = 0.5
    distributed.dist.destroy_process_group = lambda: time.sleep(1000)
    step = Trainer.train_step

    def fails(trainer, *batch):
        if trainer.world.rank == rank and trainer.counters.step == 2:
            what()
        step(trainer, *batch)

    Trainer.train_step = fails
    commands.train(*arguments)


def lose_cuda(*arguments):
    """`python train.py -m ...` in which memory runs out with seed 0, and CUDA is gone with 1."""
    from sdnet.training.trainer import Trainer
    from tests import commands

    step = Trainer.train_step

    def synchronize():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def fails(trainer, *batch):
        if trainer.gates.seed == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if trainer.gates.seed == 1:
            torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, synchronize
            synchronize()
        step(trainer, *batch)

    Trainer.train_step = fails
    commands.train(*arguments)


def raises():
    raise ValueError("as planned")


def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)
