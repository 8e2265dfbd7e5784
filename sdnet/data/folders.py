"""Folders of images: decoded once and kept in memory, or read whenever they are needed."""

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np

from sdnet.data.decode import read_rgb
from sdnet.data.split import LISTING, Files, Reading, Source, Split

log = logging.getLogger(__name__)
TELL_SECONDS = 5.0  # between signs of life while images are decoded


def image_folder(root: str, size: int | None = None) -> Source:
    """A folder of images: `root/train/<class>/...` and `root/val`, `root/test` or both.

    One of `val` and `test` alone is the test set; with both, `val` is the validation set. Images
    may lie in nested folders and are taken as RGB, whatever their mode. They are decoded once, in
    parallel, and cached in `root/.cache` (where that can be written) under their names, sizes and
    times of modification.

    Args:
        size: edge in pixels: the shorter side is resized to it and the centre is cropped.
            None takes the images as they are, all of one size.

    Raises:
        ValueError: a missing folder, a class without images or unknown to `train`, an image that
            cannot be read or has another size (named), or more images than fit in memory.
    """
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(f"size must be a whole number of pixels, 1 or more, or null, got {size!r}")
    folder, classes, listing = _list_folder(root)
    pixels = _decode(folder, listing, size)
    ends = np.cumsum([len(part) for part in listing.values()])
    rows = np.split(np.arange(len(pixels)), ends[:-1])
    parts = zip(listing.items(), rows, strict=True)
    data = {name: Split(pixels, _labels(part), indices) for (name, part), indices in parts}
    return _folder_source(data, classes)


def image_stream(
    root: str,
    size: int = 224,
    resize: int = 256,
    scale: Sequence[float] = (0.08, 1.0),
    color: float = 0.4,
    lighting: float = 0.1,
) -> Source:
    """A folder of images as in `image_folder`, which are read anew whenever they are needed.

    For data that do not fit in memory, with the augmentation of the paper's ImageNet recipe. The
    arguments are those of `sdnet.data.split.Reading`.

    Raises:
        ValueError: an argument that is out of range, and what `image_folder` finds in the listing.
    """
    reading = Reading(size, resize, scale, color, lighting)
    folder, classes, listing = _list_folder(root)
    data = {name: Files(*_names(folder, part), reading) for name, part in listing.items()}
    return _folder_source(data, classes)


def _names(folder: Path, part: list[tuple[str, int]]) -> tuple[str, np.ndarray, np.ndarray]:
    names = np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in part])
    return str(folder), names, _labels(part)


def _labels(part: list[tuple[str, int]]) -> np.ndarray:
    return np.array([label for _, label in part], dtype=np.int64)


def _folder_source(data: dict, classes: list[str]) -> Source:
    """`val` validates where there is a `test`, and else is the test set."""
    if len(data) == 3:
        return Source(data["train"], data["test"], classes, validation=data["val"])
    return Source(data["train"], data.get("test") or data["val"], classes)


