from copy import deepcopy
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close
from torchvision.models import resnet as tv

from sdnet import (
    BasicBlock,
    Bottleneck,
    GateSampler,
    LinearDecay,
    ResNet,
    Uniform,
    make_stage,
    resnet_cifar,
    resnet_imagenet,
    set_gates,
    tiny_resnet,
)

BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
orders = pytest.mark.parametrize("order", ["post", "pre"])


def images(n=4, size=9, **options):
    return torch.randn(n, 3, size, size, dtype=torch.float64, **options)


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("shortcut", ["pad", "projection"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@orders
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_small_network_matches_the_functional_reference(
    kind, order, activation, shortcut, training, scrambled, reference_cifar_net
):
    stage_blocks, channels = (2, 1, 2), (8, 16, 32)
    widths = [c // BLOCKS[kind].expansion for c in channels]
    options = {"order": order, "activation": activation, "shortcut": shortcut}
    net = ResNet(BLOCKS[kind], stage_blocks, widths, schedule=LinearDecay(0.5), **options)
    scrambled(net).train(training)
    gates = [True, True, False, True, False]
    set_gates(net, gates)
    weights = [float(g) for g in gates] if training else [0.9, 0.8, 0.7, 0.6, 0.5]
    x = images()
    expected = reference_cifar_net(
        net, x, kind, stage_blocks, channels, weights, training, order, activation, shortcut
    )
    logits = net(x)
    assert_close(logits, expected)
    direction, parameters = torch.randn_like(logits), list(net.parameters())
    ours, theirs = (
        torch.autograd.grad(out, parameters, direction, materialize_grads=True, allow_unused=True)
        for out in (logits, expected)
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize(("depth", "training"), [(18, True), (18, False), (50, False)])
def test_torchvision_weights_load_strictly_and_give_its_logits(depth, training, scrambled):
    theirs = scrambled(getattr(tv, f"resnet{depth}")(num_classes=7)).train(training)
    with torch.device("meta"):
        ours = resnet_imagenet(depth, num_classes=7).train(training)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    x = images(2, 40)
    with torch.no_grad():
        expected, logits = theirs(x), ours(x)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_imagenet_networks_have_torchvisions_names_and_shapes(depth):
    with torch.device("meta"):
        ours, theirs = resnet_imagenet(depth), getattr(tv, f"resnet{depth}")()
    assert list(shapes(ours).items()) == list(shapes(theirs).items())


@pytest.mark.parametrize("shortcut", ["pad", "subsample", "projection"])
@pytest.mark.parametrize(("kind", "depth"), [("basic", 14), ("bottleneck", 20)])
def test_cifar_networks_have_torchvisions_names(kind, depth, shortcut):
    block = {"basic": tv.BasicBlock, "bottleneck": tv.Bottleneck}[kind]
    with torch.device("meta"):
        ours = resnet_cifar(depth, kind, shortcut=shortcut)
        theirs = torchvision.models.ResNet(block, [2, 2, 2, 2])
    names = [n for n in theirs.state_dict() if not n.startswith("layer4.")]
    if shortcut != "projection":
        names = [n for n in names if "downsample" not in n]
    assert list(ours.state_dict()) == names


@pytest.mark.parametrize(
    ("make", "count"),
    [
        # the paper's network without the convolution biases of the authors' code
        (lambda: resnet_cifar(110), 1_727_962),
        # He et al. 2015, table 6: 0.27M, 0.46M, 0.66M, 0.85M
        (lambda: resnet_cifar(20), 269_722),
        (lambda: resnet_cifar(32), 464_154),
        (lambda: resnet_cifar(44), 658_586),
        (lambda: resnet_cifar(56), 853_018),
        # no norm in the stem (-32), one at the end (+128), two on the narrower input (-32 -64)
        (lambda: resnet_cifar(110, order="pre"), 1_727_962),
        # 17w^2 + 12w per block; the first has fewer inputs: (64-16)16 + (128-64)32 + (256-128)64
        (lambda: resnet_cifar(164, "bottleneck"), 464 + 18 * 92_736 - 11_008 + 2_570),
    ],
)
def test_parameter_counts(make, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count


def test_pre_activation_has_a_convolution_stem_a_final_norm_and_bare_projections():
    with torch.device("meta"):
        net = resnet_cifar(14, order="pre", shortcut="projection")
    names = set(shapes(net))
    assert {n for n in names if n.startswith("bn")} == {
        f"bn_last.{n}"
        for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    downsample = {"layer2.0.downsample.0.weight", "layer3.0.downsample.0.weight"}
    assert {n for n in names if "downsample" in n} == downsample


@pytest.mark.parametrize("kind", [np.int64, torch.tensor, np.array], ids="abc")
def test_numbers_of_any_library_make_the_same_network(kind):
    depth, classes, channels = kind(8), kind(7), kind(2)
    model = resnet_cifar(depth, num_classes=classes, in_channels=channels, schedule=Uniform(0.5))
    plain = resnet_cifar(8, num_classes=7, in_channels=2, schedule=Uniform(0.5))
    assert repr(model) == repr(plain)
    numbers = (model.fc.out_features, model.conv1.in_channels, model.blocks[0].survival)
    assert [type(number) for number in numbers] == [int, int, float]
    gates = GateSampler(model, kind(3)).draw(kind(5), kind(4))
    assert torch.equal(gates, GateSampler(plain, 3).draw(5, 4))
    assert resnet_imagenet(kind(18)).fc.out_features == 1000
    stage = make_stage(BasicBlock, 4, 4, 2, drop_rates=[kind(0), Fraction(1, 4)])
    assert [block.survival for block in stage] == [1.0, 0.75]
    with pytest.raises(ValueError, match=r"batch_size must be whole .* got 2\.5"):
        GateSampler(model, 3).draw(5, 2.5)


@pytest.mark.parametrize("depth", [2, 0, -4, 19, 111, 20.0, "20", True])
@pytest.mark.parametrize(("kind", "form"), [("basic", r"6n\+2"), ("bottleneck", r"9n\+2")])
def test_wrong_cifar_depths_are_refused_with_the_form_allowed(kind, form, depth):
    with pytest.raises(ValueError, match=rf"depth must be {form} .*got {depth!r}$"):
        resnet_cifar(depth, kind)


def test_unknown_blocks_and_imagenet_depths_are_refused_with_those_allowed():
    with pytest.raises(ValueError, match="depth must be one of 18, 34, 50, 101, 152, got 20"):
        resnet_imagenet(20)
    with pytest.raises(ValueError, match="block must be one of basic, bottleneck, got 'wide'"):
        resnet_cifar(20, "wide")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage_blocks": ()}, "stage_blocks and stage_widths"),
        ({"stage_blocks": (1, 1, 1)}, "stage_blocks and stage_widths .* got 3 and 2"),
        ({"stage_blocks": (1, 0)}, "stage_blocks must .* got 0$"),
        ({"stage_widths": (4, 8.0)}, "stage_widths must .* got 8.0$"),
        ({"num_classes": 0}, "num_classes must .* got 0$"),
        ({"in_channels": True}, "in_channels must .* got True$"),
        ({"stem": "mnist"}, "stem must be one of cifar, imagenet, got 'mnist'"),
        ({"init": "xavier"}, "init must be one of fan_in, fan_out, got 'xavier'"),
        ({"order": "mid"}, "order must be one of post, pre, got 'mid'"),
        ({"activation": "gelu"}, "activation must be one of relu, silu, got 'gelu'"),
        ({"shortcut": "A"}, "shortcut must be one of .* got 'A'"),
        (
            {"schedule": lambda blocks: [0.5]},
            "schedule must give 2 probabilities, one per block, got 1",
        ),
        ({"schedule": lambda blocks: [0.5, 0.0]}, "survival must be .* got 0.0"),
    ],
)
def test_bad_network_settings_are_refused_by_name(change, message):
    options = {"block": BasicBlock, "stage_blocks": (1, 1), "stage_widths": (4, 8)} | change
    with pytest.raises(ValueError, match=message):
        ResNet(**options)


def test_a_schedule_that_gives_more_probabilities_than_blocks_is_refused():
    with pytest.raises(ValueError, match="3"):
        ResNet(BasicBlock, (1, 1), (4, 8), schedule=lambda blocks: [0.9, 0.8, 0.7])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shortcut", "projection"),
        ("order", "pre"),
        ("activation", "silu"),
        ("granularity", "sample"),
        ("rescale", "train"),
    ],
)
def test_a_setting_of_the_network_is_refused_in_a_block_partial(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be given to the network, not to its block"):
        ResNet(partial(BasicBlock, **{name: value}), (1, 1), (4, 8))


def test_a_block_partial_keeps_settings_of_its_own():
    class Own(BasicBlock):
        def __init__(self, *shape, factor, **options):
            super().__init__(*shape, **options)
            self.factor = factor

    net = ResNet(partial(Own, factor=3), (1, 2), (4, 8), order="pre")
    assert [(type(b), b.factor, b.order) for b in net.blocks] == [(Own, 3, "pre")] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of survival= and drop_rates="),
        ({"survival": [0.5] * 2, "drop_rates": [0.5] * 2}, "exactly one of survival="),
        ({"survival": [0.5]}, "survival must hold 2 values, one per block, got 1"),
        ({"drop_rates": [0.5] * 3}, "drop_rates must hold 2 values, one per block, got 3"),
        ({"survival": [0.5, 0.0]}, "survival must be .* got 0.0"),
        ({"drop_rates": [0.5, 1.0]}, "drop_rates must .* got 1.0"),
        ({"drop_rates": [-0.1, 0.5]}, "drop_rates must .* got -0.1"),
        ({"drop_rates": [float("nan"), 0]}, "drop_rates must .* got nan"),
        ({"drop_rates": 0.1}, "drop_rates must hold 2 values, one per block, got 0.1"),
        ({"survival": LinearDecay()}, "survival must hold 2 values, .* got <.*LinearDecay"),
    ],
)
def test_make_stage_takes_exactly_one_list_in_range_of_a_value_per_block(given, message):
    with pytest.raises(ValueError, match=message):
        make_stage(BasicBlock, 4, 8, 2, **given)


def test_make_stage_refuses_a_stage_without_blocks():
    with pytest.raises(ValueError, match="num_blocks must be whole and at least 1, got 0"):
        make_stage(BasicBlock, 4, 8, 0, survival=[])


def test_blocks_of_make_stage_may_stand_anywhere():
    stage, x = make_stage(BasicBlock, 4, 4, 2, survival=[0.5, 0.5]), torch.randn(2, 4, 5, 5)
    set_gates(stage, [False, False])
    for block in stage:
        assert torch.equal(block(x), x.relu())


@pytest.mark.parametrize("rates", [{"survival": [0.9, 0.8, 0.7]}, {"drop_rates": [0.1, 0.2, 0.3]}])
def test_make_stage_changes_shape_in_the_first_block_only(rates):
    calls = []

    def block(*args, **options):
        calls.append((args, options))
        return nn.Identity()

    stage = make_stage(block, 4, 8, 3, 2, order="pre", **rates)
    assert type(stage) is nn.Sequential
    assert [args for args, _ in calls] == [(4, 8, 2), (8, 8, 1), (8, 8, 1)]
    assert [o.pop("survival") for _, o in calls] == pytest.approx([0.9, 0.8, 0.7])
    assert all(options == {"order": "pre"} for _, options in calls)


@pytest.mark.parametrize(
    ("make", "L"),
    [
        (lambda s: resnet_cifar(110, schedule=s), 54),
        (lambda s: resnet_imagenet(152, schedule=s), 50),
        (lambda s: ResNet(BasicBlock, (1, 4, 2), (4, 4, 4), schedule=s), 7),
    ],
)
def test_survival_falls_linearly_over_all_blocks_across_stages(make, L):
    with torch.device("meta"):
        net = make(LinearDecay(0.2))
    expected = [1 - l / L * 0.8 for l in range(1, L + 1)]
    assert [b.survival for b in net.blocks] == pytest.approx(expected, rel=1e-12)
    assert [m.survival for m in GateSampler(net, 0).modules] == [b.survival for b in net.blocks]


@pytest.mark.parametrize("options", [{}, {"stem": "imagenet"}, {"activation": "silu"}], ids=str)
@orders
def test_skipping_the_relu_of_a_rectified_input_changes_neither_output_nor_gradients(
    order, options, scrambled
):
    options = {"order": order, "schedule": Uniform(0.5)} | options
    as_built = scrambled(ResNet(BasicBlock, (2, 3), (4, 8), **options))
    unaware = deepcopy(as_built)
    assert [b.rectified_input for b in unaware.blocks] == [False, True, False, True, True]
    for block in unaware.blocks:
        block.rectified_input = False
    x = images(size=17, requires_grad=True)
    for gates in ([False] * 5, [True, False, False, True, False]):
        results = []
        for net in (as_built, unaware):
            set_gates(net, gates)
            net.zero_grad(set_to_none=True)
            x.grad = None
            out = net(x)
            out.square().sum().backward()
            results.append([out, x.grad, *(p.grad for p in net.parameters())])
        for skipped, full in zip(*results, strict=True):
            assert (skipped is None) == (full is None)
            assert skipped is None or torch.equal(skipped, full)


def test_a_closed_block_behind_another_of_its_stage_is_its_input_itself():
    net = ResNet(BasicBlock, (2, 2), (4, 8), schedule=Uniform(0.5))
    set_gates(net, [False] * 4)
    same = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, inputs, out: same.append(out is inputs[0]))
    net(images().float())
    assert same == [False, True, False, True]


