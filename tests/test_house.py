"""The house: rooms on floors, imports that run down only, and files of one subject."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sdnet
from tests.commands import ROOT

# A room may use what is on the floors below it; of its own floor it uses nothing but itself.
FLOORS = (
    ("rng", "processes", "lock", "shell"),
    ("models", "runs"),
    ("data", "config"),
    ("training", "analysis"),
    ("listeners",),
    ("launch",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LONGEST = 350  # lines of a file
FILES = sorted((ROOT / "sdnet").rglob("*.py"))


def name_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file) for file in FILES}


def imported(file):
    """The modules of sdnet that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return {name for name in found if name.partition(".")[0] == "sdnet"} - {name_of(file)}


def room(module):
    """`training` of `sdnet.training.trainer`; None for sdnet itself, which hands on names."""
    return module.split(".")[1] if "." in module else None


def wrong(module, others):
    """Those of the imported modules that a module may not import."""
    own, found = room(module), []
    for other in others:
        theirs = room(other)
        if theirs is None:
            found.append(f"{module} -> {other}: sdnet itself is for those who use it")
        elif own not in (None, theirs) and FLOOR[theirs] >= FLOOR[own]:
            found.append(f"{module} -> {other}: not below it")
    return found


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_run_down(file):
    assert wrong(name_of(file), imported(file)) == []


def test_every_file_is_in_a_room_that_has_a_floor():
    assert {room(module) for module in MODULES} == {None, *FLOOR}


def test_there_is_no_circle_of_files():
    graph = {name_of(file): imported(file) & MODULES for file in FILES}
    while leaves := [module for module, used in graph.items() if not used & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert not graph, {module: used & graph.keys() for module, used in graph.items()}


def test_what_the_tests_of_imports_find():
    assert wrong("sdnet.models.blocks", ["sdnet.rng", "sdnet.models.gates"]) == []
    assert len(wrong("sdnet.data.loader", ["sdnet.config.values", "sdnet.launch.build"])) == 2
    assert len(wrong("sdnet.rng", ["sdnet", "sdnet.lock"])) == 2
    assert "sdnet.training.device" in imported(ROOT / "sdnet/launch/build.py")  # in a function too
    assert {"sdnet.runs.identity", "sdnet.lock"} <= imported(ROOT / "sdnet/runs/folder.py")


def test_files_have_one_subject():
    lengths = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in FILES}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}
    assert len((ROOT / "train.py").read_text().splitlines()) <= 80


def test_the_product_uses_no_test_tools_and_hydras_own_parts_in_one_file_at_most():
    private = []
    for file in (*FILES, *(ROOT / "hydra_plugins").glob("*.py"), ROOT / "train.py"):
        text = file.read_text()
        assert not re.search(r"unittest|\bmock\b|pytest", text), file
        assert "(BaseException)" not in text, file
        private += [file] if "hydra._internal" in text else []
    assert len(private) <= 1


def test_tests_are_in_the_rooms_of_what_they_test():
    rooms = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))}
    assert rooms - {"tests", "cuda"} <= FLOOR.keys()
    for path in (ROOT / "tests").glob("*/**/test_*.py"):
        room = path.parent.relative_to(ROOT / "tests")
        assert (ROOT / "sdnet" / room).is_dir() or room.name == "cuda"  # of several rooms


def test_every_file_that_is_documented_is_there():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:sdnet|conf|tests|hydra_plugins|benchmarks|docs)/[\w/.*]+)`", text)
    assert len(named) > 20
    assert [name for name in named if not list(ROOT.glob(name.rstrip("/")))] == []
    assert all(Path(name).suffix or (ROOT / name).is_dir() for name in named)


def test_requirements_are_those_of_the_package_and_its_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    apart = {*extras.pop("launchers"), *extras.pop("workspaces")} - {"sdnet[report]"}
    groups = [project["dependencies"], *extras.values()]
    wanted = {name for group in groups for name in group if not name.startswith("sdnet[")}
    pinned = (ROOT / "constraints.txt").read_text()
    for file, names in (("requirements", wanted), ("requirements-extras", apart)):
        lines = (ROOT / f"{file}.txt").read_text().splitlines()
        assert {line for line in lines if line and line[0] not in "#-"} == names
        assert "-c constraints.txt" in lines
        for name in names:
            found = re.match("[a-z0-9-]+", name)[0]
            assert re.search(rf"^{found}==", pinned, flags=re.MULTILINE), name


def test_sdnet_hands_on_names_and_imports_what_they_need_alone():
    assert sorted(n for names in sdnet._HOMES.values() for n in names) == sorted(sdnet.__all__)
    for module, names in sdnet._HOMES.items():
        for name in names:
            assert getattr(sdnet, name).__module__ == f"sdnet.{module}"
    assert set(sdnet.__all__) <= set(dir(sdnet))
    with pytest.raises(AttributeError, match="module 'sdnet' has no attribute 'nothing'"):
        sdnet.nothing  # noqa: B018
    code = """
import sys, sdnet
print({"torch", "numpy", "hydra"} & set(sys.modules))
from sdnet import DropPath, load_run
print({"hydra", "yaml", "wandb", "pandas", "rich"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\nset()\n", done.stderr
