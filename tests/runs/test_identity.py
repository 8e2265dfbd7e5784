import copy
import hashlib

import pytest

from sdnet.runs.identity import SAID_TWICE, determines_result, identity, run_name
from tests.config.composed import NOT_RESULT, composed
from tests.runs.made import CONFIG, changed


def others(value):
    """Values near `value` that are another setting."""
    if isinstance(value, list):
        elements = [
            [*value[:i], o, *value[i + 1 :]] for i, v in enumerate(value) for o in others(v)
        ]
        return [*elements, [*value, 3], *([value[:-1]] if value else [])]
    if value is None or isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return [f"x{value}"]
    return [value + 1, value * 1.0000001 + 1e-9]


def with_others(config, node=None, path=()):
    """(dotted name, configuration) for each leaf of a configuration and each other value of it."""
    node = config if node is None else node
    for key, value in node.items():
        if isinstance(value, dict):
            yield from with_others(config, value, (*path, key))
            continue
        for other in others(value):
            node[key] = other
            yield ".".join((*path, key)), config
        node[key] = value


def test_every_setting_is_part_of_the_identity_but_for_those_listed(every_member):
    ignored, counted = set(), set()
    for config in copy.deepcopy(every_member):
        known = identity(config)
        for path, other in with_others(config):
            (ignored if identity(other) == known else counted).add(path)
    assert ignored == NOT_RESULT | {*SAID_TWICE} and not counted & (NOT_RESULT | {*SAID_TWICE})
    assert all(determines_result(path) for path in counted)
    assert not any(determines_result(path) for path in ignored - {*SAID_TWICE})


@pytest.mark.parametrize(
    "path, value",
    [
        ("trainer.device", "cuda:1"),
        ("trainer.threads", 2),
        ("dataset.root", "elsewhere"),
        ("wandb.mode", "online"),
        ("name", "b"),
        ("resume", "outputs"),
        ("trainer.epochs", 30.0),
        ("optimizer.lr", 0.10000000000000002),
    ],
)
def test_identity_ignores_what_does_not_determine_the_result(path, value):
    assert identity(changed(path, value)) == identity(CONFIG)


@pytest.mark.parametrize(
    "path, value",
    [
        ("optimizer.lr", 0.2),
        ("seed", 1),
        ("schedule.p_L", 0.8),
        ("trainer.precision", "bf16"),
        ("dataset.name", "other"),
        ("trainer.epochs", 31),
        ("optimizer.lr", 0.1000000001),
    ],
)
def test_identity_changes_with_what_determines_the_result(path, value):
    assert identity(changed(path, value)) != identity(CONFIG)


def test_a_setting_is_known_by_its_whole_name():
    ours = ("name", "wandb.mode", "wandb", "model.name", "trainer.compile", "trainer.compile.more")
    assert not any(determines_result(key) for key in ours)
    others = ("names", "wandbs.mode", "model", "model.names", "model.name2", "trainer.compiler")
    assert all(determines_result(key) for key in (*others, "trainer", "dataset.name", "ename"))


def test_identity_does_not_depend_on_the_order_of_settings():
    assert identity(dict(reversed(CONFIG.items()))) == identity(CONFIG)


def test_the_identity_of_a_stored_run_stays_what_it_was():
    config = CONFIG | {"seed": 12.0, "list": [1e-4, True, None, {"name": "x", "size": 2.5}]}
    text = (
        '{"dataset": {"name": "digits"}, "list": ["0.0001", true, null, {"name": "x", "size": '
        '"2.5"}], "model": {"depth": "20"}, "optimizer": {"lr": "0.1"}, "schedule": {"_target_": '
        '"x.LinearDecay", "p_L": "0.5"}, "seed": "12", "trainer": {"epochs": "30", "precision": '
        '"fp32"}}'
    )
    assert identity(config) == hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def test_the_name_holds_model_schedule_p_L_seed_and_identity():
    assert run_name(CONFIG) == f"resnet20-linear_decay-pL0.5-s0-{identity(CONFIG)}"
    own = CONFIG | {"schedule": {"_target_": "mine.Square"}}
    assert run_name(own).startswith("resnet20-Square-s0-")
    assert "-pL0.3-" in run_name(changed("schedule.p_L", 0.1 + 0.2))
    assert "-pL0.123457-" in run_name(changed("schedule.p_L", 0.12345678))
    assert "-linear_decay-pLa_b_c-s7-" in run_name(changed("schedule.p_L", "a/b/c") | {"seed": 7})
    long = run_name(changed("schedule.p_L", "abcdefghijklmnopqrstuvwxyz"))
    assert "-pLabcdefghijklmnopqrstuvwx-s0" in long
    assert "-pLa\\n\\x1b-s0-" in run_name(changed("schedule.p_L", "a\n\x1b"))
    unnamed = CONFIG | {"model": {"name": None, "_target_": "mine.nets.Net"}}
    assert run_name(unnamed).startswith("Net-linear_decay-pL0.5-s0-")


def test_constant_depth_is_one_run_whichever_schedule_said_so():
    ours = "sdnet.models.schedules."
    same = [
        {"_target_": f"{ours}Constant", "name": "constant"},
        {"_target_": f"{ours}LinearDecay", "name": "linear_decay", "p_L": 1, "p_0": 1.0},
        {"_target_": f"{ours}Uniform", "name": "uniform", "p_L": 1.0},
    ]
    (name,) = {run_name(CONFIG | {"schedule": schedule}) for schedule in same}
    assert name.startswith("resnet20-constant-pL1-s0-")
    other = CONFIG | {"schedule": same[1] | {"p_0": 0.9}}
    assert run_name(other).startswith("resnet20-linear_decay-pL1-s0-")
    assert identity(other) != name[-8:]
    own = CONFIG | {"schedule": {"_target_": "mine.Constant", "name": "own", "p_L": 1.0}}
    assert run_name(own).startswith("resnet20-own-pL1-s0-")
    assert identity(own) != name[-8:]


def test_a_setting_that_came_later_changes_no_name_until_it_is_used():
    for dataset in ("image_folder", "image_stream"):
        config = composed(f"dataset={dataset}", "dataset.root=x")
        before = copy.deepcopy(config)
        assert before["dataset"].pop("on_bad_image") == "error"
        assert identity(before) == identity(config)
        config["dataset"]["on_bad_image"] = "skip"
        assert identity(before) != identity(config)
    config = composed()
    assert identity(config) == "3aa05711"  # as in README.md
    del config["trainer"]["budget"]  # as in the run folders of before
    assert identity(config) == "3aa05711"
    config["optimizer"]["backbone_factor"] = 0.1
    assert identity(config) != "3aa05711"


def test_a_budget_takes_the_place_of_the_epochs():
    of_budget = {
        (b, e): composed(f"trainer.budget={b}", f"trainer.epochs={e}")
        for b in (2, 3)
        for e in (10, 30)
    }
    names = {pair: identity(config) for pair, config in of_budget.items()}
    assert names[2, 10] == names[2, 30] != names[3, 10] == names[3, 30]
    assert identity(composed("trainer.epochs=10")) not in names.values()
