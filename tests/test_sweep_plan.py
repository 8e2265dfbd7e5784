"""Sweeps in this process: what is planned, checked, launched and concluded, without a run."""

import copy
import io
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from sdnet import build, run, sweep, tracking
from sdnet import config as configs
from sdnet.analysis import report as reports
from sdnet.run import RunFolder
from sdnet.sweep import Point
from sdnet.training import console as consoles
from sdnet.training import distributed
from tests.conftest import ROOT
from tests.test_config import composed

SMALL = ["model.depth=8", "dataset.size=8", "trainer.threads=1", "trainer.device=cpu"]
SMALL += ["wandb.mode=disabled"]


@pytest.fixture(autouse=True)
def loggers():
    """Hydra's launcher configures logging: as it was before once the test is over."""
    several = [logging.getLogger(name) for name in ("", "sdnet")]
    before = [(log.level, log.propagate, log.handlers[:]) for log in several]
    yield
    for log, (level, propagate, handlers) in zip(several, before, strict=True):
        log.setLevel(level)
        log.propagate, log.handlers = propagate, handlers


@pytest.fixture
def said(loggers):
    log, lines = logging.getLogger("sdnet"), []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(f"{record.levelname}: {record.getMessage()}")
    log.setLevel(logging.DEBUG)
    log.propagate, log.handlers = False, [handler]
    return lines


