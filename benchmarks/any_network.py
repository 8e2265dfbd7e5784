"""Time of a training step of timm's and torchvision's networks: their masks against gates.

    python benchmarks/any_network.py                        # every network: half an hour
    python benchmarks/any_network.py --nets swin_t --rates 0.2 --profile

A step is forward, backward and SGD with momentum on one fixed batch. Each network takes turns with
itself as it comes, which computes every branch and multiplies by zero (for a network that has no
drop path: at constant depth), and with `sdnet.skip_branches` behind it, with `batch` and with
`subset` gates. `rate` is the drop-path rate of the last block; they rise linearly, as timm and
torchvision spread them. The gate vectors' average is in each stage the expected depth
(`fixed_gates`); `subset` runs the exact number of rows.

`bound` is the share of the multiply-adds that these gates leave; `saved` is how much of the
possible saving the clock shows: (1 - ratio) / (1 - bound). `none` is the same network without any
drop path against its masks: what the masks themselves cost.

With --profile, the operations that take most of a `subset` step and of a masked one.
"""

import argparse
from collections.abc import Callable
from functools import partial

import timm
import torch
import torch.nn.functional as F
import torchvision
from measure import fixed_gates, interleaved, machine
from torch import nn

from sdnet import GateSampler, LinearDecay, add_stochastic_depth, set_gates, skip_branches
from sdnet.models.cutting.drops import has_drop_path
from sdnet.models.gates import gated_modules
from sdnet.models.layout import Layout
from sdnet.models.macs import Macs
from sdnet.training import device as devices

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VECTORS = 5
CONTENDERS = ("masks", "batch", "subset", "none")


def of_timm(arch: str, **options: int) -> Callable[[float], nn.Module]:
    return lambda rate: timm.create_model(arch, num_classes=10, drop_path_rate=rate, **options)


def of_torchvision(arch: str, **options: int) -> Callable[[float], nn.Module]:
    make = getattr(torchvision.models, arch)
    if arch.startswith(("resnet", "vit")):  # which have no drop path
        return lambda rate: make(num_classes=10, **options)
    if arch.startswith(("swin", "maxvit")):  # which take no rate
        return partial(_with_rate, make)
    return lambda rate: make(num_classes=10, stochastic_depth_prob=rate)


def _with_rate(make: Callable, rate: float) -> nn.Module:
    """torchvision's Swin and MaxViT, whose rate rises linearly to their own one, with another."""
    net = make(num_classes=10)
    drops = [m for m in net.modules() if isinstance(m, torchvision.ops.StochasticDepth)]
    last = max(drop.p for drop in drops)
    for drop in drops:
        drop.p *= rate / last
    return net


NETS: dict[str, tuple[Callable[[float], nn.Module], int, int]] = {  # size and number of images
    "vit_tiny": (of_timm("vit_tiny_patch16_224", img_size=160), 160, 16),
    "deit3_small": (of_timm("deit3_small_patch16_224", img_size=128), 128, 16),
    "eva02_tiny": (of_timm("eva02_tiny_patch14_224", img_size=112), 112, 16),
    "mixer_s32": (of_timm("mixer_s32_224"), 224, 16),
    "swin_tiny": (of_timm("swin_tiny_patch4_window7_224"), 224, 8),
    "hiera_tiny": (of_timm("hiera_tiny_224"), 224, 8),
    "convnext_atto": (of_timm("convnext_atto"), 128, 16),
    "convnext_pico": (of_timm("convnext_pico"), 128, 16),
    "poolformer_s12": (of_timm("poolformer_s12"), 128, 16),
    "caformer_s18": (of_timm("caformer_s18"), 128, 8),
    "resnet50": (of_timm("resnet50"), 128, 16),
    "regnety_008": (of_timm("regnety_008"), 128, 16),
    "efficientnet_b0": (of_timm("efficientnet_b0"), 128, 16),
    "maxvit_pico": (of_timm("maxvit_pico_rw_256", img_size=128), 128, 8),
    "tv convnext_tiny": (of_torchvision("convnext_tiny"), 96, 16),
    "tv swin_t": (of_torchvision("swin_t"), 128, 16),
    "tv efficientnet_v2_s": (of_torchvision("efficientnet_v2_s"), 96, 16),
    "tv resnet50": (of_torchvision("resnet50"), 128, 16),
    "tv vit_b_16": (of_torchvision("vit_b_16", image_size=96), 96, 8),
}


