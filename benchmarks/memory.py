"""Peak memory and time of a training step, with and without keeping all activations.

    python benchmarks/memory.py   # ResNet-1202, 128 images of 32x32
    python benchmarks/memory.py --depth 110 --groups none 6 --parts 1 4

Two steps of SGD at p_L = 0.5, fp32, each way in a process of its own; the peak is what the process
held at most (CUDA: what torch allocated, but for cuDNN's search). `--groups` are values of
trainer.checkpoint_blocks, `--parts` of trainer.accumulate.
"""

import argparse

import torch
import torch.nn.functional as F
from measure import alone, forget_search, ieee, peak, seconds_of

from sdnet import LinearDecay, resnet_cifar, set_gates
from sdnet.models.gates import GateSampler


def measure(depth: int, batch: int, p_L: float, group: int | None, parts: int) -> None:
    """Prints the peak in GB before and after, and the seconds of the second step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ieee(device)
    model = resnet_cifar(depth, schedule=LinearDecay(p_L))
    model = model.to(device, memory_format=torch.channels_last)
    model.checkpoint_blocks = group
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True)
    images = torch.randn(batch, 3, 32, 32, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 10
    sampler = GateSampler(model, seed=0)

    def take(step: int) -> None:
        set_gates(model, sampler.draw(step, batch))
        optimizer.zero_grad()
        for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            F.cross_entropy(model(x), y, reduction="sum").div(batch).backward()
        optimizer.step()

    before = peak(device)
    forget_search(take, 2, device)
    take(0)
    seconds = seconds_of(lambda: take(1))
    print(before, peak(device), seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=1202)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--p_L", type=float, default=0.5)
    parser.add_argument("--groups", nargs="+", default=["none", "15"])
    parser.add_argument("--parts", nargs="+", type=int, default=[1])
    parser.add_argument("--one", action="store_true", help="measure in this process")
    args = parser.parse_args()
    if args.one:
        group = None if args.groups[0] == "none" else int(args.groups[0])
        return measure(args.depth, args.batch, args.p_L, group, args.parts[0])
    print(f"ResNet-{args.depth}, batch {args.batch}, p_L {args.p_L:g}")
    print("checkpoint_blocks  accumulate   peak GB  of it the steps'  s/step")
    for group in args.groups:
        for parts in args.parts:
            shape = ["--depth", args.depth, "--batch", args.batch, "--p_L", args.p_L]
            way = ["--groups", group, "--parts", parts]
            before, after, seconds = alone(*shape, *way, "--one")
            print(f"{group:>17}{parts:12}{after:10.2f}{after - before:18.2f}{seconds:8.1f}")
    return None


if __name__ == "__main__":
    main()
