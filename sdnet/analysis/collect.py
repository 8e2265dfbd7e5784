"""The runs below some folders: read, checked, and counted once.

Only the plain files of a run folder are read: config.yaml, summary.json, provenance.json and
metrics.csv.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdnet.runs.folder import RunFolder, select
from sdnet.runs.identity import identity
from sdnet.runs.shown import all_visible, visible

CONSTANT = {"_target_": "sdnet.models.schedules.Constant", "name": "constant"}
SETTINGS = ("model", "schedule", "trainer", "seed")  # of a configuration, needed here
RESULTS = (
    "test_error",
    "final_test_error",
    "train_seconds",
    "seconds_per_epoch",
    "blocks",
    "expected_active_blocks",
    "mean_active_blocks",
)
MOST = 1e12  # no number of a result is larger, but for multiply-adds
MOST_MACS = 1e30
DIVIDED_BY = ("blocks", "epochs", "seconds_per_epoch")
MAY_LACK = ("test_top5_error", "other_load", "epochs", "training_macs", "val_error")
METRICS = ("epoch", "train_loss", "val_error", "test_error")


class ReportError(ValueError):
    """A user's mistake: told in one message."""


class _Unusable(Exception):
    """Why a run does not count."""


@dataclass(frozen=True)
class LeftOut:
    """A run folder that does not count, and why."""

    folder: Path
    reason: str


@dataclass
class Run:
    """A completed run; `rows` are those of metrics.csv."""

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    provenance: dict[str, Any]
    rows: list[dict[str, float | None]]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def compared_config(self) -> dict[str, Any]:
        """The configuration, in which every schedule that was constant depth is called that.

        The mean of what was active tells a schedule that only ends with every p_l = 1 apart.
        """
        blocks = self.summary["blocks"]
        always = self.summary["expected_active_blocks"] == self.summary["mean_active_blocks"]
        if always and self.summary["expected_active_blocks"] == blocks:
            return self.config | {"schedule": CONSTANT}
        return self.config


def work_on(run: Run) -> list[dict[str, Any]]:
    """The provenance of each process that trained a run; one that ended before that has noted no
    device."""
    entries = [{"processes": 1} | e for e in (run.provenance, *run.provenance.get("resumed", []))]
    return [entry for entry in entries if "device" in entry] or entries


def collect_runs(folders: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    """The completed runs below the folders, each configuration and seed once, and all others.

    Of the folders with the same run the first counts: in the order given, then sorted by name.

    Raises:
        ReportError: a folder is not there or holds no run.
    """
    first: dict[str, Run] = {}
    left_out = []
    for folder in _run_folders(folders):
        try:
            run = _read(folder)
            same = first.setdefault(_identity(run), run)
            if same is not run:
                raise _Unusable(f"the same run as {same.folder}")
        except _Unusable as reason:
            left_out.append(LeftOut(folder, str(reason)))
        except Exception as error:  # what nobody thought of costs no other run
            reason = f"unreadable: {type(error).__name__}: {visible(str(error))}"
            left_out.append(LeftOut(folder, reason))
    return list(first.values()), left_out


def _identity(run: Run) -> str:
    try:
        return identity(run.compared_config)
    except (AttributeError, KeyError, TypeError) as error:
        raise _Unusable(f"unreadable: config.yaml: {error}") from error


def _run_folders(folders: Sequence[Path]) -> Iterator[Path]:
    """Every run folder below the given ones once; what lies in a run folder is no run."""
    seen = set()
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder} is not a folder")
        empty = True
        for path, below, files in os.walk(folder):
            below.sort()
            if {"config.yaml", "summary.json"} <= set(files):
                below.clear()
                empty = False
                place = Path(path).resolve()
                if place not in seen:
                    seen.add(place)
                    yield Path(path)
        if empty:
            raise ReportError(
                f"{folder} holds no runs: no folder in it has config.yaml and summary.json"
            )


def _read(folder: Path) -> Run:
    files = RunFolder(folder)
    config = _parsed(files.config, "config.yaml", SETTINGS)
    summary = _parsed(files.summary, "summary.json", ("status",))
    rows = _parsed(files.rows, "metrics.csv")
    if rows and (missing := [name for name in METRICS if name not in rows[0]]):
        raise _Unusable(f"unreadable: metrics.csv has no column {missing[0]}")
    status = summary["status"]
    if status in ("running", "interrupted"):
        reached = f"epoch {rows[-1]['epoch'] if rows else 0:g}"
        if config["trainer"].get("budget") is None:  # which has as many as it lasts
            reached += f" of {config['trainer']['epochs']}"
        raise _Unusable(f"unfinished: {status}, {reached}")
    if status in ("diverged", "failed"):
        raise _Unusable(f"{status}: {summary.get('reason', 'no reason given')}")
    if status != "completed":
        raise _Unusable(f"unreadable: summary.json has the unknown status {status!r}")
    there = (folder / "provenance.json").exists()  # without it a row has no command and no times
    provenance = _parsed(files.provenance, "provenance.json") if there else {}
    _check_config(config)
    _check_result(summary, rows)
    return Run(folder, config, summary, provenance, rows)


def _parsed(read: Callable, file: str, keys: Sequence[str] = ()) -> Any:
    """What a file holds, in texts that can be shown."""
    try:
        content = all_visible(read())
    except Exception as error:  # parsers raise more than they say
        message = str(error).removeprefix(f"{file} cannot be read: ")
        raise _Unusable(f"unreadable: {file}: {visible(' '.join(message.split()))}") from error
    if missing := [key for key in keys if key not in content]:
        raise _Unusable(f"unreadable: {file} has no {missing[0]}")
    return content


def _check_config(config: dict[str, Any]) -> None:
    for name in ("model", "schedule", "trainer", "dataset", "wandb"):
        if not isinstance(config.get(name, {}), dict):
            raise _Unusable(f"unreadable: config.yaml has no settings of {name}")
    if type(config["seed"]) is not int:
        raise _Unusable(f"unreadable: config.yaml has the seed {config['seed']!r}")


def _is_sound(name: str, value: Any) -> bool:
    most = MOST_MACS if name == "training_macs" else MOST
    if type(value) not in (int, float) or not 0 <= value < most:
        return False
    return value > 0 or name not in DIVIDED_BY


def _check_result(summary: dict[str, Any], rows: list[dict[str, float | None]]) -> None:
    """A result counts only if it is complete and follows from the run's own metrics."""
    known = [name for name in MAY_LACK if summary.get(name) is not None]
    for name in (*RESULTS, *known):
        if summary.get(name) is None:
            raise _Unusable(f"unreadable: summary.json has no {name}")
        if not _is_sound(name, summary[name]):
            raise _Unusable(f"unreadable: summary.json says {name} {summary[name]!r}")
    if not isinstance(summary.get("selection"), str):
        raise _Unusable("unreadable: summary.json has no selection")
    if not rows:
        raise _Unusable("unreadable: metrics.csv has no rows")
    if not all(_is_sound("epoch", row["epoch"]) for row in rows):
        raise _Unusable("unreadable: metrics.csv has a row of no epoch")
    measured = {
        "test_error": select(rows)[0]["test_error"],
        "final_test_error": rows[-1]["test_error"],
    }
    for name, value in measured.items():
        if value is None or not math.isclose(summary[name], value, rel_tol=1e-6):
            raise _Unusable(
                f"unreadable: summary.json and metrics.csv do not agree on {name} "
                f"({summary[name]}, {value})"
            )
