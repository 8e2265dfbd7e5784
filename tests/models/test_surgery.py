"""Networks of others, their branches behind gates, against themselves as they were."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sdnet import (
    DropPath,
    GateSampler,
    LinearDecay,
    StochasticDepth,
    add_stochastic_depth,
    restore_branches,
    set_gates,
    skip_branches,
)
from sdnet.models.cutting.drops import KNOWN, imported
from sdnet.models.cutting.gate import Gate
from sdnet.models.gates import gated_modules
from tests.models.networks import WITH_DROP_PATH, WITHOUT

N = 5
NETWORKS = WITH_DROP_PATH | WITHOUT


def made(name):
    """The network, and one like it with gates; images for both."""
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    plain = make().double()
    for parameter in plain.parameters():  # what begins with zeros, e.g. a layer scale, shows little
        parameter.data = torch.randn_like(parameter) * 0.2
    return plain, copy.deepcopy(plain), torch.randn(N, 3, size, size).double()


def gated(net, name, **options):
    if name in WITH_DROP_PATH:
        return skip_branches(net, **options)
    return add_stochastic_depth(net, LinearDecay(0.5), **options)


def drop_paths(net):
    kinds = (DropPath, StochasticDepth, *imported(KNOWN))
    return [module for module in net.modules() if isinstance(module, kinds)]


def gradients(net, x):
    net.zero_grad()
    out = net(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return out, {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_and_names_stay_as_they_were(name):
    plain, net, x = made(name)
    before = repr(net)
    rows = gated(net, name)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in net.named_buffers()] == [n for n, _ in plain.named_buffers()]
    with torch.no_grad():
        assert torch.equal(net.eval()(x), plain.eval()(x))
    assert [row.module for row in rows] == [
        n for n, m in net.named_modules() if isinstance(m, Gate)
    ]
    for changed in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert len(gated_modules(changed)) == len(rows)
        with torch.no_grad():
            assert torch.equal(changed(x), plain(x))
    assert restore_branches(net) == len(rows)
    assert repr(net) == before
    assert type(net) is type(plain) and not gated_modules(net)
    assert {type(m) for m in net.modules()} == {type(m) for m in plain.modules()}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("granularity", ["batch", "subset"])
def test_with_open_gates_it_is_the_network_without_drop_path(name, granularity):
    plain, net, x = made(name)
    L = len(gated(net, name, granularity=granularity, rescale="none"))
    for module in drop_paths(plain):
        module.eval()
        module.train = lambda mode=True: None
    set_gates(net, torch.ones(L, *[N] * (granularity == "subset"), dtype=torch.bool))
    torch.manual_seed(1)  # for dropout, should there be any
    out, grads = gradients(net.train(), x)
    for module in drop_paths(plain):
        module.training = False
    plain.train()
    for module in drop_paths(plain):
        module.training = False
    torch.manual_seed(1)
    expected, of_plain = gradients(plain, x)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, of_plain, rtol=1e-9, atol=1e-9)
    for one, other in zip(net.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def frozen(net):
    """In training mode, but BatchNorm sees rows one by one, and nothing else is random."""
    for module in net.train().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
            module.eval()
    return net


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_a_subset_are_those_of_a_mask(name):
    masks, subsets, x = made(name)
    gated(masks, name, granularity="sample", rescale="none")
    gated(subsets, name, granularity="subset", rescale="none")
    gates = GateSampler(subsets, seed=3).draw(0, N)
    gates[0] = True
    assert (gates.sum(1) < N).any()
    found = []
    for net in (frozen(masks), frozen(subsets)):
        set_gates(net, gates)
        found.append(gradients(net, x))
    (one, of_one), (two, of_two) = found
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(of_one, of_two, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_mask_is_what_the_drop_path_module_did(name):
    """Row by row: the network with gates against the one whose modules were told what to draw."""
    plain, net, x = made(name)
    if name in WITHOUT:
        pytest.skip("it has no such module")
    rows = gated(net, name, granularity="sample")
    gates = (
        torch.rand(len(rows), N)
        < torch.tensor([0.5 + (row.survival == 1) for row in rows])[:, None]
    )
    set_gates(net, gates)
    survival = {row.module: (row.survival, gate) for row, gate in zip(rows, gates, strict=True)}
    for path, module in plain.named_modules():
        if path in survival and module in drop_paths(plain):
            told = [
                g for row, g in survival.items() if row == path or row.startswith(f"{path}__call")
            ]
            calls = iter(told)

            def drop(x, calls=calls):
                p, gate = next(calls)
                return x * (gate.double() / p).view(-1, *[1] * (x.ndim - 1))

            module.forward = drop
    one, of_one = gradients(frozen(net), x)
    two, of_two = gradients(frozen(plain), x)
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(of_one, of_two, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_behind_closed_gates_nothing_runs(name):
    _, net, x = made(name)
    rows = gated(net, name)
    branches = {}
    for block in net.modules():
        for path, layers in getattr(type(block), "branch_layers", {}).items():
            branches[block.get_submodule(path)] = [block.get_submodule(p) for p in layers]
    assert len(branches) == len(rows)

    def fail(*_):
        raise AssertionError("called")

    outside = [m for m in net.modules() if not isinstance(m, Gate)]
    inner = {m for layers in branches.values() for m in layers if list(m.parameters())}  # no ReLU
    for layer in inner:
        layer.register_forward_pre_hook(fail)
    assert inner < set(outside)
    set_gates(net.train(), torch.zeros(len(rows), dtype=torch.bool))
    net(x)
