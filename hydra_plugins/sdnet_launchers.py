"""The launcher `local`, in the package where Hydra looks for plugins; see `sdnet.launch.local`."""

from collections.abc import Sequence
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Local(Launcher):
    """Runs at once on this machine, each on a GPU of its own, or on some of its cores."""

    def __init__(self, per_gpu: int, n_jobs: int):
        self.at_once = {"per_gpu": per_gpu, "n_jobs": n_jobs}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from sdnet.launch.local import slots

        self.config, self.task, self.context = config, task_function, hydra_context
        self.slots = slots(str(config.trainer.device), **self.at_once)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        from sdnet.launch.local import launch

        jobs = list(enumerate(map(list, job_overrides), initial_job_idx))
        return launch(self.config, jobs, self.slots, self.task, self.context)
