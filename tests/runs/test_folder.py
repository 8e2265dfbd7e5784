import json
import logging
import os
import random

import pytest
import torch
import yaml

from sdnet.runs.files import Damaged, write_atomically
from sdnet.runs.folder import COLUMNS, FILES, FOLDERS, RESUMABLE, RunFolder, select
from sdnet.runs.identity import identity
from tests.runs.made import CONFIG, changed


def test_the_reported_row_is_the_latest_of_lowest_validation_error_never_of_lowest_test_error():
    rows = [
        {"epoch": e, "val_error": v, "test_error": t}
        for e, v, t in ((1, 5.0, 1.0), (2, 3.0, 9.0), (3, 3.0, 8.0), (4, 4.0, 2.0))
    ]
    row, rule = select(rows)
    assert row["epoch"] == 3 and "validation" in rule
    row, rule = select([r | {"val_error": None} for r in rows])
    assert row["epoch"] == 4 and "no validation" in rule


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG, {"wandb_id": "x"})
    return folder


def row(step):
    return dict.fromkeys(COLUMNS, 1 / 3) | {"step": step, "epoch": step / 2, "val_loss": None}


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


def test_a_status_replaces_the_one_before_and_its_reason_and_keeps_the_rest(folder):
    own = identity(CONFIG)
    assert folder.summary() == {"status": "running", "identity": own}
    failed = folder.set_status("failed", "because", {"steps": 3, "test_error": 5.0})
    expected = {"status": "failed", "reason": "because", "identity": own}
    assert failed == folder.summary() == expected | {"steps": 3, "test_error": 5.0}
    assert list(failed)[:2] == ["status", "reason"]
    folder.set_status("interrupted", "", {"steps": 4})
    expected = {"status": "interrupted", "reason": "", "identity": own}
    assert folder.summary() == expected | {"steps": 4, "test_error": 5.0}
    expected = {"status": "running", "identity": own, "steps": 4, "test_error": 5.0}
    assert folder.set_status("running") == folder.summary() == expected


def test_a_run_says_how_it_ended_and_one_that_could_not_was_interrupted(folder, tmp_path):
    assert RunFolder(tmp_path).ended() == RunFolder(tmp_path).state() == "new"
    assert folder.ended() == "interrupted"
    for status in ("completed", "failed", "diverged", "interrupted"):
        folder.set_status(status)
        assert folder.ended() == folder.state() == status


def test_a_run_that_starts_anew_forgets_what_it_learnt_and_keeps_what_it_is(folder):
    for name in ("last", "best"):
        folder.save_checkpoint({"step": 1}, name)
    folder.append_row(row(1))
    folder.set_status("diverged", "inf", {"steps": 1})
    folder.restart()
    assert folder.summary() == {"status": "running", "identity": identity(CONFIG)}
    assert folder.config() == CONFIG and folder.provenance() == {"wandb_id": "x"}
    assert folder.rows() == [] and list((folder.path / "checkpoints").iterdir()) == []
    folder.restart()  # with nothing there


def test_a_folder_of_another_run_is_refused_and_so_is_a_damaged_one(folder, tmp_path):
    RunFolder(tmp_path / "empty").check_identity(CONFIG)
    folder.check_identity(changed("trainer.threads", 3))
    other, own = identity(changed("seed", 1)), identity(CONFIG)
    with pytest.raises(ValueError, match=f"holds another run: its identity is {own}, not {other}"):
        folder.check_identity(changed("seed", 1))
    summary = folder.summary()
    folder.write_summary(summary | {"identity": other})
    both = " and ".join(sorted((own, other)))
    with pytest.raises(ValueError, match=f"its identity is {both}, not {own}. It is left as it is"):
        folder.check_identity(CONFIG)


