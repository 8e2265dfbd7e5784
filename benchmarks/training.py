"""Whole training on CIFAR images: the trainer, its bare steps, and the plain way.

    python benchmarks/training.py --root data/cifar10-jpeg       # ResNet-20, constant and p_L = 0.5

`trainer` is `train.py`'s own loop with shifts and mirroring, gates, metrics and console. `bare` are
forward, backward and SGD alone: after each of the trainer's steps one of another network in the
same process, with its weights, images and gates, for the values decide too how long a step takes.
The difference is what all the rest costs. `plain` is what most replications do (see
`step_time.py`), with two worker processes to transform the images, in a process of its own in
between. On CUDA each of the first two's steps is waited for. Images/s, medians over the turns of
some 22 steps each; evaluations are left out.
"""

import argparse
import logging
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from measure import alone, machine, synchronize
from step_time import DEVICE, PRECISIONS, Contender, Images
from torch.utils.data import DataLoader

from sdnet import resnet_cifar
from sdnet.launch.build import build_data, build_trainer
from sdnet.listeners import console as consoles
from sdnet.runs.folder import RunFolder
from sdnet.training import device as devices
from sdnet.training.listener import Listener
from sdnet.training.optim import set_rate
from sdnet.training.trainer import Trainer

STEPS, BATCH = 22, 128


def composed(args: argparse.Namespace) -> dict:
    from hydra import compose, initialize_config_dir

    from sdnet.config.compose import register_resolvers, resolve

    register_resolvers()
    overrides = [
        f"model.depth={args.depth}",
        *(["schedule=constant"] if args.p_L == [1.0] else [f"schedule.p_L={args.p_L[0]}"]),
        "dataset=image_folder",
        f"dataset.root={args.root}",
        "dataset.validation=0",
        f"trainer.precision={args.precision}",
        *args.override,
    ]
    conf = Path(__file__).resolve().parents[1] / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
        return resolve(compose("config", overrides=overrides))


class Bare(Listener):
    """After each of the trainer's steps a bare one, the time of which is not the trainer's."""

    def __init__(self, contender: Contender):
        self.contender, self.seconds, self.rates = contender, 0.0, []

    def on_step(self, trainer: Trainer) -> None:
        synchronize()
        begun = time.perf_counter()
        bare, step = self.contender, trainer.counters.step - 1
        bare.net.load_state_dict(trainer.model.state_dict())
        bare.data = next(iter(trainer.loaders["train"].batches(*divmod(step, STEPS))))
        bare.vectors = [trainer.gates.draw(step, BATCH)]
        set_rate(bare.optimizer, trainer.lr / 0.01)
        synchronize()
        start = time.perf_counter()
        bare.step(0)
        synchronize()
        end = time.perf_counter()
        self.seconds += end - start
        trainer.counters.interval_seconds -= end - begun

    def on_row(self, trainer: Trainer, row: dict) -> None:
        self.rates.append(STEPS * BATCH / self.seconds)
        self.seconds = 0.0


def ours(args: argparse.Namespace, turns: int) -> tuple[list[float], list[float]]:
    """Images/s of the trainer and of its bare steps, by turn."""
    config = composed(args)
    config["trainer"]["epochs"] = turns
    console = consoles.set_up()
    consoles.log.setLevel(logging.WARNING)
    name = "batch" if args.p_L[0] < 1 else "constant"
    make = partial(resnet_cifar, args.depth)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        run.create(config, {})
        trainer = build_trainer(config, run)
        trainer.loaders["train"].count = STEPS * BATCH
        trainer.loaders["test"].count = BATCH
        trainer.steps_per_epoch, trainer.eval_steps = STEPS, STEPS
        trainer.total_steps = turns * STEPS
        bare = Bare(Contender(name, make, 32, BATCH, args.p_L[0], args.precision))
        trainer.listeners = (consoles.ConsoleListener(console), bare)
        trainer.fit()
        return [row["images_per_second"] for row in run.rows()], bare.rates


def plain(args: argparse.Namespace) -> float:
    """Images/s of one turn of the plain way, after a few steps to warm up."""
    split = build_data(composed(args)).train
    some = STEPS * BATCH * 2
    data = Images(split[:some], split.labels[:some].tolist())
    contender = Contender("plain", partial(resnet_cifar, args.depth), 32, BATCH, args.p_L[0])
    contender.batches = iter(DataLoader(data, BATCH, shuffle=True, num_workers=2, drop_last=True))
    for case in range(5):
        contender.step(case)
    synchronize()
    start = time.perf_counter()
    for case in range(STEPS):
        contender.step(case % 5)
    synchronize()
    return STEPS * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True, help="images in train/<class>/ and test/<class>/")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--p_L", nargs="+", type=float, default=[1.0, 0.5])
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--override", nargs="*", default=[], help="settings of the trainer's run")
    parser.add_argument("--part", choices=("ours", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "ours":
        rates = ours(args, 4)  # the first warms up
        return print(*(median(r[1:]) for r in rates))
    if args.part == "plain":
        return print(plain(args))
    devices.configure(DEVICE, "fp32", None, False)
    print(f"{machine(DEVICE)}, ResNet-{args.depth}, {args.precision}, {args.turns} turns")
    print(
        f"{'p_L':>5}{'trainer':>10}{'bare':>8}{'plain':>8}{'trainer/bare':>14}{'trainer/plain':>15}"
    )
    for p_L in args.p_L:
        options = ["--root", args.root, "--depth", args.depth, "--precision", args.precision]
        options += ["--p_L", p_L, "--override", *args.override, "--part"]
        found = [[*alone(*options, "ours"), *alone(*options, "plain")] for _ in range(args.turns)]
        trainer, bare, other = (median(column) for column in zip(*found, strict=True))
        to_bare, to_plain = (median(f[0] / f[i] for f in found) for i in (1, 2))
        print(f"{p_L:5g}{trainer:10.0f}{bare:8.0f}{other:8.0f}{to_bare:14.3f}{to_plain:15.2f}")
    return None


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
