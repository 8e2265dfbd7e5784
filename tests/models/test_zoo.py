"""Networks of timm and torchvision by name."""

import difflib
import sys

import pytest
import torch

from sdnet import Constant, LinearDecay, Uniform
from sdnet.models.classifier import classifier_names
from sdnet.models.gates import gated_modules, set_gates
from sdnet.models.schedules import ScheduleError
from sdnet.models.zoo import timm_model, torchvision_model

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
VIT = "vit_tiny_patch16_224"
TINY = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}  # no arch is that small
SHAPE = {"num_classes": 5, "in_channels": 3}


def vit(schedule=None, **settings):
    schedule = schedule or LinearDecay(0.8, rule="timm")
    return timm_model(VIT, schedule=schedule, options=TINY, **SHAPE | settings)


@pytest.mark.parametrize(
    "make, arch, plain",
    [
        (timm_model, "convnext_atto", lambda: timm.create_model("convnext_atto", num_classes=5)),
        (timm_model, "resnet10t", lambda: timm.create_model("resnet10t", num_classes=5)),
        (torchvision_model, "resnet18", lambda: torchvision.models.resnet18(num_classes=5)),
        (torchvision_model, "swin_t", lambda: torchvision.models.swin_t(num_classes=5)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_network_is_the_librarys_with_gates_from_the_schedule(make, arch, plain):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make(arch, schedule=LinearDecay(0.8, rule="timm"), **SHAPE)
        torch.manual_seed(3)
        plain = plain()
    assert type(model).__name__ == type(plain).__name__
    own, theirs = model.state_dict(), plain.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[n], theirs[n]) for n in own)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), plain.eval()(x))
    gates = gated_modules(model)
    assert gates[0].survival == 1.0 and gates[-1].survival == pytest.approx(0.8)
    assert {(gate.granularity, gate.rescale) for gate in gates} == {("batch", "train")}


def test_what_a_closed_gate_skips_is_not_computed_and_settings_reach_the_gates():
    model = vit(Uniform(0.5), granularity="subset", rescale="none", in_channels=2).train()
    gates = gated_modules(model)
    assert len(gates) == 4 and {(g.granularity, g.rescale) for g in gates} == {("subset", "none")}
    seen = []
    model.blocks[1].mlp.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    set_gates(model, torch.tensor([[True, False, True]] * 4))
    assert model(torch.randn(3, 2, 32, 32)).shape == (3, 5)
    assert seen == [2]


def test_a_network_that_takes_no_drop_path_rate_has_its_residual_blocks_cut():
    with torch.device("meta"):
        model = timm_model("hrnet_w18_small", schedule=LinearDecay(0.5), **SHAPE)
    assert len(gated_modules(model)) > 20 and gated_modules(model)[-1].survival == 0.5


def test_a_drop_path_rate_is_what_the_schedule_gives_the_last_block():
    assert gated_modules(vit(drop_path_rate=0.2))[-1].survival == pytest.approx(0.8)
    vit(Constant(), drop_path_rate=0)
    for rate, schedule, found in ((0.1, LinearDecay(0.8), 0.8), (0.2, Constant(), 1)):
        message = rf"^drop_path_rate={rate} contradicts the schedule.* survival of {found}:.*p_L="
        with pytest.raises(ValueError, match=message):
            vit(schedule, drop_path_rate=rate)
    with pytest.raises(ValueError, match=r"^drop_path_rate must be a drop prob.* got 1.5"):
        vit(drop_path_rate=1.5)


