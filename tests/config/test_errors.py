import pytest
from hydra.errors import HydraException, InstantiationException

from sdnet.config import targets
from sdnet.config.errors import ConfigError, errors_of, explain
from tests.config.composed import composed


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "schedule.pL=0.5",
            "schedule.pL is not a setting; did you mean p_L? "
            "Known in schedule: _target_, name, p_0, p_L, rule",
        ),
        (
            "experimen=x",
            "experimen is not a setting; did you mean experiment? Known at the top: dataset, "
            "lr_schedule, model, name, optimizer, resume, retry_failed, schedule, seed, show, "
            "trainer, wandb, experiment",
        ),
        (
            "model.block.zzz=1",
            "model.block.zzz is not a setting. Known in model.block: _partial_, _target_",
        ),
        ("dataset=image_folder", "dataset.root must be given, as dataset.root=..."),
        (
            "hydra/launcher=none_plugin",
            "hydra/launcher=none needs a plugin that is not installed: "
            "pip install -r requirements-extras.txt",
        ),
        (
            "schedule=linear",
            "In 'config': Could not find 'schedule/linear'\n\nAvailable options in 'schedule':\n"
            "\tconstant\n\tlinear_decay\n\tlinear_timm\n\tuniform",
        ),
    ],
)
def test_hydras_errors_are_told_in_the_users_terms(override, message):
    with pytest.raises(HydraException) as raised:
        composed(override)
    assert explain(raised.value) == message


def test_what_is_no_mistake_of_the_user_stays_what_it_is():
    with pytest.raises((InstantiationException, ZeroDivisionError)):  # Hydra 1.3, 1.4
        targets.instantiate({"schedule": {"_target_": "operator.truediv"}}, "schedule", 1, 0)
    with pytest.raises(OSError, match="disk"), errors_of({"trainer": {}}, "trainer"):
        raise OSError("disk")
    for text, expected in (("device=x", "trainer.device=x"), ("devices x", "trainer: devices x")):
        settings = {"trainer": {"device": "x"}}
        with pytest.raises(ConfigError) as raised, errors_of(settings, "trainer"):
            raise ValueError(text)
        assert str(raised.value) == expected
