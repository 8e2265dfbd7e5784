import os
import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from sdnet import build, run
from sdnet import config as configs

CONF = __import__("pathlib").Path(__file__).parents[1] / "conf"


def composed(*overrides):
    configs.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return configs.resolve(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.os.system",
        "torch.load",
        "torch.hub.load",
        "torch.utils.collect_env.run",
        "torch.utils.cpp_extension.load_inline",
        "torch.nn.functional.relu",
        "sdnet.models.resnet.torch.hub.load",
        "sdnet.data.sources.os.system",
        "sdnet.config.instantiate",
        "sdnet.run.RunFolder.create",
        "sdnet.training.session._git",
        "sdnet.data.sources._save_cache",
        "sdnet.data.sources.Split",
        "sdnet.models.resnet._class_of",
        "sdnet.models.blocks.ACTIVATIONS",
        "sdnet.models.nothing",
        "torchvision.datasets.FakeData",
        "torch.optim.SGD",
        "sdnet",
        "",
        7,
        None,
    ],
)
def test_a_target_is_judged_by_what_it_resolves_to(target):
    with pytest.raises(
        configs.ConfigError, match=r"model\.block\._target_=.* (not allowed|not exist)"
    ):
        configs.check_target("model.block._target_", target)


@pytest.mark.parametrize(
    "group, target",
    [
        ("model", "sdnet.resnet_cifar"),
        ("model", "sdnet.models.resnet.BasicBlock"),
        ("model", "torch.nn.GroupNorm"),
        ("dataset", "sdnet.data.sources.digits"),
        ("schedule", "sdnet.LinearDecay"),
        ("optimizer", "torch.optim.RMSprop"),
        ("lr_schedule", "sdnet.training.optim.Cosine"),
    ],
)
def test_building_blocks_are_allowed_in_their_group_under_any_of_their_names(group, target):
    configs.check_target(f"{group}._target_", target)
    others = set(configs.TARGETS) - {group}
    with pytest.raises(configs.ConfigError):
        for other in others - {"model"} if group == "schedule" else others:
            configs.check_target(f"{other}._target_", target)


def test_text_that_hydra_would_resolve_once_more_is_refused():
    hidden = r"'\${oc.create:{_target_: torch.utils.collect_env.run, command: ls}}'"
    with pytest.raises(configs.ConfigError, match=r"schedule\.p_L must not hold an interpolation"):
        composed(f"schedule.p_L={hidden}")


def test_a_listed_target_is_allowed_and_a_forged_home_is_not(monkeypatch):
    monkeypatch.setenv(configs.ALLOW_VARIABLE, "mine.Block, fractions.Fraction")
    configs.check_target("x._target_", "fractions.Fraction")
    with pytest.raises(configs.ConfigError):
        configs.check_target("x._target_", "fractions.gcd")

    def impostor():
        pass

    impostor.__module__, impostor.__qualname__ = "sdnet.models.blocks", "conv"
    assert not configs._is_building_block(impostor, *configs.TARGETS["model"])


def test_targets_are_found_at_any_depth():
    config = composed()
    config["model"]["extra"] = [{"inner": {"_target_": "os.system"}}]
    with pytest.raises(configs.ConfigError, match=r"model\.extra\.0\.inner\._target_=os\.system"):
        configs.check(config)


@pytest.mark.parametrize("group", ["model", "dataset", "schedule", "optimizer", "lr_schedule"])
def test_every_group_member_composes_and_is_checked(group):
    for file in sorted((CONF / group).glob("*.yaml")):
        overrides = [f"{group}={file.stem}", "++dataset.root=somewhere"]
        config = composed(*overrides)
        assert config[group]["_target_"].split(".")[0] in ("sdnet", "torch")


@pytest.mark.parametrize("model", ["resnet_cifar", "resnet_imagenet", "tiny_resnet"])
@pytest.mark.parametrize("schedule", ["linear_decay", "uniform", "constant", "linear_timm"])
def test_every_model_is_built_with_every_schedule(model, schedule):
    config = composed(f"model={model}", f"schedule={schedule}")
    with torch.device("meta"):
        network = configs.instantiate(
            config,
            "model",
            schedule=configs.instantiate(config, "schedule"),
            num_classes=7,
            in_channels=1,
        )
    assert network.fc.out_features == 7 and network.conv1.in_channels == 1
    survival = [block.survival for block in network.blocks]
    assert (min(survival) < 1) == (schedule != "constant")


def test_the_demo_preset_is_the_default_run():
    assert run.identity(composed("experiment=digits_demo")) == run.identity(composed())


@pytest.mark.parametrize(
    "overrides, message",
    [
        ("schedule.p_L=abc", "schedule.p_L must be a number with 0 < p_L <= 1"),
        ("schedule.p_L=1.5", "got 1.5"),
        ("trainer.batch_size=many", "trainer.batch_size must be a whole number, 2 or more"),
        ("trainer.checkpoint_blocks=0", "trainer.checkpoint_blocks must be a whole number, 1 or"),
        ("trainer.sync_batchnorm=true", "trainer.sync_batchnorm must be false without CUDA"),
        ("dataset=image_folder", "dataset.root must be given"),
        ("dataset=image_stream dataset.root=. dataset.scale=[2,3]", "dataset.scale must be two"),
        ("dataset=cifar10 dataset.download=false", "dataset.root 'data' does not hold CIFAR10"),
        ("wandb.mode=online", "wandb.mode online needs credentials"),
    ],
)
def test_mistakes_are_found_while_a_run_is_built(monkeypatch, tmp_path, overrides, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    with pytest.raises(configs.ConfigError, match=re.escape(message)):
        config = composed("trainer.device=cpu", *overrides.split())
        build.build_device(config)
        data = build.build_data(config)
        build.build_model(config, len(data.classes), data.image_shape[0])
        build.build_wandb_mode(config)
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "data"])


def test_a_resumed_run_keeps_its_configuration_but_for_where_it_is_computed(tmp_path):
    stored = composed()
    folder = run.RunFolder(tmp_path / "r")
    folder.create(stored, {})

    def resumed(*overrides):
        typed = [f"resume={folder.path}", *overrides]
        return configs.resumed(composed(*typed), typed)

    assert run.identity(resumed()) == run.identity(stored)
    assert resumed("trainer.threads=1")["trainer"]["threads"] == 1
    assert resumed("schedule.p_L=0.50", "seed=0")["schedule"]["p_L"] == 0.5  # what it is anyway
    for override in ("optimizer.lr=0.2", "seed=1", "schedule=constant", "experiment=tiny_resnet"):
        with pytest.raises(configs.ConfigError, match=f"{override} would change the result"):
            resumed(override)


def test_the_run_folder_follows_from_the_configuration():
    configs.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        name = run.run_name(configs.resolve(cfg))
        assert OmegaConf.select(cfg, "hydra.run.dir").startswith(f"outputs/{name}/")
        assert OmegaConf.select(cfg, "hydra.sweep.subdir") == name
        cfg.show = True
        assert OmegaConf.select(cfg, "hydra.run.dir") == "."
