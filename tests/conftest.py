import itertools
import subprocess
from functools import partial

import pytest
import torch

from tests import commands
from tests.commands import ROOT, Forked, environment

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def train_in():
    """Runs `python train.py ...` as a user would, in a folder; returns the process.

    Args:
        background: return at once; else when it has ended.
        start: what starts a new interpreter, e.g. torchrun's words; None forks one that is ready.
        variables: more for its environment.
    """

    def run(folder, *overrides, background=False, start=None, **variables):
        if start is None:
            process = Forked(folder, variables, commands.train, *overrides)
        else:
            process = subprocess.Popen(
                [*start, str(ROOT / "train.py"), *overrides],
                cwd=folder,
                env=environment(**variables),
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        if background:
            return process
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture
def train(train_in, tmp_path):
    """`train_in` the test's own, empty folder."""
    return partial(train_in, tmp_path)


@pytest.fixture(scope="session")
def every_member():
    """Configurations in which every member of every group is composed at least once."""
    from tests.config.composed import CONF, composed

    groups = ("model", "dataset", "schedule", "optimizer", "lr_schedule", "trainer", "wandb")
    members = [[f"{g}={f.stem}" for f in sorted((CONF / g).glob("*.yaml"))] for g in groups]
    longest = max(map(len, members))
    turns = zip(*(itertools.islice(itertools.cycle(m), longest) for m in members), strict=True)
    given = {"model=timm": "model.arch=any", "model=torchvision": "model.arch=any"}
    return [composed(*t, *map(given.get, given.keys() & t), "++dataset.root=x") for t in turns]


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failed one")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and item.config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"skipped: {report.longrepr[2]}"
    return report


def pytest_make_parametrize_id(config, val, argname):
    """Names a function by its name, not its address: every process has to collect the same."""
    return getattr(val, "__name__", argname) if callable(val) else None
