"""What single settings may be; what a class knows better, it checks itself."""

import re
from collections.abc import Callable
from typing import Any

from sdnet.config.errors import ConfigError, not_a_setting
from sdnet.config.targets import check_target


def _whole(minimum: int) -> tuple[Callable, str]:
    return lambda v: type(v) is int and v >= minimum, f"a whole number, {minimum} or more"


def _number(minimum: float, above: bool = False) -> tuple[Callable, str]:
    def valid(v: Any) -> bool:
        inside = type(v) in (int, float) and v < float("inf")
        return inside and (v > minimum if above else v >= minimum)

    return valid, f"a number {'above' if above else 'of at least'} {minimum:g}"


def _one_of(*choices: str) -> tuple[Callable, str]:
    return lambda v: v in choices, f"one of {', '.join(choices)}"


def _optional(check: tuple[Callable, str]) -> tuple[Callable, str]:
    return lambda v: v is None or check[0](v), f"{check[1]}, or null"


_BOOLEAN = (lambda v: type(v) is bool, "true or false")
_TEXT = (lambda v: isinstance(v, str) and v != "", "a text")
_DEVICE = (
    lambda v: isinstance(v, str) and re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", v),
    "auto, cpu, cuda or cuda:<n>",
)
_NAME = (
    lambda v: isinstance(v, str) and v not in ("", ".", "..") and not set(v) & set('/\\:"'),
    "a name for a folder",
)

_PAIR = (
    lambda v: (
        isinstance(v, list) and len(v) == 2 and all(type(b) is float and 0 <= b < 1 for b in v)
    ),
    "two numbers b with 0 <= b < 1",
)

CHECKS = {
    "name": _NAME,
    "seed": _whole(0),
    "show": (lambda v: type(v) is bool or v == "time", "true, false or time"),
    "resume": _optional(_TEXT),
    "retry_failed": _BOOLEAN,
    "model.name": _NAME,
    "dataset.name": _NAME,
    "dataset.root": _TEXT,
    "dataset.download": _BOOLEAN,
    "dataset.shift": _whole(0),
    "dataset.flip": _BOOLEAN,
    "dataset.on_bad_image": _one_of("error", "skip"),
    "schedule.name": _NAME,
    "optimizer.lr": _number(0, above=True),
    "optimizer.momentum": _number(0),
    "optimizer.betas": _PAIR,
    "optimizer.nesterov": _BOOLEAN,
    "optimizer.weight_decay": _number(0),
    "optimizer.skipped_update": _one_of("decay", "freeze"),
    "trainer.epochs": _whole(1),
    "trainer.batch_size": _whole(2),  # BatchNorm needs two values
    "trainer.accumulate": _whole(1),
    "trainer.checkpoint_blocks": _optional(_whole(1)),
    "trainer.compile": _optional((lambda v: v == "branches", "branches")),
    "trainer.fused": _BOOLEAN,
    "trainer.sync_batchnorm": _BOOLEAN,
    "trainer.eval_every": _whole(1),
    "trainer.eval_unit": _one_of("epoch", "step"),
    "trainer.log_every": _whole(1),
    "trainer.device": _DEVICE,
    "trainer.precision": _one_of("fp32", "tf32", "bf16"),
    "trainer.threads": _optional(_whole(1)),
    "trainer.workers": _optional(_whole(0)),
    "trainer.channels_last": _BOOLEAN,
    "trainer.deterministic": _BOOLEAN,
    "wandb.mode": _one_of("auto", "online", "offline", "disabled"),
    "wandb.project": (
        lambda v: isinstance(v, str) and 0 < len(v) <= 128 and not set(v) & set("/\\#?%:"),
        "a text of at most 128 characters without / \\ # ? % :",
    ),
    "wandb.entity": _optional(_TEXT),
    "wandb.group": _optional(_TEXT),
    "wandb.name": _optional(_TEXT),
    "wandb.tags": (
        lambda v: isinstance(v, list) and all(isinstance(t, str) and 0 < len(t) <= 64 for t in v),
        "a list of texts of 1 to 64 characters",
    ),
}

# Keys of a group that are ours and have no default: a file of one's own must hold them.
REQUIRED = {
    "dataset.name": "a name for the data set",
    "dataset.validation": "how many training images to set aside, or 0",
    "dataset.normalization": "pixel, channel or imagenet",
    "optimizer.skipped_update": "decay or freeze",
}


def check(config: dict[str, Any]) -> None:
    """Checks single values and every target; what a class knows better, it checks itself.

    Raises:
        ConfigError: naming the setting, its value and what is allowed.
    """
    for key, meaning in REQUIRED.items():
        group, _, name = key.rpartition(".")
        if group in config and name not in config[group]:
            how = f"in its group's file or as {key}=..."
            raise ConfigError(f"{key} must be given, {how}: {meaning}")
    for key, (valid, allowed) in CHECKS.items():
        group, _, name = key.rpartition(".")
        node = config.get(group, {}) if group else config
        if name in node and not valid(node[name]):
            raise ConfigError(f"{key} must be {allowed}, got {node[name]!r}")
    for path, value in _leaves(config, ""):
        if isinstance(value, str) and "${" in value:
            # Hydra would resolve it once more, after the targets were checked.
            raise ConfigError(f"{path} must not hold an interpolation as text, got {value!r}")
        if path.endswith("_target_"):
            check_target(path, value)
    for group in ("trainer", "wandb"):  # of the other groups a target says what it takes
        known = [key.partition(".")[2] for key in CHECKS if key.startswith(f"{group}.")]
        for name in config.get(group, {}):
            if name not in known:
                raise ConfigError(not_a_setting(f"{group}.{name}", known))


def _leaves(node: Any, path: str):
    """The (dotted name, value) pairs of a configuration at any depth."""
    if not isinstance(node, dict | list):
        yield path, node
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield from _leaves(value, f"{path}.{key}" if path else str(key))
