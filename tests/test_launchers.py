"""Hydra's plugins with our presets; needs requirements-extras.txt."""

import json
import sys
from importlib.util import find_spec

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from sdnet.config import compose
from tests.conftest import ROOT
from tests.test_sweep import SMALL, metrics, run_folders, summary

pytestmark = pytest.mark.slow
SWEEP = ["-m", *SMALL, "name=s", "wandb.mode=disabled"]
START = (sys.executable,)  # what starts processes of its own is started as a user starts it


def needs(plugin):
    missing = find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{plugin}") is None
    reason = f"NOT RUN without {plugin}: pip install -r requirements-extras.txt"
    return pytest.mark.skipif(missing, reason=reason)


@needs("hydra_joblib_launcher")
def test_two_runs_at_once_give_what_one_after_the_other_gives(train_in, tmp_path):
    results = []
    for launcher, start in (("basic", None), ("joblib", START), ("local", None)):
        (tmp_path / launcher).mkdir()
        sweep = [*SWEEP, "schedule.p_L=0.5,1", f"hydra/launcher={launcher}"]
        done = train_in(tmp_path / launcher, *sweep, start=start)
        assert done.returncode == 0, done.stderr
        runs = run_folders(tmp_path / launcher)
        results.append({name: metrics(run) for name, run in runs.items()})
    assert len(results[0]) == 2 and results[0] == results[1] == results[2]


@needs("hydra_optuna_sweeper")
def test_a_study_goes_on_past_a_failed_trial_and_continues_where_it_was(train, tmp_path):
    study = [*SWEEP, "hydra/sweeper=optuna", "optimizer.lr=choice(0.1,1e12)"]
    study += ["schedule.p_L=interval(0.3,1.0)"]
    done = train(*study, "hydra.sweeper.n_trials=3")
    states = [summary(run)["status"] for run in run_folders(tmp_path).values()]
    assert sorted(states) == ["completed", "diverged", "diverged"]
    assert done.returncode == 1 and done.stdout.count("\ndiverged: multirun/s/") == 2
    before = {name: (run / "metrics.csv").exists() for name, run in run_folders(tmp_path).items()}

    more = train(*study, "hydra.sweeper.n_trials=4")
    runs = run_folders(tmp_path)
    assert len(runs) == 4 and set(before) < set(runs), more.stderr
    best = (tmp_path / "multirun" / "s" / "optimization_results.yaml").read_text()
    errors = [summary(r)["val_error"] for r in runs.values() if summary(r)["status"] == "completed"]
    assert f"best_value: {min(errors)}" in best


@needs("hydra_submitit_launcher")
@pytest.mark.parametrize("tasks, start", [(1, "python "), (2, "torchrun --nproc-per-node=2 ")])
def test_runs_as_jobs_of_their_own_with_one_process_or_two(train, tmp_path, tasks, start):
    launcher = ["hydra/launcher=submitit_local", f"hydra.launcher.tasks_per_node={tasks}"]
    done = train(*SWEEP, *launcher, "schedule.p_L=0.5", "trainer.device=cpu", start=START)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = run_folders(tmp_path).values()
    assert summary(run)["status"] == "completed"
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["processes"] == tasks
    command = provenance["command"]
    assert command.startswith(f"{start}{ROOT / 'train.py'} ") and "schedule.p_L=0.5" in command


@needs("hydra_submitit_launcher")
def test_a_job_of_its_own_sees_a_gpu_for_each_of_its_processes():
    compose.register_presets()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        for tasks in (1, 2):
            given = ["hydra/launcher=submitit_local", f"hydra.launcher.tasks_per_node={tasks}"]
            cfg = loader.load_configuration("config", given, run_mode=RunMode.MULTIRUN)
            assert cfg.hydra.launcher.gpus_per_node == tasks
