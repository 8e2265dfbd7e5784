"""One border for mistakes: what is accepted runs, what is not ends in one line."""

import io
import os
import re
import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sdnet.config import compose
from sdnet.config.errors import explain
from sdnet.data.splits import Normalization
from sdnet.launch import build, command, job
from tests.commands import Forked
from tests.config.composed import CONF, composed

SMALL = ["model.depth=8", "dataset.size=8", "trainer.batch_size=9", "trainer.device=cpu"]
SMALL += ["trainer.threads=1", "trainer.workers=0", "wandb.mode=disabled"]
# What to choose, and give, for the keys that the default run has not.
MEMBERS = {
    ("model.blocks",): ["model=tiny_resnet"],
    ("optimizer.betas",): ["optimizer=adamw"],
    ("dataset.root",): ["dataset=image_folder", "dataset.root=images"],
    ("dataset.download",): ["dataset=cifar10", "dataset.download=false"],
    ("dataset.resize", "dataset.scale", "dataset.color", "dataset.lighting"): [
        *("dataset=image_stream", "dataset.root=images", "dataset.resize=9"),
    ],
}
LACKING = {"model=tiny_resnet": "model.depth=8", "dataset=cifar10": "dataset.size=8"}
# Of what a compiler would have to make first, nothing is tried.
SLOW = {"trainer.deterministic", "trainer.compile", "trainer.fused"}
GOOD = {  # values besides those in conf/
    "seed": ["1", "9223372036854775807"],
    "name": ["2025", "a-b"],
    "show": ["true"],
    "retry_failed": ["true"],
    "schedule.p_L": ["0.1", "1"],
    "schedule.rule": ["timm", "efficientnet"],
    "model.depth": ["8", "14"],
    "model.stem": ["imagenet"],
    "model.order": ["pre"],
    "model.activation": ["silu"],
    "model.shortcut": ["subsample", "projection"],
    "model.granularity": ["sample", "subset"],
    "model.rescale": ["train", "none"],
    "dataset.validation": ["0", "0.5", "[9]", "1400"],
    "dataset.shift": ["1", "7"],
    "optimizer.momentum": ["0.5"],
    "optimizer.nesterov": ["false"],
    "optimizer.skipped_update": ["freeze"],
    "lr_schedule.milestones": ["[]", "[0.3]"],
    "lr_schedule.warmup_epochs": ["2"],
    "trainer.batch_size": ["4", "7", "10000"],
    "trainer.accumulate": ["2", "3"],
    "trainer.eval_unit": ["step"],
    "trainer.precision": ["bf16"],
    "trainer.channels_last": ["false"],
    "trainer.checkpoint_blocks": ["1"],
    "wandb.tags": ["[1,a]"],
}
ODD = [
    "banana",
    "null",
    "-1",
    "0",
    "1",
    "2",
    "0.5",
    "1.5",
    "1e30",
    "1000000000000000",
    "nan",
    "true",
]
ODD += ["[]", "[1,2]", "[banana]", "{a:1}", "''", "[", "${seed}", "${nothing}", "\\${seed}"]


def _default_values():
    """{dotted key: its value as it is typed} of the members that MEMBERS chooses."""

    def leaves(node, path):
        if not isinstance(node, dict):
            typed = "[" + ",".join(map(str, node)) + "]" if isinstance(node, list) else str(node)
            yield path, {"None": "null", "True": "true", "False": "false"}.get(typed, typed)
            return
        for name, value in node.items():
            yield from leaves(value, f"{path}.{name}" if path else name)

    found = {}
    for chosen in ([], *MEMBERS.values()):
        found = dict(leaves(composed(*chosen), "")) | found
    return found


DEFAULT = _default_values()
GROUPS = sorted(
    folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra"
)
KEYS = sorted({*DEFAULT, *GROUPS})


def _usual(key):
    """Values that are meant for a setting, or for a group a member of it."""
    values = {"dataset": ["digits"], "model": ["resnet_cifar"], "experiment": [], "sweep": []}
    if key in GROUPS:
        return values.get(key) or [file.stem for file in sorted((CONF / key).glob("*.yaml"))]
    return [DEFAULT[key], *GOOD.get(key, [])]


def _odd(key):
    """Values that are meant for few settings."""
    return [value for value in ODD if key not in SLOW or value != "true"]


