"""Folding: a plain network with the folded weights gives what the network with gates gives."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from sdnet import (
    LinearDecay,
    Uniform,
    add_stochastic_depth,
    resnet_cifar,
    resnet_imagenet,
    restore_branches,
    set_survival,
    skip_branches,
    tiny_resnet,
)
from sdnet.models.fold import fold
from sdnet.models.gates import RESCALES, Gated, gated_modules


def tiny_convnext(**options):
    blocks = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 1)]
    return models.ConvNeXt(blocks, stochastic_depth_prob=0.2, num_classes=10, **options)


def tiny_vit():
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return models.VisionTransformer(image_size=32, patch_size=16, num_classes=10, **sizes)


def tiny_swin():
    sizes = {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": [2, 2]}
    return models.SwinTransformer([4, 4], **sizes, num_classes=10)


def of_timm(name, **options):
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=10, drop_path_rate=0.2, **options)


SHAPES = {"depth": 2, "img_size": 32}
SWIN = {"depths": (1, 2), "num_heads": (1, 2), "embed_dim": 16, "img_size": 32, "window_size": 2}
FOREIGN = {
    "resnet": lambda: models.resnet18(num_classes=10),
    "vit": tiny_vit,
    "convnext": tiny_convnext,
    "swin": tiny_swin,
    "timm vit": lambda: of_timm("vit_tiny_patch16_224", **SHAPES),
    "timm vit with LayerScale": lambda: of_timm("deit3_small_patch16_224", **SHAPES),
    "timm convnext": lambda: of_timm("convnext_atto", depths=(1, 1, 1, 1)),
    "timm swin": lambda: of_timm("swin_tiny_patch4_window7_224", **SWIN),
    "timm efficientnet": lambda: of_timm("efficientnet_b0"),
}
OURS = {
    "post": lambda **k: resnet_cifar(8, **k),
    "pre": lambda **k: resnet_cifar(8, order="pre", activation="silu", **k),
    "bottleneck": lambda **k: resnet_cifar(11, "bottleneck", shortcut="projection", **k),
    "tiny": lambda **k: tiny_resnet(10, blocks=(1, 1, 1), **k),
}


@torch.no_grad()
def moved(model):
    """In evaluation mode and in double precision, no parameter or statistic what it began as."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand_like(tensor)
    return model.double().eval()


@torch.no_grad()
def assert_folded(model, plain):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, state = torch.randn(3, 3, 32, 32, dtype=torch.float64), fold(model)
    expected = model(x)
    plain = plain.double().eval()
    plain.load_state_dict(before)
    unfolded = plain(x)
    plain.load_state_dict(state)
    folded = plain(x)
    scale = expected.abs().max()
    assert (folded - expected).abs().max() < 1e-9 * scale < (unfolded - expected).abs().max()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", FOREIGN)
def test_somebody_elses_class_loads_folded_weights_and_gives_the_same(name):
    model = FOREIGN[name]()
    if name in ("resnet", "vit"):
        add_stochastic_depth(model, LinearDecay(0.3), rescale="eval")
    else:
        skip_branches(model, schedule=LinearDecay(0.3), rescale="eval")
    plain = FOREIGN[name]()
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert_folded(moved(model), plain)


@pytest.mark.parametrize("name", OURS)
def test_our_own_class_without_schedule_loads_folded_weights_and_gives_the_same(name):
    model = moved(OURS[name](schedule=LinearDecay(0.3), rescale="eval"))
    assert_folded(model, OURS[name](schedule=Uniform(1.0)))


def test_a_resnet_of_ours_becomes_torchvisions():
    model = moved(resnet_imagenet(18, 10, LinearDecay(0.3)))
    assert_folded(model, models.resnet18(num_classes=10))


@pytest.mark.parametrize("rescale", RESCALES)
def test_where_nothing_is_multiplied_the_weights_stay_bit_for_bit(rescale):
    survival = 1.0 if rescale == "eval" else 0.5
    for model in (resnet_cifar(8, schedule=Uniform(survival), rescale=rescale), tiny_vit()):
        if not gated_modules(model):
            add_stochastic_depth(model, Uniform(survival), rescale=rescale)
        state = fold(model.eval())
        assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())


class Own(Gated):
    """A branch of any layers, weighted as documented."""

    def __init__(self, *layers):
        super().__init__(0.5, "batch", "eval")
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        weight, _ = self.branch_weight(x)
        return x + weight * self.layers(x)


class Unweighted(Own):
    def forward(self, x):
        return x + self.layers(x)


class Seen(Own):
    def forward(self, x):
        branch = self.layers(x)
        return x + self.branch_weight(x)[0] * branch + branch.mean()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(self.linear(x))


def test_a_block_of_ones_own_is_folded_whatever_the_side_of_its_weight():
    block = Own(nn.GELU(), nn.Linear(4, 4), nn.Identity(), nn.Dropout(0.5)).eval()
    plain = copy.deepcopy(block)
    set_survival(plain, [1.0])
    plain.load_state_dict(fold(block))
    x = torch.randn(3, 4)
    assert torch.allclose(plain(x), block(x), atol=1e-6)


class Standardized(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(x, self.weight / self.weight.std(), self.bias)


LINEAR = nn.Linear(4, 4)
ENDS = {
    "it ends in gelu, which is no linear layer": Own(nn.Linear(4, 4), nn.GELU()),
    "it ends in a LayerNorm without weight": Own(nn.LayerNorm(4, elementwise_affine=False)),
    "it computes nothing": Own(nn.Identity()),
    "its last layer, linear, is called twice": Own(Twice()),
    "has no weights of its own": Own(LINEAR, nn.GELU(), nn.Sequential(LINEAR)),
    "its block does not multiply by that": Unweighted(nn.Linear(4, 4)),
    "the weight of its last layer is computed": Own(Standardized(4, 4, 1), nn.Flatten()),
    "no weights": Own(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
    "what it ends in is used elsewhere too": Seen(nn.Linear(4, 4)),
    "it is in training mode": Own(nn.Linear(4, 4)).train(),
}


@pytest.mark.parametrize("reason", ENDS)
def test_a_branch_that_cannot_take_its_factor_is_named(reason):
    model = nn.Sequential(nn.Linear(4, 4), ENDS[reason])
    model.train("training" in reason)
    with pytest.raises(ValueError, match=f"^the branch of 1 cannot take its .* in: .*{reason}"):
        fold(model)


def test_of_a_rewritten_block_the_class_of_before_takes_them():
    model = tiny_convnext()
    skip_branches(model, rescale="eval", schedule=Uniform(0.5))
    plain = copy.deepcopy(moved(model))
    restore_branches(plain)
    assert type(plain.features[1][0]) is models.convnext.CNBlock
    assert_folded(model, plain)
