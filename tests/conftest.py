import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def train_in():
    """Runs `python train.py ...` as a user would, in a folder; returns the process."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA"))}
    environment |= {"NETRC": os.devnull, "OMP_NUM_THREADS": "1"}

    def run(folder, *overrides, background=False, start=(sys.executable,), **variables):
        command = [*start, str(ROOT / "train.py"), *overrides]
        options = {
            "cwd": folder,
            "env": environment | variables,
            "text": True,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        if background:
            return subprocess.Popen(command, **options)
        return subprocess.run(command, timeout=300, **options)

    return run


@pytest.fixture
def train(train_in, tmp_path):
    """`train_in` the test's own, empty folder."""
    return partial(train_in, tmp_path)


def pytest_make_parametrize_id(config, val, argname):
    """Names a function by its name, not its address: every process has to collect the same."""
    return getattr(val, "__name__", argname) if callable(val) else None
