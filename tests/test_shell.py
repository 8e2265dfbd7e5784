"""Printed commands: what is typed comes back from the shell and from Hydra as it was."""

import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sdnet import shell

NAMES = [
    "outputs/a-b_c.d/2026",
    "x (1)",
    "a b",
    "it's",
    'say "x"',
    "a,b",
    "[a]",
    "{a: b}",
    "a=b",
    "ü",
    "$HOME",
    "${seed}",
    "end\\",
    "\\'",
    "null",
    "1e3",
    ".5",
    "True",
    "-m",
    "~x",
    "*",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_comes_back_from_the_shell_and_from_hydra(name):
    line = shell.line(["printf", "%s", shell.setting("resume", name)])
    typed = subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout
    parsed = OverridesParser.create().parse_override(typed)
    value = OmegaConf.create({"resume": parsed.value(), "seed": 7}).resume
    assert not parsed.is_sweep_override() and parsed.key_or_group == "resume"
    assert value == name


def test_a_line_sets_the_variables_that_hold_something():
    line = shell.line(["python", "a b"], {"X": "1 2", "Y": None, "Z": ""})
    assert shlex.split(line) == ["X=1 2", "python", "a b"]
