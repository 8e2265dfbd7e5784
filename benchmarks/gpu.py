"""The first hour on a GPU: what is not known without one, in 15 minutes, as one Markdown page.

    python benchmarks/gpu.py                                  # all parts, cuda.md
    python benchmarks/gpu.py --minutes 9 --parts versions eager profile
    python benchmarks/gpu.py --device cpu --smoke             # whether it runs through

Each part is a process of its own. The page is written anew after each; a part that fails or takes
too long leaves what it has found, and its error. What is measured is the trainer's own step on
ResNet-110, batches of 128 random images of CIFAR's size, and its own gates. Times are medians of
rounds in which all contenders of a part take turns, some steps in a row each; fp32 is without TF32.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import machine, seconds_of, synchronize

from sdnet import LinearDecay, resnet_cifar
from sdnet.data.loader import Loader
from sdnet.data.split import Split
from sdnet.data.splits import Normalization
from sdnet.models.compile import compile_branches
from sdnet.models.fast.graphs import Recorded
from sdnet.models.gates import GRANULARITIES
from sdnet.runs.folder import RunFolder
from sdnet.training import device as devices
from sdnet.training.counters import Interrupted
from sdnet.training.evaluation import evaluate
from sdnet.training.listener import Listener
from sdnet.training.optim import ConstantRate
from sdnet.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
SCHEDULES = {"constant": 1.0, "p_L 0.5": 0.5}
LAYOUTS = {"channels_last": True, "contiguous": False}


@dataclass
class Size:
    """How much is measured."""

    depth: int = 110
    batch: int = 128
    edge: int = 32
    images: int = 45_000
    tests: int = 10_000
    steps: int = 40  # in a row
    rounds: int = 3
    short: int = 1_224  # images of runs that are compared: ten steps an epoch, the last of 72
    workers: int = 8
    threads: int | None = None


SMOKE = Size(8, 16, 8, 64, 32, 2, 1, 40, 0, 1)
SIZE = Size()
DEVICE = torch.device("cpu")


@cache
def images(count: int, seed: int) -> Split:
    shape = (count, SIZE.edge, SIZE.edge, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Split(pixels, np.arange(count) % 10)


@cache
def normalization() -> Normalization:
    return Normalization.fit(images(min(SIZE.images, 1024), 0), "channel")


@cache
def loader(count: int, part: int, batch: int, channels_last: bool, **augmentation) -> Loader:
    options = {"channels_last": channels_last, **augmentation}
    return Loader(images(count, part), normalization(), batch, DEVICE, **options)


def make(
    p_L: float = 0.5,
    precision: str = "fp32",
    channels_last: bool = True,
    granularity: str = "batch",
    compiled: bool = False,
    graphs: bool = False,
    deterministic: bool = False,
    count: int | None = None,
    folder: Path | None = None,
) -> Trainer:
    """A trainer as `build_trainer` makes it, without Hydra: a machine need not have it."""
    devices.configure(DEVICE, precision, SIZE.threads, deterministic)
    torch.backends.cudnn.benchmark &= granularity != "subset"
    torch.manual_seed(0)
    schedule = LinearDecay(p_L)
    model = resnet_cifar(SIZE.depth, schedule=schedule, granularity=granularity)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(DEVICE, memory_format=layout)
    if compiled:
        compile_branches(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True)
    how = {"batch": SIZE.batch, "channels_last": channels_last}
    loaders = {
        "train": loader(count or SIZE.images, 0, **how, seed=0, shift=4, flip=True),
        "test": loader(count or SIZE.tests, 1, **how),
    }
    settings = {"batch_size": SIZE.batch, "accumulate": 1, "epochs": 2, "precision": precision}
    settings |= {"eval_every": 1, "eval_unit": "epoch"}
    settings |= {"checkpoint_every": None, "checkpoint_unit": "step"}
    config = {"seed": 0, "schedule": {"_target_": "sdnet.LinearDecay", "p_L": p_L}}
    config |= {"optimizer": {"skipped_update": "decay"}, "trainer": settings}
    run = RunFolder(folder) if folder else None
    if run and not run.holds_run():
        run.create(config, {})
    trainer = Trainer(model, schedule, optimizer, ConstantRate(), loaders, config, run)
    if graphs:
        trainer.recorded = Recorded(model, optimizer, SIZE.batch, True)
    trainer.model.train()
    return trainer


def stepping(trainer: Trainer) -> Callable[[], None]:
    """Takes the trainer's next step, under its own precision, epoch after epoch."""

    def batches() -> Iterable:
        for epoch in range(10**6):
            yield from trainer.loaders["train"].batches(epoch)

    coming = iter(batches())

    def step() -> None:
        devices.allow_tf32(trainer.settings["precision"] == "tf32")
        trainer.total_steps = trainer.counters.step + 2  # the end does not come
        trainer.train_step(*next(coming))

    return step


