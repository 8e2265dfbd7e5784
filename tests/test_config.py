import copy
import itertools
import os
import re
import sys
from types import ModuleType

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf

from sdnet import build, run
from sdnet import config as configs
from sdnet.training import distributed

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
        ("model", "torchvision.models.resnet.BasicBlock"),
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


@pytest.mark.parametrize("group", ["model", "dataset", "schedule", "optimizer", "lr_schedule"])
@pytest.mark.parametrize("place", ["", "inner.", "0."], ids=["group", "inner", "list"])
def test_no_group_takes_a_target_from_elsewhere_at_any_depth(every_member, group, place):
    config = copy.deepcopy(every_member[0])
    if place == "":
        config[group]["_target_"] = "os.system"
    else:
        config[group]["own"] = [{"_target_": "os.system"}] if place == "0." else {"inner": {}}
    if place == "inner.":
        config[group]["own"]["inner"]["_target_"] = "os.system"
    own = "own." if place else ""
    with pytest.raises(
        configs.ConfigError, match=rf"^{group}\.{own}{place}_target_=os\.system is not allowed"
    ):
        configs.check(config)


@pytest.mark.parametrize("place", ["trainer", "wandb", "name", "own"])
def test_where_no_object_is_made_no_target_is_allowed(every_member, place):
    config = copy.deepcopy(every_member[0])
    node = config.setdefault(place, {})
    if isinstance(node, str):
        config = {"_target_": "sdnet.models.schedules.Constant"} | config
        message = r"^_target_=sdnet\.models\.schedules\.Constant is not allowed"
    else:
        node["_target_"] = "torch.nn.ReLU"
        message = rf"^{place}\._target_=torch\.nn\.ReLU is not allowed"
    with pytest.raises(configs.ConfigError, match=message):
        configs.check(config)


