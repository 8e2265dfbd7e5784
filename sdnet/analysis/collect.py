"""The runs below some folders: read, checked, counted once, grouped over seeds, and compared.

Only the plain files of a run folder are read: config.yaml, summary.json, provenance.json and
metrics.csv.
"""

import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sdnet.run import RunFolder, canonical, identity, is_constant, select

CONSTANT = {"_target_": "sdnet.models.schedules.Constant", "name": "constant"}
SETTINGS = ("model", "schedule", "trainer", "seed")  # of a configuration, needed here
RESULTS = (
    "test_error",
    "final_test_error",
    "selection",
    "train_seconds",
    "seconds_per_epoch",
    "blocks",
    "expected_active_blocks",
    "mean_active_blocks",
)
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


@dataclass
class Group:
    """The runs of one configuration, which differ by their seed alone.

    Attributes:
        id: the identity of the configuration without the seed.
        settings: what determines the result, by dotted name, in `canonical` form.
        schedule: the schedule's name.
        shown: those of them that differ between the groups of a report, in readable form; each
            group has all of these keys, with None for what it has no setting for.
    """

    id: str
    settings: dict[str, Any]
    runs: list[Run]
    schedule: str = ""
    shown: dict[str, Any] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        """Whether this is constant depth."""
        return self.settings.get("schedule") == "constant"

    @property
    def by_seed(self) -> dict[int, Run]:
        return {run.seed: run for run in self.runs}

    @property
    def p_L(self) -> float | None:
        """The schedule's p_L; 1 at constant depth, None for a schedule without one."""
        value = 1.0 if self.is_baseline else plain(self.settings.get("schedule.p_L"))
        return float(value) if isinstance(value, int | float) else None

    def mean_std(self, name: str) -> tuple[float | None, float | None]:
        """Mean and sample standard deviation (None for one run) of a number of summary.json.

        Both are None where a run lacks it.
        """
        values = [run.summary.get(name) for run in self.runs]
        if None in values:
            return None, None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

    def ends_in(self, baseline: "Group") -> bool:
        """Whether this schedule is `baseline`, a constant depth, when its p_L is 1."""
        schedule = self.runs[0].config["schedule"]
        if self.is_baseline or "p_L" not in schedule or not is_constant(schedule | {"p_L": 1}):
            return False
        return without(self, "schedule") == without(baseline, "schedule")


# -- reading --------------------------------------------------------------------------------------


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
    config = _parsed(files.config, "config.yaml", dict, SETTINGS)
    summary = _parsed(files.summary, "summary.json", dict, ("status",))
    rows = _parsed(files.rows, "metrics.csv", list)
    if rows and (missing := [name for name in METRICS if name not in rows[0]]):
        raise _Unusable(f"unreadable: metrics.csv has no column {missing[0]}")
    status = summary["status"]
    if status in ("running", "interrupted"):
        epoch = rows[-1]["epoch"] if rows else 0
        raise _Unusable(f"unfinished: {status}, epoch {epoch:g} of {config['trainer']['epochs']}")
    if status in ("diverged", "failed"):
        raise _Unusable(f"{status}: {summary.get('reason', 'no reason given')}")
    if status != "completed":
        raise _Unusable(f"unreadable: summary.json has the unknown status {status!r}")
    provenance = _parsed(files.provenance, "provenance.json", dict)
    _check_result(summary, rows)
    return Run(folder, config, summary, provenance, rows)


def _parsed(read: Callable, file: str, kind: type, keys: Sequence[str] = ()) -> Any:
    try:
        content = read()
        if not isinstance(content, kind):
            raise ValueError("nothing, or not what belongs into it")
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise _Unusable(f"unreadable: {file}: {message}") from error
    if missing := [key for key in keys if key not in content]:
        raise _Unusable(f"unreadable: {file} has no {missing[0]}")
    return content


def _check_result(summary: dict[str, Any], rows: list[dict[str, float | None]]) -> None:
    """A result counts only if it is complete and follows from the run's own metrics."""
    if missing := [name for name in RESULTS if summary.get(name) is None]:
        raise _Unusable(f"unreadable: summary.json has no {missing[0]}")
    if not rows:
        raise _Unusable("unreadable: metrics.csv has no rows")
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