def _list_folder(root: str) -> tuple[Path, list[str], dict[str, list[tuple[str, int]]]]:
    """The folder, its classes, and the (file, label) pairs of each of its parts."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ValueError(f"root {str(root)!r} is not a folder")
    if not (folder / "train").is_dir():
        raise ValueError(f"root {str(root)!r} must hold a folder train/ with a folder per class")
    held_out = [part for part in ("val", "test") if (folder / part).is_dir()]
    if not held_out:
        raise ValueError(f"root {str(root)!r} must hold a folder test/ or val/ beside train/")
    meant = ("val", "valid", "validation", "dev", "test", "testing", "eval")
    others = [d for d in _class_names(folder) if d.lower() in meant and d not in held_out]
    if others:
        raise ValueError(
            f"root {str(root)!r} holds {others[0]}/, which would not be read: a validation or test "
            f"part must be called val/ or test/"
        )
    classes = _class_names(folder / "train")
    parts = ("train", *held_out)
    return folder, classes, {part: _list_images(folder / part, classes) for part in parts}


def _class_names(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _list_images(folder: Path, classes: list[str]) -> list[tuple[str, int]]:
    """The (file, label) pairs of one part in a fixed order."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    unknown = sorted(set(_class_names(folder)) - set(classes))
    if unknown:
        raise ValueError(
            f"root holds classes in {folder.name}/ that train/ has not: {unknown}; it must hold a "
            f"folder for each class, with the names of those in train/"
        )
    if not classes:
        raise ValueError(f"root must hold a folder per class in {folder.name}/, it has none")
    missing = [name for name in classes if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"root must hold a folder per class in {folder.name}/, missing: {missing}")
    try:
        found = make_dataset(folder, {c: i for i, c in enumerate(classes)}, IMG_EXTENSIONS)
    except FileNotFoundError as error:  # a class without images
        raise ValueError(f"root holds a class without images in {folder.name}/: {error}") from error
    # ._0.png of a Mac's, .ipynb_checkpoints: no images of anybody's
    shown = [item for item in found if not _is_hidden(Path(item[0]).relative_to(folder))]
    empty = sorted({classes[label] for _, label in found} - {classes[label] for _, label in shown})
    if empty:
        raise ValueError(f"root holds a class without images in {folder.name}/: {empty}")
    return shown


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _decode(folder: Path, listing: dict, size: int | None) -> np.ndarray:
    """All images in turn, (N, H, W, 3) uint8: from the cache, or decoded and cached."""
    files = [Path(path) for part in listing.values() for path, _ in part]
    if LISTING.get():
        return np.broadcast_to(np.uint8(0), (len(files), *_read_image(files[0], size).shape))
    key = [[str(f.relative_to(folder)), (s := f.stat()).st_size, s.st_mtime_ns] for f in files]
    digest = hashlib.blake2b(json.dumps([size, key]).encode(), digest_size=8).hexdigest()
    cache = folder / ".cache" / f"{digest}.npy"
    try:
        _check_memory(len(files), cache.stat().st_size)
        return _load_cache(cache, len(files))
    except (OSError, EOFError, _Damaged):  # not there, not readable
        log.info("decoding %d images of %s once", len(files), folder)
        pixels = _decode_files(files, size)
        _save_cache(cache, pixels)
        return pixels


class _Damaged(Exception):
    """The cache is not what was written there."""


def _load_cache(cache: Path, count: int) -> np.ndarray:
    try:
        pixels = np.load(cache)
    except (ValueError, TypeError) as error:
        raise _Damaged from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != count:
        raise _Damaged
    return pixels


def _check_memory(count: int, size: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 1.5 * size > memory:  # a network has to be trained beside them
        raise ValueError(
            f"root holds {count} images that need {size / 1e9:.1f} GB of memory; this machine has "
            f"{memory / 1e9:.1f} GB: choose a smaller size, or dataset=image_stream, which reads "
            f"them from the disk again and again"
        )


def _decode_files(files: list[Path], size: int | None, workers: int | None = None) -> np.ndarray:
    first = _read_image(files[0], size)
    _check_memory(len(files), len(files) * first.nbytes)
    chunks = [files[i : i + 64] for i in range(0, len(files), 64)]
    workers = min(os.cpu_count() if workers is None else workers, len(chunks))
    with _told(len(files)) as tell, ExitStack() as stack:
        # Processes: PIL holds the interpreter's lock for much of a small image's decoding.
        run = stack.enter_context(ProcessPoolExecutor(workers)).map if workers > 1 else map
        pixels = np.empty((len(files), *first.shape), np.uint8)
        start = 0
        for decoded in run(partial(_read_images, size=size, like=(files[0], first.shape)), chunks):
            pixels[start : start + len(decoded)] = decoded
            start += len(decoded)
            tell(start)
    return pixels


@contextmanager
def _told(count: int) -> Iterator[Callable[[int], None]]:
    """Shows how far decoding is: a bar on a terminal, elsewhere a line now and then."""
    if sys.stdout.isatty():
        from rich.progress import Progress

        with Progress(transient=True) as progress:
            task = progress.add_task("decoding", total=count)
            yield lambda done: progress.update(task, completed=done)
        return
    told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            log.info("decoded %d of %d images", done, count)

    yield tell


def _read_images(files: list[Path], size: int | None, like: tuple[Path, tuple]) -> np.ndarray:
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


def _save_cache(cache: Path, pixels: np.ndarray) -> None:
    """Writes a temporary file, then renames it; a folder that cannot be written gets no cache."""
    temporary = cache.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, pixels)
        os.replace(temporary, cache)
    except OSError as error:
        log.warning("the decoded images are not cached: %s", error)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
