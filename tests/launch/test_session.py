import copy
import errno
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
from contextlib import contextmanager

import pytest
import torch.distributed as dist
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from sdnet.config import compose
from sdnet.config.errors import Busy, ConfigError, RunError
from sdnet.launch import build, ending, session
from sdnet.listeners import wandb as tracking
from sdnet.listeners.console import result_lines
from sdnet.runs.folder import COLUMNS, RunFolder
from sdnet.runs.identity import identity, run_name
from sdnet.training import distributed
from sdnet.training.counters import Interrupted
from sdnet.training.distributed import ALONE, Lost, World
from tests.conftest import ROOT

SMALL = ["model.depth=8", "dataset.size=8", "dataset.validation=1300", "wandb.mode=disabled"]
SMALL += ["trainer.epochs=2", "trainer.batch_size=64", "trainer.threads=1", "trainer.device=cpu"]
TIMES = ("train_seconds", "eval_seconds", "images_per_second")


@pytest.fixture(scope="module")
def configuration():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = hydra_compose("config", overrides=SMALL, return_hydra_config=True)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    yield compose.resolve(cfg)
    HydraConfig.instance().cfg = before


@pytest.fixture
def config(configuration):
    return copy.deepcopy(configuration)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@contextmanager
def listening():
    """What the project logs within the block, as its console would show it."""
    log, lines = logging.getLogger("sdnet"), []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())
    before = log.level, log.propagate, log.handlers
    log.setLevel(logging.DEBUG)
    log.propagate, log.handlers = False, [handler]
    try:
        yield lines
        assert not any(isinstance(h, logging.FileHandler) for h in log.handlers)
    finally:
        log.setLevel(before[0])
        log.propagate, log.handlers = before[1:]


@pytest.fixture(autouse=True)
def said():
    with listening() as lines:
        yield lines


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(session, "figures_of", lambda *arguments: [])


def train(run, config, change=None, mode="disabled", world=ALONE):
    """A run as train.py does it; `change` is called with the trainer before the first step."""

    def make_trainer():
        trainer = build.build_trainer(config, run)
        if change is not None:
            change(trainer)
        return trainer

    return session.train(make_trainer, run, config, mode, Console(file=io.StringIO()), world)


def at_step(number, function):
    """A change of a trainer: `function` is called when step `number`, counted from 1, begins."""

    def change(trainer):
        rate = trainer.lr_schedule

        def schedule(epoch, epochs):
            if trainer.counters.step == number - 1:
                function(trainer)
            return rate(epoch, epochs)

        trainer.lr_schedule = schedule

    return change


def files(folder):
    return {p.relative_to(folder.path): p.read_bytes() for p in folder.path.rglob("*.*")}


def names(folder):
    return {str(path) for path in files(folder)}


def measured(folder):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in folder.rows()]


BEGUN = {"config.yaml", "provenance.json", "summary.json", "train.log"}


@pytest.fixture(scope="module")
def completed(configuration, tmp_path_factory):
    """The folder of a completed run, what it logged, and what `train` returned."""
    folder = RunFolder(tmp_path_factory.mktemp("completed") / "run")
    with pytest.MonkeyPatch.context() as patch, listening() as lines:
        patch.setattr(sys, "argv", ["train.py", "name=a b", "seed=0"])
        summary = train(folder, configuration)
    return folder, lines, summary


def test_a_completed_run_has_its_result_its_figures_and_its_log(completed, configuration):
    folder, lines, summary = completed
    assert summary == folder.summary() and folder.config() == configuration
    assert summary["status"] == "completed" and "reason" not in summary
    assert summary["identity"] == identity(configuration) and summary["steps"] == 6
    assert len(folder.rows()) == 2
    assert names(folder) == BEGUN | {
        *("metrics.csv", "predictions.npz", "checkpoints/best.pt"),
        *("checkpoints/last.pt", "checkpoints/previous.pt"),
        *("figures/survival.png", "figures/curves.png"),
    }
    assert not (folder.path / "lock").exists()
    network, data, computed, head, first, second, *result = lines
    assert network.endswith(" parameters, 3 blocks; 2 epochs of 3 steps")
    assert data == "data          137 training, 1,300 validation, 360 test images"
    assert computed.startswith("computed on   cpu (") and computed.endswith("; W&B off")
    assert head.split()[:3] == ["epoch", "lr", "train"] and first.split()[0] == "1"
    assert second.split()[0] == "2"
    assert result == result_lines(configuration, summary, str(folder.path))
    logged = (folder.path / "train.log").read_text().splitlines()
    stamp = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")
    assert [stamp.sub("", line, count=1) for line in logged if stamp.match(line)] == lines


