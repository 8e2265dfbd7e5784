"""What single settings may be; what a class knows better, it checks itself."""

import os
import re
from collections.abc import Callable
from typing import Any

from sdnet.config.errors import ConfigError, not_a_setting
from sdnet.config.targets import TARGETS, check_flags, check_target


def _whole(minimum: int, most: int | None = None) -> tuple[Callable, str]:
    upper = f"{minimum} or more, a billion at most" if most is None else f"{minimum} to {most}"
    most = 10**9 if most is None else most
    return lambda v: type(v) is int and minimum <= v <= most, f"a whole number, {upper}"


def _number(minimum: float, above: bool = False) -> tuple[Callable, str]:
    def valid(v: Any) -> bool:
        inside = type(v) in (int, float) and v < float("inf")
        return inside and (v > minimum if above else v >= minimum)

    return valid, f"a number {'above' if above else 'of at least'} {minimum:g}"


def _one_of(*choices: str) -> tuple[Callable, str]:
    return lambda v: v in choices, f"one of {', '.join(choices)}"


def _optional(check: tuple[Callable, str]) -> tuple[Callable, str]:
    return lambda v: v is None or check[0](v), f"{check[1]}, or null"


def _at_most(most: int) -> tuple[Callable, str]:
    """For what the target checks itself, but for a size that would fill the memory."""

    def valid(v: Any) -> bool:
        return not any(type(n) is int and n > most for n in (v if isinstance(v, list) else [v]))

    return valid, f"at most {most}"


def _is_fraction(v: Any) -> bool:
    return type(v) in (int, float) and 0 <= v < 1


_BOOLEAN = (lambda v: type(v) is bool, "true or false")
_TEXT = (lambda v: isinstance(v, str) and v != "", "a text")
_LINE = (lambda v: _TEXT[0](v) and v.isprintable(), "a printable text")
_DEVICE = (
    lambda v: isinstance(v, str) and re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", v),
    "auto, cpu, cuda or cuda:<n>",
)
LONGEST = 80  # bytes of a name: that of a run holds two, where a disk allows 255
_NAME = (
    lambda v: (
        isinstance(v, str)
        and v not in ("", ".", "..")
        and v.isprintable()
        and len(os.fsencode(v)) <= LONGEST
        and not set(v) & set('/\\:"')
    ),
    f'a name for a folder, printable, of at most {LONGEST} bytes, without / \\ : "',
)
_PAIR = (
    lambda v: isinstance(v, list) and len(v) == 2 and all(map(_is_fraction, v)),
    "two numbers b with 0 <= b < 1",
)

_SEED = _whole(0, 2**63 - 1)
_SEEDS = (
    lambda v: (
        v is None
        or (isinstance(v, list) and v != [] and all(map(_SEED[0], v)) and len({*v}) == len(v))
    ),
    "a list of different seeds such as [0,1,2], or null",
)

CHECKS = {
    "seed": _SEED,
    "seeds": _SEEDS,
    "telemetry": (
        lambda v: type(v) is bool or v == "directions",
        "true, false or directions",
    ),
    "show": (lambda v: type(v) is bool or v == "time", "true, false or time"),
    "resume": _optional(_TEXT),
    "retry_failed": _BOOLEAN,
    "model.name": _NAME,
    "model.depth": _at_most(10**4),
    "model.blocks": _at_most(10**3),
    "dataset.name": _NAME,
    "name": _NAME,  # often the data set's
    "dataset.root": _TEXT,
    "dataset.download": _BOOLEAN,
    "dataset.size": _at_most(4096),
    "dataset.resize": _at_most(4096),
    "dataset.shift": _whole(0),
    "dataset.flip": _BOOLEAN,
    "dataset.on_bad_image": _one_of("error", "skip"),
    "schedule.name": _NAME,
    "optimizer.lr": _number(0, above=True),
    "optimizer.momentum": (_is_fraction, "a number of at least 0 and below 1"),
    "optimizer.betas": _PAIR,
    "optimizer.nesterov": _BOOLEAN,
    "optimizer.weight_decay": _number(0),
    "optimizer.backbone_factor": (
        lambda v: type(v) in (int, float) and 0 < v <= 1,
        "a number above 0 and at most 1",
    ),
    "optimizer.skipped_update": _one_of("decay", "freeze"),
    "trainer.epochs": _whole(1, 10**6),
    "trainer.budget": (
        lambda v: v is None or (type(v) in (int, float) and 0 < v <= 10**6),
        "a number above 0, a million at most, or null",
    ),
    "trainer.batch_size": _whole(2),  # BatchNorm needs two values
    "trainer.accumulate": _whole(1),
    "trainer.checkpoint_blocks": _optional(_whole(1)),
    "trainer.compile": _optional((lambda v: v == "branches", "branches")),
    "trainer.fused": _BOOLEAN,
    "trainer.graphs": _BOOLEAN,
    "trainer.sync_batchnorm": _BOOLEAN,
    "trainer.eval_every": _whole(1),
    "trainer.eval_unit": _one_of("epoch", "step"),
    "trainer.eval_batch_size": _optional(_whole(1)),
    "trainer.checkpoint_every": _optional(_number(0, above=True)),
    "trainer.checkpoint_unit": _one_of("minute", "step"),
    "trainer.log_every": _whole(1),
    "trainer.device": _DEVICE,
    "trainer.precision": _one_of("fp32", "tf32", "bf16"),
    "trainer.threads": _optional(_whole(1, 1024)),
    "trainer.workers": _optional(_whole(0, 256)),
    "trainer.channels_last": _BOOLEAN,
    "trainer.deterministic": _BOOLEAN,
    "wandb.mode": _one_of("auto", "online", "offline", "disabled"),
    "wandb.project": (
        lambda v: _LINE[0](v) and len(v) <= 128 and not set(v) & set("/\\#?%:"),
        "a printable text of at most 128 characters without / \\ # ? % :",
    ),
    "wandb.entity": _optional(_LINE),
    "wandb.group": _optional(_LINE),
    "wandb.name": _optional(_LINE),
    "wandb.tags": (
        lambda v: isinstance(v, list) and all(_LINE[0](t) and len(t) <= 64 for t in v),
        "a list of printable texts of 1 to 64 characters",
    ),
}

