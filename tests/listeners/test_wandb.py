"""Weights & Biases in this process, with a stand-in for its server or its run."""

import hashlib
import json
import logging
import math
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import wandb
from PIL import Image

from sdnet.listeners import wandb as tracking
from sdnet.training.counters import Counters

SETTINGS = {
    "mode": "auto",
    "project": "p",
    "entity": "e",
    "group": "g",
    "name": None,
    "tags": ["t"],
}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No variable of W&B's or of a proxy's, no key, and nothing of a run that is under way."""
    for name in list(os.environ):
        if name.startswith("WANDB") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(wandb, "teardown", lambda: pytest.fail("teardown"))


@pytest.fixture
def server(monkeypatch):
    """Sets the server's address; whom this process then tries to reach is listed."""
    tried = []

    def at(url, error=None):
        def connect(address, timeout):
            tried.append((*address, timeout))
            if error is not None:
                raise error
            return SimpleNamespace(close=lambda: tried.append("closed"))

        settings = SimpleNamespace(base_url=url)
        monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=settings))
        monkeypatch.setattr(socket, "create_connection", connect)
        return tried

    return at


def test_credentials_are_a_key_a_token_or_an_entry_for_the_very_host(monkeypatch, tmp_path):
    assert not tracking.has_credentials("api.wandb.ai")
    file = tmp_path / "netrc"
    file.write_text("machine other.host\n  login user\n  password secret\n")
    assert not tracking.has_credentials("api.wandb.ai")
    assert tracking.has_credentials("other.host")
    file.write_text("machine other.host\n  login user\nnonsense")
    assert not tracking.has_credentials("other.host")
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not tracking.has_credentials("home.host")
    (tmp_path / ".netrc").write_text("machine home.host\n  login user\n  password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert tracking.has_credentials("home.host")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "x")
            assert tracking.has_credentials("api.wandb.ai")
            patch.setenv(name, "")
            assert not tracking.has_credentials("api.wandb.ai")


def test_a_mode_that_was_chosen_is_kept_and_auto_is_what_the_variable_says(monkeypatch):
    monkeypatch.setattr(wandb, "setup", lambda: pytest.fail("nobody is to be asked"))
    assert tracking.resolve_mode("offline") == "offline"
    assert tracking.resolve_mode("disabled") == "disabled"
    for variable in ("offline", "disabled"):
        monkeypatch.setenv("WANDB_MODE", variable)
        assert tracking.resolve_mode("auto") == variable
    assert tracking.resolve_mode("offline") == "offline"  # the setting comes first


def test_without_credentials_auto_is_offline_and_online_a_mistake(monkeypatch, server):
    tried = server("https://api.host")
    assert tracking.resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    message = (
        r"^mode online needs credentials: run `wandb login` or set WANDB_API_KEY; auto and off"
    )
    with pytest.raises(ValueError, match=message):
        tracking.resolve_mode("online")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ValueError, match=message):
        tracking.resolve_mode("auto")
    assert tried == []


@pytest.mark.parametrize(
    "url, address",
    [
        ("https://api.host", ("api.host", 443, 5)),
        ("http://api.host", ("api.host", 80, 5)),
        ("http://local.host:8080/path", ("local.host", 8080, 5)),
    ],
)
def test_with_credentials_the_mode_is_online_where_the_server_answers(
    monkeypatch, tmp_path, server, caplog, url, address
):
    (tmp_path / "netrc").write_text(f"machine {address[0]}\n  login user\n  password secret\n")
    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)
    for mode in ("auto", "online"):
        tried = server(url)
        tried.clear()
        assert tracking.resolve_mode(mode) == "online" and tried == [address, "closed"]
        assert server(url, TimeoutError("timed out")) is tried
        tried.clear()
        caplog.clear()
        assert tracking.resolve_mode(mode) == "offline" and tried == [address]
        assert caplog.messages == [
            f"W&B at {address[0]} cannot be reached (timed out): this run is offline"
        ]


def test_a_proxy_may_reach_what_this_machine_does_not(monkeypatch, server):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    tried = server("https://api.host", OSError("no route"))
    assert tracking.resolve_mode("auto") == "online" and tried == []
    server("http://api.host", OSError("no route"))  # another scheme
    assert tracking.resolve_mode("auto") == "offline" and len(tried) == 1


