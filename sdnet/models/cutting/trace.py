"""What a block's `forward` does, as a graph of torch.fx."""

import inspect
import operator
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.fx import Graph, Node, Proxy, Tracer

from sdnet.models.cutting.effects import PLAIN, effects_undone

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
DICTS = ("dict", "immutable_dict")


class CannotCut(ValueError):
    """Why a branch cannot be cut out."""


class _Value(Proxy):
    """Of `x += y` it notes that x changes in place, where torch.fx makes `x + y` of it."""


def _noted(operation: Any) -> Any:
    def method(self: Proxy, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return method


for _name in IN_PLACE:
    setattr(_Value, f"__{_name}__", _noted(getattr(operator, _name)))


class _Tracer(Tracer):
    """Makes every child module a node, and parameters and buffers too."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            raise CannotCut("it makes a tensor that does not follow from its input")
        if isinstance(a, dict) and type(a).__name__ not in DICTS:
            raise CannotCut(f"it makes a {type(a).__name__}: a trace would make a plain dict of it")
        return super().create_arg(a)

    def proxy(self, node: Node) -> Proxy:
        return _Value(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if not torch.is_grad_enabled() or _autocasts() != self.autocasts:
            raise CannotCut("it computes in torch.no_grad or torch.autocast, which a trace loses")
        return super().create_node(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Graph:
        self.autocasts = _autocasts()
        apply = vars(Function)["apply"]

        def checked(own: Any, *given: Any, **named: Any) -> Any:
            if any(isinstance(value, Proxy) for value in (*given, *named.values())):
                raise CannotCut(f"it calls {own.__name__}.apply, whose backward pass a trace loses")
            return apply.__get__(None, own)(*given, **named)

        try:
            Function.apply = classmethod(checked)  # type: ignore[method-assign, assignment]
            with torch.enable_grad():
                return super().trace(*args, **kwargs)
        finally:
            Function.apply = apply  # type: ignore[method-assign]


def _autocasts() -> int:
    """How many torch.autocast are entered, those that switch it off too."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


@dataclass
class Trace:
    """A block's `forward` in one mode.

    Attributes:
        by_default: whether it holds only where arguments that have a default are left out.
        settings: the block's attributes that are numbers and the like, which it read: it holds
            only for those.
    """

    graph: Graph
    by_default: bool
    settings: dict[str, Any]

    @property
    def text(self) -> list[str]:
        return _text(self.graph, {})


def trace(block: nn.Module, training: bool = True) -> Trace:
    """Traces a block.

    Raises:
        CannotCut: it cannot be traced, and why.
    """
    if "forward" in vars(block):
        raise CannotCut("its forward was replaced by hand")
    own, was_training = type(block), block.training
    asked = getattr(getattr(own.forward, "__code__", None), "co_names", ())
    if "is_tensor" in asked or {"isinstance", "Tensor"} <= set(asked):
        raise CannotCut("its forward asks whether something is a Tensor, which a trace denies")
    parameters = list(inspect.signature(own.forward).parameters.values())[1:]
    required = [p for p in parameters if p.default is p.empty and p.kind not in VARIABLE]
    defaults = {p.name: p.default for p in parameters if p not in required}
    read: set[str] = set()
    reading = _reading(own, read)
    try:
        block.training = training
        block.__class__ = _without_defaults(reading, required) if defaults else reading
        graph, by_default = _traced(block), False
        settings = _settings(block, read)
        if defaults:
            block.__class__ = reading
            try:
                free = _traced(block)
                by_default = _text(free, defaults) != _text(graph, {})
                graph = graph if by_default else free
            except CannotCut:
                by_default = True
        return Trace(graph, by_default, settings)
    finally:
        block.__class__, block.training = own, was_training


def _reading(own: type[nn.Module], read: set[str]) -> type:
    """A class that notes which attributes are read."""

    def noted(self: Any, name: str) -> Any:
        read.add(name)
        return own.__getattribute__(self, name)

    return type(own.__name__, (own,), {"__getattribute__": noted})


def _settings(block: nn.Module, read: set[str]) -> dict[str, Any]:
    absent = {
        n: v for d in (block._modules, block._parameters, block._buffers) for n, v in d.items()
    }
    found = absent | vars(block)
    return {
        name: found[name]
        for name in sorted(read & set(found) - set(vars(nn.Module())))
        if type(found[name]) in PLAIN
    }


def _without_defaults(own: type[nn.Module], required: list[inspect.Parameter]) -> type:
    """A class whose `forward` takes no more than it needs."""
    names = ", ".join(["self", *(p.name for p in required)])
    by_name = [f"{p.name}={p.name}" if p.kind is p.KEYWORD_ONLY else p.name for p in required]
    known: dict[str, Any] = {"own": own}
    exec(f"def forward({names}): return own.forward({', '.join(['self', *by_name])})", known)
    return type(own.__name__, (own,), {"forward": known["forward"]})


def _traced(block: nn.Module) -> Graph:
    try:
        with effects_undone(block) as effects:
            graph = _Tracer().trace(block)
    except CannotCut:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        where = _line(error)
        raise CannotCut(
            f"torch.fx cannot trace it: {type(error).__name__}: {reason}{where}"
        ) from error
    if effects:
        raise CannotCut(f"its forward {effects[0]}, which a trace does once for all")
    for node in reversed(graph.nodes):  # of `x, _ = ...` that which nobody needs
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)
    return graph


def _line(error: Exception) -> str:
    """Where that was raised, in the file that has the block: not in torch, nor in this one."""
    passed = (str(Path(torch.__file__).parent), __file__, "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(passed)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _text(graph: Graph, defaults: dict[str, Any]) -> list[str]:
    """What a graph does, its arguments with a default replaced by that."""
    names: dict[Node, str] = {}
    lines: list[str] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            target = str(node.target).lstrip("*")
            names[node] = repr(defaults[target]) if target in defaults else target
            continue
        names[node] = f"%{len(lines)}"
        args, kwargs = (
            torch.fx.node.map_arg(part, lambda n: _Name(names[n]))
            for part in (node.args, node.kwargs)
        )
        lines.append(f"{names[node]} {node.op} {node.target} {args} {kwargs}")
    return lines


class _Name(str):
    __repr__ = str.__str__
