"""A lock on a run folder, so that two processes never work on one run.

The lock is a file that says who holds it and whose time of change is the holder's heartbeat. It
works between machines with a shared disk. A lock is stale, and taken over, when its process is no
more (told at once where that can be seen: on the same machine), or when its heartbeat has stopped.

Why not filelock's SoftFileLease (tried: 4.3.1): where names cannot be exchanged (NFS) it never
takes a stale lock over; it steals a live one of another machine with the same hostname; one silent
on another machine, or killed but not yet reaped, every newcomer must watch for a whole lease; an
empty file stays in the way for good; and whether a holder lives, it tells only to who acquires.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
BEAT_SECONDS = 10.0
STALE_SECONDS = 90.0  # without a heartbeat; a shared disk may show one late
MOST = 4096  # characters that a lock holds
WATCH_SECONDS = 2 * BEAT_SECONDS  # that a lock must stand still before it is taken over


class Locked(Exception):
    """Another process, alive as far as can be told, works in the folder."""


def _space() -> str | None:
    """Names this machine, boot and container: where process ids mean the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(process: int) -> int | None:
    """When a living process started, in ticks since boot, which no change of the clock moves."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])


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
        own = os.getpid()
        content = {
            "host": socket.gethostname(),
            "process": own,
            "started": _started(own),
            "space": _space(),
            "token": self.token,
        }
        mine = self.path.with_name(f"{self.path.name}.{self.token}")
        mine.write_text(json.dumps(content), encoding="utf-8")
        try:
            while not self._place(mine):
                holder = read_holder(self.path)
                if holder is None:
                    continue
                if is_alive(self.path, holder) or _beats(self.path, holder):
                    raise Locked(f"is being worked on by {describe(holder)}")
                if self._take_over(mine, holder):
                    break
        finally:
            mine.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _place(self, mine: Path) -> bool:
        """Puts the lock where there is none; only one process can."""
        try:
            os.link(mine, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            with suppress(FileExistsError), self.path.open("x", encoding="utf-8") as file:
                file.write(mine.read_text(encoding="utf-8"))
                return True
            return False
        return True

    def _take_over(self, mine: Path, stale: dict[str, Any]) -> bool:
        """Replaces a stale lock, which nobody else may do meanwhile; a fresh one never moves."""
        claim = self.path.with_name(f"{self.path.name}.claim-{stale.get('token', 'damaged')}")
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:  # another process is at it, or died at it
            with suppress(FileNotFoundError):
                if _now(claim) - claim.stat().st_mtime > STALE_SECONDS:
                    claim.unlink()
            time.sleep(0.05)
            return False
        try:
            if (read_holder(self.path) or {}).get("token") != stale.get("token"):
                return False
            os.replace(mine, self.path)
        finally:
            claim.unlink(missing_ok=True)
        log.info("taking over from %s, which is gone", describe(stale))
        return True

    def held(self) -> bool:
        """Whether the lock is still this process's: asked before something is written for good."""
        if (read_holder(self.path) or {}).get("token") != self.token:
            self.lost = True
        return not self.lost

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            try:
                if not self.held():
                    return
                os.utime(self.path)
            except OSError as error:  # a shared disk may be away for a moment
                log.warning("the lock's heartbeat failed: %s", error)

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        with suppress(OSError):  # read-only by now: a lock without its process is stale
            if self.held():
                self.path.unlink(missing_ok=True)


def read_holder(path: Path) -> dict[str, Any] | None:
    """What a lock file says; None where there is none, an empty dict where it is not readable."""
    try:
        with path.open(encoding="utf-8") as file:
            content = json.loads(file.read(MOST))
        kinds = {"process": int, "token": str, "host": str}
        sound = all(type(content.get(key)) is kind for key, kind in kinds.items())
        return content if sound and content["token"].isalnum() else {}
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, RecursionError):  # being written, or damaged
        return {}


def is_alive(path: Path, holder: dict[str, Any]) -> bool:
    """Whether the holder of the lock file still works on the run."""
    space = _space()
    if space is not None and holder.get("space") == space:
        started = _started(holder["process"])
        return started is not None and started == holder.get("started")  # ids are used again
    try:
        return _now(path) - path.stat().st_mtime < STALE_SECONDS
    except FileNotFoundError:
        return False


def _beats(path: Path, holder: dict[str, Any]) -> bool:
    """Whether a lock that seems stale still has a heartbeat: watched where no process can be asked.

    On some shared disks the holder's own clock stamps the file, and that may be an hour slow.
    """
    space = _space()
    if space is not None and holder.get("space") == space:
        return False
    try:
        before = path.stat().st_mtime_ns
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline:
            time.sleep(WATCH_SECONDS / 40)
            if path.stat().st_mtime_ns != before:
                return True
    except FileNotFoundError:
        pass
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