def test_a_stage_taken_out_of_a_network_still_rectifies_signed_input():
    net = ResNet(BasicBlock, (2, 2), (4, 8), schedule=Uniform(0.5))
    set_gates(net, [False] * 4)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(net.layer1(x), x.clamp(min=0))


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_eval_ignores_gates_and_draws_nothing(granularity, scrambled):
    net = scrambled(resnet_cifar(8, schedule=Uniform(0.3), granularity=granularity)).eval()
    x, before = images(), torch.get_rng_state()
    first = net(x)
    assert torch.equal(net(x), first)
    set_gates(net, torch.zeros((3, 4) if granularity == "sample" else 3, dtype=torch.bool))
    assert torch.equal(net(x), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(net.train()(x), first)


def test_tiny_resnet_defaults():
    net = tiny_resnet()
    assert shapes(net)["fc.weight"] == (100, 128)
    assert [b.conv2.out_channels for b in net.blocks] == [32, 32, 64, 64, 128, 128]
    drops = [1 - b.survival for b in net.blocks]
    assert drops == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16, 0.2], abs=1e-12)
    settings = {(b.granularity, b.rescale, b.order) for b in net.blocks}
    assert settings == {("sample", "train", "post")}
    has_projection = [isinstance(b.downsample, nn.Sequential) for b in net.blocks]
    assert has_projection == [False, False, True, False, True, False]
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 100)


