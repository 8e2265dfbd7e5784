import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdnet import BasicBlock, GateSampler, resnet_cifar, set_gates
from sdnet.models.gates import GRANULARITIES, Gated, set_survival

SURVIVAL = [1.0, 0.95, 0.8, 0.5, 0.2, 0.05]


def gated_stack(granularity, survival=SURVIVAL, rescale="none"):
    return nn.Sequential(*(Gated(p, granularity, rescale) for p in survival))


def block_stack(granularity, survival=(0.6, 0.5, 0.4)):
    blocks = (BasicBlock(4, 4, survival=p, granularity=granularity) for p in survival)
    return nn.Sequential(*blocks).double()


def draws(sampler, steps, batch_size=1):
    """(steps, L) for `batch`, (steps * batch_size, L) for the others."""
    gates = [sampler.draw(step, batch_size) for step in range(steps)]
    return torch.cat([g.T if g.ndim == 2 else g[None] for g in gates])


@pytest.mark.parametrize(("granularity", "batch_size"), [("batch", 32), ("sample", 8)])
def test_gates_are_open_at_each_blocks_survival_probability(granularity, batch_size, assert_rate):
    sampler = GateSampler(gated_stack(granularity), seed=0)
    gate = sampler.draw(0, batch_size)
    assert gate.shape == ((6, batch_size) if granularity == "sample" else (6,))
    assert gate.dtype == torch.bool
    assert gate.device.type == "cpu"
    gates = draws(sampler, 2000 if granularity == "batch" else 500, batch_size)
    assert_rate(gates.sum(0), len(gates), SURVIVAL)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_draw_depends_on_seed_and_step_only(granularity):
    model = gated_stack(granularity, [0.5] * 64)
    sampler = GateSampler(model, seed=3)
    before = torch.get_rng_state()
    first = [sampler.draw(step, 4) for step in range(5)]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    again = GateSampler(gated_stack(granularity, [0.5] * 64), seed=3)
    for step in reversed(range(5)):
        assert torch.equal(again.draw(step, 4), first[step])
    every = [*first, *(GateSampler(model, seed=4).draw(step, 4) for step in range(5))]
    assert len({tuple(gates.flatten().tolist()) for gates in every}) == 10  # seed + step is no key


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_gates_of_neighbouring_steps_blocks_and_rows_are_uncorrelated(granularity):
    steps, rows = 2000, 4
    sampler = GateSampler(gated_stack(granularity, [0.5] * 4), seed=1)
    gates = torch.stack([sampler.draw(step, rows) for step in range(steps)]).flatten(1).double()
    pairs = torch.cat([gates[:-1], gates[1:]], dim=1)  # every gate of a step and of the next
    off_diagonal = torch.corrcoef(pairs.T) - torch.eye(pairs.shape[1])
    assert off_diagonal.abs().max() < 5 / steps**0.5


def test_subsets_have_exact_sizes_in_every_part_of_a_batch_and_each_row_the_same_chance(
    assert_rate,
):
    sampler = GateSampler(gated_stack("subset"), seed=0)
    gates = torch.stack([sampler.draw(step, [7, 6]) for step in range(1000)])
    sizes = {7: [7, 7, 6, 4, 1, 1], 6: [6, 6, 5, 3, 1, 1]}  # 0.5 * 7 is rounded to even
    for part, size in zip(gates.split([7, 6], dim=2), (7, 6), strict=True):
        assert (part.sum(2) == torch.tensor(sizes[size])).all()
        for gate, chosen in zip(part.unbind(1), sizes[size], strict=True):
            assert_rate(gate.sum(0), len(gate), torch.full((size,), chosen / size))
    assert len({tuple(g.flatten().tolist()) for g in gates[:, 3]}) > 400  # of 35 * 20


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gates_are_hashed_numbers_below_the_survival_of_the_moment(granularity):
    model = gated_stack(granularity, [0.5] * 3)
    sampler = GateSampler(model, seed=3)
    for survival in ([0.5, 0.5, 0.5], [0.9, 0.25, 0.4], [0.1, 1.0, 0.6]):
        set_survival(model, survival)
        for step in (7, 8):
            text = json.dumps([3, "gates", step]).encode()
            key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
            random = np.random.Generator(np.random.Philox(key=key))
            uniform = random.random((3, 1 if granularity == "batch" else 8))
            gates = sampler.draw(step, 8)
            if granularity == "subset":
                for gate, row, p in zip(gates, uniform, survival, strict=True):
                    chosen = np.sort(row.argsort()[: max(1, round(8 * p))])
                    assert gate.nonzero()[:, 0].tolist() == chosen.tolist()
            else:
                expected = uniform < np.array(survival)[:, None]
                expected = expected[:, 0] if granularity == "batch" else expected
                assert np.array_equal(gates, expected)


