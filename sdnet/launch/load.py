"""The network of a trained run, for code of one's own: as it was trained and measured."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def load_run(folder: str | Path, checkpoint: str = "best") -> "nn.Module":
    """The network of a run folder with its weights, in evaluation mode, on the CPU.

    Schedule, granularity and scaling are those of the run, so its errors are those of the report.
    It takes images (N, C, H, W) that are normalised as in the run. Parts of one's own have to be
    listed in SDNET_ALLOW_TARGETS, as for the run.

    Args:
        checkpoint: `best`, of the epoch whose test error is the result, or `last`.

    Raises:
        ValueError: no run in that folder, or no such checkpoint yet.
        ConfigError: a configuration that is not allowed here.
        ModuleNotFoundError: a library is missing that runs need.
    """
    try:
        from sdnet.config.compose import completed
        from sdnet.config.values import check
        from sdnet.launch import build
        from sdnet.models.gates import set_saved_survival
        from sdnet.runs.folder import RunFolder
        from sdnet.runs.identity import is_of_the_zoo
    except ModuleNotFoundError as error:
        error.msg += ": pip install '.[train]' in sdnet's clone"
        raise

    if checkpoint not in ("best", "last"):
        raise ValueError(f"checkpoint must be best or last, got {checkpoint!r}")
    run = RunFolder(folder)
    if not run.holds_run():
        raise ValueError(f"{folder} is not a run folder: it has no config.yaml")
    config = run.config()
    if isinstance(config.get("trainer"), dict):
        config = completed(config)
    check(config)
    state = run.load_checkpoint(checkpoint)
    if state is None:
        raise ValueError(f"{folder} has no checkpoint {checkpoint}.pt yet")
    weights = state["model"]
    if is_of_the_zoo(config["model"]):  # it began with others, which may be gone
        config["model"]["pretrained_file"] = None
    if {"conv1.weight", "fc.weight"} <= weights.keys():  # so they are named in all of ours
        classes, channels = len(weights["fc.weight"]), weights["conv1.weight"].shape[1]
    elif {"classes", "image_shape"} <= (known := run.provenance()).keys():
        classes, channels = known["classes"], known["image_shape"][0]
    else:  # of an earlier version
        data = build.build_data(config, listing=True)
        classes, channels = len(data.classes), data.image_shape[0]
    model = build.build_model(config, classes, channels)
    set_saved_survival(model, weights)
    model.load_state_dict(weights)
    return model.eval()