@pytest.fixture
def swept(monkeypatch, tmp_path):
    """Composes what Hydra hands to a sweep of these overrides, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)

    def swept(*overrides, sweeper=None, params=None, launcher=None):
        loader = GlobalHydra.instance().config_loader()
        cfg = loader.load_configuration("config", list(overrides), run_mode=RunMode.MULTIRUN)
        with open_dict(cfg):
            if sweeper is not None:
                cfg.hydra.sweeper._target_ = sweeper
            if params is not None:
                cfg.hydra.sweeper.params = params
            if launcher is not None:
                cfg.hydra.launcher = OmegaConf.create(launcher)
        HydraConfig.instance().set_config(cfg)
        return cfg

    configs.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield swept


@pytest.fixture(scope="module")
def configuration():
    return composed(*SMALL)


@pytest.fixture
def points(configuration, tmp_path):
    """Makes a point of a sweep by hand, with its folder where it has one."""

    def make(name, state, test_error=None, reason=None, rows=0, retry=False, **groups):
        config = copy.deepcopy(configuration) | {"retry_failed": retry}
        for group, settings in groups.items():
            config[group] |= settings
        folder = RunFolder(tmp_path / "multirun" / "s" / name)
        if state != "new":
            folder.create(config, {})
            folder.set_status(state, reason, {"test_error": test_error})
        for epoch in range(1, rows + 1):
            folder.append_row(dict.fromkeys(run.COLUMNS, 1.0) | {"epoch": epoch * 1.5})
        return Point([f"name={name}"], f"run of {name}", f"name={name}", config, folder, state)

    return make


# -- the plan -------------------------------------------------------------------------------------


def test_every_point_has_its_overrides_what_is_swept_its_folder_and_its_state(swept, said):
    cfg = swept("name=s", "seed=0,1", *SMALL, "schedule=linear_decay,uniform", "schedule.p_L=1")
    hydra = HydraConfig.instance().cfg
    first, second = sweep.plan(cfg)
    assert HydraConfig.instance().cfg is hydra
    assert said == ["INFO: 4 combinations are 2 runs"]  # p_L = 1 is one run, whichever schedule
    common = {"name=s", "schedule.p_L=1", *SMALL}
    for point, seed, number in ((first, 0, 1), (second, 1, 3)):
        own = [f"seed={seed}", "schedule=linear_decay"]
        assert set(point.overrides) == common | set(own)
        assert [o for o in point.overrides if o in own] == own
        assert point.swept == " ".join(own)
        assert point.label == f"run {number} of 4 ({point.swept})"
        assert point.config["seed"] == seed and point.config["name"] == "s"
        assert point.name == run.run_name(point.config) and point.state == "new"
        assert point.run.path == Path("multirun", "s", point.name)

    first.run.create(first.config, {})
    first.run.set_status("completed", result={"test_error": 1.0})
    said.clear()
    cfg = swept("name=s", "seed=0", *SMALL, "schedule=constant")
    (again,) = sweep.plan(cfg)
    assert said == []
    assert (again.label, again.swept, again.state) == ("run 1 of 1", "", "completed")
    numbers = "wandb.name=${hydra:job.num}-${hydra:job.id}"
    assert sweep._compose(cfg, [numbers], 3, "", "").config["wandb"]["name"] == "3-3"


def test_presets_hold_the_runs_of_the_papers_figure(swept):
    def planned(*overrides):
        configs_of = [point.config for point in sweep.plan(swept(*SMALL, *overrides))]
        runs = [
            (c["schedule"]["name"], c["schedule"].get("p_L"), c["model"]["depth"], c["seed"])
            for c in configs_of
        ]
        assert len(set(runs)) == len(runs)
        return set(runs)

    tenths = [i / 10 for i in range(1, 11)]
    # two schedules x 9 values, and the baseline once
    assert planned("sweep=p_L") == {
        (name, p_L, 8, 0)
        for name in ("linear_decay", "uniform")
        for p_L in tenths
        if (name, p_L) != ("uniform", 1.0)
    }
    assert planned("sweep=p_L_depth", "model.depth=8,14", "seed=0,1") == {
        ("linear_decay", p_L, depth, seed)
        for p_L in tenths[4:]
        for depth in (8, 14)
        for seed in (0, 1)
    }


def test_a_setting_may_follow_from_one_that_is_swept(swept):
    follows = ["optimizer.lr=${schedule.p_L}", "wandb.name=run-${hydra:job.num}"]
    points = sweep.plan(swept("schedule.p_L=0.6,0.8", *follows, *SMALL))
    assert [point.config["optimizer"]["lr"] for point in points] == [0.6, 0.8]
    assert [point.config["wandb"]["name"] for point in points] == ["run-0", "run-1"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            "seed=0,x",
            r"^in run 2 of 2 \(seed=x\): seed must be a whole number, 0 or more, got 'x'$",
        ),
        (
            "schedule.pL=1,2",
            r"^in run 1 of 2 \(schedule\.pL=1\): schedule\.pL is not a setting; did",
        ),
        (
            "seed=0 resume=x",
            r"^in run 1 of 1: resume= continues a single run; a sweep continues by",
        ),
        (
            "seed=0,1 hydra.sweep.subdir=x",
            r"^in run 2 of 2 \(seed=1\): it has the folder of run 1 of 2 \(seed=0\): "
            r"multirun/digits/x$",
        ),
        (
            "seed=0,1 hydra.sweep.subdir=a-${hydra:job.num}",
            r"^hydra\.sweep\.subdir=a-\$\{hydra:job\.num\} depends on the job's number, which",
        ),
        ("sweep=p_L,p_L_depth", "^sweep must be one preset: several would not be applied$"),
        (
            "schedule.p_L=interval(0,1)",
            r"^schedule\.p_L is a range: it needs hydra/sweeper=optuna$",
        ),
        ("seed=range(1,1)", "^a setting is swept over no values at all$"),
    ],
)
def test_a_mistake_in_a_plan_names_the_run(swept, overrides, message):
    with pytest.raises(configs.ConfigError, match=message):
        sweep.plan(swept(*overrides.split()))


@pytest.mark.parametrize(
    "error", [ValueError("x"), configs.ConfigError("x"), OmegaConfBaseException("x")]
)
def test_a_mistake_of_any_kind_names_its_run(error):
    with pytest.raises(configs.ConfigError) as raised, sweep._errors_in("run 7"):
        raise error
    assert str(raised.value) == "in run 7: x" and raised.value.__cause__ is error


def test_a_folder_of_another_run_is_found_in_the_plan(swept, configuration):
    RunFolder("multirun/digits/x").create(configuration | {"seed": 7}, {})
    with pytest.raises(configs.ConfigError) as raised:
        sweep.plan(swept(*SMALL, "hydra.sweep.subdir=x"))
    message = "in run 1 of 1: multirun/digits/x holds another run: its identity is "
    assert str(raised.value).startswith(message)


def test_of_ranges_the_ends_are_planned_and_the_last_word_on_a_setting_counts(swept):
    overrides = ["schedule.p_L=interval(0.25,1.0)", "seed=3,5", "trainer.epochs=7", "seed=4,8"]
    params = {"schedule.p_L": "0.1,0.2", "optimizer.lr": "choice(0.1,0.2)"}
    cfg = swept(*overrides, sweeper="other.Sweeper", params=params)
    assert sweep._expand(cfg) == [
        ["schedule.p_L=0.25", "optimizer.lr=0.1", "seed=4", "trainer.epochs=7"],
        ["schedule.p_L=1.0", "optimizer.lr=0.1", "seed=4", "trainer.epochs=7"],
        ["schedule.p_L=0.25", "optimizer.lr=0.2", "seed=4", "trainer.epochs=7"],
        ["schedule.p_L=0.25", "optimizer.lr=0.1", "seed=8", "trainer.epochs=7"],
    ]
    assert sweep._expand(swept("seed=0,1", params={"trainer.epochs": "5,6"})) == [
        [f"trainer.epochs={epochs}", f"seed={seed}"] for epochs in (5, 6) for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    "state, left, left_when_retried",
    [
        ("new", True, True),
        ("interrupted", True, True),
        ("completed", False, False),
        ("running", False, False),
        ("failed", False, True),
        ("diverged", False, True),
    ],
)
def test_what_is_left_to_do(points, state, left, left_when_retried):
    assert points("a", state).is_left() is left
    assert points("b", state, retry=True).is_left() is left_when_retried


def several(points, retry=False):
    return [
        points("a", "completed", test_error=1.234, retry=retry),
        points("b", "interrupted", rows=2, retry=retry),
        points("c", "interrupted", retry=retry),
        points("d", "new", retry=retry),
        points("e", "running", retry=retry),
        points("f", "failed", retry=retry),
        points("g", "diverged", retry=retry),
    ]


def test_the_states_of_a_sweep_are_counted_and_described(points, said, tmp_path):
    folder = tmp_path / "multirun" / "s"
    some = several(points)
    count = "1 done, 2 to resume, 1 to run, 1 running, 1 failed, 1 diverged"
    assert sweep._count(some) == f"sweep {folder}: 7 runs: {count}"
    assert [sweep._describe(point) for point in some] == [
        *("done", "to resume after epoch 3", "to resume from the start", "to run"),
        "running in another process",
        *("failed (retry_failed=true)", "diverged (retry_failed=true)"),
    ]
    sweep.announce(some)
    assert said == [
        f"INFO: sweep {folder}: 7 runs: {count}",
        "INFO: done: a, 1.23 % test error",
        "INFO: left out: e (name=e): running in another process",
        "INFO: left out: f (name=f): failed (retry_failed=true)",
        "INFO: left out: g (name=g): diverged (retry_failed=true)",
    ]
    other = RunFolder(tmp_path / "multirun" / "r" / "z")
    assert sweep._count([Point([], "", "", {}, other, "new")]) == (
        f"sweep {other.path.parent}: 1 run: 1 to run"
    )
    done = [Point([], "", "", {}, RunFolder(f"{n}/x"), "completed") for n in "hgfedcba"]
    assert sweep._count(done) == "sweep a b c d e f g h: 8 runs: 8 done"


def test_with_retry_failed_what_failed_is_to_be_tried_again(points, said, tmp_path):
    some = several(points, retry=True)
    assert sweep._count(some).endswith(
        ": 7 runs: 1 done, 2 to resume, 1 to run, 1 running, 2 to try again"
    )
    described = [sweep._describe(point) for point in some]
    assert described[-2:] == ["failed: to try again", "diverged: to try again"]
    sweep.announce(some)
    assert len(said) == 3


# -- what is checked before the first run ---------------------------------------------------------


@pytest.mark.parametrize(
    "groups, message",
    [
        ({"model": {"depth": 9}}, "model.depth must be 6n+2"),
        ({"dataset": {"size": "big"}}, "dataset.size must be"),
        ({"dataset": {"validation": -1}}, "dataset.validation must"),
        ({"schedule": {"p_L": 2}}, "schedule.p_L must be a number with 0 < p_L <= 1"),
        ({"optimizer": {"momentum": 0}}, "optimizer: Nesterov momentum requires a momentum"),
        ({"lr_schedule": {"gamma": 0}}, "lr_schedule.gamma must be a number above 0"),
        ({"trainer": {"sync_batchnorm": True}}, "trainer.sync_batchnorm must be false"),
        ({"trainer": {"batch_size": 5, "accumulate": 3}}, "trainer.batch_size must be 6 or more"),
        ({"trainer": {"batch_size": 1292}}, "trainer.batch_size=1292 leaves 1 of 1293"),
        ({"wandb": {"mode": "online"}}, "wandb: no key"),
    ],
)
def test_a_mistake_is_found_in_any_run_that_is_left(points, monkeypatch, groups, message):
    def resolve_mode(mode):
        if mode == "online":
            raise ValueError("no key")

    monkeypatch.setattr(tracking, "resolve_mode", resolve_mode)
    good = [points("a", "new"), points("b", "interrupted")]
    processes = 2 if "leaves" in message else 1
    sweep.check([*good, points("c", "completed", **groups)], True, processes)
    with pytest.raises(configs.ConfigError) as raised:
        sweep.check([*good, points("d", "failed", retry=True, **groups)], True, processes)
    assert str(raised.value).startswith(f"in run of d: {message}")


def test_devices_are_looked_at_where_the_runs_will_be(points):
    far = [points("a", "new", trainer={"sync_batchnorm": True})]
    sweep.check(far, False, 1)
    with pytest.raises(configs.ConfigError, match="sync_batchnorm"):
        sweep.check(far, True, 1)
    with pytest.raises(configs.ConfigError, match="batch_size must be 258 or more"):
        sweep.check(far, False, 129)


def test_what_runs_have_in_common_is_built_once(points, monkeypatch):
    calls = []
    for name in ("build_device", "build_data", "build_model", "check_optimization"):
        function = getattr(build, name)

        def counted(*arguments, name=name, function=function):
            calls.append(name)
            return function(*arguments)

        counted.__name__ = name
        monkeypatch.setattr(build, name, counted)
    same = [points(str(i), "new") for i in range(3)]
    sweep.check(same, True, 1)
    assert sorted(calls) == ["build_data", "build_device", "build_model", "check_optimization"]
    calls.clear()
    others = [
        points("deeper", "new", model={"depth": 14}),
        points("rate", "new", optimizer={"lr": 0.2}),
        points("schedule", "new", schedule={"p_L": 0.25}),
        points("longer", "new", trainer={"checkpoint_blocks": 2}),
        points("larger", "new", dataset={"size": 16}),
        points("step", "new", lr_schedule={"gamma": 0.2}),
    ]
    sweep.check([*same, *others], True, 1)
    assert {name: calls.count(name) for name in calls} == {
        "build_device": 2,
        "build_data": 2,
        "build_model": 5,
        "check_optimization": 3,
    }


def test_a_function_is_called_once_for_equal_settings():
    seen, calls = sweep._Once(), []

    def first(config, *more):
        calls.append((config["a"], *more))
        return len(calls)

    def second(config):
        return "second"

    config = {"a": {"x": 1, "y": 2}, "b": 3}
    assert seen.call(first, config, ("a",), "more") == 1
    assert seen.call(first, {"a": {"y": 2, "x": 1}, "b": 4}, ("a",), "other") == 1
    assert seen.call(second, config, ("a",)) == "second"
    assert seen.call(first, config | {"a": 7}, ("a",)) == 2
    assert calls == [(config["a"], "more"), (7,)]


def test_the_runs_are_listed_with_their_depth_and_compute(points):
    console = Console(file=io.StringIO(), width=160)
    halved = points("b", "interrupted", rows=1, schedule={"p_L": 0.25})
    masks = points("c", "new", model={"granularity": "sample"}, schedule={"p_L": 0.25})
    # ResNet-8 on 8x8 images: multiply-adds by hand, the branches of the three blocks last
    conv = 9 * 64 * 16 * 16
    branches = [2 * conv, 1.5 * conv, 1.5 * conv]
    macs = 9 * 64 * 1 * 16 + sum(branches) + 640
    shares = []
    for last in (0.5, 0.25):
        survival = [1 - l / 3 * (1 - last) for l in (1, 2, 3)]
        closed = sum((1 - p) * b for p, b in zip(survival, branches, strict=True))
        shares.append(f"{1 - closed / macs:.1%}")
    sweep.show(console, [points("a", "new"), halved, masks])
    lines = [line.split("  ") for line in console.file.getvalue().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert [line for line in cells if len(line) == 5] == [
        ["run", "swept", "state", "expected depth", "expected compute"],
        ["a", "name=a", "to run", "2.00 of 3", shares[0]],
        ["b", "name=b", "to resume after epoch 1.5", "1.50 of 3", shares[1]],
        ["c", "name=c", "to run", "1.50 of 3", "100.0%"],
    ]
    assert cells[-1][0].endswith(": 3 runs: 2 to run, 1 to resume")


# -- the runs -------------------------------------------------------------------------------------


def test_runs_are_launched_in_batches_and_what_is_on_no_record_is_told(swept, said, points):
    cfg = swept(*SMALL, "hydra.sweeper.max_batch_size=2")
    several = [points(str(i), state) for i, state in enumerate(("failed", "new", "failed", "new"))]
    for i, point in enumerate(several):
        point.overrides[:] = [f"seed={i}", *SMALL]
    seen = []
    errors = {0: configs.RunError("it failed"), 1: configs.RunError("no folder")}
    errors[2] = ValueError("a fault")

    def task(cfg):
        seen.append((cfg.seed, HydraConfig.get().job.num))
        if cfg.seed in errors:
            raise errors[cfg.seed]

    assert sweep.launch(cfg, several, task) == 1
    assert seen == [(i, i) for i in range(4)]
    paths = [point.run.path for point in several]
    assert said == [
        f"ERROR: {paths[1]}: RunError: no folder",
        f"ERROR: {paths[2]}: ValueError: a fault",
    ]
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "before"]

    said.clear()
    assert sweep.launch(swept(*SMALL), several[:1], task) == 0  # the run's folder says it
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
    assert sweep.launch(cfg, several, None) == 0 and said == []
    assert batches == [([["name=a"], ["name=b"]], 0), ([["name=c"]], 2)]

    batches.clear()
    errors.append(OSError("a process was killed\nby whom?\nnobody knows\n"))
    assert sweep.launch(swept(*SMALL), several, None) == 1
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


def test_a_folder_is_concluded_by_the_runs_in_it(points, monkeypatch):
    folders = [points(name, "completed").run for name in ("b", "a")]
    (folders[0].path.parent / "report").mkdir()
    calls = []
    monkeypatch.setattr(sweep, "conclude", lambda *arguments: calls.append(arguments) or 7)
    monkeypatch.setattr(consoles, "set_up", lambda: "console")
    assert sweep.conclude_folder(folders[0].path.parent, "offline") == 7
    ((found, *more),) = calls
    assert [run.path for run in found] == [folders[1].path, folders[0].path]
    assert more == ["console", "offline"]


# -- how it hangs together ------------------------------------------------------------------------


@pytest.fixture
def wired(monkeypatch, points):
    """`run_sweep` of two points, one of them done, with each step of it noted."""
    steps = []
    wired = SimpleNamespace(steps=steps, launched=0, concluded=0, set_up=[])
    wired.points = [points("a", "completed", test_error=1.0), points("b", "new")]

    def note(name, result=None):
        return lambda *arguments: steps.append((name, *arguments[1:])) or result

    set_up = lambda: wired.set_up.append(len(steps)) or "console"  # noqa: E731
    monkeypatch.setattr(consoles, "set_up", set_up)
    monkeypatch.setattr(sweep, "plan", lambda config: wired.points)
    monkeypatch.setattr(sweep, "check", note("check"))
    monkeypatch.setattr(sweep, "show", note("show"))
    monkeypatch.setattr(sweep, "announce", note("announce"))
    monkeypatch.setattr(
        sweep, "launch", lambda c, left, t: steps.append(("launch", left, t)) or wired.launched
    )
    monkeypatch.setattr(
        sweep,
        "conclude",
        lambda runs, *more: steps.append(("conclude", runs, *more)) or wired.concluded,
    )

    def run_sweep(sweeper="BasicSweeper", launcher=None, show=False):
        launcher = launcher or {"_target_": "x.BasicLauncher"}
        hydra = {"sweeper": {"_target_": f"x.{sweeper}"}, "launcher": launcher}
        config = {"hydra": hydra, "show": show, "wandb": {"mode": "disabled"}}
        return sweep.run_sweep(OmegaConf.create(config), "task")

    wired.run = run_sweep
    return wired


def test_a_sweep_runs_what_is_left_and_concludes_all_of_it(wired):
    done, left = wired.points
    assert wired.run() == 0
    assert wired.steps == [
        ("check", True, 1),
        ("announce",),
        ("launch", [left], "task"),
        ("conclude", [done.run, left.run], "console", "disabled"),
    ]
    assert wired.set_up == [0, 3]  # and anew after the launcher, which configures logging
    for launched, concluded in ((1, 0), (0, 1), (1, 1)):
        wired.launched, wired.concluded = launched, concluded
        assert wired.run() == 1
    wired.steps.clear()
    wired.launched, wired.concluded, wired.points = 1, 0, [done]
    assert wired.run() == 0  # nothing is left: nothing is launched
    assert [step[0] for step in wired.steps] == ["check", "announce", "conclude"]


def test_a_sweep_that_is_shown_is_not_run(wired):
    assert wired.run(show=True) == 0
    assert [step[0] for step in wired.steps] == ["check", "show"]


def test_another_sweeper_goes_on_by_itself_where_it_has_something_to_minimise(wired, points):
    assert wired.run("OtherSweeper") is None
    assert wired.steps == [("check", True, 1)]
    wired.points.append(points("c", "new", dataset={"validation": 0}))
    with pytest.raises(configs.ConfigError, match=r"^dataset\.validation must set images aside: "):
        wired.run("OtherSweeper")
    assert wired.run() == 0  # a grid has no need of it


def test_a_sweep_under_torchrun_is_a_mistake(wired, monkeypatch):
    monkeypatch.setattr(distributed, "environment", lambda: (0, 2, 0))
    with pytest.raises(configs.ConfigError, match=r"^-m does not work under torchrun"):
        wired.run()
    assert wired.steps == []


def test_a_cluster_has_its_own_devices_and_processes(wired):
    launcher = {"_target_": "x.submitit_launcher.SlurmLauncher", "tasks_per_node": 3, "nodes": 2}
    wired.run(launcher=launcher)
    assert wired.steps[0] == ("check", False, 6)
    wired.run(launcher={"_target_": "x.submitit_launcher.SlurmLauncher"})
    assert wired.steps[4] == ("check", False, 1)


def test_hydra_is_told_that_a_sweep_is_over(monkeypatch):
    monkeypatch.setattr(sweep.Callback, "started", False)
    monkeypatch.setattr(sweep.Callback, "left_to_sweeper", None)
    cfg = OmegaConf.create(
        {"hydra": {"sweep": {"dir": "multirun/s"}}, "wandb": {"mode": "offline"}}
    )
    answer = [0]

    def run_sweep(config, task):
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    monkeypatch.setattr(sweep, "run_sweep", run_sweep)
    for status in (0, 1):
        answer[0] = status
        with pytest.raises(sweep.Ended) as raised:
            sweep.Callback().on_multirun_start(cfg)
        assert raised.value.status == status and raised.value.__cause__ is None
        assert sweep.Callback.started and sweep.Callback.left_to_sweeper is None
    answer[0] = ValueError("a mistake")
    with pytest.raises(sweep.Ended) as raised:
        sweep.Callback().on_multirun_start(cfg)
    assert raised.value.status == 1 and raised.value.__cause__ is answer[0]
    answer[0] = None
    assert sweep.Callback().on_multirun_start(cfg) is None
    assert sweep.Callback.left_to_sweeper == (Path("multirun/s"), "offline")