@pytest.mark.parametrize("value", [None, "1", 1.0, True, -1])
def test_a_seed_or_step_that_is_no_whole_number_is_no_stream_of_its_own(value):
    model = gated_stack("batch")
    with pytest.raises(ValueError, match=f"^seed must be whole and at least 0, got {value!r}$"):
        GateSampler(model, seed=value)
    with pytest.raises(ValueError, match=f"^step must be whole and at least 0, got {value!r}$"):
        GateSampler(model, seed=0).draw(value, 4)


def test_a_draw_follows_set_survival(assert_rate):
    model = gated_stack("batch")
    sampler = GateSampler(model, seed=0)
    assert_rate(draws(sampler, 500).sum(0), 500, SURVIVAL)
    set_survival(model, SURVIVAL[::-1])
    assert [m.survival for m in model] == SURVIVAL[::-1]
    assert_rate(draws(sampler, 2000).sum(0), 2000, SURVIVAL[::-1])


@pytest.mark.parametrize(
    ("survival", "message"),
    [
        ([0.5] * 5, "survival must hold 6 values, one per gate, got 5"),
        ([0.5] * 7, "survival must hold 6 values, one per gate, got 7"),
        (0.5, "survival must hold 6 values, one per gate, got 0.5"),
        ([0.5] * 5 + [0.0], "survival must be a number .* got 0.0"),
        ([0.5] * 5 + [1.1], "survival must be a number .* got 1.1"),
    ],
    ids=str,
)
def test_set_survival_refuses_what_does_not_fit_by_name_and_changes_nothing(survival, message):
    model = gated_stack("batch")
    with pytest.raises(ValueError, match=message):
        set_survival(model, survival)
    assert [m.survival for m in model] == SURVIVAL


