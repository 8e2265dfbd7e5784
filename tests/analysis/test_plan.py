import io
import math
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from sdnet import LinearDecay, resnet_cifar, resnet_imagenet, tiny_resnet
from sdnet.analysis import plots
from sdnet.analysis.cost import BlockCost, Cost, network_cost
from sdnet.analysis.plan import show_plan
from sdnet.analysis.plots import plot_curves, plot_survival
from sdnet.runs.identity import run_name


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
    model.train()
    cost = network_cost(model, (3, 33, 33))
    assert model.training and not any(m._forward_hooks for m in model.modules())
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


@pytest.fixture
def drawn(monkeypatch):
    """Draws with a function of `plots`; returns the figure's axes and its title."""
    figures = []
    monkeypatch.setattr(plots.plt, "close", figures.append)

    def draw(plot, *arguments):
        plot(*arguments)
        assert arguments[-1].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        return figures[-1]

    yield draw
    monkeypatch.undo()
    for figure in figures:
        plots.plt.close(figure)


ROW = {"lr": 0.1, "train_loss": 2.0, "train_error": 40.0, "val_error": None, "test_error": 50.0}


def lines(axes):
    """Label, x and y of each line that is not vertical; those of vertical ones are their x."""
    found = [(line.get_label(), *map(list, line.get_data())) for line in axes.lines]
    vertical = [
        (x[0], line) for (_, x, y), line in zip(found, axes.lines, strict=True) if y == [0, 1]
    ]
    return [f for f in found if f[2] != [0, 1]], [x for x, _ in vertical if not math.isnan(x)]


def legend(figure):
    (found,) = figure.legends  # outside of the axes: it covers no data
    return [text.get_text() for text in found.get_texts()]


def test_the_curves_of_a_run_are_its_rows(drawn, tmp_path):
    rates = (0.1, 0.1, 0.01, 0.01, 0.001)
    rows = [
        ROW | {"epoch": e / 2, "lr": lr, "train_loss": 2.0 / e, "val_error": v, "test_error": v + 1}
        for e, (lr, v) in enumerate(zip(rates, (9, 7, 5, 6, 8), strict=True), start=1)
    ]
    figure = drawn(plot_curves, rows, 1.5, "a $title$", tmp_path / "curves.png")
    left, right = figure.axes
    epochs = [0.5, 1.0, 1.5, 2.0, 2.5]
    curves, dropped = lines(left)
    assert curves == [("training", epochs, [2.0, 1.0, 2 / 3, 0.5, 0.4])]
    assert dropped == [1.0, 2.0]  # the last epochs at the higher rate
    curves, dropped = lines(right)
    assert curves == [
        ("training", epochs, [40.0] * 5),
        ("validation", epochs, [9, 7, 5, 6, 8]),
        ("test", epochs, [10, 8, 6, 7, 9]),
        ("6.00 % reported", [1.5], [6]),
    ]
    assert dropped == [1.0, 2.0]
    names = ["training", "validation", "test", "6.00 % reported", "lower rate"]
    assert legend(figure) == names and left.get_legend() is right.get_legend() is None
    ring = next(line for line in right.lines if line.get_label() == "6.00 % reported")
    assert ring.get_marker() == "o" and ring.get_fillstyle() == "none"
    colors = {line.get_label(): line.get_color() for line in (*left.lines, *right.lines)}
    assert colors["test"] == ring.get_color() and len(set(colors.values())) == 4
    assert all(line.get_marker() == "None" for line in (left.lines[0], *right.lines[:2]))
    assert (left.get_xlabel(), left.get_ylabel()) == ("epoch", "training loss")
    assert (right.get_xlabel(), right.get_ylabel()) == ("epoch", "error (%)")
    assert left.get_yscale() == right.get_yscale() == "log"
    assert right.get_yticks().tolist() == [*range(5, 11), 15, 20, 30, 40]
    for axes in (left, right):
        assert axes.get_xlim() == (0.5, 2.5)
        assert all(x == int(x) for x in axes.get_xticks())
    title = figure._suptitle
    assert title.get_text() == "a $title$" and not title.get_parse_math()
    loss = [label.get_text() for label in left.get_yticklabels() if label.get_text()]
    assert loss and all(float(text) < 100 for text in loss)  # numbers, not powers of ten


def test_one_row_without_validation_is_a_figure_too(drawn, tmp_path):
    figure = drawn(plot_curves, [ROW | {"epoch": 1.0}], 1.0, "", tmp_path / "one.png")
    left, right = figure.axes
    assert lines(left) == ([("training", [1.0], [2.0])], [])
    points = [("training", [1.0], [40.0]), ("test", [1.0], [50.0])]
    assert lines(right) == ([*points, ("50.00 % reported", [1.0], [50.0])], [])
    assert legend(figure) == ["training", "test", "50.00 % reported"]
    assert left.lines[0].get_marker() == right.lines[0].get_marker() == "o"


