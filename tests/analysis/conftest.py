"""Sweeps to report."""

import pytest

from tests.analysis.report_runs import CONSTANT, LINEAR, UNIFORM, write_run


@pytest.fixture(autouse=True)
def figures(request, monkeypatch):
    """Figures take seconds: they are drawn only for the tests that look at them."""
    drawn = request.node.name.startswith(("test_figures", "test_the_command"))
    if request.node.path.name.startswith("test_report") and not drawn:
        monkeypatch.setattr("sdnet.analysis.figures.draw", lambda *arguments: [])


@pytest.fixture
def sweep(tmp_path):
    """Linear decay and constant depth with three seeds, uniform with two of them and a third."""
    folder = tmp_path / "sweep"
    errors = {
        "linear": [
            ((9, 8), (4, 5), (4, 6.5), (5, 3)),
            ((9, 9), (3, 5.5), (7, 8)),
            ((2, 7), (5, 1)),
        ],
        "constant": [((9, 7), (4, 7.25), (6, 7)), ((3, 6), (4, 9)), ((3, 8), (2, 9.5))],
        "uniform": [((1, 6), (2, 5)), ((5, 7), (1, 4))],
    }
    for seed in range(3):
        write_run(folder / f"linear-{seed}", seed, errors["linear"][seed])
        write_run(folder / f"constant-{seed}", seed, errors["constant"][seed], schedule=CONSTANT)
    for seed, rows in zip((1, 5), errors["uniform"], strict=True):
        write_run(folder / f"uniform-{seed}", seed, rows, schedule=UNIFORM)
    return folder


@pytest.fixture
def grid(tmp_path):
    """Two depths, linear decay and uniform at two p_L, frozen updates once; no two errors equal."""
    folder = tmp_path / "grid"
    error = 1
    for depth in (20, 56):
        write_run(folder / f"constant-{depth}", 0, ((1, 20 + error),), None, None,
                  schedule=CONSTANT, model__depth=depth)  # fmt: skip
        for schedule in (LINEAR, UNIFORM):
            for p_L in (0.5, 0.8):
                error += 1
                write_run(
                    folder / f"{schedule['name']}-{p_L}-{depth}",
                    errors=((1, error),),
                    schedule=schedule | {"p_L": p_L},
                    model__depth=depth,
                )
    write_run(folder / "freeze", 0, ((1, 50),), optimizer__skipped_update="freeze")
    return folder
