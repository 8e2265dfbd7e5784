import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sdnet import LinearDecay, resnet_cifar, resnet_imagenet, tiny_resnet
from sdnet.analysis.cost import network_cost
from sdnet.analysis.plots import plot_curves, plot_survival


def test_the_cost_of_resnet_110_is_what_counting_by_hand_gives():
    cost = network_cost(resnet_cifar(110, schedule=LinearDecay(0.5)), (3, 32, 32))
    conv = 9 * 32 * 32 * 16 * 16  # multiply-adds of a 3x3 convolution in the first stage
    assert [b.branch_macs for b in cost.blocks] == ([2 * conv] * 18) + 2 * (
        [1.5 * conv] + [2 * conv] * 17
    )
    assert cost.macs == 9 * 32 * 32 * 3 * 16 + sum(b.branch_macs for b in cost.blocks) + 640
    assert cost.parameters == 1_727_962
    assert cost.expected_blocks == pytest.approx(40.25)
    saved = sum((1 - b.survival) * b.branch_macs for b in cost.blocks)
    assert cost.expected_macs == pytest.approx(cost.macs - saved)


def test_a_projection_is_counted_apart_from_the_branch_that_a_gate_saves():
    cost = network_cost(resnet_imagenet(50), (3, 224, 224))
    assert cost.macs == pytest.approx(4.09e9, rel=0.005)  # torchvision's table: 4.09 GFLOPS
    assert cost.parameters == 25_557_032
    shortcuts = [b.shortcut_macs for b in cost.blocks]
    assert [i for i, macs in enumerate(shortcuts) if macs] == [0, 3, 7, 13]
    assert shortcuts[0] == 56 * 56 * 64 * 256


@pytest.mark.parametrize(
    "model",
    [
        resnet_cifar(20, "bottleneck", shortcut="subsample"),
        resnet_imagenet(18, order="pre", activation="silu"),
        tiny_resnet(),
    ],
    ids=["cifar", "imagenet", "tiny"],
)
def test_the_cost_is_what_torch_counts_and_needs_no_values(model):
    cost = network_cost(model, (3, 33, 33))
    model = model.eval().to("meta")
    assert network_cost(model, (3, 33, 33)) == cost
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 33, 33, device="meta"))
    flops = [
        sum(counter.get_flop_counts()[f"ResNet.{name}.{i}"].values())
        for name in model.layers
        for i in range(len(getattr(model, name)))
    ]
    assert [2 * (b.branch_macs + b.shortcut_macs) for b in cost.blocks] == flops
    assert 2 * cost.macs == counter.get_total_flops()


def test_figures_are_drawn_for_one_row_and_for_many(tmp_path):
    row = {"lr": 0.1, "train_loss": 1.0, "val_error": None, "test_error": 50.0}
    rows = [
        row | {"epoch": e, "lr": 0.1 if e < 3 else 0.01, "val_error": 9.0 + e} for e in (1, 2, 3)
    ]
    for name, some in (("one", [row | {"epoch": 1}]), ("many", rows)):
        plot_curves(some, 1, "title", tmp_path / f"{name}.png")
    plot_survival([1.0, 0.5], [1, 1], "title", tmp_path / "survival.png")
    for file in ("one", "many", "survival"):
        assert (tmp_path / f"{file}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert math.isfinite(rows[0]["lr"])
