"""What a run folder says of where the run comes from, and the command that repeats it."""

import copy
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import open_dict, read_write

from sdnet import processes
from sdnet.config.errors import ConfigError
from sdnet.launch import provenance
from sdnet.runs.folder import RunFolder
from tests.conftest import ROOT

OVERRIDES = ["trainer.epochs=2", "name=a b"]
PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb")


@pytest.fixture
def typed(monkeypatch):
    """What Hydra knows of a command; `sys.argv` and the environment are as after it was typed."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=OVERRIDES, return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", copy.deepcopy(cfg))
    monkeypatch.delenv(provenance.TYPED, raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", *OVERRIDES])
    hydra = HydraConfig.instance().cfg.hydra
    with read_write(hydra), open_dict(hydra):
        yield hydra
    os.environ.pop(provenance.TYPED, None)


def git(folder, *arguments):
    name = ("-c", "user.name=x", "-c", "user.email=x@y")
    command = ["git", "-C", str(folder), *name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def test_the_provenance_says_how_to_repeat_a_run(typed, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create({"seed": 7}, provenance.origin({"seed": 7}))
    provenance.note_device(run, torch.device("cpu"), {})
    known = run.provenance()
    age = datetime.now(UTC) - datetime.fromisoformat(known.pop("started"))
    assert timedelta(seconds=-1) <= age < timedelta(minutes=5)
    versions = {"python": platform.python_version(), "sdnet": provenance._version("sdnet")}
    assert isinstance(known.pop("git_dirty"), bool)
    assert isinstance(known.pop("device_name"), str)
    assert known.pop("git_commit") == git(ROOT, "rev-parse", "HEAD")
    assert known == {
        "command": "python train.py trainer.epochs=2 'name=a b'",
        "program": ["train.py"],
        "options": [],
        "overrides": OVERRIDES,
        "pythonpath": None,
        "folder": os.getcwd(),
        "versions": versions | {name: importlib.metadata.version(name) for name in PACKAGES},
        "host": platform.node(),
        "seed": 7,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "processes": 1,
    }


def test_a_point_of_a_sweep_is_repeated_by_its_own_overrides(typed, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1"])
    typed.mode = RunMode.MULTIRUN
    origin = provenance.origin({"seed": 5})
    assert origin["command"] == f"python train.py {shlex.join(OVERRIDES)}"
    assert origin["overrides"] == OVERRIDES and origin["seed"] == 5


@pytest.mark.parametrize("start", ["path/train.py", "-m sdnet train"])
def test_a_run_elsewhere_is_repeated_with_the_program_the_settings_and_the_path_of_its_command(
    typed, monkeypatch, tmp_path, start
):
    monkeypatch.chdir(tmp_path)
    main = str(tmp_path / "site-packages" / "sdnet" / "__main__.py")
    monkeypatch.setattr(sys, "argv", [main if start.startswith("-m") else start, "-m", "seed=0,1"])
    monkeypatch.setenv("PYTHONPATH", "src:.")
    provenance.remember_command()
    # as in a process that a launcher started
    monkeypatch.setattr(sys, "argv", ["a_launcher"])
    monkeypatch.setenv("PYTHONPATH", "something else")
    typed.mode, typed.job.config_name = RunMode.MULTIRUN, "mine"
    typed.runtime.config_sources = [
        ConfigSourceInfo(path="/somewhere", schema="file", provider="main"),
        ConfigSourceInfo(path=str(tmp_path / "conf"), schema="file", provider="command-line"),
    ]
    origin = provenance.origin({"seed": 0})
    options = ["--config-dir=conf", "--config-name=mine"]
    assert origin["program"] == start.split() and origin["pythonpath"] == "src:."
    assert origin["options"] == options and origin["folder"] == str(tmp_path)
    assert origin["command"] == f"python {start} {' '.join(options)} {shlex.join(OVERRIDES)}"
    assert provenance.command("resume=x") == f"python {start} resume=x"


@pytest.mark.parametrize(
    "size, here, start",
    [
        (1, None, "python"),
        (4, None, "torchrun --nproc-per-node=4"),
        (4, "4", "torchrun --nproc-per-node=4"),
        (8, "4", "torchrun --nnodes=2 --nproc-per-node=4"),
    ],
)
def test_the_command_starts_as_many_processes_as_there_are(monkeypatch, size, here, start):
    monkeypatch.delenv(provenance.TYPED, raising=False)
    monkeypatch.setattr(processes, "environment", lambda: (0, size, 0))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert provenance.command("a=b", "c=[1, 2]") == f"{start} train.py a=b 'c=[1, 2]'"


def test_the_commit_is_that_of_sdnet_and_of_the_project_that_uses_it(monkeypatch, tmp_path):
    """sdnet in an environment inside somebody's checkout is no part of that."""
    mine, installed = tmp_path / "mine", tmp_path / "mine" / ".venv" / "sdnet" / "launch"
    installed.mkdir(parents=True)
    (installed / "provenance.py").touch()
    monkeypatch.chdir(mine)
    monkeypatch.setattr(provenance, "__file__", str(installed / "provenance.py"))
    assert provenance._commits() == {"git_commit": None, "git_dirty": False}
    (mine / "net.py").write_text("1")
    (mine / ".gitignore").write_text(".venv\noutputs\n")
    for arguments in (("init",), ("add", "net.py", ".gitignore"), ("commit", "-m", "x")):
        assert git(mine, *arguments) is not None
    project = {"git_commit": git(mine, "rev-parse", "HEAD"), "git_dirty": False}
    assert len(project["git_commit"]) == 40
    assert provenance._commits() == {"git_commit": None, "git_dirty": False, "project": project}
    (mine / "net.py").write_text("2")
    assert provenance._commits()["project"] == project | {"git_dirty": True}
    # sdnet in a checkout of its own, used from there and from the project
    assert git(mine, "add", "-f", str(installed / "provenance.py")) is not None
    assert git(mine, "commit", "-a", "-m", "y") is not None
    own = {"git_commit": git(mine, "rev-parse", "HEAD"), "git_dirty": False}
    assert provenance._commits() == own
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    assert provenance._commits() == own
    assert git(other, "init") is not None
    assert provenance._commits() == own | {"project": {"git_commit": None, "git_dirty": False}}


