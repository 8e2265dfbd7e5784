"""The report's figures by what is drawn in them: matplotlib's artists, not files."""

import colorsys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import LogNorm, Normalize, to_hex, to_rgb
from matplotlib.container import ErrorbarContainer

from sdnet.analysis import figure_time
from sdnet.analysis import figures as plots
from sdnet.analysis.figure_data import Curve, Grid, Line, Point, Spread
from sdnet.analysis.figure_style import RANGE, STYLES, colors_of


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """Calls a function that draws, and gives the figure that it would save."""
    kept = []
    for module in (plots, figure_time):
        monkeypatch.setattr(module, "save", lambda figure, stem: kept.append(figure) or stem)

    def draw(function, *arguments, style="screen"):
        look = ("net on data", STYLES[style])
        assert function(*arguments, *look, tmp_path / "stem") == tmp_path / "stem"
        kept[-1].draw_without_rendering()
        assert kept[-1].get_layout_engine().colorbar_gridspec is False  # constrained
        edge = kept[-1].bbox.padded(1)
        for text in kept[-1].texts:  # what stands around the panels is not cut off
            box = text.get_window_extent()
            assert edge.containsx(box.x0) and edge.containsx(box.x1), text
            assert edge.containsy(box.y0) and edge.containsy(box.y1), text
        return kept[-1]

    yield draw
    plt.close("all")


def legend(figure):
    """The texts, the title and the colours of the figure's legend."""
    (found,) = figure.legends
    texts = [text.get_text() for text in found.get_texts()]
    return texts, found.get_title().get_text()


def errorbars(axes):
    """x, y, the ends of the bars along y and x, colour and marker of each series."""
    series = []
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, bars = container.lines
        ends = [
            [np.ravel(s).tolist() for s in bar.get_segments() if len(s) and not np.isnan(s).any()]
            for bar in bars
        ]
        x, y = (np.asarray(data, dtype=float).tolist() for data in line.get_data())
        series.append((x, y, ends, to_hex(line.get_color()), line.get_marker()))
    return series


PRINTED = """
      20   38   56   74   92   110
1.0  8.31 6.67 6.27 6.53 6.25 6.41
0.9  7.60 6.16 5.84 5.88 5.72 5.89
0.8  7.72 6.29 5.66 5.59 5.56 5.64
0.7  8.23 6.42 5.98 5.72 5.43 5.39
0.6  8.63 6.66 6.10 5.94 5.69 5.42
0.5  9.39 7.12 6.40 5.79 5.61 5.25
"""  # Huang et al. 2016, Figure 8 right
PLOTTED = """
0.1  6.96 -
0.2  6.30 -
0.3  5.97 6.93
0.4  5.40 6.55
0.5  5.25 6.14
0.6  5.42 5.92
0.7  5.39 5.47
0.8  5.64 5.27
0.9  5.89 5.95
1.0  6.41 6.41
"""  # Figure 8 left: linear decay, uniform


def test_the_papers_numbers_are_those_of_its_figure():
    head, *rows = (list(map(float, line.split())) for line in PRINTED.split("\n")[1:-1])
    grid = plots.PAPER_GRID
    assert grid.depths == head and grid.p_L == [p_L for p_L, *_ in rows]
    assert grid.errors == [errors for _, *errors in rows]
    rows = [line.split() for line in PLOTTED.split("\n")[1:-1]]
    for column, name in ((1, "linear decay"), (2, "uniform")):
        some = [(float(row[0]), float(row[column])) for row in rows if row[column] != "-"]
        assert list(zip(*plots.PAPER_P_L[name], strict=True)) == some


def one(mean):
    return Spread(mean, mean, mean, 1)


LINEAR = Line("linear decay", "", [0.5, 1.0], [Spread(5.0, 4.5, 5.75, 3), one(6.0)])
UNIFORM = Line("uniform", "", [0.5, 1.0], [Spread(7.0, 6.0, 8.0, 2), Spread(6.0, 5.0, 6.5, 2)])


