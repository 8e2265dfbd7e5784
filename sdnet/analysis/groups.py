"""Runs that differ by their seed alone, as one group; and the settings in which groups differ."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdnet.analysis.collect import Run
from sdnet.runs.identity import canonical, identity, is_constant, label


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
        return mean_std([run.summary.get(name) for run in self.runs])

    def ends_in(self, baseline: "Group") -> bool:
        """Whether this schedule is `baseline`, a constant depth, when its p_L is 1."""
        schedule = self.runs[0].config["schedule"]
        if self.is_baseline or "p_L" not in schedule or not is_constant(schedule | {"p_L": 1}):
            return False
        return without(self, "schedule") == without(baseline, "schedule")


def head(group: Group) -> dict[str, Any]:
    """The columns that say which group a row is of; no setting takes the place of the id."""
    shown = {key: "" if value is None else value for key, value in group.shown.items()}
    return {
        "id": group.id,
        **{key: value for key, value in shown.items() if key != "id"},
        "n": len(group.runs),
        "seeds": " ".join(str(run.seed) for run in group.runs),
    }


def mean_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (None for one value); both None where one is missing."""
    if None in values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


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
        names.setdefault(schedule_family(group), label(schedule))
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


def without(group: Group, key: str) -> dict[str, Any]:
    """A group's settings but the one named, or but those of the group named."""
    kept = [k for k in group.settings if k != key and not k.startswith(f"{key}.")]
    return {k: group.settings[k] for k in kept}
