import copy
import math

import pytest

from sdnet.config import targets, values
from sdnet.config.errors import ConfigError
from tests.config.composed import composed

INFINITE, NOT_A_NUMBER = float("inf"), float("nan")
NAME = (
    ["a", "a b", "...", "é" * 40, "x" * 80],
    ["", ".", "..", "a/b", "a\\b", "a:b", 'a"b', "a\nb", "\x1b[2J", "é" * 41, "x" * 81, 7, None],
    'a name for a folder, printable, of at most 80 bytes, without / \\ : "',
)
BOOLEAN = ([True, False], [0, 1, "true", None], "true or false")
TEXT = (["x"], ["", 7, None], "a text")
OPTIONAL_TEXT = (["x", None], ["", 7], "a text, or null")
OPTIONAL_LINE = (["x", "é y", None], ["", "a\nb", "\x1b[2J", 7], "a printable text, or null")
POSITIVE = ([1, 10**9], [0, -1, 1.0, True, "1", None, 10**9 + 1])
POSITIVE += ("a whole number, 1 or more, a billion at most",)
OPTIONAL_POSITIVE = (
    [None, 1],
    [0, 1.0, True, "1"],
    "a whole number, 1 or more, a billion at most, or null",
)
NATURAL = ([0, 1], [-1, 0.0, False, "0", None, 10**10])
NATURAL += ("a whole number, 0 or more, a billion at most",)
AT_LEAST_0 = ([0, 0.0, 1.5], [-1e-9, -1, INFINITE, NOT_A_NUMBER, True, "1", None])
AT_LEAST_0 += ("a number of at least 0",)
VALUES = {  # accepted, refused, what the message says of them
    "name": NAME,
    "seed": (
        [0, 2**63 - 1],
        [-1, 0.0, False, "0", None, 2**63],
        f"a whole number, 0 to {2**63 - 1}",
    ),
    "seeds": (
        [None, [0], [2, 0, 2**63 - 1]],
        [[], 3, 0, "0", [0, 0], [-1], [True], [0, "1"], [1.0], (0, 1)],
        "a list of different seeds such as [0,1,2], or null",
    ),
    "show": ([True, False, "time"], [0, 1, "true", None], "true, false or time"),
    "resume": OPTIONAL_TEXT,
    "retry_failed": BOOLEAN,
    "model.name": NAME,
    "model.depth": ([10_000, "20", [2, 2], None], [10_001, [2, 10**6]], "at most 10000"),
    "model.blocks": ([1000, [1, 2, 1000]], [1001, [1, 2, 1001]], "at most 1000"),
    "dataset.name": NAME,
    "dataset.root": TEXT,
    "dataset.download": BOOLEAN,
    "dataset.size": ([4096, None, [32, 64]], [4097], "at most 4096"),
    "dataset.resize": ([4096, None], [10**9], "at most 4096"),
    "dataset.shift": NATURAL,
    "dataset.flip": BOOLEAN,
    "dataset.on_bad_image": (["error", "skip"], ["drop", True, None, ""], "one of error, skip"),
    "schedule.name": NAME,
    "optimizer.lr": (
        [5e-324, 1, 1e30],
        [0, 0.0, -1, INFINITE, NOT_A_NUMBER, True, "0.1", None],
        "a number above 0",
    ),
    "optimizer.momentum": (
        [0, 0.0, 0.9999],
        [-1e-9, 1, 1.0, 1.5, INFINITE, NOT_A_NUMBER, True, "0", None],
        "a number of at least 0 and below 1",
    ),
    "optimizer.betas": (
        [[0.0, 0.9999999], [0, 0.9]],
        [[0.9, 1.0], [1.0, 0.9], [-0.1, 0.9], [0.9, True], [0.9], [0.9] * 3, (0.9, 0.9), 0.9, None],
        "two numbers b with 0 <= b < 1",
    ),
    "optimizer.nesterov": BOOLEAN,
    "optimizer.weight_decay": AT_LEAST_0,
    "optimizer.skipped_update": (
        ["decay", "freeze"],
        ["none", "", None, True],
        "one of decay, freeze",
    ),
    "trainer.epochs": (
        [1, 10**6],
        [0, 1.0, True, "1", None, 10**6 + 1],
        "a whole number, 1 to 1000000",
    ),
    "trainer.budget": (
        [None, 1, 0.5, 10**6],
        [0, -1, True, "1", 10**6 + 1, INFINITE, NOT_A_NUMBER],
        "a number above 0, a million at most, or null",
    ),
    "trainer.batch_size": (
        [2, 3],
        [1, 0, 2.0, "2", None, 10**10],
        "a whole number, 2 or more, a billion at most",
    ),
    "trainer.accumulate": POSITIVE,
    "trainer.checkpoint_blocks": OPTIONAL_POSITIVE,
    "trainer.compile": ([None, "branches"], ["", "all", True, False], "branches, or null"),
    "trainer.fused": BOOLEAN,
    "trainer.graphs": BOOLEAN,
    "telemetry": ([True, False, "directions"], ["true", 1, None], "true, false or directions"),
    "trainer.sync_batchnorm": BOOLEAN,
    "trainer.eval_every": POSITIVE,
    "trainer.eval_batch_size": OPTIONAL_POSITIVE,
    "trainer.eval_unit": (["epoch", "step"], ["epochs", "", None], "one of epoch, step"),
    "trainer.checkpoint_every": (
        [None, 1, 0.5],
        [0, -1, True, "1", math.inf],
        "a number above 0, or null",
    ),
    "trainer.checkpoint_unit": (["minute", "step"], ["minutes", "", None], "one of minute, step"),
    "trainer.log_every": POSITIVE,
    "trainer.device": (
        ["auto", "cpu", "cuda", "cuda:0", "cuda:12"],
        ["", "gpu", "cuda:", "cuda:123", "cuda:x", "cpu:0", "xcpu", "mps", 0, None],
        "auto, cpu, cuda or cuda:<n>",
    ),
    "optimizer.backbone_factor": (
        [1, 1.0, 0.1, 1e-9],
        [0, 0.0, -0.1, 1.1, True, "1", None, float("nan")],
        "a number above 0 and at most 1",
    ),
    "trainer.precision": (
        ["fp32", "tf32", "bf16"],
        ["fp16", "", 32, None],
        "one of fp32, tf32, bf16",
    ),
    "trainer.threads": (
        [None, 1, 1024],
        [0, 1.0, True, "1", 1025],
        "a whole number, 1 to 1024, or null",
    ),
    "trainer.workers": (
        [None, 0, 256],
        [-1, 0.0, False, "0", 257],
        "a whole number, 0 to 256, or null",
    ),
    "trainer.channels_last": BOOLEAN,
    "trainer.deterministic": BOOLEAN,
    "wandb.mode": (
        ["auto", "online", "offline", "disabled"],
        ["", "on", "dryrun", False, None],
        "one of auto, online, offline, disabled",
    ),
    "wandb.project": (
        ["x", "x" * 128, "a b-c_d.e"],
        ["", "x" * 129, *(f"a{c}b" for c in "/\\#?%:\n"), 7, None],
        "a printable text of at most 128 characters without / \\ # ? % :",
    ),
    "wandb.entity": OPTIONAL_LINE,
    "wandb.group": OPTIONAL_LINE,
    "wandb.name": OPTIONAL_LINE,
    "wandb.tags": (
        [[], ["x"], ["x" * 64, "y"]],
        [["x" * 65], ["x", ""], ["x", 7], ["a\nb"], "x", None, ("x",)],
        "a list of printable texts of 1 to 64 characters",
    ),
}


