"""What is found of a network of one's own before its run begins."""

import threading

import pytest
import torch
from torch import nn

from sdnet import DropPath, skip_branches
from sdnet.config.errors import ConfigError
from sdnet.launch.own_network import try_network
from sdnet.models.gates import GRANULARITIES, Gated


class Mlp(Gated):
    """A block as the documentation has it, with a mistake where `mistake` says so."""

    def __init__(self, granularity, mistake=None):
        super().__init__(0.5, granularity, "train")
        self.mistake = mistake
        self.layers = nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Dropout(0.5)
        )
        nn.init.zeros_(self.layers[2].weight)  # a branch that begins with nothing
        nn.init.zeros_(self.layers[2].bias)

    def forward(self, x):
        weight, rows = self.branch_weight(x)
        if self.mistake == "no gate":
            return x + self.layers(x)
        if isinstance(weight, float) and weight == 0.0:
            return x
        if self.mistake == "no rows":
            return x + (weight if isinstance(weight, float) else weight.max()) * self.layers(x)
        if rows is None:
            return x + weight * self.layers(x)
        return x.index_add(0, rows, weight * self.layers(x[rows]))


class Net(nn.Module):
    def __init__(self, block, outputs=3):
        super().__init__()
        self.stem, self.blocks = nn.Linear(12, 4), nn.Sequential(block)
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, outputs)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x.flatten(1)))))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_sound_network_passes_and_nothing_of_it_or_of_torch_is_moved(granularity):
    model = Net(Mlp(granularity)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    try_network(model, (3, 2, 2), 3)
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.blocks[0].gate is None
    try_network(model.to("meta"), (3, 2, 2), 3)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_block_whose_gate_makes_no_difference_is_named(granularity):
    with pytest.raises(ConfigError, match=r"^model: Mlp gives the same whether its gate is open"):
        try_network(Net(Mlp(granularity, "no gate")), (3, 2, 2), 3)


@pytest.mark.parametrize("granularity", ["sample", "subset"])
def test_a_block_that_adds_its_branch_to_closed_rows_is_named(granularity):
    with pytest.raises(ConfigError, match=r"^model: Mlp adds its branch to rows whose gate is cl"):
        try_network(Net(Mlp(granularity, "no rows")), (3, 2, 2), 3)


class Averaged(nn.Module):
    """A block of somebody else, whose branch reads what has no row for each image."""

    def __init__(self):
        super().__init__()
        self.layer, self.drop_path = nn.Linear(4, 4), DropPath(0.5)

    def forward(self, x):
        mean = x.mean(0, keepdim=True)
        return x + mean + self.drop_path(self.layer(x) * mean)


def test_a_branch_that_cannot_run_on_some_rows_is_found_before_the_run():
    for granularity in ("batch", "sample"):
        model = Net(Averaged())
        skip_branches(model, granularity=granularity)
        try_network(model, (3, 2, 2), 3)
    model = Net(Averaged())
    skip_branches(model, granularity="subset")
    with pytest.raises(ConfigError, match=r"fails on .* Averaged: .* must be batch or sample, got"):
        try_network(model, (3, 2, 2), 3)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_no_network_for_the_data_is_told_with_both_shapes(device):
    model = Net(Mlp("batch"), outputs=2).to(device)
    with pytest.raises(ConfigError, match=r"^model: Net must give logits \(N, 3\).*got \(4, 2\)"):
        try_network(model, (3, 2, 2), 3)
    with pytest.raises(
        ConfigError, match=r"^model: Net fails on images \(4, 3, 5, 5\), whose size is.*Runtime"
    ):
        try_network(model, (3, 5, 5), 3)
    model.head = nn.Identity()
    model.norm.forward = lambda x: (x, x)
    with pytest.raises(ConfigError, match=r"got tuple for \(4, 3, 2, 2\)"):
        try_network(model, (3, 2, 2), 3)


@pytest.mark.parametrize("where", ["network", "block"])
def test_what_cannot_be_copied_is_told_in_one_line(where):
    model = Net(Mlp("batch"))
    (model if where == "network" else model.blocks[0]).lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"^model: Net is tried on a copy.*TypeError: .*lock.*$"):
        try_network(model, (3, 2, 2), 3)
