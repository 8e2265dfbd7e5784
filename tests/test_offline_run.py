"""What W&B's own tools make of ours, without a server."""

import yaml
from wandb.sdk.launch.sweeps import utils

from sdnet.launch.seeds import METRIC
from sdnet.listeners.wandb import start_run
from tests.commands import ROOT, Forked
from tests.config.composed import composed


def test_the_command_of_a_wandb_agent_is_a_configuration():
    spec = yaml.safe_load((ROOT / "sweeps" / "wandb.yaml").read_text())
    chosen = {
        name: {"value": p.get("value", p.get("values", [p.get("min")])[0])}
        for name, p in spec["parameters"].items()
    }
    filled = utils.create_sweep_command_args({"args": chosen})
    filled |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [spec["program"]]}
    command = []
    for part in utils.create_sweep_command(list(spec["command"])):
        command += filled[part[2:-1]] if part.startswith("${") else [part]
    assert command[:3] == ["/usr/bin/env", "python", "train.py"]
    config = composed(*command[3:])
    assert config["schedule"]["p_L"] == chosen["schedule.p_L"]["value"]
    assert config["model"]["depth"] == 110
    assert config["seeds"] == [0, 1, 2] and "seed" not in spec["parameters"]
    assert spec["metric"] == {"name": METRIC, "goal": "minimize"}


def start(folder, resumed):
    settings = {"project": "p", "entity": None, "group": "g", "tags": []}
    run = start_run(settings, "offline", folder, "ours0000", resumed, job_type="train")
    print(run.id, run.settings.resume)
    run.finish()


def test_resumed_pieces_are_marked_and_under_an_agent_a_run_has_the_agents_id(tmp_path):
    agent = {"WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": "agent456"}
    cases = (({}, False, "ours0000 None"), ({}, True, "ours0000 allow"), (agent, True, "agent456 "))
    runs = [Forked(tmp_path, v, start, tmp_path, resumed) for v, resumed, _ in cases]
    for process, (*_, expected) in zip(runs, cases, strict=True):
        out, err = process.communicate(timeout=60)
        assert out.startswith(expected), err
