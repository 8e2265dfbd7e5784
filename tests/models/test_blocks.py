import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sdnet import BasicBlock, Bottleneck, set_gates
from sdnet.models.blocks import PadShortcut

BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
# (in_channels, out_channels, stride, shortcut)
SHAPES = {
    "identity": (8, 8, 1, "pad"),
    "pad": (4, 8, 2, "pad"),
    "pad at stride 1": (4, 8, 1, "pad"),
    "subsample": (4, 8, 2, "subsample"),
    "subsample, equal channels": (8, 8, 2, "subsample"),
    "projection": (4, 8, 2, "projection"),
}
kinds = pytest.mark.parametrize("kind", BLOCKS)
orders = pytest.mark.parametrize("order", ["post", "pre"])
activations = pytest.mark.parametrize("activation", ["relu", "silu"])
shapes = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture
def make(scrambled):
    """A double-precision block, a signed input for it, and what its reference is called with."""

    def build(kind, order="post", activation="relu", shape="identity", **options):
        channels, out_channels, stride, shortcut = SHAPES[shape]
        options = {"order": order, "activation": activation, "shortcut": shortcut} | options
        block = scrambled(BLOCKS[kind](channels, out_channels, stride, **options))
        x = torch.randn(4, channels, 5, 7, dtype=torch.float64)

        def settings(weight, training):
            return kind, out_channels, stride, weight, training, order, activation, shortcut

        return block, x, settings

    return build


def branch_modules(block):
    return {n: m for n, m in block.named_children() if n.startswith(("conv", "bn"))}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@shapes
@activations
@orders
@kinds
def test_output_and_gradients_match_the_functional_reference(
    kind, order, activation, shape, training, make, reference_block
):
    block, x, settings = make(kind, order, activation, shape, survival=0.3)
    block.train(training)
    set_gates(block, [True])
    x.requires_grad_()
    inputs = [x, *block.parameters()]
    expected = reference_block(block, x, *settings(1.0 if training else 0.3, training))
    out = block(x)
    assert_close(out, expected)
    direction = torch.randn_like(out)
    assert_close(
        torch.autograd.grad(out, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
    )


@shapes
@activations
@orders
@kinds
def test_closed_gate_leaves_activation_of_shortcut_and_never_calls_the_branch(
    kind, order, activation, shape, make, reference_block
):
    block, x, settings = make(kind, order, activation, shape, survival=0.5)
    expected = reference_block(block, x, *settings(0.0, True))
    assert order == "pre" or activation == "silu" or (expected >= 0).all()

    def fail(*_):
        raise AssertionError("the branch ran")

    for module in branch_modules(block).values():
        module.register_forward_pre_hook(fail)
    set_gates(block, [True])
    with pytest.raises(AssertionError, match="the branch ran"):
        block(x)
    set_gates(block, [False])
    assert_close(block(x), expected)
    block.rectified_input = True  # true or not, it may only ever spare a ReLU of the input itself
    if activation == "silu" or block.downsample is not None:
        assert_close(block(x), expected)


@shapes
@activations
@orders
@kinds
def test_input_is_never_modified_in_place(kind, order, activation, shape, make):
    some = [[1, 0, 1, 0]]
    cases = ("batch", [True]), ("batch", [False]), ("sample", some), ("subset", some)
    for granularity, gates in cases:
        block, x, _ = make(kind, order, activation, shape, survival=0.5, granularity=granularity)
        block.rectified_input = True  # the network's promise for some blocks; here x is signed
        before = x.clone()
        set_gates(block, gates)
        for training in (True, False):
            block.train(training)(x)
            assert x._version == 0
            assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("rescale", "training", "weight"),
    [
        ("eval", True, 1.0),
        ("eval", False, 0.25),
        ("train", True, 4.0),
        ("train", False, 1.0),
        ("none", True, 1.0),
        ("none", False, 1.0),
    ],
)
@pytest.mark.parametrize("granularity", ["batch", "sample", "subset"])
@orders
def test_branch_is_weighted_on_the_rescale_side_only(
    order, granularity, rescale, training, weight, make, reference_block
):
    options = {"survival": 0.25, "granularity": granularity, "rescale": rescale}
    block, x, settings = make("basic", order, **options)
    block.train(training)
    set_gates(block, [True] if granularity == "batch" else [[True] * 4])
    if granularity == "subset" and weight > 1:
        weight = 1.0  # all rows were chosen: nothing has to be made up for
    assert_close(block(x), reference_block(block, x, *settings(weight, training)))


