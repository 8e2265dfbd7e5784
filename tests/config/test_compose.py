import copy
import itertools
import os
import re

import pytest
import torch
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from sdnet import processes
from sdnet.config import compose, targets
from sdnet.config.errors import ConfigError
from sdnet.launch import build
from sdnet.runs.folder import RunFolder
from sdnet.runs.identity import identity, run_name
from tests.config.composed import CONF, NOT_RESULT, composed


@pytest.mark.parametrize("model", ["resnet_cifar", "resnet_imagenet", "tiny_resnet"])
@pytest.mark.parametrize("schedule", ["linear_decay", "uniform", "constant", "linear_timm"])
def test_every_model_is_built_with_every_schedule(model, schedule):
    config = composed(f"model={model}", f"schedule={schedule}")
    with torch.device("meta"):
        network = targets.instantiate(
            config,
            "model",
            schedule=targets.instantiate(config, "schedule"),
            num_classes=7,
            in_channels=1,
        )
    assert network.fc.out_features == 7 and network.conv1.in_channels == 1
    survival = [block.survival for block in network.blocks]
    assert (min(survival) < 1) == (schedule != "constant")


@pytest.mark.parametrize("model", ["timm", "torchvision"])
def test_a_drop_path_rate_and_p_L_are_one_setting_unless_a_schedule_is_named(model):
    def schedule(*overrides):
        found = composed(f"model={model}", "model.arch=any", *overrides)["schedule"]
        return found["name"], found["p_L"], found["rule"]

    assert schedule() == ("drop_path", 0.9, "timm")
    assert schedule("model.drop_path_rate=0.3") == ("drop_path", 0.7, "timm")
    assert schedule("model.drop_path_rate=0") == ("drop_path", 1.0, "timm")
    assert schedule("schedule.p_L=0.5") == ("drop_path", 0.5, "timm")
    assert schedule("schedule=linear_decay") == ("linear_decay", 0.5, "paper")
    assert schedule("experiment=tiny_resnet")[:2] == ("linear_timm", 0.8)
    rates = ("model.drop_path_rate=0.3", "schedule.p_L=0.7")
    one, other = (composed(f"model={model}", "model.arch=any", given) for given in rates)
    assert run_name(one) == run_name(other) and "any-drop_path-pL0.7-s0-" in run_name(one)
    with pytest.raises(ConfigError, match=r"^model.drop_path_rate must be .*, got 1.5$"):
        schedule("model.drop_path_rate=1.5")


def test_weights_are_known_by_their_content(tmp_path):
    def config(file, content=b"a"):
        (tmp_path / file).write_bytes(content)
        given = f"model.pretrained_file={tmp_path / file}"
        return composed("model=timm", "model.arch=any", given)

    first = config("w.pt")
    assert identity(first) == identity(config("copy.pt"))
    assert identity(first) != identity(composed("model=timm", "model.arch=any"))
    assert identity(first) != identity(config("copy.pt", b"bb"))  # the same name, another file
    folder = RunFolder(tmp_path / "r")
    folder.create(first, {})
    given = config("copy.pt") | {"resume": str(folder.path)}
    resumed = compose.resumed(given, [f"model.pretrained_file={tmp_path / 'copy.pt'}"])
    assert resumed["model"]["pretrained_file"] == str(tmp_path / "copy.pt")
    assert resumed["model"]["pretrained_digest"] == first["model"]["pretrained_digest"]


def test_the_demo_preset_is_the_default_run():
    assert identity(composed("experiment=digits_demo")) == identity(composed())


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
    with pytest.raises(ConfigError, match=re.escape(message)):
        config = composed("trainer.device=cpu", *overrides.split())
        build.build_device(config)
        data = build.build_data(config)
        build.build_model(config, len(data.classes), data.image_shape[0])
        build.build_wandb_mode(config)
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "data"])