def test_errors_against_p_L_with_bars_the_baseline_and_the_papers_points(figure):
    drawn = figure(plots.plot_p_L, [LINEAR, UNIFORM], {"": Spread(6.0, 5.75, 6.5, 4)}, True)
    (axes,) = drawn.axes
    assert drawn.get_supxlabel() == "survival probability $p_L$"
    assert drawn.get_supylabel() == "test error (%)"
    first, second = errorbars(axes)
    assert first == ([0.497, 0.997], [5, 6], [[[0.497, 4.5, 0.497, 5.75]]], "#0072b2", "o")
    bars = [[[0.503, 6.0, 0.503, 8.0], [1.003, 5.0, 1.003, 6.5]]]
    assert second == ([0.503, 1.003], [7, 6], bars, "#d55e00", "s")
    level = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert list(level.get_ydata()) == [6, 6] and level.get_color() == "black"
    (band,) = axes.patches
    assert (band.get_y(), band.get_height(), band.get_alpha()) == (5.75, 0.75, 0.12)
    points = [line for line in axes.lines if line.get_fillstyle() == "none"]
    assert [list(line.get_data()[0]) for line in points] == [
        list(plots.PAPER_P_L[name][0]) for name in ("linear decay", "uniform")
    ]
    assert [line.get_marker() for line in points] == ["o", "s"]
    texts, title = legend(drawn)
    paper = "Huang et al. 2016 (ResNet-110, CIFAR-10)"
    assert texts == [
        *("linear decay (n = 1 to 3)", "uniform (n = 2)", "constant depth, 6.00 % (n = 4)"),
        *(f"{paper}, linear decay", f"{paper}, uniform"),
    ]
    assert title == f"net on data\n{RANGE}" and axes.get_yscale() == "linear"
    (found,) = drawn.legends
    assert len(found.get_patches()) == 1  # the band is in it


def test_without_seeds_there_are_no_bars_and_far_errors_are_on_a_log_axis(figure):
    lines = [Line("linear decay", "", [0.5, 1.0], [one(1.0), one(8.5)])]
    drawn = figure(plots.plot_p_L, lines, {"": one(8.5)}, False)
    (axes,) = drawn.axes
    assert errorbars(axes)[0][2] == [[]] and not axes.patches
    texts = ["linear decay (n = 1)", "constant depth, 8.50 % (n = 1)"]
    assert legend(drawn) == (texts, "net on data")
    assert axes.get_yscale() == "log"
    for errors in ([1.0, 8.0], [0.0, 9.0]):
        lines = [Line("linear decay", "", [0.5, 1.0], [one(error) for error in errors])]
        drawn = figure(plots.plot_p_L, lines, {}, False)
        assert drawn.axes[0].get_yscale() == "linear"
        assert legend(drawn)[0] == ["linear decay (n = 1)"]


def test_a_log_axis_has_ticks_all_along(figure):
    for errors in ([2.0, 90.0], [0.9, 9.0], [5.0, 41.0]):
        lines = [Line("a", "", [0.5, 1.0], [one(error) for error in errors])]
        (axes,) = figure(plots.plot_p_L, lines, {}, False).axes
        low, high = axes.get_ylim()
        inside = [t for t in axes.get_yticks() if low <= t <= high]
        assert axes.get_yscale() == "log" and len(inside) >= 3
        ends = np.log([low, *inside, high])
        assert np.diff(ends).max() < 0.5 * (ends[-1] - ends[0])


def test_many_lines_are_drawn_in_a_panel_for_each_of_the_other_settings(figure):
    settings = ["depth 20", "depth 56", "depth 110"]
    lines = [Line(name, s, [0.5], [one(5)]) for s in settings for name in ("linear", "uniform")]
    levels = {s: one(6.0) for s in settings}
    drawn = figure(plots.plot_p_L, lines, levels, False)
    assert [axes.get_title() for axes in drawn.axes] == settings
    for axes in drawn.axes:
        (a, *_), (b, *_) = errorbars(axes)
        assert (a, b) == ([0.497], [0.503])
        assert [s[3:] for s in errorbars(axes)] == [("#0072b2", "o"), ("#d55e00", "s")]
    names = ["linear (n = 1)", "uniform (n = 1)", "constant depth (n = 1)"]
    assert legend(drawn)[0] == names
    few = figure(plots.plot_p_L, lines[:4], levels, False)
    (axes,) = few.axes
    names = [f"{name}, {s} (n = 1)" for s in settings[:2] for name in ("linear", "uniform")]
    constant = [f"constant depth, {s}, 6.00 % (n = 1)" for s in settings[:2]]
    assert legend(few)[0] == [*names, *constant]
    colors = [s[3] for s in errorbars(axes)]
    assert colors == ["#0072b2", "#0072b2", "#d55e00", "#d55e00"]
    assert [s[4] for s in errorbars(axes)] == ["o", "s", "o", "s"]  # a marker for each schedule
    dashed = [line for line in axes.lines if line.get_color() == "black"]
    assert [line.get_linestyle() for line in dashed] == ["--", ":"]
    five = figure(plots.plot_p_L, [*lines[:4], lines[0]], levels, False)
    assert [axes.get_visible() for axes in five.axes] == [True, True]
    four = [Line("linear", f"depth {i}", [0.5], [one(5)]) for i in range(5)]
    panels = figure(plots.plot_p_L, four, {}, False).axes
    assert [axes.get_visible() for axes in panels] == [True] * 5 + [False]


