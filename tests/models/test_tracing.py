"""Networks and masks that torch traces, scripts or exports: no draw is kept for good."""

import pytest
import torch
import torchvision.ops
from torch import nn
from torchvision.models import ConvNeXt, ResNet
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from sdnet import (
    BasicBlock,
    DropPath,
    GateSampler,
    StochasticDepth,
    Uniform,
    add_stochastic_depth,
    resnet_cifar,
    set_gates,
    skip_branches,
    stochastic_depth,
)
from sdnet.models.gates import GRANULARITIES

# TorchScript is deprecated, and an extractor sees that the two modes differ.
pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.randn(4, 3, 8, 8)


def extracted(model, x, **options):
    extractor = create_feature_extractor(model, {"fc": "logits"}, tracer_kwargs=options)
    return lambda x: extractor(x)["logits"]


TRACED = {
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
    "script": lambda model, x: torch.jit.script(torch.fx.symbolic_trace(model)),
    "extractor": extracted,
    "trace": lambda model, x: torch.jit.trace(model, x),
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
    "strict export": lambda model, x: torch.export.export(model, (x,), strict=True).module(),
}
MASKED = {name: TRACED[name] for name in ("fx", "export")} | {
    "script": lambda model, x: torch.jit.script(model),
    "trace": lambda model, x: torch.jit.trace(model, x, check_trace=False),
}


def network(granularity="batch", survival=0.5):
    return resnet_cifar(8, schedule=Uniform(survival), granularity=granularity)


@pytest.mark.parametrize("how", TRACED)
def test_in_evaluation_mode_a_traced_network_is_the_network(how):
    model = network().eval()
    set_gates(model, GateSampler(model, seed=0).draw(0, 4))  # those of a training step
    assert torch.equal(TRACED[how](model, X)(X), model(X))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("how", TRACED)
def test_in_training_mode_a_traced_network_is_refused(how, granularity):
    model = network(granularity)
    for gates in (None, GateSampler(model, seed=0).draw(0, 4)):
        set_gates(model, gates)
        with pytest.raises((RuntimeError, torch.jit.Error), match="training mode draws its gates"):
            TRACED[how](model, X)(X)


def test_constant_depth_is_traced_in_training_mode_unless_gates_were_set():
    model = network(survival=1.0)
    assert torch.equal(torch.fx.symbolic_trace(model)(X), model(X))
    set_gates(model, [True, False, True])
    with pytest.raises(RuntimeError, match="training mode draws its gates"):
        torch.fx.symbolic_trace(model)(X)


def test_a_feature_extractor_that_keeps_blocks_whole_keeps_their_gates():
    model = network()
    traced = extracted(model, X, leaf_modules=[BasicBlock])
    for step in range(8):
        set_gates(model, GateSampler(model, seed=0).draw(step, 4))
        assert torch.equal(traced(X), model(X))
    set_gates(model, None)
    assert len({traced(X).sum().item() for _ in range(30)}) > 4  # of eight


@pytest.mark.parametrize("training", [True, False])
def test_scripting_a_network_says_what_to_script(training):
    with pytest.raises(RuntimeError, match=r"torch.jit.script\(torch.fx.symbolic_trace\(model"):
        torch.jit.script(network().train(training))


TINY = {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 32}


def tiny_vit():
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", **TINY, drop_path_rate=0.1)


REWRITTEN = {
    "resnet": lambda: ResNet(TorchvisionBlock, [1, 1, 1, 1]),
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, None, 2)], stochastic_depth_prob=0.1),
    "timm vit": tiny_vit,
}


@pytest.mark.parametrize("how", ["fx", "script", "trace", "export"])
@pytest.mark.parametrize("name", REWRITTEN)
def test_a_rewritten_network_is_traced_at_full_depth_or_refused(name, how):
    model, x = REWRITTEN[name](), torch.randn(4, 3, 32, 32)
    cut = add_stochastic_depth if name == "resnet" else skip_branches
    cut(model, schedule=Uniform(0.5), rescale="eval")
    gates = GateSampler(model, seed=0).draw(0, 4)
    for given in (None, gates):
        set_gates(model, given)
        with pytest.raises((RuntimeError, torch.jit.Error), match="training mode draws its gates"):
            TRACED[how](model, x)(x)
    model.eval()
    assert torch.allclose(TRACED[how](model, x)(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"torch.jit.script\(torch.fx.symbolic_trace\(model"):
        torch.jit.script(model)


class Masked(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.linear, self.mask = nn.Linear(3, 3), mask

    def forward(self, x):
        return x + self.mask(self.linear(x))


class Called(nn.Module):
    """It calls the function itself, in a file that is not sdnet's."""

    def forward(self, x):
        return stochastic_depth(x, 0.5, self.training)


@pytest.mark.parametrize("how", MASKED)
@pytest.mark.parametrize(
    "mask",
    [
        StochasticDepth(0.5),
        StochasticDepth(0.5, "batch"),
        DropPath(0.5),
        DropPath(0.5, False),
        Called(),
    ],
    ids=repr,
)
def test_a_traced_mask_is_drawn_at_every_call(mask, how):
    model, x = Masked(mask).train(), torch.randn(8, 3)
    traced = MASKED[how](model, x)
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        expected = model(x)
        torch.manual_seed(seed)
        assert torch.equal(traced(x), expected)
        seen.add(expected.sum().item())
    assert len(seen) >= 2  # all that there is with one gate for the batch
    assert torch.equal(MASKED[how](model.eval(), x)(x), x + model.linear(x))


def test_the_scripted_function_is_torchvisions_and_refuses_what_it_cannot_mean():
    scripted, x = torch.jit.script(stochastic_depth), torch.randn(16, 3)
    for mode in ("row", "batch"):
        torch.manual_seed(3)
        expected = torchvision.ops.stochastic_depth(x, 0.4, mode)
        torch.manual_seed(3)
        assert torch.equal(scripted(x, 0.4, True, mode), expected)
    assert scripted(x, 0.4, False) is x
    for p, mode in ((1.0, "row"), (-0.1, "row"), (0.4, "rows")):
        with pytest.raises(torch.jit.Error, match="AssertionError"):
            scripted(x, p, True, mode)
    assert torch.jit.script(DropPath(0))(x) is x  # a whole number for a probability
