"""What is planned, checked and listed of a sweep before its first run."""

import io
import re
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from sdnet.config.errors import ConfigError
from sdnet.launch import budget, build, sweep, sweep_plan
from sdnet.launch.sweep_plan import Point
from sdnet.listeners import wandb as tracking
from sdnet.runs.folder import RESULT, RunFolder
from sdnet.runs.identity import run_name
from tests.launch.conftest import SMALL, several

pytestmark = pytest.mark.usefixtures("loggers")


def test_every_point_has_its_overrides_what_is_swept_its_folder_and_its_state(swept, said):
    cfg = swept("name=s", "seed=0,1", *SMALL, "schedule=linear_decay,uniform", "schedule.p_L=1")
    hydra = HydraConfig.instance().cfg
    first, second = sweep_plan.plan(cfg)
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
        assert point.name == run_name(point.config) and point.state == "new"
        assert point.run.path == Path("multirun", "s", point.name)

    first.run.create(first.config, {})
    first.run.set_status("completed", result=dict.fromkeys(RESULT, 1.0))
    said.clear()
    cfg = swept("name=s", "seed=0", *SMALL, "schedule=constant")
    (again,) = sweep_plan.plan(cfg)
    assert said == []
    assert (again.label, again.swept, again.state) == ("run 1 of 1", "", "completed")
    numbers = "wandb.name=${hydra:job.num}-${hydra:job.id}"
    assert sweep_plan._compose(cfg, [numbers], 3, "", "").config["wandb"]["name"] == "3-3"


def test_each_run_of_a_sweep_has_the_epochs_that_the_budget_is_for_it(swept):
    cfg = swept(*SMALL, "trainer.budget=3", "schedule.p_L=0.5,0.8,1")
    points = sweep_plan.plan(cfg)
    assert {point.config["trainer"]["epochs"] for point in points} == {30}
    names = [point.name for point in points]
    sweep_plan.check(points, True, 1, listing=True)
    assert [run_name(point.config) for point in points] == names
    epochs = [point.config["trainer"]["epochs"] for point in points]
    assert epochs[0] > epochs[1] > epochs[2] == 3
    console = Console(file=io.StringIO(), width=200)
    sweep_plan.show(console, points)
    ends = [line.split()[-2:] for line in console.file.getvalue().splitlines() if "-pL" in line]
    assert [said for said, _ in ends] == [f"{e:.6g}" for e in epochs]
    assert ends[2][1] == "(+0.00%)" != ends[0][1] and all("0." in off for _, off in ends)


def test_a_sweep_says_in_a_line_that_a_network_cannot_be_counted(swept, monkeypatch):
    def uncountable(*given):
        raise RuntimeError("no copies")

    monkeypatch.setattr(budget, "network_cost", uncountable)
    points = sweep_plan.plan(swept(*SMALL, "trainer.budget=3", "schedule.p_L=0.5,0.8"))
    for call in (lambda: sweep_plan.check(points, True, 1), lambda: sweep_plan.show(None, points)):
        with pytest.raises(ConfigError, match=r"trainer\.budget must be null for .*no copies"):
            call()


def test_presets_hold_the_runs_of_the_papers_figure(swept):
    def planned(*overrides):
        configs_of = [point.config for point in sweep_plan.plan(swept(*SMALL, *overrides))]
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


def test_a_folder_may_be_named_by_what_is_typed(swept):
    named = "hydra.sweep.subdir=${hydra:job.override_dirname}"
    points = sweep_plan.plan(swept("seed=0,1", "show=true", named))
    assert [point.name for point in points] == ["seed=0,show=True", "seed=1,show=True"]


