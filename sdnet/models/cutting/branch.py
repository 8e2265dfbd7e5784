"""Which nodes of a block's graph are a residual branch, and whether they can be cut out."""

from dataclasses import dataclass, field

from torch import nn
from torch.fx import Graph, Node

from sdnet.models.cutting.gate import Gate
from sdnet.models.cutting.nodes import (
    base,
    changed_in_place,
    is_check,
    is_scale,
    is_size,
    is_sum,
    named,
    needed,
    of_input,
)
from sdnet.models.cutting.trace import CannotCut


@dataclass
class Branch:
    """A branch that can be cut out of a block: what the sum needs of it, the shortcut does not.

    Attributes:
        gate: path of its gate within the block.
        ends: the node that is added.
        sum, shortcut: nodes of the block's graph.
        nodes: what runs only where the gate is open.
        inputs: what it reads, and whether that has a row for each of the block's input; None, not
            known, of other arguments. Sizes are none of them: they are taken anew, since `subset`
            gates run the branch on fewer rows.
        layers: paths of the modules that it calls.
        overwritten: whether something may change the sum in place: the block does, or gives it
            back, and what others do with it cannot be seen.
    """

    gate: str
    ends: Node
    sum: Node
    shortcut: Node
    nodes: set[Node] = field(default_factory=set)
    inputs: dict[Node, bool | None] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    overwritten: bool = False


def of_drop(block: nn.Module, graph: Graph, drop: Node, gate: str) -> Branch:
    """The branch that ends in the node `drop`; a mere scale may come between it and the sum.

    Raises:
        CannotCut: why it cannot be cut out.
    """
    ends = drop
    while True:
        users = list(ends.users)
        if len(users) != 1:
            times = f"{len(users)} times" if users else "nowhere"
            raise CannotCut(f"its result is used {times}, where one sum is needed")
        (user,) = users
        if is_sum(user):
            break
        if user.op == "output":
            raise CannotCut("its block gives it back, added to nothing")
        if not is_scale(block, user, ends):
            raise CannotCut(f"between it and the sum comes {named(user)}, which is no mere scale")
        ends = user
    others = [arg for arg in user.args if arg is not ends]
    if len(others) != 1 or not isinstance(others[0], Node):
        raise CannotCut("what it is added to is no tensor of its own")
    return _found(block, graph, Branch(gate, ends, user, others[0]))


def of_sum(block: nn.Module, graph: Graph, total: Node, gate: str) -> Branch:
    """The branch of a sum: the summand that takes more modules to compute than the other.

    Raises:
        CannotCut: why it cannot be cut out.
    """
    first, second = total.args
    assert isinstance(first, Node) and isinstance(second, Node)  # so `sums` finds them
    modules = _modules(block, first) - _modules(block, second)
    if not modules:
        raise CannotCut("which summand of its sum is the branch cannot be told")
    ends, shortcut = (first, second) if modules > 0 else (second, first)
    return _found(block, graph, Branch(gate, ends, total, shortcut))


def sums(graph: Graph) -> list[Node]:
    """Those of two things computed from the block's input."""
    rows = of_input(graph)
    return [node for node in graph.nodes if is_sum(node) and all(a in rows for a in node.args)]


def _modules(block: nn.Module, node: Node) -> int:
    """How many modules are called, with those in them, to compute a node."""
    called = [n for n in needed(node) if n.op == "call_module"]
    return sum(len(list(block.get_submodule(str(n.target)).modules())) for n in called)


def _found(block: nn.Module, graph: Graph, branch: Branch) -> Branch:
    """Fills in what belongs to a branch."""
    computed = ("call_module", "call_function", "call_method")
    branch.nodes = {
        node
        for node in needed(branch.ends) - needed(branch.shortcut)
        if node.op in computed and not is_size(node)
    }
    called = [n for n in graph.nodes if n in branch.nodes and n.op == "call_module"]
    branch.layers = tuple(
        dict.fromkeys(
            str(n.target)
            for n in called
            if not isinstance(block.get_submodule(str(n.target)), Gate)
        )
    )
    if not branch.layers:
        raise CannotCut("no module is called for it alone: there is nothing to skip")
    _check_used_inside(graph, branch)
    _find_inputs(graph, branch)
    _check_in_place(block, graph, branch)
    given = next(n.all_input_nodes for n in graph.nodes if n.op == "output")
    changed = [changed_in_place(block, node) for node in graph.nodes]
    branch.overwritten = branch.sum in (*changed, *(base(block, node) for node in given))
    return branch


def _check_used_inside(graph: Graph, branch: Branch) -> None:
    for node in graph.nodes:
        if node in branch.nodes:
            for user in node.users:
                if _is_outside(user, branch):
                    used = "the block's result" if user.op == "output" else named(user)
                    raise CannotCut(f"{named(node)} in its branch is also used by {used}")


def _is_outside(user: Node, branch: Branch) -> bool:
    """Whether a node, or for a size what it is used for, is outside of a branch."""
    if user in branch.nodes or user is branch.sum or is_check(user):
        return False
    return any(_is_outside(u, branch) for u in user.users) if is_size(user) else True


def _find_inputs(graph: Graph, branch: Branch) -> None:
    rows = of_input(graph)
    wanted = [arg for n in graph.nodes if n in branch.nodes for arg in n.all_input_nodes]
    while wanted:
        node = wanted.pop(0)
        if is_size(node):
            wanted += node.all_input_nodes
        elif node not in branch.nodes and node.op != "get_attr":
            other = any(n.op == "placeholder" for n in needed(node))
            branch.inputs[node] = True if node in rows else None if other else False


def _check_in_place(block: nn.Module, graph: Graph, branch: Branch) -> None:
    """What the branch reads must be the same whenever it runs, and whether it runs or not."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    begins = min(order[node] for node in branch.nodes)
    used = {base(block, arg) for node in branch.nodes for arg in node.all_input_nodes}
    for node in graph.nodes:
        changed = changed_in_place(block, node)
        if changed is None:
            continue
        if node is branch.sum:
            later = [n for n in graph.nodes if order[n] > order[node] and not is_size(n)]
            if any(base(block, arg) is changed for n in later for arg in n.all_input_nodes):
                raise CannotCut(f"its sum changes {named(changed)} in place, which is used later")
            continue
        if node in branch.nodes and changed not in branch.nodes:
            raise CannotCut(f"{named(node)} in its branch changes the branch's input in place")
        read = changed in branch.nodes or changed in used
        if node not in branch.nodes and read and begins < order[node] < order[branch.sum]:
            raise CannotCut(f"{named(node)} changes in place what its branch reads")
