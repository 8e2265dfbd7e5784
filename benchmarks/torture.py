"""Runs that are killed, disks that are full, files that are damaged: what is tried, and what held.

    python benchmarks/torture.py                    # everything, until each kind had its turns
    python benchmarks/torture.py --minutes 10       # the same, for so long at most
    python benchmarks/torture.py --quick            # one configuration, a minute

A trial begins a small run, does something to it, and gives the same command's `resume=` until the
run is complete. It held if metrics (but for times) and checkpoints are those of a run that nobody
touched, to the byte; or, of a damaged file that tells what the run is, if one line names it and
nothing was changed. Kills are SIGKILL at a random moment, or at a chosen one of the run's
operations on files (before it, or after it). With two processes one of them is killed, and the
other is ended as torchrun does it. W&B's server answers with errors, hangs or breaks off; its
service is killed or stopped: such a run may take 35 seconds longer.

What did not hold is printed with its trial, and the exit status is 1.
"""

import argparse
import csv
import errno
import faulthandler
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import psutil
import torch
from PIL import Image

from sdnet.runs.files import load_checkpoint
from tests import commands
from tests.commands import Forked, Together
from tests.listeners.wandb_server import Server

TIMES = ("train_seconds", "eval_seconds", "images_per_second")
OPERATIONS = ("replace", "fsync", "link", "unlink")
COMMON = ["wandb.mode=disabled", "trainer.threads=1", "trainer.device=cpu", "model.depth=8"]
COMMON += ["trainer.epochs=2", "trainer.checkpoint_every=3", "trainer.checkpoint_unit=step"]
DATA = {
    "digits": ["dataset.size=8"],
    "stream": [
        *("dataset=image_stream", "dataset.root=images", "dataset.size=16", "dataset.resize=16"),
        *("trainer.batch_size=16", "trainer.workers=1"),
    ],
}
WAIT = 120.0  # seconds, after which a run hangs


@dataclass(frozen=True)
class Case:
    """A configuration that is tried."""

    data: str
    granularity: str
    processes: int
    precision: str

    def settings(self) -> list[str]:
        own = [f"model.granularity={self.granularity}", f"trainer.precision={self.precision}"]
        return [*COMMON, *DATA[self.data], *own]

    def __str__(self) -> str:
        return f"{self.data}, {self.granularity}, {self.processes} process(es), {self.precision}"


CASES = [
    Case(*each)
    for each in itertools.product(DATA, ("batch", "sample", "subset"), (1, 2), ("fp32", "bf16"))
]


@dataclass
class Tally:
    """Trials of a kind."""

    tried: int = 0
    killed: int = 0
    wrong: list[str] = field(default_factory=list)


# -- runs ------------------------------------------------------------------------------------------


def untouched(*typed: str) -> None:
    """`python train.py <typed>`, which says where it is when it is aborted."""
    faulthandler.enable()
    commands.train(*typed)


def counted(strike: Callable[[], None], number: int, after: bool, *typed: str) -> None:
    """`python train.py <typed>`, in which something happens at its nth operation on files."""
    left = iter(range(number))

    def wrapped(operation: Callable) -> Callable:
        def call(*args, **kwargs):
            last = next(left, None) is None
            if last and not after:
                strike()
            result = operation(*args, **kwargs)
            if last:
                strike()
            return result

        return call

    for name in OPERATIONS[: 3 if strike is fill else 4]:  # to remove a file needs no room
        setattr(os, name, wrapped(getattr(os, name)))
    untouched(*typed)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def begin(case: Case, folder: Path, function: Callable, *args) -> list[Forked]:
    """The processes of a run; only the first is struck."""
    if case.processes == 1:
        return [Forked(folder, {}, function, *args)]
    together = Together()
    typed = args[-len([a for a in args if isinstance(a, str)]) :]
    ranks = [Forked(folder, together.of(0), function, *args)]
    ranks.append(Forked(folder, together.of(1), untouched, *typed))
    ranks[0].together = together  # to be kept
    return ranks


