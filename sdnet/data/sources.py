"""Where images come from: one function per data set, each returning a `Source`.

A data set of your own is one such function and one file in `conf/dataset/`.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np

from sdnet.data.decode import read_rgb
from sdnet.data.streaming import Files, Reading

log = logging.getLogger(__name__)
DIGITS_ORDER = Path(__file__).with_name("digits_order.txt")


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
        if self.indices is None:
            self.indices = np.arange(len(self.images))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.images.shape[1:]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.images[self.indices[rows]]

    def subset(self, rows: np.ndarray) -> "Split":
        return Split(self.images, self.labels[rows], self.indices[rows])


@dataclass
class Source:
    """A data set before validation images are set aside; `validation` where it brings its own.

    `parts` are the sizes of the parts that `train` was joined from, in their order.
    """

    train: Split | Files
    test: Split | Files
    classes: list[str]
    validation: Split | Files | None = None
    parts: list[int] | None = None  # None: one

    def __post_init__(self):
        if self.parts is None:
            self.parts = [len(self.train)]


def digits(size: int = 16) -> Source:
    """Scikit-learn's 1,797 handwritten digits (UCI ML Repository), bundled with that library.

    Args:
        size: the 8x8 originals are enlarged bilinearly to `size` x `size` pixels.

    The test part is a fifth (360 images), stratified by class and the same for every seed.
    """
    from PIL import Image

    if not isinstance(size, int) or size < 8:
        raise ValueError(f"size must be a whole number of pixels, 8 or more, got {size!r}")
    table = _read_digits()
    images = np.stack(
        [
            np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
            for image in np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        ]
    )[..., None]
    everything = Split(images, table[:, 64].astype(np.int64))
    # All images in the order of train_test_split(..., test_size=0.2, stratify=labels,
    # random_state=0): 1,437 for training, then those for test.
    order = np.array(DIGITS_ORDER.read_text().split(), dtype=np.int64)
    train, test = np.split(order, [1437])
    return Source(everything.subset(train), everything.subset(test), [str(d) for d in range(10)])


def _read_digits() -> np.ndarray:
    """A row for each image: its 64 pixels, of 0 to 16, and its label."""
    # The file that load_digits reads: scikit-learn itself takes a second to import, with pandas and
    # much of scipy.
    package = find_spec("sklearn")
    file = package and Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
    if file and file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # which knows where the file has gone

    return np.column_stack(load_digits(return_X_y=True))


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

    try:
        return getattr(datasets, name)(root, **options)
    except (OSError, RuntimeError) as error:  # no network; missing or damaged files
        raise ValueError(
            f"root {root!r} does not hold {name}, and it could not be downloaded there "
            f"({error}); put {files} there"
        ) from error


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
    arguments are those of `sdnet.data.streaming.Reading`.

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
        raise ValueError(f"root holds classes in {folder.name}/ that train/ has not: {unknown}")
    if not classes:
        raise ValueError(f"root must hold a folder per class in {folder.name}/, it has none")
    missing = [name for name in classes if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"root must hold a folder per class in {folder.name}/, missing: {missing}")
    try:
        return make_dataset(folder, {c: i for i, c in enumerate(classes)}, IMG_EXTENSIONS)
    except FileNotFoundError as error:  # a class without images
        raise ValueError(f"root holds a class without images in {folder.name}/: {error}") from error


def _decode(folder: Path, listing: dict, size: int | None) -> np.ndarray:
    """All images in turn, (N, H, W, 3) uint8: from the cache, or decoded and cached."""
    files = [Path(path) for part in listing.values() for path, _ in part]
    key = [[str(f.relative_to(folder)), (s := f.stat()).st_size, s.st_mtime_ns] for f in files]
    digest = hashlib.blake2b(json.dumps([size, key]).encode(), digest_size=8).hexdigest()
    cache = folder / ".cache" / f"{digest}.npy"
    try:
        _check_memory(len(files), cache.stat().st_size)
        return np.load(cache)
    except (OSError, EOFError):  # not there, not readable
        log.info("decoding %d images of %s once", len(files), folder)
        pixels = _decode_files(files, size)
        _save_cache(cache, pixels)
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
    with ExitStack() as stack:
        # Processes: PIL holds the interpreter's lock for much of a small image's decoding.
        run = stack.enter_context(ProcessPoolExecutor(workers)).map if workers > 1 else map
        pixels = np.empty((len(files), *first.shape), np.uint8)
        start = 0
        for decoded in run(partial(_read_images, size=size, like=(files[0], first.shape)), chunks):
            pixels[start : start + len(decoded)] = decoded
            start += len(decoded)
    return pixels


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