DEEP = "[" * 2000
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\n" + yaml.safe_dump(CONFIG)
RESUMED = ('{"resumed": 7}', '{"resumed": ["x"]}')
OWN = identity(CONFIG)
UNFINISHED = (f'{{"identity": "{OWN}"}}', f'{{"identity": "{OWN}", "status": "completed"}}')
DAMAGED = {
    "summary.json": ("", "{half", "[]", "{}", "7", "\0", DEEP, *UNFINISHED),
    "provenance.json": ("", "[]", DEEP, *RESUMED, " " * (2**22 + 1)),
    "config.yaml": ("", "a: [", "[1]", "schedule: 7", "schedule: {}", "schedule: {_target_: 7}"),
}
DAMAGED["config.yaml"] += ("\0", "a: 2025-99-99", "a: !!python/name:os.system", "\udcff", DEEP)
DAMAGED["config.yaml"] += (BOMB, "#" * (2**18 + 1))


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_told_in_one_line_and_nothing_is_changed(folder, name):
    for text in DAMAGED[name]:
        (folder.path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        before = {path: path.read_bytes() for path in folder.path.iterdir()}
        with pytest.raises(ValueError, match=r"run is damaged \(.*\): mend it or move") as raised:
            folder.check_identity(CONFIG)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
        assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
@pytest.mark.parametrize("what", ["link", "link to itself", "pipe", "wrong kind"])
def test_nothing_is_written_elsewhere_through_a_foreign_run_folder(folder, tmp_path, name, what):
    target, place = tmp_path / "elsewhere", folder.path / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    if name in FOLDERS:
        target.mkdir()
    else:
        target.touch()
    if what == "pipe":
        os.mkfifo(place)
    elif what == "wrong kind":
        place.touch() if name in FOLDERS else place.mkdir()
    else:
        place.symlink_to(target if what == "link" else place)
    with pytest.raises(Damaged, match=f"^{name} is (a link that leads out of it|not a f)"):
        folder.check_places()
    with pytest.raises(ValueError, match=f"run is damaged \\({name} is "):
        folder.check_identity(CONFIG)


def test_a_run_folder_may_be_reached_through_a_link_and_hold_links_of_its_own(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder.path)
    (folder.path / "wandb").mkdir()
    (folder.path / "wandb" / "debug.log").symlink_to(tmp_path)  # W&B's are replaced, not written
    (folder.path / "notes").symlink_to(tmp_path)
    (folder.path / "kept").mkdir()
    (folder.path / "checkpoints").symlink_to("kept")
    RunFolder(tmp_path / "link").check_identity(CONFIG)


def test_what_stands_in_two_places_is_written_twice(tmp_path):
    shared = [1, 2]
    folder = RunFolder(tmp_path / "r")
    folder.create(CONFIG | {"one": shared, "two": {"three": shared}}, {})
    assert folder.config() == CONFIG | {"one": shared, "two": {"three": shared}}


def test_the_files_are_read_as_they_were_written(folder):
    text = (folder.path / "config.yaml").read_text()
    assert yaml.safe_load(text) == CONFIG
    assert [line.partition(":")[0] for line in text.splitlines() if line[0] != " "] == list(CONFIG)
    folder.write_provenance({"command": "python «train.py»"})
    assert folder.provenance() == {"command": "python «train.py»"}
    assert json.loads((folder.path / "provenance.json").read_text()) == folder.provenance()
    assert folder.figures == folder.path / "figures" and folder.figures.is_dir()
    assert folder.load_checkpoint() is None
    folder.save_checkpoint({"weights": torch.arange(3)})
    folder.save_checkpoint({"weights": torch.arange(2)}, "best")
    assert folder.load_checkpoint()["weights"].tolist() == [0, 1, 2]
    assert folder.load_checkpoint("best")["weights"].tolist() == [0, 1]
    torch.save({"weights": os.getcwd}, folder.checkpoint("code"))  # reading it could run anything
    with pytest.raises(Damaged, match=r"^it holds something else than tensors and plain values$"):
        folder.load_checkpoint("code")
    folder.checkpoint("code").unlink()
    assert sorted(p.name for p in (folder.path / "checkpoints").iterdir()) == ["best.pt", "last.pt"]


def test_a_row_has_eight_digits_and_the_columns_of_the_file_it_is_added_to(folder):
    values = row(3) | {"lr": 0.123456789, "epoch": 1.5}
    folder.append_row(values)
    head, line = (folder.path / "metrics.csv").read_text().splitlines()
    assert head == (
        "epoch,step,lr,train_loss,train_error,val_loss,val_error,val_top5_error,test_loss,"
        "test_error,test_top5_error,train_seconds,eval_seconds,images_per_second,active_blocks"
    )
    third = ",".join(["0.33333333"] * 2)
    assert line == f"1.5,3,0.12345679,{third},,{third},{third},{third},{third},0.33333333"
    (folder.path / "metrics.csv").write_text("epoch,step,val_loss\n1,11,2\n")
    folder.append_row(values)
    assert (folder.path / "metrics.csv").read_text() == "epoch,step,val_loss\n1,11,2\n1.5,3,\n"
    assert folder.rows()[1] == {"epoch": 1.5, "step": 3.0, "val_loss": None}


def test_what_comes_after_a_step_is_forgotten_the_best_checkpoint_with_it(folder):
    folder.drop_after(0)  # nothing is there
    for step in (10, 20, 100):
        folder.append_row(row(step))
    kept = "".join((folder.path / "metrics.csv").read_text().splitlines(keepends=True)[:3])
    folder.save_checkpoint({"step": 20, "model": {}}, "best")
    folder.save_checkpoint({"step": 100}, "last")
    folder.drop_after(20)
    assert (folder.path / "metrics.csv").read_text() == kept
    assert folder.load_checkpoint("best")["step"] == 20
    folder.drop_after(19)
    assert [r["step"] for r in folder.rows()] == [10]
    assert folder.load_checkpoint("best") is None
    assert folder.load_checkpoint() == {"step": 100}


WRITERS = {
    "summary": lambda folder: folder.set_status("completed"),
    "provenance": lambda folder: folder.write_provenance({"new": 1}),
    "row": lambda folder: folder.append_row(row(2)),
    "dropped": lambda folder: folder.drop_after(0),
    "checkpoint": lambda folder: folder.save_checkpoint({"step": 2}),
    "best": lambda folder: folder.save_checkpoint({"step": 2}, "best"),
}


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_process_killed_while_it_writes_leaves_the_old_file(folder, monkeypatch, write):
    folder.append_row(row(1))
    for name in ("last", "best"):
        folder.save_checkpoint({"step": 0, "model": {}}, name)
    (folder.path / "notes.tmp").write_text("a user's")
    before = contents(folder.path)

    def killed(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # just before the new file takes the old one's place
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(folder)
    after = contents(folder.path)
    kept = dict(before)
    if write is WRITERS["checkpoint"]:  # a second name for the last one
        kept["checkpoints/previous.pt"] = before["checkpoints/last.pt"]
    assert {name: after[name] for name in kept} == kept and len(after) == len(kept) + 1
    folder.remove_temporary()
    assert contents(folder.path) == kept
    write(folder)
    assert contents(folder.path) != kept and set(contents(folder.path)) == set(kept)


def state_at(step):
    weights = torch.full((999,), float(step))
    return dict.fromkeys(RESUMABLE) | {"model": weights, "counters": {"step": step}}


@pytest.fixture
def told(monkeypatch):
    """What is warned of."""
    lines = []
    monkeypatch.setattr(logging.getLogger("sdnet"), "warning", lambda m, *a: lines.append(m % a))
    return lines


def flipped(content, draw):
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


DAMAGES = {
    "a bit": flipped,
    "a sector of zeros": lambda content, draw: (
        content[: (at := draw.randrange(len(content) - 512))] + bytes(512) + content[at + 512 :]
    ),
    "cut short": lambda content, draw: content[: draw.randrange(len(content))],
    "empty": lambda content, draw: b"",
    "longer": lambda content, draw: content + b"x",
    "text": lambda content, draw: b"damaged",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(folder, damage, told):
    draw = random.Random(0)
    for _ in range(40):
        for step in (11, 22):
            folder.save_checkpoint(state_at(step))
        path = folder.checkpoint()
        spoilt = damage(path.read_bytes(), draw)
        path.write_bytes(spoilt)  # in place: the previous one is another file
        state = folder.newest()
        assert torch.equal(state["model"], state_at(state["counters"]["step"])["model"])
        if state["counters"]["step"] == 22:  # what was hit is the mark of the digest alone
            assert not told
            continue
        (line,) = told
        assert line.startswith(f"{path} is damaged (it") and "weights_only" not in line
        assert line.endswith("is now last.pt.damaged; the run goes on from previous.pt, step 11")
        assert path.with_name("last.pt.damaged").read_bytes() == spoilt
        told.clear()
        assert folder.newest()["counters"]["step"] == 11 and not told


def test_a_checkpoint_that_lost_its_digest_or_is_another_runs_is_not_believed(
    folder, told, tmp_path
):
    other = RunFolder(tmp_path / "other")
    other.create(changed("seed", 1), {})
    other.save_checkpoint(state_at(22))
    for step in (11, 22):
        folder.save_checkpoint(state_at(step))
    path, whole = folder.checkpoint(), folder.checkpoint().read_bytes()
    mark = whole.rindex(b"sdnet/blake2b:")
    spoilt = {
        "its checksum is gone": [whole[:mark] + b"S" + whole[mark + 1 :], whole + bytes(512)],
        "it is that of another run": [other.checkpoint().read_bytes()],
    }
    for why, contents in spoilt.items():
        for content in contents:
            path.write_bytes(content)
            (path.parent / "last.pt.damaged").unlink(missing_ok=True)
            assert folder.newest()["counters"]["step"] == 11
            assert why in told.pop() and not told
    (path.parent / "last.pt.damaged").unlink()
    (path.parent / "last.pt.damaged").mkdir()
    path.write_bytes(b"damaged")
    assert folder.newest()["counters"]["step"] == 11  # set aside under another name


def test_rows_are_whole_whatever_becomes_of_the_file_while_they_are_added(folder, told):
    folder.drop_after(0)
    file = folder.path / "metrics.csv"
    for step, change in ((1, lambda: file.unlink()), (2, lambda: file.write_text("x")), (3, None)):
        folder.append_row(row(step))
        assert [r["step"] for r in folder.rows()] == list(range(1, step + 1))
        if change:
            change()
    assert told == [f"{file} is not what was written: it is restored"] * 2
    assert RunFolder(folder.path).rows() == folder.rows() and len(folder.rows()) == 3


def test_with_no_sound_checkpoint_a_run_begins_anew_and_a_damaged_best_one_stops_nothing(
    folder, told
):
    for step in (11, 22):
        folder.save_checkpoint(state_at(step))
    folder.save_checkpoint({"model": {}}, "best")
    for name in ("last", "previous"):
        folder.checkpoint(name).write_bytes(b"damaged")
    assert folder.newest() is None and len(told) == 2
    assert all(line.endswith("; the run begins anew") for line in told)
    told.clear()
    folder.drop_after(22)
    assert len(told) == 1 and told[0].endswith("; the run goes on without it")
    folder.drop_after(22)
    assert len(told) == 1


def test_what_was_changed_in_the_metrics_is_restored_from_the_checkpoint(folder, told):
    for step in (1, 2, 3):
        folder.append_row(row(step))
    file = folder.path / "metrics.csv"
    whole = file.read_text()
    two = "".join(whole.splitlines(keepends=True)[:3])
    folder.drop_after(2, two)  # the row of 3 was written, and its checkpoint was not
    assert file.read_text() == two and not told
    changes = (None, two[: len(two) // 2], two[:-1], two.replace("0.3", "0.4"), "x\ny\n", "\x00")
    for change in changes:
        file.unlink() if change is None else file.write_text(change)
        folder.drop_after(2, two)
        assert file.read_text() == two
        assert told == [f"{file} is not what was written: it is restored"]
        told.clear()


def test_text_that_cannot_be_written_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    write_atomically(file, "ä")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "\ud800")
    assert file.read_bytes() == "ä".encode()