def test_an_error_of_zero_has_its_place_below_the_log_axis(drawn, tmp_path):
    rows = [
        ROW | {"epoch": e, "train_error": t, "test_error": 2.0 * t}
        for e, t in enumerate((40.0, 1.0, 0.0), start=1)
    ]
    _, right = drawn(plot_curves, rows, 3, "", tmp_path / "zero.png").axes
    assert right.get_yscale() == "symlog"
    assert right.get_yticks().tolist() == [0, 1, 2, 5, 10, 20, 50]
    low, high = right.get_ylim()
    assert low <= 0 and high >= 80
    rows = [ROW | {"epoch": e, "train_error": 0.0, "test_error": 0.0} for e in (1, 2)]
    _, right = drawn(plot_curves, rows, 2, "", tmp_path / "zero.png").axes
    assert right.get_yscale() == "linear"


def test_a_slope_a_small_step_and_a_rise_of_the_rate_are_not_marked(drawn, tmp_path):
    rates = (0.1, 0.08, 0.03, 0.03, 0.02, 0.02, 0.2, 0.2, 0.1, 0.1)
    rows = [ROW | {"epoch": e, "lr": lr} for e, lr in enumerate(rates, start=1)]
    figure = drawn(plot_curves, rows, 4, "", tmp_path / "curves.png")
    assert [lines(axes)[1] for axes in figure.axes] == [[], []]
    assert "lower rate" not in legend(figure)


def test_survival_is_a_bar_for_each_block_with_the_stages_marked(drawn, tmp_path):
    survival = [1.0, 0.9, 0.8, 0.7, 0.65, 0.5]
    figure = drawn(plot_survival, survival, [1, 2, 3], "a $title$", tmp_path / "survival.png")
    (axes,) = figure.axes
    bars = [(b.get_x() + b.get_width() / 2, b.get_y(), b.get_height()) for b in axes.patches]
    assert bars == [(pytest.approx(l), 0, p) for l, p in enumerate(survival, start=1)]
    assert all(bar.get_width() == pytest.approx(0.8) for bar in axes.patches)
    assert lines(axes) == ([], [1.5, 3.5])
    texts = [(text.get_text(), *text.get_position()) for text in axes.texts]
    assert texts == [("stage 1", 1, 1.03), ("stage 2", 2.5, 1.03), ("stage 3", 5, 1.03)]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("block $l$", "survival probability $p_l$")
    assert axes.get_ylim() == (0, 1.12) and axes.get_xlim() == (0.4, 6.6)
    assert list(axes.get_yticks()) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert all(x == int(x) for x in axes.get_xticks())
    assert axes.get_title() == "a $title$: 4.55 of 6 blocks expected"
    assert not axes.title.get_parse_math()


