"""How the time of a training step and its peak memory grow with depth and with p_L.

    python benchmarks/depth.py                     # ResNet-20 to -1202, batch 32, a figure
    python benchmarks/depth.py --depths 20 56 110 --batch 128

A step is that of `step_time.py`: forward, backward, SGD, with gate vectors of the expected depth.
The p_L of one depth take turns in one process; peak memory is that of a process of its own. The fit
says what a block costs that is closed, and what it costs in addition when its gate is open.
"""

import argparse
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from measure import alone, forget_search, interleaved, machine, peak
from step_time import DEVICE, Contender

from sdnet import LinearDecay, resnet_cifar
from sdnet.training import device as devices

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter


def contender(depth: int, p_L: float, batch: int) -> Contender:
    return Contender("batch", partial(resnet_cifar, depth), 32, batch, p_L)


def memory(depth: int, p_L: float, batch: int) -> float:
    """Peak GB of a process that takes a few steps."""
    return alone("--depths", depth, "--p_L", p_L, "--batch", batch, "--alone")[0]


def fit(rows: list[dict]) -> np.ndarray:
    """Seconds (fixed, per block, per open block): least squares of relative errors."""
    design = np.array([[1.0, row["blocks"], row["active"]] for row in rows])
    seconds = np.array([row["seconds"] for row in rows])
    return np.linalg.lstsq(design / seconds[:, None], np.ones(len(rows)), rcond=None)[0]


def draw(rows: list[dict], fitted: np.ndarray, title: str, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for p_L in sorted({row["p_L"] for row in rows}, reverse=True):
        own = [row for row in rows if row["p_L"] == p_L]
        blocks = [row["blocks"] for row in own]
        expected = [float(fitted @ [1.0, row["blocks"], row["active"]]) for row in own]
        (line,) = axes[0].plot(blocks, [row["seconds"] for row in own], "o", label=f"p_L = {p_L:g}")
        axes[0].plot(blocks, expected, color=line.get_color(), linewidth=1)
        axes[1].plot(blocks, [row["gigabytes"] for row in own], "o-", label=f"p_L = {p_L:g}")
    for axis, label in zip(axes, ("seconds per step", "peak memory (GB)"), strict=True):
        axis.set(xlabel="residual blocks", ylabel=label, xscale="log", yscale="log")
        ticks = sorted({row["blocks"] for row in rows})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.xaxis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0].legend(title="measured, and the fit", frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--depths", nargs="+", type=int, default=[20, 56, 110, 218, 434, 1202])
    parser.add_argument("--p_L", nargs="+", type=float, default=[1.0, 0.5, 0.2])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("depth.png"))
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    devices.configure(DEVICE, "fp32", None, False)
    if args.alone:
        one = contender(args.depths[0], args.p_L[0], args.batch)
        forget_search(one.step, 2, DEVICE)
        for case in range(2):
            one.step(case)
        return print(peak(DEVICE))
    title = f"{machine(DEVICE)}, batch {args.batch}, fp32, {args.turns} turns"
    print(title)
    print(
        f"{'depth':>6}{'blocks':>8}{'p_L':>6}{'active':>8}{'ms/step':>10}{'ratio':>7}{'peak GB':>9}"
    )
    rows = []
    for depth in args.depths:
        steps = {p_L: contender(depth, p_L, args.batch).step for p_L in args.p_L}
        seconds = interleaved(steps, 5, args.turns)
        for p_L, s in seconds.items():
            blocks = (depth - 2) // 2
            active = sum(LinearDecay(p_L)([blocks]))
            held = memory(depth, p_L, args.batch)
            row = {"depth": depth, "blocks": blocks, "p_L": p_L, "active": active}
            rows.append(row | {"seconds": s, "gigabytes": held})
            ratio = s / seconds[max(seconds)]
            print(
                f"{depth:6}{blocks:8}{p_L:6g}{active:8.1f}{1e3 * s:10.1f}{ratio:7.3f}{held:9.2f}",
                flush=True,
            )
    fitted = fit(rows)
    fixed, closed, opened = 1e3 * fitted
    print(f"fit: {fixed:.1f} ms + {closed:.2f} ms per block + {opened:.2f} ms per open block")
    draw(rows, fitted, title, args.out)
    print(args.out)
    return None


if __name__ == "__main__":
    main()