def test_for_a_paper_figures_are_a_column_wide_and_the_type_is_small(figure):
    drawn = figure(plots.plot_p_L, [LINEAR], {}, False, style="paper")
    width, _ = drawn.get_size_inches()
    (axes,) = drawn.axes
    assert width == pytest.approx(3.3, abs=0.6)  # a wide legend widens it
    assert axes.xaxis.get_ticklabels()[0].get_fontsize() == 8
    two = figure(plots.plot_curves, [curve("a", [[5.0], [4.0]], [[1.0], [0.5]])], style="paper")
    upper, lower = two.axes
    assert upper.get_position().y0 > lower.get_position().y1  # below each other


def test_a_heat_map_prints_the_errors_of_its_cells_where_they_can_be_read(figure):
    own = Grid("linear decay", [1.0, 0.5], [20, 110], [[8.0, 4.0], [2.0, None]])
    other = Grid("uniform", [0.8], [20, 110], [[16.0, 4.0]])
    drawn = figure(plots.plot_heatmap, [own, other], True)
    assert drawn.get_suptitle() == "net on data, test error (%), mean over seeds"
    assert drawn.get_supxlabel() == "network depth (layers)"
    titles = [axes.get_title() for axes in drawn.axes]
    assert titles == ["linear decay", "uniform", "Huang et al. 2016 (CIFAR-10)"]
    limits = []
    for axes, grid in zip(drawn.axes, (own, other, plots.PAPER_GRID), strict=True):
        (image,) = axes.images
        assert type(image.norm) is LogNorm and image.get_cmap().name == "cividis"
        limits.append((image.norm.vmin, image.norm.vmax))
        cells = {(i, j): v for i, row in enumerate(grid.errors) for j, v in enumerate(row) if v}
        assert {(y, x): float(t.get_text()) for t in axes.texts for x, y in [t.get_position()]} == {
            (i, j): pytest.approx(v) for (i, j), v in cells.items()
        }
        for text in axes.texts:
            assert (text.get_ha(), text.get_va(), text.get_fontsize()) == (
                "center",
                "center",
                pytest.approx(8.33, abs=0.01),
            )
            # luma of ITU-R 601, by another implementation
            rgb = image.cmap(image.norm(float(text.get_text())))[:3]
            dark = colorsys.rgb_to_yiq(*rgb)[0] < 0.5
            assert to_rgb(text.get_color()) == ((1, 1, 1) if dark else (0, 0, 0))
        assert [t.get_text() for t in axes.get_xticklabels()] == [f"{d:g}" for d in grid.depths]
        assert [t.get_text() for t in axes.get_yticklabels()] == [f"{p:g}" for p in grid.p_L]
        lines = [line.get_data() for line in axes.lines]
        rows, columns = len(grid.p_L), len(grid.depths)
        assert len(lines) == rows + columns - 2  # between the cells
    assert limits == [(2, 16), (2, 16), (5.25, 9.39)]
    width, height = drawn.get_size_inches()
    assert width == pytest.approx(3 * (6 * 0.55 + 0.5) + 0.3)
    assert height == pytest.approx(6 * 0.32 + 0.9)
    zero = figure(plots.plot_heatmap, [Grid("x", [1, 0.5], [20], [[0.0], [4.0]])], False)
    assert type(zero.axes[0].images[0].norm) is Normalize
    assert zero.get_size_inches()[0] == pytest.approx(2.4 + 0.3)