@pytest.mark.parametrize(
    "status, dirty",
    [
        (None, False),
        ("", False),
        (" M sdnet/run.py", True),
        (" M README.md", True),
        ("?? outputs/", False),
        ("?? notes.txt\n?? sdnet/mine.py", True),
        ("?? conf/dataset/mine.yaml", True),
    ],
)
def test_a_checkout_is_dirty_by_code_and_settings_not_by_run_folders(monkeypatch, status, dirty):
    monkeypatch.setattr(provenance, "_git", lambda *arguments: status)
    assert provenance._is_dirty(Path(".")) is dirty


def test_git_is_asked_and_told_nothing_else(tmp_path):
    assert git(tmp_path, "init") is not None
    mark = tmp_path / "ran"
    assert git(tmp_path, "config", "core.fsmonitor", f"touch {mark}; false") is not None
    assert provenance._git(tmp_path, "status", "--porcelain") == "" and not mark.exists()
    for arguments in (("-c", "alias.x=!true", "x"), ("clone", "x"), ("config", "a.b", "c")):
        with pytest.raises(ValueError, match="is not asked for"):
            provenance._git(tmp_path, *arguments)


def test_what_git_does_not_know_is_none(monkeypatch):
    assert provenance._git(ROOT, "rev-parse", "--verify", "nothing-of-that-name") is None
    monkeypatch.setenv("PATH", "")
    assert provenance._git(ROOT, "status") is None


def test_what_was_typed_is_passed_on_as_text(typed, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["../it's/train.py", "seed=1"])
    provenance.remember_command()
    assert json.loads(os.environ[provenance.TYPED]) == {
        "program": ["../it's/train.py"],
        "PYTHONPATH": None,
    }
    assert shlex.split(provenance.command("a=b"))[1:] == ["../it's/train.py", "a=b"]


def test_a_change_of_ones_own_code_is_said_of_a_run_that_is_there(
    typed, tmp_path, monkeypatch, caplog
):
    package = tmp_path / "own_parts"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "used.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("own_parts")
    caplog.set_level(logging.WARNING, logger="sdnet")
    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)

    config = {"seed": 7, "model": {"_target_": "sdnet.X", "block": {"_target_": "own_parts.Y"}}}
    run = RunFolder(tmp_path / "run")
    run.create(config, provenance.origin(config))
    provenance.warn_of_changed_code(run, config)
    assert not caplog.messages and list(run.provenance()["own_code"]) == ["own_parts"]
    (package / "used.py").write_text("X = 2\n")
    provenance.warn_of_changed_code(run, config)
    assert len(caplog.messages) == 1 and str(run.path) in caplog.text
    assert str(package / "__init__.py") in caplog.text
    run.write_provenance(run.provenance() | {"resumed": [provenance.origin(config)]})
    provenance.warn_of_changed_code(run, config)  # it has been said when it was resumed
    assert len(caplog.messages) == 1


def test_the_line_to_continue_a_run_holds_what_the_environment_gave(typed, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "my src")
    monkeypatch.setenv("SDNET_ALLOW_TARGETS", "mine.A,mine.B")
    provenance.remember_command()
    line = provenance.to_continue(RunFolder("outputs/x (1)"))
    words = shlex.split(line)
    assert words[:2] == ["PYTHONPATH=my src", "SDNET_ALLOW_TARGETS=mine.A,mine.B"]
    assert words[-1] == "resume='outputs/x (1)'"
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.delenv("SDNET_ALLOW_TARGETS")
    provenance.remember_command()
    assert provenance.to_continue(RunFolder("outputs/x")).endswith("train.py resume=outputs/x")
    assert "=" not in provenance.to_continue(RunFolder("outputs/x")).split()[0]


def test_a_run_is_not_taken_for_one_on_other_data(tmp_path):
    config = {"seed": 7, "dataset": {"root": "images"}}
    run = RunFolder(tmp_path / "run")
    provenance.check_data(run, config, lambda config: 1 / 0)  # no run yet
    run.create(config, {})
    provenance.check_data(run, config, lambda config: 1 / 0)  # its data are always the same
    provenance.note_device(run, torch.device("cpu"), {"data": "ab"})
    provenance.note_device(run, torch.device("cpu"), {})
    provenance.check_data(run, config, lambda given: "ab" if given is config else None)

    def gone(config):
        raise ConfigError("dataset.root is not a folder")

    provenance.check_data(run, config, gone)
    for other in ("ba", None):
        with pytest.raises(ValueError) as raised:
            provenance.check_data(run, config, lambda config, other=other: other)
        start = f"{run.path} was computed on other images than dataset.root=images holds now: "
        assert str(raised.value).startswith(start)
