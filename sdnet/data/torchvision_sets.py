"""Data sets that torchvision downloads and checks: CIFAR-10, CIFAR-100 and SVHN."""

import os
from collections.abc import Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np

from sdnet.data.split import Source, Split


def cifar10(root: str, download: bool = True) -> Source:
    """CIFAR-10 by torchvision with its checksums: 50,000 training, 10,000 test images, 32x32."""
    return _cifar("CIFAR10", root, download)


def cifar100(root: str, download: bool = True) -> Source:
    """CIFAR-100: as CIFAR-10 with 100 classes."""
    return _cifar("CIFAR100", root, download)


def _cifar(name: str, root: str, download: bool) -> Source:
    parts = {}
    for part in ("train", "test"):
        what = {"train": part == "train", "download": download}
        data = _torchvision(name, root, "the archive of its Python version", **what)
        parts[part] = Split(data.data, np.asarray(data.targets, dtype=np.int64))
    return Source(parts["train"], parts["test"], data.classes)


def svhn(root: str, download: bool = True) -> Source:
    """Street View House Numbers by torchvision with its checksums, 32x32.

    The 73,257 images of `train` and the 531,131 of `extra`, in this order, are for training, and
    each is one of the source's `parts`; 26,032 are for test. Needs scipy, and room for 1.9 GB of
    temporary files.
    """
    test, _ = _svhn(("test",), root, download)  # first: it makes the folder, if need be
    joined, sizes = _svhn(("train", "extra"), root, download)
    return Source(joined, test, [str(digit) for digit in range(10)], parts=sizes)


def _svhn(names: Sequence[str], root: str, download: bool) -> tuple[Split, list[int]]:
    """Parts of SVHN joined, and their sizes."""
    # By way of a file: memory would have to hold torchvision's array of a part and ours at once.
    folder = os.path.expanduser(root)
    with TemporaryFile(dir=folder if os.access(folder, os.W_OK) else None) as file:
        labels = [_write_svhn(name, root, download, file) for name in names]
        file.seek(0)
        images = np.fromfile(file, np.uint8).reshape(-1, 32, 32, 3)
    return Split(images, np.concatenate(labels)), [len(part) for part in labels]


def _write_svhn(name: str, root: str, download: bool, file: BinaryIO) -> np.ndarray:
    """Writes the images of a part to the end of a file, (32, 32, 3) each; returns their labels."""
    files = "train_32x32.mat, extra_32x32.mat and test_32x32.mat"
    data = _torchvision("SVHN", root, files, split=name, download=download)
    for i in range(0, len(data), 1024):
        pixels = data.data[i : i + 1024]  # (N, C, H, W), a view of MATLAB's (H, W, C, N)
        block = np.empty((len(pixels), 32, 32, 3), np.uint8)
        for channel in range(3):  # four times as fast as all axes at once
            block[..., channel] = pixels[:, channel]
        file.write(block)
    return data.labels


def _torchvision(name: str, root: str, files: str, **options: Any) -> Any:
    """A data set of torchvision's; `files` says what it could not find or download."""
    from torchvision import datasets

    there = os.path.exists(root)
    try:
        return getattr(datasets, name)(root, **options)
    except (OSError, RuntimeError) as error:  # no network; missing or damaged files
        if not there:
            with suppress(OSError):
                os.rmdir(root)  # which torchvision has made
        raise ValueError(
            f"root {root!r} does not hold {name}, and it could not be downloaded there "
            f"({error}); put {files} there"
        ) from error
