"""Images per second that one core turns into a network's input: ways compared.

    python benchmarks/input.py                                # CIFAR's size, in memory
    python benchmarks/input.py --images data/imagenet/train
    python benchmarks/input.py --images data/small --enlarge 500 375   # ImageNet's average size

Rates are medians of 9 turns over the same images and crops, by processor time, files in memory:
reading one from the page cache takes 0.02 ms. On a shared AMD EPYC (Zen 3, AVX2), torch 2.14.1,
torchvision 0.29.1, TorchCodec 0.17.0, Pillow 13.0.0, 100 photographs of Imagenette (middle of three
runs, 20 % apart at most; 40 kB once enlarged, where ImageNet's have 110 kB):
                            224x224                          enlarged to 500x375
                            PIL  torchvision  TorchCodec     PIL  torchvision  TorchCodec
    decoding               2066         2995        2951     867         1165        1164
    and training crop       953         1243        1223     455          657         657
    the same, crop copied   933         1382        1477     470          759         749
    and evaluation crop     989         1371        1416     467          646         668
    colour: ColorJitter on uint8 590, on float 1270; one 3x3 map 5460; normalised only 8430
"""

import argparse
import io
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from step_time import Images
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.io import decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from sdnet.data.loader import Loader
from sdnet.data.split import Split
from sdnet.data.splits import Normalization

SIZE, RESIZED = 224, 256
MEAN, STD, GREY = torch.tensor([[485, 456, 406], [229, 224, 225], [299, 587, 114]]) / 1000
DECODERS: dict[str, Callable] = {
    "PIL": lambda data: Image.open(io.BytesIO(data)).convert("RGB"),
    "torchvision": lambda data: decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), mode="RGB"),
}
if find_spec("torchcodec"):
    from torchcodec.decoders import decode_jpeg as codec

    DECODERS["TorchCodec"] = lambda data: codec(torch.frombuffer(data, dtype=torch.uint8))


def tensor(image: Image.Image | Tensor) -> Tensor:
    """(C, H, W), in memory (H, W, C) as decoders write it."""
    return image if torch.is_tensor(image) else torch.from_numpy(np.array(image)).permute(2, 0, 1)


def crop(image: Image.Image | Tensor, flip: bool, copy: bool = False, **box: int) -> Tensor:
    """With `copy` the same pixels: the resize sees a contiguous image, and so need not repack."""
    image = TF.crop(image, **box)
    if copy:
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    image = TF.resize(image, [SIZE, SIZE])
    return tensor(TF.horizontal_flip(image) if flip else image)


def evaluate(image: Image.Image | Tensor, **_) -> Tensor:
    return tensor(TF.center_crop(TF.resize(image, [RESIZED]), [SIZE, SIZE]))


def normalize(images: Tensor, white: float = 255) -> Tensor:
    return images.div(white).sub_(MEAN[:, None, None]).div_(STD[:, None, None])


