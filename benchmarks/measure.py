"""What the benchmarks share: gates of the expected depth, time, turns, processes, memory, machine.

On CUDA fp32 is float32 without TF32, as in a run of trainer.precision=fp32; and the device is
waited for around some steps in a row, not around each: else the host could not run ahead.
"""

import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sdnet.training import device as devices

IN_A_ROW = 10 if torch.cuda.is_available() else 1  # steps of which the time is taken together


def fixed_gates(stage_blocks: Sequence[int], survival: Sequence[float], vectors: int) -> list:
    """Gate vectors whose average number of open gates is, in each stage, the expected one.

    By systematic sampling: vector t opens the blocks in whose share of the stage's cumulated
    survival probabilities one of the points t', t'+1, t'+2, ... falls, t' = (t + 1/2) / vectors.
    So each block is open about as often as its probability says, and no stage by chance more often
    than expected.
    """
    gates = [[] for _ in range(vectors)]
    first = 0
    for blocks in stage_blocks:
        ends = torch.tensor(survival[first : first + blocks], dtype=torch.float64).cumsum(0)
        for t, vector in enumerate(gates):
            passed = torch.floor(ends - (t + 0.5) / vectors + 1e-9) + 1
            vector += (passed.diff(prepend=torch.zeros(1, dtype=torch.float64)) > 0).tolist()
        first += blocks
    return gates


def seconds_of(work: Callable[[], object], times: int = IN_A_ROW) -> float:
    """Seconds of one of some calls in a row."""
    synchronize()
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronize()
    return (time.perf_counter() - start) / times


def interleaved(steps: dict[str, Callable[[int], None]], cases: int, turns: int) -> dict:
    """Seconds of a step of each contender: the mean over `cases` of the median over `turns`.

    Every contender takes its steps of a case before any takes the next one, and each takes each
    place in that order. One turn more comes first, to warm up: of all cases on CUDA, where cuDNN
    searches when it first meets a shape.
    """
    seconds = {name: [[] for _ in range(cases)] for name in steps}
    names = list(steps)
    for turn in range(turns + 1):
        for case in range(cases if turn or torch.cuda.is_available() else 1):
            for k in range(len(names)):
                name = names[(k + turn * cases + case) % len(names)]
                taken = seconds_of(partial(steps[name], case))
                if turn:
                    seconds[name][case].append(taken)
    return {name: mean(median(times) for times in cases) for name, cases in seconds.items()}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ieee(device: torch.device) -> None:
    """Switches TF32 off and cuDNN's search on, as a run does; on the CPU there is nothing to do."""
    if device.type == "cuda":
        devices.configure(device, "fp32", None, False)


def forget_search(step: Callable[[int], None], cases: int, device: torch.device) -> None:
    """On CUDA takes a step of each case and forgets the peak, in which is all that cuDNN tried."""
    if device.type == "cuda":
        for case in range(cases):
            step(case)
        torch.cuda.reset_peak_memory_stats(device)


def alone(*options: object) -> list[float]:
    """The numbers that this very script prints in a process of its own, with these options."""
    command = [sys.executable, sys.argv[0], *map(str, options)]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [float(number) for number in out.split()]


def peak(device: torch.device) -> float:
    """GB: what the process held at most so far; on CUDA, what torch allocated at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "linux":  # ru_maxrss begins with that of the process which started this one
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def machine(device: torch.device) -> str:
    """One line: what the numbers below were measured with."""
    known = devices.describe(device)
    if device.type == "cuda":
        versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        known["device_name"] += f", {versions}, fp32 without TF32"
    return (
        f"{known['device_name']}, {known['threads']} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )
