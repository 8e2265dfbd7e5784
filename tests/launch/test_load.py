"""What `sdnet.load_run` gives: the network of a run as it was measured."""

import sys
import warnings

import pytest
import yaml

import sdnet
from sdnet.config.errors import ConfigError
from sdnet.models.gates import GRANULARITIES, RESCALES, gated_modules
from sdnet.runs.identity import determines_result
from sdnet.training.evaluation import evaluate

OWN = f"{__name__}.Falling"


class Falling:
    """A schedule that changes with the training."""

    def __call__(self, stage_blocks, progress=1.0):
        return [1.0 - 0.6 * progress] * sum(stage_blocks)


def measured(trainer, folder, checkpoint):
    """Whether a loaded network has the numbers of a row, and says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = sdnet.load_run(folder, checkpoint)
    assert not model.training
    found = evaluate(model, trainer.loaders["test"])
    best, last = trainer.result()["best_epoch"], trainer.epochs
    row = trainer.run.rows()[int({"best": best, "last": last}[checkpoint]) - 1]
    assert found[:2] == pytest.approx((row["test_loss"], row["test_error"]), rel=1e-6)
    return model


@pytest.mark.parametrize("granularity, rescale", [*zip(GRANULARITIES, RESCALES, strict=True)])
def test_a_loaded_run_has_the_numbers_that_were_measured(small, granularity, rescale):
    choices = [f"model.granularity={granularity}", f"model.rescale={rescale}"]
    trainer = small(*choices, "schedule.p_L=0.4", "trainer.epochs=3")
    with pytest.raises(ValueError, match=r"run has no checkpoint best\.pt yet"):
        sdnet.load_run(trainer.run.path)
    trainer.fit()
    for checkpoint in ("best", "last"):
        model = measured(trainer, trainer.run.path, checkpoint)
        assert (model.fc.out_features, model.conv1.in_channels) == (11, 1)
        for block in gated_modules(model):
            assert (block.survival, block.granularity, block.rescale) == (0.4, granularity, rescale)


def test_a_run_of_an_earlier_version_lacks_settings_that_change_no_result_and_is_loaded(small):
    trainer = small("trainer.epochs=1")
    trainer.fit()
    file = trainer.run.path / "config.yaml"
    config = trainer.run.config()
    later = [name for name in config["trainer"] if not determines_result(f"trainer.{name}")]
    for name in later:
        del config["trainer"][name]
    assert {"eval_batch_size", "checkpoint_every"} <= set(later)
    file.write_text(yaml.safe_dump(config))
    measured(trainer, trainer.run.path, "last")


def test_survival_is_that_of_the_checkpoint_and_going_on_is_no_mismatch(small, monkeypatch):
    monkeypatch.setenv("SDNET_ALLOW_TARGETS", OWN)
    given = [f"schedule._target_={OWN}", "~schedule.p_L"]
    trainer = small(*given, "trainer.epochs=4")
    trainer.fit()
    best = measured(trainer, trainer.run.path, "best").layer1[0].survival
    last = measured(trainer, trainer.run.path, "last").layer1[0].survival
    step = trainer.run.load_checkpoint("best")["step"]
    assert best == 1 - 0.6 * (step - 1) / 12 and last == 1 - 0.6 * 11 / 12
    again = small(*given, "trainer.epochs=4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.resume()
    monkeypatch.setenv("SDNET_ALLOW_TARGETS", "")
    with pytest.raises(ConfigError, match="is not allowed here"):
        sdnet.load_run(trainer.run.path)


def test_what_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=rf"^{tmp_path} is not a run folder: it has no config"):
        sdnet.load_run(tmp_path)
    with pytest.raises(ValueError, match="checkpoint must be best or last, got 'first'"):
        sdnet.load_run(tmp_path, "first")
    monkeypatch.setitem(sys.modules, "sdnet.config.values", None)  # as where Hydra is not there
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[train\]' in sdnet's clone"):
        sdnet.load_run(tmp_path)
