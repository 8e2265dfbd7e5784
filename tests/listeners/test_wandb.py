"""Weights & Biases in this process, with a stand-in for its server or its run."""

import hashlib
import json
import math
import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pandas as pd
import pytest
import wandb
from PIL import Image
from wandb.sdk import wandb_setup

from sdnet.listeners import wandb as tracking
from tests.listeners.wandb_runs import SETTINGS, Run

pytestmark = pytest.mark.usefixtures("environment")


KEY = "k" * 40


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
