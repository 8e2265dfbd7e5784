"""Processes that read all files of a list once, with a sign of life, and their loss."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from sdnet import processes

log = logging.getLogger(__name__)
CHUNK = 64  # files that a process is given at once
TELL_SECONDS = 5.0  # between signs of life


class ReadersLost(Exception):
    """A process that reads images is gone, or cannot hand them over: no fault of what was set."""


def read_all(
    read: Callable[[Sequence[Path]], np.ndarray],
    files: Sequence[Path],
    rows: np.ndarray,
    workers: int | None = None,
) -> None:
    """Fills `rows`, one for each file, by a function that gives those of some files.

    Args:
        workers: processes; None: one per core.

    Raises:
        ReadersLost: one of them was killed, or none could be started.
    """
    chunks = [files[i : i + CHUNK] for i in range(0, len(files), CHUNK)]
    workers = min(processes.cores() if workers is None else workers, len(chunks))
    with _told(len(files)) as tell, ExitStack() as stack:
        try:
            run = map
            if workers > 1:
                # Processes: PIL holds the interpreter's lock for much of a small image's decoding.
                context = get_context(processes.START_METHOD)
                pool = ProcessPoolExecutor(workers, context, processes.stand_apart, (0,))
                run = stack.enter_context(pool).map
            start = 0
            for found in run(read, chunks):
                rows[start : start + len(found)] = found
                start += len(found)
                tell(start)
        except (BrokenProcessPool, OSError) as error:
            raise ReadersLost(
                f"a process that reads images was lost, for want of memory perhaps: {error}"
            ) from error


@contextmanager
def _told(count: int) -> Iterator[Callable[[int], None]]:
    """Shows how far reading is: a bar on a terminal, elsewhere a line now and then."""
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
