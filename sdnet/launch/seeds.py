"""Several seeds in one job: a run for each, one after the other, and the mean of their errors."""

import logging
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdnet import processes
from sdnet.config.errors import ConfigError
from sdnet.listeners import wandb as tracking
from sdnet.runs.identity import run_name

log = logging.getLogger("sdnet")
AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")  # of W&B's agent: its trial
METRIC = "mean_val_error"  # as in sweeps/wandb.yaml


def mean_error(
    config: dict[str, Any], folder: Path, train: Callable[[dict[str, Any], Path], float | None]
) -> float:
    """Trains with each of the configuration's seeds; returns their mean validation error.

    Under W&B's agent that is logged as its trial; the runs are ordinary ones, as everywhere.

    Args:
        folder: of the first seed's run. Those of the others differ by the run's name.
        train: trains a configuration in a folder; returns its validation error.

    Raises:
        ConfigError: there is no validation error, or there are several processes.
    """
    _check(config)
    errors = []
    with _agents_variables_aside() as variables:
        for seed in config["seeds"]:
            of_seed = config | {"seed": seed, "seeds": None}
            errors.append(train(of_seed, folder_of(of_seed, folder, config)))
    mean = statistics.fmean(errors)
    log.info("%d seeds: %.2f %% mean validation error", len(errors), mean)
    if variables:
        log_trial(config, folder, {METRIC: mean, "seeds": len(errors)})
    return mean


def _check(config: dict[str, Any]) -> None:
    seeds = config["seeds"]
    if config["resume"] is not None:
        raise ConfigError(f"seeds must be null with resume=, which continues one run, got {seeds}")
    if config["dataset"]["validation"] == 0:
        raise ConfigError(
            f"dataset.validation must set images aside with seeds={seeds}: the mean of their "
            "errors is taken, got 0"
        )
    if processes.environment()[1] > 1:
        raise ConfigError(f"seeds must be null with several processes, got {seeds}")


def folder_of(of_seed: dict[str, Any], folder: Path, first: dict[str, Any]) -> Path:
    """That of a seed's run: where the first one's name is in its folder, the seed's own name."""
    before, name = run_name(first), run_name(of_seed)
    if before not in folder.parts:
        return folder / name
    return Path(*(name if part == before else part for part in folder.parts))


@contextmanager
def _agents_variables_aside() -> Iterator[dict[str, str]]:
    """Inside it no run is the trial of W&B's agent; gives the variables that would make it that."""
    given = {name: os.environ.pop(name) for name in AGENT if name in os.environ}
    try:
        yield given
    finally:
        os.environ |= given


def log_trial(config: dict[str, Any], folder: Path, result: dict[str, Any]) -> None:
    """Logs the result of an agent's trial, as the run that the agent waits for."""
    mode = tracking.resolve_mode(config["wandb"]["mode"])
    if mode == "disabled":
        return
    tracking.forget()  # W&B has read the variables without the agent's
    named = {"job_type": "trial", "config": config}
    run = tracking.Run(config["wandb"], mode, folder, "trial", False, **named)

    def end(run):
        run.summary.update(result)
        run.log(result)
        run.finish()

    run.do(end)
