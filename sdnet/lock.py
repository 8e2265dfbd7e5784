"""A lock on a run folder, so that two processes never work on one run.

The lock is a file that says who holds it and whose time of change is the holder's heartbeat. It
works between machines with a shared disk. A lock is stale, and taken over, when its process is no
more (told at once where that can be seen: on the same machine), or when its heartbeat has stopped.
"""

import json
import logging
import os
import socket
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

log = logging.getLogger(__name__)
BEAT_SECONDS = 10.0
STALE_SECONDS = 90.0  # without a heartbeat; a shared disk may show one late


class Locked(Exception):
    """Another process, alive as far as can be told, works in the folder."""


def _space() -> str | None:
    """Names this machine, boot and container: where process ids mean the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


class Lock:
    """Holds the lock `path` from `acquire` to `close`, with a heartbeat in a thread."""

    def __init__(self, path: Path):
        self.path = path
        self.token = uuid.uuid4().hex
        self.lost = False  # another process took over, e.g. while this one was suspended
        self._end = threading.Event()

    def acquire(self) -> None:
        """Takes the lock, a stale one over.

        Raises:
            Locked: naming the holder.
        """
        own = psutil.Process()
        content = {
            "host": socket.gethostname(),
            "process": own.pid,
            "started": own.create_time(),
            "space": _space(),
            "token": self.token,
        }
        while not self._create(json.dumps(content)):
            holder = read_holder(self.path)
            if holder is not None:
                if is_alive(self.path, holder):
                    raise Locked(f"is being worked on by {describe(holder)}")
                self._remove_stale(holder)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _create(self, content: str) -> bool:
        try:
            with self.path.open("x", encoding="utf-8") as file:  # only one process can
                file.write(content)
        except FileExistsError:
            return False
        return True

    def _remove_stale(self, stale: dict[str, Any]) -> None:
        """Removes the stale lock, unless another process took it over a moment ago."""
        aside = self.path.with_name(f"{self.path.name}.{self.token}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        moved = read_holder(aside) or {}
        if moved.get("token") != stale.get("token"):  # somebody's fresh one: give it back
            with suppress(FileExistsError):
                os.link(aside, self.path)
        else:
            log.info("taking over from %s, whose heartbeat has stopped", describe(stale))
        aside.unlink()

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            try:
                if (read_holder(self.path) or {}).get("token") != self.token:
                    self.lost = True
                    return
                os.utime(self.path)
            except OSError as error:  # a shared disk may be away for a moment
                log.warning("the lock's heartbeat failed: %s", error)

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        if not self.lost and (read_holder(self.path) or {}).get("token") == self.token:
            self.path.unlink()


def read_holder(path: Path) -> dict[str, Any] | None:
    """What a lock file says; None where there is none, an empty dict where it is not readable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:  # being written, or damaged
        return {}
    return content if isinstance(content, dict) else {}


def is_alive(path: Path, holder: dict[str, Any]) -> bool:
    """Whether the holder of the lock file still works on the run."""
    space = _space()
    if space is not None and holder.get("space") == space:
        try:
            process = psutil.Process(holder["process"])
            same = abs(process.create_time() - holder["started"]) < 1.0  # ids are used again
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
    try:
        return _now(path) - path.stat().st_mtime < STALE_SECONDS
    except FileNotFoundError:
        return False


def _now(path: Path) -> float:
    """The time by the clock of the file system that holds `path`: machines' own ones differ."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}.now")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def describe(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process', '?')} on {holder.get('host', 'an unknown host')}"