def end(ranks: Sequence[Forked]) -> str:
    """Waits for all, as torchrun does where one is gone; returns what was printed."""
    deadline, asked = time.monotonic() + WAIT, False
    while any(rank.poll() is None for rank in ranks):
        if any(rank.poll() not in (None, 0) for rank in ranks) and not asked:
            time.sleep(0.5)
            asked = True
            for rank in ranks:
                if rank.poll() is None:
                    rank.send_signal(signal.SIGTERM)
        if time.monotonic() > deadline:
            for rank in ranks:
                if rank.poll() is None:
                    rank.send_signal(signal.SIGABRT)
            printed = [text for rank in ranks for text in rank.communicate(timeout=10)]
            print("\n".join(printed), file=sys.stderr)
            return "HANGS"
        time.sleep(0.01)
    return "\n".join(text for rank in ranks for text in rank.communicate())


def run_folder(folder: Path) -> Path | None:
    return next((path.parent for path in folder.glob("outputs/*/*/config.yaml")), None)


def resumed(case: Case, folder: Path) -> tuple[int, str]:
    """The run's exit status and words, once it was asked to go on."""
    run = run_folder(folder)
    typed = case.settings() if run is None else [f"resume={run.relative_to(folder)}"]
    ranks = begin(case, folder, untouched, *typed)
    printed = end(ranks)
    return max(abs(rank.poll() or 0) for rank in ranks), printed


def left(folder: Path) -> dict[str, object]:
    """What must be equal: metrics but for times, and the checkpoints' tensors."""
    run = run_folder(folder)
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in r.items() if k not in TIMES} for r in csv.DictReader(file)]
    states = {
        name: load_checkpoint(run / "checkpoints" / f"{name}.pt") for name in ("last", "best")
    }
    tensors = {
        f"{name}.{key}": value.numpy(force=True).tobytes()
        for name, state in states.items()
        for key, value in state["model"].items()
    }
    momentum = states["last"]["optimizer"]["state"]
    tensors |= {
        f"momentum.{key}": value["momentum_buffer"].numpy(force=True).tobytes()
        for key, value in momentum.items()
    }
    return {"rows": rows, **tensors}


class Reference:
    """A run of a case that nobody touches, in a folder of its own."""

    def __init__(self, case: Case, home: Path):
        self.case, self.folder = case, home / str(case).replace(", ", "-")
        self.folder.mkdir()
        start = time.monotonic()
        status, printed = resumed(case, self.prepared(self.folder))
        if status:
            raise SystemExit(f"{case}: a run that nobody touched ended with {status}:\n{printed}")
        self.seconds = time.monotonic() - start
        self.expected = left(self.folder)

    def prepared(self, folder: Path) -> Path:
        """A folder with the images that the case reads."""
        folder.mkdir(exist_ok=True)
        if self.case.data == "stream":
            for part, label, i in itertools.product(("train", "val"), ("a", "b"), range(40)):
                name = folder / "images" / part / label / f"{i}.png"
                name.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng([i, ord(label)]).integers(0, 256, (16, 16, 3))
                Image.fromarray(noise.astype(np.uint8)).save(name)
        return folder

    def wrong(self, folder: Path) -> str | None:
        """What differs in another run's folder; None where nothing does."""
        if run_folder(folder) is None:
            return "there is no run"
        found = left(folder)
        differing = [key for key, value in self.expected.items() if found.get(key) != value]
        return f"other {', '.join(differing[:3])}" if differing else None


# -- what is done to them --------------------------------------------------------------------------


def completed(reference: Reference, folder: Path) -> str | None:
    """Has a run complete; what went wrong, if anything."""
    status, printed = resumed(reference.case, folder)
    if status:
        return f"exit status {status}: {printed.strip().splitlines()[-1:]}"
    if "Traceback" in printed:
        return f"a traceback: {printed.strip().splitlines()[-1]}"
    return reference.wrong(folder)