def affine(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation (unclamped, they commute) and normalisation, in one map."""
    brightness, contrast, saturation = factors.T[:, :, None, None]  # (N, 1, 1) each
    x = images.float().flatten(2)
    mean_grey = GREY @ x.mean(2, keepdim=True) / 255
    mix = brightness * contrast * (saturation * torch.eye(3) + (1 - saturation) * GREY)
    shift = brightness * (1 - contrast) * mean_grey[:, None] - MEAN[:, None]
    return torch.baddbmm(shift / STD[:, None], mix / (255 * STD[:, None]), x).view(images.shape)


def each(step: Callable, *inputs):
    for values in zip(*inputs, strict=True):
        step(*values)


def rates(contenders: dict[Any, Callable], images: dict[Any, int]) -> dict[Any, float]:
    """Images/s of every contender by processor time, a call of which handles so many images."""
    seconds = {name: [] for name in contenders}
    for turn in range(10):  # the first warms up
        for name, call in contenders.items():
            start = time.process_time()
            call()
            seconds[name] += [time.process_time() - start] * (turn > 0)
    return {name: images[name] / np.median(s) for name, s in seconds.items()}


def compare_in_memory() -> None:
    """Batches of CIFAR's size from images in memory: cropped or shifted, mirrored, normalised."""
    count, size = 12_800, 32
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    split = Split(pixels, np.arange(count) % 10)
    loader = partial(Loader, split, Normalization.fit(split, "pixel"), 128)
    one_by_one = DataLoader(Images(pixels[:1280], split.labels[:1280].tolist()), 128)
    whole = v2.Compose([v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()])

    def batchwise() -> None:  # one draw for all images of a batch: faster, and another thing
        for images in torch.from_numpy(pixels).permute(0, 3, 1, 2).split(128):
            normalize(whole(images))

    def through(batches: Iterable) -> Callable[[], None]:
        return lambda: deque(batches, maxlen=0)

    per_image = "DataLoader, v2 transforms image by image"
    calls = {
        "sdnet's Loader, shift and flip": through(loader(seed=0, shift=4, flip=True)),
        "sdnet's Loader, neither": through(loader(seed=0)),
        per_image: through(one_by_one),
        "v2 transforms, one draw per batch": batchwise,
    }
    found = rates(calls, dict.fromkeys(calls, count) | {per_image: 1280})
    print(f"\n{'32x32 images in memory':42}{'images/s':>9}{'of the first':>16}")
    for name, rate in found.items():
        print(f"{name:42}{rate:9.0f}{rate / next(iter(found.values())):16.3f}")


def compare_decoding(tables: dict[str, dict[str, Callable]], n: int) -> None:
    """Prints the images/s of every contender in `tables`, a call of which handles n images."""
    calls = {(title, name): c for title, table in tables.items() for name, c in table.items()}
    found = rates(calls, dict.fromkeys(calls, n))
    fastest = max(found["decoding", name] for name in DECODERS)
    for title, table in tables.items():
        print(f"\n{title:40}{'images/s':>9}{'of its decoder':>16}{'of the fastest':>16}")
        for name in table:
            rate, own = found[title, name], found.get(("decoding", name.split(",")[0]))
            share = f"{rate / own:.2f}" if own else ""
            print(f"{name:40}{rate:9.0f}{share:>16}{rate / fastest:16.2f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, help="a folder of JPEG files, to decode too")
    parser.add_argument("--enlarge", type=int, nargs=2, metavar=("W", "H"), help="re-encode first")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.empty(31 << 20, dtype=torch.uint8)  # once freed, glibc keeps what is smaller: no faults
    compare_in_memory()
    if args.images is None:
        return
    paths = sorted(p for p in args.images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    files = [bytearray(path.read_bytes()) for path in paths[:: len(paths) // 100 or 1][:100]]
    images = [DECODERS["PIL"](file) for file in files]
    for i in range(len(images) if args.enlarge else 0):
        images[i] = images[i].resize(args.enlarge, Image.LANCZOS)
        images[i].save(file := io.BytesIO(), "JPEG", quality=90)
        files[i] = bytearray(file.getvalue())
    draw, jitter = v2.RandomResizedCrop(SIZE).make_params, v2.ColorJitter(0.4, 0.4, 0.4)
    crops = [draw([image]) | {"flip": i % 2 == 0} for i, image in enumerate(images)]
    batch = torch.stack([crop(tensor(i), **c) for i, c in zip(images, crops, strict=True)])
    factors = 0.6 + 0.8 * torch.rand(len(batch), 3)

    def decoded(step: Callable, label: str) -> dict[str, Callable]:
        return {
            name + label: partial(each, lambda f, c, d=d: step(tensor(d(f)), **c), files, crops)
            for name, d in DECODERS.items()
        }

    def image(step: Callable) -> dict[str, Callable]:
        run = partial(each, lambda f, c: step(DECODERS["PIL"](f), **c), files, crops)
        return {"PIL, v2 on the image": run}

    eights = batch.split(8), factors.split(8)  # stay in the cache
    copied = decoded(partial(crop, copy=True), ", crop copied, v2 resize")
    tables = {
        "decoding": {name: partial(each, d, files) for name, d in DECODERS.items()},
        "and training crop": image(crop) | decoded(crop, ", v2 crop and resize") | copied,
        "and evaluation crop": image(evaluate) | decoded(evaluate, ", v2 resize and crop"),
        "colour of crops in memory": {
            "normalised only": partial(each, normalize, eights[0]),
            "ColorJitter, uint8": partial(each, lambda x: normalize(jitter(x)), batch),
            "ColorJitter, float": partial(each, lambda x: normalize(jitter(x / 255), 1), batch),
            "one 3x3 map": partial(each, affine, *eights),
        },
    }
    compare_decoding(tables, len(files))


if __name__ == "__main__":
    main()