# -- groups and their settings --------------------------------------------------------------------


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups of runs equal in everything but the seed, sorted by the settings that differ."""
    groups: dict[str, Group] = {}
    for run in runs:
        config = {k: v for k, v in run.compared_config.items() if k != "seed"}
        key = identity(config)
        group = groups.setdefault(key, Group(key, dict(_flat(canonical(config))), []))
        group.runs.append(run)
    found = list(groups.values())
    readable = _readable(found)
    for group, whole, differing in zip(found, readable, _differing(readable, found), strict=True):
        group.runs.sort(key=lambda run: run.seed)
        group.schedule, group.shown = whole["schedule"], differing
    return sorted(found, key=lambda group: [_order(value) for value in group.shown.values()])


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield key, node
        return
    for name, value in node.items():
        yield from _flat(value, f"{key}.{name}" if key else name)


def plain(value: Any) -> Any:
    """A canonical setting as a number where it is one, else as YAML would write it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(str(plain(item)) for item in value)}]"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _order(value: Any) -> tuple:
    """Constant depth first, then what is absent, then numbers, then texts."""
    number = isinstance(value, int | float)
    rank = 0 if value == "constant" else 1 if value is None else 2 if number else 3
    return (rank, value if number else 0, "" if number else str(value))


def schedule_family(group: Group) -> tuple:
    """The schedule without its p_L, something that can be compared."""
    keys = [k for k in group.settings if k == "schedule" or k.startswith("schedule.")]
    return tuple((k, str(group.settings[k])) for k in keys if k != "schedule.p_L")


def _readable(groups: list[Group]) -> list[dict[str, Any]]:
    """Settings with `<group>: <name>` for `<group>._target_: <path>`, and p_L = 1 at constant
    depth. Different targets of the same name are shown by their paths."""
    names: dict[tuple, str] = {}  # of a schedule: the first seen, as names are no setting
    for group in groups:
        schedule = group.runs[0].compared_config["schedule"]
        name = schedule.get("name") or schedule["_target_"].rpartition(".")[2]
        names.setdefault(schedule_family(group), name)
    pairs = {(k, v) for g in groups for k, v in g.settings.items() if k.endswith("_target_")}
    result = []
    for group in groups:
        shown: dict[str, Any] = {}
        for key, value in group.settings.items():
            parent, _, last = key.rpartition(".")
            if key == "schedule":
                shown |= {"schedule": value, "schedule.p_L": 1}
            elif last != "_target_":
                shown[key] = plain(value)
            else:
                name = value.rpartition(".")[2]
                alike = [v for k, v in pairs if k == key and v.rpartition(".")[2] == name]
                if len(alike) > 1:
                    name = value
                elif parent == "schedule":
                    name = names[schedule_family(group)]
                shown[parent] = name
        result.append(shown)
    return result


def _differing(readable: list[dict[str, Any]], groups: list[Group]) -> list[dict[str, Any]]:
    """Of every group the settings in which the groups differ, all with the same keys."""
    parts = sorted(
        {key: None for shown in readable for key in shown},
        key=lambda key: _group_order(key, readable),
    )
    kept = [key for key in parts if _differs(key, readable, groups)]
    for key in [key for key in kept if f"{key}.name" in kept]:
        pairs = {(shown.get(f"{key}.name"), shown.get(key)) for shown in readable}
        if len({name for name, _ in pairs}) == len(pairs):  # the name says the same
            kept.remove(key)
    return [{key: shown.get(key) for key in kept} for shown in readable]


def _group_order(key: str, readable: list[dict[str, Any]]) -> tuple[int, int]:
    """Settings in the order of the configuration, those of a group together."""
    top = key.partition(".")[0]
    order = list(dict.fromkeys(k.partition(".")[0] for shown in readable for k in shown))
    within = list(dict.fromkeys(k for shown in readable for k in shown))
    return order.index(top), within.index(key)