def test_a_resumed_run_keeps_its_configuration_but_for_where_it_is_computed(tmp_path):
    stored = composed()
    folder = RunFolder(tmp_path / "r")
    folder.create(stored, {})

    def resumed(*overrides):
        typed = [f"resume={folder.path}", *overrides]
        return compose.resumed(composed(*typed), typed)

    assert resumed() == stored | {"resume": str(folder.path)}
    assert resumed("trainer.threads=1")["trainer"] == stored["trainer"] | {"threads": 1}
    same = resumed("schedule.p_L=0.50", "seed=0", "hydra.job.name=x")  # what they are anyway
    assert same == stored | {"resume": str(folder.path)}
    for override in (
        *("optimizer.lr=0.2", "seed=1", "schedule=constant", "experiment=tiny_resnet"),
        *("+model.width=3", "++trainer.epochs=31", "~schedule.rule"),
    ):
        key, _, value = override.lstrip("+~").partition("=")
        with pytest.raises(ConfigError) as raised:
            resumed(override)
        assert str(raised.value) == (
            f"{key}={value} would change the result of the run in {folder.path}, "
            "which keeps its stored configuration; leave it out, or start a new run"
        )
    config = composed("schedule=uniform", f"resume={folder.path}")
    with pytest.raises(ConfigError, match=r"^schedule=uniform would change"):
        compose.resumed(config, ["schedule@schedule=uniform"])


def test_what_does_not_determine_the_result_is_taken_from_the_command_when_resumed(tmp_path):
    stored = composed("dataset=cifar10", "experiment=cifar10_resnet110")
    folder = RunFolder(tmp_path / "r")
    folder.create(stored, {})
    new = {
        "name": "b",
        "seeds": [1, 2],
        "show": True,
        "telemetry": "directions",
        "resume": str(folder.path),
        "retry_failed": True,
        "model.name": "other",
        "schedule.name": "other",
        "dataset.root": "elsewhere",
        "dataset.download": False,
        "trainer.device": "cuda",
        "trainer.threads": 3,
        "trainer.workers": 0,
        "trainer.eval_batch_size": 100,
        "trainer.log_every": 7,
        "trainer.checkpoint_every": 3,
        "trainer.checkpoint_unit": "step",
        "trainer.checkpoint_blocks": 2,
        "trainer.compile": "branches",
        "trainer.fused": True,
        "trainer.graphs": False,
        "wandb.mode": "online",
        "wandb.project": "other",
        "wandb.entity": "me",
        "wandb.group": "other",
        "wandb.name": "other",
        "wandb.tags": ["a"],
    }
    assert set(new) == NOT_RESULT
    config, expected = copy.deepcopy(stored), copy.deepcopy(stored)
    for key, value in new.items():
        for node in (config, expected):
            *groups, last = key.split(".")
            (node[groups[0]] if groups else node)[last] = value
    config["trainer"]["epochs"] = 7  # not among the overrides
    signs = itertools.cycle(("", "+", "++"))
    typed = [f"{sign}{key}=..." for sign, key in zip(signs, new, strict=False)]
    assert compose.resumed(config, typed) == expected
    config["wandb"] = new["wandb.group"] and expected["wandb"] | {"project": "third"}
    whole = compose.resumed(config, [f"resume={folder.path}", "wandb=default"])
    assert whole == stored | {"resume": str(folder.path), "wandb": config["wandb"]}


def test_what_cannot_be_resumed_says_why(tmp_path, every_member):
    config = copy.deepcopy(every_member[0]) | {"resume": str(tmp_path)}
    message = re.escape(f"resume={tmp_path} is not a run folder: it has no config.yaml")
    with pytest.raises(ConfigError, match=message):
        compose.resumed(config, [])
    earlier = copy.deepcopy(every_member[0])
    del earlier["trainer"]["fused"], earlier["trainer"]["accumulate"]
    folder = RunFolder(tmp_path)
    folder.create(earlier, {})
    message = "was begun by an earlier version of sdnet: its configuration has no trainer.accum"
    with pytest.raises(ConfigError, match=re.escape(f"resume={tmp_path} {message}")):
        compose.resumed(config, [])
    (folder.path / "config.yaml").unlink()
    earlier["trainer"]["accumulate"] = config["trainer"]["accumulate"]
    folder.create(earlier, {})  # how a run is computed, not what: that may come later
    assert compose.resumed(config, [])["trainer"]["fused"] == config["trainer"]["fused"]
    (folder.path / "config.yaml").unlink()
    without = copy.deepcopy(config) | {"resume": None}
    del without["trainer"]["fused"], without["telemetry"]  # what changes no result is as it is now
    folder.create(without, {})
    assert compose.resumed(config, []) == without | {
        name: config[name] for name in ("trainer", "telemetry")
    }
    (folder.path / "config.yaml").unlink()
    del without["trainer"]["budget"], without["seeds"]  # they came later
    folder.create(without, {})
    of_now = config | {"trainer": config["trainer"] | {"budget": 3}}
    assert compose.resumed(of_now, [])["trainer"]["budget"] is None
    assert compose.resumed(of_now, [])["seeds"] is None
    with pytest.raises(ConfigError, match=r"trainer\.budget=3 would change the result"):
        compose.resumed(of_now, ["trainer.budget=3"])
    (folder.path / "config.yaml").unlink()
    folder.create(every_member[0] | {"model": {"_target_": "os.system"}}, {})
    with pytest.raises(ConfigError, match=r"model\._target_=os\.system is not allowed"):
        compose.resumed(config, [])


