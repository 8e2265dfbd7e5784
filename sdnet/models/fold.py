"""Weights for a network without gates: each branch's factor in evaluation goes into its last layer.

With `rescale="eval"` that factor is p_l. What a branch ends in is read off its traced `forward`.
"""

from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node

from sdnet.models.cutting.gate import Gate
from sdnet.models.cutting.nodes import ASKED, FACTS, VIEWS, result
from sdnet.models.cutting.trace import CannotCut, trace
from sdnet.models.gates import Gated
from sdnet.models.layout import gate_paths

# What gives a multiple of its output where its weight and bias are multiplied.
LAYERS: tuple[Any, ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS += (nn.BatchNorm2d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
AFFINE = {layer.forward for layer in LAYERS}
# As functions, with the place and the name of weight and bias among their arguments.
FUNCTIONS = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), ((1, "weight"), (2, "bias"))),
    **dict.fromkeys(("layer_norm", "group_norm"), ((2, "weight"), (3, "bias"))),
    "batch_norm": ((3, "weight"), (4, "bias")),
    "shifted_window_attention": ((2, "proj_weight"), (10, "proj_bias")),  # torchvision's Swin
}
# What gives a multiple of its output where its input is one: shapes, and what evaluation passes by.
PASSING = (*VIEWS, "contiguous", "getitem", "roll", "dropout", "drop_path", "stochastic_depth")


def fold(model: nn.Module) -> dict[str, Tensor]:
    """A `state_dict` with which the same network without gates gives what `model` gives.

    Args:
        model: in evaluation mode; it stays as it is.

    Raises:
        ValueError: a branch has a factor other than 1, and ends in what cannot take it.
    """
    own = model.state_dict(keep_vars=True)
    state = {name: tensor.detach().clone() for name, tensor in own.items()}
    names: dict[int, list[str]] = {}
    for name, tensor in own.items():
        names.setdefault(id(tensor), []).append(name)
    for path, block in model.named_modules():
        try:
            for weight, tensors in _factors(block):
                for tensor in tensors:
                    known = names.get(id(tensor), [])
                    if len(known) != 1:
                        raise CannotCut("its last layer has no weights of its own")
                    state[known[0]] *= weight
        except CannotCut as error:
            raise ValueError(
                f"the branch of {path} cannot take its survival probability in: {error}"
            ) from error
    return state


def _factors(block: nn.Module) -> list[tuple[float, list[Tensor]]]:
    """For each branch of a block with a factor other than 1: that, and the weights to take it."""
    gates: list[Any] = [block.get_submodule(path) for path in gate_paths(block)]
    if isinstance(block, Gated) and not isinstance(block, Gate):
        gates = [block]
    if any(gate.training for gate in gates):
        raise CannotCut("it is in training mode: call .eval() before")
    weights = sorted(gate.weight_in_evaluation() for gate in gates)
    if all(weight == 1.0 for weight in weights):
        return []
    graph = trace(block, training=False).graph
    found = [(node.kwargs["alpha"], node.args[1]) for node in graph.nodes if "alpha" in node.kwargs]
    if not found:  # in one's own block
        pairs = [pair for node in graph.nodes for pair in _products(node)]
        found = [(factor, node) for factor, node in pairs if factor == weights[0]]
    if sorted(weight for weight, _ in found) != weights:
        raise CannotCut("its block does not multiply by that")
    return [(weight, _taking(block, graph, end)) for weight, end in found if weight != 1.0]


def _taking(block: nn.Module, graph: Graph, end: Any) -> list[Tensor]:
    tensors = _scaled(block, graph, end)
    if tensors is None:
        raise CannotCut("it computes nothing")
    return tensors


def _scaled(module: nn.Module, graph: Graph, node: Any) -> list[Tensor] | None:
    """What has to be multiplied so that a node gives a multiple; None: the module's first input."""
    first = next(n for n in graph.nodes if n.op == "placeholder")
    while node is not first:
        if not isinstance(node, Node) or sum(not _asks(user) for user in node.users) != 1:
            raise CannotCut("what it ends in is used elsewhere too")
        name = getattr(node.target, "__name__", str(node.target))
        if node.op == "call_module":
            if sum(n.target == node.target for n in graph.nodes) > 1:
                raise CannotCut(f"its last layer, {node.target}, is called twice")
            tensors = _of_module(module.get_submodule(str(node.target)))
            if tensors is not None:
                return tensors
            node = node.args[0]
        elif name in FUNCTIONS:
            given = [
                node.args[place] if place < len(node.args) else node.kwargs.get(argument)
                for place, argument in FUNCTIONS[name]
            ]
            return [_parameter(module, arg) for arg in given if arg is not None]
        elif name in PASSING:
            node = node.args[0]
        else:
            node, tensors = _of_product(module, node)
            if tensors:
                return tensors
    return None


def _asks(node: Node) -> bool:
    """Whether a node only asks for a tensor's size."""
    return node.target in ASKED or (node.target is getattr and node.args[1] in FACTS)


def _of_module(module: nn.Module) -> list[Tensor] | None:
    if isinstance(module, nn.MultiheadAttention):
        module = module.out_proj
    if type(module).forward in AFFINE:
        given = [getattr(module, name, None) for name in ("weight", "bias")]
        if given[0] is None:
            raise CannotCut(f"it ends in a {type(module).__name__} without weight")
        return [tensor for tensor in given if isinstance(tensor, Tensor)]
    graph = trace(module, training=False).graph
    return _scaled(module, graph, result(graph))


def _products(node: Node) -> list[tuple[Any, Any]]:
    """Of a product both ways to call one its factor, and the other what is multiplied."""
    name = getattr(node.target, "__name__", str(node.target))
    if name not in ("mul", "imul", "mul_") or len(node.args) != 2:
        return []
    a, b = node.args
    return [(a, b), (b, a)]


def _of_product(module: nn.Module, node: Node) -> tuple[Any, list[Tensor]]:
    """Of a product with a number: the rest; with a parameter, as in LayerScale: that."""
    for factor, rest in _products(node):
        if isinstance(factor, int | float):
            return rest, []
        try:
            return rest, [_parameter(module, factor)]
        except CannotCut:
            continue
    raise CannotCut(f"it ends in {node.name}, which is no linear layer and no normalization")


def _parameter(module: nn.Module, node: Any) -> Tensor:
    """The parameter that a node is, or a view of."""
    while isinstance(node, Node) and node.target in VIEWS:
        node = node.args[0]
    if not isinstance(node, Node) or node.op != "get_attr":
        raise CannotCut("the weight of its last layer is computed")
    path, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(path), name)
