"""Weights & Biases in this process, with a stand-in for its server or its run."""

import hashlib
import json
import logging
import math
import os
import shutil
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import wandb
from PIL import Image
from wandb.sdk import wandb_setup

from sdnet.listeners import wandb as tracking
from sdnet.listeners.telemetry import Telemetry
from sdnet.listeners.wandb_run import WandbListener
from sdnet.runs.predictions import Predictions, write_predictions
from sdnet.training.counters import Counters
from sdnet.training.listener import Listener

SETTINGS = {
    "mode": "auto",
    "project": "p",
    "entity": "e",
    "group": "g",
    "name": None,
    "tags": ["t"],
}


KEY = "k" * 40


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path, caplog):
    """No variable of W&B's or of a proxy's, no key, and nothing of a run that is under way."""
    for name in list(os.environ):
        if name.startswith("WANDB") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb, "teardown", lambda: pytest.fail("teardown"))
    monkeypatch.setattr(
        wandb_setup._WandbSetup, "ensure_service", lambda self: pytest.fail("began")
    )
    monkeypatch.setattr(wandb_setup, "_singleton", None)
    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)
    caplog.set_level(logging.WARNING)


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

        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setattr(wandb_setup, "_singleton", None)
        monkeypatch.setattr(socket, "create_connection", connect)
        return tried

    return at


def test_what_a_function_raises_is_lost_and_so_is_being_late():
    assert tracking.ask(9, divmod, 7, 4) == (1, 3)
    for error, text in (
        (ValueError("two\n lines"), "ValueError: two lines"),
        (SystemExit(), "SystemExit"),
    ):
        with pytest.raises(tracking.Lost, match=f"^{text}$") as lost:
            tracking.ask(9, Mock(side_effect=error))
        assert lost.value.__cause__ is error
    with pytest.raises(tracking.Mistake, match="a user's"):
        tracking.ask(9, Mock(side_effect=tracking.Mistake("a user's")))
    for_ever = threading.Event()
    with pytest.raises(tracking.Lost, match=r"^no answer in 0\.01 s$"):
        tracking.ask(0.01, for_ever.wait)
    for_ever.set()


def test_a_run_waits_half_a_minute_in_all():
    assert tracking.REACH + tracking.BEGIN + tracking.END + tracking.FORGET == 30
    assert tracking.ANSWER + 1 < tracking.BEGIN and tracking.UPLOAD < tracking.END


def test_credentials_are_a_key_a_token_or_an_entry_for_the_very_host(monkeypatch, tmp_path):
    url = "https://other.host:8080"
    assert not tracking.has_credentials(url)
    file = tmp_path / "netrc"
    file.write_text(f"machine other.host:8080\n  login user\n  password {KEY}\n")
    assert tracking.has_credentials(url)
    assert not tracking.has_credentials("https://other.host")
    file.write_text(f"machine other.host:8080\n  login user\n  password {KEY}\nnonsense")
    assert not tracking.has_credentials(url)
    for name, value in (("WANDB_API_KEY", KEY), ("WANDB_IDENTITY_TOKEN_FILE", "x")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert tracking.has_credentials(url)
            patch.setenv(name, "")
            assert not tracking.has_credentials(url)
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    with pytest.raises(ValueError, match="WANDB_API_KEY invalid") as error:
        tracking.resolve_mode("online")
    assert "secret" not in str(error.value)


def test_a_mode_that_was_chosen_is_kept_and_without_one_wandbs_words_decide(monkeypatch, server):
    server("https://api.host")
    assert tracking.resolve_mode("offline") == "offline"
    words = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}
    words |= dict.fromkeys(("online", "run", "shared"), "online")
    Path("wandb").mkdir()
    for key in ("", KEY):
        monkeypatch.setenv("WANDB_API_KEY", key)
        for word, meant in words.items():
            Path("wandb", "settings").write_text(f"[default]\nmode = {word}\n")
            monkeypatch.setattr(wandb_setup, "_singleton", None)
            expected = meant if key or meant != "online" else "offline"
            assert tracking.resolve_mode("auto") == expected
            assert tracking.resolve_mode("offline") == "offline"  # the setting comes first
    for word, meant in words.items():
        monkeypatch.setenv("WANDB_MODE", word)
        monkeypatch.setattr(wandb_setup, "_singleton", None)
        assert tracking.resolve_mode("auto") == meant
        assert tracking.resolve_mode("disabled") == "disabled"