def test_the_plan_lists_blocks_totals_data_and_the_run():
    config = {
        "model": {"name": "resnet8", "granularity": "batch"},
        "dataset": {"name": "dots"},
        "schedule": {"_target_": "mine.S", "name": "s", "p_L": 0.5},
        "trainer": {"epochs": 3, "batch_size": 4},
        "seed": 7,
    }
    data = SimpleNamespace(
        image_shape=(3, 8, 8), classes=list("ab"), train=range(9), validation=range(5), test=[0]
    )
    model = resnet_cifar(8, schedule=LinearDecay(0.5), num_classes=2)

    def shown():
        console = Console(file=io.StringIO(), width=100)
        show_plan(console, config, data, model, network_cost(model, data.image_shape))
        return console.file.getvalue().splitlines()

    conv = 9 * 64 * 16 * 16
    parameters = [9 * (a + w) * w + 4 * w for a, w in ((16, 16), (16, 32), (32, 64))]
    macs = [2 * conv, 3 * conv // 2, 3 * conv // 2]
    total = 9 * 64 * 3 * 16 + sum(macs) + 64 * 2
    every = 9 * 3 * 16 + 2 * 16 + sum(parameters) + 64 * 2 + 2
    saved = sum((1 - p) * m for p, m in zip((5 / 6, 2 / 3, 1 / 2), macs, strict=True))
    table, text = [], {}
    for line in shown():
        cells = re.findall(r"[\w.,-]+", line)
        if "│" in line or "┃" in line:
            table.append(cells)
        text[line[:17].strip()] = line[18:]
    assert table == [
        ["block", "stage", "p_l", "parameters", "multiply-adds"],
        ["1", "1", "0.8333", f"{parameters[0]:,}", f"{macs[0]:,}"],
        ["2", "2", "0.6667", f"{parameters[1]:,}", f"{macs[1]:,}"],
        ["3", "3", "0.5000", f"{parameters[2]:,}", f"{macs[2]:,}"],
        ["all", "2.00", f"{every:,}", f"{total:,}"],
    ]
    assert shown()[0].strip() == "resnet8"
    share = f"{(total - saved) / total:.1%}"
    last = {
        "expected depth": "2.00 of 3 blocks active",
        "expected compute": f"{share} of {total:,} multiply-adds per image (forward, closed "
        "branches skipped)",
        "data": "dots: 9 training, 5 validation, 1 test images, 3x8x8, 2 classes",
        "training": "3 epochs of 3 steps",
        "run": run_name(config),
    }
    assert last.items() <= text.items() and list(text)[-5:] == list(last)

    config["model"]["granularity"], data.validation = "sample", None
    for block in model.blocks:
        block.granularity = "sample"
    config["trainer"]["batch_size"] = 9
    lines = shown()[-5:]
    compute = f"expected compute  100 % of {total:,} multiply-adds per image: masks save nothing"
    assert lines[1] == compute
    assert lines[2].startswith("data              dots: 9 training, 0 validation, ")
    assert lines[3] == "training          3 epochs of 1 step"


@given(st.floats(0.5, 100), st.floats(0.05, 1), st.integers(20, 2000), st.integers(2, 20))
def test_a_budget_is_met_to_half_a_step(budget, survival, images, batch_size):
    cost = Cost([BlockCost(1, survival, 0, 80, 0, 1, "a", survival)], 0, 100, "batch")
    epochs = cost.epochs_for(budget, images, batch_size)
    steps = epochs * -(-images // batch_size)
    assert steps == pytest.approx(round(steps)) and round(steps) >= 1
    off = cost.training_macs(epochs, images, batch_size) - budget * images * cost.macs
    assert abs(off) <= (batch_size / 2 + 1e-6) * cost.expected_macs
    constant = Cost([BlockCost(1, 1.0, 0, 80, 0, 1, "a", 1.0)], 0, 100, "batch")
    assert constant.epochs_for(30, images, batch_size) == 30
    assert isinstance(constant.epochs_for(30, images, batch_size), int)
    masks = Cost(cost.blocks, 0, 100, "sample")
    assert masks.epochs_for(30, images, batch_size) == 30


def test_the_plan_says_how_near_a_budget_is_met():
    config = {"model": {"name": "r"}, "dataset": {"name": "d"}, "seed": 0}
    config["schedule"] = {"_target_": "mine.S"}
    data = SimpleNamespace(
        image_shape=(3, 8, 8), classes=[0], train=range(100), validation=None, test=[]
    )
    model = resnet_cifar(8, schedule=LinearDecay(0.5))
    cost = network_cost(model, (3, 8, 8))
    config["trainer"] = {"batch_size": 10, "budget": 2}
    config["trainer"]["epochs"] = epochs = cost.epochs_for(2, 100, 10)
    console = Console(file=io.StringIO(), width=100)
    show_plan(console, config, data, model, cost)
    training, budget = console.file.getvalue().splitlines()[-3:-1]
    off = epochs * cost.expected_share / 2 - 1
    assert epochs != int(epochs)
    assert training == f"training          {epochs:.6g} epochs of 10 steps"
    assert budget == f"budget            2 epochs of constant depth, missed by {off:+.2%}"


def test_a_projection_is_shown_with_its_block_and_rules_part_the_stages():
    config = {"model": {"name": "r", "granularity": "batch"}, "dataset": {"name": "d"}, "seed": 0}
    config |= {"schedule": {"_target_": "mine.S"}, "trainer": {"epochs": 1, "batch_size": 1}}
    data = SimpleNamespace(image_shape=(3, 8, 8), classes=[0], train=[0], validation=None, test=[])
    console = Console(file=io.StringIO(), width=100)
    model = resnet_cifar(14, shortcut="projection", num_classes=1)
    show_plan(console, config, data, model, network_cost(model, data.image_shape))
    lines = console.file.getvalue().splitlines()
    kinds = ["rule" if "─" in line else line.split()[1] for line in lines[4:-6]]
    assert kinds == ["1", "2", "rule", "3", "4", "rule", "5", "6", "rule", "all"]
    third = next(line for line in lines if line.split()[1:2] == ["3"])
    macs = 9 * 16 * (16 + 32) * 32 + 16 * 16 * 32
    assert f"{macs:,}" in third


def test_masks_save_no_compute():
    blocks = [BlockCost(1, 0.5, 0, 60, 10, 1, "a", 0.5), BlockCost(1, 0.75, 0, 20, 0, 2, "b", 0.75)]
    kinds = ("batch", "subset", "sample")
    assert [Cost(blocks, 0, 100, kind).expected_share for kind in kinds] == [0.65, 0.65, 1.0]
    for kind in kinds:
        model = resnet_cifar(8, granularity=kind)
        assert network_cost(model, (3, 8, 8)).granularity == kind
