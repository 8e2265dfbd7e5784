"""What a run shows, to the letter."""

import io
import logging
import multiprocessing
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from rich.table import Table

from sdnet import processes
from sdnet.listeners import console as consoles
from sdnet.training.counters import Counters

ROW = {
    "epoch": 1.5,
    "step": 33,
    "lr": 0.01,
    "train_loss": 0.123456,
    "train_error": 12.345,
    "val_loss": 2.0,
    "val_error": None,
    "test_loss": 3.0,
    "test_error": 7.891,
    "images_per_second": 1234.5678,
    "active_blocks": 6.504,
}


@pytest.fixture
def project_log():
    """The project's logger, as it was before once the test is over."""
    log = logging.getLogger("sdnet")
    before = log.level, log.propagate, log.handlers
    yield log
    log.setLevel(before[0])
    log.propagate, log.handlers = before[1:]


@pytest.fixture
def said(project_log):
    lines = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())
    project_log.setLevel(logging.DEBUG)
    project_log.propagate, project_log.handlers = False, [handler]
    return lines


@pytest.fixture
def trainer():
    trainer = SimpleNamespace(counters=Counters(step=10), total_steps=60, steps_per_epoch=20)
    trainer.epochs = 3
    trainer.training_loss_and_error = lambda: (0.98765, 12.345)
    return trainer


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(consoles, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def test_a_row_stands_under_its_titles_within_80_columns(said, trainer):
    listener = consoles.ConsoleListener(Console(file=io.StringIO()))
    listener.on_start(trainer)
    listener.on_row(trainer, ROW)
    full = {"epoch": 500, "lr": 1e-4, "val_error": 0.0, "images_per_second": 99999.7}
    listener.on_row(trainer, ROW | full)
    assert said == [
        " epoch        lr  train loss  train err  val err  test err  images/s  blocks",
        "   1.5      0.01      0.1235      12.35        -      7.89      1235    6.50",
        "   500    0.0001      0.1235      12.35     0.00      7.89    100000    6.50",
    ]
    assert max(map(len, said)) <= 80


def test_the_bar_says_how_far_the_run_is_how_fast_and_how_much_is_left(said, trainer, clock):
    listener = consoles.ConsoleListener(terminal())
    listener.on_start(trainer)  # a resumed run, from step 10 of 60
    (task,) = listener.progress.tasks
    assert (task.total, task.description, task.fields["numbers"]) == (60, "training", "")
    shown = (task.completed, task.description, task.fields["numbers"])

    def bar(step, seconds, now, images):
        trainer.counters.step, trainer.counters.images = step, images
        trainer.counters.interval_seconds, clock.now = seconds, now
        listener.on_step(trainer)
        return task.completed, task.description, task.fields["numbers"]

    assert bar(11, 0.0, 101.0, 64) == shown  # the first step after an evaluation
    # 5 of 50 steps in 4 seconds: 45 more take 36; 640 images in 2 seconds
    shown = bar(15, 2.0, 104.0, 640)
    numbers = "loss 0.9877  error 12.35 %  320 images/s  0:00:36 left"
    assert shown == (15, "epoch 1/3", numbers)
    assert bar(16, 2.0, 104.49, 704) == shown  # not that often
    assert bar(22, 2.5, 104.5, 960) == (
        *(22, "epoch 2/3"),
        "loss 0.9877  error 12.35 %  384 images/s  0:00:14 left",
    )
    assert bar(23, 2.5, 3800.0, 960)[2].endswith("  2:55:31 left")


def test_without_a_bar_there_is_a_line_a_minute(said, trainer, clock):
    listener = consoles.ConsoleListener(Console(file=io.StringIO()))
    listener.on_start(trainer)
    said.clear()

    def line(step, now):
        trainer.counters = Counters(step=step, images=640, interval_seconds=2.0)
        clock.now = now
        listener.on_step(trainer)
        return [said.pop()] if said else []

    assert line(11, 101.0) == line(12, 159.9) == []
    numbers = "loss 0.9877  error 12.35 %  320 images/s"
    assert line(20, 160.0) == [f"step 20 of 60  epoch 2/3  {numbers}  0:04:00 left"]
    assert line(21, 219.0) == []
    assert line(60, 220.0) == [f"step 60 of 60  epoch 3/3  {numbers}  0:00:00 left"]


@pytest.mark.parametrize(
    "cores, threads, device, warned",
    [
        (1.2, 2, "cpu", True),
        (0.4, 2, "cpu", False),
        (1.2, 1, "cpu", False),
        (1.2, 2, "cuda", False),
    ],
)
def test_a_busy_machine_is_told_once_with_the_setting(
    said, trainer, clock, monkeypatch, cores, threads, device, warned
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    listener = consoles.ConsoleListener(Console(file=io.StringIO()))
    listener.load = SimpleNamespace(start=lambda: cores * (clock.now - 100.0))
    trainer.device = torch.device(device)
    listener.on_start(trainer)
    said.clear()
    for now in (105.0, 111.0, 130.0):
        clock.now = now
        trainer.counters = Counters(step=20, images=9, interval_seconds=1.0)
        listener.on_step(trainer)
    assert len(said) == warned
    if warned:
        assert said[0].startswith("Other programs keep 1.2 cores busy: trainer.threads=1 may be")
        assert "(this run has 2 threads" in said[0]


def test_the_bar_runs_on_a_terminal_of_the_main_process_alone(monkeypatch, said, trainer, clock):
    with consoles.ConsoleListener(terminal()) as listener:
        assert listener.progress.live.is_started and not listener.progress.disable
    assert not listener.progress.live.is_started
    assert listener.progress.live.transient

    def shown(listener):
        listener.on_start(trainer)
        trainer.counters = Counters(step=20, images=9, interval_seconds=1.0)
        clock.now += 10
        listener.on_step(trainer)
        return listener.progress.tasks[0].completed > 0

    assert shown(consoles.ConsoleListener(terminal()))
    trainer.training_loss_and_error = None  # not asked for what is not shown
    assert not shown(consoles.ConsoleListener(Console(file=io.StringIO())))
    monkeypatch.setattr(multiprocessing.current_process(), "_name", "LokyProcess-1")
    assert not shown(consoles.ConsoleListener(terminal()))


def test_what_the_project_logs_is_shown_as_it_is(project_log):
    console = Console(file=io.StringIO(), width=20)
    project_log.handlers, project_log.propagate = [consoles.ConsoleHandler(console)], False
    project_log.setLevel(logging.DEBUG)
    project_log.info("a line of [bold]more[/] than %d characters", 20)
    project_log.debug("the traceback")
    project_log.warning("w")
    assert console.file.getvalue() == "a line of [bold]more[/] than 20 characters\nw\n"


def test_no_text_is_obeyed_by_the_terminal_or_taken_for_mark_up(project_log, capsys):
    console = consoles.set_up()
    project_log.info("%s", "\x1b[2Jgone\rover :warning: [red]x[/]")
    console.print("[/] :warning:", soft_wrap=True)
    table = Table("[/a]")
    table.add_row("[/b]")
    console.print(table)
    printed = capsys.readouterr().out
    assert printed.startswith("\\x1b[2Jgone\\rover :warning: [red]x[/]\n[/] :warning:\n")
    assert "[/a]" in printed and "[/b]" in printed


def test_the_console_of_a_process(monkeypatch, project_log, capsys):
    for name in ("fontTools", "alembic"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    console = consoles.set_up()
    (handler,) = project_log.handlers
    assert handler.console is console and handler.level == logging.INFO
    assert project_log.level == logging.DEBUG and not project_log.propagate
    assert console.width == 160 and not console.quiet  # into a pipe
    assert all(logging.getLogger(n).level == logging.WARNING for n in ("fontTools", "alembic"))
    project_log.info("said once")
    consoles.set_up()
    project_log.info("and again")
    assert capsys.readouterr().out == "said once\nand again\n"

    monkeypatch.setattr(processes, "environment", lambda: (1, 2, 1))
    assert consoles.set_up().quiet
    project_log.warning("of rank 0 alone")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "77")
    assert consoles.set_up().width == 77 and consoles.set_up().quiet  # a terminal has its own


def test_runs_that_share_an_output_say_whose_line_it_is(monkeypatch, project_log, capsys):
    consoles.set_up("run 5")
    project_log.info("alone")
    monkeypatch.setattr(multiprocessing.current_process(), "_name", "LokyProcess-1")
    consoles.set_up("run 5")
    project_log.info("a line")
    consoles.set_up()
    project_log.info("of no run")
    monkeypatch.setenv(consoles.SHOWN, "1")  # the bars of another process stand for them
    consoles.set_up("run 5")
    project_log.info("unseen")
    assert capsys.readouterr().out == "alone\nrun 5 | a line\nof no run\n"


def test_the_beginning_of_a_run():
    config = {
        "model": {"_target_": "mine.Net", "name": "net"},
        "dataset": {"name": "dots"},
        "schedule": {"_target_": "mine.Square", "name": "square", "p_L": 0.5},
        "trainer": {"precision": "fp32"},
        "seed": 3,
    }
    assert consoles.title(config) == "net on dots, square, p_L 0.5, seed 3"
    config["model"]["name"] = None
    assert consoles.title(config).startswith("Net on dots")
    parts = {"train": 12345, "validation": 100, "test": 2000}
    trainer = SimpleNamespace(
        loaders={name: SimpleNamespace(count=count) for name, count in parts.items()},
        model=torch.nn.Linear(99, 12),
        layout=SimpleNamespace(gates=range(7)),
        epochs=30,
        steps_per_epoch=97,
        device=torch.device("cpu"),
        world=SimpleNamespace(size=1),
    )
    network, data, computed = consoles.opening_lines(config, trainer, "offline")
    assert network == "network       1,200 parameters, 7 blocks; 30 epochs of 97 steps"
    assert data == "data          12,345 training, 100 validation, 2,000 test images"
    assert computed.startswith("computed on   cpu (")
    assert computed.endswith("), fp32, 1 thread; W&B offline (wandb sync uploads it)")
    del trainer.loaders["validation"]
    trainer.world.size = 4
    _, data, computed = consoles.opening_lines(config, trainer, "online")
    assert data == "data          12,345 training, 2,000 test images"
    assert computed.startswith("computed on   4 processes on cpu (")
    assert computed.endswith("; W&B online")


SUMMARY = {
    "best_epoch": 2.5,
    "val_error": 3.456,
    "test_error": 4.567,
    "test_top5_error": None,
    "final_test_error": 5.678,
    "selection": "the rule",
    "train_seconds": 61.26,
    "eval_seconds": 7.04,
    "mean_active_blocks": 6.514,
    "expected_active_blocks": 6.5,
    "blocks": 9,
}


def test_the_result_of_a_run():
    schedule = {"_target_": "mine.Square", "name": "square", "p_L": 0.30000000000000004}
    lines = [
        "schedule      square, p_L 0.3",
        "active blocks 6.51 of 9 measured, 6.50 expected",
        "test error    4.57 % at epoch 2.5: the rule (3.46 %)",
        "              5.68 % at the last epoch",
        "time          61.3 s training, 7.0 s evaluating",
        "run folder    outputs/a",
        "              metrics.csv summary.json config.yaml checkpoints/best.pt",
        "              figures/survival.png figures/curves.png",
    ]
    assert consoles.result_lines({"schedule": schedule}, SUMMARY, "outputs/a") == lines

    unnamed = {"_target_": "mine.Square"}
    more = SUMMARY | {"val_error": None, "test_top5_error": 1.234}
    assert consoles.result_lines({"schedule": unnamed}, more, "outputs/a") == [
        "schedule      mine.Square",
        lines[1],
        "test error    4.57 % at epoch 2.5: the rule",
        "              1.23 % top-5, at the same epoch",
        *lines[3:],
    ]
    text = consoles.result_lines({"schedule": schedule | {"p_L": "half"}}, SUMMARY, "")
    assert text[0] == "schedule      square, p_L half"
