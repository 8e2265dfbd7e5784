"""Real skipping for residual networks of anybody: timm's, torchvision's, one's own.

Those compute every branch and multiply it by zero. `skip_branches` puts each branch that ends in
such a module behind a gate, in place: the same parameters under the same names, and a closed gate
runs nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from sdnet.models.checks import check_choice
from sdnet.models.cutting.drops import (
    RATES,
    DropTypes,
    Kind,
    classes,
    imported,
    places,
    rate_of,
    rates_of,
)
from sdnet.models.cutting.gate import Gate
from sdnet.models.cutting.rewrite import (
    ADDED,
    ADDED_NAME,
    AGAIN,
    CONTAINERS,
    original_class,
    put_back,
    rewrite,
    tail,
)
from sdnet.models.gates import GRANULARITIES, RESCALES, Gated, gated_modules, set_survival
from sdnet.models.layout import Layout
from sdnet.models.macs import shares_of

# Blocks without such a module whose sum `add_stochastic_depth` knows to be that of the paper.
BLOCKS = {
    "torchvision.models.resnet": ("BasicBlock", "Bottleneck"),
    "torchvision.models.vision_transformer": ("EncoderBlock",),
    "torchvision.models.regnet": ("ResBottleneckBlock",),
    "timm.models.resnet": ("BasicBlock", "Bottleneck"),
}


class Skip(NamedTuple):
    """What became of one residual branch.

    Attributes:
        module: path of its gate in the network; of its drop-path module where it has none.
        survival: probability that it is run.
        share: of the network's multiply-adds, which a closed gate saves; None where not measured.
        reason: why it could not be cut out, and stays as it was; None for a gate.
    """

    module: str
    survival: float
    share: float | None = None
    reason: str | None = None


def skip_branches(
    model: nn.Module,
    *,
    granularity: str = "batch",
    rescale: str = "train",
    schedule: Callable[..., Iterable[float]] | None = None,
    drop_types: DropTypes = (),
    strict: bool = True,
    input_shape: Sequence[int] | None = None,
) -> list[Skip]:
    """Puts each residual branch that ends in a drop-path module behind a gate, in place.

    Known are timm's DropPath, torchvision's StochasticDepth and sdnet's. Parameters, `state_dict`
    and what the network gives in evaluation stay as they are. In training nothing of a branch runs
    whose gate is closed (`batch`), or it runs on some rows alone (`subset`).

    Args:
        model: any network; what is replaced is the drop-path module and its block's `forward`.
        granularity, rescale: see `sdnet.models.gates.Gated`. With `train`, as the modules have it,
            a timm DropPath with scale_by_keep=False stays without scale.
        schedule: gives each block its survival, both branches of a block the same; by default
            each module's own rate stays.
        drop_types: classes of one's own, which drop a row of their input with the probability in
            their attribute `drop_prob`, `p` or `drop_rate`; or a dict from the class to the name.
        strict: whether a branch that cannot be cut out is an error, before anything is changed.
            Else it stays as it was, and its row says why.
        input_shape: (C, H, W) of an image: then the rows have shares of the multiply-adds.

    Returns:
        A row for each branch, in order of depth.

    Raises:
        ValueError: there is no such branch, or one cannot be cut out: which, and why.
    """
    check_choice("granularity", granularity, GRANULARITIES)
    check_choice("rescale", rescale, RESCALES)
    rates = rates_of(drop_types)
    with _all_or_nothing(model):
        blocks = _put_gates(model, rates, granularity, rescale)
        if not blocks:
            raise ValueError(_nothing_found(model))
        refused = _cut_all(model, blocks, strict)
        return _rows(model, schedule, input_shape, refused)


def add_stochastic_depth(
    model: nn.Module,
    schedule: Callable[..., Iterable[float]],
    *,
    granularity: str = "batch",
    rescale: str = "train",
    block_types: Sequence[Kind] = (),
    strict: bool = True,
    input_shape: Sequence[int] | None = None,
) -> list[Skip]:
    """Puts the branches of residual blocks that have no drop-path module behind gates, in place.

    Known are the blocks of torchvision's and timm's ResNets, of torchvision's RegNet and ViT. A
    branch is what is added to the block's input, or to its shortcut.

    Args:
        schedule: gives each block its survival; see `sdnet.models.schedules`.
        block_types: classes of blocks of one's own; each sum in them of two things computed from
            their input is that of a branch and a shortcut, and the branch takes more modules.
        granularity, rescale, strict, input_shape: see `skip_branches`.

    Returns, Raises: as `skip_branches`.
    """
    check_choice("granularity", granularity, GRANULARITIES)
    check_choice("rescale", rescale, RESCALES)
    types = (*classes("block_types", block_types), *imported(BLOCKS))
    with _all_or_nothing(model):
        blocks = {name: m for name, m in model.named_modules() if isinstance(m, types)}
        if not blocks:
            raise ValueError(
                f"{type(model).__name__} has no residual block that add_stochastic_depth knows: "
                f"block_types= names one's own"
            )
        _check_drop_nothing(blocks)
        for block in blocks.values():
            gate = Gate(1.0, granularity, rescale, kept=ADDED)
            block.register_module(ADDED_NAME, gate.train(block.training))
        refused = _cut_all(model, blocks, strict)
        return _rows(model, schedule, input_shape, refused)


def restore_branches(model: nn.Module) -> int:
    """Undoes `skip_branches` and `add_stochastic_depth`; returns how many gates there were.

    Raises:
        ValueError: another library has changed a block's class since, as `fully_shard` does.
    """
    blocks = [block for block in model.modules() if original_class(block) is not None]
    for block in blocks:
        if "cut_of" not in vars(type(block)):
            raise ValueError(f"{type(block).__name__} was changed by others after skip_branches")
    for block in blocks:
        block.__class__ = original_class(block) or type(block)
    gates = {path: gate for path, gate in model.named_modules() if isinstance(gate, Gate)}
    for path, gate in gates.items():
        if gate.kept != (AGAIN,):  # those go with the first of their module
            put_back(model, path)
    return len(gates)


@contextmanager
def _all_or_nothing(model: nn.Module) -> Iterator[None]:
    if any(isinstance(module, Gate) for module in model.modules()):
        raise ValueError(f"the branches of {type(model).__name__} have gates already")
    try:
        yield
    except BaseException:
        restore_branches(model)
        raise


def _put_gates(
    model: nn.Module, rates: dict[Kind, str | None], granularity: str, rescale: str
) -> dict[str, nn.Module]:
    """Puts gates where modules drop; returns the blocks, by name, whose `forward` may call them.

    A module that stands in several places becomes a gate in each.
    """
    blocks: dict[str, nn.Module] = {}
    for parent_path, name in places(model, tuple(rates)):
        path = f"{parent_path}.{name}".lstrip(".")
        holder = _holder(model, path)
        block, parent = model.get_submodule(holder), model.get_submodule(parent_path)
        if isinstance(block, Gated):
            continue
        module, survival, scaling = getattr(parent, name), 1.0, rescale
        kind = next((kind for kind in rates if isinstance(module, kind)), None)
        if kind is not None:
            if module._forward_hooks or module._forward_pre_hooks:
                raise ValueError(f"{path} has hooks, which a gate would not call")
            if type(module).forward is not kind.forward:
                own = type(module).__name__
                raise ValueError(
                    f"{path}: {own} is a {kind.__name__} with a forward of its own: "
                    f"drop_types=[{own}] says that it drops rows, and does nothing else"
                )
            survival = 1.0 - rate_of(path, module, rates[kind])
            if rescale == "train" and getattr(module, "scale_by_keep", True) is False:
                scaling = "none"
        gate = Gate(survival, granularity, scaling, kept=module)
        setattr(parent, name, gate.train((parent if kind is None else module).training))
        blocks[holder] = block
    return blocks


def _holder(model: nn.Module, path: str) -> str:
    """The nearest module above whose own `forward` may call what is at `path`."""
    while True:
        path = path.rpartition(".")[0]
        if not path or type(model.get_submodule(path)) not in CONTAINERS:
            return path


def _nothing_found(model: nn.Module) -> str:
    name = type(model).__name__
    if gated_modules(model):
        return f"the blocks of {name} skip their branches already"
    return (
        f"{name} has no residual branch that ends in a DropPath or StochasticDepth module: build "
        f"it with a drop-path rate above 0, name your own classes by drop_types=, or see "
        f"add_stochastic_depth"
    )


# Cutting the blocks.


def _cut_all(model: nn.Module, blocks: dict[str, nn.Module], strict: bool) -> list[Skip]:
    """Rewrites blocks, the inner ones first; returns what could not be cut out."""
    _check_used_once(model, blocks)
    refused: list[Skip] = []
    pending = set(blocks)
    while pending:
        name = max(pending, key=lambda path: (path.count(".") + bool(path), path))
        pending.remove(name)
        block = model.get_submodule(name)
        reasons = rewrite(block)
        end = tail(block)
        if end is not None and name:
            pending.add(_holder(model, name))  # where the sum is
        elif end is not None:
            reasons[end] = "what it gives is the network's result: there is no sum"
        for path, reason in reasons.items():
            gate = block.get_submodule(path)
            assert isinstance(gate, Gate)
            full = f"{name}.{path}".lstrip(".")
            if strict:
                raise ValueError(f"the branch that ends in {full} cannot be cut out: {reason}")
            refused.append(Skip(full, gate.survival, None, reason))
            put_back(block, path)
    if not any(isinstance(module, Gate) for module in model.modules()):
        found = "no block calls its drop-path module"
        if refused:
            found = f"{refused[0].module}: {refused[0].reason}"
        raise ValueError(f"no residual branch of {type(model).__name__} can be cut out. {found}")
    return refused


def _check_used_once(model: nn.Module, blocks: dict[str, nn.Module]) -> None:
    names: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if any(module is block for block in blocks.values()):
            first = names.setdefault(id(module), name)
            if first != name:
                raise ValueError(
                    f"{first} and {name} are one module that is used twice, and each use would "
                    f"need gates of its own: give each its own module, e.g. by copy.deepcopy"
                )


def _check_drop_nothing(blocks: dict[str, nn.Module]) -> None:
    kinds = tuple(rates_of(()))
    for name, block in blocks.items():
        for path, module in block.named_modules(prefix=name):
            if isinstance(module, kinds) and any(getattr(module, key, 0) for key in RATES):
                raise ValueError(
                    f"{path} is a {type(module).__name__} that would drop besides the gate: "
                    f"skip_branches(model, schedule=...) puts the gate in its place"
                )


def _rows(
    model: nn.Module,
    schedule: Callable[..., Iterable[float]] | None,
    input_shape: Sequence[int] | None,
    refused: list[Skip],
) -> list[Skip]:
    if schedule is not None:
        layout = Layout(model)
        set_survival(model, layout.survival(schedule))
    shares = {} if input_shape is None else shares_of(model, input_shape)
    rows = [
        Skip(name, module.survival, shares.get(module))
        for name, module in model.named_modules()
        if isinstance(module, Gated)
    ]
    return rows + refused