def kill(reference: Reference, folder: Path, draw: random.Random, tally: Tally) -> str | None:
    """One to three kills in a row, then to the end."""
    case = reference.case
    for _ in range(draw.choice((1, 1, 2, 3))):
        run = run_folder(folder)
        typed = case.settings() if run is None else [f"resume={run.relative_to(folder)}"]
        if draw.random() < 0.5:
            number, after = draw.randrange(30), draw.random() < 0.5
            ranks = begin(case, folder, counted, die, number, after, *typed)
        else:
            ranks = begin(case, folder, untouched, *typed)
            victim = draw.choice(ranks)
            time.sleep(draw.uniform(0, reference.seconds))
            if victim.poll() is None:
                victim.send_signal(signal.SIGKILL)
        if end(ranks) == "HANGS":
            return "hangs"
        tally.killed += any(rank.poll() == -signal.SIGKILL for rank in ranks)
    return completed(reference, folder)


def full(reference: Reference, folder: Path, draw: random.Random, tally: Tally) -> str | None:
    """The disk is full from some moment on; then there is room again."""
    typed = reference.case.settings()
    ranks = begin(reference.case, folder, counted, fill, draw.randrange(25), False, *typed)
    printed = end(ranks)
    if "Traceback" in printed or printed == "HANGS":
        return f"with the disk full: {printed.strip().splitlines()[-1]}"
    return completed(reference, folder)


def bits(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def zeros(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(max(1, len(content) - 512))
    return content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "a bit flipped": bits,
    "zeros": zeros,
    "cut short": lambda content, draw: content[: draw.randrange(len(content))],
    "empty": lambda content, draw: b"",
    "other text": lambda content, draw: b"[1, {",
    "gone": lambda content, draw: None,
}
# Where a run cannot go on without it, one line that names the file is right as well.
RECOVERABLE = ("checkpoints/last.pt", "checkpoints/previous.pt", "metrics.csv", "lock", "train.log")
NEEDED = ("config.yaml", "summary.json", "provenance.json")


def interrupted(reference: Reference, home: Path) -> Path:
    """A run that was ended after its first evaluation, to be copied."""
    folder = reference.prepared(home)
    typed = reference.case.settings()
    for number in range(12, 40):
        end(begin(reference.case, folder, counted, die, number, True, *typed))
        run = run_folder(folder)
        if run and all((run / name).exists() for name in RECOVERABLE[:3]):
            return folder
        shutil.rmtree(folder / "outputs", ignore_errors=True)
    raise SystemExit("no run could be ended after its first evaluation")


def damage(reference: Reference, folder: Path, draw: random.Random, tally: Tally) -> str | None:
    """A file of an interrupted run is damaged in one of the ways."""
    name, how = draw.choice(RECOVERABLE + NEEDED), draw.choice(list(DAMAGES))
    file = run_folder(folder) / name
    content = file.read_bytes() if file.exists() else b"{}"
    spoilt = DAMAGES[how](content, draw) if content else b"x"
    file.unlink(missing_ok=True)
    if spoilt is not None:
        file.write_bytes(spoilt)
        if name == "lock":
            os.utime(file, (0, 0))  # of a process that is long gone
    if name == "config.yaml" and spoilt is None:
        return None  # no run folder any more
    status, printed = resumed(reference.case, folder)
    what = f"{name}, {how}"
    if "Traceback" in printed or printed == "HANGS":
        return f"{what}: {printed.strip().splitlines()[-1]}"
    if status == 0:
        found = reference.wrong(folder)
        return found and f"{what}: {found}"
    if name in RECOVERABLE:
        return f"{what}: exit status {status}: {printed.strip().splitlines()[-1:]}"
    message = printed.strip().splitlines()[-1]
    if not message.startswith("error: ") or run_folder(folder).name not in message:
        return f"{what}: {message}"
    if spoilt is not None and file.read_bytes() != spoilt:
        return f"{what}: refused, and the file changed"
    return None


FAULTS = (401, 403, 429, 500, "hang", "die", "killed", "stopped")
PATIENCE = 35.0  # seconds that a run may take longer


def wandb_fault(
    reference: Reference, folder: Path, draw: random.Random, tally: Tally
) -> str | None:
    """W&B's server or its service fails, from the start or at a random moment."""
    fault, server = draw.choice(FAULTS), Server()
    delay = draw.choice((0.0, draw.uniform(0, 3 * reference.seconds)))
    variables = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server.url}
    start = time.monotonic()
    typed = [*reference.case.settings(), "wandb.mode=online"]
    process = Forked(folder, variables, untouched, *typed)
    time.sleep(delay)
    if isinstance(fault, int) or fault in ("hang", "die"):
        server.fault = fault
    else:
        number = signal.SIGKILL if fault == "killed" else signal.SIGSTOP
        for service in psutil.Process(process.pid).children() if process.poll() is None else ():
            with suppress(psutil.Error):
                service.send_signal(number)
    printed = end([process])
    seconds = time.monotonic() - start
    what = f"{fault} after {delay:.1f} s"
    if process.poll() or "Traceback" in printed:
        return f"{what}: exit status {process.poll()}: {printed.strip().splitlines()[-1:]}"
    if seconds > reference.seconds + PATIENCE:
        return f"{what}: {seconds:.0f} s instead of {reference.seconds:.0f} s"
    found = reference.wrong(folder)
    return found and f"{what}: {found}"