def gates_in(net: nn.Module, rate: float, granularity: str) -> None:
    if has_drop_path(net):
        skip_branches(net, granularity=granularity)
    else:
        schedule = LinearDecay(1 - rate, rule="timm")
        add_stochastic_depth(net, schedule, granularity=granularity)


class Contender:
    """One way to train a network; `opened` are the shares of time that its branches run."""

    def __init__(self, name: str, make: Callable[[float], nn.Module], rate: float, x: torch.Tensor):
        torch.manual_seed(0)
        self.net = make(0.0 if name == "none" else rate)
        self.vectors: list = [None] * VECTORS
        if name in ("batch", "subset"):
            gates_in(self.net, rate, name)
            layout, survival = Layout(self.net), [m.survival for m in gated_modules(self.net)]
            self.vectors = fixed_gates(layout.stage_gates, survival, VECTORS)
            if name == "subset":
                sampler = GateSampler(self.net, seed=0)
                self.vectors = [sampler.draw(t, len(x)) for t in range(VECTORS)]
            opened = [torch.as_tensor(v).double().view(len(survival), -1) for v in self.vectors]
            self.opened = torch.cat(opened, 1).mean(1).tolist()
        self.net.to(DEVICE, memory_format=torch.channels_last).train()
        self.x = x.to(DEVICE).contiguous(memory_format=torch.channels_last)
        self.labels = (torch.arange(len(x)) % 10).to(DEVICE)
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.001, 0.9)

    def bound(self) -> float:
        """The share of the multiply-adds that the gates leave."""
        macs = Macs(self.net, self.x.shape[1:])
        saved = [branch for branch, _ in macs.of_gates().values()]
        left = sum((1 - o) * n for o, n in zip(self.opened, saved, strict=True))
        return 1 - left / macs.total

    def step(self, case: int) -> None:
        if self.vectors[case] is not None:
            set_gates(self.net, self.vectors[case])
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(self.x), self.labels).backward()
        self.optimizer.step()


def compare(name: str, rate: float, args: argparse.Namespace) -> None:
    make, size, batch = NETS[name]
    x = torch.randn(args.batch or batch, 3, size, size)
    contenders = {c: Contender(c, make, rate, x) for c in args.contenders}
    seconds = interleaved({c: k.step for c, k in contenders.items()}, VECTORS, args.turns)
    base = seconds["masks"]
    line = f"{name:22}{rate:5.2g}{size:6}{len(x):4}{1e3 * base:9.0f}"
    for kind in ("batch", "subset"):
        if kind in seconds:
            ratio, bound = seconds[kind] / base, contenders[kind].bound()
            line += f"{ratio:11.3f}{bound:8.3f}{(1 - ratio) / (1 - bound):8.0%}"
    print(line + (f"{seconds['none'] / base:8.3f}" if "none" in seconds else ""), flush=True)
    if args.profile:
        for kind in ("masks", "subset"):
            profile(kind, contenders[kind])


def profile(kind: str, contender: Contender) -> None:
    with torch.profiler.profile() as profiler:
        for case in range(VECTORS):
            contender.step(case)
    sort = "self_cuda_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
    print(kind, profiler.key_averages().table(sort_by=sort, row_limit=12), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--rates", nargs="+", type=float, default=[0.2, 0.5])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--turns", type=int, default=3, help="steps per contender and gate vector")
    parser.add_argument("--batch", type=int, help="images per batch")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    devices.configure(DEVICE, "fp32", None, False)
    print(machine(DEVICE), f"torchvision {torchvision.__version__}, timm {timm.__version__}")
    print(
        f"{'network':22}{'rate':>5}{'size':>6}{'N':>4}{'masks ms':>9}{'batch':>11}{'bound':>8}"
        f"{'saved':>8}{'subset':>11}{'bound':>8}{'saved':>8}{'none':>8}"
    )
    for name in args.nets:
        for rate in args.rates:
            compare(name, rate, args)


if __name__ == "__main__":
    main()
