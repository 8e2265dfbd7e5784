"""What telemetry adds to a step: one network takes its steps in turns with and without it.

python benchmarks/telemetry.py --depth 20 --steps 40 [--device cuda]
"""

import argparse
import time
from dataclasses import replace
from statistics import median

import gpu
import torch
from measure import machine, synchronize

from sdnet.listeners.telemetry import Telemetry
from sdnet.training import device as devices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40, help="of each kind")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    gpu.DEVICE = devices.resolve(args.device)
    gpu.SIZE = replace(gpu.SIZE, depth=args.depth, batch=args.batch, threads=args.threads)
    trainer = gpu.make(1.0, count=4 * args.batch)  # the same blocks in each step
    print(machine(torch.device(args.device)))
    step, telemetry = gpu.stepping(trainer), Telemetry()
    for _ in range(4):
        step()
    telemetry.on_start(trainer)
    seconds = {(): [], (telemetry,): []}
    for _ in range(args.steps):
        for listeners, taken in seconds.items():
            trainer.listeners = listeners
            synchronize()
            begun = time.perf_counter()
            step()
            synchronize()
            taken.append(time.perf_counter() - begun)
    off, on = (1e3 * median(taken) for taken in seconds.values())
    print(f"ResNet-{args.depth}, batches of {args.batch}, constant depth, n = {args.steps}:")
    print(f"off {off:.2f} ms, on {on:.2f} ms a step, ratio {on / off:.3f}")
    begun = time.perf_counter()
    telemetry.on_row(trainer, {"step": 1, "epoch": 1.0})
    print(f"a row at an evaluation: {1e3 * (time.perf_counter() - begun):.1f} ms")


if __name__ == "__main__":
    main()
