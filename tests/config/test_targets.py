import copy
import importlib
import itertools
import re
import sys
from types import ModuleType

import pytest
import torch

from sdnet.config import targets, values
from sdnet.config.errors import ConfigError
from tests.config.composed import CONF, composed


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
        "sdnet.config.targets.instantiate",
        "sdnet.runs.folder.RunFolder.create",
        "sdnet.launch.provenance._git",
        "sdnet.data.folders._save_cache",
        "sdnet.data.split.Split",
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
    with pytest.raises(ConfigError, match=r"model\.block\._target_=.* (not allowed|not exist)"):
        targets.check_target("model.block._target_", target)


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
    targets.check_target(f"{group}._target_", target)
    others = set(targets.TARGETS) - {group}
    with pytest.raises(ConfigError):
        for other in others - {"model"} if group == "schedule" else others:
            targets.check_target(f"{other}._target_", target)


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
        ConfigError, match=rf"^{group}\.{own}{place}_target_=os\.system is not allowed"
    ):
        values.check(config)


@pytest.mark.parametrize("place", ["trainer", "wandb", "", "own"])
def test_where_no_object_is_made_no_target_is_allowed(every_member, place):
    config = copy.deepcopy(every_member[0])
    node = config.setdefault(place, {}) if place else config
    node["_target_"] = "torch.nn.ReLU"
    message = r"^trainer|wandb\._target_=torch\.nn\.ReLU is not allowed|^(own|_target_) is not a"
    with pytest.raises(ConfigError, match=message):
        values.check(config)


@pytest.mark.parametrize("package", ["mine", "sdnet_mine", "torch_mine", "torchvision2"])
def test_nothing_is_imported_for_a_target_that_is_refused(monkeypatch, tmp_path, package):
    folder = tmp_path / package
    folder.mkdir()
    code = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"
    code += "import torch\nclass Block(torch.nn.Module): pass\nclass SGD(torch.optim.SGD): pass\n"
    (folder / "__init__.py").write_text(code)
    (folder / "inner.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    names = [f"{package}.Block", f"{package}.inner.SGD", package, f"{package}.inner"]
    for target, group in itertools.product(names, targets.TARGETS):
        with pytest.raises(ConfigError, match=f"{target} is not allowed here"):
            targets.check_target(f"{group}._target_", target)
    assert package not in sys.modules and not list(folder.rglob("imported"))


@pytest.mark.parametrize(
    "target",
    [
        "torch.utils.model_dump.__main__.x",
        "torch.distributed.launcher.x",
        "torch.nn.__main__.x",
        "sdnet.__main__.x",
        "torch.nn.qat.dynamic.modules.linear.x",
        "sdnet.models.resnet.torch.utils.model_dump",
        "torchvision.ops.__main__.x",
    ],
)
def test_no_module_of_torch_is_imported_to_look_for_a_name(target, monkeypatch):
    importlib.import_module("torchvision.ops")
    monkeypatch.delitem(sys.modules, "torch.nn.qat.dynamic.modules.linear", raising=False)
    before = set(sys.modules)
    for group in targets.TARGETS:
        with pytest.raises(ConfigError, match=r"(not allowed|does not exist) here"):
            targets.check_target(f"{group}._target_", target)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "target", ["torch.fx.GraphModule", "torch.ao.nn.quantized.Linear", "torch.jit.ScriptModule"]
)
def test_of_torch_the_modules_of_networks_are_allowed_alone(target):
    with pytest.raises(ConfigError, match="is not allowed here"):
        targets.check_target("model._target_", target)


def test_what_is_defined_elsewhere_in_torch_is_not_allowed_under_another_name(monkeypatch):
    monkeypatch.setattr(torch.nn, "GraphModule", torch.fx.GraphModule, raising=False)
    with pytest.raises(ConfigError, match="is not allowed here"):
        targets.check_target("model._target_", "torch.nn.GraphModule")


@pytest.mark.parametrize(
    "group, target",
    [
        ("model", "sdnet.runs.identity.identity"),
        ("model", "sdnet.data.sources.digits"),
        ("dataset", "sdnet.data.splits.prepare"),
        ("schedule", "sdnet.models.blocks.BasicBlock"),
        ("lr_schedule", "sdnet.training.trainer.Trainer"),
        ("optimizer", "sdnet.training.optim.Cosine"),
        ("optimizer", "torch.nn.ReLU"),
        ("dataset", "sdnet.data.digits._read_digits"),
        ("dataset", "sdnet.data.folders.read_rgb"),
        ("dataset", "torch.utils.data.TensorDataset"),
        ("lr_schedule", "torch.optim.lr_scheduler.StepLR"),
    ],
)
def test_what_stands_beside_a_groups_building_blocks_is_none_of_them(group, target):
    with pytest.raises(ConfigError, match=f"^{group}._target_={target} is not allowed"):
        targets.check_target(f"{group}._target_", target)