def test_a_completed_run_is_left_alone_and_told_again_to_who_resumes_it(completed, config, said):
    folder, _, summary = completed
    before = files(folder)

    def never(trainer):
        raise AssertionError

    assert train(folder, config, never) == session.finished(folder, config) == summary
    line = f"{folder.path} is completed: {summary['test_error']:.2f} % test error"
    assert said == [line, line]
    resumed = config | {"resume": "x"}
    assert session.finished(folder, resumed) == summary
    assert said[2:] == [line, *result_lines(config, summary, str(folder.path))]
    assert files(folder) == before


def raised_by(error):
    def change(trainer):
        raise error

    return change


def test_an_interrupted_run_says_where_and_goes_on_to_the_same_result(
    completed, config, folder, no_figures
):
    before = signal.getsignal(signal.SIGTERM)

    def stop(trainer):
        assert signal.getsignal(signal.SIGTERM) is not before
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped after step 4 of 6") as raised:
        train(folder, config, at_step(4, stop))
    assert raised.value.number == signal.SIGTERM
    summary, first = folder.summary(), folder.provenance()
    assert summary["status"] == "interrupted" and summary["reason"] == "stopped after step 4 of 6"
    assert summary["steps"] == 4 and summary["best_epoch"] == 1
    assert folder.load_checkpoint()["counters"]["step"] == 4
    assert not (folder.path / "lock").exists()

    saved = folder.checkpoint().read_bytes()
    with pytest.raises(RunError, match=" failed: "):
        train(folder, config, raised_by(ValueError()))
    known = {k: v for k, v in summary.items() if k not in ("status", "reason")}
    assert known.items() <= folder.summary().items()  # what was measured is not forgotten
    folder.checkpoint().write_bytes(saved)
    folder.set_status("interrupted")
    first = {k: v for k, v in folder.provenance().items() if k != "resumed"}
    folder.write_provenance(first)

    (folder.path / ".summary.json.0.tmp").write_text("half")
    (folder.path / "checkpoints" / "last.0.tmp").write_text("half")
    seen = []
    summary = train(folder, config, at_step(5, lambda trainer: seen.append(folder.summary())))
    assert seen[0]["status"] == "running" and "reason" not in seen[0] and seen[0]["steps"] == 4
    assert not list(folder.path.rglob("*.tmp"))
    assert summary["status"] == "completed" and "reason" not in summary
    assert measured(folder) == measured(completed[0]) and summary["steps"] == 6
    (resumed,) = folder.provenance()["resumed"]
    assert folder.provenance() == first | {"resumed": [resumed]}
    assert set(resumed) == set(first) - {"wandb_id", "classes", "image_shape"}  # the device as well
    assert len((folder.path / "train.log").read_text().splitlines()) > 10

    folder.set_status("interrupted", "by hand")
    train(folder, config)
    assert len(folder.provenance()["resumed"]) == 2


STORE = dist.HashStore()
STORE.set(distributed.ERROR, json.dumps(["on rank 1: MemoryError: 7", "Traceback of rank 1"]))
STOPPED = "stopped before its state was saved"