@pytest.mark.parametrize(
    "make, arch, more, message",
    [
        (timm_model, "vit_tinny", {}, "arch=vit_tinny is no network of timm; did you mean .*tiny"),
        (timm_model, "hf-hub:a/b", {}, "arch=hf-hub:a/b is no network of timm"),
        (torchvision_model, "resnet17", {}, "no network of torchvision; did you mean resnet18"),
        (torchvision_model, "raft_large", {}, "arch=raft_large is no network of torchvision"),
        (torchvision_model, "squeezenet1_1", {}, "arch=squeezenet1_1 cannot skip: SqueezeNet has"),
        (timm_model, "densenet121", {}, "arch=densenet121 cannot skip: DenseNet has neither"),
        (torchvision_model, "resnet18", {"in_channels": 1}, "images with 3 channels, got 1"),
        (timm_model, VIT, {"options": {"foo": 1}}, "built with options=.*takes no 'foo'"),
        (timm_model, VIT, {"options": "foo"}, "options must be arguments by name, got 'foo'"),
        (timm_model, VIT, {"options": {"checkpoint_path": "a"}}, "must not hold checkpoint_path"),
        (torchvision_model, "resnet18", {"options": {"weights": "DEFAULT"}}, "hold weights"),
        (timm_model, "convnext_atto", {"granularity": "row"}, "^granularity must be one of batch"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_what_cannot_be_is_one_message(make, arch, more, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message) as raised:
        make(arch, schedule=LinearDecay(), **SHAPE | more)
    assert "\n" not in str(raised.value)


def test_a_schedules_mistake_is_the_schedules():
    with pytest.raises(ScheduleError):
        vit(lambda stage_blocks, progress=1.0: [0.5])


def test_timm_need_not_be_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=f"^arch={VIT} needs timm.*: pip install timm"):
        vit()


def test_the_classifier_is_the_last_layer():
    with torch.device("meta"):
        assert classifier_names(vit()) == ["head.weight", "head.bias"]
        for arch, name in (("convnext_tiny", "classifier.2"), ("vit_b_16", "heads.head")):
            model = torchvision_model(arch, schedule=Constant(), **SHAPE)
            assert classifier_names(model) == [f"{name}.weight", f"{name}.bias"]
        two = timm.create_model("deit_tiny_distilled_patch16_224")
        assert {n.partition(".")[0] for n in classifier_names(two)} == {"head", "head_dist"}
    assert classifier_names(torch.nn.Linear(2, 2)) == []


# Weights from a file.


@pytest.fixture
def saved(tmp_path):
    """Writes what is given, and returns the file's name."""

    def save(content, name="weights.pt"):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return save


def test_weights_come_from_a_file_whatever_its_kind(saved, tmp_path):
    before = timm.create_model(VIT, num_classes=5, **TINY).state_dict()
    tensors = str(tmp_path / "weights.safetensors")
    pytest.importorskip("safetensors.torch").save_file(before, tensors)
    for file in (saved(before), tensors, saved({"model": before, "step": 3}, "best.pth")):
        after = vit(pretrained_file=file).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_classifier_for_other_classes_is_new_and_a_line_says_so(saved, caplog):
    before = timm.create_model(VIT, num_classes=7, **TINY).state_dict()
    file = saved(before)
    with caplog.at_level("INFO", "sdnet"), torch.random.fork_rng():
        torch.manual_seed(3)
        after = vit(pretrained_file=file).state_dict()
        torch.manual_seed(3)
        fresh = vit().state_dict()
    assert [r.getMessage() for r in caplog.records] == [
        f"{file}: its classifier is for 7 classes; that for 5 is new"
    ]
    for name in after:
        assert torch.equal(after[name], (fresh if name.startswith("head.") else before)[name])


def test_weights_that_do_not_fit_are_named_also_where_the_network_is_only_tried(saved):
    good = timm.create_model(VIT, num_classes=5, **TINY).state_dict()
    lacking = {name: tensor for name, tensor in good.items() if name != "cls_token"}
    other = good | {"norm.weight": torch.zeros(3), "norm.bias": torch.zeros(3)}
    for state, message in (
        (lacking, "this VisionTransformer: it lacks cls_token$"),
        (good | {"x.y": torch.zeros(1)}, "it has besides x.y$"),
        (other, r"it has in other shapes norm.weight \(3,\) for \(24,\), norm.bias"),
        ({"a": torch.zeros(1)}, r"it lacks cls_token, pos_embed, [\w.]+ and \d+ more; it has besi"),
        ([1, 2], "must hold a state_dict: tensors by name"),
        ({"a": difflib.SequenceMatcher()}, "holds something else than tensors and plain values"),
    ):
        file = saved(state)
        for device in ("cpu", "meta"):
            with torch.device(device), pytest.raises(ValueError, match=message) as raised:
                vit(pretrained_file=file)
            assert str(raised.value).startswith(f"pretrained_file={file} ")


def test_a_file_that_changed_is_not_taken_for_what_it_was(saved):
    from sdnet.models.pretrained import digest_of

    state = vit().state_dict()
    digest = digest_of(saved(state))
    assert len(digest) == 16
    vit(pretrained_file=saved(state), pretrained_digest=digest)
    file = saved(state | {"cls_token": torch.ones(1, 1, 24)})
    with pytest.raises(ValueError, match="is not the file that the run was begun with"):
        vit(pretrained_file=file, pretrained_digest=digest)
