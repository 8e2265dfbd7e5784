"""From a source to what a run trains on: the validation part and the normalisation."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdnet import rng
from sdnet.data.split import LISTING, Files, Source, Split
from sdnet.models.checks import check_choice, number

log = logging.getLogger("sdnet")
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of values 0..1; torchvision's transforms._presets
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class Normalization:
    """`(image - mean) / std` in pixel values 0..255.

    Shapes: mean (H, W, C) and scalar std for kind `pixel`, both (C,) for the others.
    """

    mean: np.ndarray
    std: np.ndarray
    KINDS: ClassVar = ("pixel", "channel", "imagenet")

    @classmethod
    def fit(cls, images: Split | Files | np.ndarray, kind: str) -> "Normalization":
        """Statistics of the training images: a split, or an array (N, H, W, C).

        `pixel` subtracts the mean image and divides by one standard deviation over all values, as
        the paper does; `channel` uses one mean and standard deviation per channel; `imagenet` takes
        those that torchvision's networks were trained with, for colour images of any origin.
        """
        cls.check(images, kind)
        if kind == "imagenet":
            return cls(*(255 * np.array([IMAGENET_MEAN, IMAGENET_STD], np.float32)))
        total, squares = np.zeros((2, *images[:1].shape[1:]), np.int64)
        for i in range(0, len(images), 256):  # a block at a time: no float copy of the data set
            block = images[i : i + 256]
            # Whole numbers, each just large enough: the sums are exact, and quick.
            total += block.sum(0, dtype=np.uint32)
            squares += np.square(block, dtype=np.uint16).sum(0, dtype=np.uint32)
        count = len(images)
        if kind == "channel":
            count *= total[..., 0].size
            total, squares = total.sum((0, 1)), squares.sum((0, 1))
        mean = total / count
        variance = squares / count - mean**2
        if kind == "pixel":
            variance = variance.mean()
        std = np.where(variance > 0, np.sqrt(variance), 1.0)  # a constant channel stays as it is
        return cls(mean.astype(np.float32), std.astype(np.float32))

    @classmethod
    def check(cls, images: Split | Files | np.ndarray, kind: str) -> None:
        """Raises a ValueError where `fit` would."""
        check_choice("normalization", kind, cls.KINDS)
        channels = images.shape[-1]
        if kind == "imagenet" and channels != 3:
            raise ValueError(f"normalization imagenet is for 3 channels, these have {channels}")
        if kind != "imagenet" and isinstance(images, Files):
            raise ValueError(
                f"normalization must be imagenet for images that are read as they are needed, "
                f"got {kind!r}"
            )


@dataclass
class Data:
    """The parts of a run; `validation` is None when nothing was set aside."""

    train: Split | Files
    validation: Split | Files | None
    test: Split | Files
    classes: list[str]
    normalization: Normalization | None  # None where images were only counted
    fingerprint: str | None = None  # see `Source`

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        h, w, c = self.train.shape
        return c, h, w


def prepare(
    source: Source, validation: int | float | list[int], normalization: str, seed: int
) -> Data:
    """Sets validation images aside and fits the normalisation on the training images that remain.

    Args:
        validation: a count of images (whole number), a fraction of the training images (0 < f < 1),
            images per class from each of the source's parts (a list, `[50]` where it has one part)
            or 0 for none. Chosen at random by `seed`, as the paper's 5,000 of 50,000. A source
            that brings its own validation part keeps that, unless this is 0.
        normalization: `pixel`, `channel` or `imagenet`; see `Normalization.fit`.

    Raises:
        ValueError: a `validation` out of range or that leaves a class without training images.
    """
    train, held_out = source.train, source.validation
    wanted = isinstance(validation, list | tuple) or _size(validation) != 0
    if held_out is not None:
        use = "sets no others aside" if wanted else "leaves them out"
        brought = "the data set brings %d validation images; validation=%s %s"
        log.info(brought, len(held_out), validation, use)
        held_out = held_out if wanted else None
    elif wanted:
        order = rng.generator(seed, "split").permutation(len(train))
        if isinstance(validation, list | tuple):
            chosen = _first_per_class(validation, source, order)
        else:
            chosen = order[: _validation_count(validation, len(train))]
        held_out = train.subset(np.sort(chosen))
        train = train.subset(np.setdiff1d(order, chosen))
    absent = sorted(set(range(len(source.classes))) - set(np.unique(train.labels).tolist()))
    if absent:
        names = [source.classes[i] for i in absent]
        raise ValueError(
            f"validation={validation} leaves no training image of {names}: {len(source.train)} "
            f"images are too few for it"
        )
    Normalization.check(train, normalization)
    fitted = None if LISTING.get() else Normalization.fit(train, normalization)
    return Data(train, held_out, source.test, source.classes, fitted, source.fingerprint)


ALLOWED = (
    "a whole number of images, a fraction between 0 and 1, 0 for none, or a list with the images "
    "per class from each part of the training images"
)


def _size(validation: int | float) -> float:
    """A count or a share of images, checked as far as it can be without the images."""
    size = number(validation)
    if size is None or not 0 <= size < math.inf or (size >= 1 and size % 1 != 0):
        raise ValueError(f"validation must be {ALLOWED}, got {validation!r}")
    return size


def _validation_count(validation: int | float, available: int) -> int:
    size = _size(validation)
    count = round(size * available) if size < 1 else int(size)
    if not 0 < count < available:
        raise ValueError(
            f"validation={validation} of {available} training images leaves too few images for "
            f"the split: it must be {ALLOWED}"
        )
    return count


def _first_per_class(validation: Sequence[int], source: Source, order: np.ndarray) -> np.ndarray:
    """The first `validation[k]` images of each class of part k in the order given."""
    parts, classes = source.parts, source.classes
    numbers = [number(count) for count in validation]
    valid = all(count is not None and count >= 0 and count % 1 == 0 for count in numbers)
    if not valid or len(validation) != len(parts) or not any(validation):
        raise ValueError(
            f"validation={validation} must hold a number for each part of the training images "
            f"({len(parts)} here): whole numbers of images per class, 0 or more, not all 0"
        )
    chosen = []
    part_of = np.repeat(np.arange(len(parts)), parts)[order]
    labels = source.train.labels[order]
    for part, count in enumerate(validation):
        in_part = part_of == part
        for label, name in enumerate(classes):
            found = order[in_part & (labels == label)]
            if len(found) < count:
                raise ValueError(
                    f"validation={validation} takes {count} images per class from part {part + 1} "
                    f"of {len(parts)}, which has {len(found)} of class {name!r}: it must be at "
                    f"most so many"
                )
            chosen.append(found[: int(count)])
    return np.concatenate(chosen)
