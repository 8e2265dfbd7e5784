"""A sweep in this process: what is launched and concluded, and how it hangs together."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext
from omegaconf import OmegaConf

from hydra_plugins.sdnet_sweepers import Grid, Optuna
from sdnet import processes
from sdnet.analysis import report as reports
from sdnet.config.errors import ConfigError, RunError
from sdnet.launch import sweep
from sdnet.listeners import console as consoles
from sdnet.listeners import wandb as tracking
from sdnet.runs.folder import RunFolder
from tests.conftest import ROOT
from tests.launch.conftest import SMALL, several

pytestmark = pytest.mark.usefixtures("loggers")


def context():
    from hydra._internal.callbacks import Callbacks

    return HydraContext(GlobalHydra.instance().config_loader(), Callbacks())


def test_runs_are_launched_in_batches_and_what_is_on_no_record_is_told(swept, said, points):
    cfg = swept(*SMALL, "hydra.sweeper.max_batch_size=2")
    several = [points(str(i), state) for i, state in enumerate(("failed", "new", "failed", "new"))]
    for i, point in enumerate(several):
        point.overrides[:] = [f"seed={i}", *SMALL]
    seen = []
    errors = {0: RunError("it failed"), 1: RunError("no folder")}
    errors[2] = ValueError("a fault")

    def task(cfg):
        seen.append((cfg.seed, HydraConfig.get().job.num))
        if cfg.seed in errors:
            raise errors[cfg.seed]

    assert sweep.launch(cfg, several, task, context()) == 1
    assert seen == [(i, i) for i in range(4)]
    paths = [point.run.path for point in several]
    assert said == [
        f"ERROR: {paths[1]}: RunError: no folder",
        f"ERROR: {paths[2]}: ValueError: a fault",
    ]
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "before"]

    said.clear()
    assert (
        sweep.launch(swept(*SMALL), several[:1], task, context()) == 0
    )  # the run's folder says it
    assert said == []


def test_a_launcher_gets_batches_and_where_it_gives_up_that_is_told_in_a_line(
    swept, said, points, monkeypatch
):
    batches, errors = [], []

    def launch(batch, initial_job_idx):
        batches.append((batch, initial_job_idx))
        if errors:
            raise errors[0]
        return [SimpleNamespace(status=JobStatus.COMPLETED, _return_value=4.5)] * len(batch)

    def instantiate_launcher(**arguments):
        return SimpleNamespace(launch=launch)

    monkeypatch.setattr(Plugins.instance(), "instantiate_launcher", instantiate_launcher)
    several = [points("a", "new"), points("b", "new"), points("c", "new")]
    cfg = swept(*SMALL, "hydra.sweeper.max_batch_size=2")
    assert sweep.launch(cfg, several, None, None) == 0 and said == []
    assert batches == [([["name=a"], ["name=b"]], 0), ([["name=c"]], 2)]

    batches.clear()
    errors.append(OSError("a process was killed\nby whom?\nnobody knows\n"))
    assert sweep.launch(swept(*SMALL), several, None, None) == 1
    assert batches == [([["name=a"], ["name=b"], ["name=c"]], 0)]  # all at once
    text = "the launcher gave up: OSError: a process was killed … nobody knows"
    assert said == [f"ERROR: {text}"]


@pytest.fixture(autouse=True)
def python_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "before")


@pytest.fixture
def written(monkeypatch):
    """What the report was asked for, and what of it was logged; `answer` is what comes of it."""
    written = SimpleNamespace(folders=[], logged=[], answer="report")

    def write_report(folders, console):
        written.folders.append(folders)
        if isinstance(written.answer, Exception):
            raise written.answer
        return written.answer

    monkeypatch.setattr(reports, "write_report", write_report)
    log_report = lambda report, mode: written.logged.append((report, mode))  # noqa: E731
    monkeypatch.setattr(tracking, "log_report", log_report)
    return written


def test_the_end_of_a_sweep_names_what_is_not_completed(points, said, written, tmp_path):
    done, half, rest, new, busy, failed, diverged = (p.run for p in several(points))
    half.set_status("interrupted", "by a signal")
    failed.set_status("failed", "ValueError: no images")
    lock = busy.lock()
    lock.acquire()
    try:
        assert sweep.conclude([done, busy], None, "offline") == 0
        assert said == [f"INFO: left to another process: {busy.path}"]
        said.clear()
        everything = [done, half, rest, new, busy, failed, diverged]
        assert sweep.conclude(everything, None, "offline") == 1
    finally:
        lock.close()
    assert said == [
        f"ERROR: interrupted: {half.path}: by a signal",
        f"ERROR: interrupted: {rest.path}",
        f"ERROR: not run: {new.path}",
        f"INFO: left to another process: {busy.path}",
        f"ERROR: failed: {failed.path}: ValueError: no images",
        f"ERROR: diverged: {diverged.path}",
    ]
    assert written.folders == [[done.path.parent]] * 2
    assert written.logged == [("report", "offline")] * 2
    for folder in (half, rest, new, failed, diverged):
        assert sweep.conclude([folder], None, "offline") == 1


def test_a_report_for_each_folder_and_its_trouble_is_told(points, said, written, tmp_path):
    one = points("a", "completed").run
    two = RunFolder(tmp_path / "multirun" / "r" / "b")
    two.create(one.config(), {})
    two.set_status("completed")
    written.answer = None
    assert sweep.conclude([one, two], None, "online") == 0
    assert written.folders == [[two.path.parent], [one.path.parent]] and written.logged == []
    written.folders.clear()
    sweep.conclude([RunFolder(f"{n}/x") for n in "hgfedcba"], None, "online")
    assert written.folders == [[Path(n)] for n in "abcdefgh"]
    said.clear()
    written.answer = reports.ReportError("nothing")
    assert sweep.conclude([one], None, "online") == 0
    written.answer = OSError("disk")
    assert sweep.conclude([one], None, "online") == 1
    assert said == ["ERROR: no report: nothing", "ERROR: the report failed: OSError: disk"]


@pytest.fixture
def wired(monkeypatch, points, tmp_path):
    """A sweep of two points, one of them done, with each step of it noted."""
    monkeypatch.chdir(tmp_path)
    steps = []
    wired = SimpleNamespace(steps=steps, launched=0, concluded=0, set_up=[], searched=None)
    wired.points = [points("a", "completed", test_error=1.0), points("b", "new")]

    def note(name, result=None):
        return lambda *arguments: steps.append((name, *arguments[1:])) or result

    set_up = lambda: wired.set_up.append(len(steps)) or "console"  # noqa: E731
    monkeypatch.setattr(consoles, "set_up", set_up)
    monkeypatch.setattr(sweep, "plan", lambda config, grid: wired.points)
    check = lambda points, *arguments, listing: steps.append(("check", *arguments, listing))  # noqa: E731
    monkeypatch.setattr(sweep, "check", check)
    monkeypatch.setattr(sweep, "show", note("show"))
    monkeypatch.setattr(sweep, "announce", note("announce"))

    def launch(config, left, task, context):
        steps.append(("launch", left, task, context))
        if isinstance(wired.launched, BaseException):
            raise wired.launched
        return wired.launched

    def conclude(runs, *more):
        steps.append(("conclude", [run.path for run in runs], *more))
        return wired.concluded

    monkeypatch.setattr(sweep, "launch", launch)
    monkeypatch.setattr(sweep, "conclude", conclude)

    def config(launcher=None, show=False):
        launcher = launcher or {"_target_": "x.BasicLauncher"}
        hydra = {"launcher": launcher, "sweep": {"dir": "multirun/s"}}
        return OmegaConf.create({"hydra": hydra, "show": show, "wandb": {"mode": "disabled"}})

    def grid(**options):
        sweeper = Grid(max_batch_size=None, params=None)
        sweeper.setup(hydra_context="context", task_function="task", config=config(**options))
        sweeper.sweep([])

    def search(**options):
        sweeper = Around(wired=wired)
        sweeper.setup(hydra_context="context", task_function="task", config=config(**options))
        sweeper.sweep(["seed=0"])

    wired.grid, wired.search = grid, search
    return wired


class Around(Optuna):
    inner = f"{__name__}.Inner"


class Inner:
    """A sweeper that chooses its points itself."""

    def __init__(self, wired):
        self.wired = wired

    def setup(self, **given):
        self.given = given

    def sweep(self, arguments):
        task, context = self.given["task_function"], self.given["hydra_context"]
        self.wired.steps.append(("search", arguments, task, context, self.given["config"].show))
        if self.wired.searched is not None:
            raise self.wired.searched


def test_a_sweep_runs_what_is_left_and_concludes_all_of_it(wired):
    done, left = wired.points
    wired.grid()
    assert wired.steps == [
        ("check", True, 1, False),
        ("announce",),
        ("launch", [left], "task", "context"),
        ("conclude", [done.run.path, left.run.path], "console", "disabled"),
    ]
    assert wired.set_up == [0, 3]  # and anew after the launcher, which configures logging
    for launched, concluded in ((1, 0), (0, 1), (1, 1)):
        wired.launched, wired.concluded = launched, concluded
        with pytest.raises(RunError, match="the sweep is not complete"):
            wired.grid()
    wired.steps.clear()
    wired.launched, wired.concluded, wired.points = 1, 0, [done]
    wired.grid()  # nothing is left: nothing is launched
    assert [step[0] for step in wired.steps] == ["check", "announce", "conclude"]


def test_what_another_process_leaves_meanwhile_is_taken_over_once(wired, points, monkeypatch):
    theirs, ours, failing = points("x", "running"), points("y", "new"), points("z", "new")
    theirs.state = "running"  # as long as the other process lives
    wired.points = [theirs, ours, failing]
    launched, launch = [], sweep.launch

    def ending(config, left, *more):
        launched.append([point.name for point in left])
        theirs.run.set_status("interrupted")
        if not ours.run.holds_run():
            ours.run.create(ours.config, {})
            ours.run.set_status("completed")
        return launch(config, left, *more)

    monkeypatch.setattr(sweep, "launch", ending)
    wired.grid()
    assert launched == [["y", "z"], ["x"]]  # and none of its own again


def test_a_sweep_that_is_shown_is_not_run(wired):
    wired.grid(show=True)
    wired.search(show=True)
    assert wired.steps == [("check", True, 1, True), ("show", wired.points)] * 2  # nothing is read


def test_another_sweeper_goes_on_by_itself_and_what_it_left_is_concluded(wired, points):
    wired.search()
    searched = ("search", ["seed=0"], "task", "context", False)
    folders = [p.run.path for p in (wired.points[0],)]  # those with a run in them
    assert wired.steps[:2] == [("check", True, 1, False), searched] and len(wired.steps) == 3
    name, found, *more = wired.steps[2]
    assert name == "conclude" and [path.resolve() for path in found] == folders
    assert more == ["console", "disabled"] and wired.set_up == [0, 2]
    wired.concluded = 1
    with pytest.raises(RunError, match="the sweep is not complete"):
        wired.search()


def test_runs_of_a_search_are_concluded_in_their_order_also_where_the_sweeper_gave_up(
    wired, points
):
    points("c", "failed"), points("0", "completed")
    wired.searched = ValueError("no trial is completed")
    with pytest.raises(RunError, match=r"^the sweeper gave up: no trial is completed$"):
        wired.search()
    assert [path.name for path in wired.steps[-1][1]] == ["0", "a", "c"]


def test_a_search_needs_something_to_minimise(wired, points):
    wired.points.append(points("c", "new", dataset={"validation": 0}))
    with pytest.raises(ConfigError, match=r"^dataset\.validation must set images aside: "):
        wired.search()
    assert [step[0] for step in wired.steps] == ["check"]
    wired.grid()  # a grid has no need of it


def test_a_sweep_that_is_stopped_says_how_it_goes_on(wired, capsys):
    wired.launched = wired.searched = KeyboardInterrupt()
    for sweeper in (wired.grid, wired.search):
        with pytest.raises(KeyboardInterrupt):
            sweeper()
        assert wired.steps[-1][0] in ("launch", "search")  # nothing is concluded
        said = capsys.readouterr().out
        assert said == "the sweep was stopped; the same command continues it\n"


def test_a_sweep_under_torchrun_is_a_mistake(wired, monkeypatch):
    monkeypatch.setattr(processes, "environment", lambda: (0, 2, 0))
    for sweeper in (wired.grid, wired.search):
        with pytest.raises(ConfigError, match=r"^-m does not work under torchrun"):
            sweeper()
    assert wired.steps == []


def test_a_cluster_has_its_own_devices_and_processes(wired):
    launcher = {"_target_": "x.submitit_launcher.SlurmLauncher", "tasks_per_node": 3, "nodes": 2}
    wired.grid(launcher=launcher)
    assert wired.steps[0] == ("check", False, 6, False)
    wired.grid(launcher={"_target_": "x.submitit_launcher.SlurmLauncher"})
    assert wired.steps[4] == ("check", False, 1, False)


@pytest.mark.parametrize(
    "launcher, terminal, shown",
    [
        ("joblib.JoblibLauncher", True, True),
        ("joblib.JoblibLauncher", False, False),
        ("x.BasicLauncher", True, False),
    ],
)
def test_several_runs_at_once_have_bars_on_a_terminal(
    points, monkeypatch, launcher, terminal, shown
):
    boards = []

    @contextmanager
    def board(console, runs):
        boards.append(runs)
        assert os.environ[consoles.SHOWN] == "1"  # whoever computes them is quiet
        yield

    monkeypatch.setattr(sweep, "Board", board)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(consoles, "set_up", lambda: "console")
    monkeypatch.setenv("SDNET_SWEEP", json.dumps(["b", "a"]))
    some = [points("a", "new"), points("b", "new")]
    some[0].swept = "schedule.p_L=0.5 seed=1"
    some[1].swept = ""
    config = OmegaConf.create({"hydra": {"launcher": {"_target_": launcher}}})
    with sweep._shown(config, some):
        pass
    assert consoles.SHOWN not in os.environ
    if shown:
        (runs,) = boards
        assert list(runs) == ["run 2 p_L=0.5 seed=1", "run 1"]
        assert [(folder.path.name, epochs) for folder, epochs in runs.values()] == [
            ("a", some[0].config["trainer"]["epochs"]),
            ("b", some[1].config["trainer"]["epochs"]),
        ]
    else:
        assert boards == []


def test_what_names_a_sweep_may_be_swept(swept, points, tmp_path):
    root = "dataset.root=a,b"
    cfg = swept("dataset=image_folder", root, *SMALL[3:], "model.depth=8")
    some = [points("x", "new")]
    some[0].overrides[:] = ["dataset=image_folder", "dataset.root=a"]
    roots = []
    assert sweep.launch(cfg, some, lambda cfg: roots.append(cfg.dataset.root), context()) == 0
    assert roots == ["a"]
