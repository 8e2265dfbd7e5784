"""A network of one's own, tried on a few images before its run begins."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdnet.config.errors import ConfigError, one_line
from sdnet.models.cutting.gate import Gate
from sdnet.models.gates import Gated, gated_modules, set_gates
from sdnet.models.norms import batch_norms

ROWS = 4


def is_own(module: nn.Module) -> bool:
    """Whether a class of somebody else's made it."""
    return type(module).__module__.partition(".")[0] != "sdnet"


def copied(module: nn.Module) -> nn.Module:
    """A copy to try something on.

    Raises:
        ConfigError: it holds what cannot be copied.
    """
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise ConfigError(
            f"model: {type(module).__name__} is tried on a copy before its run, and "
            f"copy.deepcopy fails on it ({type(error).__name__}: {one_line(error)})"
        ) from error


def try_network(model: nn.Module, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Computes some images, and each kind of block with open and with closed gates.

    sdnet's own networks pass unseen. The network is not changed, nor torch's generators.

    Raises:
        ConfigError: no logits (N, num_classes), a block whose gate makes no difference, or a
            network that cannot be copied.
    """
    if not any(map(is_own, (model, *gated_modules(model)))):
        return
    device = next(model.parameters()).device
    name = type(model).__name__
    called: dict[type, tuple] = {}  # the first block of each kind, and what it was called with

    def note(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        called.setdefault(type(block), (block, args, kwargs))

    tried = copied(model).train()
    blocks = gated_modules(tried)
    for block in blocks:
        block.register_forward_pre_hook(note, with_kwargs=True)
    rows = () if blocks[0].granularity == "batch" else (ROWS,)
    gates = torch.ones(len(blocks), *rows, dtype=torch.bool)
    if rows:  # what was cut out of somebody's code is run on some rows alone
        gates[[isinstance(block, Gate) for block in blocks], ROWS // 2 :] = False
    set_gates(tried, gates)
    with torch.no_grad(), _seeded(device):
        images = torch.rand(ROWS, *image_shape, device=device)
        try:
            logits = tried(images)
        except Exception as error:
            found = f"{type(error).__name__}: {one_line(error)}"
            raise ConfigError(
                f"model: {name} fails on images {tuple(images.shape)}, whose size is the data "
                f"set's: {found}"
            ) from error
    if not isinstance(logits, Tensor) or logits.shape != (ROWS, num_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"model: {name} must give logits (N, {num_classes}) for images (N, C, H, W), got "
            f"{got} for {tuple(images.shape)}"
        )
    if device.type == "meta":
        return
    for block, args, kwargs in called.values():
        if is_own(block):
            _try_gate(block, args, kwargs)


def _try_gate(block: Gated, args: tuple, kwargs: dict[str, Any]) -> None:
    """Open, closed and half open gates must make the difference that they are there for."""
    block = copied(block).train()
    device = next(block.parameters(), torch.empty(0)).device

    def output(*is_open: bool) -> Any:
        gates = is_open[:1] if block.granularity == "batch" else [is_open]
        set_gates(block, torch.tensor(gates))
        with _seeded(device):  # the same draw of dropout, should there be one
            return block(*copy.deepcopy(args), **copy.deepcopy(kwargs))

    with torch.no_grad(), _seeded(device):
        for norm in batch_norms(block):
            norm.eval()  # which would let a row see the others
        for parameter in block.parameters():  # a branch that begins with zeros shows nothing
            if parameter.is_floating_point():
                parameter.normal_()
        opened, closed = output(*[True] * ROWS), output(*[False] * ROWS)
        if not isinstance(closed, Tensor) or not (opened.isfinite() & closed.isfinite()).all():
            return
        name = type(block).__name__
        if opened.shape == closed.shape and torch.equal(opened, closed):
            raise ConfigError(
                f"model: {name} gives the same whether its gate is open or closed: its branch must "
                f"be weighted by what branch_weight(x) gives"
            )
        if block.granularity == "batch":
            return
        half = output(*[row < ROWS // 2 for row in range(ROWS)])
        if not torch.allclose(half[ROWS // 2 :], closed[ROWS // 2 :], atol=1e-5):
            raise ConfigError(
                f"model: {name} adds its branch to rows whose gate is closed: the weight has a "
                f"row for each image, and with granularity subset the branch is for the rows "
                f"that branch_weight(x) names"
            )


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Inside it torch's generators begin anew; afterwards they are what they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
