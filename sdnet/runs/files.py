"""Files that are whole or not there, read with caution, and checkpoints that know their content.

A file is written beside its place, flushed to the disk and renamed. A checkpoint is one of torch's
files with a digest of itself behind it, which torch passes over.
"""

import hashlib
import os
import pickle
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from sdnet.runs.shown import visible

DIGEST = b"sdnet/blake2b:"  # before the digest, at the end of a checkpoint
SIZE = 32  # bytes of a digest
SEALED = "sealed"  # in a state whose file has a digest


class Damaged(ValueError):
    """What a file holds is not what was written there; the text says why."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` once it is whole; an error leaves none."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a new name in a folder last; some systems cannot."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file as `replacing` does."""
    content = text.encode("utf-8")
    with replacing(path) as file:
        file.write(content)


class Plain(yaml.SafeLoader):
    """YAML without references, of which a few lines unfold to more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to another part of itself")
        return super().compose_node(parent, index)


class Unfolded(yaml.SafeDumper):
    """YAML without references, whatever stands in two places."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_plain(path: Path, parse: Callable[[str], Any], most: int) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"it is larger than {most:,} bytes")
        found = parse(content.decode())
        if not isinstance(found, dict):
            raise ValueError("it holds nothing" if found is None else "it holds no names")
    except Exception as error:  # parsers raise more than they say
        why = getattr(error, "strerror", None) or getattr(error, "problem", None) or str(error)
        raise Damaged(f"{path.name} cannot be read: {visible(' '.join(why.split()))}") from error
    return found


class _Digesting:
    """A file for torch.save that knows the digest of what was written."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest = file, hashlib.blake2b(digest_size=SIZE)

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Writes a state of tensors and plain values, with its digest.

    Args:
        previous: where the file that stood there so far is kept.
    """
    import torch

    with replacing(path) as file:
        digesting = _Digesting(file)
        torch.save(state | {SEALED: True}, digesting)
        file.write(DIGEST + digesting.digest.digest())
        if previous is not None and path.exists():
            _keep(path, previous)


def _keep(path: Path, previous: Path) -> None:
    """A second name for a file, which keeps its own until another one takes it."""
    previous.unlink(missing_ok=True)
    try:
        os.link(path, previous)
    except OSError:  # a file system without hard links
        os.replace(path, previous)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state in a file, on the CPU; None where there is no file.

    Raises:
        Damaged: what is there is not what was written, or holds more than tensors and plain values.
    """
    import torch

    if not path.exists():
        return None
    if not path.is_file():
        raise Damaged("it is no file")
    has_digest = check_digest(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Damaged("it holds something else than tensors and plain values") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise Damaged("it is no whole checkpoint") from error
    if isinstance(state, dict) and state.pop(SEALED, False) and not has_digest:
        raise Damaged("its checksum is gone")
    return state


def check_digest(path: Path) -> bool:
    """Whether a file has a digest; raises Damaged where it is not its own."""
    end = len(DIGEST) + SIZE
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < end:
            raise Damaged(f"it has {size} bytes")
        file.seek(size - end)
        mark = file.read(len(DIGEST))
        stored = file.read(SIZE)
        if mark != DIGEST:
            return False  # written by an earlier version, or by somebody else
        file.seek(0)
        digest, left = hashlib.blake2b(digest_size=SIZE), size - end
        while left:
            block = file.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block)
    if digest.digest() != stored:
        raise Damaged("its checksum is not that of its content")
    return True
