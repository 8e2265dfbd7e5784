"""Which classes and functions a configuration may name, and the objects that it then gets."""

import importlib
import inspect
import os
import sys
from contextlib import suppress
from typing import Any, get_args, get_type_hints

from hydra.errors import InstantiationException

from sdnet.config.errors import ConfigError, in_group, nearest, one_line, place_of
from sdnet.models.schedules import ScheduleError

ALLOW_VARIABLE = "SDNET_ALLOW_TARGETS"
# What a target may be, by the group it stands in: public objects that this module of ours defines,
# or lists in its `__all__`, and subclasses of a class of torch's that torch or torchvision defines.
TARGETS = {
    "model": ("sdnet.models", "torch.nn.Module"),
    "dataset": ("sdnet.data.sources", None),
    "schedule": ("sdnet.models.schedules", None),
    "optimizer": (None, "torch.optim.Optimizer"),
    "lr_schedule": ("sdnet.training.optim", None),
}
# Where targets are looked for. Of torch's other modules some run when they are imported.
HOMES = ("sdnet.", "torch.nn.", "torch.optim.", "torchvision.models.", "torchvision.ops.")
# Keys of a group that are ours: they never reach the group's target.
LABELS = {
    "model": ("name",),
    "dataset": ("name", "validation", "normalization", "shift", "flip"),
    "schedule": ("name",),
    "optimizer": ("backbone_factor", "skipped_update"),
    "lr_schedule": (),
}


def check_target(path: str, target: Any) -> None:
    """Refuses a `_target_` unless what it resolves to is one of the project's building blocks.

    Allowed is what TARGETS says for the group that `path` begins with, and the names listed
    (separated by commas) in the environment variable SDNET_ALLOW_TARGETS.

    Raises:
        ConfigError: naming the setting and the target.
    """
    listed = [t.strip() for t in os.environ.get(ALLOW_VARIABLE, "").split(",")]
    if isinstance(target, str) and target and target in listed:
        _find(path, target)
        return
    # Nothing is imported for a name that starts elsewhere: importing runs code.
    known = isinstance(target, str) and f"{target}.".startswith(HOMES) and "._" not in target
    found = _locate(target) if known else None
    if _is_building_block(found, *TARGETS.get(path.split(".")[0], (None, None))):
        return
    problem = "does not exist" if known and found is None else "is not allowed"
    raise ConfigError(
        f"{path}={target} {problem} here: a target must be a block, network, schedule, data "
        f"set or optimizer of sdnet or torch, in its own group. To use one of your own, list it in "
        f"the environment variable {ALLOW_VARIABLE}."
    )


def _find(path: str, target: str) -> None:
    """Imports a listed target; a ConfigError says why that fails, as only its author can know."""
    module, names = _module_of(path, target)
    found: Any = module
    for name in names:
        if not hasattr(found, name):
            hint = nearest(name, [n for n in dir(found) if not n.startswith("__")])
            raise ConfigError(
                f"{path}={target} cannot be found: {getattr(found, '__file__', found)} has no "
                f"{name}{hint}"
            )
        found = getattr(found, name)


def _module_of(path: str, target: str) -> tuple[Any, list[str]]:
    """The longest beginning of a dotted name that is a module, imported, and the names after it."""
    parts = target.split(".")
    for n in range(len(parts), 0, -1):
        name = ".".join(parts[:n])
        try:
            return importlib.import_module(name), parts[n:]
        except Exception as error:
            missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
            if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{missing}."):
                continue  # a class in a module, it may be
            raise ConfigError(
                f"{path}={target} cannot be imported: {type(error).__name__}: {one_line(error)} "
                f"({place_of(error)})"
            ) from error
    raise ConfigError(
        f"{path}={target} cannot be imported: there is no module {parts[0]}. The folder that holds "
        f"it must be where Python looks: PYTHONPATH=. before the command adds the current one"
    )


def _locate(target: str) -> Any:
    """The object that a dotted name means, or None; a module of torch's only if it is loaded."""
    parts = target.split(".")
    with suppress(ImportError):
        importlib.import_module(target if parts[0] == "sdnet" else ".".join(parts[:2]))
    loaded = (n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in sys.modules)
    n = next(loaded)
    found: Any = sys.modules[".".join(parts[:n])]
    for part in parts[n:]:
        found = getattr(found, part, None)
        if inspect.ismodule(found):  # torch loads some when they are asked for
            break
    return found


def _is_building_block(found: Any, ours: str | None, base: str | None) -> bool:
    """Judged by the object itself: by what it is and where its definition stands, not its name."""
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return False
    home = sys.modules.get(found.__module__)
    if home is None or getattr(home, found.__qualname__, None) is not found:
        return False  # __module__ can be forged
    if found.__module__.split(".")[0] == "sdnet":
        inside = ours is not None and f"{found.__module__}.".startswith(f"{ours}.")
        room = sys.modules.get(ours or "")
        inside = inside or any(getattr(room, n) is found for n in getattr(room, "__all__", ()))
        return inside and not found.__name__.startswith("_")
    foreign = found.__module__.startswith(HOMES)
    return (
        foreign and base is not None and inspect.isclass(found) and issubclass(found, _locate(base))
    )


def check_flags(group: str, node: dict[str, Any]) -> None:
    """Refuses what is no bool where a group's target says that it takes one, as torch's do.

    Python would take any text for true.
    """
    for name, hint in _hints(_locate(node["_target_"])).items():
        kinds = set(get_args(hint)) or {hint}
        if name in node and bool in kinds <= {bool, type(None)}:
            value = node[name]
            if type(value) is not bool and not (value is None and type(None) in kinds):
                raise ConfigError(f"{group}.{name} must be true or false, got {value!r}")


def _hints(target: Any) -> dict[str, Any]:
    """The types of a target's arguments, where it tells them."""
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # names that are not there, things that are no function
        return {}


def instantiate(config: dict[str, Any], group: str, *args: Any, **kwargs: Any) -> Any:
    """The object that a group of the checked configuration describes.

    Raises:
        ConfigError: what the target's own checks found, with the group named.
    """
    from hydra import utils

    node = {k: v for k, v in config[group].items() if k not in LABELS[group]}
    # Hydra 1.4 has a gate of its own. `check_target` has been passed, and is the narrower one.
    if unchecked := getattr(utils, "UNSAFE_DISABLE_EXECUTION_CHECKS", None):
        kwargs["_execution_whitelist_"] = unchecked
    try:
        return utils.instantiate(node, *args, **kwargs, _convert_="all")
    except Exception as error:  # Hydra 1.4 raises what the target raised, 1.3 one of its own
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, ScheduleError):  # found by the network that was given it
            raise ConfigError(in_group("schedule", config["schedule"], cause)) from error
        raise ConfigError(in_group(group, config[group], cause or error)) from error
