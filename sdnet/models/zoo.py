"""timm's and torchvision's networks by name, their residual branches behind gates."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from sdnet.models.checks import check_choice, check_drop_rate
from sdnet.models.cutting.drops import has_drop_path
from sdnet.models.gates import GRANULARITIES, RESCALES, gated_modules
from sdnet.models.pretrained import load_pretrained
from sdnet.models.schedules import ScheduleError
from sdnet.models.surgery import BLOCKS, add_stochastic_depth, skip_branches

RATE = 0.1  # any above 0: timm then puts drop-path modules in. What survives, the schedule says
# Arguments of their builders that are set here, or would load or download something.
KEPT: tuple[str, ...] = (
    "num_classes",
    "in_chans",
    "drop_path_rate",
    "stochastic_depth_prob",
    "features_only",
)
KEPT += ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
KEPT += ("weights", "weights_backbone", "progress")


def timm_model(
    arch: str,
    *,
    num_classes: int,
    in_channels: int,
    options: dict[str, Any] | None = None,
    **gating: Any,
) -> nn.Module:
    """A network of timm that skips.

    Args:
        arch: one of `timm.list_models()`.
        options: further arguments of `timm.create_model`, e.g. {"img_size": 64}.
        gating: see `_gated`.

    Raises:
        ValueError: no such network, one without residual branches, or one that cannot be cut.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError(f"arch={arch} needs timm, which is not here: pip install timm") from error
    if not timm.is_model(arch):
        raise ValueError(_unknown("timm", arch, timm.list_models()))
    given = {"num_classes": num_classes, "in_chans": in_channels, "drop_path_rate": RATE}
    try:
        model = _built(timm.create_model, arch, given, options)
    except ValueError as error:
        if not isinstance(error.__cause__, TypeError) or "'drop_path_rate'" not in str(error):
            raise
        del given["drop_path_rate"]
        model = _built(timm.create_model, arch, given, options)
    return _gated(model, arch, **gating)


def torchvision_model(
    arch: str,
    *,
    num_classes: int,
    in_channels: int,
    options: dict[str, Any] | None = None,
    **gating: Any,
) -> nn.Module:
    """A network of torchvision that skips.

    Args:
        arch: a classifier's name for `torchvision.models.get_model`.
        options: further arguments of it, e.g. {"image_size": 64} for a ViT.
        gating: see `_gated`.

    Raises:
        ValueError: no such network, one without residual branches, or one that cannot be cut.
    """
    import torchvision  # type: ignore[import-untyped]

    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        raise ValueError(_unknown("torchvision", arch, known))
    if in_channels != 3:
        raise ValueError(
            f"arch={arch} of torchvision is for images with 3 channels, got {in_channels}: "
            f"model=timm takes any number"
        )
    model = _built(torchvision.models.get_model, arch, {"num_classes": num_classes}, options)
    return _gated(model, arch, **gating)


def _unknown(library: str, arch: str, known: list[str]) -> str:
    close = difflib.get_close_matches(arch, known)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"arch={arch} is no network of {library}{hint}"


def _built(
    create: Callable[..., nn.Module], arch: str, given: dict[str, Any], options: Any
) -> nn.Module:
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise ValueError(f"options must be arguments by name, got {options!r}")
    if kept := [name for name in options if name in KEPT]:
        raise ValueError(f"options must not hold {kept[0]}, got {options!r}")
    try:
        return create(arch, **given, **options)
    except Exception as error:  # what a library raises where its arguments do not fit
        found = " ".join(f"{type(error).__name__}: {error}".split())
        found = found.replace("got an unexpected keyword argument", "takes no")
        raise ValueError(f"arch={arch} cannot be built with options={options}: {found}") from error


def _gated(
    model: nn.Module,
    arch: str,
    *,
    schedule: Callable[..., Iterable[float]],
    granularity: str = "batch",
    rescale: str = "train",
    drop_path_rate: float | None = None,
    pretrained_file: str | None = None,
    pretrained_digest: str | None = None,
) -> nn.Module:
    """A network with its branches behind gates, and with its first weights.

    Args:
        schedule: gives each block its survival, all branches of a block the same.
        granularity, rescale: see `sdnet.models.gates.Gated`.
        drop_path_rate: which drop rate the schedule is to give the last block; None: any.
        pretrained_file, pretrained_digest: see `sdnet.models.pretrained.load_pretrained`.
    """
    check_choice("granularity", granularity, GRANULARITIES)
    check_choice("rescale", rescale, RESCALES)
    found = {(type(m).__module__, type(m).__name__) for m in model.modules()}
    try:
        if has_drop_path(model):
            skip_branches(model, schedule=schedule, granularity=granularity, rescale=rescale)
        elif any(name in BLOCKS.get(module, ()) for module, name in found):
            add_stochastic_depth(model, schedule, granularity=granularity, rescale=rescale)
        else:
            raise ValueError(
                f"{type(model).__name__} has neither drop-path modules nor residual blocks that "
                f"sdnet knows"
            )
    except ScheduleError:
        raise
    except ValueError as error:
        raise ValueError(f"arch={arch} cannot skip: {error}") from error
    if drop_path_rate is not None:
        _check_rate(check_drop_rate("drop_path_rate", drop_path_rate), model)
    if pretrained_file is not None:
        load_pretrained(model, pretrained_file, pretrained_digest)
    return model


def _check_rate(rate: float, model: nn.Module) -> None:
    last = gated_modules(model)[-1].survival
    if abs(1.0 - rate - last) > 1e-6:
        raise ValueError(
            f"drop_path_rate={rate:g} contradicts the schedule, which gives the last block a "
            f"survival of {last:g}: leave one of the two out, or give schedule.p_L={1 - rate:g}"
        )
