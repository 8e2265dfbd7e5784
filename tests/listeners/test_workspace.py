"""The workspace of a sweep: what W&B's library sends of it to a server of this machine."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.commands import Forked
from tests.listeners.wandb_server import Handler, Server

SETTINGS = {"project": "p", "entity": None, "group": "g", "mode": "disabled"}


class Recording(Handler):
    """Knows a user, takes a workspace, and keeps what it was asked."""

    def result(self, body):
        asked = json.loads(body)
        self.server.asked.append(asked)
        if "upsertView" in asked["query"]:
            view = {"id": "Vmlldzox", "name": asked["variables"]["name"]}
            return {"data": {"upsertView": {"view": view, "inserted": True}}}
        viewer = {"id": "v", "entity": "own", "username": "own", "flags": "{}"}
        return {"data": {"viewer": viewer | {"teams": {"edges": []}}}}


def serve():
    server = Server()
    server.RequestHandlerClass, server.asked = Recording, []
    os.environ["WANDB_BASE_URL"] = server.url
    return server


def saved(folder, group):
    from sdnet.listeners import workspace

    server = serve()
    os.environ["WANDB_API_KEY"] = "0" * 40
    runs = [SimpleNamespace(config={"wandb": SETTINGS | {"group": group}}, folder=Path(folder))]
    report = SimpleNamespace(runs=runs, figures=[Path("x/p_L.png"), Path("x/curves.png")])
    workspace.check_online()
    address = workspace.save_workspace(report)
    (asked,) = [asked["variables"] for asked in server.asked if "upsertView" in asked["query"]]
    print(json.dumps([address.startswith(server.url), asked]))


def run(tmp_path, function, *arguments):
    process = Forked(tmp_path, {}, function, *arguments)
    out, err = process.communicate(timeout=60)
    return out, err


@pytest.mark.parametrize("telemetry", [True, False])
def test_a_workspace_shows_the_sweeps_group_by_p_L(tmp_path, telemetry):
    pytest.importorskip("wandb_workspaces")
    if telemetry:
        (tmp_path / "telemetry.csv").touch()
    out, err = run(tmp_path, saved, tmp_path, 'my "group"')
    here, asked = json.loads(out.splitlines()[-1] if out else err)
    assert here and (asked["entityName"], asked["projectName"]) == ("own", "p")
    spec = json.loads(asked["spec"])["section"]
    sections = {s["name"]: s["panels"] for s in spec["panelBankConfig"]["sections"]}
    assert list(sections) == ["Sweep", "Report", *(["Telemetry"] if telemetry else [])]
    scatter, *over_epochs = [panel["config"] for panel in sections["Sweep"]]
    assert scatter["xAxis"] == "config:schedule.value.p_L"
    assert scatter["yAxis"] == "summary:test_error"
    for panel, metric in zip(over_epochs, ("test_error", "train_loss"), strict=True):
        assert (panel["xAxis"], panel["metrics"]) == ("epoch", [metric])
        assert panel["groupBy"] == "schedule.value.p_L" and panel["groupAgg"] == "mean"
    assert sections["Report"][1]["config"]["mediaKeys"] == ["figures/p_L", "figures/curves"]
    regexes = {panel["config"]["metricRegex"] for panel in sections.get("Telemetry", [])}
    assert ("telemetry/gradient_norm/.*" in regexes) == telemetry
    filters = json.dumps(spec["runSets"][0]["filters"])
    assert json.dumps('my "group"') in filters and '"group"' in filters


def without_credentials(folder):
    from sdnet.listeners import workspace

    server = serve()
    os.environ |= {"HOME": str(folder), "NETRC": f"{folder}/none"}
    os.environ.pop("WANDB_API_KEY", None)
    try:
        workspace.check_online()
    except ValueError as error:
        print(error)
    print(len(server.asked))


def test_without_credentials_nothing_is_sent_and_one_line_says_so(tmp_path):
    out, err = run(tmp_path, without_credentials, tmp_path)
    told = "mode online needs credentials: run `wandb login` or set WANDB_API_KEY"
    assert out.splitlines() == [f"nothing is sent to W&B: {told}", "0"], err


def test_a_workspace_needs_a_group():
    from sdnet.listeners import workspace

    runs = [SimpleNamespace(config={"wandb": SETTINGS | {"group": None}}, folder=Path())]
    report = SimpleNamespace(runs=runs, figures=[])
    with pytest.raises(ValueError, match=r"^wandb\.group of the runs must be a text"):
        workspace.save_workspace(report)
