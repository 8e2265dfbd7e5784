"""Folders of images: decoded once and kept in memory, or read whenever they are needed."""

import logging
import os
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from sdnet.data.cache import cached, check_memory
from sdnet.data.decode import is_bad, read_rgb
from sdnet.data.listing import Listing, check_classes, fingerprint, list_folder
from sdnet.data.readers import read_all
from sdnet.data.split import LISTING, Files, Reading, Source, Split
from sdnet.models.checks import check_choice

log = logging.getLogger(__name__)


def image_folder(root: str, size: int | None = None, on_bad_image: str = "error") -> Source:
    """A folder of images: `root/train/<class>/...` and `root/val`, `root/test` or both.

    One of `val` and `test` alone is the test set; with both, `val` is the validation set. Images
    may lie in nested folders and are taken as RGB, whatever their mode. They are decoded once, in
    parallel, and cached in `root/.cache` (where that can be written) under their names, sizes and
    times of modification.

    Args:
        size: edge in pixels: the shorter side is resized to it and the centre is cropped.
            None takes the images as they are, all of one size.
        on_bad_image: `error`, or `skip` to leave out what cannot be read.

    Raises:
        ValueError: a missing folder, a class without images or unknown to `train`, an image that
            cannot be read or has another size (named), or more images than fit in memory.
    """
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(f"size must be a whole number of pixels, 1 or more, or null, got {size!r}")
    folder, classes, listing = _list(root, on_bad_image)
    pixels = _decode(folder, _files(listing), size)
    ends = np.cumsum([len(part) for part in listing.values()])
    rows = np.split(np.arange(len(pixels)), ends[:-1])
    parts = zip(listing.items(), rows, strict=True)
    data = {name: Split(pixels, _labels(part), indices) for (name, part), indices in parts}
    return _folder_source(data, classes, fingerprint(folder, listing))


def image_stream(
    root: str,
    size: int = 224,
    resize: int = 256,
    scale: Sequence[float] = (0.08, 1.0),
    color: float = 0.4,
    lighting: float = 0.1,
    on_bad_image: str = "error",
) -> Source:
    """A folder of images as in `image_folder`, which are read anew whenever they are needed.

    For data that do not fit in memory, with the augmentation of the paper's ImageNet recipe. The
    arguments are those of `sdnet.data.split.Reading` and of `image_folder`.

    Raises:
        ValueError: an argument that is out of range, and what `image_folder` finds in the listing.
    """
    reading = Reading(size, resize, scale, color, lighting)
    folder, classes, listing = _list(root, on_bad_image)
    data = {name: Files(*_names(folder, part), reading) for name, part in listing.items()}
    return _folder_source(data, classes, fingerprint(folder, listing))


def _names(folder: Path, part: list[tuple[str, int]]) -> tuple[str, np.ndarray, np.ndarray]:
    names = np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in part])
    return str(folder), names, _labels(part)


def _labels(part: list[tuple[str, int]]) -> np.ndarray:
    return np.array([label for _, label in part], dtype=np.int64)


def _files(listing: Listing) -> list[Path]:
    return [Path(path) for part in listing.values() for path, _ in part]


def _folder_source(data: dict, classes: list[str], mark: str) -> Source:
    """`val` validates where there is a `test`, and else is the test set."""
    validation = data["val"] if len(data) == 3 else None
    test = data.get("test") or data["val"]
    return Source(data["train"], test, classes, validation=validation, fingerprint=mark)


def _list(root: str, on_bad_image: str) -> tuple[Path, list[str], Listing]:
    """What `list_folder` finds, without the images that are to be left out."""
    check_choice("on_bad_image", on_bad_image, ("error", "skip"))
    folder, classes, listing = list_folder(root)
    if on_bad_image == "skip":
        listing = _without_bad(folder, classes, listing)
    return folder, classes, listing


def _without_bad(folder: Path, classes: list[str], listing: Listing) -> Listing:
    """The listing without the images that cannot be read, which are told.

    All are read for it, once: which they are must be known before the first batch is made.
    """
    files = _files(listing)

    def find() -> np.ndarray:
        log.info("looking for bad images among %d of %s once", len(files), folder)
        bad = np.empty(len(files), bool)
        read_all(_are_bad, files, bad)
        return bad

    bad = iter(cached(folder, files, "bad", find).tolist())
    good = {}
    for name, part in listing.items():
        marked = list(zip(part, islice(bad, len(part)), strict=True))
        good[name] = [item for item, is_bad in marked if not is_bad]
        left_out = [os.path.relpath(item[0], folder) for item, is_bad in marked if is_bad]
        if left_out:
            more = ", ..." if len(left_out) > 3 else ""
            names = ", ".join(map(repr, left_out[:3])) + more
            count = f"{len(left_out)} of {len(part)} images"
            log.warning("%s/: %s cannot be read and are left out: %s", name, count, names)
        check_classes(name, good[name], classes)
    return good


def _are_bad(files: Sequence[Path]) -> np.ndarray:
    return np.array([is_bad(file) for file in files])


def _decode(folder: Path, files: list[Path], size: int | None) -> np.ndarray:
    """All images in turn, (N, H, W, 3) uint8: from the cache, or decoded and cached."""
    if LISTING.get():
        return np.broadcast_to(np.uint8(0), (len(files), *_read_image(files[0], size).shape))

    def decode() -> np.ndarray:
        log.info("decoding %d images of %s once", len(files), folder)
        return _decode_files(files, size)

    return cached(folder, files, size, decode)


def _decode_files(files: list[Path], size: int | None, workers: int | None = None) -> np.ndarray:
    first = _read_image(files[0], size)
    check_memory(len(files), len(files) * first.nbytes)
    pixels = np.empty((len(files), *first.shape), np.uint8)
    read_all(partial(_read_images, size=size, like=(files[0], first.shape)), files, pixels, workers)
    return pixels


def _read_images(
    files: Sequence[Path], size: int | None, like: tuple[Path, tuple[int, ...]]
) -> np.ndarray:
    """Images (N, H, W, 3); all must have the shape of another one, `like` is its file and shape."""
    images = []
    for file in files:
        image = _read_image(file, size)
        if image.shape != like[1]:
            raise ValueError(
                f"size must be given, since the images differ: {file} is "
                f"{image.shape[1]}x{image.shape[0]}, {like[0]} is {like[1][1]}x{like[1][0]}"
            )
        images.append(image)
    return np.stack(images)


def _read_image(path: Path, size: int | None) -> np.ndarray:
    """One image as (H, W, 3) uint8."""
    from PIL import Image, ImageOps

    image = read_rgb(path)
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)
