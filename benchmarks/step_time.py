"""Time of a training step with skipped blocks, next to those who mask them and to the plain way.

    python benchmarks/step_time.py                          # every network, fp32 and bf16: an hour
    python benchmarks/step_time.py --nets resnet110 --precision fp32 --p_L 0.5

A step is forward, backward and SGD (Nesterov, weight decay) on one fixed batch; ms and images/s. On
CUDA there is tf32 too, and ten steps are taken in a row; the fused kernels are for CPUs alone.
The contenders take turns in one process, with the same gate vectors, whose average is in each stage
the expected depth (`fixed_gates`), and the same memory allocator; see `interleaved`. Peak memory is
that of a process of its own.

`torchvision` and `timm` are this network with their module at the end of each branch. `plain` is
what most replications do: float32 and the contiguous layout, a Python `if` around the branch, and a
batch made image by image with torchvision's transforms (by the same process: with workers the cores
would be shared). The bounds are those of the gate vectors: how much of the multiply-adds remains,
and how much of the activations' memory (time follows the first where arithmetic is dear, the second
where memory is); `realised` is the share of the possible saving in multiply-adds that the clock
shows.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, repeat

import numpy as np
import torch
import torch.nn.functional as F
from measure import alone, fixed_gates, forget_search, interleaved, machine, peak
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import StochasticDepth
from torchvision.transforms import v2

from sdnet import LinearDecay, resnet_cifar, resnet_imagenet, set_gates
from sdnet.analysis.cost import network_cost
from sdnet.models.fast import fused
from sdnet.models.gates import GateSampler
from sdnet.training import device as devices
from sdnet.training.optim import zero_skipped

try:
    from timm.layers import DropPath
except ImportError:
    DropPath = None

NETS = {  # constructor, image size, images per batch
    "resnet20": (partial(resnet_cifar, 20), 32, 128),
    "resnet56": (partial(resnet_cifar, 56), 32, 128),
    "resnet110": (partial(resnet_cifar, 110), 32, 128),
    "resnet50": (partial(resnet_imagenet, 50), 160, 32),
}
MASKS: dict[str, Callable[[float], nn.Module]] = {
    "torchvision row": lambda p: StochasticDepth(p, "row"),
    "torchvision batch": lambda p: StochasticDepth(p, "batch"),
}
if DropPath is not None:
    MASKS["timm DropPath"] = DropPath
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FUSED = ("constant, fused", "batch, fused") if DEVICE.type == "cpu" else ()
CONTENDERS = ("constant", "batch", "sample", "subset", *FUSED, *MASKS, "plain")
PRECISIONS = ("fp32", "bf16") if DEVICE.type == "cpu" else ("fp32", "tf32", "bf16")


class Images(Dataset):
    """Images (N, H, W, 3; uint8) as the plain way has them: transformed one by one."""

    def __init__(self, images: np.ndarray, labels: Sequence[int]):
        self.images, self.labels = images, labels
        self.transform = v2.Compose(
            [
                v2.RandomCrop(images.shape[1], padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.25] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def masked(net: nn.Module, mask: Callable[[float], nn.Module], survival: list[float]) -> None:
    """Puts a peer's module at the end of each branch of a network."""

    def then(branch: Callable[[Tensor], Tensor], module: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: module(branch(x))

    for block, p in zip(net.blocks, survival, strict=True):
        block.branch = then(block.branch, mask(1.0 - p))


class Contender:
    """A network, its optimizer and what it does with the gates of a step.

    Args:
        name: one of `CONTENDERS`.
        make: gives the network, with the keywords of `sdnet.ResNet`.
        size, batch: of the images.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., nn.Module],
        size: int,
        batch: int,
        p_L: float,
        precision: str = "fp32",
        device: torch.device = DEVICE,
    ):
        name, _, with_kernels = name.partition(", ")
        self.name, self.device, self.fused = name, device, with_kernels == "fused"
        self.precision = "fp32" if name == "plain" else precision
        kind = name if name in ("sample", "subset") else "batch"
        torch.manual_seed(0)
        schedule = LinearDecay(p_L)
        self.net = make(num_classes=10, schedule=schedule, granularity=kind)
        stages = self.net.stage_blocks
        self.vectors = fixed_gates(stages, schedule(stages), 5)
        layout = torch.contiguous_format if name == "plain" else torch.channels_last
        self.net.to(device, memory_format=layout)
        if name in MASKS:
            masked(self.net, MASKS[name], schedule(stages))
        if name in ("constant", *MASKS):
            self.vectors = [[True] * len(self.net.blocks)] * len(self.vectors)
        elif kind != "batch":
            sampler = GateSampler(self.net, seed=0)
            self.vectors = [sampler.draw(t, batch) for t in range(len(self.vectors))]
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True
        )
        labels = torch.arange(batch) % 10
        images = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)
        self.data = (images.to(device), labels.to(device))
        self.batches = None  # where the plain way takes its images from
        if name == "plain":
            pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
            loader = DataLoader(Images(pixels, labels.tolist()), batch)
            self.batches = chain.from_iterable(repeat(loader))

    def step(self, case: int) -> None:
        images, labels = self.data
        if self.batches is not None:
            images, labels = (t.to(self.device) for t in next(self.batches))
        if self.device.type == "cuda":  # another contender may want another
            devices.allow_tf32(self.precision == "tf32")
            torch.backends.cudnn.benchmark = self.name != "subset"  # as in a run
        if self.fused:
            fused.enable()
        set_gates(self.net, self.vectors[case])
        self.optimizer.zero_grad()
        with devices.autocast(self.device, self.precision):
            logits = self.net(images)
        F.cross_entropy(logits.float(), labels).backward()
        if self.name == "batch":
            zero_skipped(self.optimizer)
        self.optimizer.step()
        if self.fused:  # else it is as whoever takes the steps has set it
            fused.disable()


def bounds(net: str, p_L: float) -> tuple[float, float]:
    """What the fixed gates leave of the multiply-adds and of the activations, as shares."""
    make, size, _ = NETS[net]
    schedule = LinearDecay(p_L)
    model = make(num_classes=10, schedule=schedule).to("meta").eval()  # every block runs
    vectors = torch.tensor(fixed_gates(model.stage_blocks, schedule(model.stage_blocks), 5))
    opened = vectors.double().mean(0).tolist()
    cost = network_cost(model, (3, size, size))
    saved = sum((1 - o) * b.branch_macs for o, b in zip(opened, cost.blocks, strict=True))

    numbers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(
                lambda m, i, out, name=name: numbers.update({name: out[0].numel()})
            )
    model(torch.empty(1, 3, size, size, device="meta"))
    names = [f"{s}.{i}." for s in model.layers for i in range(len(getattr(model, s)))]
    spared = sum(
        (1 - o) * n
        for prefix, o in zip(names, opened, strict=True)
        for name, n in numbers.items()
        if name.startswith(prefix) and "downsample" not in name
    )
    return 1 - saved / cost.macs, 1 - spared / sum(numbers.values())


def compare(net: str, precision: str, p_L: float, args: argparse.Namespace) -> None:
    make, size, batch = NETS[net]
    batch = args.batch or batch
    contenders = {c: Contender(c, make, size, batch, p_L, precision) for c in args.contenders}
    steps = {name: contender.step for name, contender in contenders.items()}
    seconds = interleaved(steps, 5, args.turns)
    flops, traffic = bounds(net, p_L)
    print(
        f"\n{net}, {precision}, p_L {p_L:g}, batch {batch}, {args.turns} turns; "
        f"bounds: multiply-adds {flops:.3f}, activations {traffic:.3f}"
    )
    peers = [name for name in ("constant", *MASKS, "plain") if name in seconds]
    titles = "".join(f"{'/ ' + name:>20}" for name in peers)
    print(f"{'':20}{'ms':>8}{'images/s':>10}{titles}{'realised':>10}{'peak GB':>9}")
    for name, s in seconds.items():
        ratios = "".join(f"{s / seconds[peer]:20.3f}" for peer in peers)
        whole = seconds.get("constant, fused" if "fused" in name else "constant")
        saves = whole and name.split(",")[0] in ("batch", "subset")
        share = f"{(1 - s / whole) / (1 - flops):.0%}" if saves else ""
        held = f"{memory(net, precision, p_L, name, batch):.2f}" if args.memory else ""
        print(f"{name:20}{1e3 * s:8.1f}{batch / s:10.0f}{ratios}{share:>10}{held:>9}", flush=True)


def memory(net: str, precision: str, p_L: float, name: str, batch: int) -> float:
    """Peak GB of a process that takes a few steps as one contender."""
    options = ["--nets", net, "--precision", precision, "--p_L", p_L, "--contenders", name]
    return alone(*options, "--batch", batch, "--alone")[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--p_L", nargs="+", type=float, default=[0.5, 0.2])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--turns", type=int, default=5, help="steps per contender and gate vector")
    parser.add_argument("--batch", type=int, help="images per batch (128; ResNet-50: 32)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    devices.configure(DEVICE, "fp32", args.threads, False)
    if args.alone:
        make, size, _ = NETS[args.nets[0]]
        p_L, precision = args.p_L[0], args.precision[0]
        contender = Contender(args.contenders[0], make, size, args.batch, p_L, precision)
        forget_search(contender.step, 2, DEVICE)
        for case in range(2):
            contender.step(case)
        return print(peak(DEVICE))
    print(machine(DEVICE))
    for net in args.nets:
        for precision in args.precision:
            for p_L in args.p_L:
                compare(net, precision, p_L, args)
    return None


if __name__ == "__main__":
    main()