@pytest.mark.parametrize(
    "error, world, status, reason, told",
    [
        (KeyboardInterrupt(), ALONE, "interrupted", STOPPED, None),
        (SystemExit("the node goes down"), ALONE, "interrupted", "the node goes down", None),
        (ValueError("no images"), ALONE, "failed", "ValueError: no images", ""),
        (ConfigError("seed: 7"), ALONE, "failed", "ConfigError: seed: 7", ""),
        (Lost("gone"), ALONE, "interrupted", "gone", "; to continue: python train.py resume="),
        (Lost("gone"), World(0, 2, 0, STORE), "failed", "on rank 1: MemoryError: 7", ""),
    ],
    ids=["Ctrl-C", "exit", "failed", "mistake", "lost", "failed elsewhere"],
)
@pytest.mark.parametrize("when", ["made", "step"])
def test_a_run_that_ends_early_says_why_in_its_folder(
    config, folder, no_figures, when, error, world, status, reason, told
):
    change = raised_by(error)
    with pytest.raises(BaseException) as raised:
        train(folder, config, change if when == "made" else at_step(3, change), world=world)
    if told is None:
        assert raised.value is error
    else:
        again = told and f"{told}{folder.path}"
        assert type(raised.value) is RunError
        assert str(raised.value) == f"{folder.path} {status}: {reason}{again}"
        assert raised.value.__cause__ is error
    summary = folder.summary()
    head = {"status": status, "reason": reason, "identity": identity(config)}
    if when == "made":
        assert summary == head and names(folder) == BEGUN
    else:
        assert head.items() <= summary.items() and summary["steps"] == 2
        assert summary["test_error"] is None
    assert folder.config() == config and folder.ended() == status
    log = (folder.path / "train.log").read_text()
    assert (f"the run {status}\nTraceback" in log) == (told is not None)
    assert ("Traceback of rank 1" in log) == (reason.startswith("on rank 1"))
    assert not (folder.path / "lock").exists()


def test_a_diverged_run_begins_anew_and_a_failed_one_goes_on(config, folder, no_figures):
    def diverge(trainer):
        trainer.sums += float("nan")

    with pytest.raises(RunError) as raised:
        train(folder, config, at_step(5, diverge))
    where = "(epoch 2.00, learning rate 0.01): its outputs and gradients are finite"
    reason = f"the training loss is nan at step 6 {where}"
    assert str(raised.value) == f"{folder.path} diverged: {reason}"
    summary = folder.summary()
    assert (summary["status"], summary["reason"]) == ("diverged", reason)
    assert summary["steps"] == 6 and summary["best_epoch"] == 1
    before = files(folder)
    with pytest.raises(RunError) as raised:
        train(folder, config)
    message = f"{folder.path} diverged before ({reason}); retry_failed=true tries it again"
    assert str(raised.value) == message and files(folder) == before

    retried, seen = config | {"retry_failed": True}, []

    def fail(trainer):
        seen.append((trainer.counters.step, folder.rows(), folder.summary()))
        raise ValueError("again")

    with pytest.raises(RunError, match="ValueError: again"):
        train(folder, retried, at_step(1, fail))
    assert seen == [(0, [], {"status": "running", "identity": identity(config)})]

    with pytest.raises(RunError, match="ValueError: again"):
        train(folder, retried, at_step(4, fail))
    with pytest.raises(RunError, match=r"failed before \(ValueError: again\); retry_failed=true"):
        session.finished(folder, config)
    assert session.finished(folder, config | {"resume": str(folder.path)}) is None
    assert train(folder, retried, at_step(4, lambda trainer: seen.append(trainer.counters.step)))
    assert seen[-1] == 3 and folder.ended() == "completed"  # from the checkpoint after step 3


def test_a_folder_of_another_run_is_left_alone(completed, config):
    folder, before = completed[0], files(completed[0])
    with pytest.raises(RunError, match="holds another run: its identity is"):
        train(folder, config | {"seed": 1})
    assert files(folder) == before
    assert session.finished(RunFolder(folder.path / "new"), config) is None


