"""A process in which W&B is asked for, and nothing of it begins."""

import logging
import os
from pathlib import Path

import pytest
import wandb
from wandb.sdk import wandb_setup


@pytest.fixture
def environment(monkeypatch, tmp_path, caplog):
    """No variable of W&B's or of a proxy's, no key, and nothing of a run that is under way."""
    for name in list(os.environ):
        if name.startswith("WANDB") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb, "teardown", lambda: pytest.fail("teardown"))
    monkeypatch.setattr(
        wandb_setup._WandbSetup, "ensure_service", lambda self: pytest.fail("began")
    )
    monkeypatch.setattr(wandb_setup, "_singleton", None)
    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)
    caplog.set_level(logging.WARNING)


@pytest.fixture
def begun(environment, monkeypatch):
    """The arguments of each `wandb.init`, which gives what is put into the list's `answers`."""

    class Begun(list):
        answers = ()

    begun = Begun()
    Path("run").mkdir()

    def init(**arguments):
        begun.append(arguments)
        answer = begun.answers[len(begun) - 1] if begun.answers else "a run"
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(wandb, "init", init)
    return begun