@st.composite
def _typed(draw):
    """A setting, and what is typed for it: words of which at most one makes no sense."""
    key = draw(st.sampled_from(KEYS))
    free = sorted(set(GOOD) & set(DEFAULT) - {key})
    others = draw(st.lists(st.sampled_from(free), max_size=2, unique=True))
    words = [f"{other}={draw(st.sampled_from(GOOD[other]))}" for other in others]
    if draw(st.booleans()):
        return key, [*words, f"{key}={draw(st.sampled_from(_usual(key)))}"]
    sign = draw(st.sampled_from(["", "", "++", "+", "~"]))
    name = key if draw(st.integers(0, 4)) else f"{key}x"
    value = "" if sign == "~" else f"={draw(st.sampled_from(_odd(key)))}"
    return key, [*words, f"{sign}{name}{value}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The current one, with the images that `dataset.root` names."""
    path, random = tmp_path_factory.mktemp("mistakes"), np.random.default_rng(0)
    for i, image in enumerate(random.integers(0, 256, (40, 9, 9, 3), dtype=np.uint8)):
        place = path / "images" / ("train", "test")[i % 4 == 0] / "ab"[i % 2 == i % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i}.png")
    (path / "images" / ".cache").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("NETRC", os.devnull)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield path


FITTED = []


@pytest.fixture(scope="module")
def fitted():
    """FITTED grows with each normalisation that is fitted: then images were read."""
    with pytest.MonkeyPatch.context() as patch:
        fit = Normalization.fit
        patch.setattr(Normalization, "fit", lambda *given: FITTED.append(1) or fit(*given))
        yield


def planned(typed):
    """The configuration that is accepted with `show=true`; or what is said instead."""
    try:
        cfg = hydra_compose("config", overrides=typed)
    except Exception as error:
        return command._explain(error, typed)
    try:
        config = compose.resolve(cfg)
        if config["resume"] is not None:
            config = compose.resumed(config, typed)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            job.show(config | {"show": True})
        return config
    except HydraException as error:
        return explain(error)


def train_two_steps(config):
    """The first of an epoch and the last, which may be smaller."""
    trainer = build.build_trainer(config, None)
    trainer.model.train()
    for step in (0, trainer.steps_per_epoch - 1):
        trainer.counters.step = step
        trainer.train_step(*next(iter(trainer.loaders["train"].batches(0, step))))
    torch.set_num_threads(1)


counted = {"trained": 0, "refused": 0}


def holds(key_and_words):
    """What is accepted trains; of the rest one line names a setting, and no more is done."""
    key, words = key_and_words
    chosen = next((first for keys, first in MEMBERS.items() if key in keys), [])
    typed = [*chosen, *(w for w in SMALL if w != LACKING.get("".join(chosen[:1]))), *words]
    before, names = len(FITTED), sorted(os.listdir())
    found = planned(typed)
    assert sorted(os.listdir()) == names
    if isinstance(found, dict):
        counted["trained"] += 1
        train_two_steps(found)
        return
    counted["refused"] += 1
    assert len(FITTED) == before, "images were read"
    assert "\n" not in found and "Traceback" not in found and len(found) < 700, found
    named = [word.lstrip("+~").partition("=")[0] for word in typed]
    assert any(name in found or name.rpartition(".")[2] in found for name in named), found


def test_what_the_plan_accepts_trains_and_what_it_refuses_it_refuses_in_a_line(folder, fitted):
    test = given(_typed())(holds)
    for i, key in enumerate(KEYS):  # each at least once
        test = example((key, [f"{key}={_odd(key)[i % len(_odd(key))]}"]))(test)
    settings(
        max_examples=45,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(test)()
    assert min(counted.values()) >= 20, counted


def commands_in_turn(several):
    """`python train.py ...` again and again; prints the exit status of each, or its message."""
    for words in several:
        sys.argv = ["train.py", *words]
        os.environ.pop("HYDRA_FULL_ERROR", None)
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(out):
            try:
                command.run_command()
            except SystemExit as ended:
                status = ended.code
            except KeyError as error:  # a fault
                status = repr(error)
        told = [line for line in out.getvalue().splitlines() if not line.startswith("resnet")]
        print(f"{status} | {len(told)}")


COMMANDS = {
    "experiment=null": "experiment must be one of cifar100_resnet110, .*; for none leave it out",
    "dataset=nan": "dataset must be one of cifar10, .*, got nan",
    "model=[1]": "model must be one of resnet_cifar, .*, torchvision, got \\[1\\]",
    "hydra.verbose=3": "AssertionError: .*in: hydra.verbose=3 .*",
    "~seed": "seed must be given, as seed=...: a whole number.*",
    "~show": "show must be given, as show=...: true, false or time",
    "trainer.epochs=0": "trainer.epochs must be a whole number, 1 to 1000000, got 0",
    "model.block=3": "model: AttributeError: .* \\(.*resnet.py, line \\d+\\)",
    "optimizer._target_=torch.optim.SparseAdam ~optimizer.momentum ~optimizer.nesterov "
    "~optimizer.weight_decay": "optimizer._target_=torch.optim.SparseAdam cannot make a step .*",
    "hydra.job.chdir=true": "hydra.job.chdir must be false, got true: .*",
    "seed=1 -m show=true trainer.epochs=0,1": "in run 1 of 2 .*trainer.epochs must be .*got 0",
    "seed=1 --config-dir settings experiment=broken": ".*/broken.yaml, line 3, cannot be read: .*",
    "--config-dir settings show=true experiment=odd": "model must be a group of .*, got 3",
}


def test_a_command_with_a_mistake_ends_in_one_line_and_leaves_nothing(tmp_path):
    settings_of = tmp_path / "settings" / "experiment"
    settings_of.mkdir(parents=True)
    (settings_of / "broken.yaml").write_text("model:\n  depth: [8\nseed: 1\n")
    (settings_of / "odd.yaml").write_text("# @package _global_\nmodel: 3\n")
    several = [[*typed.split(), "wandb.mode=disabled"] for typed in COMMANDS]
    process = Forked(tmp_path, {}, commands_in_turn, several)
    printed, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (0, "")
    for line, (typed, message) in zip(printed.splitlines(), COMMANDS.items(), strict=True):
        told, count = line.rsplit(" | ", 1)
        assert re.fullmatch(f"error: {message}", told), (typed, told)
        assert int(count) == ("-m" in typed), (typed, "more than that was said")
    assert sorted(os.listdir(tmp_path)) == ["settings"]
