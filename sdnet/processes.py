"""Which of the processes of a run this one is: torchrun or a scheduler has said so."""

import os
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
