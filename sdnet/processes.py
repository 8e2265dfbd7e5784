"""This process: which of those of a run it is, as torchrun or a scheduler has said, its
signals, its cores, and the processes that it starts.
"""

import ctypes
import math
import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

# Of processes that read images; torch's threads are not theirs.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
QUOTAS = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")  # of a container

# By which schedulers warn, where there are such signals: not on Windows.
WARNINGS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """Ends this process as that signal would, which need not be ^C."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__()
        self.number = number


@cache
def environment() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine: (0, 1, 0) for a process alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ and "SUBMITIT_EXECUTOR" in os.environ:
        import submitit

        if submitit.JobEnvironment().num_tasks > 1:
            variables = submitit.helpers.TorchDistributedEnvironment()
            variables.export(set_cuda_visible_devices=False, overwrite=True)
    names = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    return tuple(int(os.environ.get(name, default)) for name, default in names)


def is_main() -> bool:
    """Whether this process is the one that speaks for all."""
    return environment()[0] == 0


def interrupt_quietly() -> None:
    """Has ^C end this process without a traceback: while libraries are imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    pass_over_warnings()


def interrupt_as_usual() -> None:
    """Takes `interrupt_quietly` back."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pass_over_warnings() -> None:
    """Has a scheduler's warning not end this process while there is nothing to save."""
    for number in WARNINGS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)


def cores() -> int:
    """Cores that this process may use: fewer than the machine's where a scheduler says so."""
    affinity = getattr(os, "sched_getaffinity", None)
    available = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(available, _quota())))


def _quota() -> float:
    """Cores' worth of time that a container may take; infinite where nothing limits it."""
    two, one = map(Path, QUOTAS)
    with suppress(OSError, ValueError):  # the other version of control groups, or "max"
        quota, period = two.read_text().split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = one.read_text(), one.with_name("cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf


def stand_apart(worker: int) -> None:
    """Begins the work of a process that was started to help: it ends with the one that started it.

    Signals that are meant for that one, which a terminal, torchrun and schedulers send to the whole
    group of processes, are kept from it: it is still needed.
    """
    if hasattr(os, "setsid"):
        os.setsid()
    for number in (signal.SIGINT, *WARNINGS):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def end_with_parent(number: int | None = None) -> None:
    """Has the system kill this process when the one that started it ends, however that happens.

    Args:
        number: of the signal that it gets then, instead of SIGKILL.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number or signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it has ended already
        os._exit(1)
