"""Cuts residual branches out of a block's `forward`, so that a closed gate runs nothing of them.

The block is traced with torch.fx, every child module a leaf. A branch is what the sum needs of it
and the other summand does not. The nodes are written out as source: a function for each branch, and
the rest of `forward` with a call of `Gate.add_branch` where the sum was.
"""

import inspect
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, Tracer

from sdnet.models.gated_sum import Gate

SUMS = {operator.add, operator.iadd, torch.add}
SCALES = ("Identity", "LayerScale", "LayerScale2d", "Scale")  # x times a vector, channel by channel
SHAPES = ("shape", "ndim", "dtype", "device", "is_cuda", "itemsize")
ASKS = ("size", "dim", "numel", "stride", "ndimension", "is_contiguous", "element_size")
VIEWS = ("view", "reshape", "permute", "transpose", "flatten", "unflatten", "squeeze", "unsqueeze")
NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
COUNTS = {f for f in (*vars(operator).values(), *vars(math).values(), len) if callable(f)}


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
    """A block's `forward` in one mode, each child module a node.

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
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in NAMED]
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


def _without_defaults(own: type, needed: list[str]) -> type:
    names = ", ".join(["self", *needed])
    known: dict[str, Any] = {"own": own}
    exec(f"def forward({names}): return own.forward({names})", known)
    return type(own.__name__, (own,), {"forward": known["forward"]})


def _traced(block: nn.Module) -> Graph:
    try:
        graph = _Tracer().trace(block)
        for node in reversed(graph.nodes):  # of `x, _ = ...` that which nobody needs
            if node.target is operator.getitem and not node.users:
                graph.erase_node(node)
        return graph
    except CannotCut:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CannotCut(f"torch.fx cannot trace it: {type(error).__name__}: {reason}") from error


def _text(graph: Graph, defaults: dict[str, Any]) -> list[str]:
    """What a graph does, its arguments with a default replaced by that."""
    names: dict[Node, str] = {}
    lines = []
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


@dataclass
class Branch:
    """A branch that can be cut out of a block.

    Attributes:
        gate: path of its gate within the block.
        ends: the node that is added.
        sum, shortcut: nodes of the block's graph.
        nodes: what runs only where the gate is open.
        inputs: what it reads, and whether that has a row for each of the block's input.
        layers: paths of the modules that it calls.
        overwritten: whether something changes the sum in place.
    """

    gate: str
    ends: Node
    sum: Node
    shortcut: Node
    nodes: set[Node] = field(default_factory=set)
    inputs: dict[Node, bool] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    overwritten: bool = False


def of_drop(block: nn.Module, graph: Graph, drop: Node, gate: str) -> Branch:
    """The branch that ends in the node `drop`.

    Raises:
        CannotCut: why it cannot be cut out.
    """
    ends = drop
    while True:
        users = list(ends.users)
        if len(users) != 1:
            times = f"{len(users)} times" if users else "nowhere"
            raise CannotCut(f"its result is used {times}, where one sum is needed")
        if _is_sum(users[0]):
            break
        if users[0].op == "output":
            raise CannotCut("its block gives it back, added to nothing")
        if not _is_scale(block, users[0], ends):
            raise CannotCut(
                f"between it and the sum comes {_named(users[0])}, which is no mere scale"
            )
        ends = users[0]
    total = users[0]
    others = [arg for arg in _summands(total) if arg is not ends]
    if len(others) != 1 or not isinstance(others[0], Node):
        raise CannotCut("what it is added to is no tensor of its own")
    return _filled(block, graph, Branch(gate, ends, total, others[0]))


def of_sum(block: nn.Module, graph: Graph, total: Node, gate: str) -> Branch:
    """The branch of a sum: the summand that takes more modules to compute than the other."""
    first, second = _summands(total)
    if not isinstance(first, Node) or not isinstance(second, Node):
        raise CannotCut("it adds what is no tensor")
    weights = [_layers(block, side) for side in (first, second)]
    if weights[0] == weights[1]:
        raise CannotCut("which summand of its sum is the branch cannot be told")
    ends, shortcut = (first, second) if weights[0] > weights[1] else (second, first)
    return _filled(block, graph, Branch(gate, ends, total, shortcut))


def _layers(block: nn.Module, node: Node) -> int:
    """How many modules are called, with those in them, to compute a node."""
    called = [n for n in _needed(node) if n.op == "call_module"]
    return sum(len(list(block.get_submodule(str(n.target)).modules())) for n in called)


def sums(graph: Graph) -> list[Node]:
    """Those that add two things computed from the block's input."""
    rows = _of_input(graph)
    return [
        node for node in graph.nodes if _is_sum(node) and all(a in rows for a in _summands(node))
    ]


