"""Which modules of a network drop, where they stand, and with which rate."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from sdnet.models.checks import check_drop_rate, shown
from sdnet.models.cutting.rewrite import CONTAINERS
from sdnet.models.stochastic_depth import DropPath, StochasticDepth

RATES = ("drop_prob", "p", "drop_rate")
KNOWN = {"timm.layers.drop": ("DropPath",), "torchvision.ops": ("StochasticDepth",)}
Kind = type[nn.Module]
DropTypes = Sequence[Kind] | Mapping[Kind, str]


def rates_of(drop_types: DropTypes) -> dict[Kind, str | None]:
    """Classes of modules that drop, and where they keep their rate; None: in one of `RATES`."""
    kinds = classes("drop_types", drop_types)
    own = dict(drop_types) if isinstance(drop_types, Mapping) else dict.fromkeys(kinds)
    return {**own, **dict.fromkeys([DropPath, StochasticDepth, *imported(KNOWN)])}


def classes(name: str, given: Any) -> tuple[Kind, ...]:
    """The classes of modules that an argument lists; ValueError for anything else."""
    found = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in found):
        raise ValueError(f"{name} must be a list of classes of modules, got {shown(given)}")
    return found


def imported(known: Mapping[str, Sequence[str]]) -> list[Kind]:
    """Those classes whose module this process has imported: no other can be in a network."""
    loaded = {name: sys.modules[name] for name in known if name in sys.modules}
    return [getattr(loaded[name], kind) for name in loaded for kind in known[name]]


def rate_of(name: str, module: nn.Module, attribute: str | None) -> float:
    """The drop rate of a module.

    Raises:
        ValueError: it has none, or none that leaves something.
    """
    for key in RATES if attribute is None else (attribute,):
        if getattr(module, key, None) is not None:
            return check_drop_rate(f"{name}.{key}", getattr(module, key))
    raise ValueError(
        f"{name}: {type(module).__name__} has no attribute {' or '.join(RATES)}: "
        f"drop_types={{{type(module).__name__}: 'its name'}} says which one is its drop rate"
    )


def places(model: nn.Module, kinds: tuple[Kind, ...]) -> list[tuple[str, str]]:
    """Where drop-path modules stand: path of the parent, name in it.

    Where a block's rate is zero, timm has an Identity, or None, instead: other blocks of that class
    tell.
    """
    parents = list(model.named_modules())
    found = [
        (path, name)
        for path, parent in parents
        for name, child in parent._modules.items()
        if isinstance(child, kinds)
    ]
    of_class = {(type(model.get_submodule(path)), name) for path, name in found}
    for path, parent in parents:
        for kind, name in of_class:
            if type(parent) is kind and kind not in (*CONTAINERS, nn.Sequential):
                idle = getattr(parent, name, False)
                if idle is None or type(idle) is nn.Identity:
                    found.append((path, name))
    return found


def has_drop_path(model: nn.Module) -> bool:
    """Whether a network has a module that `skip_branches` knows to drop."""
    return bool(places(model, tuple(rates_of(()))))
