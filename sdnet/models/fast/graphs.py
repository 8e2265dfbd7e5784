"""CUDA graphs of a ResNet's stem, blocks and head, each started by one launch.

On small images a GPU waits for the host, which starts some twenty kernels for a block. A graph is a
recording of them, started as one. With `batch` gates an open block is a function of its input
alone: it is recorded by itself, and a step plays the recordings of its open blocks. Their memory
lies end to end, a block's output being the next one's input, so that nothing is copied but where
blocks between are skipped.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Optimizer

from sdnet.models.blocks import ResidualBlock
from sdnet.models.gates import gated_modules, granularity_of
from sdnet.models.norms import batch_norms, statistics_restored
from sdnet.models.resnet import ResNet

WARM_UP = 3  # times that each part is run before: cuDNN looks for its fastest kernels meanwhile


def recordable(model: nn.Module) -> bool:
    """Whether `model` is one of sdnet's ResNets whose blocks are open or closed as a whole."""
    return (
        type(model).forward is ResNet.forward
        and all(type(block).forward is ResidualBlock.forward for block in gated_modules(model))
        and granularity_of(model) == "batch"
    )


class Recording:
    """Work that a CUDA device has been given once, to be given again as one piece.

    Args:
        work: on tensors that stay where they are; what it does on the host is done this once.
        pool: memory that is shared by recordings which are played in the order of their making.
    """

    def __init__(self, work: Callable[[], Any], pool: Any = None):
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may ask CUDA for something meanwhile: one that pins memory does.
        with torch.cuda.graph(self.graph, pool, capture_error_mode="thread_local"):
            self.result = work()
        self.play = self.graph.replay