def test_a_setting_may_follow_from_one_that_is_swept(swept):
    follows = ["optimizer.lr=${schedule.p_L}", "wandb.name=run-${hydra:job.num}"]
    points = sweep_plan.plan(swept("schedule.p_L=0.6,0.8", *follows, *SMALL))
    assert [point.config["optimizer"]["lr"] for point in points] == [0.6, 0.8]
    assert [point.config["wandb"]["name"] for point in points] == ["run-0", "run-1"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            "seed=0,x",
            r"^in run 2 of 2 \(seed=x\): seed must be a whole number, 0 to 9.*, got 'x'$",
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
            r"^in run 1 of 2 \(seed=0\): multirun/digits/a-0 depends on hydra\.job\.num or",
        ),
        (
            "seed=0,1 hydra.sweep.subdir=a-${hydra.job.num}",  # however it is written
            r"^in run 1 of 2 \(seed=0\): multirun/digits/a-0 depends on hydra\.job\.num or",
        ),
        (
            "schedule.p_L=0.5,0.6 seed=${hydra:job.num}",
            r"^in run 1 of 2 \(schedule\.p_L=0\.5\): multirun/digits/resnet20-.* depends on",
        ),
        ("seed=0,1 hydra.job.chdir=true", "^hydra.job.chdir must be false, got true"),
        (
            "model=resnet_cifar,null",
            r"^in run 2 of 2 \(model=null\): Config group override must be",
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
    with pytest.raises(ConfigError, match=message):
        sweep_plan.plan(swept(*overrides.split()))


@pytest.mark.parametrize("error", [ValueError("x"), ConfigError("x"), OmegaConfBaseException("x")])
def test_a_mistake_of_any_kind_names_its_run(error):
    with pytest.raises(ConfigError) as raised, sweep_plan._errors_in("run 7"):
        raise error
    assert str(raised.value) == "in run 7: x" and raised.value.__cause__ is error


def test_a_folder_of_another_run_is_found_in_the_plan(swept, configuration):
    RunFolder("multirun/digits/x").create(configuration | {"seed": 7}, {})
    with pytest.raises(ConfigError) as raised:
        sweep_plan.plan(swept(*SMALL, "hydra.sweep.subdir=x"))
    message = "in run 1 of 1: multirun/digits/x holds another run: its identity is "
    assert str(raised.value).startswith(message)


def test_of_ranges_the_ends_are_planned_and_the_last_word_on_a_setting_counts(swept):
    overrides = [
        "schedule.p_L=interval(0.25,1.0)",
        "optimizer.momentum=0.3,0.5",
        "trainer.epochs=7",
        "optimizer.momentum=0.4,0.8",
    ]
    params = {"schedule.p_L": "0.1,0.2", "optimizer.lr": "choice(0.1,0.2)"}
    cfg = swept(*overrides, params=params)
    assert sweep_plan._expand(cfg, grid=False) == [
        ["schedule.p_L=0.25", "optimizer.lr=0.1", "optimizer.momentum=0.4", "trainer.epochs=7"],
        ["schedule.p_L=1.0", "optimizer.lr=0.1", "optimizer.momentum=0.4", "trainer.epochs=7"],
        ["schedule.p_L=0.25", "optimizer.lr=0.2", "optimizer.momentum=0.4", "trainer.epochs=7"],
        ["schedule.p_L=0.25", "optimizer.lr=0.1", "optimizer.momentum=0.8", "trainer.epochs=7"],
    ]
    assert sweep_plan._expand(swept("seed=0,1", params={"trainer.epochs": "5,6"}), grid=True) == [
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


def test_the_states_of_a_sweep_are_counted_and_described(points, said, tmp_path):
    folder = tmp_path / "multirun" / "s"
    some = several(points)
    count = "1 done, 2 to resume, 1 to run, 1 running, 1 failed, 1 diverged"
    assert sweep_plan.count(some) == f"sweep {folder}: 7 runs: {count}"
    assert [sweep_plan.describe(point) for point in some] == [
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
    assert sweep_plan.count([Point([], "", "", {}, other, "new")]) == (
        f"sweep {other.path.parent}: 1 run: 1 to run"
    )
    done = [Point([], "", "", {}, RunFolder(f"{n}/x"), "completed") for n in "hgfedcba"]
    assert sweep_plan.count(done) == "sweep a b c d e f g h: 8 runs: 8 done"


def test_with_retry_failed_what_failed_is_to_be_tried_again(points, said, tmp_path):
    some = several(points, retry=True)
    assert sweep_plan.count(some).endswith(
        ": 7 runs: 1 done, 2 to resume, 1 to run, 1 running, 2 to try again"
    )
    described = [sweep_plan.describe(point) for point in some]
    assert described[-2:] == ["failed: to try again", "diverged: to try again"]
    sweep.announce(some)
    assert len(said) == 3


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
    sweep_plan.check([*good, points("c", "completed", **groups)], True, processes)
    with pytest.raises(ConfigError) as raised:
        sweep_plan.check([*good, points("d", "failed", retry=True, **groups)], True, processes)
    assert str(raised.value).startswith(f"in run of d: {message}")


def test_devices_are_looked_at_where_the_runs_will_be(points):
    far = [points("a", "new", trainer={"sync_batchnorm": True})]
    sweep_plan.check(far, False, 1)
    with pytest.raises(ConfigError, match="sync_batchnorm"):
        sweep_plan.check(far, True, 1)
    with pytest.raises(ConfigError, match="batch_size must be 258 or more"):
        sweep_plan.check(far, False, 129)


def test_what_runs_have_in_common_is_built_once(points, monkeypatch):
    calls = []
    for name in ("build_device", "build_data", "build_model", "check_optimization"):
        function = getattr(build, name)

        def counted(*arguments, name=name, function=function, **more):
            calls.append(name)
            return function(*arguments, **more)

        counted.__name__ = name
        monkeypatch.setattr(build, name, counted)
    same = [points(str(i), "new") for i in range(3)]
    sweep_plan.check(same, True, 1)
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
    sweep_plan.check([*same, *others], True, 1)
    assert {name: calls.count(name) for name in calls} == {
        "build_device": 2,
        "build_data": 2,
        "build_model": 5,
        "check_optimization": 4,
    }


def test_a_function_is_called_once_for_equal_settings():
    seen, calls = sweep_plan._Once(), []

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
    sweep_plan.show(console, [points("a", "new"), halved, masks])
    lines = [line.split("  ") for line in console.file.getvalue().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert [line for line in cells if len(line) == 5] == [
        ["run", "swept", "state", "expected depth", "expected compute"],
        ["a", "name=a", "to run", "2.00 of 3", shares[0]],
        ["b", "name=b", "to resume after epoch 1.5", "1.50 of 3", shares[1]],
        ["c", "name=c", "to run", "1.50 of 3", "100.0%"],
    ]
    assert cells[-1][0].endswith(": 3 runs: 2 to run, 1 to resume")


def test_the_list_says_in_which_run_a_network_cannot_be_counted(points, monkeypatch):
    def cannot(config, *more):
        raise ConfigError("show must be false")

    monkeypatch.setattr(sweep_plan, "training_cost", cannot)
    point = points("a", "new")
    with pytest.raises(ConfigError, match=f"^in {re.escape(point.label)}: show must be false$"):
        sweep_plan.show(Console(file=io.StringIO()), [point])


class FromValues:
    """A schedule that needs the values of its tensors, which the meta device has not."""

    def __call__(self, stage_blocks, progress=1.0):
        return [p.item() for p in torch.linspace(1, 0.5, sum(stage_blocks))]


def test_a_schedule_that_needs_values_is_planned_as_it_is_run(points, monkeypatch):
    monkeypatch.setattr(build, "build_schedule", lambda config: FromValues())
    point = points("a", "new")
    sweep_plan.check([point], True, 1)
    model = sweep_plan._network(point.config, sweep_plan._Once())
    assert [block.survival for block in model.blocks] == [1.0, 0.75, 0.5]