@pytest.mark.parametrize(
    "name, value, shown",
    [
        ("WANDB_MODE", "foo", "'offline'.*, got 'foo'$"),
        ("WANDB_MODE", "", "'offline'.*, got ''$"),
        ("WANDB_BASE_URL", "foo", "valid URL.*, got 'foo'$"),
        ("WANDB_INIT_TIMEOUT", "soon", "valid number.*, got 'soon'$"),
        ("WANDB_API_KEY", " k", "whitespace$"),
        ("WANDB__EXTRA_HTTP_HEADERS", "{secret", "line 1 column 2.*$"),
    ],
)
def test_a_variable_that_wandb_refuses_is_named_in_one_line(monkeypatch, name, value, shown):
    monkeypatch.setenv(name, value)
    assert tracking.resolve_mode("disabled") == "disabled"
    for mode in ("auto", "offline", "online"):
        with pytest.raises(ValueError, match=f"^the variable {name} is refused.*{shown}") as error:
            tracking.resolve_mode(mode)
        assert "\n" not in str(error.value) and "secret" not in str(error.value)


def test_a_wandb_that_cannot_be_used_at_all_is_disabled(monkeypatch, caplog):
    monkeypatch.setattr(wandb_setup, "singleton", Mock(side_effect=RuntimeError("broken")))
    assert tracking.resolve_mode("auto") == "disabled"
    assert caplog.messages == ["W&B cannot be used (RuntimeError: broken): it is disabled"]


def test_without_credentials_auto_is_offline_and_online_a_mistake(monkeypatch, server):
    tried = server("https://api.host")
    assert tracking.resolve_mode("auto") == "offline"
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
        ("https://api.host", ("api.host", 443, 3)),
        ("http://api.host", ("api.host", 80, 3)),
        ("http://local.host:8080/path", ("local.host", 8080, 3)),
    ],
)
def test_with_credentials_the_mode_is_online_where_the_server_answers(
    monkeypatch, server, caplog, url, address
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for mode in ("auto", "online"):
        tried = server(url)
        tried.clear()
        assert tracking.resolve_mode(mode) == "online" and tried == [address, "closed"]
        assert server(url, TimeoutError("timed out")) is tried
        tried.clear()
        caplog.clear()
        assert tracking.resolve_mode(mode) == "offline" and tried == [address]
        assert caplog.messages == [
            f"W&B at {address[0]} cannot be reached (TimeoutError: timed out): this run is offline"
        ]


def test_a_proxy_may_reach_what_this_machine_does_not(monkeypatch, server):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tried = server("https://api.host", OSError("no route"))
    for name in ("https_proxy", "WANDB_HTTPS_PROXY"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "http://proxy:1")
            patch.setattr(wandb_setup, "_singleton", None)
            assert tracking.resolve_mode("auto") == "online" and tried == []
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    server("http://api.host", OSError("no route"))  # another scheme
    assert tracking.resolve_mode("auto") == "offline" and len(tried) == 1


@pytest.fixture
def begun(monkeypatch):
    """The arguments of each `wandb.init`, which gives what is put into the list's `answers`."""

    class Begun(list):
        answers = ()

    begun = Begun()
    Path("run").mkdir()

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
    assert (settings.silent, settings.console) == (True, "off")
    assert (settings.init_timeout, settings.finish_timeout) == (8, 8)
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


@pytest.mark.parametrize("errors", [0, 1, 2])
def test_where_a_run_cannot_begin_it_is_offline_and_then_disabled(
    begun, monkeypatch, caplog, errors
):
    monkeypatch.setenv("WANDB_SERVICE", "of another process")
    torn = []
    monkeypatch.setattr(wandb, "teardown", lambda: torn.append(len(begun)))
    raised = [wandb.errors.CommError("no answer"), OSError("no folder")][:errors]
    begun.answers = [*raised, Run("agent456")]
    run = tracking.Run(SETTINGS, "online", Path("run"), "id", False, name="n")
    assert run.mode == ("online", "offline", "disabled")[errors]
    assert [arguments["mode"] for arguments in begun] == ["online", "offline"][: errors + 1]
    assert run.id == ("id" if errors == 2 else "agent456")
    assert torn == list(range(1, errors + 1))  # before another begins
    assert (
        caplog.messages
        == [
            "W&B cannot be used (CommError: no answer): for this run it is offline",
            "W&B cannot be used (OSError: no folder): for this run it is disabled",
        ][:errors]
    )
    assert ("WANDB_SERVICE" in os.environ) == (errors == 0)
    run.do(lambda run: run.log({"a": 1}))
    assert errors == 2 or run.run.logged == [{"a": 1}]


def test_what_wandb_warns_of_is_told_and_nothing_else_it_prints(begun, caplog, capsys):
    tracking.start_run(SETTINGS, "offline", Path("run"), "id", False)
    for say in (wandb.termlog, wandb.termerror, wandb.termwarn):
        say("words")
    assert caplog.messages == ["wandb: WARNING words"]
    assert capsys.readouterr() == ("", "")


class Run:
    """Stands in for a W&B run."""

    def __init__(self, run_id="id000000"):
        self.id = run_id
        self.metrics, self.logged, self.summary, self.ended = [], [], {}, []

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code=None):
        self.ended.append(exit_code)


