"""From a block's graph back to Python: a function for each branch, and `forward` without them."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from sdnet.models.cutting.branch import Branch
from sdnet.models.cutting.gate import Gate
from sdnet.models.cutting.nodes import is_check, is_size, needed


class Writer:
    """Writes a block's `forward` with its branches cut out.

    Attributes:
        known: what the source names: functions and constants.
    """

    def __init__(self, block: nn.Module, graph: Graph, branches: list[Branch]):
        self.block = block
        self.graph = graph
        self.branches = branches
        self.known: dict[str, Any] = {}
        self._names: dict[int, str] = {}

    def source(self) -> str:
        """Functions `BRANCH_0`, ... (torch.fx names no node in capitals) and `forward`."""
        functions = [self._branch(number, b) for number, b in enumerate(self.branches)]
        return "\n".join([*functions, self._forward()])

    def _branch(self, number: int, branch: Branch) -> str:
        names = ", ".join(["self", *(node.name for node in branch.inputs)])
        inner = [b for b in self.branches if b.sum in branch.nodes]
        within = set(branch.nodes)
        for node in list(branch.nodes):
            within |= _until(node, branch.inputs)  # sizes and parameters
        body = [node for node in self.graph.nodes if node in within]
        lines = self._statements(body, inner, {branch.ends})
        return _function(f"BRANCH_{number}({names})", [*lines, f"return {branch.ends.name}"])

    def _forward(self) -> str:
        arguments, lines, body = ["self"], [], []
        for node in self.graph.nodes:
            if node.op != "placeholder":
                body.append(node)
                continue
            default = f"={self._constant(node.args[0])}" if node.args else ""
            arguments.append(f"{node.target}{default}")
            given = str(node.target).lstrip("*")
            if node.name != given:  # torch.fx renames what would hide a builtin
                lines.append(f"{node.name} = {given}")
        lines += self._statements(body, self.branches, set())
        return _function(f"forward({', '.join(arguments)})", lines)

    def _statements(self, body: list[Node], cuts: list[Branch], kept: set[Node]) -> Iterator[str]:
        """Those nodes of a body that are not in one of the branches cut out of it.

        Sizes and parameters that only those need are left out, and checks of what is in them.
        """
        hidden = {node for branch in cuts for node in branch.nodes}
        sums = {branch.sum: branch for branch in cuts}
        shown = []
        for node in reversed(body):
            idle = node.op == "get_attr" or is_size(node)
            lost = is_check(node) and needed(node) & hidden
            if node in hidden or lost or (idle and node not in kept):
                continue
            shown.append(node)
            if node in sums:
                kept |= {sums[node].shortcut, *sums[node].inputs}
            else:
                kept |= set(node.all_input_nodes)
        for node in reversed(shown):
            if node.op == "output":
                yield f"return {self._format(node.args[0])}"
            elif node in sums:
                yield f"{node.name} = {self._gated(sums[node])}"
            else:
                yield f"{node.name} = {self._expression(node)}"

    def _gated(self, branch: Branch) -> str:
        inputs = _tuple(node.name for node in branch.inputs)
        rows = _tuple(str(has_rows) for has_rows in branch.inputs.values())
        return (
            f"{_path(branch.gate)}.add_branch({branch.shortcut.name}, "
            f"BRANCH_{self.branches.index(branch)}, self, {inputs}, {rows}, {branch.overwritten})"
        )

    def _expression(self, node: Node) -> str:
        target = str(node.target)
        given = [self._format(arg) for arg in node.args]
        given += [f"{key}={self._format(arg)}" for key, arg in node.kwargs.items()]
        if node.op == "get_attr":
            return _path(target)
        if node.op == "call_module":
            module = self.block.get_submodule(target)
            if isinstance(module, Gate) and not module.passes:
                return given[0]  # the sum asks it
            return f"{_path(target)}({', '.join(given)})"
        if node.op == "call_method":
            return f"{given[0]}.{target}({', '.join(given[1:])})"
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
            return f"{{{', '.join(f'{key!r}: {self._format(v)}' for key, v in arg.items())}}}"
        if isinstance(arg, slice):
            return f"slice({', '.join(map(self._format, (arg.start, arg.stop, arg.step)))})"
        return self._constant(arg)

    def _constant(self, value: Any) -> str:
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        if type(value) is float and math.isfinite(value):
            return repr(value)
        if id(value) not in self._names:
            name = getattr(value, "__name__", type(value).__name__).strip("_")
            self._names[id(value)] = f"K{len(self._names)}_{name}"  # no node is named so
            self.known[self._names[id(value)]] = value
        return self._names[id(value)]


def _until(node: Node, inputs: Iterable[Node]) -> set[Node]:
    """What a node is computed from, no further than some inputs."""
    found, wanted = set(), [node]
    while wanted:
        for arg in wanted.pop().all_input_nodes:
            if arg not in found and arg not in inputs:
                found.add(arg)
                wanted.append(arg)
    return found


def _function(head: str, lines: Iterable[str]) -> str:
    return "\n".join([f"def {head}:", *(f"    {line}" for line in lines), ""])


def _tuple(parts: Iterable[str]) -> str:
    listed = list(parts)
    return f"({', '.join(listed)}{',' if len(listed) == 1 else ''})"


def _path(target: str) -> str:
    """`self.a.b`, also where a name is a number, as in an nn.Sequential."""
    text = "self"
    for part in target.split("."):
        text = f"{text}.{part}" if part.isidentifier() else f"getattr({text}, {part!r})"
    return text