@pytest.mark.parametrize("when", ["begun", "step"])
@pytest.mark.parametrize("how", ["gone", "moved", "read-only"])
def test_a_folder_that_fails_is_told_in_one_line_and_keeps_what_it_has(
    config, folder, no_figures, monkeypatch, when, how
):
    def fail(*arguments):
        monkeypatch.setattr("sdnet.runs.folder.write_atomically", refuse)
        monkeypatch.setattr("sdnet.lock.Lock.held", refuse)

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied", str(folder.path / "metrics.csv"))

    def vanish(*arguments):
        if how == "moved":
            folder.path.rename(folder.path.with_name("elsewhere"))
        else:
            shutil.rmtree(folder.path)

    change = fail if how == "read-only" else vanish
    with pytest.raises(RunError) as raised:
        train(folder, config, change if when == "begun" else at_step(5, change))
    line = str(raised.value)
    assert line.startswith(f"{folder.path} interrupted: ") and "\n" not in line
    assert ("; to continue: " in line) == (how == "read-only")
    assert folder.path.exists() == (how == "read-only")
    if how == "moved" and when == "step":
        moved = RunFolder(folder.path.with_name("elsewhere"))
        monkeypatch.undo()
        assert moved.ended() == "interrupted" and moved.load_checkpoint() and moved.rows()


