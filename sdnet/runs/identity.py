"""What makes a run the run that it is: the settings that determine its result, and its name."""

import hashlib
import json
from typing import Any

from sdnet.runs.shown import visible

# Settings that do not determine the result: where and how a run is computed, kept and shown.
NOT_RESULT = (
    "name",
    "seeds",
    "show",
    "resume",
    "retry_failed",
    "telemetry",
    "wandb",
    "model.name",
    "schedule.name",
    "dataset.root",
    "dataset.download",
    "trainer.device",
    "trainer.threads",
    "trainer.workers",
    "trainer.eval_batch_size",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.checkpoint_unit",
    "trainer.checkpoint_blocks",
    "trainer.compile",
    "trainer.fused",
    "trainer.graphs",
)
# Settings that came later, at the value that means what was there before: runs keep their names.
AS_BEFORE = {"dataset.on_bad_image": "error", "optimizer.backbone_factor": 1.0}
AS_BEFORE |= {"trainer.budget": None}
# Of the networks of sdnet.models.zoo: what schedule.p_L and model.pretrained_digest say as well.
SAID_TWICE = ("model.drop_path_rate", "model.pretrained_file")


def determines_result(key: str, value: Any = ...) -> bool:
    """Whether a setting, by its dotted name, is part of a run's identity."""
    if key in AS_BEFORE and value == AS_BEFORE[key]:
        return False
    return not any(key == k or key.startswith(k + ".") for k in NOT_RESULT)


def is_said_twice(config: dict[str, Any], key: str) -> bool:
    """Whether another setting of a configuration says what this one means for the result."""
    return key in SAID_TWICE and is_of_the_zoo(config["model"])


def is_of_the_zoo(model: dict[str, Any]) -> bool:
    """Whether a configured network is timm's or torchvision's."""
    return str(model.get("_target_")).startswith("sdnet.models.zoo.")


def is_constant(schedule: dict[str, Any]) -> bool:
    """Whether a configured schedule of ours is constant depth: every probability it takes is 1."""
    probabilities = [value for key, value in schedule.items() if key.startswith("p_")]
    return schedule["_target_"].startswith("sdnet.") and all(p == 1 for p in probabilities)


def canonical(node: Any, key: str = "") -> Any:
    """The part of a configuration (or of the node at `key`) that determines the result."""
    if key == "schedule" and is_constant(node):
        return "constant"  # p_L = 1 is the baseline, whichever schedule said so
    if isinstance(node, dict):
        if key == "model" and is_of_the_zoo(node):
            node = {n: value for n, value in node.items() if f"model.{n}" not in SAID_TWICE}
        if key == "trainer" and node.get("budget") is not None:  # which says the epochs
            node = {n: value for n, value in node.items() if n != "epochs"}
        inner = {name: f"{key}.{name}" if key else name for name in node}
        return {n: canonical(node[n], i) for n, i in inner.items() if determines_result(i, node[n])}
    if not determines_result(key, node):
        return None
    if isinstance(node, list):
        return [canonical(item, key) for item in node]
    if isinstance(node, int | float) and not isinstance(node, bool):
        # 1 and 1.0, 0.3 and 0.30000000000000004 are the same setting
        return str(int(node)) if node == node // 1 else f"{node:.12g}"
    return node


def identity(config: dict[str, Any]) -> str:
    """Eight hex digits for what determines the result of a resolved configuration."""
    text = json.dumps(canonical(config), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def own_targets(node: Any) -> set[str]:
    """Targets outside sdnet and torch in a configuration: train.py takes those that are listed."""
    if isinstance(node, list):
        return set().union(*map(own_targets, node))
    if not isinstance(node, dict):
        return set()
    target = node.get("_target_", "sdnet")
    ours = target.partition(".")[0] in ("sdnet", "torch", "torchvision")
    return set().union(*map(own_targets, node.values())) | (set() if ours else {target})


def run_name(config: dict[str, Any]) -> str:
    """`<model>-<schedule>-pL<p_L>-s<seed>-<identity>`.

    Constant depth is constant-pL1, whichever schedule said so; a schedule of one's own without a
    setting p_L has no such part.
    """
    schedule = config["schedule"]
    if is_constant(schedule):
        parts = ["constant", "pL1"]
    else:
        parts = [label(schedule)]
        if schedule.get("p_L") is not None:
            text = visible(str(schedule["p_L"]))[:24].replace("/", "_")
            parts.append(f"pL{float(text):.6g}" if _is_number(text) else f"pL{text}")
    return "-".join([label(config["model"]), *parts, f"s{config['seed']}", identity(config)])


def label(group: dict[str, Any]) -> str:
    """A group's `name`, or that of its class."""
    return group.get("name") or group["_target_"].rpartition(".")[2]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