@orders
@kinds
def test_sample_gates_make_each_row_full_or_shortcut_only(kind, order, make, reference_block):
    block, x, settings = make(
        kind, order, shape="pad", survival=0.5, granularity="sample", rescale="train"
    )
    set_gates(block, [[True, False, False, True]])
    weight = torch.tensor([2.0, 0.0, 0.0, 2.0], dtype=torch.float64).view(4, 1, 1, 1)
    assert_close(block(x), reference_block(block, x, *settings(weight, True)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", ["identity", "pad", "subsample"])
@activations
@orders
@kinds
def test_a_subset_of_rows_is_a_batch_of_its_own_for_the_branch(
    kind, order, activation, shape, layout, make, reference_block
):
    options = {"survival": 0.5, "granularity": "subset", "rescale": "train"}
    block, x, settings = make(kind, order, activation, shape, **options)
    x = x.to(memory_format=layout).requires_grad_()
    set_gates(block, [[True, False, False, True]])
    inputs = [x, *block.parameters()]

    def reference(rows, weight):
        return reference_block(block, x[rows], *settings(weight, True))

    run, left = reference([0, 3], 2.0), reference([1, 2], 0.0)
    expected = torch.stack([run[0], left[0], left[1], run[1]])
    target = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * target).sum(), inputs)
    out = block(x)
    assert out.is_contiguous(memory_format=layout)
    assert_close(out, expected)
    assert_close(torch.autograd.grad((out * target).sum(), inputs), gradients)


def test_a_subset_without_rows_runs_nothing(make):
    block, x, _ = make("basic", survival=0.5, granularity="subset", rescale="train")
    block.branch = None
    set_gates(block, [[False] * 4])
    assert_close(block(x), x.relu())


@pytest.mark.parametrize(
    ("rescale", "preserved"), [("eval", True), ("train", True), ("none", False)]
)
@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_expectation_over_gates_is_the_eval_output_when_rescaled(
    granularity, rescale, preserved, make
):
    options = {"survival": 0.3, "granularity": granularity, "rescale": rescale}
    block, x, _ = make("basic", "pre", **options)
    evaluated = block.eval()(x)
    block.training = True  # the block draws, its BatchNorms stay in eval: f_l is one function

    def trained(gate):
        set_gates(block, [gate] if granularity == "batch" else [[gate] * 4])
        return block(x)

    expectation = 0.3 * trained(True) + 0.7 * trained(False)
    if preserved:
        assert_close(expectation, evaluated)
    else:
        assert (expectation - evaluated).abs().max() > 0.1


def test_own_draws_of_rows_have_the_expectation_of_the_full_block(make, assert_rate):
    block, x, _ = make("basic", "pre", survival=0.3, granularity="sample", rescale="train")
    block.eval()
    branch = block.branch(x)
    block.training = True
    n, kept = 500, torch.zeros(4)
    for _ in range(n):
        weight = ((block(x) - x) * branch).sum((1, 2, 3)) / branch.square().sum((1, 2, 3))
        opened = weight > 1
        assert_close(weight, opened.double() / 0.3, rtol=1e-9, atol=1e-9)
        kept += opened
    assert_rate(kept, n, 0.3)


@orders
@kinds
def test_batch_norm_of_a_skipped_branch_does_not_move(kind, order, make):
    block, x, _ = make(kind, order, shape="projection", survival=0.5)
    branch = branch_modules(block)

    def statistics():
        buffers = ((f"{n}.{k}", b) for n, m in branch.items() for k, b in m.named_buffers())
        return {name: tensor.clone() for name, tensor in buffers}

    before = statistics()
    set_gates(block, [False])
    block(x)
    after = statistics()
    assert before
    assert all(torch.equal(before[name], after[name]) for name in before)
    set_gates(block, [True])
    block(x)
    assert not any(torch.equal(before[name], tensor) for name, tensor in statistics().items())


