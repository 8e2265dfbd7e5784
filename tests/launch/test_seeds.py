"""Several seeds in one job, and what a search minimises."""

import os
from pathlib import Path
from typing import ClassVar

import pytest

from sdnet import processes
from sdnet.config.errors import ConfigError
from sdnet.launch import seeds as several
from sdnet.launch import sweep_plan
from sdnet.launch.seeds import AGENT, METRIC, mean_error
from sdnet.listeners import wandb as tracking
from sdnet.runs.identity import run_name
from tests.config.composed import composed
from tests.launch.conftest import SMALL

pytestmark = pytest.mark.usefixtures("loggers")
ERRORS = {3: 5.0, 0: 1.0, 7: 9.0}


@pytest.fixture
def config():
    return composed(*SMALL, "seeds=[3,0,7]", "seed=5")


def test_a_job_of_several_seeds_is_a_run_of_each_and_gives_their_mean(config, monkeypatch):
    assert config["seed"] == 3  # of which the folder is named
    trained, variables = {}, dict.fromkeys(AGENT, "x")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def train(of_seed, folder):
        assert not os.environ.keys() & {*AGENT}  # an ordinary run, not the agent's trial
        trained[folder] = of_seed
        return ERRORS[of_seed["seed"]]

    logged = []
    monkeypatch.setattr(several, "log_trial", lambda *given: logged.append(given))
    name = run_name(config)
    for folder in (Path("multirun/s", name), Path("outputs", name, "time")):
        trained.clear()
        assert mean_error(config, folder, train) == 5.0  # not 1, the luckiest
        assert [c["seed"] for c in trained.values()] == [3, 0, 7]
        for path, of_seed in trained.items():
            assert of_seed == composed(*SMALL, f"seed={of_seed['seed']}")
            assert str(path) == str(folder).replace(name, run_name(of_seed))
        assert logged.pop()[1:] == (folder, {METRIC: 5.0, "seeds": 3})
    assert variables.items() <= os.environ.items()
    assert several.folder_of(config | {"seed": 0}, Path("mine"), config).parent == Path("mine")


def test_without_an_agent_there_is_no_trial_to_log(config, monkeypatch):
    monkeypatch.setattr(several, "log_trial", lambda *given: pytest.fail("logged"))
    assert mean_error(config, Path("x"), lambda config, folder: ERRORS[config["seed"]]) == 5.0


def test_a_trial_is_a_run_of_its_own_that_has_the_mean(config, monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "forget", lambda: None)
    monkeypatch.setattr(tracking, "resolve_mode", lambda mode: "online")
    told = []

    class Run:
        summary: ClassVar = {}

        def __init__(self, *given, **named):
            told.append((given, named["job_type"], named["config"]["seeds"]))

        def do(self, function):
            function(self)

        def log(self, values):
            told.append(values)

        def finish(self):
            told.append("finished")

    monkeypatch.setattr(tracking, "Run", Run)
    several.log_trial(config, tmp_path, {METRIC: 2.0})
    begun = (config["wandb"], "online", tmp_path, "trial", False)
    assert told == [(begun, "trial", [3, 0, 7]), {METRIC: 2.0}, "finished"]
    assert Run.summary == {METRIC: 2.0}


@pytest.mark.parametrize(
    "change, count, message",
    [
        ({"resume": "x"}, 1, r"^seeds must be null with resume=.* got \[3, 0, 7\]$"),
        ({}, 2, "^seeds must be null with several processes, got"),
        ({"dataset": {"validation": 0}}, 1, "^dataset.validation must set images aside .* got 0"),
    ],
)
def test_what_several_seeds_do_not_go_with_is_told(config, monkeypatch, change, count, message):
    monkeypatch.setattr(processes, "environment", lambda: (0, count, 0))
    with pytest.raises(ConfigError, match=message):
        mean_error(config | change, Path("x"), lambda *given: pytest.fail("trained"))


def test_a_search_never_chooses_a_seed_and_a_grid_has_them_apart(swept):
    some = ("seeds=[0],[1]", "seeds=choice([0,1],[2,3])")  # the luckiest few
    for typed in ("seed=0,1", "seed=choice(0,1)", "seed=range(3)", *some):
        with pytest.raises(ConfigError, match=r"^seeds? must be one value in a search"):
            sweep_plan.plan(swept(*SMALL, typed, "schedule.p_L=interval(0.3,1)"), grid=False)
    message = r"seeds is for a search; here it is seed=0,1, got \[0,1\]$"
    with pytest.raises(ConfigError, match=message):
        sweep_plan.plan(swept(*SMALL, "seeds=[0,1]", "schedule.p_L=0.5,0.8"))
    points = sweep_plan.plan(swept(*SMALL, "seeds=[4,1]", "schedule.p_L=interval(0.3,1)"), False)
    assert len(points) == 2 and all("-s4-" in point.name for point in points)
