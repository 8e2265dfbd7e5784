"""What each group of runs is compared with: by default, constant depth."""

from collections.abc import Sequence

from sdnet.analysis.collect import ReportError
from sdnet.analysis.groups import Group, plain, without


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
    key, equals, value = ("schedule=constant" if spec is None else spec).partition("=")
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
