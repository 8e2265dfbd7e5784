import math

import pytest
import torch
import torchvision.ops

from sdnet import DropPath, StochasticDepth, stochastic_depth

MODES = ("row", "batch")


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rows_are_kept_at_rate_one_minus_p(p, assert_rate):
    n = 20_000
    out = stochastic_depth(torch.ones(n, 2), p)
    assert torch.equal(out[:, 0], out[:, 1])  # a row lives or dies as a whole
    assert_rate(out[:, 0].count_nonzero(), n, 1 - p)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_batch_mode_keeps_all_or_nothing_at_rate_one_minus_p(p, assert_rate):
    n, x = 2_000, torch.ones(3, 2)
    kept = [stochastic_depth(x, p, mode="batch").count_nonzero().item() for _ in range(n)]
    assert set(kept) == {0, x.numel()}
    assert_rate(kept.count(x.numel()), n, 1 - p)


@pytest.mark.parametrize(("scale_by_keep", "value"), [(True, 1 / 0.7), (False, 1.0)])
def test_survivors_are_divided_by_keep_so_that_only_then_the_mean_stays(scale_by_keep, value):
    n, p = 50_000, 0.3
    out = stochastic_depth(torch.ones(n, 1, dtype=torch.float64), p, scale_by_keep=scale_by_keep)
    assert out.unique().tolist() == pytest.approx([0.0, value], rel=1e-15)
    five_sigma = 5 * value * math.sqrt(p * (1 - p) / n)
    assert out.mean().item() == pytest.approx((1 - p) * value, abs=five_sigma)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 3, 2), (7, 3, 2, 2), (7, 1, 2, 2, 2), (0, 3)])
def test_bit_equal_to_torchvision_under_the_same_seed(shape, dtype, mode):
    x = torch.randn(shape).to(dtype)
    for p in (0.2, 0.5, 0.85):
        torch.manual_seed(1)
        ours = stochastic_depth(x, p, mode=mode)
        after = torch.get_rng_state()
        torch.manual_seed(1)
        theirs = torchvision.ops.stochastic_depth(x, p, mode)
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs)
        assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.0, False), (0.6, False)])
def test_input_itself_is_returned_in_eval_and_at_p_zero_without_a_draw(p, training, mode):
    x, before = torch.randn(4, 3), torch.get_rng_state()
    assert stochastic_depth(x, p, training, mode) is x
    assert StochasticDepth(p, mode).train(training)(x) is x
    assert DropPath(p).train(training)(x) is x
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda p: stochastic_depth(torch.ones(2), p), "p"),
        (lambda p: stochastic_depth(torch.ones(2), p, training=False), "p"),
        (StochasticDepth, "p"),
        (DropPath, "drop_prob"),
    ],
    ids=["function", "function in eval", "StochasticDepth", "DropPath"],
)
@pytest.mark.parametrize("p", [-0.1, 1, 1.5, math.nan])
def test_p_outside_zero_to_below_one_is_refused_by_name_and_value(call, name, p):
    with pytest.raises(ValueError, match=rf"^{name} must .* 0 <= {name} < 1, got {p!r}$"):
        call(p)


@pytest.mark.parametrize(
    "call",
    [lambda m: stochastic_depth(torch.ones(2), 0.5, mode=m), lambda m: StochasticDepth(0.5, m)],
    ids=["function", "StochasticDepth"],
)
def test_unknown_mode_is_refused_by_value(call):
    with pytest.raises(ValueError, match=r"mode must be one of row, batch, got 'rows'"):
        call("rows")


def test_mode_in_torchvisions_position_is_not_taken_for_training():
    with pytest.raises((TypeError, ValueError)):
        stochastic_depth(torch.ones(2), 0.5, "batch")


@pytest.mark.parametrize(
    ("x", "got"), [((torch.ones(2), None), "tuple"), (torch.ones(2).int(), "torch.int32")]
)
def test_what_is_no_tensor_of_floating_point_numbers_is_refused(x, got):
    with pytest.raises(ValueError, match=f"^x must be a tensor of floating-point .* got {got}$"):
        DropPath(0.5)(x)


def test_a_message_is_one_line_whatever_was_given():
    with pytest.raises(ValueError, match=r"^drop_prob must .* got tensor\(\[0.*\.\.\.$") as raised:
        DropPath(torch.rand(300))
    assert len(str(raised.value)) < 200


def test_scalar_is_refused():
    with pytest.raises(ValueError, match="scalar"):
        stochastic_depth(torch.tensor(1.0), 0.5)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (StochasticDepth(0.4, "row"), {"mode": "row"}),
        (StochasticDepth(0.4, "batch"), {"mode": "batch"}),
        (DropPath(0.4), {}),
        (DropPath(0.4, scale_by_keep=False), {"scale_by_keep": False}),
    ],
    ids=repr,
)
def test_modules_compute_the_function(module, options):
    x = torch.randn(9, 3, 2, 2)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = stochastic_depth(x, 0.4, **options)
        torch.manual_seed(seed)
        assert torch.equal(module(x), expected)


def test_repr_shows_the_settings():
    theirs = torchvision.ops.StochasticDepth(0.2, "batch")
    assert repr(StochasticDepth(0.2, "batch")) == repr(theirs)
    assert repr(DropPath(0.2, False)) == "DropPath(drop_prob=0.2, scale_by_keep=False)"


@pytest.mark.parametrize(("scale_by_keep", "slope"), [(True, 1 / 0.6), (False, 1.0)])
def test_gradient_flows_through_kept_rows_only(scale_by_keep, slope):
    x = torch.randn(64, 3, dtype=torch.float64, requires_grad=True)
    out = stochastic_depth(x, 0.4, scale_by_keep=scale_by_keep)
    out.sum().backward()
    kept = out.detach()[:, :1] != 0
    assert 0 < kept.sum() < 64
    torch.testing.assert_close(x.grad, (kept.double() * slope).expand(64, 3))