def test_mixed_granularity_is_refused():
    model = nn.Sequential(*(Gated(0.5, g, "none") for g in GRANULARITIES))
    with pytest.raises(ValueError, match=r"granularity .*batch.*sample"):
        GateSampler(model, seed=0)
    with pytest.raises(ValueError, match=r"granularity .*batch.*sample"):
        set_gates(model, torch.ones(len(model), 4, dtype=torch.bool))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_set_gates_refuses_a_wrong_count_and_leaves_the_gates(granularity):
    model = gated_stack(granularity)
    for n in (0, 5, 7):
        shape = (n,) if granularity == "batch" else (n, 3)
        with pytest.raises(ValueError, match=f"6, one per block, got {n}"):
            set_gates(model, torch.ones(shape, dtype=torch.bool))
    assert all(m.gate is None for m in model)


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        ("batch", ()),
        ("batch", (6, 1)),
        ("batch", (6, 3)),
        ("batch", (6, 3, 1)),
        ("sample", ()),
        ("sample", (6,)),
        ("sample", (6, 3, 1)),
        ("subset", (6,)),
    ],
)
def test_set_gates_refuses_a_wrong_number_of_dimensions(granularity, shape):
    with pytest.raises(ValueError, match="gates must"):
        set_gates(gated_stack(granularity), torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("convert", [torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.clone])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_set_gates_puts_each_gate_on_its_block_in_order_of_depth(granularity, convert):
    model = nn.ModuleDict({"a": gated_stack(granularity), "b": gated_stack(granularity)})
    gates = GateSampler(model, seed=0).draw(0, 3)
    set_gates(model, convert(gates))
    modules = [*model["a"], *model["b"]]
    weights, rows = zip(*[m.branch_weight(torch.zeros(3, 1, 1, 1)) for m in modules], strict=True)
    if granularity == "subset":
        chosen = [[0, 1, 2] if r is None else r.tolist() for r in rows]  # None: all of them
        assert chosen == [gate.nonzero()[:, 0].tolist() for gate in gates]
        assert set(weights) == {1.0}
        return
    assert torch.equal(torch.stack([torch.as_tensor(m.gate) for m in modules]), gates)
    assert rows == (None,) * 12
    if granularity == "batch":
        assert weights == tuple(float(g) for g in gates)
    else:
        assert torch.equal(torch.stack(weights).flatten(1), gates.float())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_without_gates_a_module_draws_its_own_at_the_same_rate(granularity, assert_rate):
    model = gated_stack(granularity)
    set_gates(model, GateSampler(model, seed=0).draw(0, 4))
    set_gates(model, None)
    n, rows = (2000, 1) if granularity == "batch" else (100, 40)
    x = torch.zeros(rows, 1, 1, 1)

    def kept(module):  # survival 1 gives the float 1.0, which is for all rows
        total = 0.0
        for _ in range(n):
            weight, of = module.branch_weight(x)
            mask = torch.as_tensor(weight).flatten().expand(rows)
            total += mask.sum().item() if of is None else len(of)
        return total

    assert_rate([kept(m) for m in model], n * rows, SURVIVAL)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gates_stay_for_a_second_call(granularity):
    model, x = block_stack(granularity), torch.randn(4, 4, 5, 5, dtype=torch.float64)
    sampler = GateSampler(model, seed=0)
    outputs = []
    for step in range(8):
        set_gates(model, sampler.draw(step, 4))
        outputs.append(model(x))
        assert torch.equal(model(x), outputs[-1])
    assert len({out.sum().item() for out in outputs}) > 3  # and each step had its own


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_recomputation_under_checkpointing_gives_the_same_gradients(granularity, use_reentrant):
    model = block_stack(granularity)
    x = torch.randn(4, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    sampler = GateSampler(model, seed=0)
    seen = set()
    for step in range(6):
        gates = sampler.draw(step, 4)
        seen.add(tuple(gates.flatten().tolist()))
        set_gates(model, gates)
        results = []
        for wrap in (False, True):
            model.zero_grad(set_to_none=True)
            x.grad = None
            out = x
            for block in model:
                out = checkpoint(block, out, use_reentrant=use_reentrant) if wrap else block(out)
                torch.rand(7)  # what happens in between must not matter
            out.square().sum().backward()
            results.append([out, x.grad, *(p.grad for p in model.parameters())])
        for plain, recomputed in zip(*results, strict=True):
            assert (plain is None) == (recomputed is None)
            assert plain is None or torch.equal(plain, recomputed)
    assert len(seen) > 2


@pytest.mark.parametrize("granularity", ["sample", "subset"])
def test_gates_for_another_number_of_rows_than_the_batch_are_an_error(granularity):
    model = block_stack(granularity)
    set_gates(model, torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="set for 4 rows, but the batch has 3"):
        model(torch.randn(3, 4, 5, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0.0, "batch", "eval"), "survival must be .* got 0.0"),
        ((0.5, "row", "eval"), "granularity must be one of batch, sample, subset, got 'row'"),
        ((0.5, "batch", "test"), "rescale must be one of eval, train, none, got 'test'"),
    ],
)
def test_gated_refuses_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Gated(*options)


@pytest.mark.parametrize("ndim", [2, 3, 4, 5])
def test_a_mask_has_the_dimensions_of_its_input(ndim):
    module = Gated(0.5, "sample", "none")
    module.gate = torch.tensor([True, False])
    weight, rows = module.branch_weight(torch.ones(2, *[3] * (ndim - 1)))
    assert weight.shape == (2, *[1] * (ndim - 1)) and rows is None
    assert weight.flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("given", [True, False], ids=["given", "drawn"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_an_empty_batch_has_no_logits_and_a_gradient_of_zeros(granularity, training, given):
    model = resnet_cifar(8, schedule=lambda blocks: [0.5] * 3, granularity=granularity)
    model.train(training)
    set_gates(model, GateSampler(model, seed=0).draw(0, 0) if given else None)
    logits = model(torch.randn(0, 3, 8, 8))  # as torchvision's networks
    logits.sum().backward()
    assert logits.shape == (0, 10)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
