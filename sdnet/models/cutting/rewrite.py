"""Gives a block the `forward` in which its branches are cut out, and keeps that through copies."""

import copy
import functools
import inspect
import itertools
import linecache
import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node

from sdnet.models.checks import shown
from sdnet.models.cutting.branch import Branch, of_drop, of_sum, sums
from sdnet.models.cutting.gate import Gate
from sdnet.models.cutting.nodes import result
from sdnet.models.cutting.source import Writer
from sdnet.models.cutting.trace import CannotCut, Trace, trace

ADDED, AGAIN = "added", "again"  # a gate's `kept`: no module stood there; for its second call
ADDED_NAME = "branch_gate"
CONTAINERS = (nn.ModuleList, nn.ModuleDict)
_classes: dict[tuple, type] = {}
_numbers = itertools.count()


def rewrite(block: nn.Module) -> dict[str, str]:
    """Rewrites a block's `forward` for the gates in it that can be used.

    Its class becomes one made of its own, of the same name.

    Returns:
        Path of a gate -> why its branch cannot be cut out. A gate that nothing calls is gone.
    """
    paths = own_gates(block)
    ends = {
        name: f"{name}.{end}"
        for name, child in _callees(block)
        if not isinstance(child, Gate) and (end := tail(child)) is not None
    }
    if _is_sequence(block):
        return _in_sequence(block, [*paths, *ends.values()])
    if not paths and not ends:
        return {}
    try:
        traces = [trace(block, training) for training in (True, False)]
    except CannotCut as error:
        return dict.fromkeys([*paths, *ends.values()], str(error))
    if traces[0].text == traces[1].text:
        traces = traces[:1]
    reasons: dict[str, str] = {}
    found = [_branches(block, t.graph, paths, ends, reasons) for t in traces]
    for path in paths:
        if path not in reasons and not block.get_submodule(path).passes:
            used = [any(b.gate == path for b in branches) for branches in found]
            if not any(used):
                put_back(block, path)
            elif not all(used):
                reasons[path] = "in evaluation its block does not call it"
    for child, path in ends.items():
        if not all(any(b.gate == path for b in branches) for branches in found):
            reasons.setdefault(path, f"{type(block).__name__}.forward adds {child} to nothing")
    cuts = [[b for b in branches if _first(b.gate) not in reasons] for branches in found]
    if any(cuts):
        _assign(block, traces, cuts)
    return reasons


def own_gates(block: nn.Module) -> list[str]:
    """Paths of the gates that a block's own `forward` calls, but for those of a second call."""
    return [n for n, child in _callees(block) if isinstance(child, Gate) and child.kept != (AGAIN,)]


