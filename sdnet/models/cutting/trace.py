"""What a block's `forward` does, as a graph of torch.fx."""

import inspect
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, Tracer

REQUIRED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class CannotCut(ValueError):
    """Why a branch cannot be cut out."""


class _Tracer(Tracer):
    """Makes every child module a node, and parameters and buffers too."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            raise CannotCut("it makes a tensor that does not follow from its input")
        return super().create_arg(a)


@dataclass
class Trace:
    """A block's `forward` in one mode.

    Attributes:
        by_default: whether it holds only where arguments that have a default are left out.
    """

    graph: Graph
    by_default: bool

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
    parameters = list(inspect.signature(own.forward).parameters.values())[1:]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in REQUIRED]
    defaults = {p.name: p.default for p in parameters if p.name not in needed}
    try:
        block.training = training
        if not defaults:
            return Trace(_traced(block), False)
        block.__class__ = _without_defaults(own, needed)
        fixed = _traced(block)
        block.__class__ = own
        try:
            free = _traced(block)
        except CannotCut:
            return Trace(fixed, True)
        same = _text(free, defaults) == _text(fixed, {})
        return Trace(free, False) if same else Trace(fixed, True)
    finally:
        block.__class__, block.training = own, was_training


def _without_defaults(own: type[nn.Module], needed: list[str]) -> type:
    """A class whose `forward` takes no more than it needs."""
    names = ", ".join(["self", *needed])
    known: dict[str, Any] = {"own": own}
    exec(f"def forward({names}): return own.forward({names})", known)
    return type(own.__name__, (own,), {"forward": known["forward"]})


def _traced(block: nn.Module) -> Graph:
    try:
        graph = _Tracer().trace(block)
    except CannotCut:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CannotCut(f"torch.fx cannot trace it: {type(error).__name__}: {reason}") from error
    for node in reversed(graph.nodes):  # of `x, _ = ...` that which nobody needs
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)
    return graph


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