def test_a_folder_that_cannot_be_made_is_told_in_one_line(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/run cannot be written to, or is gone \(Not a direc"):
        train(RunFolder(tmp_path / "file" / "run"), config)


def test_a_run_whose_provenance_was_mended_by_hand_goes_on(config, folder, no_figures):
    with pytest.raises(RunError):
        train(folder, config, at_step(3, raised_by(ValueError("x"))))
    folder.write_provenance({})
    assert train(folder, config | {"retry_failed": True})["status"] == "completed"
    assert len(folder.provenance()["wandb_id"]) == 8


def test_the_reason_of_a_run_from_elsewhere_is_one_line(config, folder):
    folder.create(config, {})
    folder.set_status("failed", "\x1b[2Ja\nb")
    with pytest.raises(RunError, match=r"run failed before \(\\x1b\[2Ja\\nb\); retry_failed=true"):
        session.finished(folder, config)


def take_over(folder):
    """What another process does to the lock, and its content."""
    text = json.dumps({"host": "there", "process": 1, "space": "elsewhere", "token": "other"})
    (folder.path / "lock").write_text(text)
    return text


def test_a_run_that_another_process_works_on_is_not_touched(config, folder):
    folder.path.mkdir()
    text = take_over(folder)
    with pytest.raises(Busy) as raised:
        train(folder, config)
    assert str(raised.value) == f"{folder.path} is being worked on by process 1 on there"
    assert [p.name for p in folder.path.iterdir()] == ["lock"]
    assert (folder.path / "lock").read_text() == text


@pytest.mark.parametrize("noticed", ["by the heartbeat", "at the end"])
def test_a_run_that_loses_its_lock_ends_and_writes_nothing_more(
    config, folder, no_figures, monkeypatch, noticed
):
    stub, before, steps = Stub(), {}, []
    monkeypatch.setattr(tracking, "start_run", lambda *args, **more: stub)

    def lose(trainer):
        if noticed == "at the end":  # after the last row and checkpoint
            on_row = trainer.listeners[1].on_row
            trainer.listeners[1].on_row = lambda *args: (on_row(*args), taken())
        else:
            steps.append(trainer.counters)
            take_over(folder)
            assert not trainer.listeners[0].lock.lost
            before.update(files(folder))
            trainer.listeners[0].lock.held()  # asked by the heartbeat

    def taken():
        take_over(folder)
        before.update(files(folder))

    with pytest.raises(Busy) as raised:
        train(folder, config, at_step(5 if noticed == "by the heartbeat" else 6, lose), "offline")
    assert str(raised.value) == f"{folder.path} was taken over by another process"
    assert files(folder) == before and folder.summary()["status"] == "running"
    assert json.loads((folder.path / "lock").read_text())["token"] == "other"
    assert all(counters.step == 5 for counters in steps)
    assert stub.ended == [1] and stub.summary == {}


class Stub:
    """Stands in for a W&B run."""

    id = "agent456"

    def __init__(self):
        self.logged, self.ended, self.summary = [], [], {}

    def define_metric(self, *names, **options):
        pass

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code):
        self.ended.append(exit_code)


def test_wandb_is_told_of_the_run_and_its_end(config, folder, no_figures, monkeypatch, said):
    stubs, begun = [], []

    def start_run(settings, mode, path, run_id, resumed, **arguments):
        stubs.append(Stub())
        begun.append((settings, mode, path, run_id, resumed, arguments))
        return stubs[-1]

    monkeypatch.setattr(tracking, "start_run", start_run)

    def stop(trainer):
        trainer.stop_requested = True

    with pytest.raises(Interrupted):
        train(folder, config, at_step(3, stop), "offline")
    summary = train(folder, config, mode="online")
    (_, *first, named), (_, *second, _) = begun
    assert first == ["offline", folder.path, first[2], False]
    assert re.fullmatch("[0-9a-f]{8}", first[2])
    assert second == ["online", folder.path, "agent456", True]  # an agent's id is kept
    assert named == {"name": run_name(config), "job_type": "train", "config": config}
    assert folder.provenance()["wandb_id"] == "agent456"
    assert {"command", "overrides", "git_commit", "device", "resumed"} <= set(folder.provenance())
    assert [len([v for v in s.logged if "test_error" in v]) for s in stubs] == [1, 1]
    assert [stub.ended for stub in stubs] == [[1], [0]]
    shown = ["network", "data", "computed", "epoch"]  # as well
    assert [line.split()[0] for line in said[:10]] == [*shown, "1", *shown, "2"]
    assert said[2].endswith("W&B offline (wandb sync uploads it)")
    assert stubs[0].summary["status"] == "interrupted" and stubs[1].summary == summary
    assert not any("figures" in key for values in stubs[1].logged for key in values)


def test_nothing_that_follows_the_result_may_cost_it(config, folder, monkeypatch, said):
    stub = Stub()
    monkeypatch.setattr(tracking, "start_run", lambda *args, **more: stub)

    def broken(*arguments):
        assert folder.summary()["status"] == "completed"
        raise ZeroDivisionError("no font")

    monkeypatch.setattr(session, "figures_of", broken)
    monkeypatch.setattr(stub, "finish", lambda exit_code: 1 / 0, raising=False)
    summary = train(folder, config, mode="offline")
    assert summary == folder.summary() and summary["status"] == "completed"
    assert "the figures could not be drawn: ZeroDivisionError: no font" in said
    assert [line for line in said if "W&B is lost (ZeroDivisionError: division by zero)" in line]
    assert not any("Traceback" in line for line in said)


def test_figures_are_drawn_of_what_is_there(config, folder, monkeypatch):
    from sdnet.analysis import plots

    drawn = []
    monkeypatch.setattr(plots, "plot_survival", lambda *args: drawn.append(args))
    monkeypatch.setattr(plots, "plot_curves", lambda *args: drawn.append(args))
    folder.create(config, {})
    trainer = build.build_trainer(config, folder)
    (survival,) = ending.figures_of(trainer, folder, "title", {"best_epoch": None})
    assert survival == folder.path / "figures" / "survival.png"
    expected = ([pytest.approx(p) for p in (5 / 6, 4 / 6, 0.5)], (1, 1, 1), "title", survival, [])
    assert [(list(s), tuple(b), *more) for s, b, *more in drawn] == [expected]
    for epoch in (1.0, 2.0):
        folder.append_row(dict.fromkeys(COLUMNS, 1.0) | {"epoch": epoch})
    paths = ending.figures_of(trainer, folder, "title", {"best_epoch": 1.0})
    assert paths == [survival, folder.path / "figures" / "curves.png"]
    assert drawn[2] == (folder.rows(), 1.0, "title", paths[1])
    trainer.schedule = lambda blocks, progress=1.0: [1.0 - progress / 2] * 3
    ending.figures_of(trainer, folder, "title", {"best_epoch": 1.0})
    assert drawn[3][0] == [pytest.approx(0.75)] * 3 and drawn[3][4] == [[1.0] * 3, [0.5] * 3]


def work(config, folder, in_sweep, world=ALONE):
    return session.work(config, folder, world, Console(file=io.StringIO()), in_sweep)


def test_a_mistake_leaves_no_folder_but_in_a_sweep_is_on_record(config, folder, no_figures):
    config["model"]["depth"] = 9
    with pytest.raises(ConfigError, match=r"model\.depth must be 6n\+2"):
        work(config, folder, in_sweep=False)
    assert not folder.path.exists()
    with pytest.raises(RunError, match=r"failed: ConfigError: model\.depth must be"):
        work(config, folder, in_sweep=True)
    assert folder.ended() == "failed"
    config["wandb"]["mode"] = "nonsense"
    with pytest.raises(RunError, match="failed before"):
        work(config, folder, in_sweep=True)


def test_work_returns_the_lowest_validation_error(completed, config, folder, no_figures):
    done, _, summary = completed
    assert work(config, done, in_sweep=False) == summary["val_error"]
    assert summary["val_error"] == min(row["val_error"] for row in done.rows())
    config["trainer"]["epochs"] = 1
    value = work(config, folder, in_sweep=False)
    assert value == folder.summary()["val_error"] == folder.rows()[0]["val_error"]
    assert folder.ended() == "completed"


def test_a_mistake_that_another_process_finds_is_told_by_the_first(config, folder, monkeypatch):
    def lost(*arguments):
        raise Lost("gone")

    monkeypatch.setattr(build, "build_trainer", lost)
    for world, message in ((ALONE, "gone"), (World(0, 2, 0, STORE), "on rank 1: MemoryError: 7")):
        with pytest.raises(ConfigError) as raised:
            work(config, folder, in_sweep=False, world=world)
        assert str(raised.value) == message
    assert not folder.path.exists()


def test_a_process_that_follows_does_nothing_where_there_is_nothing_to_do(config, folder):
    store = dist.HashStore()
    store.set(distributed.ENDED, "1")
    assert work(config, folder, in_sweep=False, world=World(1, 2, 1, store)) is None
    assert not folder.path.exists()


def full_after(monkeypatch, count):
    """A disk that takes `count` more files."""
    replace, left = os.replace, iter(range(count))

    def replacing(*paths):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device", str(paths[0]))
        replace(*paths)

    monkeypatch.setattr(os, "replace", replacing)


@pytest.mark.parametrize("count", [0, 2, 3, 5, 8, 11])
def test_a_full_disk_is_one_message_and_with_room_the_same_command_goes_on(
    config, folder, no_figures, said, monkeypatch, count
):
    with monkeypatch.context() as patch, pytest.raises(RunError) as raised:
        full_after(patch, count)
        train(folder, config)
        raise RunError("no room was needed")
    if str(raised.value) != "no room was needed":
        line = str(raised.value)
        how = (
            "interrupted: [Errno 28] "
            if "interrupted" in line
            else "cannot be written to, or is gone ("
        )
        assert line.startswith(f"{folder.path} {how}No space left on device")
        assert "\n" not in line and not list(folder.path.rglob("*.tmp"))
        if "interrupted" in how:
            assert "; to continue: " in line
            status = f"{folder.path} is interrupted, which could not be written"
            assert any(text.startswith(status) for text in said)
    assert folder.ended() in ("new", "interrupted", "completed")
    assert not (folder.path / "lock").exists()
    assert train(folder, config)["status"] == "completed"
    assert len(folder.rows()) == 2 and folder.newest()["counters"]["step"] == 6


def test_numbers_that_cannot_be_gathered_leave_a_status(config, folder, no_figures, said):
    def change(trainer):
        trainer.result = lambda: 1 / 0

    with pytest.raises(RunError, match=r" failed: its numbers could not be gathered$"):
        train(folder, config, change)
    assert folder.summary()["status"] == "failed" and folder.ended() == "failed"
    assert "the run's numbers could not be gathered: ZeroDivisionError: division by zero" in said
