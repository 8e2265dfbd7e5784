import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

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
            "lr_schedule, model, name, optimizer, resume, retry_failed, schedule, seed, seeds, "
            "show, telemetry, trainer, wandb, experiment",
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
            "schedule must be one of constant, drop_path, linear_decay, linear_timm, uniform, got "
            "linear; did you mean linear_timm?",
        ),
        ("schedule.p_L=${nope:1}", "schedule.p_L: Unsupported interpolation type nope"),
        ("seed=${a.b}", "a.b must be given, in its group's file or as a.b=... (${a.b} in seed)"),
        ("schedule.p_L=[", "schedule.p_L=[ cannot be read: no viable alternative at input '['"),
        ("name=a<b", "name=a<b cannot be read: token recognition error at: '<b'"),
        ("seed", "seed cannot be read: missing EQUAL at '<EOF>'"),
        (
            "seed=0,1",
            "seed=0,1 are several values: put -m first to run each of them, or write 'seed=[0,1]' "
            "for a list and 'seed=\"0,1\"' for a text",
        ),
    ],
)
def test_hydras_errors_are_told_in_the_users_terms(override, message):
    with pytest.raises((HydraException, OmegaConfBaseException)) as raised:
        composed(override)
    assert explain(raised.value) == message


def test_what_fails_in_a_target_is_told_in_one_line_with_its_place(tmp_path, monkeypatch):
    (tmp_path / "faulty_one.py").write_text("def made(**settings):\n    return undefined\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "faulty_one.made", "name": "x"}
    with pytest.raises(ConfigError) as raised:
        targets.instantiate({"schedule": node}, "schedule")
    file = tmp_path / "faulty_one.py"
    expected = f"schedule: NameError: name 'undefined' is not defined ({file}, line 2)"
    assert str(raised.value) == expected
    with pytest.raises(ConfigError, match=r"^schedule: ZeroDivisionError: division by zero$"):
        targets.instantiate({"schedule": {"_target_": "operator.truediv"}}, "schedule", 1, 0)


def test_settings_that_a_target_does_not_take_or_lacks_are_named():
    def made(node, *args):
        with pytest.raises(ConfigError) as raised:
            targets.instantiate({"model": node}, "model", *args)
        return str(raised.value)

    node = {"_target_": "sdnet.models.resnet.resnet_cifar"}
    assert made(node) == "model.depth must be given, as model.depth=..."
    wrong = made(node | {"depth": 8, "shortcuts": "pad", "shortcut": "pad"})
    assert wrong.startswith("model.shortcuts is not a setting of sdnet.models.resnet.resnet_cifar")
    assert wrong.endswith("; did you mean shortcut?")
    assert made(node | {"depth": 8}, 20) == (
        "model.depth must be left out: sdnet.models.resnet.resnet_cifar sets it itself"
    )


def test_what_is_no_mistake_of_the_user_stays_what_it_is():
    with pytest.raises(OSError, match="disk"), errors_of({"trainer": {}}, "trainer"):
        raise OSError("disk")
    for text, expected in (("device=x", "trainer.device=x"), ("devices x", "trainer: devices x")):
        settings = {"trainer": {"device": "x"}}
        with pytest.raises(ConfigError) as raised, errors_of(settings, "trainer"):
            raise ValueError(text)
        assert str(raised.value) == expected
