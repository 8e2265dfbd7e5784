"""docs/from-your-own-repository.md, done as it says, in an empty folder."""

import json
import re
import shlex

import pytest
import yaml

from tests import commands
from tests.conftest import ROOT

DOCUMENT = (ROOT / "docs" / "from-your-own-repository.md").read_text()
SHELL, *_ = re.findall(r"```bash\n(.*?)```", DOCUMENT, flags=re.DOTALL)
COMMANDS = [shlex.split(line)[3:] for line in SHELL.splitlines() if line.startswith("python")]
ALLOWED = re.search(r"SDNET_ALLOW_TARGETS=(\S+)", SHELL)[1]
QUICK = ["trainer.threads=1", "trainer.device=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder with the files that the page writes down."""
    folder = tmp_path_factory.mktemp("own")
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    for name, text in blocks:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("a") as file:
            file.write(text)
    return folder


@pytest.fixture(scope="module")
def sdnet(folder):
    """`python -m sdnet ...` there."""

    def run(*arguments, **variables):
        path = {"PYTHONPATH": str(folder), "SDNET_ALLOW_TARGETS": ALLOWED}
        process = commands.Forked(folder, path | variables, commands.module, "sdnet", *arguments)
        _, err = process.communicate(timeout=120)
        return process.returncode, err

    return run


@pytest.mark.parametrize("typed", COMMANDS, ids=lambda typed: " ".join(typed[3:])[:40])
def test_the_commands_of_the_page_train(folder, sdnet, typed):
    before = set(folder.rglob("summary.json"))
    status, err = sdnet(*typed, *QUICK)
    assert status == 0, err
    for file in set(folder.rglob("summary.json")) - before:
        summary = json.loads(file.read_text())
        assert summary["status"] == "completed" and summary["test_error"] < 40
        known = json.loads((file.parent / "provenance.json").read_text())
        assert known["program"] == ["-m", "sdnet", "train"]
        assert known["options"] == ["--config-dir=settings"]
        assert "--config-dir" in known["command"]
    assert len(set(folder.rglob("summary.json")) - before) == (4 if "-m" in typed else 1)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"SDNET_ALLOW_TARGETS": ""}, "dataset._target_=mine.bars is not allowed here"),
        ({"PYTHONPATH": ""}, "dataset._target_=mine.bars cannot be imported"),
        ({"SDNET_ALLOW_TARGETS": "mine.bars, mine.nothing"}, "mine.nothing cannot be found: "),
        (["~dataset.validation"], "dataset.validation must be given"),
        (["~dataset.name"], "dataset.name must be given"),
        (["model._target_=mine.Mlp"], "model.depth is not a setting of mine.Mlp"),
        (["dataset._target_=mine.Square", "~dataset.count"], "dataset._target_ must be a function"),
    ],
)
def test_what_goes_wrong_is_one_message(folder, sdnet, given, message):
    typed = ["train", "--config-dir", "settings", "dataset=bars", "wandb.mode=disabled"]
    allowed = {"SDNET_ALLOW_TARGETS": f"{ALLOWED},mine.Mlp"}
    if isinstance(given, dict):
        typed += ["model._target_=mine.nothing"] if "nothing" in str(given) else []
        allowed |= given
    else:
        typed += given
    before = set(folder.rglob("*"))
    status, err = sdnet(*typed, **allowed)
    *_, last = err.strip().splitlines()
    assert status == 1 and last.startswith("error: ") and message in last, err
    assert {path for path in set(folder.rglob("*")) - before if "__pycache__" not in str(path)} == (
        set()
    )


def test_a_sweep_of_ones_own_says_how_to_repeat_it(folder):
    report = (folder / "multirun" / "bars" / "report" / "report.md").read_text()
    found = re.findall(r"^    (PYTHONPATH=.*)$", report, flags=re.MULTILINE)
    assert len(found) == 2
    for command in found:
        path, allowed, *typed = shlex.split(command)
        assert path == f"PYTHONPATH={folder}"
        assert allowed == "SDNET_ALLOW_TARGETS=mine.Net,mine.bars"
        assert typed[:6] == ["python", "-m", "sdnet", "train", "-m", "--config-dir=settings"]
        assert "seed=0,1" in typed and "dataset=bars" in typed


def test_a_run_of_ones_own_network_is_loaded(folder):
    configurations = (folder / "outputs").rglob("config.yaml")
    run = next(file.parent for file in configurations if "mine.Net" in file.read_text())
    code = f"""import sdnet, torch
print(sdnet.load_run({str(run)!r})(torch.zeros(4, 1, 12, 12)).shape)"""
    path = {"PYTHONPATH": str(folder), "SDNET_ALLOW_TARGETS": ALLOWED}
    out, err = commands.Forked(folder, path, exec, code, {}).communicate(timeout=60)
    assert (out, err) == ("torch.Size([4, 2])\n", "")


def test_the_settings_of_the_page_are_whole(folder):
    for file in folder.glob("settings/*/*.yaml"):
        target = yaml.safe_load(file.read_text()).get("_target_")
        assert target in ALLOWED.split(",") or file.parent.name == "experiment"