@pytest.mark.parametrize("fill", [True, False], ids=["zero gradients", "no gradients"])
@kinds
def test_sgd_decays_a_skipped_block_with_zero_gradients_and_freezes_it_without(kind, fill, make):
    block, x, _ = make(kind, shape="projection", survival=0.5)
    lr, momentum, decay = 0.1, 0.9, 0.01
    optimizer = torch.optim.SGD(block.parameters(), lr, momentum, weight_decay=decay, nesterov=True)
    set_gates(block, [True])
    block(x).square().sum().backward()
    weights = {n: p for n, p in block.named_parameters() if not n.startswith("downsample")}
    first = {n: p.grad + decay * p.detach() for n, p in weights.items()}  # the momentum it leaves
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    before = {n: p.detach().clone() for n, p in weights.items()}

    set_gates(block, [False])
    block(x).square().sum().backward()
    assert all(p.grad is None for p in weights.values())
    assert all(p.grad is not None for p in block.downsample.parameters())
    if fill:
        for p in weights.values():
            p.grad = torch.zeros_like(p)
    optimizer.step()
    for n, p in weights.items():
        if fill:
            gradient = decay * before[n]
            buffer = momentum * first[n] + gradient
            assert_close(p.detach(), before[n] - lr * (gradient + momentum * buffer))
        else:
            assert torch.equal(p, before[n])


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (5, 8), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [(3, 3), (3, 7)], ids=str)
@pytest.mark.parametrize("subsample", [False, True], ids=["pad", "subsample"])
def test_option_a_matches_a_slow_loop_and_the_branchs_size(size, channels, subsample, option_a):
    x = torch.randn(2, channels[0], *size, dtype=torch.float64)
    out = PadShortcut(*channels, 2, subsample)(x)
    assert_close(out, option_a(x, channels[1], 2, subsample))
    branch = BasicBlock(*channels, 2).double().branch(x)
    assert out.shape == branch.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "mid"}, "order must be one of post, pre, got 'mid'"),
        ({"activation": "gelu"}, "activation must be one of relu, silu, got 'gelu'"),
        (
            {"shortcut": "A"},
            "shortcut must be one of pad, subsample, projection, got 'A'",
        ),
        ({"granularity": "row"}, "granularity must be one of batch, sample, subset, got 'row'"),
        ({"rescale": "test"}, "rescale must be one of eval, train, none, got 'test'"),
        *(
            ({"survival": p}, rf"survival must be .* 0 < survival <= 1 .*, got {p!r}")
            for p in (0.0, -0.1, 1.5, float("nan"), True, "0.5", None)
        ),
        ({"in_channels": 16}, "pad and subsample .* 16 -> 8; use shortcut=projection"),
        ({"in_channels": 16, "shortcut": "subsample"}, "16 -> 8; use shortcut=projection"),
    ],
    ids=str,
)
@kinds
def test_bad_settings_are_refused_by_name_and_value(kind, options, message):
    with pytest.raises(ValueError, match=message):
        BLOCKS[kind](**({"in_channels": 8, "out_channels": 8} | options))


def test_bottleneck_refuses_a_width_that_four_does_not_divide():
    with pytest.raises(ValueError, match=r"out_channels must be divisible by 4 .* got 6"):
        Bottleneck(4, 6)


@kinds
def test_survival_by_position_is_a_type_error(kind):
    with pytest.raises(TypeError):
        BLOCKS[kind](8, 8, 1, 0.5)


@kinds
def test_projection_removes_channels_and_no_block_has_a_convolution_bias(kind):
    block = BLOCKS[kind](16, 8, 2, shortcut="projection")
    assert block(torch.randn(2, 16, 5, 5)).shape == (2, 8, 3, 3)
    assert all(m.bias is None for m in block.modules() if isinstance(m, nn.Conv2d))