@pytest.fixture
def begun(monkeypatch):
    """The arguments of each `wandb.init`, which gives what is put into the list's `answers`."""

    class Begun(list):
        answers = ()

    begun = Begun()

    def init(**arguments):
        begun.append(arguments)
        answer = begun.answers[len(begun) - 1] if begun.answers else "a run"
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(wandb, "init", init)
    return begun


@pytest.mark.parametrize(
    "mode, resumed, resume",
    [
        ("online", False, "allow"),
        ("online", True, "allow"),
        ("offline", False, None),
        ("offline", True, "allow"),
    ],
)
def test_a_run_begins_with_what_the_settings_say(begun, mode, resumed, resume):
    folder = Path("run")
    made = tracking.start_run(SETTINGS, mode, folder, "id000000", resumed, name="n", job_type="j")
    assert made == "a run"
    (arguments,) = begun
    settings = arguments.pop("settings")
    assert (settings.silent, settings.console, settings.init_timeout) == (True, "off", 15)
    assert arguments == {
        "mode": mode,
        "project": "p",
        "entity": "e",
        "group": "g",
        "tags": ["t"],
        "dir": folder,
        "id": "id000000",
        "resume": resume,
        "reinit": "finish_previous",
        "name": "n",
        "job_type": "j",
    }


def test_under_an_agent_a_run_belongs_where_the_agent_says(begun, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    tracking.start_run(SETTINGS, "online", Path("run"), "id000000", True, name="n")
    dropped = {"id": None, "project": None, "entity": None, "resume": None}
    assert {key: begun[0][key] for key in dropped} == dropped
    assert (begun[0]["group"], begun[0]["name"], begun[0]["mode"]) == ("g", "n", "online")


def test_where_the_server_does_not_answer_a_run_is_offline(begun, monkeypatch, caplog):
    torn = []
    monkeypatch.setattr(wandb, "teardown", lambda: torn.append(len(begun)))
    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)
    begun.answers = [wandb.errors.CommError("no answer"), "an offline run"]
    assert tracking.start_run(SETTINGS, "online", Path("run"), "id", False) == "an offline run"
    assert torn == [1]  # between the two
    first, second = begun
    assert first | {"mode": "offline"} == second and first["mode"] == "online"
    assert caplog.messages == ["W&B cannot be used (no answer): this run is offline"]
    begun.answers = [*begun.answers, ValueError("a mistake")]
    with pytest.raises(ValueError, match="a mistake"):
        tracking.start_run(SETTINGS, "online", Path("run"), "id", False)


class Run:
    """Stands in for a W&B run."""

    def __init__(self):
        self.metrics, self.logged, self.summary, self.ended = [], [], {}, []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.ended.append(None)

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code):
        self.ended.append(exit_code)


def config(name=None, log_every=4):
    return {"wandb": SETTINGS | {"name": name}, "trainer": {"log_every": log_every}, "seed": 0}


def listener(begun, run=None, **changes):
    begun.answers = [run or Run()] * 9
    arguments = {"config": config(), "mode": "offline", "folder": Path("run"), "name": "ours"}
    arguments |= {"run_id": "id000000", "resumed": False} | changes
    return tracking.WandbListener(**arguments)


def test_a_run_is_named_and_its_numbers_have_their_axes(begun):
    made = listener(begun, resumed=True)
    listener(begun, config=config(name="theirs"))
    assert [arguments["name"] for arguments in begun] == ["ours", "theirs"]
    first = begun[0]
    assert (first["job_type"], first["id"], first["resume"]) == ("train", "id000000", "allow")
    assert first["config"] == config() and first["dir"] == Path("run")
    assert made.run.metrics[:2] == [("*", "epoch"), ("interval/active_blocks", "step")]


def test_active_blocks_are_the_mean_of_each_interval_and_of_the_rest(begun):
    made = listener(begun)
    trainer = SimpleNamespace(counters=Counters(step=2, active=100), total_steps=10)
    made.on_start(trainer)  # resumed after 2 steps
    for active in (1, 2, 3, 4, 5, 6, 7, 8):
        trainer.counters.step += 1
        trainer.counters.active += active
        made.on_step(trainer)
    assert made.run.logged == [
        {"step": 4, "interval/active_blocks": 1.5},
        {"step": 8, "interval/active_blocks": 4.5},
        {"step": 10, "interval/active_blocks": 7.5},
    ]