@orders
def test_tiny_resnet_trains_a_step_with_silu(order):
    net = tiny_resnet(7, 0.5, (1, 1, 1), "silu", order=order)
    loss = nn.functional.cross_entropy(net(torch.randn(2, 3, 16, 16)), torch.tensor([0, 6]))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert {b.activation for b in net.blocks} == {"silu"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sd_max": 1.0}, "sd_max .* got 1.0"),
        ({"sd_max": -0.1}, "sd_max .* got -0.1"),
        ({"sd_max": float("nan")}, "sd_max .* got nan"),
        ({"blocks": (2, 2)}, r"blocks must hold 3 numbers, one per stage, got \(2, 2\)"),
        ({"blocks": 2}, "blocks must hold 3 numbers, one per stage, got 2"),
    ],
)
def test_tiny_resnet_refuses_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_resnet(**change)


def fan_in(weight):
    return weight[0].numel()


def fan_out(weight):
    return weight[:, 0].numel()


@pytest.mark.parametrize(
    ("make", "fan"),
    [
        (lambda: resnet_cifar(14, shortcut="projection"), fan_in),
        (lambda: resnet_cifar(14, shortcut="projection", init="fan_out"), fan_out),
        (lambda: resnet_imagenet(18), fan_out),
    ],
    ids=["cifar", "cifar fan_out", "imagenet"],
)
def test_convolutions_start_normal_with_variance_two_over_the_fan(make, fan):
    weights = [m.weight.detach() for m in make().modules() if isinstance(m, nn.Conv2d)]
    z = torch.cat([(w * (fan(w) / 2) ** 0.5).flatten() for w in weights])
    for part in (*z.split([w.numel() for w in weights]), z):
        n = part.numel()
        assert abs(part.mean()) < 5 / n**0.5
        assert abs(part.std() - 1) < 5 / (2 * n) ** 0.5
    assert z.pow(4).mean() == pytest.approx(3, abs=0.1)  # normal, neither uniform nor truncated


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("shortcut", ["pad", "subsample", "projection"])
@orders
def test_channels_last_and_contiguous_inputs_agree(order, shortcut, training, scrambled):
    net = resnet_cifar(8, schedule=Uniform(0.5), order=order, shortcut=shortcut)
    scrambled(net).train(training)
    x = images()
    for gates in ([True, True, True], [True, False, False]):
        set_gates(net, gates)
        expected = net.to(memory_format=torch.contiguous_format)(x)
        for to in (torch.contiguous_format, torch.channels_last):
            net.to(memory_format=to)
            assert_close(net(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize(
    "granularity, given", [("batch", True), ("sample", True), ("subset", True), ("batch", False)]
)
def test_recomputed_activations_give_the_same_gradients_and_statistics(order, granularity, given):
    options = {"schedule": Uniform(0.5), "order": order, "granularity": granularity}
    kept = resnet_cifar(20, **options)
    recomputed = deepcopy(kept)
    recomputed.checkpoint_blocks = 2  # of 3 in a stage
    sampler = GateSampler(kept, seed=0)
    images = torch.randn(6, 3, 8, 8)
    for step in range(3):
        gates = sampler.draw(step, 6) if given else None
        for model in (kept, recomputed):
            set_gates(model, gates)
            with torch.random.fork_rng():
                torch.manual_seed(step)  # for gates that the blocks draw themselves
                model(images).square().sum().backward()
    parameters = zip(kept.parameters(), recomputed.parameters(), strict=True)
    assert any(p.grad is not None for p in kept.parameters())
    for a, b in parameters:
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)
    state = recomputed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in kept.state_dict().items())


def test_recomputation_keeps_fewer_activations():
    saved = {}
    for size in (None, 3):
        model = resnet_cifar(56)
        model.checkpoint_blocks = size
        saved[size] = 0

        def count(tensor, size=size):
            saved[size] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(torch.randn(2, 3, 16, 16))
    assert saved[3] < saved[None] / 4