def _filled(block: nn.Module, graph: Graph, branch: Branch) -> Branch:
    outside = _needed(branch.shortcut)
    known = {node: _is_count(node, set()) for node in graph.nodes}
    branch.nodes = {
        node
        for node in _needed(branch.ends) - outside
        if node.op in ("call_module", "call_function", "call_method") and not known[node]
    }
    if not any(node.op != "call_module" or not _is_gate(block, node) for node in branch.nodes):
        raise CannotCut("all that its branch computes is used outside of it too")
    for node in graph.nodes:
        if node in branch.nodes:
            for user in node.users:
                if user not in branch.nodes | {branch.sum} and user.target is not torch._assert:
                    used = user.op if user.op == "output" else _named(user)
                    if known[user] and not _leaves(user, branch, known):
                        continue
                    raise CannotCut(f"{_named(node)} in its branch is also used by {used}")
    rows = _of_input(graph)
    wanted = [arg for n in graph.nodes if n in branch.nodes for arg in n.all_input_nodes]
    while wanted:
        node = wanted.pop(0)
        if node in branch.nodes or node.op == "get_attr":
            continue
        if known[node] and node.op != "placeholder":
            wanted += node.all_input_nodes  # computed once more, inside
        else:
            branch.inputs[node] = node in rows
    branch.layers = tuple(
        dict.fromkeys(
            str(n.target) for n in graph.nodes if n in branch.nodes and n.op == "call_module"
        )
    )
    _check_in_place(block, graph, branch)
    return branch


def _leaves(count: Node, branch: Branch, known: dict[Node, bool]) -> bool:
    """Whether a size that is taken in the branch is used outside, but to be checked."""
    return any(
        _leaves(user, branch, known) if known[user] else user not in branch.nodes
        for user in count.users
        if user.target is not torch._assert
    )


def _check_in_place(block: nn.Module, graph: Graph, branch: Branch) -> None:
    inside = branch.nodes | branch.inputs.keys()
    for node in graph.nodes:
        changed = _changed_in_place(block, node)
        if changed is None or node is branch.sum:
            continue
        if node in branch.nodes and changed not in branch.nodes:
            raise CannotCut(f"{_named(node)} in its branch changes the branch's input in place")
        if node not in branch.nodes and changed in inside and _comes_between(graph, node, branch):
            raise CannotCut(f"{_named(node)} changes in place what its branch reads")
    branch.overwritten = any(_changed_in_place(block, n) is branch.sum for n in graph.nodes)


def _comes_between(graph: Graph, node: Node, branch: Branch) -> bool:
    """Whether a node runs after something of the branch did, and before the sum."""
    order = {n: i for i, n in enumerate(graph.nodes)}
    return min(order[n] for n in branch.nodes) < order[node] < order[branch.sum]


def _changed_in_place(block: nn.Module, node: Node) -> Node | None:
    """The node whose tensor this one changes; None for none."""
    first = node.args[0] if node.args else None
    if not isinstance(first, Node) or not _is_in_place(block, node):
        return None
    while _is_view(block, first) and first.all_input_nodes:
        first = first.all_input_nodes[0]
    return first


def _is_in_place(block: nn.Module, node: Node) -> bool:
    if node.op == "call_module":
        module = block.get_submodule(str(node.target))
        while isinstance(module, nn.Sequential) and len(module):
            module = module[0]
        return getattr(module, "inplace", False) is True
    if node.kwargs.get("inplace") is True:
        return True
    name = getattr(node.target, "__name__", str(node.target))
    if node.op == "call_function" and name in ("iadd", "isub", "imul", "itruediv", "setitem"):
        return True
    return node.op != "get_attr" and name.endswith("_") and not name.endswith("__")


