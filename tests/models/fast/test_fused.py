import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdnet import BasicBlock, LinearDecay, resnet_cifar, set_gates
from sdnet.launch.build import build_trainer
from sdnet.models.fast import fused
from sdnet.training import device
from tests.config.composed import composed
from tests.conftest import ROOT

SHAPES = [
    (4, 32, 8, 8),
    (
        256,
        16,
        8,
        8,
    ),  # from here on enough values for two threads and to go past the caches, and ...
    (71, 48, 9, 9),  # ... a last row that is not full
    (13, 64, 7, 5),
    (2, 100, 3, 3),
    (5, 3, 9, 7),  # nothing but such a row
    (2, 600, 2, 2),
]
functions = pytest.mark.parametrize("add", [False, True], ids=["norm_relu", "norm_add_relu"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder with the library, compiled by two at once."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.delenv("CXX", raising=False)
        with ThreadPoolExecutor(2) as pool:
            made = {future.result() for future in [pool.submit(fused._compiled) for _ in "ab"]}
        assert sorted(made) == list((folder / "sdnet").iterdir())
        yield folder


@pytest.fixture
def kernels(cache):
    fused.enable()
    yield
    fused.disable()


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def operands(shape, dtype=torch.float32, mean=0.0):
    """bn, x, shortcut, dy, with a mean of `mean` standard deviations."""
    channels = shape[1]
    bn = nn.BatchNorm2d(channels, momentum=0.3)
    for tensor in (bn.weight.data, bn.running_var):
        tensor.uniform_(0.5, 1.5)
    for tensor in (bn.bias.data, bn.running_mean):
        tensor.normal_()
    x, shortcut, dy = torch.randn(3, *shape)
    x += mean * torch.randn(channels, 1, 1)
    return bn, *(t.to(dtype, memory_format=torch.channels_last) for t in (x, shortcut, dy))


def result(add, bn, x, shortcut, dy):
    """Output, gradients and buffers by name; the last step's name."""
    bn, inputs = deepcopy(bn), {"x": x.detach().clone()}
    if add:
        inputs["shortcut"] = shortcut.detach().clone()
    for tensor in inputs.values():
        tensor.requires_grad_()
    y = (
        fused.norm_add_relu(bn, *inputs.values(), 0.7)
        if add
        else fused.norm_relu(bn, x=inputs["x"])
    )
    inputs |= dict(bn.named_parameters())
    gradients = torch.autograd.grad(y, list(inputs.values()), dy)
    values = {
        "y": y.detach(),
        **dict(zip(inputs, gradients, strict=True)),
        **dict(bn.named_buffers()),
    }
    return values, y.grad_fn.name()


def relative(value, reference):
    difference = value.detach().double() - reference.detach().double()
    return float(difference.norm() / reference.detach().double().norm())


def errors(values, reference):
    return {name: relative(values[name], value) for name, value in reference.items()}


def reference(add, bn, *tensors):
    return result(add, deepcopy(bn).double(), *(t.double() for t in tensors))[0]


@functions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_gradients_and_statistics_match_float64(shape, dtype, add, kernels, two_threads):
    given = operands(shape, dtype)
    values, step = result(add, *given)
    assert step == "_NormReluBackward"
    assert values["x"].is_contiguous(memory_format=torch.channels_last)
    for name, error in errors(values, reference(add, *given)).items():
        rounded = dtype == torch.bfloat16 and values[name].dtype == dtype
        assert error < (2e-3 if rounded else 4e-7), name  # 2**-9 is one rounding to bfloat16


@functions
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_large_mean_costs_no_more_than_it_does_torch(shape, add, kernels, two_threads):
    given = operands(shape, mean=300.0)
    expected = reference(add, *given)
    # Not the gradients: an output that is rounded to the other side of 0 makes another one.
    expected = {name: expected[name] for name in ("y", "running_mean", "running_var")}
    ours = errors(result(add, *given)[0], expected)
    fused.disable()
    torchs = errors(result(add, *given)[0], expected)
    assert all(ours[name] <= torchs[name] + 1e-7 for name in ours), (ours, torchs)
    assert ours["running_var"] < 1e-7


@functions
def test_the_same_number_of_threads_gives_the_same_numbers(add, kernels, two_threads):
    given = operands((32, 48, 9, 9))
    first, again = (result(add, *given)[0] for _ in "ab")
    assert all(torch.equal(first[name], again[name]) for name in first)
    torch.set_num_threads(1)
    assert max(errors(result(add, *given)[0], first).values()) < 1e-6


@functions
def test_a_value_that_is_not_a_number_spreads_as_it_does_in_torch(add, kernels):
    bn, x, shortcut, dy = operands((4, 16, 3, 3))
    x[0, 1, 0, 0], x[1, 2, 1, 1], shortcut[2, 3, 0, 0] = float("nan"), float("inf"), float("nan")
    ours = result(add, bn, x, shortcut, dy)[0]
    fused.disable()
    for name, expected in result(add, bn, x, shortcut, dy)[0].items():
        assert torch.equal(ours[name].isfinite(), expected.isfinite()), name


def replaced(bn, **changes):
    for name, value in changes.items():
        setattr(bn, name, value)
    return bn


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


PLAIN = {  # what the kernels leave to torch: bn and x
    "evaluation": lambda bn, x: (bn.eval(), x),
    "float64": lambda bn, x: (bn.double(), x.double()),
    "contiguous": lambda bn, x: (bn, x.contiguous()),
    "some rows": lambda bn, x: (bn, x[::2]),
    "cumulative average": lambda bn, x: (replaced(bn, momentum=None), x),
    "no statistics": lambda bn, x: (nn.BatchNorm2d(16, track_running_stats=False), x),
    "no parameters": lambda bn, x: (nn.BatchNorm2d(16, affine=False), x),
    "SyncBatchNorm": lambda bn, x: (nn.SyncBatchNorm.convert_sync_batchnorm(bn).eval(), x),
    "a BatchNorm of one's own": lambda bn, x: (Doubled(16), x),
    "a tensor of one's own": lambda bn, x: (bn, nn.Parameter(x)),
    "bfloat16 parameters": lambda bn, x: (bn.bfloat16(), x.bfloat16()),
    "GroupNorm": lambda bn, x: (nn.GroupNorm(4, 16), x),
    "Identity": lambda bn, x: (nn.Identity(), x),
}


@functions
@pytest.mark.parametrize("case", PLAIN)
def test_what_the_kernels_do_not_do_is_left_to_torch(case, add, kernels):
    bn, x, shortcut, _ = operands((4, 16, 3, 3))
    bn, x = PLAIN[case](bn, x)
    shortcut = shortcut[: len(x)].to(x.dtype).requires_grad_()
    twin, before = deepcopy(bn), x.clone()
    out = twin(x)
    y = fused.norm_add_relu(bn, x, shortcut, 0.7) if add else fused.norm_relu(bn, x)
    assert torch.equal(y, F.relu(torch.add(shortcut, out, alpha=0.7) if add else out))
    assert torch.equal(x, before)
    assert y.grad_fn is None or y.grad_fn.name() != "_NormReluBackward"
    for name, buffer in twin.named_buffers():
        assert torch.equal(buffer, dict(bn.named_buffers())[name])


def test_a_shortcut_of_another_type_is_left_to_torch(kernels):
    bn, x, shortcut, _ = operands((4, 16, 3, 3))
    twin, shortcut = deepcopy(bn), shortcut.bfloat16()
    y = fused.norm_add_relu(bn, x, shortcut, 0.7)
    assert torch.equal(y, F.relu(torch.add(shortcut, twin(x), alpha=0.7)))


def test_parameters_that_are_not_contiguous_are_left_to_torch(kernels):
    bn, x, *_ = operands((4, 16, 3, 3))
    bn.weight = nn.Parameter(torch.rand(16, 2)[:, 1])
    y, twin = fused.norm_relu(bn, x), deepcopy(bn)
    assert y.grad_fn.name() != "_NormReluBackward"
    torch.testing.assert_close(y, F.relu(twin(x)))


@pytest.mark.parametrize(
    "hook", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hooks_are_called(hook, kernels):
    bn, x, shortcut, _ = operands((4, 16, 3, 3))
    seen = []
    getattr(bn, f"register_{hook}")(lambda *given: seen.append(1))
    fused.norm_add_relu(bn, x.requires_grad_(), shortcut, 0.7).sum().backward()
    assert seen == [1]


def test_shapes_that_do_not_match_are_torchs_error(kernels):
    bn, x, shortcut, _ = operands((4, 16, 3, 3))
    with pytest.raises(RuntimeError, match="size of tensor"):
        fused.norm_add_relu(bn, x, shortcut[:3], 1.0)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused.norm_relu(bn, x[:1, :, :1, :1])
    with pytest.raises(RuntimeError, match="running_mean should contain 8 elements"):
        fused.norm_relu(bn, x[:, :8].contiguous(memory_format=torch.channels_last))


def test_a_second_derivative_is_refused(kernels):
    bn, x, *_ = operands((4, 16, 3, 3))
    (gradient,) = torch.autograd.grad(
        fused.norm_relu(bn, x.requires_grad_()).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_torch_compile_sees_torchs_operations(kernels):
    bn, x, *_ = operands((4, 16, 3, 3))
    twin = deepcopy(bn)
    y = torch.compile(fused.norm_relu, backend="eager", fullgraph=True)(bn, x)
    assert torch.equal(y, F.relu(twin(x)))


def count_fused(node, seen):
    """Steps of ours in a graph."""
    if node is None or node in seen:
        return 0
    seen.add(node)
    return (node.name() == "_NormReluBackward") + sum(
        count_fused(n, seen) for n, _ in node.next_functions
    )


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 1 + 2 * 5),  # the stem and, in each open block, both of its BatchNorms
        ({"shortcut": "projection", "rescale": "train"}, 1 + 2 * 5),
        ({"block": "bottleneck", "depth": 20}, 1 + 3 * 5),
        ({"order": "pre"}, 2 * 5 + 1),
        ({"activation": "silu"}, 0),
        ({"granularity": "sample", "rescale": "train"}, 1 + 6),
    ],
    ids=str,
)
def test_a_network_uses_the_kernels_and_equals_the_functional_reference(
    options, steps, kernels, reference_cifar_net
):
    net = resnet_cifar(**({"depth": 14, "schedule": LinearDecay(0.5)} | options))
    net.to(memory_format=torch.channels_last)
    for bn in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        bn.weight.data.uniform_(0.5, 1.5)
        bn.bias.data.normal_(0, 0.5)
    gates = torch.tensor([True, True, False, True, True, True])
    survival = [1 - l / 12 for l in range(1, 7)]
    weights = [1 / p for p in survival] if options.get("rescale") == "train" else [1.0] * 6
    if options.get("granularity") == "sample":
        gates = gates[:, None] ^ (torch.arange(6) == 1)
    set_gates(net, gates)
    weights = [w * g.double().view(-1, 1, 1, 1) for w, g in zip(weights, gates, strict=True)]
    x = torch.randn(6, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    defaults = {"block": "basic", "order": "post", "activation": "relu", "shortcut": "pad"}
    kind, *others = ({**defaults, **options}[name] for name in defaults)
    channels = [c * (4 if kind == "bottleneck" else 1) for c in (16, 32, 64)]
    twin = deepcopy(net).double()

    def expected(weights, training):
        given = x.double(), kind, (2, 2, 2), channels, weights, training
        return reference_cifar_net(twin, *given, *others)

    def gradients(logits, module):
        F.cross_entropy(logits, torch.arange(6)).backward()
        return {n: p.grad for n, p in module.named_parameters()}

    logits, reference = net(x), expected(weights, True)
    assert count_fused(logits.grad_fn, set()) == steps
    assert relative(logits, reference) < 1e-5
    found, wanted = gradients(logits, net), gradients(reference, twin)
    # A closed block has no gradient.
    assert {n for n, g in found.items() if g is None} == {
        n for n, g in wanted.items() if not g.any() and options.get("granularity") != "sample"
    }
    found = {n: g for n, g in found.items() if g is not None}
    # An activation that is rounded to the other side of 0 makes a difference of up to a hundredth.
    assert max(errors(found, {n: wanted[n] for n in found}).values()) < 2e-2
    twin.load_state_dict(net.state_dict())
    evaluated = survival if options.get("rescale", "eval") == "eval" else [1.0] * 6
    assert relative(net.eval()(x), expected(evaluated, False)) < 1e-5


def test_recomputed_activations_change_neither_gradients_nor_statistics(kernels):
    net = resnet_cifar(20, schedule=LinearDecay(0.5)).to(memory_format=torch.channels_last)
    set_gates(net, [True] * 8 + [False])
    x = torch.randn(4, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    states = []
    for group in (None, 2):
        twin = deepcopy(net)
        twin.checkpoint_blocks = group
        twin(x).sum().backward()
        gradients = {f"grad {n}": p.grad for n, p in twin.named_parameters() if p.grad is not None}
        states.append(twin.state_dict() | gradients)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


class Halved(BasicBlock):
    def branch(self, x):
        return super().branch(x) / 2


def test_a_branch_of_ones_own_is_honoured(kernels):
    block = Halved(16, 16)
    x = torch.randn(4, 16, 5, 5).contiguous(memory_format=torch.channels_last)
    expected = F.relu(x + block.branch(x))
    assert torch.equal(block(x), expected)
    plain = BasicBlock(16, 16)
    plain.load_state_dict(block.state_dict())
    plain.branch = lambda x: BasicBlock.branch(plain, x) / 2
    assert torch.equal(plain(x), expected)


def test_a_run_trains_with_the_kernels_and_the_next_one_without(kernels):
    sums = {}
    for setting in ("true", "false"):
        small = ["model.depth=8", "dataset.size=8", "trainer.device=cpu", "trainer.threads=1"]
        trainer = build_trainer(composed(*small, f"trainer.fused={setting}"), None)
        assert fused.enabled() == (setting == "true")
        for images, labels in trainer.loaders["train"].batches(0):
            trainer.train_step(images, labels)
        sums[setting] = trainer.sums
    assert not torch.equal(sums["true"], sums["false"])
    torch.testing.assert_close(sums["true"][0], sums["false"][0], rtol=1e-3, atol=0)


def test_what_cannot_be_had_is_one_warning(caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "cc").write_text("#!/bin/sh\necho 'fused.cpp:1: error: no' >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    for compiler, where, channels_last, reason in (
        ("no-such-compiler", "cpu", True, "no C++ compiler no-such-compiler"),
        (str(tmp_path / "cc"), "cpu", True, "cc failed: fused.cpp:1: error: no"),
        ("c++", "cuda", True, "it is for the CPU"),
        ("c++", "cpu", False, "it needs trainer.channels_last=true"),
    ):
        monkeypatch.setenv("CXX", compiler)
        caplog.clear()
        device.fuse(torch.device(where), True, channels_last)
        assert not fused.enabled()
        (record,) = caplog.records
        assert record.getMessage().startswith("trainer.fused=true is without effect: ")
        assert reason in record.getMessage()
    assert list(tmp_path.glob("sdnet/*")) == []
    bn, x, *_ = operands((4, 16, 3, 3))
    assert torch.equal(fused.norm_relu(deepcopy(bn), x), F.relu(bn(x)))


def test_a_kept_library_is_for_its_source_compiler_and_processor(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)  # nothing can be compiled
    assert fused._compiled().parent == cache / "sdnet"
    other = tmp_path / "fused.cpp"
    other.write_text(fused.SOURCE.read_text() + "// another one")
    for owner, name, value in (
        (fused, "SOURCE", other),
        (fused, "FLAGS", fused.FLAGS[1:]),
        (fused.platform, "machine", lambda: "another one"),
        (torch.cpu, "get_capabilities", dict),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            with pytest.raises(RuntimeError, match=r"there is no C\+\+ compiler c\+\+"):
                fused._compiled()
    monkeypatch.setenv("CXX", "c++ -g")
    with pytest.raises(RuntimeError, match=r"there is no C\+\+ compiler c\+\+"):
        fused._compiled()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_there_is_one_openmp_in_a_process(cache):
    code = (
        "from sdnet.models.fast import fused; fused.enable();"
        "print({l.split()[-1] for l in open('/proc/self/maps') if 'omp' in l.rpartition('/')[2]})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count(".so") == 1, done.stdout + done.stderr
