import copy

import pytest

from sdnet import run
from sdnet.run import RunFolder

CONFIG = {
    "model": {"name": "resnet20", "depth": 20},
    "dataset": {"name": "digits", "root": "data"},
    "schedule": {"_target_": "x.LinearDecay", "name": "linear_decay", "p_L": 0.5},
    "optimizer": {"lr": 0.1},
    "trainer": {"epochs": 30, "device": "cpu", "threads": None, "precision": "fp32"},
    "wandb": {"mode": "auto"},
    "name": "a",
    "seed": 0,
    "resume": None,
}


def changed(path, value):
    config = copy.deepcopy(CONFIG)
    node = config
    *parents, last = path.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    return config


@pytest.mark.parametrize(
    "path, value",
    [
        ("trainer.device", "cuda:1"),
        ("trainer.threads", 2),
        ("dataset.root", "elsewhere"),
        ("wandb.mode", "online"),
        ("name", "b"),
        ("resume", "outputs"),
        ("trainer.epochs", 30.0),
        ("optimizer.lr", 0.1 + 1e-17),
    ],
)
def test_identity_ignores_what_does_not_determine_the_result(path, value):
    assert run.identity(changed(path, value)) == run.identity(CONFIG)


@pytest.mark.parametrize(
    "path, value",
    [
        ("optimizer.lr", 0.2),
        ("seed", 1),
        ("schedule.p_L", 0.8),
        ("trainer.precision", "bf16"),
        ("dataset.name", "other"),
        ("trainer.epochs", 31),
    ],
)
def test_identity_changes_with_what_determines_the_result(path, value):
    assert run.identity(changed(path, value)) != run.identity(CONFIG)


def test_identity_does_not_depend_on_the_order_of_settings():
    assert run.identity(dict(reversed(CONFIG.items()))) == run.identity(CONFIG)


def test_the_name_holds_model_schedule_p_L_seed_and_identity():
    assert run.run_name(CONFIG) == f"resnet20-linear_decay-pL0.5-s0-{run.identity(CONFIG)}"
    own = CONFIG | {"schedule": {"_target_": "mine.Square"}}
    assert run.run_name(own).startswith("resnet20-Square-s0-")
    assert "-pL0.3-" in run.run_name(changed("schedule.p_L", 0.1 + 0.2))


def test_constant_depth_is_one_run_whichever_schedule_said_so():
    ours = "sdnet.models.schedules."
    same = [
        {"_target_": f"{ours}Constant", "name": "constant"},
        {"_target_": f"{ours}LinearDecay", "name": "linear_decay", "p_L": 1, "p_0": 1.0},
        {"_target_": f"{ours}Uniform", "name": "uniform", "p_L": 1.0},
    ]
    (name,) = {run.run_name(CONFIG | {"schedule": schedule}) for schedule in same}
    assert name.startswith("resnet20-constant-pL1-s0-")
    other = CONFIG | {"schedule": same[1] | {"p_0": 0.9}}
    assert run.run_name(other).startswith("resnet20-linear_decay-pL1-s0-")
    assert run.identity(other) != name[-8:]


def test_the_reported_row_is_the_latest_of_lowest_validation_error_never_of_lowest_test_error():
    rows = [
        {"epoch": e, "val_error": v, "test_error": t}
        for e, v, t in ((1, 5.0, 1.0), (2, 3.0, 9.0), (3, 3.0, 8.0), (4, 4.0, 2.0))
    ]
    row, rule = run.select(rows)
    assert row["epoch"] == 3 and "validation" in rule
    row, rule = run.select([r | {"val_error": None} for r in rows])
    assert row["epoch"] == 4 and "no validation" in rule


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG, {"wandb_id": "x"})
    return folder


def row(step):
    return dict.fromkeys(run.COLUMNS, 1 / 3) | {"step": step, "epoch": step / 2, "val_loss": None}


def test_a_folder_that_holds_a_run_is_not_overwritten(folder):
    assert folder.config() == CONFIG and folder.summary()["status"] == "running"
    with pytest.raises(FileExistsError, match="holds a run already; resume="):
        folder.create(CONFIG, {})


def test_metrics_come_back_as_numbers_and_later_rows_can_be_dropped(folder):
    for step in (1, 2, 3):
        folder.append_row(row(step))
    assert [r["step"] for r in folder.rows()] == [1, 2, 3]
    assert folder.rows()[0]["val_loss"] is None
    assert folder.rows()[0]["lr"] == pytest.approx(1 / 3, rel=1e-7)
    folder.drop_after(2)
    assert [r["step"] for r in folder.rows()] == [1, 2]
    names = sorted(p.name for p in folder.path.iterdir())
    assert names == ["config.yaml", "metrics.csv", "provenance.json", "summary.json"]


def test_a_status_replaces_the_one_before_and_its_reason(folder):
    folder.set_status("failed", "because")
    assert folder.summary() | {"identity": 0} == {
        "status": "failed",
        "reason": "because",
        "identity": 0,
    }
    folder.set_status("running")
    assert "reason" not in folder.summary()
