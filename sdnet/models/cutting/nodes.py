"""What single nodes of a block's graph are."""

import math
import operator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from sdnet.models.cutting.trace import IN_PLACE, CannotCut, trace

SUMS = (operator.add, operator.iadd, torch.add)
PRODUCTS = (operator.mul, operator.imul, torch.mul)
SCALES = ("Identity", "LayerScale", "LayerScale2d", "Scale")  # x times a vector, channel by channel
FACTS = ("shape", "ndim", "dtype", "device", "is_cuda", "itemsize")  # of a tensor
ASKED = ("size", "dim", "numel", "stride", "ndimension", "is_contiguous", "element_size")
NUMERIC = {f for f in (*vars(operator).values(), *vars(math).values(), len) if callable(f)}
VIEWS = (  # of their first argument, or that itself
    *("view", "reshape", "permute", "transpose", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("view_as", "reshape_as", "expand", "expand_as", "t", "swapaxes", "swapdims", "movedim"),
    *("moveaxis", "chunk", "split", "tensor_split", "unbind", "narrow", "select", "unfold"),
    *("diagonal", "as_strided", "getitem", "getattr", "detach", "contiguous", "to", "type_as"),
    *("float", "double", "half", "bfloat16"),
)
SAME = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)  # give that too
OVERWRITING = (*IN_PLACE, "setitem")


def named(node: Node) -> str:
    """What a user would call it."""
    return str(node.target) if node.op in ("call_module", "call_method") else node.name


def needed(node: Node) -> set[Node]:
    """A node and all that it is computed from."""
    found, wanted = set(), [node]
    while wanted:
        node = wanted.pop()
        if node not in found:
            found.add(node)
            wanted += node.all_input_nodes
    return found


def of_input(graph: Graph) -> set[Node]:
    """What is computed from the first argument."""
    found: set[Node] = set()
    for node in graph.nodes:
        if (node.op == "placeholder" and not found) or found & set(node.all_input_nodes):
            found.add(node)
    return found


def result(graph: Graph) -> Any:
    """What a block returns."""
    return next(node.args[0] for node in graph.nodes if node.op == "output")


def function_name(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def is_sum(node: Node) -> bool:
    """Whether a node adds its two arguments."""
    called = node.op == "call_method" and node.target in ("add", "add_")
    return (called or node.target in SUMS) and len(node.args) == 2 and not node.kwargs


def is_check(node: Node) -> bool:
    return node.target is torch._assert


def is_size(node: Node) -> bool:
    """Whether a node is a size, or arithmetic of sizes: no tensor, and cheap."""
    if node.op == "call_method":
        return node.target in ASKED
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in FACTS
    if node.target not in NUMERIC and not isinstance(node.target, type):
        return False
    return bool(node.all_input_nodes) and all(map(is_size, node.all_input_nodes))


def is_scale(block: nn.Module, node: Node, scaled: Node) -> bool:
    """Whether a node multiplies by numbers that do not depend on what is scaled."""
    if node.op == "call_module":
        return _scales(block.get_submodule(str(node.target)))
    called = node.op == "call_method" and node.target in ("mul", "mul_")
    if not (called or node.target in PRODUCTS) or node.kwargs or len(node.args) != 2:
        return False
    other = node.args[1] if node.args[0] is scaled else node.args[0]
    constant = ("get_attr", "call_method", "call_function")
    return not isinstance(other, Node) or all(n.op in constant for n in needed(other))


def _scales(module: nn.Module) -> bool:
    """Whether a module does what its name says, and no more."""
    if type(module).__name__ not in SCALES or isinstance(module, nn.Identity):
        return isinstance(module, nn.Identity)
    try:
        graph = trace(module).graph
    except CannotCut:
        return False
    scaled = of_input(graph)
    return all(
        is_scale(module, node, next(arg for arg in node.all_input_nodes if arg in scaled))
        for node in scaled
        if node.op not in ("placeholder", "output")
    )


def changed_in_place(block: nn.Module, node: Node) -> Node | None:
    """The node whose tensor this one changes; None for none."""
    first = node.kwargs.get("out") or (node.args[0] if node.args else None)
    if not isinstance(first, Node) or is_size(node) or not _is_in_place(block, node):
        return None
    return base(block, first)


def base(block: nn.Module, node: Node) -> Node:
    """The node whose tensor a node is or may be a view of."""
    while _is_view(block, node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _is_in_place(block: nn.Module, node: Node) -> bool:
    if node.op == "call_module":
        module = block.get_submodule(str(node.target))
        while isinstance(module, nn.Sequential) and len(module):
            module = module[0]
        return getattr(module, "inplace", False) is True
    if node.op not in ("call_function", "call_method"):
        return False
    name = function_name(node)
    by_name = name.endswith("_") and not name.endswith("__")
    overwrites = node.op == "call_function" and name in OVERWRITING
    asked = node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None
    return by_name or overwrites or asked


def _is_view(block: nn.Module, node: Node) -> bool:
    if node.op == "call_module":
        return isinstance(block.get_submodule(str(node.target)), SAME)
    return function_name(node) in VIEWS and not is_size(node)
