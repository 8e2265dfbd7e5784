"""How long a run trains: its epochs, or as long as a budget of multiply-adds lasts."""

import logging
from typing import Any

from torch import nn

from sdnet.analysis.cost import Cost, network_cost
from sdnet.config.errors import ConfigError, one_line
from sdnet.models.layout import Layout

log = logging.getLogger("sdnet")


def training_cost(config: dict[str, Any], model: nn.Module, schedule, image_shape) -> Cost | None:
    """What the network costs, with the survival of its blocks averaged over the training.

    None for one that cannot be counted, where no budget asks for it.
    """
    try:
        return network_cost(model, image_shape, Layout(model).mean_survival(schedule))
    except Exception as error:  # somebody else's network, which may not be made for a copy
        if config["trainer"].get("budget") is not None:
            raise ConfigError(
                f"trainer.budget must be null for {type(model).__name__}, whose multiply-adds "
                f"cannot be counted ({type(error).__name__}: {one_line(error)}), got "
                f"{config['trainer']['budget']:g}"
            ) from error
        log.debug("the multiply-adds could not be counted", exc_info=True)
        return None


def budgeted(config: dict[str, Any], cost: Cost | None, images: int) -> dict[str, Any]:
    """The configuration with the epochs that its budget lasts; without a budget, as it is.

    Raises:
        ConfigError: a budget for a network of which nothing is counted.
    """
    settings = config["trainer"]
    if cost is None or settings.get("budget") is None:
        return config
    if not cost.macs:
        raise ConfigError(
            f"trainer.budget must be null for a network without a layer whose multiply-adds are "
            f"counted, got {settings['budget']:g}"
        )
    epochs = cost.epochs_for(settings["budget"], images, settings["batch_size"])
    return config | {"trainer": settings | {"epochs": epochs}}