@pytest.mark.parametrize("group", ["model", "trainer", "wandb", "schedule"])
@pytest.mark.parametrize("text", ["null", "[1]", "7"])
def test_a_damaged_configuration_is_not_resumed(tmp_path, every_member, group, text):
    config = copy.deepcopy(every_member[0]) | {"resume": str(tmp_path)}
    stored = every_member[0] | {group: yaml.safe_load(text)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ConfigError) as raised:
        compose.resumed(config, ["wandb.mode=disabled"])
    why = f"config.yaml has no settings of {group}"
    assert str(raised.value) == f"resume={tmp_path} is damaged: {why}"
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=f"resume={tmp_path} is damaged: config.yaml cannot be re"
    ):
        compose.resumed(config, [])


@pytest.fixture
def hydra_configured(monkeypatch):
    """Composes as Hydra does for a command: with its own part, and known to HydraConfig."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)

    def configured(*overrides):
        compose.register_resolvers()
        cfg = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return cfg

    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield configured


def test_the_run_folder_follows_from_the_configuration(hydra_configured, monkeypatch, tmp_path):
    def folder(cfg):
        OmegaConf.clear_cache(cfg)
        return OmegaConf.select(cfg, "hydra.run.dir")

    cfg = hydra_configured("name=trial")
    name = run_name(compose.resolve(cfg))
    time = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}"
    assert re.fullmatch(rf"outputs/{re.escape(name)}/{time}", folder(cfg))
    assert OmegaConf.select(cfg, "hydra.sweep.dir") == "multirun/trial"
    assert OmegaConf.select(cfg, "hydra.sweep.subdir") == name
    cfg.show = True
    assert folder(cfg) == "."
    cfg.show = False
    cfg.resume = str(tmp_path)
    assert folder(cfg) == "."  # no run is there
    (tmp_path / "config.yaml").touch()
    assert folder(cfg) == str(tmp_path)
    cfg.resume = None
    with monkeypatch.context() as patch:
        patch.setattr(processes, "environment", lambda: (1, 2, 1))
        assert folder(cfg) == "."  # of rank 0 alone
    cfg.trainer.epochs = 0  # a mistake, which main() tells
    assert folder(cfg) == OmegaConf.select(cfg, "hydra.sweep.subdir") == "."


def test_data_is_named_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for root, name in ((".", tmp_path.name), ("~", "me"), ("a/b/", "b"), ("a/..", tmp_path.name)):
        assert compose._basename(root) == name
    assert compose._basename("/") == "root"


def test_the_folder_of_a_run_that_never_began_is_removed_with_empty_ones_above(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    compose.remove_empty(tmp_path)
    for above in (tmp_path / "full", tmp_path / "outputs"):
        (above / "run").mkdir(parents=True)
        (tmp_path / "full" / "file").touch()
        compose.remove_empty(above / "run")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["full", "full/file"]
    compose.remove_empty(tmp_path / "full")
    assert (tmp_path / "full" / "file").is_file()


def test_settings_of_plugins_make_room_for_ours(monkeypatch):
    names = ("joblib", "submitit_local", "submitit_slurm", "basic")
    launchers = {f"{name}.yaml": object() for name in names}
    sweepers = {"optuna.yaml": object(), "basic.yaml": object()}
    repo = {"launcher": dict(launchers), "sweeper": dict(sweepers)}
    monkeypatch.setattr(ConfigStore.instance(), "repo", {"hydra": repo})
    for _ in range(2):
        compose.register_presets()
        assert repo["launcher"] == {
            "joblib_plugin.yaml": launchers["joblib.yaml"],
            "submitit_local_plugin.yaml": launchers["submitit_local.yaml"],
            "submitit_slurm_plugin.yaml": launchers["submitit_slurm.yaml"],
            "basic.yaml": launchers["basic.yaml"],
        }
        assert repo["sweeper"] == {
            "optuna_plugin.yaml": sweepers["optuna.yaml"],
            "basic.yaml": sweepers["basic.yaml"],
        }
    monkeypatch.setattr(ConfigStore.instance(), "repo", {})
    compose.register_presets()  # without plugins