def _differs(key: str, readable: list[dict[str, Any]], groups: list[Group]) -> bool:
    """Whether a setting has several values, where not to have it counts as one.

    For a schedule it does so among schedules of one class only: that constant depth has no `rule`
    is said by its name.
    """
    if not key.startswith("schedule."):
        return len({str(shown.get(key)) for shown in readable}) > 1
    values: dict[Any, set] = {}
    for group, shown in zip(groups, readable, strict=True):
        values.setdefault(group.settings.get("schedule._target_"), set()).add(str(shown.get(key)))
    present = {str(shown[key]) for shown in readable if key in shown}
    return len(present) > 1 or any(len(of_class) > 1 for of_class in values.values())


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """`depth` for `model.depth`, unless another of the settings ends alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {k: name if last.count(name) == 1 else k for k, name in zip(keys, last, strict=True)}


# -- what a group is compared with ----------------------------------------------------------------


def find_references(
    groups: Sequence[Group], spec: str | None
) -> tuple[str, dict[str, Group | None]]:
    """The group that each group (by its id) is compared with, and that choice in words.

    Args:
        spec: an id, or `key=value`: the group with that value which is equal in everything else.
            With a whole configuration group as the key (`schedule=uniform`) all of its settings
            are exchanged; where several would do, those that both have must be equal. None is
            `schedule=constant`, which need not be there.

    Raises:
        ReportError: no group has that id or that value.
    """
    key, equals, value = (spec or "schedule=constant").partition("=")
    if not equals:
        chosen = next((group for group in groups if group.id == key), None)
        if chosen is None:
            known = ", ".join(group.id for group in groups)
            raise ReportError(f"--baseline {spec}: no row has this id; there are {known}")
        return f"row {key}", {group.id: chosen for group in groups}
    candidates = [group for group in groups if _has(group, key, value)]
    if spec is not None and not candidates:
        raise ReportError(f"--baseline {spec}: {_what_exists(groups, key)}")
    words = f"the row with {key}={value} that is equal in everything else"
    if spec in (None, "schedule=constant"):
        words = "constant depth with the same other settings"
    return words, {group.id: _reference(group, candidates, key) for group in groups}


def without(group: Group, key: str) -> dict[str, Any]:
    """A group's settings but the one named, or but those of the group named."""
    kept = [k for k in group.settings if k != key and not k.startswith(f"{key}.")]
    return {k: group.settings[k] for k in kept}


def _has(group: Group, key: str, value: str) -> bool:
    settings, wanted = group.settings, value.strip()
    if key.startswith("schedule.p_") and group.is_baseline:
        return plain(wanted) == 1
    if key in settings:
        return str(plain(settings[key])) == str(plain(wanted))
    if f"{key}._target_" not in settings:
        return False
    return wanted.lower() in _names(group, key)


def _names(group: Group, key: str) -> list[str]:
    """What a configuration group is called: by its class and, where it has one, by its name."""
    node = group.runs[0].compared_config
    for part in key.split("."):
        node = node[part]
    names = [node["_target_"], node["_target_"].rpartition(".")[2], node.get("name")]
    return [name.lower() for name in names if name]


def _what_exists(groups: Sequence[Group], key: str) -> str:
    values = {plain(g.settings[key]): None for g in groups if key in g.settings}
    named = [group for group in groups if f"{key}._target_" in group.settings]
    values |= {_names(group, key)[-1]: None for group in named}
    if key == "schedule.p_L" and any(group.is_baseline for group in groups):
        values[1] = None
    if values:
        return f"no row has this value; there are {', '.join(str(value) for value in values)}"
    return f"no row has a setting {key} that determines the result"


def _reference(group: Group, candidates: list[Group], key: str) -> Group | None:
    if group in candidates:
        return group
    equal = [other for other in candidates if without(other, key) == without(group, key)]
    if not equal and key.startswith("schedule."):
        # constant depth is p_L = 1 of every schedule
        equal = [
            other
            for other in candidates
            if (other.is_baseline or group.is_baseline)
            and without(other, "schedule") == without(group, "schedule")
        ]
    if len(equal) > 1:
        equal = [other for other in equal if _same_where_both(group, other, key)]
    return equal[0] if len(equal) == 1 else None


def _same_where_both(one: Group, other: Group, key: str) -> bool:
    shared = [k for k in one.settings if k.startswith(f"{key}.") and k in other.settings]
    return all(one.settings[k] == other.settings[k] for k in shared if not k.endswith("_target_"))