def row(*cells: Any) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def precisions() -> tuple[str, ...]:
    return ("fp32", "tf32", "bf16") if DEVICE.type == "cuda" else ("fp32",)


def head(*titles: str) -> None:
    row(*titles)
    row(*["---"] * len(titles))


# -- parts ----------------------------------------------------------------------------------------


def versions() -> None:
    print(f"{machine(DEVICE)}, {os.cpu_count()} cores\n")
    with suppress(ImportError):
        import triton

        print(f"Triton {triton.__version__}\n")
    with suppress(OSError):
        fields = "name,driver_version,memory.total,clocks.max.sm"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        print(subprocess.run(command, capture_output=True, text=True).stdout, flush=True)


def tests() -> None:
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-n", "0", "-q", "-rfEs"]
    command += ["-p", "no:cacheprovider", "--tb=short"]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    lines = ended.stdout.strip().splitlines()
    print("\n".join(["```", *lines[-40:], "```"]), flush=True)


def waits() -> None:
    """Where the host waits for the device, which it should not: by torch's own debug mode."""
    head("gates", "precision", "next batch", "step", "gradients of other strides than weights")
    for granularity, precision in product(GRANULARITIES, ("fp32", "bf16")):
        trainer = make(precision=precision, granularity=granularity)
        step = stepping(trainer)
        for _ in range(3):
            step()
        at = trainer.counters.step
        batch = next(iter(trainer.loaders["train"].batches(0, at)))
        found = [
            where_it_waits(lambda t=trainer, i=at: next(iter(t.loaders["train"].batches(0, i)))),
            where_it_waits(lambda t=trainer, b=batch: t.train_step(*b)),
        ]
        parameters = [p for p in trainer.model.parameters() if p.grad is not None]
        other = sum(p.grad.stride() != p.stride() for p in parameters)
        row(granularity, precision, *found, f"{other} of {len(parameters)}")


def where_it_waits(work: Callable[[], object]) -> str:
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
        return "never"
    except RuntimeError as error:
        places = traceback.extract_tb(error.__traceback__)
        places = [p for p in places if Path(p.filename).is_relative_to(ROOT / "sdnet")]
        text = str(error).splitlines()[0].replace("|", "/")
        return f"{Path(places[-1].filename).name}:{places[-1].lineno}: {text}" if places else text
    finally:
        torch.cuda.set_sync_debug_mode("default")


# How the trainer's steps are computed: settings of `make`.
WAYS: dict[str, dict[str, bool]] = {
    "eager": {},
    "compile": {"compiled": True},
    "graphs": {"graphs": True},
    "graphs, compile": {"graphs": True, "compiled": True},
}


