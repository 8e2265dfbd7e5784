"""How benchmarks measure, and that the first hour on a GPU runs through without one."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.commands import ROOT

SEEN = pytest.mark.parametrize("cuda", [False, True], ids=["cpu", "cuda"])


@pytest.fixture
def script(monkeypatch):
    """Imports a script of benchmarks/, where a GPU is seen or not, for this test alone."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def load(name, cuda=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        for module in ("measure", name):
            monkeypatch.delitem(sys.modules, module, raising=False)
        return importlib.import_module(name)

    yield load
    for path in (ROOT / "benchmarks").glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_no_script_hides_a_package_that_others_import():
    """A script's folder comes first on the path: `cuda` is NVIDIA's, and torch imports it."""
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert not scripts & {"cuda", "torch", "triton", "nvidia", "hydra", *sys.stdlib_module_names}


@SEEN
def test_a_gpu_is_waited_for_around_steps_in_a_row_and_warms_up_on_every_case(
    script, monkeypatch, cuda
):
    measure, seen = script("measure", cuda), []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("wait"))
    steps = {name: (lambda case, name=name: seen.append((name, case))) for name in "ab"}
    found = measure.interleaved(steps, 2, 1)
    assert found.keys() == {"a", "b"} and all(seconds > 0 for seconds in found.values())
    if not cuda:
        order = [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]
        assert seen == order
        return
    around = [["wait", *[step] * 10, "wait"] for step in dict.fromkeys(seen) if step != "wait"]
    assert sorted(map(str, around * 2)) == sorted(
        str(seen[i : i + 12]) for i in range(0, len(seen), 12)
    )


@SEEN
def test_no_contender_is_named_for_what_a_device_does_not_do(script, cuda):
    step_time = script("step_time", cuda)
    assert any("fused" in name for name in step_time.CONTENDERS) != cuda
    assert ("tf32" in step_time.PRECISIONS) == cuda


def test_whole_training_is_measured_of_the_configuration_that_is_typed(script):
    words = {"root": "somewhere", "depth": 8, "p_L": [0.5], "precision": "fp32", "override": []}
    config = script("training").composed(SimpleNamespace(**words))
    found = config["dataset"]["root"], config["model"]["depth"], config["schedule"]["p_L"]
    assert found == ("somewhere", 8, 0.5)


def test_each_contender_of_a_gpu_computes_under_its_own_switches(script, monkeypatch):
    step_time = script("step_time")
    device, seen = torch.device("cuda"), []
    monkeypatch.setattr(step_time.devices, "allow_tf32", seen.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for name, precision, tf32 in (
        ("batch", "tf32", True),
        ("subset", "fp32", False),
        ("plain", "tf32", False),
    ):
        one = step_time.Contender(name, step_time.NETS["resnet20"][0], 8, 4, 0.5, precision)
        one.device, one.net = device, None  # as far as the switches
        one.batches = None
        torch.backends.cudnn.benchmark = name == "subset"
        with pytest.raises(AttributeError):
            one.step(0)
        assert seen.pop() is tf32 and not seen
        assert torch.backends.cudnn.benchmark == (name != "subset")


def test_a_part_that_fails_or_takes_too_long_leaves_what_it_found_and_its_error(script):
    told = script("gpu").told
    assert told([sys.executable, "-c", "print('| a |')"], 60) == "| a |"
    text = told([sys.executable, "-c", "print('| a |'); 1 / 0"], 60)
    assert text.startswith("| a |\n\n**failed**, exit status 1") and "ZeroDivisionError" in text
    text = told([sys.executable, "-c", "import time; print('| a |'); time.sleep(60)"], 1)
    assert text == "| a |\n\n**stopped** after 1 s"


def test_the_page_of_a_gpus_first_hour_is_written_after_each_part(
    script, monkeypatch, tmp_path, capsys
):
    gpu, page = script("gpu"), tmp_path / "cuda.md"
    asked = []

    def told(command, seconds):
        asked.append((command[command.index("--part") + 1], seconds, page.exists()))
        if command[3] == "plain":
            raise KeyboardInterrupt
        return "| found |"

    monkeypatch.setattr(gpu, "told", told)
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    words = ["--device", "cpu", "--out", str(page), "--minutes", "2", "--parts"]
    with pytest.raises(KeyboardInterrupt):
        gpu.main([*words, "eager", "profile", "plain", "repeats"])
    assert [(name, there) for name, _, there in asked] == [("eager", False), ("plain", True)]
    assert all(0 < seconds <= 120 for _, seconds, _ in asked)
    text = page.read_text()
    assert "## Speed\n\n| found |" in text and "GPU's share\n\nneeds CUDA" in text
    assert "plain" not in text and [path.name for path in tmp_path.iterdir()] == ["cuda.md"]
    gpu.main([*words[:-3], "--minutes", "0", "--parts", "eager"])
    assert "no time was left of 0 minutes" in page.read_text() and len(asked) == 2


def test_the_parts_of_a_gpus_first_hour_run_through_without_one(script, tmp_path, capsys):
    page = tmp_path / "cuda.md"
    words = ["--device", "cpu", "--smoke", "--out", str(page), "--parts", "eager", "tests"]
    script("gpu").main(words)
    text = page.read_text()
    assert "| fp32 | contiguous | p_L 0.5 |" in text and "**" not in text, text
    assert text.endswith("## Tests that need CUDA\n\nneeds CUDA\n")


def test_steps_are_timed_runs_repeat_and_resume_and_waits_are_told(script, monkeypatch, capsys):
    gpu = script("gpu")
    monkeypatch.setattr(gpu, "SIZE", gpu.SMOKE)
    gpu.speed(["eager"])
    printed = capsys.readouterr().out
    assert "| fp32 | contiguous | p_L 0.5 |" in printed and "to evaluate 32 images" in printed
    monkeypatch.setattr(gpu, "GRANULARITIES", ("subset",))
    monkeypatch.setattr(gpu.devices, "configure", lambda *_: None)
    gpu.repeats()
    gpu.resumes()
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    gpu.waits()
    printed = capsys.readouterr().out
    assert printed.count("equal") == 2 + 2 and "differ" not in printed
    assert "| subset | bf16 | never | never | 0 of 23 |" in printed
    assert modes == ["error", "default"] * 4
    step = gpu.Trainer.train_step

    def waits(trainer, *batch):
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        step(trainer, *batch)

    monkeypatch.setattr(gpu.Trainer, "train_step", waits)
    gpu.waits()
    assert "| never | called a synchronizing CUDA operation |" in capsys.readouterr().out
    some, other = {"a": torch.zeros(2)}, {"a": torch.tensor([0.0, 0.5])}
    assert gpu.differ(some, other) == "**differ** by 5.0e-01 at most"


def test_the_gpus_share_counts_what_overlaps_once(script):
    def event(name, ts, dur, cat="kernel"):
        return {"name": name, "ts": ts, "dur": dur, "cat": cat}

    events = [
        event("conv", 10.0, 10),
        event("copy", "15", "10", "gpu_memcpy"),
        event("conv", 100, 1),
        event("fill", 16, 1, "gpu_memset"),
        event("cudaLaunchKernel", 0, 500, "cuda_runtime"),
        event("Optimizer.step", 0, 500, "gpu_user_annotation"),
        {"ph": "M"},
    ]
    kinds = [("conv", (11, 2)), ("copy", (10, 1)), ("fill", (1, 1))]
    assert script("gpu").told_by(events) == (4, 16.0, kinds)
