import copy

import pytest

from sdnet.config import values
from sdnet.config.errors import ConfigError
from tests.config.composed import composed

INFINITE, NOT_A_NUMBER = float("inf"), float("nan")
NAME = (["a", "a b", "..."], ["", ".", "..", "a/b", "a\\b", "a:b", 'a"b', 7, None])
NAME += ("a name for a folder",)
BOOLEAN = ([True, False], [0, 1, "true", None], "true or false")
TEXT = (["x"], ["", 7, None], "a text")
OPTIONAL_TEXT = (["x", None], ["", 7, False], "a text, or null")
POSITIVE = ([1, 10**9], [0, -1, 1.0, True, "1", None], "a whole number, 1 or more")
NATURAL = ([0, 1], [-1, 0.0, False, "0", None], "a whole number, 0 or more")
AT_LEAST_0 = ([0, 0.0, 1.5], [-1e-9, -1, INFINITE, NOT_A_NUMBER, True, "1", None])
AT_LEAST_0 += ("a number of at least 0",)
VALUES = {  # accepted, refused, what the message says of them
    "name": NAME,
    "seed": NATURAL,
    "show": ([True, False, "time"], [0, 1, "true", None], "true, false or time"),
    "resume": OPTIONAL_TEXT,
    "retry_failed": BOOLEAN,
    "model.name": NAME,
    "dataset.name": NAME,
    "dataset.root": TEXT,
    "dataset.download": BOOLEAN,
    "dataset.shift": NATURAL,
    "dataset.flip": BOOLEAN,
    "dataset.on_bad_image": (["error", "skip"], ["drop", True, None, ""], "one of error, skip"),
    "schedule.name": NAME,
    "optimizer.lr": (
        [5e-324, 1, 1e30],
        [0, 0.0, -1, INFINITE, NOT_A_NUMBER, True, "0.1", None],
        "a number above 0",
    ),
    "optimizer.momentum": AT_LEAST_0,
    "optimizer.betas": (
        [[0.0, 0.9999999]],
        [[0.9, 1.0], [1.0, 0.9], [-0.1, 0.9], [0, 0.9], [0.9], [0.9] * 3, (0.9, 0.9), 0.9, None],
        "two numbers b with 0 <= b < 1",
    ),
    "optimizer.nesterov": BOOLEAN,
    "optimizer.weight_decay": AT_LEAST_0,
    "optimizer.skipped_update": (
        ["decay", "freeze"],
        ["none", "", None, True],
        "one of decay, freeze",
    ),
    "trainer.epochs": POSITIVE,
    "trainer.batch_size": ([2, 3], [1, 0, 2.0, "2", None], "a whole number, 2 or more"),
    "trainer.accumulate": POSITIVE,
    "trainer.checkpoint_blocks": (
        [None, 1],
        [0, 1.0, True, "1"],
        "a whole number, 1 or more, or null",
    ),
    "trainer.compile": ([None, "branches"], ["", "all", True, False], "branches, or null"),
    "trainer.fused": BOOLEAN,
    "trainer.sync_batchnorm": BOOLEAN,
    "trainer.eval_every": POSITIVE,
    "trainer.eval_unit": (["epoch", "step"], ["epochs", "", None], "one of epoch, step"),
    "trainer.log_every": POSITIVE,
    "trainer.device": (
        ["auto", "cpu", "cuda", "cuda:0", "cuda:12"],
        ["", "gpu", "cuda:", "cuda:123", "cuda:x", "cpu:0", "xcpu", "mps", 0, None],
        "auto, cpu, cuda or cuda:<n>",
    ),
    "trainer.precision": (
        ["fp32", "tf32", "bf16"],
        ["fp16", "", 32, None],
        "one of fp32, tf32, bf16",
    ),
    "trainer.threads": ([None, 1], [0, 1.0, True, "1"], "a whole number, 1 or more, or null"),
    "trainer.workers": ([None, 0], [-1, 0.0, False, "0"], "a whole number, 0 or more, or null"),
    "trainer.channels_last": BOOLEAN,
    "trainer.deterministic": BOOLEAN,
    "wandb.mode": (
        ["auto", "online", "offline", "disabled"],
        ["", "on", "dryrun", False, None],
        "one of auto, online, offline, disabled",
    ),
    "wandb.project": (
        ["x", "x" * 128, "a b-c_d.e"],
        ["", "x" * 129, *(f"a{c}b" for c in "/\\#?%:"), 7, None],
        "a text of at most 128 characters without / \\ # ? % :",
    ),
    "wandb.entity": OPTIONAL_TEXT,
    "wandb.group": OPTIONAL_TEXT,
    "wandb.name": OPTIONAL_TEXT,
    "wandb.tags": (
        [[], ["x"], ["x" * 64, "y"]],
        [["x" * 65], ["x", ""], ["x", 7], "x", None, ("x",)],
        "a list of texts of 1 to 64 characters",
    ),
}


def test_the_table_of_values_has_every_setting_that_is_checked():
    assert set(VALUES) == set(values.CHECKS)


@pytest.mark.parametrize("key", VALUES)
def test_a_value_at_the_border_is_taken_and_one_beyond_it_refused(every_member, key):
    accepted, refused, allowed = VALUES[key]
    config = copy.deepcopy(every_member[0])
    group, _, name = key.rpartition(".")
    node = config[group] if group else config
    for value in accepted:
        node[name] = value
        values.check(config)
    for value in refused:
        node[name] = value
        with pytest.raises(ConfigError) as raised:
            values.check(config)
        assert str(raised.value) == f"{key} must be {allowed}, got {value!r}"


def test_text_that_hydra_would_resolve_once_more_is_refused():
    hidden = r"'\${oc.create:{_target_: torch.utils.collect_env.run, command: ls}}'"
    with pytest.raises(ConfigError, match=r"schedule\.p_L must not hold an interpolation"):
        composed(f"schedule.p_L={hidden}")
    for value in ("${name}", "a ${name}", ["a", "b${name}"], {"c": "${name}"}):
        with pytest.raises(ConfigError, match=r"^own[.01c]* must not hold an interpolation"):
            values.check({"own": value})
    values.check({"own": "$name {name}"})


@pytest.mark.parametrize(
    "key",
    ["dataset.name", "dataset.validation", "dataset.normalization", "optimizer.skipped_update"],
)
def test_what_a_file_of_ones_own_must_hold_is_named(every_member, key):
    config = copy.deepcopy(every_member[0])
    group, _, name = key.partition(".")
    del config[group][name]
    with pytest.raises(
        ConfigError, match=rf"^{key} must be given, in its group's file or as {key}="
    ):
        values.check(config)


@pytest.mark.parametrize(
    "key, hint", [("trainer.epoch", "; did you mean epochs?"), ("wandb.colour", ".")]
)
def test_a_setting_that_nothing_reads_is_refused(every_member, key, hint):
    config = copy.deepcopy(every_member[0])
    group, _, name = key.partition(".")
    config[group][name] = 1
    with pytest.raises(ConfigError) as raised:
        values.check(config)
    text = str(raised.value)
    assert text.startswith(f"{key} is not a setting{hint} Known in {group}: ")
    assert {"epochs", "threads"} <= set(text.split(": ")[1].split(", ")) or group == "wandb"
