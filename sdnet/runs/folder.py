"""The run folder: names, configuration, status, metrics, checkpoints, in plain files.

    config.yaml        the resolved configuration
    provenance.json    command, commit, versions, device, the W&B run's id
    metrics.csv        a row per evaluation
    summary.json       status and result
    checkpoints/       last.pt, best.pt
    figures/  wandb/   train.log
    lock               while a process works on the run

Errors are percent, times seconds, sizes bytes. Files are written beside their place and renamed.
"""

import csv
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sdnet import lock
from sdnet.runs.identity import identity
from sdnet.runs.shown import visible

FILES = ("config.yaml", "provenance.json", "metrics.csv", "summary.json", "train.log", "lock")
FILES += ("checkpoints/last.pt", "checkpoints/best.pt")
FILES += ("figures/survival.png", "figures/curves.png")
FOLDERS = ("checkpoints", "figures", "wandb")
RESULT = ("best_epoch", "test_error", "final_test_error", "train_seconds", "eval_seconds")
RESULT += ("blocks", "expected_active_blocks", "mean_active_blocks")  # of a completed run, to tell
MOST_YAML, MOST_JSON = 2**18, 2**22  # bytes that are read: the former takes three seconds

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


def write_atomically(path: Path, text: str) -> None:
    """Writes a temporary file beside `path`, then renames it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


class Damaged(ValueError):
    """What a run folder holds is not what a run leaves there."""


class _Plain(yaml.SafeLoader):
    """YAML without references, of which a few lines unfold to more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to another part of itself")
        return super().compose_node(parent, index)


class _Unfolded(yaml.SafeDumper):
    """YAML without references, whatever stands in two places."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _read(path: Path, parse: Callable[[str], Any], most: int) -> dict[str, Any]:
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


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

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
        text = yaml.dump(config, Dumper=_Unfolded, sort_keys=False)
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
        (self.path / "metrics.csv").unlink(missing_ok=True)
        for name in ("last", "best"):
            self.checkpoint(name).unlink(missing_ok=True)
        self.write_summary({"status": "running", "identity": self.summary()["identity"]})

    def remove_temporary(self) -> None:
        """Removes what a killed process left of files that it was writing."""
        for pattern in (".*.tmp", "checkpoints/*.tmp"):
            for path in self.path.glob(pattern):
                path.unlink()

    # -- plain files ------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        return _read(self.path / "config.yaml", lambda text: yaml.load(text, _Plain), MOST_YAML)

    def summary(self) -> dict[str, Any]:
        return _read(self.path / "summary.json", json.loads, MOST_JSON)

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
        found = _read(self.path / "provenance.json", json.loads, MOST_JSON)
        again = found.get("resumed", [])
        if not isinstance(again, list) or not all(isinstance(entry, dict) for entry in again):
            raise Damaged("provenance.json cannot be read: resumed is no list of entries")
        return found

    def write_provenance(self, provenance: dict[str, Any]) -> None:
        write_atomically(self.path / "provenance.json", json.dumps(provenance, indent=2) + "\n")

    @property
    def figures(self) -> Path:
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    # -- metrics ----------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, float | None]]:
        """The rows of metrics.csv as numbers; None where a cell is empty."""
        file = self.path / "metrics.csv"
        if not file.is_file():
            return []
        with file.open(newline="", encoding="utf-8") as lines:
            return [
                {k: float(v) if v else None for k, v in row.items()}
                for row in csv.DictReader(lines)
            ]

    def append_row(self, row: dict[str, float | None]) -> None:
        """Adds a row to metrics.csv; the file is replaced as a whole, so it is never half a row."""
        file = self.path / "metrics.csv"
        text = file.read_text(encoding="utf-8") if file.is_file() else ",".join(COLUMNS) + "\n"
        columns = text.partition("\n")[0].split(",")  # a file that was begun keeps its own
        cells = ["" if row[c] is None else f"{row[c]:.8g}" for c in columns]
        write_atomically(file, text + ",".join(cells) + "\n")

    def drop_after(self, step: int) -> None:
        """Forgets rows and a best checkpoint later than `step`: they will be measured again."""
        best = self.load_checkpoint("best")
        if best is not None and best["step"] > step:
            self.checkpoint("best").unlink()
        file = self.path / "metrics.csv"
        if file.is_file():
            head, *lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            at = COLUMNS.index("step")
            kept = [line for line in lines if float(line.split(",")[at]) <= step]
            write_atomically(file, head + "".join(kept))

    # -- checkpoints ------------------------------------------------------------------------------

    def checkpoint(self, name: str = "last") -> Path:
        return self.path / "checkpoints" / f"{name}.pt"

    def save_checkpoint(self, state: dict[str, Any], name: str = "last") -> None:
        import torch

        path = self.checkpoint(name)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load_checkpoint(self, name: str = "last") -> dict[str, Any] | None:
        """The stored state on the CPU, or None where there is no checkpoint yet."""
        import torch

        path = self.checkpoint(name)
        if not path.is_file():
            return None
        return torch.load(path, map_location="cpu", weights_only=True)