def test_a_class_of_ones_own_is_not_taken_for_torchs_because_torch_holds_it(monkeypatch):
    class Mine(torch.nn.Module):
        pass

    Mine.__qualname__ = "Mine"
    monkeypatch.setattr(sys.modules[__name__], "Mine", Mine, raising=False)
    monkeypatch.setattr(torch.nn, "Mine", Mine, raising=False)
    for name in ("torch.nn.Mine", "sdnet.models.blocks.nn.Mine"):
        with pytest.raises(ConfigError, match=f"model._target_={name} is not allowed"):
            targets.check_target("model._target_", name)


def test_what_is_not_there_is_said_to_be_missing():
    for target in ("sdnet.models.resnet.nothing", "sdnet.nothing.Block", "torch.nn.Nothing.more"):
        message = (
            f"model._target_={target} does not exist here: a target must be a block, network, "
            "schedule, data set or optimizer of sdnet or torch, in its own group. To use one of "
            "your own, list it in the environment variable SDNET_ALLOW_TARGETS."
        )
        with pytest.raises(ConfigError) as raised:
            targets.check_target("model._target_", target)
        assert str(raised.value) == message


def test_a_listed_target_is_allowed_and_a_forged_home_is_not(monkeypatch):
    monkeypatch.setenv(targets.ALLOW_VARIABLE, "mine.Block, fractions.Fraction")
    targets.check_target("x._target_", "fractions.Fraction")
    with pytest.raises(ConfigError):
        targets.check_target("x._target_", "fractions.gcd")

    def impostor():
        pass

    impostor.__module__, impostor.__qualname__ = "sdnet.models.blocks", "conv"
    assert not targets._is_building_block(impostor, *targets.TARGETS["model"])

    neighbour = ModuleType("sdnet.data.sources_mine")  # which only begins like ours
    neighbour.impostor = impostor
    impostor.__module__, impostor.__qualname__ = neighbour.__name__, "impostor"
    monkeypatch.setitem(sys.modules, neighbour.__name__, neighbour)
    assert not targets._is_building_block(impostor, *targets.TARGETS["dataset"])
    impostor.__module__ = neighbour.__name__ = "sdnet.data.sources.mine"
    monkeypatch.setitem(sys.modules, neighbour.__name__, neighbour)
    assert targets._is_building_block(impostor, *targets.TARGETS["dataset"])


def test_targets_are_found_at_any_depth():
    config = composed()
    config["model"]["extra"] = [{"inner": {"_target_": "os.system"}}]
    with pytest.raises(ConfigError, match=r"model\.extra\.0\.inner\._target_=os\.system"):
        values.check(config)


def test_every_group_member_composes_to_a_target_of_ours_or_torchs(every_member):
    for group, (ours, base) in targets.TARGETS.items():
        named = {config[group]["_target_"] for config in every_member}
        home = ours if group != "optimizer" else base.rpartition(".")[0]
        assert all(target.startswith(f"{home}.") for target in named), named
        assert len({str(config[group]) for config in every_member}) == len(
            list((CONF / group).glob("*.yaml"))
        )


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
    made = targets.instantiate({group: node}, group, more=4)
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
    with pytest.raises(ConfigError) as raised:
        targets.instantiate({"schedule": {"_target_": target} | settings}, "schedule")
    assert str(raised.value).startswith(message)


def test_why_a_listed_target_cannot_be_had_is_said(monkeypatch, tmp_path):
    """Not there, misspelt, or faulty: each is another thing to do."""
    modules = {
        "right_one": "class Block: pass\nclass Stem: pass\n",
        "faulty_syntax": "x = 1\ndef f(:\n",
        "faulty_import": "\nimport nowhere_to_be_found\n",
        "faulty_line": "y = 2\nz = y / 0\n",
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    path = re.escape(str(tmp_path))
    expected = {
        "absent_one.Block": r"imported: there is no module absent_one\. .* PYTHONPATH=\. before",
        "right_one.Blok": rf"found: {path}/right_one\.py has no Blok; did you mean Block\?$",
        "right_one.Block.inner": r"found: <class 'right_one\.Block'> has no inner\.$",
        "right_one.more.Block": rf"found: {path}/right_one\.py has no more\.$",
        "faulty_syntax.Block": rf"imported: SyntaxError: .* \({path}/faulty_syntax\.py, line 2\)$",
        "faulty_import.Block": rf"imported: .*'nowhere_.*' \({path}/faulty_import\.py, line 2\)$",
        "faulty_line.Block": rf"imported: Zero.* by zero \({path}/faulty_line\.py, line 2\)$",
    }
    monkeypatch.setenv(targets.ALLOW_VARIABLE, ",".join(["right_one.Stem", *expected]))
    targets.check_target("model._target_", "right_one.Stem")
    for target, why in expected.items():
        with pytest.raises(
            ConfigError, match=f"^model\\._target_={target} cannot be {why}"
        ) as raised:
            targets.check_target("model._target_", target)
        assert "\n" not in str(raised.value)
        assert ("PYTHONPATH" in str(raised.value)) == (target == "absent_one.Block")


@pytest.mark.parametrize("target", [["os.system"], {"a": "os.system"}, [], {}])
def test_a_target_that_is_no_name_is_refused(every_member, target):
    config = copy.deepcopy(every_member[0])
    config["model"]["_target_"] = target
    with pytest.raises(ConfigError, match=r"^model\._target_=.* is not allowed here"):
        values.check(config)