def test_the_table_of_values_has_every_setting_that_is_checked():
    assert set(VALUES) == set(values.CHECKS)


def test_synchronised_batch_normalisation_is_not_compiled(every_member):
    config = copy.deepcopy(every_member[0])
    config["trainer"] |= {"sync_batchnorm": True, "compile": None}
    values.check(config)
    config["trainer"]["compile"] = "branches"
    with pytest.raises(ConfigError) as raised:
        values.check(config)
    expected = "trainer.compile must be null with trainer.sync_batchnorm=true, got branches"
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("name", "value", "needed"), [("accumulate", 2, "1"), ("checkpoint_blocks", 3, "null")]
)
def test_what_graphs_do_not_go_with_is_refused(every_member, name, value, needed):
    config = copy.deepcopy(every_member[0])
    config["trainer"] |= {"graphs": True, "accumulate": 1, "checkpoint_blocks": None}
    values.check(config)
    config["trainer"][name] = value
    with pytest.raises(ConfigError) as raised:
        values.check(config)
    expected = f"trainer.{name} must be {needed} with trainer.graphs=true, got {value}"
    assert str(raised.value) == expected


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
        config = composed() | {"schedule": {"_target_": "sdnet.LinearDecay", "own": value}}
        with pytest.raises(ConfigError, match=r"^schedule\.own[.01c]* must not hold an interpol"):
            values.check(config)
    values.check(composed("+schedule.own='$name {name}'"))


