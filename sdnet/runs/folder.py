"""The run folder: names, configuration, status, metrics, checkpoints, in plain files.

    config.yaml        the resolved configuration
    provenance.json    command, commit, versions, device, the W&B run's id
    metrics.csv        a row per evaluation; telemetry.csv: and branch
    summary.json       status and result
    checkpoints/       last.pt, the previous one of it, best.pt
    predictions.npz    what the network of best.pt says of each image
    figures/  wandb/  export/  evaluation/  train.log
    lock               while a process works on the run

Errors are percent, times seconds, sizes bytes. How files are written: `sdnet.runs.files`.
"""

import csv
import io
import json
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sdnet import lock
from sdnet.runs.files import (
    Damaged,
    Plain,
    Unfolded,
    load_checkpoint,
    read_plain,
    save_checkpoint,
    write_atomically,
)
from sdnet.runs.identity import identity
from sdnet.runs.predictions import step_of

FILES = ("config.yaml", "provenance.json", "metrics.csv", "summary.json", "train.log", "lock")
FILES += ("predictions.npz", "telemetry.csv")
FILES += tuple(f"checkpoints/{name}.pt" for name in ("last", "previous", "best"))
FILES += tuple(f"figures/{name}.png" for name in ("survival", "curves", "gradients"))
FOLDERS = ("checkpoints", "figures", "wandb", "export", "evaluation")
RESULT = ("best_epoch", "test_error", "final_test_error", "train_seconds", "eval_seconds")
RESULT += ("blocks", "expected_active_blocks", "mean_active_blocks")  # of a completed run, to tell
MOST_YAML, MOST_JSON = 2**18, 2**22  # bytes that are read: the former takes three seconds

log = logging.getLogger("sdnet")

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_error",
    "val_loss",
    "val_error",
    "val_top5_error",
    "test_loss",
    "test_error",
    "test_top5_error",
    "train_seconds",
    "eval_seconds",
    "images_per_second",
    "active_blocks",
)
RESUMABLE = ("model", "optimizer", "counters", "sums")  # a last checkpoint holds, at least