def config(name=None, log_every=4):
    return {"wandb": SETTINGS | {"name": name}, "trainer": {"log_every": log_every}, "seed": 0}


def listener(begun, run=None, **changes):
    begun.answers = [run or Run()] * 9
    arguments = {"config": config(), "mode": "offline", "folder": Path("run"), "name": "ours"}
    arguments |= {"run_id": "id000000", "resumed": False} | changes
    return WandbListener(**arguments)


def test_what_ends_a_thread_of_wandbs_own_is_printed_by_nobody(monkeypatch):
    heard = []
    monkeypatch.setattr(threading, "excepthook", lambda args: heard.append(args.exc_type))
    tracking.load_settings()
    tracking.load_settings()

    def ends(module):
        exec("def ends(): raise BrokenPipeError", module)
        return module["ends"]

    def asks_wandb():
        ends({"__name__": "wandb.sdk.made"})()

    nameless = {"__builtins__": __builtins__}
    wandbs = ends({"__name__": "wandb.sdk.made"})
    others = (ends({"__name__": "wandbs"}), ends(nameless), asks_wandb)
    for printed, target in enumerate((wandbs, *others)):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
        assert heard == [BrokenPipeError] * printed


def test_a_run_is_named_and_its_numbers_have_their_axes(begun):
    made = listener(begun, resumed=True)
    listener(begun, config=config(name="theirs"))
    assert [arguments["name"] for arguments in begun] == ["ours", "theirs"]
    first = begun[0]
    assert (first["job_type"], first["id"], first["resume"]) == ("train", "id000000", "allow")
    assert first["config"] == config() and first["dir"] == Path("run")
    of_steps = [("interval/active_blocks", "step"), ("telemetry/*", "step")]
    assert made.run.run.metrics[:3] == [("*", "epoch"), *of_steps]


def test_active_blocks_are_the_mean_of_each_interval_and_of_the_rest(begun):
    made = listener(begun)
    counters = Counters(step=2, active=100)
    trainer = SimpleNamespace(counters=counters, total_steps=10, classes=[])
    made.on_start(trainer)  # resumed after 2 steps
    for active in (1, 2, 3, 4, 5, 6, 7, 8):
        trainer.counters.step += 1
        trainer.counters.active += active
        made.on_step(trainer)
    assert made.run.run.logged == [
        {"step": 4, "interval/active_blocks": 1.5},
        {"step": 8, "interval/active_blocks": 4.5},
        {"step": 10, "interval/active_blocks": 7.5},
    ]


def test_a_run_that_is_not_resumed_counts_from_its_first_step(begun):
    made = listener(begun, config=config(log_every=1))
    trainer = SimpleNamespace(counters=Counters(step=1, active=7), total_steps=3)
    made.on_step(trainer)
    assert made.run.run.logged == [{"step": 1, "interval/active_blocks": 7.0}]


