"""Which images a folder holds: its parts, the classes in them, and the files of each."""

import hashlib
import logging
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)
Listing = dict[str, list[tuple[str, int]]]  # the (file, label) pairs of each part
MEANT = ("val", "valid", "validation", "dev", "test", "tests", "testing", "eval", "evaluation")
# Of a fingerprint: the sizes that are asked for, and the files whose first bytes are read.
MOST_SIZES, MOST_STARTS, START = 100_000, 1000, 2**16
NO_IMAGES = ("@eaDir", "__MACOSX")  # small copies on a Synology NAS, what a Mac's zip adds


def list_folder(root: str) -> tuple[Path, list[str], Listing]:
    """The folder, its classes, and the (file, label) pairs of its parts in a fixed order.

    What is hidden is no image. Links are followed, but each image is there once: a link to what
    the folder holds already would put it into two classes, or into training and test.

    Raises:
        ValueError: what is missing, is there twice, or would be passed over; it is named.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ValueError(f"root {str(root)!r} is not a folder")
    if not (folder / "train").is_dir():
        raise ValueError(f"root {str(root)!r} must hold a folder train/ with a folder per class")
    held_out = [part for part in ("val", "test") if (folder / part).is_dir()]
    if not held_out:
        raise ValueError(f"root {str(root)!r} must hold a folder test/ or val/ beside train/")
    others = [d for d in _folders(folder) if d.lower() in MEANT and d not in held_out]
    if others:
        raise ValueError(
            f"root {str(root)!r} holds {others[0]}/, which would not be read: a validation or test "
            f"part must be called val/ or test/"
        )
    unread = [d for d in _folders(folder) if d not in ("train", *held_out)]
    if unread:
        log.info("%s holds folders that are not read: %s", folder, ", ".join(unread))
    classes = _folders(folder / "train")
    walk = _Walk()
    try:
        listing = {part: _list_part(folder / part, classes, walk) for part in ("train", *held_out)}
    except OSError as error:
        raise ValueError(f"root holds a folder that cannot be read: {error}") from error
    walk.check_links()
    return folder, classes, listing


def _folders(folder: Path) -> list[str]:
    """The names of the visible folders in one."""
    found = []
    for path in folder.iterdir():
        if path.is_dir():
            found.append(path.name)
        else:
            _check_link(path)  # a class of a disk that is not there?
    return sorted(name for name in found if not _is_hidden(name))


def _check_link(path: str | Path) -> None:
    if os.path.islink(path) and not os.path.exists(path):
        raise ValueError(f"root holds a link that leads nowhere: {path}")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in NO_IMAGES  # ._0.png of a Mac's, .ipynb_checkpoints


def _list_part(folder: Path, classes: list[str], walk: "_Walk") -> list[tuple[str, int]]:
    found = _folders(folder)
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise ValueError(
            f"root holds classes in {folder.name}/ that train/ has not: {unknown}; it must hold a "
            f"folder for each class, with the names of those in train/"
        )
    if not classes:
        raise ValueError(f"root must hold a folder per class in {folder.name}/, it has none")
    missing = [name for name in classes if name not in found]
    if missing:
        raise ValueError(f"root must hold a folder per class in {folder.name}/, missing: {missing}")
    walk.others.clear()
    images = [
        (path, label) for label, name in enumerate(classes) for path in walk.images(folder / name)
    ]
    check_classes(folder.name, images, classes)
    outside = sum(is_image(f.name) and f.is_file() for f in folder.iterdir())
    told = [f"{count} {kind}" for kind, count in walk.others.most_common(5)]
    told += ["others"] if len(walk.others) > 5 else []
    told += [f"{outside} outside the classes' folders"] if outside else []
    if told:
        log.info("%s/ holds files that are not read: %s", folder.name, ", ".join(told))
    return images


def check_classes(part: str, images: list[tuple[str, int]], classes: list[str]) -> None:
    """Raises a ValueError that names the classes of which there is no image."""
    labels = {label for _, label in images}
    empty = [name for label, name in enumerate(classes) if label not in labels]
    if empty:
        raise ValueError(f"root holds a class without images in {part}/: {empty}")


def fingerprint(folder: Path, listing: Listing) -> str:
    """Sixteen hex digits for the names of all images, the sizes of many, the content of some."""
    digest = hashlib.blake2b(digest_size=8)
    files = [path for part in listing.values() for path, _ in part]
    every_size, every_start = (-(-len(files) // most) for most in (MOST_SIZES, MOST_STARTS))
    for i, path in enumerate(files):
        digest.update(os.fsencode(os.path.relpath(path, folder)) + b"\0")
        with suppress(OSError):  # whoever reads it says so
            if i % every_size == 0:
                digest.update(str(os.stat(path).st_size).encode())
            if i % every_start == 0 and os.path.isfile(path):
                with open(path, "rb") as file:
                    digest.update(file.read(START))
    return digest.hexdigest()


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image that is read."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return name.lower().endswith(IMG_EXTENSIONS) and not _is_hidden(name)


def _kind(name: str) -> str:
    ending = os.path.splitext(name)[1].lower()
    return ascii(ending)[1:-1] or "without an ending"


class _Walk:
    """Goes through folders and remembers what it met."""

    def __init__(self):
        self.entered: dict[str, str] = {}  # real folders and those above them, by their first path
        self.holds: set[str] = set()  # real folders whose files are listed
        self.links: list[str] = []  # images that are links
        self.others: Counter[str] = Counter()  # kinds of visible files that are no images

    def images(self, top: Path) -> list[str]:
        """The images below a folder, sorted by their folders and names."""
        found, folders = [], [str(top)]
        while folders:
            folder = folders.pop()
            self._enter(folder)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_hidden(entry.name):
                        continue
                    if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                        folders.append(entry.path)
                    elif is_image(entry.name):
                        found.append((folder, entry.name))
                        self.links += [entry.path] if entry.is_symlink() else []
                    else:
                        _check_link(entry.path)
                        self.others[_kind(entry.name)] += 1
        return [os.path.join(*each) for each in sorted(found)]

    def _enter(self, folder: str) -> None:
        real = os.path.realpath(folder)
        if real in self.entered:
            raise ValueError(_twice(self.entered[real], folder))
        self.holds.add(real)
        while real not in self.entered:
            self.entered[real] = folder
            real = os.path.dirname(real)

    def check_links(self) -> None:
        """Raises a ValueError for a link to an image that is listed; others are images as any."""
        for link in self.links:
            real = os.path.realpath(link)
            folder, name = os.path.split(real)
            leads = not os.path.islink(real)  # not to itself
            if leads and folder in self.holds and is_image(name):
                raise ValueError(_twice(os.path.join(self.entered[folder], name), link))


def _twice(first: str, second: str) -> str:
    return (
        f"root holds images twice, by a link, in {first} and {second}: each may be there once, in "
        f"one part and one class"
    )
