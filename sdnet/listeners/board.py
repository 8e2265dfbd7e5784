"""A bar for each run that other processes compute, on one terminal; read from the run folders."""

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sdnet.runs.folder import RunFolder

log = logging.getLogger("sdnet")
SECONDS = 1.0  # between looks at the folders


class Board:
    """Shows the runs that are being computed, from `with` to its end.

    Args:
        runs: by what they are called; each folder with the epochs that it will have.
    """

    def __init__(self, console: Console, runs: Mapping[str, tuple[RunFolder, float]]):
        self.runs = dict(runs)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            TextColumn("{task.fields[said]}", markup=False),
        )
        self.progress = Progress(*columns, console=console, transient=True)
        self.tasks: dict = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Board":
        self.progress.start()
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._end.set()
        self._thread.join()
        self.look()  # at how the last of them ended
        self.progress.stop()

    def _follow(self) -> None:
        while not self._end.wait(SECONDS):
            self.look()

    def look(self) -> None:
        """Brings the bars up to what the folders say; tells of each run that has ended."""
        for name, (folder, epochs) in list(self.runs.items()):
            with suppress(OSError, ValueError):  # being written at this moment
                state = folder.state()
                if state == "running":
                    self._show(name, folder, epochs)
                elif name in self.tasks:
                    self._tell(name, folder, state)

    def _show(self, name: str, folder: RunFolder, epochs: float) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=epochs, said="")
        rows = folder.rows()
        if rows:
            last = rows[-1]
            said = f"epoch {last['epoch']:g}/{epochs:g}  loss {last['train_loss']:.4f}"
            if last["val_error"] is not None:
                said += f"  val err {last['val_error']:.2f}"
            self.progress.update(self.tasks[name], completed=last["epoch"], said=said)

    def _tell(self, name: str, folder: RunFolder, state: str) -> None:
        self.progress.remove_task(self.tasks.pop(name))
        del self.runs[name]
        error = folder.summary().get("test_error")
        result = f", {error:.2f} % test error" if state == "completed" else ""
        log.info("%s: %s%s", name, "done" if state == "completed" else state, result)