def _is_view(block: nn.Module, node: Node) -> bool:
    if node.op == "call_module":
        return isinstance(block.get_submodule(str(node.target)), nn.Identity)
    return getattr(node.target, "__name__", str(node.target)) in VIEWS


def _is_gate(block: nn.Module, node: Node) -> bool:
    return isinstance(block.get_submodule(str(node.target)), Gate)


def _is_sum(node: Node) -> bool:
    if node.op == "call_function":
        plain = node.target in SUMS
    else:
        plain = node.op == "call_method" and node.target in ("add", "add_")
    return plain and len(node.args) == 2 and not node.kwargs


def _summands(node: Node) -> tuple[Any, Any]:
    return node.args[0], node.args[1]


def _is_scale(block: nn.Module, node: Node, scaled: Node) -> bool:
    """Whether a node multiplies by numbers that do not depend on what is scaled."""
    if node.op == "call_module":
        return type(block.get_submodule(str(node.target))).__name__ in SCALES
    product = node.target in (operator.mul, torch.mul) or (
        node.op == "call_method" and node.target == "mul"
    )
    if not product or node.kwargs or len(node.args) != 2:
        return False
    other = node.args[1] if node.args[0] is scaled else node.args[0]
    return not isinstance(other, Node) or all(
        n.op in ("get_attr", "call_method", "call_function") for n in _needed(other)
    )


def _needed(node: Node) -> set[Node]:
    """A node and all that it is computed from."""
    found, wanted = set(), [node]
    while wanted:
        node = wanted.pop()
        if node not in found:
            found.add(node)
            wanted += node.all_input_nodes
    return found


def _of_input(graph: Graph) -> set[Node]:
    """What is computed from the first argument."""
    found: set[Node] = set()
    for node in graph.nodes:
        if (node.op == "placeholder" and not found) or found & set(node.all_input_nodes):
            found.add(node)
    return found


def _is_count(node: Node, seen: set[Node]) -> bool:
    """Whether a node is a size or arithmetic of sizes, no tensor."""
    if node.op == "call_method":
        return node.target in ASKS
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in SHAPES
    if node.target not in COUNTS and not isinstance(node.target, type):
        return False
    inputs = node.all_input_nodes
    return bool(inputs) and all(_is_count(n, seen) for n in inputs)


def _named(node: Node) -> str:
    return str(node.target) if node.op in ("call_module", "call_method") else node.name


# From nodes to source.


