"""How the runs of a group are repeated: the command, and the commits of the code."""

from typing import Any

from sdnet import shell
from sdnet.analysis.collect import work_on
from sdnet.analysis.groups import Group
from sdnet.runs.identity import own_targets

# overrides that are no setting
NOT_REPRODUCING = ("seed", "sweep", "retry_failed", "resume", "show")


def command(group: Group) -> str:
    """What to type to repeat all runs of a group, on whatever machine."""
    recorded = (run.provenance.get("overrides") for run in group.runs)
    overrides = next((found for found in recorded if found is not None), None)
    if overrides is None:
        return "unknown: no provenance.json says it"
    names = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides]
    kept = [o for o, name in zip(overrides, names, strict=True) if name not in NOT_REPRODUCING]
    kept.append(f"seed={','.join(str(run.seed) for run in group.runs)}")
    first = work_on(group.runs[0])[0]
    processes = first["processes"]
    start = ["python", *first.get("program", ["train.py"])]
    if len(group.runs) > 1:
        start.append("-m")
        if processes > 1:
            kept += ["hydra/launcher=submitit_local", f"hydra.launcher.tasks_per_node={processes}"]
            if first.get("device") == "cuda":
                kept.append(f"hydra.launcher.gpus_per_node={processes}")
    elif processes > 1:
        start = ["torchrun", f"--nproc-per-node={processes}", *start[1:]]
    variables = {
        "PYTHONPATH": first.get("pythonpath"),
        "SDNET_ALLOW_TARGETS": ",".join(sorted(own_targets(group.runs[0].config))),
    }
    return shell.line([*start, *first.get("options", []), *kept], variables)


def commits(group: Group) -> str:
    """The short hashes of the code that computed a group's runs: sdnet's, and its user's own."""
    found = {}
    for run in group.runs:
        for entry in work_on(run):
            own = [_commit(entry["project"])] if entry.get("project") else []
            own += [f"{name} {text}" for name, text in entry.get("own_code", {}).items()]
            found[_code(entry) + (f" (own code {', '.join(own)})" if own else "")] = None
    return " ".join(found)


def _code(entry: dict[str, Any]) -> str:
    version = entry.get("versions", {}).get("sdnet")
    return f"sdnet {version}" if not entry.get("git_commit") and version else _commit(entry)


def _commit(entry: dict[str, Any]) -> str:
    commit = entry.get("git_commit")
    return commit[:7] + ("+dirty" if entry.get("git_dirty") else "") if commit else "unknown"