# Where a whole number is taken for the text that was typed: name=2025, dataset.root=2025.
TEXTS = ("name", "resume", *(key for key in CHECKS if key.endswith((".name", ".root"))))
TEXTS += ("wandb.project", "wandb.entity", "wandb.group")
GROUPS = (*TARGETS, "trainer", "wandb")
# What has no default: a file of one's own must hold it. Of the rest the target has its defaults.
REQUIRED = {key: allowed for key, (_, allowed) in CHECKS.items() if key.count(".") == 0}
REQUIRED |= {f"{group}._target_": "what makes the object" for group in TARGETS}
REQUIRED |= {
    "dataset.name": "a name for the data set",
    "dataset.validation": "how many training images to set aside, or 0",
    "dataset.normalization": "pixel, channel or imagenet",
    "optimizer.lr": CHECKS["optimizer.lr"][1],
    "optimizer.skipped_update": "decay or freeze",
}
REQUIRED |= {k: v[1] for k, v in CHECKS.items() if k.startswith(("trainer.", "wandb."))}


def as_meant(config: dict[str, Any]) -> None:
    """Makes, in place, what was typed into what is meant where that is plain: 2025 into "2025"."""
    for key in TEXTS:
        node, name = _place(config, key)
        if type(node.get(name)) is int:
            node[name] = str(node[name])
    node, name = _place(config, "wandb.tags")
    if isinstance(node.get(name), list):
        node[name] = [str(tag) if type(tag) is int else tag for tag in node[name]]
    node, name = _place(config, "optimizer.betas")
    if isinstance(node.get(name), list):  # torch wants them of one type
        node[name] = [float(b) if type(b) is int else b for b in node[name]]


def _place(config: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Where a setting stands, if anywhere: in its group, or at the top."""
    group, _, name = key.rpartition(".")
    node = config.get(group) if group else config
    return (node if isinstance(node, dict) else {}), name


def check(config: dict[str, Any]) -> None:
    """Checks values and every target; what a class knows better, it checks itself.

    Raises:
        ConfigError: naming the setting, its value and what is allowed.
    """
    top = [*(key for key in CHECKS if "." not in key), *GROUPS]
    for name in config:
        if name not in top:
            raise ConfigError(not_a_setting(str(name), sorted(top)))
    for group in GROUPS:
        if not isinstance(config.get(group), dict):
            got = f", got {config[group]!r}" if group in config else ""
            raise ConfigError(f"{group} must be a group of settings, chosen as {group}=...{got}")
    for key, meaning in REQUIRED.items():
        node, name = _place(config, key)
        if name not in node:
            how = f"in its group's file or as {key}=..." if "." in key else f"as {key}=..."
            raise ConfigError(f"{key} must be given, {how}: {meaning}")
    for key, (valid, allowed) in CHECKS.items():
        node, name = _place(config, key)
        if name in node and not valid(node[name]):
            hint = ""
            if key in TEXTS and type(node[name]) in (bool, float):
                hint = f"""; as a text it is quoted: '{key}="{str(node[name]).lower()}"'"""
            raise ConfigError(f"{key} must be {allowed}, got {node[name]!r}{hint}")
    for path, value in _leaves(config, ""):
        if isinstance(value, str) and "${" in value:
            # Hydra would resolve it once more, after the targets were checked.
            raise ConfigError(f"{path} must not hold an interpolation as text, got {value!r}")
        if path.endswith("_target_"):
            check_target(path, value)
    for group in TARGETS:
        if config[group].get("_partial_"):
            raise ConfigError(f"{group}._partial_ must be false: the run needs the object itself")
        check_flags(group, config[group])
    for group in ("trainer", "wandb"):  # of the other groups a target says what it takes
        known = [key.partition(".")[2] for key in CHECKS if key.startswith(f"{group}.")]
        for name in config[group]:
            if name not in known:
                raise ConfigError(not_a_setting(f"{group}.{name}", known))
    if config["trainer"]["sync_batchnorm"] and config["trainer"]["compile"] is not None:
        raise ConfigError(  # it chooses rows by a mask, which torch does not compile in one graph
            "trainer.compile must be null with trainer.sync_batchnorm=true, got "
            f"{config['trainer']['compile']}"
        )
    if config["trainer"]["graphs"]:
        for name, needed in (("accumulate", 1), ("checkpoint_blocks", None)):
            if config["trainer"][name] != needed:
                raise ConfigError(
                    f"trainer.{name} must be {'null' if needed is None else needed} with "
                    f"trainer.graphs=true, got {config['trainer'][name]}"
                )


def _leaves(node: Any, path: str):
    """The (dotted name, value) pairs of a configuration at any depth, a target whatever it is."""
    if not isinstance(node, dict | list) or path.endswith("_target_"):
        yield path, node
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield from _leaves(value, f"{path}.{key}" if path else str(key))
