"""How `python train.py` and `python -m sdnet` end: messages and exit status."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest

from sdnet import __main__ as commands
from sdnet import processes
from sdnet.analysis import report as reports
from sdnet.config import compose
from sdnet.config.errors import ConfigError
from sdnet.launch import command
from sdnet.launch.job import job
from sdnet.listeners import wandb as tracking
from tests.commands import Forked, without

FAULT = eval("lambda: 1 / 0", {"__name__": "sdnet.launch.job"})  # as if a job had made it


@pytest.fixture
def ended(monkeypatch):
    """The status with which the command ends whose main does as it is told."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(compose, "register_presets", lambda: None)
    # as after run_command, which sets them: so that they are put back
    for name in ("HYDRA_FULL_ERROR", "SDNET_TYPED"):
        monkeypatch.setenv(name, "")

    def ended(does, full=""):
        os.environ["HYDRA_FULL_ERROR"] = full

        def main():
            assert os.environ["HYDRA_FULL_ERROR"] == "1"
            if isinstance(does, BaseException):
                raise does
            return does and does()

        def decorate(*, version_base="1.3", config_path, config_name):
            assert (version_base, config_name) == ("1.3", "config")
            assert Path(config_path, "config.yaml").is_file()
            return lambda task: main if task is job else None

        monkeypatch.setattr(hydra, "main", decorate)
        with pytest.raises(SystemExit) as raised:
            command.run_command()
        return raised.value.code

    return ended


def test_a_command_ends_with_the_status_of_what_it_did(ended, capsys):
    assert ended(None) == 0
    assert ended(lambda: 4.5) == 0  # a run's validation error is no status
    assert ended(ConfigError("seed: 7")) == "error: seed: 7"
    assert ended(KeyboardInterrupt()) == ended(processes.Stopped()) == 130
    assert ended(processes.Stopped(signal.SIGTERM)) == 143
    assert capsys.readouterr().out == ""


def test_a_mistake_is_told_in_characters_that_no_terminal_obeys(ended, capsys):
    assert ended(ConfigError("seed\x1b[2J\rx")) == r"error: seed\x1b[2J\rx"


def test_a_fault_keeps_its_traceback_and_so_does_a_mistake_for_who_asks(ended, capsys):
    with pytest.raises(ZeroDivisionError):
        ended(FAULT)
    with pytest.raises(ConfigError, match="seed: 7"):
        ended(ConfigError("seed: 7"), full="1")
    assert capsys.readouterr().err == ""


def test_a_process_that_is_not_the_first_says_only_what_was_a_fault(ended, monkeypatch, capsys):
    monkeypatch.setattr(processes, "environment", lambda: (3, 4, 3))
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    original = SimpleNamespace(write=lambda text: told.append(text), flush=lambda: None)
    told = []
    monkeypatch.setattr(sys, "__stderr__", original)
    assert ended(lambda: print("of rank 0 alone")) == 0
    with pytest.raises(ZeroDivisionError):
        ended(FAULT)
    assert "".join(told) == "error on rank 3: division by zero\n"
    assert "rank 0 alone" not in capsys.readouterr().out


def test_train_has_the_rest_of_the_command_for_itself(monkeypatch):
    typed = []
    monkeypatch.setattr(command, "run_command", lambda: typed.append(sys.argv[1:]) or sys.exit(3))
    for given in (["train"], ["train", "-m", "seed=0,1", "--help"]):
        monkeypatch.setattr(sys, "argv", ["sdnet/__main__.py", *given])
        with pytest.raises(SystemExit) as raised:
            commands.main()
        assert raised.value.code == 3 and typed[-1] == given[1:]


def test_the_report_command_asks_for_what_was_typed(monkeypatch, capsys):
    asked, logged, answer = [], [], ["report"]

    def write_report(*arguments, style, columns):
        asked.append((*arguments, style, columns))
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    monkeypatch.setattr(reports, "write_report", write_report)
    monkeypatch.setattr(tracking, "log_report", lambda *arguments: logged.append(arguments))
    a, b = Path("a"), Path("b")
    assert commands.main(["report", "a", "b"]) == 0
    typed = ["report", "a", "--baseline", "x=1", "--paper", "--out", "b", "--wandb", "offline"]
    typed += ["--style", "paper", "--columns", "n,test error"]
    assert commands.main(typed) == 0
    assert asked == [
        ([a, b], None, None, False, "screen", None),
        ([a], b, "x=1", True, "paper", ["n", "test error"]),
    ]
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


@pytest.mark.parametrize(
    "typed, missing, extra, so",
    [
        ("train", "hydra", "train", ""),
        ("report", "pandas", "report", ""),
        ("wandb", "wandb_workspaces", "workspaces", "nothing is sent to W&B: "),
    ],
)
def test_what_is_not_installed_is_named(tmp_path, typed, missing, extra, so):
    process = Forked(tmp_path, {}, without, missing, "sdnet", typed, ".")
    _, err = process.communicate(timeout=60)
    expected = f"{so}{missing} is not installed: pip install '.[{extra}]' in sdnet's clone"
    assert (process.returncode, err) == (1, f"error: {expected}\n")


def test_a_sweep_without_what_reports_need_ends_well(tmp_path):
    typed = ["train", "-m", "model.depth=8", "dataset.size=8", "trainer.epochs=1"]
    process = Forked(tmp_path, {}, without, "pandas", "sdnet", *typed, "wandb.mode=disabled")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert "no report: pandas is not installed; sdnet's extra `report` has it" in out


@pytest.mark.parametrize(
    "typed, ordered",
    [
        ("a=1 -m b=2", "-m a=1 b=2"),
        ("a=1 --config-dir x b=2 --multirun ~c", "--config-dir x --multirun a=1 b=2 ~c"),
        ("a=1 -cd x=y b=2", "-cd x=y a=1 b=2"),
        ("--cfg job a=-1", "--cfg job a=-1"),
        ("", ""),
    ],
)
def test_options_may_stand_anywhere(typed, ordered):
    assert command._options_first(typed.split()) == ordered.split()