def speed(ways: Iterable[str], only: str | None = None) -> None:
    """The trainer's step, loader and all; `only` in this precision, else in all of them."""
    trainers, steps = {}, {}
    layouts = LAYOUTS if only is None and set(ways) == {"eager"} else ["channels_last"]
    for key in product(ways, [only] if only else precisions(), layouts, SCHEDULES):
        way, precision, layout, schedule = key
        settings = {"channels_last": LAYOUTS[layout], **WAYS[way]}
        trainers[key] = make(SCHEDULES[schedule], precision, **settings)
        steps[key] = stepping(trainers[key])
        begun = time.perf_counter()
        seconds_of(steps[key], min(10, SIZE.steps))
        print(f"- {', '.join(key)}: first steps {time.perf_counter() - begun:.1f} s", flush=True)
    seconds = {key: [] for key in steps}
    for _ in range(SIZE.rounds):
        for key, step in steps.items():
            seconds[key].append(seconds_of(step, SIZE.steps))
    print()
    numbers = "ms a step", "rounds", "of constant", "images/s", "s an epoch"
    head("way", "precision", "layout", "depth", *numbers)
    for key, taken in seconds.items():
        s, per_epoch = median(taken), len(trainers[key].loaders["train"])
        spread = f"{1e3 * min(taken):.2f} to {1e3 * max(taken):.2f}"
        of = s / median(seconds[(*key[:3], "constant")])
        numbers = f"{of:.3f}", f"{SIZE.batch / s:.0f}", f"{s * per_epoch:.2f}"
        row(*key, f"{1e3 * s:.2f}", spread, *numbers)
    if set(ways) == {"eager"}:
        print()
        head("precision", "layout", "images a batch", f"s to evaluate {SIZE.tests} images")
        for (_, precision, layout, schedule), batch in product(trainers, (SIZE.batch, 1024)):
            if schedule == "constant":
                devices.allow_tf32(precision == "tf32")
                data = loader(SIZE.tests, 1, batch, LAYOUTS[layout])
                model = trainers["eager", precision, layout, schedule].model
                work = partial(evaluate, model, data, precision)
                work()
                row(precision, layout, batch, f"{seconds_of(work, 1):.3f}")


def profile() -> None:
    """What a step launches, and the share of its time in which the GPU works."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    count, kernels = 5, {}
    numbers = "kernels a step", "GPU ms a step", "ms a step", "host ms a step", "GPU busy"
    head("way", "precision", "depth", *numbers)
    ways = [("eager", precision) for precision in precisions()]
    if DEVICE.type == "cuda":
        ways += [("graphs", "tf32"), ("graphs", "bf16"), ("graphs, compile", "bf16")]
    for (way, precision), schedule in product(ways, SCHEDULES):
        step = stepping(make(SCHEDULES[schedule], precision, **WAYS[way]))
        seconds_of(step, 10)
        seconds = median(seconds_of(step, SIZE.steps) for _ in range(SIZE.rounds))
        host = median(host_seconds_of(step, count) for _ in range(5))
        with profiled(activities=[ProfilerActivity.CUDA]) as found:
            seconds_of(step, count)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "trace.json")
            found.export_chrome_trace(str(file))
            events = json.loads(file.read_text())["traceEvents"]
        launches, busy, kernels[way, precision, schedule] = told_by(events)
        gpu, launched, ms = busy / 1e3 / count, f"{launches / count:.0f}", 1e3 * seconds
        numbers = launched, f"{gpu:.2f}", f"{ms:.2f}", f"{1e3 * host:.2f}", f"{gpu / ms:.0%}"
        row(way, precision, schedule, *numbers)
    print("\nms a step is without the profiler. What takes most in the last row:\n")
    head("ms a step", "times a step", "kernel, copy or fill")
    for name, (micros, times) in kernels[*ways[-1], "p_L 0.5"][:16]:
        row(f"{micros / 1e3 / count:.3f}", f"{times / count:.0f}", f"`{name[:90]}`")


def host_seconds_of(step: Callable[[], None], count: int) -> float:
    """Until the host has handed over a step, the device's queue being empty before."""
    synchronize()
    begun = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - begun) / count


def told_by(events: list[dict]) -> tuple[int, float, list]:
    """Pieces of work, microseconds in which there was one, and the kinds: (name, (us, times))."""
    work = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    busy = until = 0.0
    for begin, length in sorted((float(e["ts"]), float(e["dur"])) for e in work):
        busy += max(0.0, begin + length - max(begin, until))
        until = max(until, begin + length)
    times, micros = Counter(e["name"] for e in work), Counter()
    for event in work:
        micros[event["name"]] += float(event["dur"])
    return len(work), busy, [(name, (us, times[name])) for name, us in micros.most_common()]