@pytest.mark.parametrize("key", sorted(values.TEXTS))
def test_a_whole_number_is_taken_for_the_text_that_was_typed_and_no_other(key):
    typed = [f"++{key}=2025", "++dataset.root=x", f"++{key}=2025"]
    if key == "resume":
        assert composed(*typed)["resume"] == "2025"
        return
    group, _, name = key.rpartition(".")
    config = composed(*typed)
    assert (config[group] if group else config)[name] == "2025"
    for text in ("1.5", "true"):
        node = {name: float(text) if text == "1.5" else True}
        node = {group: config[group] | node} if group else node
        with pytest.raises(ConfigError) as raised:
            values.check(config | node)
        assert str(raised.value).endswith(f"""; as a text it is quoted: '{key}="{text}"'""")


def test_numbers_in_lists_become_what_their_setting_wants():
    assert composed("wandb.tags=[1,a]")["wandb"]["tags"] == ["1", "a"]
    betas = composed("optimizer=adamw", "optimizer.betas=[0,0.9]")["optimizer"]["betas"]
    assert betas == [0.0, 0.9] and type(betas[0]) is float
    numbered = composed("dataset=image_folder", "dataset.root=2025", "name=7")
    assert (numbered["dataset"]["name"], numbered["wandb"]["group"]) == ("2025", "7")


def test_what_has_no_default_is_named_where_it_is_missing(every_member):
    whole = every_member[0]
    top = [key for key, value in whole.items() if not isinstance(value, dict)]
    own = ["dataset.name", "dataset.validation", "dataset.normalization", "optimizer.lr"]
    own += ["optimizer.skipped_update", *(f"{group}._target_" for group in targets.TARGETS)]
    for group in ("trainer", "wandb"):
        own += [f"{group}.{name}" for name in whole[group]]
    assert len(own) > 30 and {"seed", "show"} < set(top)
    for key in (*top, *own):
        config = copy.deepcopy(whole)
        group, _, name = key.rpartition(".")
        del (config[group] if group else config)[name]
        where = "in its group's file or " if group else ""
        with pytest.raises(ConfigError) as raised:
            values.check(config)
        assert str(raised.value).startswith(f"{key} must be given, {where}as {key}=...: ")
    for group in (key for key, value in whole.items() if isinstance(value, dict)):
        for value in (None, 3, [1], "x"):
            with pytest.raises(
                ConfigError, match=f"^{group} must be a group of settings, .*, got "
            ):
                values.check(whole | {group: value})
        with pytest.raises(ConfigError, match=f"^{group} must be a group .* as {group}=...$"):
            values.check({key: value for key, value in whole.items() if key != group})


@pytest.mark.parametrize(
    "typed, message",
    [
        (
            "+gradclip=1",
            "gradclip is not a setting. Known at the top: dataset, lr_schedule, model, ",
        ),
        ("+sedd=1", "sedd is not a setting; did you mean seed? Known at the top: "),
        ("+own.x=1", "own is not a setting. Known at the top: "),
        ("+optimizer.foreach=banana", "optimizer.foreach must be true or false, got 'banana'"),
        ("+optimizer.maximize=1", "optimizer.maximize must be true or false, got 1"),
        ("+optimizer.maximize=null", "optimizer.maximize must be true or false, got None"),
        ("+model._partial_=true", "model._partial_ must be false: the run needs the object itself"),
    ],
)
def test_what_would_be_taken_without_a_word_is_refused(typed, message):
    with pytest.raises(ConfigError) as raised:
        composed(typed)
    assert str(raised.value).startswith(message)
    composed("+optimizer.foreach=null", "+optimizer.differentiable=false", "+model._partial_=false")


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
