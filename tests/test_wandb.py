"""What W&B's own tools make of ours, without a server."""

import os
import subprocess
import sys

import yaml
from wandb.sdk.launch.sweeps import utils

from tests.conftest import ROOT
from tests.test_config import composed


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
    assert spec["metric"] == {"name": "val_error", "goal": "minimize"}  # as the summary has it


def test_under_an_agent_a_run_has_the_agents_id_and_resumed_pieces_are_marked(tmp_path):
    code = """
import sys
from sdnet.tracking import start_run
settings = {"project": "p", "entity": None, "group": "g", "tags": []}
run = start_run(settings, "offline", sys.argv[1], "ours0000", True, job_type="train")
print(run.id, run.resumed, run.sweep_id)
run.finish()
"""
    agent = {"WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": "agent456"}
    for variables, expected in (({}, "ours0000"), (agent, "agent456")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert done.stdout.split()[0] == expected, done.stderr
