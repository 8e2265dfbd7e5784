"""The figures by what is drawn in them: matplotlib's artists, not files."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest

from sdnet.analysis.probes import figures

PLACES = [
    {"gate": g, "block": g, "stage": 1 + (g > 2), "survival": 1 - g / 10} for g in range(1, 5)
]
LESIONS = [row | {"test_error_increase": 3.0 * row["gate"] - 4} for row in PLACES]
SETS = [{"k": k, "error": 10.0 * k + i} for k in range(5) for i in range(3)]
ORDERS = [{"kendall_tau": 1 - k / 10, "error": 5.0 * k} for k in range(4)]
CUT = [{"stage": s, "blocks_out": k, "error": 4.0 * s * k} for s in (1, 2) for k in range(3)]
FRONT = [{"macs": 9_000_000, "test_error": 5.0}]
FRONT += [{"macs": 10**6 * (8 - g), "test_error": 5.0 + g, "gate": g} for g in (3, 1, 2)]
MEANS = [{"name": "full depth", "members": 1}, {"name": "ensemble", "members": 3}]
MEANS = [row | {key: 0.1 * row["members"] for key in figures.MEASURES} for row in MEANS]
KINDS = [{"kind": "none", "strength": 0, "error": 1.0, "ece": 2.0}]
KINDS += [
    {"kind": kind, "strength": s, "error": 10.0 * s, "ece": 3.0 * s}
    for kind in ("blur", "JPEG")
    for s in range(1, 6)
]


OF = "means over n seeds, 1,234 test images, best checkpoint"
ABOUT = figures.About(OF, ["black", "tab:pink"])


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """Calls a function that draws, and gives the figure that it would save."""
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, stem: kept.append(figure) or stem)

    def draw(function, *arguments):
        assert function(*arguments, ABOUT, tmp_path / "stem") == tmp_path / "stem"
        renderer = kept[-1].canvas.get_renderer()
        kept[-1].draw_without_rendering()
        title, edge = kept[-1]._suptitle, kept[-1].bbox
        assert OF in title.get_text()
        box = title.get_window_extent(renderer)
        assert edge.x0 <= box.x0 and box.x1 <= edge.x1 and box.y1 <= edge.y1
        boxes = [legend.get_window_extent() for legend in kept[-1].legends]
        assert all(edge.x0 <= box.x0 and box.x1 <= edge.x1 for box in boxes)
        titles = [axes.title.get_window_extent() for axes in kept[-1].axes if axes.get_title()]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(titles, 2))
        drawn = [line for axes in kept[-1].axes for line in axes.lines if line.get_marker() == "s"]
        assert {line.get_color() for line in drawn} <= {"tab:pink"}  # of all that are second
        for axes in kept[-1].axes:  # no point is outside of its panel
            low, high = sorted(axes.get_ylim())
            inside = [line for line in axes.lines if line.get_transform() == axes.transData]
            assert all((low <= y).all() and (y <= high).all() for y in map(points, inside))
        return kept[-1]

    yield draw
    plt.close("all")


def points(line):
    return np.asarray(line.get_ydata(), float)


def labels(axes):
    return axes.get_xlabel(), axes.get_ylabel()


def lines(axes):
    return [np.array(line.get_data()).T.tolist() for line in axes.lines]


def named(rows):
    """Of four runs, the others with half the numbers of the first."""
    halves = [{k: v / 2 if "error" in k else v for k, v in row.items()} for row in rows]
    others = {f"linear decay, p_L {p_L} (n = 3)": halves for p_L in (0.5, 0.8, 0.9)}
    return {"constant depth (n = 3)": rows} | others


def texts(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_the_damage_of_each_lesion_stands_above_its_survival(figure):
    drawn = figure(figures.plot_lesions, named(LESIONS))
    top, bottom = drawn.axes
    heights = [bar.get_height() for bar in top.patches]
    assert heights == [-1, 2, 5, 8, *[-0.5, 1, 2.5, 4] * 3]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in top.patches]
    assert np.round(centres).tolist() == [1, 2, 3, 4] * 4
    survival = [[g, 1 - g / 10] for g in range(1, 5)]
    assert lines(bottom)[:4] == [pytest.approx(np.array(survival))] * 4
    assert [line.get_xdata()[0] for line in bottom.lines[4:]] == [2.5]  # between the stages
    assert texts(drawn) == list(named(LESIONS))
    assert "points" in top.get_ylabel() and all(labels(bottom))
    alone = figure(figures.plot_lesions, {"net on data": LESIONS})
    assert not alone.legends and alone._suptitle.get_text().startswith("net on data\n")


def test_sets_have_means_and_ranges_and_orders_points(figure):
    drawn = figure(figures.plot_sets, named(SETS), named(ORDERS))
    left, right = drawn.axes
    assert lines(left)[0] == [[k, 10 * k + 1] for k in range(5)]
    edge = left.collections[0].get_paths()[0].vertices
    assert {10 * 2.0, 10 * 2.0 + 2} == set(edge[edge[:, 0] == 2][:, 1])
    points = [point for line in lines(right)[:4] for point in line]
    assert points == [[row["kendall_tau"], row["error"]] for row in ORDERS]
    assert right.xaxis_inverted() and "up to 3 sets" in drawn._suptitle.get_text()
    assert all(labels(left)) and labels(right)[0]
    assert len(figure(figures.plot_sets, {"net": SETS}, {}).axes) == 1


def test_a_panel_for_each_stage_that_is_cut_short(figure):
    drawn = figure(figures.plot_truncation, named(CUT))
    assert [axes.get_title() for axes in drawn.axes] == ["stage 1", "stage 2"]
    assert lines(drawn.axes[1])[0] == [[0, 0], [1, 8], [2, 16]]
    assert drawn.axes[0].get_ylabel() and any(axes.get_xlabel() for axes in drawn.axes)


def test_a_front_names_the_branches_that_go(figure):
    (axes,) = figure(figures.plot_pareto, named(FRONT)).axes
    assert lines(axes)[0] == [[9, 5], [5, 8], [7, 6], [6, 7]]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "2"] * 4
    assert axes.xaxis_inverted() and "millions" in axes.get_xlabel() and axes.get_ylabel()
    assert "say which\n" in axes.figure._suptitle.get_text()
    unsure = [*FRONT[:2], FRONT[2] | {"gate": ""}, *FRONT[3:]]  # a group's, see `means`
    drawn = figure(figures.plot_pareto, {"a": unsure, "b": FRONT})
    assert "where the seeds agree" in drawn._suptitle.get_text()


def test_a_panel_for_each_measure_of_averages(figure):
    named = [row | {"name": f"uniform, p_L 0.5, depth 110 (n = 3): {row['name']}"} for row in MEANS]
    figure(figures.plot_averages, named, "net")
    drawn = figure(figures.plot_averages, MEANS, "net")
    assert [axes.get_title() for axes in drawn.axes] == list(figures.MEASURES.values())
    first = drawn.axes[0]
    assert [t.get_text() for t in first.get_yticklabels()] == ["full depth", "ensemble, 3 networks"]
    assert lines(first)[0] == [[0.1, 0], [pytest.approx(0.3), 1]]


def test_a_column_for_each_kind_of_corruption(figure):
    drawn = figure(figures.plot_corruptions, named(KINDS))
    blur, jpeg, blur_ece, _ = drawn.axes
    assert (blur.get_title(), jpeg.get_title()) == ("blur", "JPEG")
    assert lines(blur)[0] == [[0, 1], *([s, 10 * s] for s in range(1, 6))]
    assert lines(blur_ece)[0] == [[0, 2], *([s, 3 * s] for s in range(1, 6))]
    assert texts(drawn) == list(named(KINDS))