def test_a_run_that_is_not_resumed_counts_from_its_first_step(begun):
    made = listener(begun, config=config(log_every=1))
    trainer = SimpleNamespace(counters=Counters(step=1, active=7), total_steps=3)
    made.on_step(trainer)
    assert made.run.logged == [{"step": 1, "interval/active_blocks": 7.0}]


def test_a_row_is_logged_without_what_was_not_measured(begun):
    made = listener(begun)
    row = {"epoch": 1.0, "step": 11, "lr": 0.0, "val_error": None, "test_error": 5.0}
    made.on_row(None, row)
    assert made.run.logged == [{"epoch": 1.0, "step": 11, "lr": 0.0, "test_error": 5.0}]


def test_trouble_with_wandb_never_stops_a_run(begun, monkeypatch, caplog):
    made = listener(begun)
    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)
    monkeypatch.setattr(made.run, "log", lambda values: 1 / 0)
    made.on_row(None, {"epoch": 1.0})
    assert caplog.messages == ["not logged to W&B: ZeroDivisionError: division by zero"]


@pytest.mark.parametrize(
    "summary, code",
    [({"status": "completed", "test_error": 5.0}, 0), ({"status": "failed"}, 1), ({}, 1)],
)
def test_the_end_of_a_run_has_its_summary_figures_and_exit_code(begun, tmp_path, summary, code):
    for name in ("curves", "survival"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    made = listener(begun)
    made.finish(summary, [tmp_path / "survival.png", tmp_path / "curves.png"])
    (figures,) = made.run.logged
    assert list(figures) == ["figures/survival", "figures/curves"]
    assert all(isinstance(image, wandb.Image) for image in figures.values())
    assert made.run.summary == summary and made.run.ended == [code]


@pytest.fixture
def report(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "error.png")
    table = pd.DataFrame({"id": ["a", "b"], "std": [1.5, math.nan]})
    runs = [SimpleNamespace(config={"wandb": SETTINGS | {"mode": "offline"}})] * 3
    return SimpleNamespace(
        runs=runs, left_out=[1, 2], out=tmp_path, table=table, figures=[tmp_path / "error.png"]
    )


def test_a_report_is_one_run_of_its_group_that_replaces_the_one_before(begun, report):
    made = Run()
    begun.answers = [made] * 3
    place = json.dumps(["e", "p", "g"]).encode()
    run_id = hashlib.blake2b(place, digest_size=4).hexdigest()
    folders = [f"offline-run-2026-{run_id}", "offline-run-2026-0000", f"run-2026-{run_id}"]
    for name in folders:
        (report.out / "wandb" / name).mkdir(parents=True)
        (report.out / "wandb" / name / "file").touch()
    tracking.log_report(report)
    left = sorted(path.name for path in (report.out / "wandb").iterdir())
    assert left == sorted(folders[1:])
    (arguments,) = begun
    expected = {"mode": "offline", "id": run_id, "name": "report-g", "job_type": "report"}
    expected |= {"dir": report.out, "resume": None, "group": "g", "project": "p", "entity": "e"}
    assert expected.items() <= arguments.items()
    table, figures = made.logged
    assert table["report"].columns == ["id", "std"]
    assert table["report"].data == [["a", 1.5], ["b", None]]
    assert list(figures) == ["figures/error"]
    assert made.summary == {"runs": 3, "left_out": 2} and made.ended == [None]

    tracking.log_report(report)
    assert begun[1]["id"] == run_id
    for run in report.runs:
        run.config["wandb"]["group"] = "h"
    tracking.log_report(report)
    assert begun[2]["id"] != run_id and begun[2]["name"] == "report-h"


def test_a_reports_mode_is_that_of_its_runs_unless_it_is_given(begun, report, monkeypatch):
    begun.answers = [Run()] * 2
    asked = []
    monkeypatch.setattr(tracking, "resolve_mode", lambda mode: asked.append(mode) or "disabled")
    for given in (None, "online", "disabled"):
        tracking.log_report(report, given)
    assert asked == ["offline", "online", "disabled"] and begun == []
    monkeypatch.setattr(tracking, "resolve_mode", lambda mode: "online")
    tracking.log_report(report, "online")
    assert begun[0]["mode"] == "online" and begun[0]["resume"] == "allow"