class Part:
    """A part of a network, and its recordings, forward and backward.

    Args:
        function: of a tensor.
        modules: whose parameters it uses.
        instead: of what this is computed: of an open block, where this is the closed one. Results
            are put where that has them.
    """

    def __init__(
        self, function: Callable, modules: Sequence[nn.Module], instead: "Part | None" = None
    ):
        self.function, self.instead = function, instead
        self.parameters = [p for m in modules for p in m.parameters()]
        norms = [n for m in modules for n in batch_norms(m)]
        self.counts: list[Any] = [n.num_batches_tracked for n in norms if _counted_on_cpu(n)]
        # Where they lie: what it takes and makes, and what the next part takes.
        self.input: Tensor
        self.output: Tensor
        self.following: Tensor
        self.gradient: Tensor
        self.gradients: list[Tensor]
        self.input_gradient: Any  # of the first part None

    def record_forward(self, x: Tensor, pool: Any) -> Tensor:
        """Records it for inputs in the memory of `x`; returns the output's memory."""
        self.input = x
        self.forward = Recording(self._forward, pool)
        self.output = self.instead.output if self.instead else self.forward.result
        return self.output

    def _forward(self) -> Tensor:
        self.tape = self.function(self.input)
        if self.instead:
            self.instead.output.copy_(self.tape.data)
        return self.tape.data

    def record_backward(self, gradient: Tensor, pool: Any) -> Any:
        """Records it for gradients in the memory of `gradient`; returns that of the input's."""
        self.gradient = gradient
        self.backward = Recording(self._backward, pool)
        if self.instead:
            self.gradients = self.instead.gradients_of(self.parameters)
            self.input_gradient = self.instead.input_gradient
        else:
            self.gradients, self.input_gradient = self.backward.result
        return self.input_gradient

    def _backward(self) -> tuple[list[Tensor], Any]:
        wanted = [*self.parameters, *([self.input] if self.input.requires_grad else [])]
        tape, self.tape = self.tape, None
        found = list(torch.autograd.grad(tape, wanted, self.gradient)) if wanted else []
        last: Any = found.pop() if self.input.requires_grad else None
        if self.instead:
            self.instead.input_gradient.copy_(last)
            places = self.instead.gradients_of(self.parameters)
            for place, gradient in zip(places, found, strict=True):
                place.copy_(gradient)
        return found, last

    def gradients_of(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        own = dict(zip(map(id, self.parameters), self.gradients, strict=True))
        return [own[id(parameter)] for parameter in parameters]

    def hand_over(self) -> None:
        """Gives the parameters the gradients that the recording has."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient


class Recorded:
    """A network and its optimizer that play recordings in training; called as the network is.

    They are made of the first whole mini-batch. A smaller one runs the network itself, and so does
    evaluation. Gradients lie in the recordings' memory, which the next step overwrites.

    Args:
        model: see `recordable`; on its device, in its memory format.
        optimizer: of its parameters. SGD's step is recorded too, anew when a rate has changed.
        rows: images of a whole mini-batch.
        zero_skipped: whether the parameters of a closed block get gradients, of zero.
    """

    def __init__(self, model: ResNet, optimizer: Optimizer, rows: int, zero_skipped: bool):
        self.model, self.optimizer = model, optimizer
        self.rows, self.zero_skipped = rows, zero_skipped
        self.update: Recording | None = None
        self.rates: list[float] | None = None  # of the last step
        self.parts: list[Part] = []
        self.closed: list[Part | None] = []  # what is computed where a part's gate is closed
        self.played = False  # the last pass: whether gradients lie in the recordings' memory
        device = next(model.parameters()).device
        self.anchor = torch.zeros((), device=device, requires_grad=True)

    def __call__(self, images: Tensor) -> Tensor:
        whole = len(images) == self.rows and torch.is_grad_enabled()
        self.played = self.model.training and whole
        if not self.played:
            return self.model(images)
        if not self.parts:
            self._record(images)
        return _Played.apply(images, self.anchor, self)

    def step(self) -> None:
        """The optimizer's."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        changed, self.rates = rates != self.rates, rates
        if changed:
            self.update = None
        # Only where all gradients lie where they lay in the step before.
        if changed or not (self.played and self.zero_skipped and type(self.optimizer) is SGD):
            self.optimizer.step()
            return
        if self.update is None:
            self.update = Recording(self.optimizer.step)
        self.update.play()

    def play(self, x: Tensor) -> Tensor:
        self.path: list[Part] = []
        self.skipped: list[Part] = []
        gates = [True, *(block.gate for block in self.model.blocks), True]
        for part, closed, gate in zip(self.parts, self.closed, gates, strict=True):
            taken: Part | None = part
            if gate is False:
                self.skipped.append(part)
                taken = closed
            if taken is None:
                continue
            if x is not taken.input:
                taken.input.copy_(x)
            taken.forward.play()
            self.path.append(taken)
            x = taken.following
        if counts := [count for part in self.path for count in part.counts]:
            torch._foreach_add_(counts, 1)
        return x

    def play_back(self, gradient: Tensor) -> None:
        for part in reversed(self.path):
            if gradient is not part.gradient:
                part.gradient.copy_(gradient)
            part.backward.play()
            part.hand_over()
            gradient = part.input_gradient
        # Now, and not before: until it was played back, a block may have had its activations where
        # the gradients of an earlier one are kept.
        if self.zero_skipped and self.skipped:
            given = {id(g) for part in self.path for g in part.gradients}
            missing = [g for part in self.skipped for g in part.gradients if id(g) not in given]
            torch._foreach_zero_(missing)
            for part in self.skipped:
                part.hand_over()

    def _record(self, images: Tensor) -> None:
        self._make_parts()
        gates = [block.gate for block in self.model.blocks]
        try:
            with _not_counted(self.model), statistics_restored(self.model), _autocast():
                self._warm_up(images)
                self._record_parts(images)
        finally:
            for block, gate in zip(self.model.blocks, gates, strict=True):
                block.gate = gate

    def _make_parts(self) -> None:
        model, all_blocks = self.model, cast(list[ResidualBlock], self.model.blocks)
        blocks = [Part(partial(_open, block), [block]) for block in all_blocks]
        closed = [
            None if block.closed_is_identity() else Part(block.closed, _shortcut(block), part)
            for block, part in zip(all_blocks, blocks, strict=True)
        ]
        stem = Part(model.stem, [m for m in (model.conv1, model.bn1) if m is not None])
        head = Part(model.head, [m for m in (model.bn_last, model.fc) if m is not None])
        self.parts, self.closed = [stem, *blocks, head], [None, *closed, None]

    def _warm_up(self, images: Tensor) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                x = images
                for part, closed in zip(self.parts, self.closed, strict=True):
                    x = x.detach().requires_grad_(part is not self.parts[0])
                    for one in (closed, part):
                        if one is not None:
                            out = one.function(x)
                            wanted = [*one.parameters, *([x] if x.requires_grad else [])]
                            torch.autograd.grad(out, wanted, torch.ones_like(out))
                    x = out
        torch.cuda.current_stream().wait_stream(stream)

    def _record_parts(self, images: Tensor) -> None:
        pool = torch.cuda.graph_pool_handle()
        x = torch.empty_like(images)
        for part, closed in zip(self.parts, self.closed, strict=True):
            x = x.detach().requires_grad_(part is not self.parts[0])
            out = part.record_forward(x, pool)
            if closed is not None:
                closed.record_forward(x, pool)
            x = out
        gradient = torch.empty_like(x)
        following = x
        for part, closed in zip(reversed(self.parts), reversed(self.closed), strict=True):
            part.following = following
            found = part.record_backward(gradient, pool)
            if closed is not None:
                closed.following = following
                closed.record_backward(gradient, pool)
            gradient, following = found, part.input


class _Played(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, anchor: Tensor, recorded: Recorded) -> Tensor:
        ctx.recorded = recorded
        return recorded.play(images).detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:  # type: ignore[override]
        ctx.recorded.play_back(gradient)
        return None, None, None


def _open(block: ResidualBlock, x: Tensor) -> Tensor:
    block.gate = True
    return block(x)


def _shortcut(block: ResidualBlock) -> list[nn.Module]:
    return [] if block.downsample is None else [block.downsample]


@contextmanager
def _autocast() -> Iterator[None]:
    on, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with torch.autocast("cuda", dtype, on, cache_enabled=False):
        yield


@contextmanager
def _not_counted(model: nn.Module) -> Iterator[None]:
    """Takes away the counts of batches that are on the CPU, out of a recording's reach."""
    counted = [(m, m.num_batches_tracked) for m in batch_norms(model) if _counted_on_cpu(m)]
    for m, _ in counted:
        m.num_batches_tracked = None
    try:
        yield
    finally:
        for m, count in counted:
            m.num_batches_tracked = count


def _counted_on_cpu(norm: _BatchNorm) -> bool:
    count = norm.num_batches_tracked
    return count is not None and count.device.type == "cpu"