def test_a_row_is_logged_without_what_was_not_measured(begun):
    made = listener(begun)
    row = {"epoch": 1.0, "step": 11, "lr": 0.0, "val_error": None, "test_error": 5.0}
    telemetry = Telemetry()
    telemetry.last = [{"name": "layer1.0", "realised": 0.5, "gradient_norm": None}]
    made.on_row(SimpleNamespace(listeners=(Listener(), telemetry)), row)
    known = {"epoch": 1.0, "step": 11, "lr": 0.0, "test_error": 5.0}
    assert made.run.run.logged == [known | {"telemetry/realised/layer1.0": 0.5}]


@pytest.mark.parametrize("trouble", ["log", "finish", "disk"])
def test_trouble_with_wandb_is_told_once_and_never_stops_a_run(begun, monkeypatch, caplog, trouble):
    made, stub = listener(begun), Run()
    made.run.run = stub
    torn = []
    monkeypatch.setattr(wandb, "teardown", lambda: torn.append(None))
    if trouble == "disk":
        full = SimpleNamespace(free=0)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    else:
        monkeypatch.setattr(stub, trouble, lambda *args, **named: 1 / 0)
    for epoch in (1.0, 2.0):
        made.on_row(SimpleNamespace(listeners=()), {"epoch": epoch})
    made.finish({"status": "completed"}, [])
    reason = "OSError: [Errno 28] No space left on device: 'run'"
    if trouble != "disk":
        reason = "ZeroDivisionError: division by zero"
    assert caplog.messages == [f"W&B is lost ({reason}): nothing more is logged to it"]
    assert torn == [None]


def test_a_figure_that_is_missing_does_not_keep_a_run_from_its_end(begun, monkeypatch):
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    made, stub = listener(begun), Run()
    made.run.run = stub
    made.finish({"status": "completed"}, [Path("missing.png")])
    assert stub.summary == {"status": "completed"} and stub.ended == [0]


@pytest.mark.parametrize(
    "summary, code",
    [({"status": "completed", "test_error": 5.0}, 0), ({"status": "failed"}, 1), ({}, 1)],
)
def test_the_end_of_a_run_has_its_summary_figures_and_exit_code(begun, tmp_path, summary, code):
    for name in ("curves", "survival"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    made = listener(begun)
    made.finish(summary, [tmp_path / "survival.png", tmp_path / "curves.png"])
    (figures,) = made.run.run.logged
    assert list(figures) == ["figures/survival", "figures/curves"]
    assert all(isinstance(image, wandb.Image) for image in figures.values())
    assert made.run.run.summary == summary and made.run.run.ended == [code]


def test_the_end_of_a_completed_run_has_a_table_of_what_it_confuses_and_no_logits(begun, tmp_path):
    made = listener(begun, folder=tmp_path)
    made.on_start(SimpleNamespace(counters=Counters(), classes=["cat", "dog"]))
    logits = np.float32([[2, 0], [2, 0], [0, 2], [0, 2]])
    parts = {"test": Predictions.from_logits(logits, [0, 1, 1, 1], "a")}
    write_predictions(tmp_path / "predictions.npz", parts, 1.0, 1)
    made.finish({"status": "completed"}, [])
    (table,) = [values["confusion"] for values in made.run.run.logged if values]
    assert table.columns == ["actual", "predicted", "count"]
    assert table.data == [["cat", "cat", 1], ["dog", "cat", 1], ["dog", "dog", 2]]

    failed = listener(begun, Run(), folder=tmp_path)
    failed.finish({"status": "failed"}, [])
    assert not any(failed.run.run.logged)


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


def test_a_report_that_wandb_does_not_take_is_told(begun, report, monkeypatch, caplog):
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    begun.answers = [wandb.errors.Error("no")]
    tracking.log_report(report)
    begun.answers = [None, SimpleNamespace(id="x")]
    tracking.log_report(report)
    assert [m.split(" (")[0] for m in caplog.messages] == ["W&B cannot be used", "W&B is lost"]


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
