"""How `python train.py` and `python -m sdnet report` end: messages and exit status."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdnet import __main__ as commands
from sdnet import command, sweep, tracking
from sdnet import config as configs
from sdnet.analysis import report as reports
from sdnet.config import ConfigError
from sdnet.training import distributed


@pytest.fixture
def ended(monkeypatch):
    """The status with which the command ends whose main does as it is told."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(configs, "register_presets", lambda: None)
    for name, value in (("started", False), ("left_to_sweeper", None), ("task", None)):
        monkeypatch.setattr(sweep.Callback, name, value)
    # as after run_command, which sets it: so that it is put back
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")

    def ended(does, full=""):
        os.environ["HYDRA_FULL_ERROR"] = full

        def main():
            assert os.environ["HYDRA_FULL_ERROR"] == "1" and sweep.Callback.task == "the task"
            if isinstance(does, BaseException):
                raise does
            return does and does()

        main.__wrapped__ = "the task"
        with pytest.raises(SystemExit) as raised:
            command.run_command(main)
        return raised.value.code

    return ended


def over(status, cause=None):
    error = sweep.Ended(status)
    error.__cause__ = cause
    return error


def test_a_command_ends_with_the_status_of_what_it_did(ended, capsys):
    assert ended(None) == 0
    assert ended(lambda: 4.5) == 0  # a run's validation error is no status
    assert [ended(over(status)) for status in (0, 1)] == [0, 1]
    assert ended(ConfigError("seed: 7")) == "error: seed: 7"
    assert ended(over(1, ConfigError("in run 2"))) == "error: in run 2"
    assert ended(KeyboardInterrupt()) == 130
    assert capsys.readouterr().out == ""
    sweep.Callback.started = True
    assert ended(KeyboardInterrupt()) == 130
    assert capsys.readouterr().out == "the sweep was stopped; the same command continues it\n"


def test_a_fault_keeps_its_traceback_and_so_does_a_mistake_for_who_asks(ended, capsys):
    for error in (ZeroDivisionError("x"), over(1, ZeroDivisionError("x"))):
        with pytest.raises(ZeroDivisionError, match="x"):
            ended(error)
    with pytest.raises(ConfigError, match="seed: 7"):
        ended(ConfigError("seed: 7"), full="1")
    assert capsys.readouterr().err == ""


def test_a_process_that_is_not_the_first_says_only_what_was_a_fault(ended, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "environment", lambda: (3, 4, 3))
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    original = SimpleNamespace(write=lambda text: told.append(text), flush=lambda: None)
    told = []
    monkeypatch.setattr(sys, "__stderr__", original)
    assert ended(lambda: print("of rank 0 alone")) == 0
    with pytest.raises(ZeroDivisionError):
        ended(ZeroDivisionError("x"))
    assert "".join(told) == "error on rank 3: x\n"
    assert "rank 0 alone" not in capsys.readouterr().out


def test_what_another_sweeper_has_done_is_concluded(ended, monkeypatch):
    concluded = []
    monkeypatch.setattr(sweep, "conclude_folder", lambda *args: concluded.append(args) or 1)
    assert ended(None) == 0 and concluded == []
    left = (Path("multirun/s"), "auto")

    def main():
        sweep.Callback.left_to_sweeper = left

    assert ended(main) == 1 and concluded == [left]
    sweep.Callback.left_to_sweeper = left
    assert ended(ValueError("no trial")) == "error: the sweeper gave up: no trial"
    assert ended(ConfigError("a mistake")) == "error: a mistake"
    assert concluded == [left] * 3
    assert ended(KeyboardInterrupt()) == 130 and len(concluded) == 3
    with pytest.raises(ValueError, match="no trial"):
        ended(ValueError("no trial"), full="1")
    monkeypatch.setattr(sweep, "conclude_folder", lambda *args: 0)
    assert [ended(None), ended(over(1))] == [0, 1]


def test_the_report_command_asks_for_what_was_typed(monkeypatch, capsys):
    asked, logged, answer = [], [], ["report"]

    def write_report(*arguments):
        asked.append(arguments)
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    monkeypatch.setattr(reports, "write_report", write_report)
    monkeypatch.setattr(tracking, "log_report", lambda *arguments: logged.append(arguments))
    a, b = Path("a"), Path("b")
    assert commands.main(["report", "a", "b"]) == 0
    typed = ["report", "a", "--baseline", "x=1", "--paper", "--out", "b", "--wandb", "offline"]
    assert commands.main(typed) == 0
    assert asked == [([a, b], None, None, False), ([a], b, "x=1", True)]
    assert logged == [("report", None), ("report", "offline")]
    answer[0] = None
    assert commands.main(["report", "a"]) == 1
    answer[0] = ValueError("no such baseline")
    assert commands.main(["report", "a"]) == 1
    assert capsys.readouterr().err == "error: no such baseline\n" and len(logged) == 2

    assert commands.main([]) == 0 and "usage: python -m sdnet" in capsys.readouterr().out
    for wrong in (["report"], ["report", "a", "--wandb", "on"], ["other"]):
        with pytest.raises(SystemExit) as raised:
            commands.main(wrong)
        assert raised.value.code == 2