def select(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The row whose test error is reported, and the rule that chose it.

    The rule is the paper's: the epoch of lowest validation error, here the latest of equals;
    without validation images the last epoch. The test error never takes part in the choice.
    """
    if rows[-1]["val_error"] is None:
        return rows[-1], "last epoch (no validation images)"
    lowest = min(row["val_error"] for row in rows)
    best = [row for row in rows if row["val_error"] == lowest][-1]
    return best, "lowest validation error, the latest of equals"


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._known: str | None = None  # the text of metrics.csv, in the process that writes it

    def create(self, config: dict[str, Any], provenance: dict[str, Any]) -> None:
        """Makes the folder of a new run.

        Raises:
            FileExistsError: the folder holds a run already.
        """
        if self.holds_run():
            raise FileExistsError(f"holds a run already; resume={self.path} continues it")
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_provenance(provenance)
        self.write_summary({"status": "running", "identity": identity(config)})
        text = yaml.dump(config, Dumper=Unfolded, sort_keys=False)
        write_atomically(self.path / "config.yaml", text)

    def holds_run(self) -> bool:
        return os.path.isfile(self.path / "config.yaml")  # False for a name that cannot be

    def check_identity(self, config: dict[str, Any]) -> None:
        """Raises a ValueError where the folder holds a run of another configuration, or damage."""
        try:
            self.check_places()
            if not self.holds_run():
                return
            self.provenance()
            summary = self.summary()
            for name in ("status", "identity"):
                if not isinstance(summary.get(name), str):
                    raise Damaged(f"summary.json has no text {name}")
            lacking = [name for name in RESULT if type(summary.get(name)) not in (int, float)]
            if summary["status"] == "completed" and lacking:
                raise Damaged(f"summary.json has no number {lacking[0]}")
            wanted, stored = identity(config), {identity(self.config()), summary["identity"]}
        except Exception as error:  # of what stands where nothing like it belongs
            why = error if isinstance(error, Damaged) else f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.path} is damaged ({why}): mend it or move it away") from error
        if stored != {wanted}:
            raise ValueError(
                f"{self.path} holds another run: its identity is "
                f"{' and '.join(sorted(stored))}, not {wanted}. It is left as it is: move it "
                f"away, or give the sweep another name"
            )

    def check_places(self) -> None:
        """Raises Damaged where what is written into the folder would land elsewhere, or nowhere."""
        inside = os.path.realpath(self.path)
        for name in (*FOLDERS, *FILES):
            place, kind = self.path / name, "folder" if name in FOLDERS else "file"
            ends = Path(os.path.realpath(place))
            if place.is_symlink() and not (place.exists() and ends.is_relative_to(inside)):
                raise Damaged(f"{name} is a link that leads out of it")
            if place.exists() and not (place.is_dir() if kind == "folder" else place.is_file()):
                raise Damaged(f"{name} is not a {kind}")

    def lock(self) -> lock.Lock:
        return lock.Lock(self.path / "lock")

    def state(self) -> str:
        """new (no run yet), running (a living process holds the lock), or how the run ended."""
        holder = lock.read_holder(self.path / "lock")
        if holder is not None and lock.is_alive(self.path / "lock", holder):
            return "running"
        return self.ended()

    def ended(self) -> str:
        """`state` for one who knows that nobody else works on the run.

        A run whose process vanished before it could say anything is interrupted.
        """
        if not self.holds_run():
            return "new"
        status = self.summary()["status"]
        return "interrupted" if status == "running" else status

    def restart(self) -> None:
        """Forgets what was measured and learnt; configuration and provenance stay."""
        states = [self.checkpoint(name) for name in ("last", "previous", "best")]
        for file in (self.path / "metrics.csv", *states, self.predictions, self.telemetry):
            file.unlink(missing_ok=True)
        self.write_summary({"status": "running", "identity": self.summary()["identity"]})

    def remove_temporary(self) -> None:
        """Removes what a killed process left of files that it was writing."""
        for pattern in (".*.tmp", "checkpoints/*.tmp"):
            for path in filter(Path.is_file, self.path.glob(pattern)):
                path.unlink()

    # -- plain files ------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        return read_plain(self.path / "config.yaml", lambda text: yaml.load(text, Plain), MOST_YAML)

    def summary(self) -> dict[str, Any]:
        return read_plain(self.path / "summary.json", json.loads, MOST_JSON)

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def set_status(
        self, status: str, reason: str | None = None, result: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """running, interrupted, completed, diverged or failed; the reason where there is one.

        What the summary knew stays, but for what `result` says anew. Returns the summary.
        """
        before = {k: v for k, v in self.summary().items() if k not in ("status", "reason")}
        head = {"status": status} | ({} if reason is None else {"reason": reason})
        summary = head | before | (result or {})
        self.write_summary(summary)
        return summary

    def provenance(self) -> dict[str, Any]:
        found = read_plain(self.path / "provenance.json", json.loads, MOST_JSON)
        again = found.get("resumed", [])
        if not isinstance(again, list) or not all(isinstance(entry, dict) for entry in again):
            raise Damaged("provenance.json cannot be read: resumed is no list of entries")
        return found

    def write_provenance(self, provenance: dict[str, Any]) -> None:
        write_atomically(self.path / "provenance.json", json.dumps(provenance, indent=2) + "\n")

    @property
    def predictions(self) -> Path:
        """What the best checkpoint's network says; see `sdnet.runs.predictions`."""
        return self.path / "predictions.npz"

    @property
    def telemetry(self) -> Path:
        """Of each block and evaluation; see `sdnet.listeners.telemetry`."""
        return self.path / "telemetry.csv"

    @property
    def figures(self) -> Path:
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    # -- metrics ----------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, float | None]]:
        """The rows of metrics.csv as numbers; None where a cell is empty."""
        lines = io.StringIO(self.metrics(), newline="")
        return [
            {k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(lines)
        ]

    def append_row(self, row: dict[str, float | None]) -> None:
        """Adds a row to metrics.csv; the file is replaced as a whole, so it is never half a row."""
        known, there = self._known, self._metrics_there()
        if known is not None and known != there:
            log.warning("%s/metrics.csv is not what was written: it is restored", self.path)
        text = (there if known is None else known) or ",".join(COLUMNS) + "\n"
        columns = text.partition("\n")[0].split(",")  # a file that was begun keeps its own
        cells = ["" if row[c] is None else f"{row[c]:.8g}" for c in columns]
        text += ",".join(cells) + "\n"
        write_atomically(self.path / "metrics.csv", text)
        if known is not None:
            self._known = text

    def metrics(self) -> str:
        """The text of metrics.csv as it was written, empty where there is none; kept in each
        checkpoint."""
        return self._metrics_there() if self._known is None else self._known

    def _metrics_there(self) -> str:
        file = self.path / "metrics.csv"
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""

    def drop_after(self, step: int, metrics: str | None = None) -> None:
        """Forgets rows and a best checkpoint later than `step`: they will be measured again.

        Args:
            metrics: the text that metrics.csv had at that step, from the checkpoint, if known.
        """
        best = self.best()
        if best is not None and best["step"] > step:
            self.checkpoint("best").unlink()
        if (step_of(self.predictions) or 0) > step:
            self.predictions.unlink()
        text = self._metrics_there()
        if metrics is not None:
            if not text.startswith(metrics):
                log.warning("%s/metrics.csv is not what was written: it is restored", self.path)
            kept = metrics
        else:
            head, *lines = text.splitlines(keepends=True) or [""]
            at = COLUMNS.index("step")
            kept = head + "".join(line for line in lines if float(line.split(",")[at]) <= step)
        if kept != text:
            write_atomically(self.path / "metrics.csv", kept)
        self._known = kept  # whatever becomes of the file while this process adds to it

    # -- checkpoints ------------------------------------------------------------------------------

    def checkpoint(self, name: str = "last") -> Path:
        return self.path / "checkpoints" / f"{name}.pt"

    def save_checkpoint(self, state: dict[str, Any], name: str = "last") -> None:
        """Writes a checkpoint; of `last` the one before is kept as `previous`."""
        path = self.checkpoint(name)
        path.parent.mkdir(exist_ok=True)
        state = state | {"identity": self.summary().get("identity")}
        save_checkpoint(path, state, self.checkpoint("previous") if name == "last" else None)

    def load_checkpoint(self, name: str = "last") -> dict[str, Any] | None:
        """The stored state on the CPU, or None where there is no checkpoint yet.

        Raises:
            Damaged: what is there is not what was written.
        """
        state = load_checkpoint(self.checkpoint(name))
        if isinstance(state, dict) and self.holds_run():
            own = self.summary().get("identity")
            if state.pop("identity", own) != own:
                raise Damaged("it is that of another run")
        return state

    def newest(self) -> dict[str, Any] | None:
        """The state to resume from: the last one, or the previous one where that is damaged."""
        told, state = [], None
        for name in ("last", "previous"):
            try:
                state = self._holding(name, RESUMABLE)
            except Damaged as error:
                told.append(self._set_aside(name, error))
            if state is not None:
                break
        instead = "the run begins anew"
        if state is not None:
            instead = f"the run goes on from {name}.pt, step {state['counters']['step']}"
        for text in told:
            log.warning("%s; %s", text, instead)
        return state

    def best(self) -> dict[str, Any] | None:
        """The state of the best checkpoint; None where there is none, or a damaged one."""
        try:
            return self._holding("best", ("model", "step"))
        except Damaged as error:
            log.warning("%s; the run goes on without it", self._set_aside("best", error))
            return None

    def has_best(self, step: int) -> bool:
        """Whether the best checkpoint and its predictions are there, of this step."""
        best = self.best()
        return best is not None and best["step"] == step == step_of(self.predictions)

    def _holding(self, name: str, keys: Sequence[str]) -> dict[str, Any] | None:
        state = self.load_checkpoint(name)
        if state is not None and not (isinstance(state, dict) and set(keys) <= state.keys()):
            raise Damaged(f"it does not hold {', '.join(keys)}")
        return state

    def _set_aside(self, name: str, error: Damaged) -> str:
        """Renames a damaged checkpoint, so that none is made from it; returns what to tell."""
        path = self.checkpoint(name)
        aside = path.with_name(f"{path.name}.damaged")
        if aside.is_dir():
            aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.damaged")
        os.replace(path, aside)
        return f"{path} is damaged ({error}) and is now {aside.name}"