# -- all of it -------------------------------------------------------------------------------------


def trials(quick: bool, draw: random.Random, home: Path) -> Iterator[tuple[str, Callable]]:
    """Kinds of trial in turn: a name, and what carries it out."""
    cases = [CASES[0]] if quick else CASES
    references: dict[Case, Reference] = {}

    def trial(case: Case, do: Callable) -> Callable:
        def carry_out(tally: Tally, folder: Path) -> str | None:
            if case not in references:
                references[case] = Reference(case, home / "references")
            if do is damage:
                source = home / f"interrupted-{case.data}"
                if not source.exists():
                    interrupted(references[case], source)
                shutil.copytree(source, folder, symlinks=True, dirs_exist_ok=True)
            return do(references[case], references[case].prepared(folder), draw, tally)

        return carry_out

    for _ in range(1 if quick else 5):
        for case in cases:
            yield f"killed: {case}", trial(case, kill)
        for case in (c for c in cases if c.processes == 1 and c.granularity == "batch"):
            yield "disk full", trial(case, full)
        for _ in range(4 if quick else 24):
            yield "file damaged", trial(cases[0], damage)
        for _ in range(0 if quick else 8):  # the tests have others
            yield "W&B fails", trial(cases[0], wandb_fault)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no trial begins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="trials with this in their name, e.g. 'stream'")
    parser.add_argument("--quick", action="store_true", help="one configuration, a few trials")
    given = parser.parse_args(arguments)
    draw, start = random.Random(given.seed), time.monotonic()
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "references").mkdir()
        for number, (kind, carry_out) in enumerate(trials(given.quick, draw, home)):
            if time.monotonic() - start > 60 * given.minutes:
                print("the time is up")
                break
            if given.only not in kind:
                continue
            tally = tallies.setdefault(kind, Tally())
            folder = home / str(number)
            tally.tried += 1
            if wrong := carry_out(tally, folder):
                tally.wrong.append(f"trial {number}: {wrong}")
            shutil.rmtree(folder, ignore_errors=True)
    print("| what | tried | kills | held |\n|---|---|---|---|")
    for kind, tally in tallies.items():
        print(f"| {kind} | {tally.tried} | {tally.killed} | {tally.tried - len(tally.wrong)} |")
    kills = sum(tally.killed for tally in tallies.values())
    print(f"\n{kills} kills in {(time.monotonic() - start) / 60:.0f} minutes, seed {given.seed}")
    for kind, tally in tallies.items():
        for wrong in tally.wrong:
            print(f"did not hold: {kind}: {wrong}")
    return 1 if any(tally.wrong for tally in tallies.values()) else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
