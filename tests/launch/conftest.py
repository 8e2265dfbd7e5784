"""Sweeps in this process: what Hydra hands to them, and points made by hand."""

import copy
import logging

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from sdnet.config import compose
from sdnet.launch.sweep_plan import Point
from sdnet.runs.folder import COLUMNS, RunFolder
from tests.config.composed import composed
from tests.conftest import ROOT
from tests.small import data, small  # noqa: F401

SMALL = ["model.depth=8", "dataset.size=8", "trainer.threads=1", "trainer.device=cpu"]
SMALL += ["wandb.mode=disabled"]


@pytest.fixture
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

    def swept(*overrides, params=None, launcher=None):
        loader = GlobalHydra.instance().config_loader()
        cfg = loader.load_configuration("config", list(overrides), run_mode=RunMode.MULTIRUN)
        with open_dict(cfg):
            if params is not None:
                cfg.hydra.sweeper.params = params
            if launcher is not None:
                cfg.hydra.launcher = OmegaConf.create(launcher)
        HydraConfig.instance().set_config(cfg)
        return cfg

    compose.register_resolvers()
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
            folder.append_row(dict.fromkeys(COLUMNS, 1.0) | {"epoch": epoch * 1.5})
        return Point([f"name={name}"], f"run of {name}", f"name={name}", config, folder, state)

    return make


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
