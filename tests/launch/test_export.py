"""`python -m sdnet export`: what it writes is the run's network, for those without sdnet."""

import functools  # noqa: F401  which a call that is told may name
import json
import os
import shutil

import onnxruntime
import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file

import sdnet
from sdnet.__main__ import main
from sdnet.config.errors import ConfigError
from sdnet.launch import build, export
from sdnet.launch.plain import OF_TIMM, OF_TORCHVISION, plain_network
from sdnet.models.gates import gated_modules
from sdnet.models.resnet import BasicBlock
from sdnet.runs.folder import RunFolder
from tests.config.composed import composed

SMALL = ["model.depth=8", "dataset.size=8", "trainer.epochs=1", "trainer.threads=1"]


@pytest.fixture(scope="module")
def finished(train_in, tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("export")
    done = train_in(folder, *SMALL, "schedule.p_L=0.3", "wandb.mode=disabled")
    assert done.returncode == 0, done.stderr
    (run,) = folder.glob("outputs/*/*")
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


def refused(capsys, *arguments):
    assert main(["export", *map(str, arguments)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_each_file_gives_the_runs_logits_to_those_who_have_only_it(run, capsys):
    assert main(["export", str(run)]) == 0
    out = run / "export"
    files = {"export.json", "model.safetensors", "model.pt2", "model.onnx"}
    assert {file.name for file in out.iterdir()} == files
    facts = json.loads((out / "export.json").read_text())
    said = capsys.readouterr().out
    assert all(name in said for name in ("model.safetensors", "model.pt2", "model.onnx"))
    assert f"for {facts['class']}; largest logit {facts['largest_logit']:.3g}, on 16 test" in said

    model = sdnet.load_run(run)
    plain = eval(facts["class"])
    assert all(module.survival == 1.0 for module in gated_modules(plain))
    plain.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    found = {
        "safetensors": plain.eval(),
        "pt2": torch.export.load(out / "model.pt2").module(),
        "onnx": lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]),
    }
    for rows in (1, 5):  # the batch may be of any size
        x = torch.randn(rows, *facts["input"])
        with torch.no_grad():
            for logits in found.values():
                assert torch.allclose(logits(x), model(x), rtol=1e-4, atol=1e-4)

    summary = json.loads((run / "summary.json").read_text())
    assert facts["test_error"] == summary["test_error"] and facts["checkpoint"] == "best"
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert facts["survival"] == [module.survival for module in gated_modules(model)]
    fitted = build.build_data(RunFolder(run).config()).normalization
    assert facts["normalization"]["mean"] == fitted.mean.tolist()
    with safe_open(out / "model.safetensors", "pt") as file:  # it says what it is by itself
        assert file.metadata()["class"] == facts["class"]
        assert json.loads(file.metadata()["normalization"]) == facts["normalization"]
    assert session.get_modelmeta().custom_metadata_map["class"] == facts["class"]


def test_weights_that_give_other_logits_are_not_written(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "fold", lambda model: dict(model.state_dict()))
    err = refused(capsys, run, "--format", "safetensors", "--out", tmp_path / "out")
    assert "model.safetensors cannot be made: its logits differ from the run's by" in err
    assert not (tmp_path / "out").exists()


def test_where_the_data_are_gone_it_says_so_and_compares_on_random_images(run, monkeypatch, capsys):
    def gone(config, listing=False):
        raise ConfigError("no data")

    monkeypatch.setattr(build, "build_data", gone)
    assert main(["export", str(run), "--format", "safetensors", "--checkpoint", "last"]) == 0
    facts = json.loads((run / "export" / "export.json").read_text())
    assert facts["compared_on"] == "16 random images: the data cannot be read (no data)"
    assert facts["compared_on"] in capsys.readouterr().out
    assert facts["input"] == [1, 8, 8] and "normalization" not in facts
    assert facts["checkpoint"] == "last"


def test_a_package_that_is_missing_costs_its_format(run, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    text = "onnx needs onnxscript: pip install '.[export]' in sdnet's clone"
    assert text in refused(capsys, run, "--format", "onnx")
    assert export._possible(None, print) == ["safetensors", "pt2"]
    assert f"left out: {text}" in capsys.readouterr().out


def test_what_cannot_be_exported_is_named(run, tmp_path, capsys, monkeypatch):
    parent = tmp_path / "several"
    for name in ("a", "b"):
        shutil.copytree(run, parent / "sweep" / name)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty} is not a run folder: it has no config" in refused(capsys, empty)
    for folder in (parent, parent / "sweep"):
        err = refused(capsys, folder)
        assert f"2 below it are: name one, e.g. {parent / 'sweep' / 'a'}" in err
    assert "--format must be of safetensors, pt2, onnx, got 'h5'" in refused(
        capsys, run, "--format", "pt2,h5"
    )
    linked = parent / "sweep" / "a"
    (linked / "export").symlink_to(empty)
    assert "export is a link that leads out of it" in refused(capsys, linked)
    assert not list(empty.iterdir())
    RunFolder(run).set_status("diverged", "the loss is nan")
    assert "diverged: the loss is nan" in refused(capsys, run)
    RunFolder(run).set_status("completed")
    state = RunFolder(run).load_checkpoint("best")
    RunFolder(run).save_checkpoint(state | {"model": {"fc.weight": torch.zeros(2)}}, "best")
    assert "its checkpoint is not of its network" in refused(capsys, run)
    os.remove(run / "checkpoints" / "best.pt")
    assert "has no checkpoint best.pt yet" in refused(capsys, run)


class Square(BasicBlock):
    """A block of one's own whose branch ends in what is not linear."""

    def branch(self, x):
        return super().branch(x).square()


def test_a_branch_that_cannot_take_its_survival_probability_is_named(small, monkeypatch, capsys):
    name = f"{__name__}.Square"
    monkeypatch.setenv("SDNET_ALLOW_TARGETS", name)
    trainer = small(f"model.block._target_={name}", "trainer.epochs=1")
    trainer.fit()
    err = refused(capsys, trainer.run.path)
    assert (
        "the branch of layer1.0 cannot take its survival probability in: it ends in square" in err
    )


MODELS = {
    "torchvision.models.resnet18(num_classes=7)": ["model=resnet_imagenet", "model.depth=18"],
    "sdnet.resnet_imagenet(depth=18, activation='silu', num_classes=7)": [
        *("model=resnet_imagenet", "model.depth=18", "model.activation=silu")
    ],
    "sdnet.resnet_cifar(depth=11, block=sdnet.Bottleneck, order='pre', num_classes=7)": [
        *("model.depth=11", "model.block._target_=sdnet.models.blocks.Bottleneck"),
        "model.order=pre",
    ],
    "sdnet.tiny_resnet(blocks=[1, 1, 1], num_classes=7)": [
        *("model=tiny_resnet", "model.blocks=[1,1,1]", "model.granularity=subset")
    ],
}


@pytest.mark.parametrize("text", MODELS)
def test_the_call_that_is_told_makes_what_the_weights_are_for(text):
    config = composed(*MODELS[text])
    told, plain = plain_network(config, 7, 3)
    assert told == text
    state = dict(build.build_model(config, 7, 3).state_dict())  # which says nothing of p_l
    for network in (plain, eval(told)):
        network.load_state_dict(state, strict=True)


def test_torchvisions_class_is_for_colour_images_alone():
    told, plain = plain_network(composed("model=resnet_imagenet", "model.depth=18"), 7, 1)
    assert told == "sdnet.resnet_imagenet(depth=18, num_classes=7, in_channels=1)"
    assert plain.conv1.in_channels == 1


@pytest.mark.parametrize("library", [OF_TIMM, OF_TORCHVISION])
def test_of_a_network_by_name_it_is_the_librarys_own(library):
    node = {"_target_": library, "name": "x", "arch": "resnet18", "rescale": "eval", "options": {}}
    if library == OF_TIMM:
        timm = pytest.importorskip("timm")
        told, plain = plain_network({"model": node | {"options": {"stem_width": 8}}}, 7, 1)
        assert told == "timm.create_model('resnet18', stem_width=8, num_classes=7, in_chans=1)"
        assert isinstance(plain, timm.models.ResNet) and plain.conv1.in_channels == 1
    else:
        told, plain = plain_network({"model": node}, 7, 3)
        assert told == "torchvision.models.resnet18(num_classes=7)"
        assert isinstance(plain, torchvision.models.ResNet) and plain.fc.out_features == 7