def plain() -> None:
    """What most replications do, beside: a Python `if`, float32, contiguous."""
    from step_time import Contender, Images
    from torch.utils.data import DataLoader

    head("images", "depth", "ms a step", "images/s")
    split = images(min(SIZE.images, SIZE.batch * (SIZE.steps + 10)), 0)
    workers = min(SIZE.workers, os.cpu_count() or 1)
    source = DataLoader(
        Images(split.images, split.labels.tolist()), SIZE.batch, num_workers=workers
    )
    warm = min(10, SIZE.steps)
    for schedule, p_L in SCHEDULES.items():
        net = partial(resnet_cifar, SIZE.depth)
        one = Contender("plain", net, SIZE.edge, SIZE.batch, p_L, device=DEVICE)
        for where in ("one batch, on the device", f"DataLoader, {workers} workers"):
            one.batches = iter(source) if "workers" in where else None
            vectors = iter(range(10**9))

            def step(one=one, vectors=vectors) -> None:
                one.step(next(vectors) % 5)

            seconds_of(step, warm)
            taken = seconds_of(step, min(SIZE.steps, len(source) - warm))
            row(where, schedule, f"{1e3 * taken:.2f}", f"{SIZE.batch / taken:.0f}")


def numbers_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    state = {name: value.cpu().clone() for name, value in trainer.model.state_dict().items()}
    return state | {"loss and error": trainer.sums.cpu().clone()}


