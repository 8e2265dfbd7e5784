"""Commands with networks of timm and torchvision, on a made folder of small images."""

import csv
import json
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

import sdnet
from sdnet.models.gates import gated_modules

timm = pytest.importorskip("timm")
DATA = ["dataset=image_folder", "dataset.root=images", "dataset.validation=3"]
DATA += ["trainer.batch_size=6", "trainer.device=cpu", "trainer.threads=1", "wandb.mode=disabled"]
TINY = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}
VIT = ["model=timm", "model.arch=vit_tiny_patch16_224", "optimizer=adamw"]
VIT += [f"+model.options.{name}={value}" for name, value in TINY.items()]
MEASURED = ("train_loss", "train_error", "val_loss", "val_error", "test_loss", "test_error", "lr")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """21 images to train on and 6 to test with, of three classes; and weights for seven."""
    folder = tmp_path_factory.mktemp("zoo")
    random = np.random.default_rng(0)
    for part, count in (("train", 7), ("val", 2)):
        for name in ("ant", "bee", "cat"):
            place = folder / "images" / part / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    torch.save(timm.create_model(VIT[1][11:], num_classes=7, **TINY).state_dict(), folder / "w.pt")
    return folder


def rows(run):
    with (run / "metrics.csv").open() as file:
        return [{name: row[name] for name in MEASURED} for row in csv.DictReader(file)]


def runs(folder, pattern):
    return {path.parent.name: path for path in folder.glob(pattern)}


def failed(done):
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


def test_a_run_killed_and_continued_has_the_metrics_of_an_unbroken_one(train_in, folder):
    typed = [*DATA, *VIT, "model.drop_path_rate=0.5", "model.pretrained_file=w.pt"]
    typed += ["optimizer.backbone_factor=0.1", "model.granularity=subset", "trainer.epochs=8"]
    unbroken = train_in(folder, *typed)
    assert unbroken.returncode == 0, unbroken.stderr
    assert "w.pt: its classifier is for 7 classes; that for 3 is new" in unbroken.stdout
    (whole,) = folder.glob("outputs/*/*")
    assert whole.parent.name.startswith("vit_tiny_patch16_224-drop_path-pL0.5-s0-")
    killed = train_in(folder, *typed, background=True)
    while not (found := {*folder.glob("outputs/*/*/metrics.csv")} - {whole / "metrics.csv"}):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    run = found.pop().parent
    assert run.parent == whole.parent and 0 < len(rows(run)) < 8
    (folder / "w.pt").rename(folder / "moved.pt")
    resume = f"resume={run.relative_to(folder)}"
    other = failed(train_in(folder, resume, "++model.pretrained_file=images/val/ant/0.png"))
    assert "0.png is not the file that the run was begun with" in other
    done = train_in(folder, resume, "++model.pretrained_file=moved.pt")
    assert done.returncode == 0, done.stderr
    assert rows(run) == rows(whole)
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["optimizer"]
    first, rest = (group["initial_lr"] for group in state["param_groups"])
    assert rest == pytest.approx(0.1 * first)

    (folder / "moved.pt").unlink()
    shutil.move(folder / "images", folder / "gone")
    try:
        model = sdnet.load_run(run, "last")
    finally:
        shutil.move(folder / "gone", folder / "images")
    assert type(model).__name__ == "VisionTransformer" and model.head.out_features == 3
    assert [gate.survival for gate in gated_modules(model)] == [1.0, 1.0, 0.5, 0.5]
    weights = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_a_sweep_over_p_L_ends_with_its_report(train_in, folder):
    typed = ["-m", *DATA, "name=s", "model=torchvision", "model.arch=regnet_x_400mf"]
    typed += ["schedule.p_L=0.5,1", "trainer.epochs=1", "optimizer.lr=0.001"]
    done = train_in(folder, *typed)
    assert done.returncode == 0, done.stdout
    found = sorted(name.rpartition("-")[0] for name in runs(folder, "multirun/s/*/config.yaml"))
    assert found == ["regnet_x_400mf-constant-pL1-s0", "regnet_x_400mf-drop_path-pL0.5-s0"]
    report = (folder / "multirun/s/report/report.md").read_text()
    assert "drop_path" in report and "constant" in report
    depth = {
        name.split("-")[1]: json.loads(path.read_text())["expected_active_blocks"]
        for name, path in runs(folder, "multirun/s/*/summary.json").items()
    }
    assert depth == {"constant": 22.0, "drop_path": pytest.approx(16.5)}


def test_a_plan_names_the_gate_of_each_branch(train_in, folder):
    done = train_in(folder, *DATA, *VIT, "schedule.p_L=0.5", "show=true", COLUMNS="120")
    assert done.returncode == 0, done.stderr
    lines = [line.replace("│", " ").split() for line in done.stdout.splitlines()]
    shown = [(words[0], words[2], words[-1]) for words in lines if "blocks." in "".join(words[-1:])]
    gates = [(str(b + 1), f"blocks.{b}.drop_path{n}") for b in (0, 1) for n in (1, 2)]
    assert [(number, gate) for number, _, gate in shown] == gates
    assert [p for _, p, _ in shown] == ["1.0000", "1.0000", "0.5000", "0.5000"]
    assert "3.00 of 4 branches active, in 2 blocks" in done.stdout


@pytest.mark.parametrize(
    "more, message",
    [
        (["schedule=constant", "model.drop_path_rate=0.1"], "model.drop_path_rate=0.1 contradicts"),
        (["model.drop_path_rate=1"], "error: model.drop_path_rate must be a drop probability"),
        (["model.pretrained_file=no.pt"], "error: model.pretrained_file=no.pt cannot be read: No"),
        (["model.options.img_size=64"], "fails on images (4, 3, 32, 32), whose size is the data"),
        (["trainer.checkpoint_blocks=1"], "checkpoint_blocks must be null for VisionTransformer"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(train_in, folder, more, message):
    before = set(folder.rglob("*"))
    assert message in failed(train_in(folder, *DATA, *VIT, *more))
    assert set(folder.rglob("*")) == before
