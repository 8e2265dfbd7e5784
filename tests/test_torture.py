"""The quick half of benchmarks/torture.py."""

import importlib

import pytest

from tests.commands import ROOT


@pytest.mark.slow
def test_runs_that_are_killed_or_damaged_or_lack_room_end_as_those_that_are_not(
    monkeypatch, capsys
):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # of the processes that are forked, too
    status = importlib.import_module("torture").main(["--quick"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "| disk full | 1 | 0 | 1 |" in printed and "| file damaged | 4 | 0 | 4 |" in printed