@pytest.mark.parametrize("package", ["mine", "sdnet_mine", "torch_mine", "torchvision2"])
def test_nothing_is_imported_for_a_target_that_is_refused(monkeypatch, tmp_path, package):
    folder = tmp_path / package
    folder.mkdir()
    code = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"
    code += "import torch\nclass Block(torch.nn.Module): pass\nclass SGD(torch.optim.SGD): pass\n"
    (folder / "__init__.py").write_text(code)
    (folder / "inner.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    targets = [f"{package}.Block", f"{package}.inner.SGD", package, f"{package}.inner"]
    for target, group in itertools.product(targets, configs.TARGETS):
        with pytest.raises(configs.ConfigError, match=f"{target} is not allowed here"):
            configs.check_target(f"{group}._target_", target)
    assert package not in sys.modules and not list(folder.rglob("imported"))


@pytest.mark.parametrize(
    "group, target",
    [
        ("model", "sdnet.run.identity"),
        ("model", "sdnet.data.sources.digits"),
        ("dataset", "sdnet.data.splits.prepare"),
        ("schedule", "sdnet.models.blocks.BasicBlock"),
        ("lr_schedule", "sdnet.training.trainer.Trainer"),
        ("optimizer", "sdnet.training.optim.Cosine"),
        ("optimizer", "torch.nn.ReLU"),
        ("dataset", "sdnet.data.sources._read_digits"),
        ("dataset", "torch.utils.data.TensorDataset"),
        ("lr_schedule", "torch.optim.lr_scheduler.StepLR"),
    ],
)
def test_what_stands_beside_a_groups_building_blocks_is_none_of_them(group, target):
    with pytest.raises(configs.ConfigError, match=f"^{group}._target_={target} is not allowed"):
        configs.check_target(f"{group}._target_", target)


def test_a_class_of_ones_own_is_not_taken_for_torchs_because_torch_holds_it(monkeypatch):
    class Mine(torch.nn.Module):
        pass

    Mine.__qualname__ = "Mine"
    monkeypatch.setattr(sys.modules[__name__], "Mine", Mine, raising=False)
    monkeypatch.setattr(torch.nn, "Mine", Mine, raising=False)
    for name in ("torch.nn.Mine", "sdnet.models.blocks.nn.Mine"):
        with pytest.raises(configs.ConfigError, match=f"model._target_={name} is not allowed"):
            configs.check_target("model._target_", name)


def test_what_is_not_there_is_said_to_be_missing():
    for target in ("sdnet.models.resnet.nothing", "sdnet.nothing.Block", "torch.nn.Nothing.more"):
        message = (
            f"model._target_={target} does not exist here: a target must be a block, network, "
            "schedule, data set or optimizer of sdnet or torch, in its own group. To use one of "
            "your own, list it in the environment variable SDNET_ALLOW_TARGETS."
        )
        with pytest.raises(configs.ConfigError) as raised:
            configs.check_target("model._target_", target)
        assert str(raised.value) == message


INFINITE, NOT_A_NUMBER = float("inf"), float("nan")
NAME = (["a", "a b", "..."], ["", ".", "..", "a/b", "a\\b", "a:b", 'a"b', 7, None])
NAME += ("a name for a folder",)
BOOLEAN = ([True, False], [0, 1, "true", None], "true or false")
TEXT = (["x"], ["", 7, None], "a text")
OPTIONAL_TEXT = (["x", None], ["", 7, False], "a text, or null")
POSITIVE = ([1, 10**9], [0, -1, 1.0, True, "1", None], "a whole number, 1 or more")
NATURAL = ([0, 1], [-1, 0.0, False, "0", None], "a whole number, 0 or more")
AT_LEAST_0 = ([0, 0.0, 1.5], [-1e-9, -1, INFINITE, NOT_A_NUMBER, True, "1", None])
AT_LEAST_0 += ("a number of at least 0",)
VALUES = {  # accepted, refused, what the message says of them
    "name": NAME,
    "seed": NATURAL,
    "show": BOOLEAN,
    "resume": OPTIONAL_TEXT,
    "retry_failed": BOOLEAN,
    "model.name": NAME,
    "dataset.name": NAME,
    "dataset.root": TEXT,
    "dataset.download": BOOLEAN,
    "dataset.shift": NATURAL,
    "dataset.flip": BOOLEAN,
    "schedule.name": NAME,
    "optimizer.lr": (
        [5e-324, 1, 1e30],
        [0, 0.0, -1, INFINITE, NOT_A_NUMBER, True, "0.1", None],
        "a number above 0",
    ),
    "optimizer.momentum": AT_LEAST_0,
    "optimizer.betas": (
        [[0.0, 0.9999999]],
        [[0.9, 1.0], [1.0, 0.9], [-0.1, 0.9], [0, 0.9], [0.9], [0.9] * 3, (0.9, 0.9), 0.9, None],
        "two numbers b with 0 <= b < 1",
    ),
    "optimizer.nesterov": BOOLEAN,
    "optimizer.weight_decay": AT_LEAST_0,
    "optimizer.skipped_update": (
        ["decay", "freeze"],
        ["none", "", None, True],
        "one of decay, freeze",
    ),
    "trainer.epochs": POSITIVE,
    "trainer.batch_size": ([2, 3], [1, 0, 2.0, "2", None], "a whole number, 2 or more"),
    "trainer.accumulate": POSITIVE,
    "trainer.checkpoint_blocks": (
        [None, 1],
        [0, 1.0, True, "1"],
        "a whole number, 1 or more, or null",
    ),
    "trainer.compile": ([None, "branches"], ["", "all", True, False], "branches, or null"),
    "trainer.fused": BOOLEAN,
    "trainer.sync_batchnorm": BOOLEAN,
    "trainer.eval_every": POSITIVE,
    "trainer.eval_unit": (["epoch", "step"], ["epochs", "", None], "one of epoch, step"),
    "trainer.log_every": POSITIVE,
    "trainer.device": (
        ["auto", "cpu", "cuda", "cuda:0", "cuda:12"],
        ["", "gpu", "cuda:", "cuda:123", "cuda:x", "cpu:0", "xcpu", "mps", 0, None],
        "auto, cpu, cuda or cuda:<n>",
    ),
    "trainer.precision": (
        ["fp32", "tf32", "bf16"],
        ["fp16", "", 32, None],
        "one of fp32, tf32, bf16",
    ),
    "trainer.threads": ([None, 1], [0, 1.0, True, "1"], "a whole number, 1 or more, or null"),
    "trainer.workers": ([None, 0], [-1, 0.0, False, "0"], "a whole number, 0 or more, or null"),
    "trainer.channels_last": BOOLEAN,
    "trainer.deterministic": BOOLEAN,
    "wandb.mode": (
        ["auto", "online", "offline", "disabled"],
        ["", "on", "dryrun", False, None],
        "one of auto, online, offline, disabled",
    ),
    "wandb.project": (
        ["x", "x" * 128, "a b-c_d.e"],
        ["", "x" * 129, *(f"a{c}b" for c in "/\\#?%:"), 7, None],
        "a text of at most 128 characters without / \\ # ? % :",
    ),
    "wandb.entity": OPTIONAL_TEXT,
    "wandb.group": OPTIONAL_TEXT,
    "wandb.name": OPTIONAL_TEXT,
    "wandb.tags": (
        [[], ["x"], ["x" * 64, "y"]],
        [["x" * 65], ["x", ""], ["x", 7], "x", None, ("x",)],
        "a list of texts of 1 to 64 characters",
    ),
}


def test_the_table_of_values_has_every_setting_that_is_checked():
    assert set(VALUES) == set(configs.CHECKS)


@pytest.mark.parametrize("key", VALUES)
def test_a_value_at_the_border_is_taken_and_one_beyond_it_refused(every_member, key):
    accepted, refused, allowed = VALUES[key]
    config = copy.deepcopy(every_member[0])
    group, _, name = key.rpartition(".")
    node = config[group] if group else config
    for value in accepted:
        node[name] = value
        configs.check(config)
    for value in refused:
        node[name] = value
        with pytest.raises(configs.ConfigError) as raised:
            configs.check(config)
        assert str(raised.value) == f"{key} must be {allowed}, got {value!r}"


def test_text_that_hydra_would_resolve_once_more_is_refused():
    hidden = r"'\${oc.create:{_target_: torch.utils.collect_env.run, command: ls}}'"
    with pytest.raises(configs.ConfigError, match=r"schedule\.p_L must not hold an interpolation"):
        composed(f"schedule.p_L={hidden}")
    for value in ("${name}", "a ${name}", ["a", "b${name}"], {"c": "${name}"}):
        with pytest.raises(
            configs.ConfigError, match=r"^own[.01c]* must not hold an interpolation"
        ):
            configs.check({"own": value})
    configs.check({"own": "$name {name}"})


def test_a_listed_target_is_allowed_and_a_forged_home_is_not(monkeypatch):
    monkeypatch.setenv(configs.ALLOW_VARIABLE, "mine.Block, fractions.Fraction")
    configs.check_target("x._target_", "fractions.Fraction")
    with pytest.raises(configs.ConfigError):
        configs.check_target("x._target_", "fractions.gcd")

    def impostor():
        pass

    impostor.__module__, impostor.__qualname__ = "sdnet.models.blocks", "conv"
    assert not configs._is_building_block(impostor, *configs.TARGETS["model"])

    neighbour = ModuleType("sdnet.data.sources_mine")  # which only begins like ours
    neighbour.impostor = impostor
    impostor.__module__, impostor.__qualname__ = neighbour.__name__, "impostor"
    monkeypatch.setitem(sys.modules, neighbour.__name__, neighbour)
    assert not configs._is_building_block(impostor, *configs.TARGETS["dataset"])
    impostor.__module__ = neighbour.__name__ = "sdnet.data.sources.mine"
    monkeypatch.setitem(sys.modules, neighbour.__name__, neighbour)
    assert configs._is_building_block(impostor, *configs.TARGETS["dataset"])


def test_targets_are_found_at_any_depth():
    config = composed()
    config["model"]["extra"] = [{"inner": {"_target_": "os.system"}}]
    with pytest.raises(configs.ConfigError, match=r"model\.extra\.0\.inner\._target_=os\.system"):
        configs.check(config)


@pytest.fixture(scope="module")
def every_member():
    """Configurations in which every member of every group is composed at least once."""
    groups = ("model", "dataset", "schedule", "optimizer", "lr_schedule", "trainer", "wandb")
    members = [[f"{g}={f.stem}" for f in sorted((CONF / g).glob("*.yaml"))] for g in groups]
    longest = max(map(len, members))
    turns = zip(*(itertools.islice(itertools.cycle(m), longest) for m in members), strict=True)
    return [composed(*turn, "++dataset.root=somewhere") for turn in turns]


# Where and how a run is computed, kept and shown. All else decides what comes out of it.
NOT_RESULT = {
    *("name", "show", "resume", "retry_failed", "model.name", "schedule.name"),
    *("wandb.mode", "wandb.project", "wandb.entity", "wandb.group", "wandb.name", "wandb.tags"),
    *("dataset.root", "dataset.download", "trainer.device", "trainer.threads", "trainer.workers"),
    *("trainer.log_every", "trainer.checkpoint_blocks", "trainer.compile", "trainer.fused"),
}


def others(value):
    """Values near `value` that are another setting."""
    if isinstance(value, list):
        elements = [
            [*value[:i], o, *value[i + 1 :]] for i, v in enumerate(value) for o in others(v)
        ]
        return [*elements, [*value, 3], *([value[:-1]] if value else [])]
    if value is None or isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return [f"x{value}"]
    return [value + 1, value * 1.0000001 + 1e-9]


def with_others(config, node=None, path=()):
    """(dotted name, configuration) for each leaf of a configuration and each other value of it."""
    node = config if node is None else node
    for key, value in node.items():
        if isinstance(value, dict):
            yield from with_others(config, value, (*path, key))
            continue
        for other in others(value):
            node[key] = other
            yield ".".join((*path, key)), config
        node[key] = value


def test_every_setting_is_part_of_the_identity_but_for_those_listed(every_member):
    ignored, counted = set(), set()
    for config in copy.deepcopy(every_member):
        identity = run.identity(config)
        for path, changed in with_others(config):
            (ignored if run.identity(changed) == identity else counted).add(path)
    assert ignored == NOT_RESULT and not counted & NOT_RESULT
    assert all(run.determines_result(path) for path in counted)
    assert not any(run.determines_result(path) for path in ignored)


def test_every_group_member_composes_to_a_target_of_ours_or_torchs(every_member):
    for group, (ours, base) in configs.TARGETS.items():
        targets = {config[group]["_target_"] for config in every_member}
        home = ours if group != "optimizer" else base.rpartition(".")[0]
        assert all(target.startswith(f"{home}.") for target in targets), targets
        assert len({str(config[group]) for config in every_member}) == len(
            list((CONF / group).glob("*.yaml"))
        )


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

    assert resumed() == stored | {"resume": str(folder.path)}
    assert resumed("trainer.threads=1")["trainer"] == stored["trainer"] | {"threads": 1}
    same = resumed("schedule.p_L=0.50", "seed=0", "hydra.job.name=x")  # what they are anyway
    assert same == stored | {"resume": str(folder.path)}
    for override in (
        *("optimizer.lr=0.2", "seed=1", "schedule=constant", "experiment=tiny_resnet"),
        *("+model.width=3", "++trainer.epochs=31", "~schedule.rule"),
    ):
        key, _, value = override.lstrip("+~").partition("=")
        with pytest.raises(configs.ConfigError) as raised:
            resumed(override)
        assert str(raised.value) == (
            f"{key}={value} would change the result of the run in {folder.path}, "
            "which keeps its stored configuration; leave it out, or start a new run"
        )
    config = composed("schedule=uniform", f"resume={folder.path}")
    with pytest.raises(configs.ConfigError, match=r"^schedule=uniform would change"):
        configs.resumed(config, ["schedule@schedule=uniform"])


def test_what_does_not_determine_the_result_is_taken_from_the_command_when_resumed(tmp_path):
    stored = composed("dataset=cifar10", "experiment=cifar10_resnet110")
    folder = run.RunFolder(tmp_path / "r")
    folder.create(stored, {})
    new = {
        "name": "b",
        "show": True,
        "resume": str(folder.path),
        "retry_failed": True,
        "model.name": "other",
        "schedule.name": "other",
        "dataset.root": "elsewhere",
        "dataset.download": False,
        "trainer.device": "cuda",
        "trainer.threads": 3,
        "trainer.workers": 0,
        "trainer.log_every": 7,
        "trainer.checkpoint_blocks": 2,
        "trainer.compile": "branches",
        "trainer.fused": True,
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
    assert configs.resumed(config, typed) == expected
    config["wandb"] = new["wandb.group"] and expected["wandb"] | {"project": "third"}
    whole = configs.resumed(config, [f"resume={folder.path}", "wandb=default"])
    assert whole == stored | {"resume": str(folder.path), "wandb": config["wandb"]}


def test_what_cannot_be_resumed_says_why(tmp_path, every_member):
    config = copy.deepcopy(every_member[0]) | {"resume": str(tmp_path)}
    message = re.escape(f"resume={tmp_path} is not a run folder: it has no config.yaml")
    with pytest.raises(configs.ConfigError, match=message):
        configs.resumed(config, [])
    earlier = copy.deepcopy(every_member[0])
    del earlier["trainer"]["fused"], earlier["trainer"]["workers"]
    folder = run.RunFolder(tmp_path)
    folder.create(earlier, {})
    message = "was begun by an earlier version of sdnet: its configuration has no trainer.fused; "
    with pytest.raises(configs.ConfigError, match=re.escape(f"resume={tmp_path} {message}")):
        configs.resumed(config, [])
    (folder.path / "config.yaml").unlink()
    folder.create(every_member[0] | {"model": {"_target_": "os.system"}}, {})
    with pytest.raises(configs.ConfigError, match=r"model\._target_=os\.system is not allowed"):
        configs.resumed(config, [])


@pytest.fixture
def hydra_configured(monkeypatch):
    """Composes as Hydra does for a command: with its own part, and known to HydraConfig."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)

    def configured(*overrides):
        configs.register_resolvers()
        cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return cfg

    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield configured


def test_the_run_folder_follows_from_the_configuration(hydra_configured, monkeypatch, tmp_path):
    def folder(cfg):
        OmegaConf.clear_cache(cfg)
        return OmegaConf.select(cfg, "hydra.run.dir")

    cfg = hydra_configured("name=trial")
    name = run.run_name(configs.resolve(cfg))
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
        patch.setattr(distributed, "environment", lambda: (1, 2, 1))
        assert folder(cfg) == "."  # of rank 0 alone
    cfg.trainer.epochs = 0  # a mistake, which main() tells
    assert folder(cfg) == OmegaConf.select(cfg, "hydra.sweep.subdir") == "."


def test_data_is_named_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for root, name in ((".", tmp_path.name), ("~", "me"), ("a/b/", "b"), ("a/..", tmp_path.name)):
        assert configs._basename(root) == name
    assert configs._basename("/") == "root"


def test_the_folder_of_a_run_that_never_began_is_removed_with_empty_ones_above(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    configs.remove_empty(tmp_path)
    for above in (tmp_path / "full", tmp_path / "outputs"):
        (above / "run").mkdir(parents=True)
        (tmp_path / "full" / "file").touch()
        configs.remove_empty(above / "run")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["full", "full/file"]
    configs.remove_empty(tmp_path / "full")
    assert (tmp_path / "full" / "file").is_file()


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
    assert configs.explain(raised.value) == message


def test_settings_of_plugins_make_room_for_ours(monkeypatch):
    names = ("joblib", "submitit_local", "submitit_slurm", "basic")
    launchers = {f"{name}.yaml": object() for name in names}
    sweepers = {"optuna.yaml": object(), "basic.yaml": object()}
    repo = {"launcher": dict(launchers), "sweeper": dict(sweepers)}
    monkeypatch.setattr(ConfigStore.instance(), "repo", {"hydra": repo})
    for _ in range(2):
        configs.register_presets()
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
    configs.register_presets()  # without plugins


OURS = {
    "model": {"name"},
    "dataset": {"name", "validation", "normalization", "shift", "flip"},
    "schedule": {"name"},
    "optimizer": {"skipped_update"},
    "lr_schedule": set(),
}


@pytest.mark.parametrize("group", OURS)
def test_a_target_gets_its_settings_but_for_those_that_are_ours(group):
    every = set().union(*OURS.values())
    node = {"_target_": "builtins.dict", "sizes": [1, {"a": 2}]} | dict.fromkeys(every, 3)
    made = configs.instantiate({group: node}, group, more=4)
    theirs = dict.fromkeys(every - OURS[group], 3)
    assert made == {"sizes": [1, {"a": 2}], "more": 4} | theirs
    assert type(made["sizes"]) is list and type(made["sizes"][1]) is dict
    assert node["name"] == 3


@pytest.mark.parametrize(
    "target, settings, message",
    [
        ("builtins.int", {"x": 1}, "schedule: 'x' is an invalid keyword argument"),
        ("os.listdir", {"path": "nowhere"}, "schedule: [Errno 2]"),
        ("sdnet.LinearDecay", {"p_L": 0}, "schedule.p_L must be a number with 0 < p_L <= 1 "),
        ("sdnet.LinearDecay", {"p_L": 1, "p_0": 2}, "schedule.p_0 must be a number with 0 < p_0 "),
        ("fractions.Fraction", {"numerator": "a=b"}, "schedule: Invalid literal for Fraction"),
    ],
)
def test_what_a_target_finds_wrong_is_told_with_its_setting(target, settings, message):
    with pytest.raises(configs.ConfigError) as raised:
        configs.instantiate({"schedule": {"_target_": target} | settings}, "schedule")
    assert str(raised.value).startswith(message)


def test_what_is_no_mistake_of_the_user_stays_what_it_is():
    with pytest.raises(InstantiationException):
        configs.instantiate({"schedule": {"_target_": "operator.truediv"}}, "schedule", 1, 0)
    with pytest.raises(OSError, match="disk"), configs.errors_of({"trainer": {}}, "trainer"):
        raise OSError("disk")
    for text, expected in (("device=x", "trainer.device=x"), ("devices x", "trainer: devices x")):
        settings = {"trainer": {"device": "x"}}
        with pytest.raises(configs.ConfigError) as raised, configs.errors_of(settings, "trainer"):
            raise ValueError(text)
        assert str(raised.value) == expected
