"""README and docs: their code runs, their commands compose, their links lead somewhere."""

import re
import runpy
import shlex

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from sdnet import __main__ as commands
from sdnet.config import compose
from sdnet.launch import sweep_plan
from tests.commands import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text() for page in PAGES}
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", flags=re.DOTALL | re.MULTILINE)
OWN = "from-your-own-repository.md"  # which is tried as a whole, by test_own_repository.py


def blocks(*languages):
    for name, text in TEXTS.items():
        for language, block in FENCED.findall(text):
            if language in languages and name != OWN:
                yield name, block


def typed():
    """The commands in the blocks, without comments; `<...>` is for the reader to fill in."""
    for name, block in blocks("", "bash"):
        for line in block.splitlines():
            started = re.match(r"\s*(?:pip .*&& )?((?:python|torchrun) .*)", line)
            if started and "<" not in line and "docs/settings.py" not in line:
                yield name, shlex.split(started[1], comments=True)


TRAIN = [(n, w[w.index("train.py") + 1 :]) for n, w in typed() if "train.py" in w]
REPORT = [(n, w[3:]) for n, w in typed() if w[:3] == ["python", "-m", "sdnet"]]


@pytest.mark.parametrize("name, code", list(blocks("python")))
def test_the_code_runs(name, code):
    exec(compile(code, name, "exec"), {})


def test_the_statistics_of_an_averaged_network_are_of_every_block():
    (code,) = [code for _, code in blocks("python") if "AveragedModel" in code]
    names = {}
    exec(compile(code, "own-code.md", "exec"), names)
    averaged = names["averaged"]
    assert any(block.gate is False for block in averaged.module.blocks)
    norms = [m for m in averaged.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(m.running_mean.any() and (m.running_var != 1).any() for m in norms)
    assert not any(m.training for m in norms)


@pytest.fixture
def composing(monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    compose.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.mark.parametrize("name, words", TRAIN, ids=lambda value: " ".join(value)[:60])
def test_the_commands_compose(composing, name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plugins = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper.n")
    overrides = [w for w in words if not w.startswith(("-", *plugins))]
    if "--help" in words:
        return
    swept = "-m" in words or any(word.startswith("sweep=") for word in words)
    mode = RunMode.MULTIRUN if swept else RunMode.RUN
    cfg = composing.load_configuration("config", overrides, run_mode=mode)
    HydraConfig.instance().set_config(cfg)
    if swept:
        points = sweep_plan._expand(cfg, grid="interval" not in str(words))
        assert len(points) > 1
        first = sweep_plan._compose(cfg, points[0], 0, "", "").config
    else:
        first = compose.resolve(cfg)
    assert first["trainer"]["epochs"] >= 1


@pytest.mark.parametrize("name, words", REPORT, ids=lambda value: " ".join(value)[:60])
def test_the_commands_of_sdnet_parse(name, words):
    assert words[0] == "train" or commands._parser().parse_args(words).command


def test_there_are_commands_and_each_script_is_there():
    assert len(TRAIN) > 30 and len(REPORT) > 3
    named = {s for text in TEXTS.values() for s in re.findall(r"python ((?:\w+/)*\w+\.py)", text)}
    assert {"benchmarks/step_time.py", "train.py"} <= named
    assert all((ROOT / script).is_file() for script in named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, heading in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", TEXTS[page.name]):
        if not target.startswith("https://"):
            there = page.parent / target if target else page
            assert there.exists(), target
            assert not heading or heading in anchors(there.read_text()), (target, heading)


def anchors(text):
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_front_door_is_short_and_leads_to_every_page():
    assert len(TEXTS["README.md"].splitlines()) <= 200
    linked = set(re.findall(r"\((?:docs/)?([\w-]+\.md)\)", TEXTS["README.md"]))
    assert linked == {page.name for page in PAGES} - {"README.md"}
    assert len(TEXTS["CONTRIBUTING.md"].splitlines()) <= 12


def test_the_settings_are_those_of_the_files():
    module = runpy.run_path(str(ROOT / "docs" / "settings.py"))
    assert TEXTS["settings.md"] == module["page"](), "run: python docs/settings.py"
    groups = {str(f.parent.relative_to(ROOT / "conf")) for f in (ROOT / "conf").rglob("*.yaml")}
    assert groups - {".", "hydra/hydra_logging"} == set(module["GROUPS"])


def test_every_group_member_that_is_named_exists():
    for text in TEXTS.values():
        for group, member in re.findall(r"\b(model|schedule|experiment)=([a-z]\w*)", text):
            file = f"{group}/{member}.yaml"
            own = f"settings/{file}" in text or member in ("net", "square")
            assert (ROOT / "conf" / file).is_file() or own, f"{group}={member}"
