"""Sweepers, in the package where Hydra looks for plugins; the work is in `sdnet.launch.sweep`."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig


class Grid(Sweeper):
    """Every combination of the values given, each run once; given again, what is left of them."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None):
        pass  # both are read from the configuration

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config, self.task, self.context = config, task_function, hydra_context

    def sweep(self, arguments: list[str]) -> None:
        from sdnet.launch.sweep import run_grid

        run_grid(self.config, self.task, self.context)


class Optuna(Sweeper):
    """Optuna's own sweeper, with a plan of its ranges' ends before it and a report behind it.

    Args:
        settings: as that sweeper takes them.
    """

    inner = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"

    def __init__(self, **settings: Any):
        self.sweeper = get_class(self.inner)(**settings)

    def setup(self, *, config: DictConfig, **more: Any) -> None:
        self.config = config
        self.sweeper.setup(config=config, **more)

    def sweep(self, arguments: list[str]) -> None:
        from sdnet.launch.sweep import run_search

        run_search(self.config, lambda: self.sweeper.sweep(arguments))
