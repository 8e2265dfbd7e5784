"""What was found by reading all images of a folder, kept in its .cache."""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

log = logging.getLogger(__name__)


def cached(
    folder: Path, files: Sequence[Path], what: object, make: Callable[[], np.ndarray]
) -> np.ndarray:
    """What `make` gives, an array with a row for each file: kept from an earlier time, or made now.

    It is kept under the files' names, sizes and times of modification. One that is damaged is made
    anew; a folder that cannot be written gets none.

    Args:
        what: of the files is kept; it has a place of its own.
    """
    key = [[str(f.relative_to(folder)), *_state(f)] for f in files]
    digest = hashlib.blake2b(json.dumps([what, key]).encode(), digest_size=8).hexdigest()
    cache = folder / ".cache" / f"{digest}.npy"
    with suppress(OSError):
        check_memory(len(files), cache.stat().st_size)
    with suppress(Exception):  # not there, or damaged in one of many ways
        return _load(cache, len(files))
    rows = make()
    _save(cache, rows)
    return rows


def _state(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:  # a link that leads nowhere: whoever reads the file says so
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _load(cache: Path, count: int) -> np.ndarray:
    with cache.open("rb") as file:
        rows = np.load(file)
        if len(rows) != count or file.read() != _sum(rows):
            raise ValueError("damaged")
    return rows


def _sum(rows: np.ndarray) -> bytes:
    """Stands behind the rows in the file; numpy reads past it."""
    return zlib.crc32(np.ascontiguousarray(rows)).to_bytes(4, "little")


def _save(cache: Path, rows: np.ndarray) -> None:
    """Writes a temporary file, then renames it."""
    temporary = cache.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, rows)
            file.write(_sum(rows))
        os.replace(temporary, cache)
    except OSError as error:
        log.warning("the decoded images are not cached: %s", error)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_memory(count: int, size: int) -> None:
    """Raises a ValueError for so many images of together so many bytes, if that is too much."""
    memory = psutil.virtual_memory().total
    if 1.5 * size > memory:  # a network has to be trained beside them
        raise ValueError(
            f"root holds {count} images that need {size / 1e9:.1f} GB of memory; this machine has "
            f"{memory / 1e9:.1f} GB: choose a smaller size, or dataset=image_stream, which reads "
            f"them from the disk again and again"
        )