class Writer:
    """Writes a block's graph as functions.

    Attributes:
        known: what the source names: functions and constants.
    """

    def __init__(self, block: nn.Module, graph: Graph, branches: list[Branch]):
        self.block = block
        self.graph = graph
        self.branches = {branch.sum: branch for branch in branches}
        self.known: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self.lines: list[str] = []

    def source(self) -> str:
        """Functions `branch_0`, ... and `forward`."""
        for i, branch in enumerate(self.branches.values()):
            inner = [b for b in self.branches.values() if b.sum in branch.nodes]
            inputs = [n.name for n in branch.inputs]
            self._function(f"branch_{i}", inputs, self._with_counts(branch), inner, branch.ends)
        arguments, body = [], []
        for node in self.graph.nodes:
            if node.op == "placeholder":
                default = f"={self._constant(node.args[0])}" if node.args else ""
                arguments.append(f"{node.target}{default}")
            else:
                body.append(node)
        self._function("forward", arguments, body, list(self.branches.values()), None)
        return "\n".join(self.lines) + "\n"

    def _with_counts(self, branch: Branch) -> list[Node]:
        """A branch's nodes in order, with the sizes and parameters that it needs."""
        needed, wanted = set(branch.nodes), list(branch.nodes)
        while wanted:
            for arg in wanted.pop().all_input_nodes:
                if arg not in needed and arg not in branch.inputs:
                    needed.add(arg)
                    wanted.append(arg)
        return [n for n in self.graph.nodes if n in needed]

    def _function(
        self,
        name: str,
        arguments: list[str],
        body: list[Node],
        cuts: list[Branch],
        ends: Node | None,
    ) -> None:
        hidden = set().union(*(b.nodes for b in cuts)) if cuts else set()
        shown = [n for n in body if n not in hidden]
        self.lines.append(f"def {name}({', '.join(['self', *arguments])}):")
        for node in self.graph.nodes:  # torch.fx renames what would hide a builtin
            if node.op == "placeholder" and ends is None:
                given = str(node.target).lstrip("*")
                if given != node.name:
                    self.lines.append(f"    {node.name} = {given}")
        for node in self._used(shown, cuts, ends):
            if node.op == "output":
                self.lines.append(f"    return {self._format(node.args[0])}")
            else:
                self.lines.append(f"    {node.name} = {self._expression(node, cuts)}")
        if ends is not None:
            self.lines.append(f"    return {ends.name}")

    def _used(self, shown: list[Node], cuts: list[Branch], ends: Node | None) -> Iterator[Node]:
        """Without the sizes and parameters that only a branch needs, which has its own."""
        kept: set[Node] = {ends} if ends is not None else set()
        at = {b.sum: b for b in cuts}
        for node in reversed(shown):
            idle = node.op == "get_attr" or _is_count(node, set())
            if node.target is torch._assert and any(_needed(node) & b.nodes for b in cuts):
                continue
            if node in kept or not idle:
                kept.add(node)
                if node in at:
                    kept |= {at[node].shortcut, *at[node].inputs}
                else:
                    kept |= set(node.all_input_nodes)
        return (node for node in shown if node in kept)

    def _expression(self, node: Node, cuts: list[Branch]) -> str:
        for branch in cuts:
            if branch.sum is node:
                number = list(self.branches).index(node)
                inputs = _tuple(n.name for n in branch.inputs)
                rows = _tuple(str(has_rows) for has_rows in branch.inputs.values())
                return (
                    f"{_path(branch.gate)}.add_branch({branch.shortcut.name}, branch_{number}, "
                    f"self, {inputs}, {rows}, {branch.overwritten})"
                )
        given = [self._format(arg) for arg in node.args]
        given += [f"{key}={self._format(arg)}" for key, arg in node.kwargs.items()]
        if node.op == "get_attr":
            return _path(str(node.target))
        if node.op == "call_module":
            if _is_gate(self.block, node) and not self.block.get_submodule(str(node.target)).passes:
                return given[0]  # the sum sees to it
            return f"{_path(str(node.target))}({', '.join(given)})"
        if node.op == "call_method":
            return f"{given[0]}.{node.target}({', '.join(given[1:])})"
        if node.target is getattr and len(node.args) == 2:
            return f"{given[0]}.{node.args[1]}"
        return f"{self._constant(node.target)}({', '.join(given)})"

    def _format(self, arg: Any) -> str:
        if isinstance(arg, Node):
            return arg.name
        if isinstance(arg, tuple):
            return _tuple(map(self._format, arg))
        if isinstance(arg, list):
            return f"[{', '.join(map(self._format, arg))}]"
        if isinstance(arg, dict):
            return "{" + ", ".join(f"{k!r}: {self._format(v)}" for k, v in arg.items()) + "}"
        if isinstance(arg, slice):
            return f"slice({', '.join(map(self._format, (arg.start, arg.stop, arg.step)))})"
        return self._constant(arg)

    def _constant(self, value: Any) -> str:
        if value is None or value is Ellipsis or type(value) in (bool, int, str):
            return "..." if value is Ellipsis else repr(value)
        if type(value) is float and math.isfinite(value):
            return repr(value)
        if id(value) not in self._names:
            name = getattr(value, "__name__", type(value).__name__).strip("_")
            self._names[id(value)] = f"K{len(self._names)}_{name}"  # no node is named so
            self.known[self._names[id(value)]] = value
        return self._names[id(value)]


def _tuple(parts: Any) -> str:
    listed = list(parts)
    return f"({', '.join(listed)}{',' if len(listed) == 1 else ''})"


def _path(target: str) -> str:
    """`self.a.b`, also where a name is a number, as in an nn.Sequential."""
    text = "self"
    for part in target.split("."):
        text = f"{text}.{part}" if part.isidentifier() else f"getattr({text}, {part!r})"
    return text


def calls(graph: Graph, target: str) -> list[Node]:
    """Where a block calls the module of that path."""
    return [n for n in graph.nodes if n.op == "call_module" and n.target == target]


def result(graph: Graph) -> Any:
    """What a block returns."""
    return next(n.args[0] for n in graph.nodes if n.op == "output")
