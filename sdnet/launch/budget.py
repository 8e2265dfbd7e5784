"""How long a run trains: its epochs, or as long as a budget of multiply-adds lasts."""

import logging
from typing import Any

from torch import nn

from sdnet.analysis.cost import Cost, network_cost
from sdnet.config.errors import ConfigError, one_line
from sdnet.models.gates import granularity_of, subset_size
from sdnet.models.layout import Layout
from sdnet.models.schedules import survival_of

log = logging.getLogger("sdnet")


def training_cost(config: dict[str, Any], model: nn.Module, schedule, image_shape) -> Cost | None:
    """What the network costs, with the survival of its blocks averaged over the training.

    None for one that cannot be counted, where neither a budget nor `show` asks for it.
    """
    settings = config["trainer"]
    # Of a part of a step of one process: more processes train as many epochs.
    rows = settings["batch_size"] // settings["accumulate"]

    def run_on(stage_blocks, progress):
        """For each block the share of the images that gates let through: of few, it is rounded."""
        survival = survival_of(schedule, stage_blocks, progress)
        subset = granularity_of(model) == "subset"
        return [subset_size(rows, p) / rows if subset else p for p in survival]

    try:
        mean = Layout(model).mean_survival
        return network_cost(model, image_shape, mean(schedule), mean(run_on))
    except Exception as error:  # somebody else's network, which may not be made for a copy
        asked = {"trainer.budget must be null": settings.get("budget")}
        asked |= {"show must be false": config.get("show")}
        for must, got in asked.items():
            if got:
                raise ConfigError(
                    f"{must} for {type(model).__name__}, whose multiply-adds cannot be counted "
                    f"({type(error).__name__}: {one_line(error)}), got {got}"
                ) from error
        log.debug("the multiply-adds could not be counted", exc_info=True)
        return None


def budgeted(config: dict[str, Any], cost: Cost | None, images: int) -> dict[str, Any]:
    """The configuration with the epochs that its budget lasts; without a budget, as it is.

    Raises:
        ConfigError: a budget of less than half a step, or of what is not counted.
    """
    settings = config["trainer"]
    if cost is None or settings.get("budget") is None:
        return config
    if not cost.macs:
        raise ConfigError(
            f"trainer.budget must be null for a network without a layer whose multiply-adds are "
            f"counted, got {settings['budget']:g}"
        )
    length = (images, settings["batch_size"])
    epochs = cost.epochs_for(settings["budget"], *length)
    if cost.off(settings["budget"], epochs, *length) > 1:
        raise ConfigError(
            f"trainer.budget must be worth half a step or more, and an epoch has "
            f"{-(-images // length[1])}, got {settings['budget']:g}"
        )
    return config | {"trainer": settings | {"epochs": epochs}}


def epochs_shown(config: dict[str, Any], cost: Cost, images: int) -> str:
    """How many there are; with a budget, also by what share of it they exceed it."""
    settings = budgeted(config, cost, images)["trainer"]
    text, budget = f"{settings['epochs']:.6g}", settings["budget"]
    if budget is None:
        return text
    return f"{text} ({cost.off(budget, settings['epochs'], images, settings['batch_size']):+.2%})"
