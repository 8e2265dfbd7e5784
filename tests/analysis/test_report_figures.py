"""Which figures a report has, and of which numbers."""

import re

from PIL import Image

from sdnet.analysis import figure_telemetry
from sdnet.analysis.collect import collect_runs
from sdnet.analysis.figure_style import STYLES
from sdnet.analysis.groups import group_runs
from sdnet.analysis.over_groups import label
from sdnet.runs.telemetry import add_telemetry
from tests.analysis.report_runs import CONSTANT, LINEAR, UNIFORM, change, report, write_run


def test_figures_are_drawn_where_they_apply_and_stale_ones_removed(grid):
    out = grid.parent / "out"
    result, _ = report(grid, paper=True, out=out)
    names = ["p_L", "heatmap", "curves", "time"]
    assert result.figures == [out / f"{name}.png" for name in names]
    for path in result.figures:
        with Image.open(path) as image:
            image.verify()
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF-")
    links = re.findall(r"\]\((.*?)\)", (out / "report.md").read_text())
    assert sorted(links) == sorted(f"{name}.{kind}" for name in names for kind in ("png", "pdf"))
    (out / "mine.png").write_bytes(b"kept")
    write_run(grid.parent / "one" / "run", where={"threads": None})  # times unknown
    result, _ = report(grid.parent / "one", out=out)
    assert result.figures == [out / "curves.png"]
    kept = {"report.csv", "report.md", "report.html", "curves.png", "curves.pdf", "mine.png"}
    assert {path.name for path in out.iterdir()} == kept


def test_figures_of_compute_need_that_all_runs_counted_it(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"linear-{seed}", seed)
        write_run(tmp_path / f"constant-{seed}", seed, schedule=CONSTANT)
    assert "Multiply-adds" not in report(tmp_path)[1]
    for seed in (0, 1):
        change(tmp_path / f"linear-{seed}", "summary.json", training_macs=4.0e12)
    result, printed = report(tmp_path)
    assert "compute" not in {path.stem for path in result.figures}
    assert "4.000e12" in printed and "300 ± 1\n" in printed  # seconds
    assert "Multiply-adds" in printed
    for seed in (0, 1):
        change(tmp_path / f"constant-{seed}", "summary.json", training_macs=8.0e15)
    result, _ = report(tmp_path)
    assert result.figures[-1].stem == "compute"
    assert sorted(result.table["train_macs_mean"]) == [4e12, 8e15]


def test_figures_of_gradients_have_points_where_there_is_one_evaluation(tmp_path, monkeypatch):
    for seed in (0, 1):
        run = write_run(tmp_path / f"r{seed}", seed)
        row = {"step": 11, "epoch": 1, "block": 1, "name": "a", "stage": 1, "gradient_mean": 0.1}
        add_telemetry(run / "telemetry.csv", [row])
    kept = []
    monkeypatch.setattr(figure_telemetry, "save", lambda figure, stem: kept.append(figure) or stem)
    assert figure_telemetry.plot_rows(
        group_runs(collect_runs([tmp_path])[0]), "", STYLES["screen"], tmp_path / "gradients"
    )
    for axes in kept[0].axes:
        (line,) = axes.lines
        assert len(line.get_xdata()) == 1 and line.get_marker() == "o"


def test_a_figure_of_an_evaluation_calls_a_row_as_the_report_does(sweep):
    names = {label(group) for group in group_runs(collect_runs([sweep])[0])}
    assert names == {
        "constant depth (n = 3)",
        "linear decay, p_L 0.5 (n = 3)",
        "uniform, p_L 0.5 (n = 2)",
    }


def test_figures_show_the_numbers_of_the_table(grid):
    from sdnet.analysis import figure_data
    from sdnet.analysis.collect import collect_runs
    from sdnet.analysis.groups import group_runs

    (grid / "freeze" / "config.yaml").unlink()
    groups = group_runs(collect_runs([grid])[0])
    lines, levels = figure_data.p_L_lines(groups)
    found = {
        (line.label, line.setting): (line.p_L, [s.mean for s in line.errors]) for line in lines
    }
    assert found[("linear decay", "depth 20")] == ([0.5, 0.8, 1.0], [2, 3, 21])
    assert found[("uniform", "depth 56")] == ([0.5, 0.8, 1.0], [8, 9, 25])
    assert len(found) == 4 and levels == {"depth 20": (21, 21, 21, 1), "depth 56": (25, 25, 25, 1)}
    linear, uniform = figure_data.depth_grids(groups)
    assert (linear.title, linear.p_L, linear.depths) == ("linear decay", [1, 0.8, 0.5], [20, 56])
    assert linear.errors == [[21, 25], [3, 7], [2, 6]]
    assert uniform.errors == [[21, 25], [5, 9], [4, 8]]


def test_figures_draw_what_looks_like_a_formula_as_it_is_written(tmp_path):
    for i, text in enumerate(("$\\frac{x$", "a$b$c", "x" * 5000)):
        named = UNIFORM | {"name": text, "p_L": 0.2 + i / 10}
        write_run(tmp_path / "all" / f"u{i}", schedule=named, model__depth=20 + 6 * i)
    write_run(tmp_path / "all" / "deep", schedule=LINEAR, model__depth=20, model__width="$x$")
    drawn = [path.stem for path in report(tmp_path / "all")[0].figures]
    assert drawn == ["p_L", "heatmap", "curves", "time"]  # a grid of one error only has a colour