def _callees(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a block's `forward` may call, by path: its children and what lists hold."""
    for name, child in block.named_children():
        if isinstance(child, CONTAINERS):
            yield from ((f"{name}.{path}", module) for path, module in _callees(child))
        else:
            yield name, child


def tail(module: nn.Module) -> str | None:
    """Path of the gate, if any, that what a module gives has passed through at its end."""
    if _is_sequence(module):
        for name, child in list(module.named_children())[-1:]:
            if isinstance(child, Gate):
                return name if child.passes else None
            end = tail(child)
            return None if end is None else f"{name}.{end}"
        return None
    for path in own_gates(module):
        if getattr(module.get_submodule(path), "passes", False):
            return path
    return None


def put_back(block: nn.Module, path: str) -> None:
    """Puts back what stood where the gate at `path` stands."""
    parent_path, _, name = path.rpartition(".")
    parent = block.get_submodule(parent_path)
    gate = parent.get_submodule(name)
    (before,) = gate.kept  # type: ignore[misc]
    for again in [n for n, g in parent.named_children() if _first(n) == name and n != name]:
        if isinstance(parent.get_submodule(again), Gate):
            delattr(parent, again)
    if isinstance(before, nn.Module):
        parent._modules[name] = before.train(gate.training)
        return
    delattr(parent, name)
    if before is None:
        setattr(parent, name, None)


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _in_sequence(block: nn.Module, paths: list[str]) -> dict[str, str]:
    """The gate that its last module ends in lets pass what the sum above will weight."""
    last = [name for name, _ in block.named_children()][-1]
    for path in paths:
        if path == last:
            block.get_submodule(path).passes = True  # type: ignore[assignment]
    midst = "it stands in the midst of an nn.Sequential, where there is no sum"
    return {path: midst for path in paths if path.partition(".")[0] != last}


def _branches(
    block: nn.Module,
    graph: Graph,
    paths: list[str],
    ends: dict[str, str],
    reasons: dict[str, str],
) -> list[Branch]:
    """The branches of one trace; puts into `reasons` why others cannot be cut out."""
    if any(block.get_submodule(path).kept == (ADDED,) for path in paths):
        wanted = [(node, _numbered(paths[0], k)) for k, node in enumerate(sums(graph), 1)]
        find: Callable[..., Branch] = of_sum
        if not wanted:
            reasons[paths[0]] = "its forward adds nothing to its input or to a shortcut"
    else:
        wanted, find = [], of_drop
        called = {path: path for path in paths} | ends
        for node in graph.nodes:
            if node.op == "call_module" and node.target in called:
                target = called[str(node.target)]
                before = sum(_first(path) == target for _, path in wanted)
                wanted.append((node, _numbered(target, before + 1)))
    branches: list[Branch] = []
    for node, path in wanted:
        try:
            if _is_result(graph, node) and len(wanted) == 1 and node.target in paths:
                block.get_submodule(path).passes = True  # type: ignore[assignment]
                continue
            if path != _first(path) and node.target in ends:
                raise CannotCut("its module is called twice")
            branch = find(block, graph, node, path)
            if any(other.sum is branch.sum for other in branches):
                raise CannotCut("it is added to another branch, and not to a shortcut")
            branches.append(branch)
            _ensure(block, path)
        except CannotCut as error:
            reasons.setdefault(_first(path), str(error))
    return branches


def _is_result(graph: Graph, node: Node) -> bool:
    return result(graph) is node and len(node.users) == 1


def _numbered(path: str, number: int) -> str:
    return path if number == 1 else f"{path}__call{number}"


def _first(path: str) -> str:
    """Of the path of a gate for a second call, that of the first one's."""
    return re.sub(r"__call\d+$", "", path)


def _ensure(block: nn.Module, path: str) -> None:
    """Makes the gate of a second call, like that of the first one."""
    if path == _first(path):
        return
    parent_path, _, name = path.rpartition(".")
    parent = block.get_submodule(parent_path)
    if not hasattr(parent, name):
        like = block.get_submodule(_first(path))
        assert isinstance(like, Gate)
        gate = Gate(like.survival, like.granularity, like.rescale, kept=AGAIN)
        parent.register_module(name, gate.train(like.training))


# The class of a rewritten block.


def _assign(block: nn.Module, traces: list[Trace], cuts: list[list[Branch]]) -> None:
    own = type(block)
    writers = [Writer(block, t.graph, b) for t, b in zip(traces, cuts, strict=True)]
    sources = [writer.source() for writer in writers]
    known = [tuple((name, id(value)) for name, value in w.known.items()) for w in writers]
    by_default = any(t.by_default for t in traces)
    settings = {name: value for t in traces for name, value in t.settings.items()}
    key = (own, *sources, *known, by_default, repr(settings))
    if key not in _classes:
        functions = [_executed(own, s, w.known) for s, w in zip(sources, writers, strict=True)]
        layers = {b.gate: b.layers for b in cuts[0]}
        _classes[key] = _class(own, functions, layers, by_default, settings)
    block.__class__ = _classes[key]


def _executed(own: type, source: str, known: dict[str, Any]) -> Callable:
    """The `forward` that a source defines; a debugger and a traceback find its lines."""
    name = f"<{own.__qualname__} cut by sdnet, {next(_numbers)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    defined = dict(known)
    exec(compile(source, name, "exec"), defined)
    return defined["forward"]


def _class(
    own: type, cuts: list[Callable], layers: dict, by_default: bool, settings: dict[str, Any]
) -> type:
    paths = tuple(layers)
    in_training, in_evaluation = cuts[0], cuts[-1]

    @functools.wraps(own.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.training and _all_whole(self, paths):
            return own.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        _check_settings(own, self, settings)
        if by_default:
            args, kwargs = _needed_arguments(own, self, args, kwargs), {}
        return (in_training if self.training else in_evaluation)(self, *args, **kwargs)

    def deepcopied(self: Any, memo: dict) -> Any:
        copied = _blank(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def copied(self: Any) -> Any:
        same = _blank(type(self))
        same.__dict__.update(self.__dict__)
        return same

    def reduced(self: Any, protocol: Any) -> tuple:
        reduce: Any = own.__reduce_ex__
        state = reduce(self, protocol)[2]
        return _blank, (own,), state, None, None, _filled

    known = {"forward": forward, "__copy__": copied, "__deepcopy__": deepcopied}
    known["__reduce_ex__"] = reduced
    named = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    return type(own.__name__, (own,), known | named | {"branch_layers": layers, "cut_of": own})


def _all_whole(block: nn.Module, paths: tuple[str, ...]) -> bool:
    """Whether in evaluation the gates of a block leave its branches as they are."""
    gates: list[Any] = [block.get_submodule(path) for path in paths]
    return all(not gate.training and gate.weight_in_evaluation() == 1.0 for gate in gates)


def _check_settings(own: type, block: nn.Module, settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        now = getattr(block, name)
        if now is not value and (type(now) is not type(value) or now != value):
            raise ValueError(
                f"{own.__name__}: its branches were cut out for {name}={value!r}, now it is "
                f"{shown(now)}: set it before skip_branches, or undo that by restore_branches first"
            )


def _needed_arguments(own: type, block: nn.Module, args: tuple, kwargs: dict) -> tuple:
    """The arguments without those that have their default anyway.

    Raises:
        ValueError: one has not.
    """
    parameters = inspect.signature(own.forward)  # type: ignore[attr-defined]
    needed = []
    for name, value in list(parameters.bind(block, *args, **kwargs).arguments.items())[1:]:
        default = parameters.parameters[name].default
        if default is inspect.Parameter.empty:
            needed.append(value)
        elif value is not default and (isinstance(value, Tensor) or value != default):
            raise ValueError(
                f"{own.__name__}.forward: its branches were cut out for {name}={default!r}, got "
                f"{shown(value)}: what it computes depends on that"
            )
    return tuple(needed)


def _blank(own: Any) -> Any:
    return own.__new__(own)


def _filled(block: Any, state: Any) -> None:
    """Ends the unpickling of a block: it is rewritten as it was."""
    block.__setstate__(state)
    reasons = rewrite(block)
    if reasons:
        path, reason = next(iter(reasons.items()))
        raise CannotCut(f"{type(block).__name__}.{path} was cut out once, and cannot be: {reason}")


def original_class(block: nn.Module) -> type | None:
    """The class that a rewritten block had before; None of others."""
    return getattr(type(block), "cut_of", None)
