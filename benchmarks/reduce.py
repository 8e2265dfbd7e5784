"""Ways to average gradients over ranks when gates close blocks, side by side.

    torchrun --nproc-per-node=2 benchmarks/reduce.py [--nets resnet20] [--draws 12]

One thread per rank on CPU, one device on CUDA; fp32, there without TF32. Closed blocks get zero
gradients. A step is forward, backward, reduction and SGD on the slowest rank; `ratio` is to the
step without reduction.
"""

import argparse
import time
from copy import deepcopy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from measure import ieee, synchronize
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

from sdnet.models.gates import GateSampler, set_gates
from sdnet.models.resnet import ResNet, resnet_cifar, resnet_imagenet
from sdnet.models.schedules import LinearDecay
from sdnet.training.distributed import World
from sdnet.training.optim import zero_skipped

NETS = {  # network, image size, images per rank
    "resnet20": (lambda: resnet_cifar(20, schedule=LinearDecay(0.5)), 32, 32),
    "resnet110": (lambda: resnet_cifar(110, schedule=LinearDecay(0.5)), 32, 32),
    "resnet50": (lambda: resnet_imagenet(50, schedule=LinearDecay(0.5)), 64, 8),
}
REDUCTIONS = ("none", "DDP find_unused", "DDP touch", "one all-reduce")


class Touch(torch.autograd.Function):
    """The identity on the first argument; tells DDP that the others have no gradient, i.e. zero."""

    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, *[None] * (len(ctx.needs_input_grad) - 1)

    @staticmethod
    def hook(block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output if block.gate else Touch.apply(output, *branch_parameters(block))


def branch_parameters(block: nn.Module) -> list[nn.Parameter]:
    """What a closed gate leaves unused, which a projection shortcut is not."""
    return [p for name, p in block.named_parameters() if not name.startswith("downsample.")]


class Contender:
    """A network with one of the `REDUCTIONS`."""

    def __init__(self, reduction: str, net: ResNet):
        self.reduction, self.net, self.model = reduction, net, net
        self.parameters = list(net.parameters())
        self.branches = [branch_parameters(block) for block in net.blocks]
        self.optimizer = torch.optim.SGD(net.parameters(), 1e-3, 0.9, 0, 1e-4, nesterov=True)
        self.buffer = None
        for block in net.blocks if reduction == "DDP touch" else ():
            block.register_forward_hook(Touch.hook)
        if reduction.startswith("DDP"):
            options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
            self.model = DDP(net, find_unused_parameters=reduction == REDUCTIONS[1], **options)

    def reduced(self, gates: Tensor) -> list[nn.Parameter]:
        if self.reduction != "one all-reduce":
            return [] if self.reduction == "none" else self.parameters
        closed = {p for i in (~gates).nonzero() for p in self.branches[i]}
        return [p for p in self.parameters if p not in closed]

    def compute_gradients(self, images: Tensor, labels: Tensor, gates: Tensor) -> None:
        set_gates(self.net, gates)
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images), labels)
        if self.reduction == "one all-reduce":  # and BatchNorm's statistics, unlike the others
            world = World(dist.get_rank(), dist.get_world_size(), buffer=self.buffer)
            (loss / world.size).backward()
            world.reduce(self.net, loss.detach().view(1))
            self.buffer = world.buffer
        else:
            loss.backward()  # DDP takes the mean over ranks
        zero_skipped(self.optimizer)


def check_gradients(contenders: list[Contender], *batch: Tensor) -> None:
    """Raises AssertionError unless all give the mean over ranks of the unreduced gradients."""
    for contender in contenders:
        contender.compute_gradients(*batch)
    for unreduced, *others in zip(*(c.parameters for c in contenders), strict=True):
        expected = unreduced.grad / dist.get_world_size()
        dist.all_reduce(expected)
        atol = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close([p.grad for p in others], [expected] * 3, rtol=1e-4, atol=atol)


def compare(name: str, draws: int, device: torch.device) -> None:
    make_net, size, batch = NETS[name]
    torch.manual_seed(0)
    net = make_net().to(device, memory_format=torch.channels_last)
    contenders = [Contender(reduction, deepcopy(net)) for reduction in REDUCTIONS]
    torch.manual_seed(1 + dist.get_rank())
    images = torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,)).to(device)
    drawn = torch.stack([GateSampler(net, seed=0).draw(i, batch) for i in range(draws)])
    for gates in (torch.ones_like(drawn[0]), drawn[drawn.sum(1).argmin()]):
        check_gradients(contenders, images, labels, gates)  # before any step
    for setting, vectors in {"constant": torch.ones_like(drawn), "p_L 0.5": drawn}.items():
        seconds = torch.zeros(draws, len(contenders), device=device)
        for i in [0, *range(draws)]:  # the first is the warm-up
            for k in range(len(contenders)):
                k = (k + i) % len(contenders)  # each takes each place
                dist.barrier()
                start = time.perf_counter()
                contenders[k].compute_gradients(images, labels, vectors[i])
                contenders[k].optimizer.step()
                synchronize()
                seconds[i, k] = time.perf_counter() - start
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        for k, contender in enumerate(contenders if dist.get_rank() == 0 else ()):
            ms, ratio = 1e3 * seconds[:, k].median(), (seconds[:, k] / seconds[:, 0]).median()
            mb = sum(p.nbytes for g in vectors for p in contender.reduced(g)) / draws / 1e6
            row = f"{setting:9} {contender.reduction:16} {ms:9.1f} {ratio:7.2f} {mb:9.2f}"
            print(f"{name:10} {row}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--draws", type=int, default=12, help="gate vectors, each timed once")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.device(f"cuda:{dist.get_node_local_rank()}" if cuda else "cpu")
    ieee(device) if cuda else torch.set_num_threads(1)
    dist.init_process_group("nccl" if cuda else "gloo")
    if dist.get_rank() == 0:
        print("network    gates     reduction          ms/step   ratio        MB")
    for name in args.nets:
        compare(name, args.draws, device)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