def differ(some: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str:
    """`equal`, to the byte, or by how much at most."""
    if all(torch.equal(some[name], other[name]) for name in some):
        return "equal"
    most = max((some[n].double() - other[n].double()).abs().max().item() for n in some)
    return f"**differ** by {most:.1e} at most"


def repeats() -> None:
    """Whether two runs of one process have the same numbers, and what that costs."""
    count = 2 * (SIZE.short // SIZE.batch)
    head("gates", "precision", "deterministic", f"two runs of {count} steps", "ms a step")
    for deterministic, precision in product((True, False), precisions()):
        for granularity in GRANULARITIES:
            options = {"granularity": granularity, "deterministic": deterministic}
            runs = [numbers_after(count, precision=precision, **options) for _ in range(2)]
            same = differ(runs[0][0], runs[1][0])
            row(granularity, precision, deterministic, same, f"{1e3 * runs[1][1]:.2f}")


def numbers_after(count: int, **settings) -> tuple[dict[str, torch.Tensor], float]:
    """Those of a run of `count` steps, and the seconds that one of its second half took."""
    trainer = make(count=SIZE.short, **settings)
    step = stepping(trainer)
    seconds_of(step, count // 2)
    taken = seconds_of(step, count - count // 2)
    return numbers_of(trainer), taken


def equals() -> None:
    """Whether recorded steps compute what the others do, an epoch's smaller last batch and all."""
    count = 4 * (SIZE.short // SIZE.batch)
    head("ways", "precision", "depth", f"after {count} steps, deterministic=true")
    pairs = [("eager", "graphs"), ("compile", "graphs, compile")]
    for pair, precision, schedule in product(pairs, precisions(), SCHEDULES):
        if pair[0] == "eager" or (precision, schedule) == ("bf16", "p_L 0.5"):
            options = {"precision": precision, "deterministic": True, "p_L": SCHEDULES[schedule]}
            runs = [numbers_after(count, **options, **WAYS[way])[0] for way in pair]
            row(" and ".join(pair), precision, schedule, differ(*runs))


class StopAfter(Listener):
    def __init__(self, step: int):
        self.step = step

    def on_step(self, trainer: Trainer) -> None:
        trainer.stop_requested = trainer.counters.step == self.step


def resumes() -> None:
    """Whether a run that was stopped within an epoch ends as one that was not."""
    head("gates", "precision", "weights", "metrics")
    for granularity, precision in product(GRANULARITIES, precisions()):
        with tempfile.TemporaryDirectory() as folder:
            start = partial(
                make,
                precision=precision,
                granularity=granularity,
                deterministic=True,
                count=SIZE.short,
            )
            whole = start(folder=Path(folder, "whole"))
            whole.fit()
            stopped = start(folder=Path(folder, "parts"))
            stopped.listeners = (StopAfter(len(stopped.loaders["train"]) * 3 // 2),)
            with suppress(Interrupted):
                stopped.fit()
            resumed = start(folder=Path(folder, "parts"))
            resumed.resume()
            resumed.fit()
            rows = [
                [{k: v for k, v in r.items() if "second" not in k} for r in t.run.rows()]
                for t in (whole, resumed)
            ]
            same = differ(numbers_of(whole), numbers_of(resumed))
            row(granularity, precision, same, "equal" if rows[0] == rows[1] else "**differ**")


@dataclass
class Part:
    title: str
    work: Callable[[], None]
    seconds: int  # at most
    cuda: bool = True  # whether it needs it


PARTS = {
    "versions": Part("Versions", versions, 60, False),
    "tests": Part("Tests that need CUDA", tests, 150),
    "waits": Part("Where the host waits for the GPU", waits, 60),
    "eager": Part("Speed", partial(speed, ["eager"]), 180, False),
    "graphs": Part("Speed, graphs=true", partial(speed, ["eager", "graphs"]), 120),
    "equals": Part("Recorded and not, equal", equals, 120),
    "profile": Part("Launches, and the GPU's share", profile, 90),
    "plain": Part("The plain way", plain, 60, False),
    "repeats": Part("The same run twice", repeats, 120, False),
    "resumes": Part("Stopped and resumed, deterministic=true", resumes, 120, False),
    **{
        f"compiled-{precision}": Part(
            f"Speed, compile=branches, {precision}", partial(speed, list(WAYS), precision), 180
        )
        for precision in ("tf32", "bf16", "fp32")
    },
}


# -- the page -------------------------------------------------------------------------------------


def told(command: list[str], seconds: float) -> str:
    """What a command prints; where it fails or takes longer, with its error."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env=environment, start_new_session=True
        )
        try:
            failed = process.wait(seconds)
            end = f"**failed**, exit status {failed}" if failed else ""
        except subprocess.TimeoutExpired:
            end = f"**stopped** after {seconds:.0f} s"
        finally:  # and whom it started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for file in (out, err):
            file.seek(0)
        texts = [out.read().rstrip()]
        if end:
            lines = err.read().strip().splitlines()[-15:]
            texts.append("\n".join([end, *(["", "```", *lines, "```"] if lines else [])]))
    return "\n\n".join(text for text in texts if text)


def write(path: Path, sections: dict[str, str]) -> None:
    beside = path.with_name(path.name + ".part")
    text = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    beside.write_text(f"# A GPU's first hour\n\n{text}\n")
    beside.replace(path)


def main(arguments: list[str] | None = None) -> None:
    global DEVICE, SIZE
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("cuda.md"))
    parser.add_argument("--minutes", type=float, default=15, help="of all parts together, at most")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:<n> or cpu")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, a few steps")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args(arguments)
    if args.part:
        DEVICE = devices.resolve(args.device)
        SIZE = SMOKE if args.smoke else SIZE
        devices.configure(DEVICE, "fp32", SIZE.threads, False)
        return PARTS[args.part].work()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of `finally`
    deadline, sections = time.monotonic() + 60 * args.minutes, {}
    for name in args.parts:
        part, left = PARTS[name], deadline - time.monotonic()
        begun = time.monotonic()
        if part.cuda and args.device == "cpu":
            text = "needs CUDA"
        elif left < 1:
            text = f"no time was left of {args.minutes:g} minutes"
        else:
            command = [sys.executable, str(Path(__file__).resolve()), "--part", name]
            command += ["--device", args.device, *(["--smoke"] if args.smoke else [])]
            text = told(command, min(part.seconds, left))
            text += f"\n\n({time.monotonic() - begun:.0f} s)"
        sections[part.title] = text
        write(args.out, sections)
        print(f"## {part.title}\n\n{text}\n", flush=True)
    return None


if __name__ == "__main__":
    main()