def curve(label, errors, losses, p_L=0.5, constant=False, series="linear decay", epochs=(1, 2)):
    return Curve(label, series, p_L, constant, list(epochs), np.array(errors), np.array(losses))


def test_curves_are_means_over_seeds_with_a_band_between_the_extremes(figure):
    two = curve("a", [[9.0, 7.0], [4.0, 1.0]], [[2.0, 1.0], [0.3, 0.1]])
    constant = curve("b", [[5.0], [3.0]], [[1.0], [0.5]], 1.0, True, "constant depth")
    drawn = figure(plots.plot_curves, [two, constant])
    left, right = drawn.axes
    means = [[[8.0, 2.5], [5.0, 3.0]], [[1.5, 0.2], [1.0, 0.5]]]
    bands = [[(7, 9), (1, 4)], [(1, 2), (0.1, 0.3)]]
    for axes, mean, band, name in zip(
        drawn.axes, means, bands, ("test error (%)", "training loss"), strict=True
    ):
        assert [line.get_ydata().tolist() for line in axes.lines] == [
            pytest.approx(values) for values in mean
        ]
        assert [list(line.get_xdata()) for line in axes.lines] == [[1, 2]] * 2
        assert [line.get_marker() for line in axes.lines] == ["None"] * 2
        assert [to_hex(line.get_color()) for line in axes.lines] == ["#0072b2", "#000000"]
        (filled,) = axes.collections
        corners = {tuple(point) for point in filled.get_paths()[0].vertices.tolist()}
        assert corners == {(e, v) for e, ends in zip((1, 2), band, strict=True) for v in ends}
        assert filled.get_alpha() == 0.15
        assert to_hex(filled.get_facecolor()[0]) == "#0072b2"
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", name)
        assert axes.get_xlim() == (1, 2)  # where the data begin and end
    assert (left.get_yscale(), right.get_yscale()) == ("linear", "log")
    assert legend(drawn) == (["a (n = 2)", "b (n = 1)"], f"net on data\n{RANGE}")
    single = figure(plots.plot_curves, [curve("a", [[5.0]], [[1.0]], epochs=[3])])
    assert single.axes[0].lines[0].get_marker() == "o" and legend(single)[1] == "net on data"


def test_curves_are_coloured_by_p_L_and_dashed_by_schedule(figure):
    p_L = [0.2, 0.4, 0.6, 0.8]
    some = [
        curve(f"{series} {p}", [[5.0, 6.0]] * 2, [[1.0, 2.0]] * 2, p, series=series)
        for series in ("linear", "uniform")
        for p in p_L
    ]
    eight = figure(plots.plot_curves, some)
    assert len(eight.axes[0].collections) == 8
    baseline = curve("constant", [[5.0, 6.0]] * 2, [[1.0, 2.0]] * 2, 1.0, True, "constant depth")
    own = curve("own", [[5.0, 6.0]] * 2, [[1.0, 2.0]] * 2, None, series="own")
    drawn = figure(plots.plot_curves, [*some, baseline, own])
    assert not drawn.axes[0].collections and legend(drawn)[1] == "net on data"  # no bands
    lines = drawn.axes[0].lines
    shades = [to_hex(plt.colormaps["viridis"](0.3 * i)) for i in range(4)]
    for figure_lines in (eight.axes[0].lines, lines):  # many or few: the same
        colors = [to_hex(line.get_color()) for line in figure_lines[:8]]
        assert colors == [*shades, *shades]
        assert [line.get_linestyle() for line in figure_lines[:8]] == ["-"] * 4 + ["--"] * 4
    assert [to_hex(line.get_color()) for line in lines[8:]] == ["#000000", "#999999"]
    alike = [curve(str(i), [[5.0]] * 2, [[1.0]] * 2, None, series=str(i)) for i in range(3)]
    lines = figure(plots.plot_curves, alike).axes[0].lines
    assert [to_hex(line.get_color()) for line in lines] == ["#0072b2", "#d55e00", "#009e73"]


def test_groups_have_the_colours_of_their_curves():
    def colors(*groups):
        found = [SimpleNamespace(p_L=p_L, is_baseline=p_L == 1) for p_L in groups]
        return [to_hex(color) for color in colors_of(found)]

    low, high = (to_hex(plt.colormaps["viridis"](at)) for at in (0.0, 0.9))
    assert colors(1, 0.5, 0.8) == ["#000000", low, high]
    assert colors(1, 0.5) == ["#000000", "#0072b2"] and colors(None, 0.5) == ["#0072b2", "#d55e00"]


