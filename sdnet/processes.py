"""This process: which of those of a run it is, as torchrun or a scheduler has said, and its ^C."""

import os
import signal
from functools import cache


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


def interrupt_as_usual() -> None:
    """Takes `interrupt_quietly` back."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
