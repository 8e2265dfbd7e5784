"""The parts of a data set: images in memory (`Split`), or files that are read as they are needed
(`Files`), and the `Source` that a data set's function returns.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sdnet.models.checks import number, whole

# Whether images are only counted, not read: a `Split` then has zeros in their place.
LISTING: ContextVar[bool] = ContextVar("listing", default=False)


ORDER = 16  # bytes of the hash of a part's images in their order


@dataclass
class Split:
    """The rows `indices` (N,) of `images` (M, H, W, C; uint8), with their labels (N,) as int64.

    Splits of one data set share `images`, so that setting some aside copies none. `split[rows]`
    copies the images of its own rows, `rows` counted from 0 to N-1: a slice or an array.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray | None = None  # None: all, in their order

    def __post_init__(self):
        if isinstance(self.images, Tensor):
            self.images = self.images.numpy(force=True)
        shape, dtype = np.shape(self.images), getattr(self.images, "dtype", type(self.images))
        if len(shape) != 4 or dtype != np.uint8:
            raise ValueError(
                f"images must be an array (N, H, W, C) of uint8, got {shape} of {dtype}"
            )
        if self.indices is None:
            self.indices = np.arange(len(self.images))
        self.labels = whole_labels(self.labels, len(self.indices))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.images.shape[1:]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.images[self.indices[rows]]

    def order(self) -> str:
        """A hash of the images and labels in their order."""
        digest = hashlib.blake2b(self.labels.tobytes(), digest_size=ORDER)
        for first in range(0, len(self), 1024):
            digest.update(self[first : first + 1024].tobytes())
        return digest.hexdigest()

    def subset(self, rows: np.ndarray) -> Split:
        return Split(self.images, self.labels[rows], self.indices[rows])


def is_counted(part: Any) -> bool:
    """Whether the images of a part were only counted: all its zeros are one."""
    return isinstance(part, Split) and not any(part.images.strides)


@dataclass(frozen=True)
class Reading:
    """How an image file becomes an image (size, size, 3).

    Args:
        size: edge in pixels.
        resize: in evaluation the shorter side is resized to it and the centre is cropped.
        scale: in training the crop's share of the image's area, from .. to, with an aspect ratio
            of 3/4 to 4/3 (Szegedy et al. 2015), which is then resized.
        color: in training brightness, contrast and saturation are changed by factors within 1 -
            color .. 1 + color; 0 for none.
        lighting: standard deviation of colour noise along the principal components; 0 for none.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    size: int = 224
    resize: int = 256
    scale: Sequence[float] = (0.08, 1.0)
    color: float = 0.4
    lighting: float = 0.1

    def __post_init__(self):
        for name, least in (("size", 1), ("resize", self.size)):
            value = getattr(self, name)
            if whole(value) is None or value < least:
                at_least = "1" if name == "size" else f"size={self.size}"
                raise ValueError(f"{name} must be whole and at least {at_least}, got {value!r}")
            object.__setattr__(self, name, whole(value))
        scale = self.scale
        two = isinstance(scale, list | tuple) and len(scale) == 2
        if not two or None in map(number, scale) or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be two numbers 0 < a <= b <= 1, got {scale!r}")
        if number(self.color) is None or not 0 <= self.color <= 1:
            raise ValueError(f"color must be a number 0 <= color <= 1, got {self.color!r}")
        if number(self.lighting) is None or not 0 <= self.lighting < float("inf"):
            raise ValueError(f"lighting must be a number of at least 0, got {self.lighting!r}")


@dataclass
class Files:
    """Image files, by their names (N,) as bytes below `folder`, with their labels (N,) as int64.

    In evaluation an image (H, W, 3; uint8) becomes `changed(image, row)`, where that is given.
    """

    folder: str
    names: np.ndarray  # one array: a list of a million objects would be copied into every worker
    labels: np.ndarray
    reading: Reading
    changed: Callable[[np.ndarray, int], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.reading.size, self.reading.size, 3

    def order(self) -> str:
        """A hash of the images' names and labels in their order."""
        digest = hashlib.blake2b(self.labels.tobytes(), digest_size=ORDER)
        digest.update(b"\0".join(self.names.tolist()))
        return digest.hexdigest()

    def subset(self, rows: np.ndarray) -> Files:
        return Files(self.folder, self.names[rows], self.labels[rows], self.reading, self.changed)

    def path(self, row: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.names[row]))


def whole_labels(labels: Any, count: int) -> np.ndarray:
    """Labels (count,) as int64; ValueError for anything but so many whole numbers."""
    found = np.asarray(labels)
    if found.shape != (count,) or (count and not np.issubdtype(found.dtype, np.integer)):
        raise ValueError(
            f"labels must be {count} whole numbers, one per image, got {found.shape} of "
            f"{found.dtype}"
        )
    return found.astype(np.int64, copy=False)


@dataclass
class Source:
    """A data set before validation images are set aside; `validation` where it brings its own.

    `parts` are the sizes of the parts that `train` was joined from, in their order. `fingerprint`
    tells the data from others of the same name, where they may be exchanged.
    """

    train: Split | Files
    test: Split | Files
    classes: list[str]
    validation: Split | Files | None = None
    parts: list[int] | None = None  # None: one
    fingerprint: str | None = None

    def __post_init__(self):
        self.classes = [str(name) for name in self.classes]
        parts = {"train": self.train, "test": self.test, "validation": self.validation}
        for name, part in parts.items():
            if part is None and name == "validation":
                continue
            if not isinstance(part, Split | Files) or not len(part):
                raise ValueError(
                    f"{name} must be a Split or Files with an image or more, got {part!r}"
                )
            if part.shape != self.train.shape:
                raise ValueError(
                    f"{name} must have images of the shape of train's, {self.train.shape}, got "
                    f"{part.shape}"
                )
            low, high = part.labels.min(), part.labels.max()
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"labels of {name} must be 0 to {len(self.classes) - 1}, places in classes, "
                    f"got {low} to {high}"
                )
        if self.parts is None:
            self.parts = [len(self.train)]