@pytest.mark.parametrize(
    "longest, unit, name",
    [(7200, 3600, "hours"), (7199, 60, "minutes"), (119, 1, "seconds"), (0.5, 1, "seconds")],
)
def test_errors_against_time_in_the_unit_that_fits(figure, longest, unit, name):
    half, eighth = longest / 2, longest / 8
    seconds = Spread(half, half - eighth, half + 2 * eighth, 3)
    points = [
        Point(0.5, False, "linear decay", seconds, Spread(5.0, 4.5, 6.0, 3)),
        Point(0.8, False, "linear decay", one(0.75 * longest), one(6.0)),
        Point(1.0, True, "constant depth", one(longest), one(7.0), ["linear decay"]),
    ]
    drawn = figure(plots.plot_time, points)
    (axes,) = drawn.axes
    assert axes.get_xlabel() == f"training time ({name})"
    first, second, baseline = errorbars(axes)
    at, part = half / unit, eighth / unit
    x, y, (x_bars, y_bars), color, marker = first
    assert (x, y, color, marker) == ([at], [5], to_hex(plt.colormaps["viridis"](0.0)), "o")
    assert x_bars == [pytest.approx([at - part, 5, at + 2 * part, 5])]
    assert y_bars == [pytest.approx([at, 4.5, at, 6.0])]
    assert second[:3] == ([1.5 * at], [6], [[], []]) and second[4] == "o"
    assert baseline[:2] == ([2 * at], [7]) and baseline[3:] == ("#000000", "s")
    path, _ = (line for line in axes.lines if line.get_linewidth() == 0.6)
    assert np.allclose(path.get_data(), ([at, 1.5 * at, 2 * at], [5, 6, 7]))  # to constant depth
    texts = ["linear decay (n = 1 to 3)", "constant depth (n = 1)"]
    assert legend(drawn) == (texts, f"net on data, numbers are p_L\n{RANGE}")
    notes = [note for note in axes.texts if note.get_visible()]
    assert [note.get_text() for note in notes] == ["0.5", "0.8"]
    assert [note.xy for note in notes] == [(at, 5.0), (1.5 * at, 6.0)]
    for note in axes.texts:  # each beside its point, on the side to which it is moved
        dx, dy = note.xyann
        assert note.anncoords == "offset points"
        assert (note.get_ha(), note.get_va()) == (
            "left" if dx > 0 else "right",
            "bottom" if dy > 0 else "top",
        )


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_errors_against_compute_begin_at_none_so_that_equal_costs_stand_above_each_other(
    figure, factor
):
    points = [
        Point(0.5, False, "linear decay", one(4.02e12), one(5.0)),
        Point(1.0, True, "constant depth", one(4e12 * factor), one(7.0), ["linear decay"]),
    ]
    (axes,) = figure(plots.plot_compute, points).axes
    assert axes.get_xlabel() == "multiply-adds of training ($10^{12}$, forward passes)"
    assert [x for x, *_ in errorbars(axes)] == [[pytest.approx(4.02)], [4 * factor]]
    left, right = axes.get_xlim()
    assert left == 0 and 1.1 * max(4.02, 4 * factor) < right


def test_a_label_covers_no_point_no_bar_and_no_other_label(figure):
    points = []
    for i in range(6):
        x, y = 100.0 + i % 3, 5.0 + i % 4 / 10
        ends = (Spread(x, x - 1.5, x + 1.5, 2), Spread(y, y - 0.1, y + 0.1, 2))
        points.append(Point(i / 10, False, "linear decay", *ends))
    drawn = figure(plots.plot_time, points)
    (axes,) = drawn.axes
    shown = [note for note in axes.texts if note.get_visible()]
    assert [note.get_text() for note in shown] == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    boxes = [note.get_window_extent() for note in shown]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
    centres = axes.transData.transform([(p.cost.mean, p.error.mean) for p in points])
    assert not any(box.contains(*centre) for box in boxes for centre in centres)
    plain = [Point(None, False, "a", one(10.0), one(5.0))]
    assert legend(figure(plots.plot_time, plain)) == (["a (n = 1)"], "net on data")
    assert np.isnan(plots.bars([one(1.0)])).all()
