"""What `build_model`, `build_optimization` and `build_trainer` make of a configuration."""

import hashlib
import json
from copy import deepcopy

import pytest
import torch
from torch import nn

from sdnet import BasicBlock, Bottleneck, Constant, GateSampler, ResNet, Uniform, resnet_cifar
from sdnet.analysis.cost import BlockCost, Cost
from sdnet.config import targets
from sdnet.config.errors import ConfigError
from sdnet.launch import build
from sdnet.launch.budget import budgeted, training_cost
from sdnet.models.gates import set_survival
from sdnet.models.layout import Layout
from sdnet.training import optim
from sdnet.training.distributed import World
from tests.config.composed import composed
from tests.training.test_step import Half


@pytest.fixture(scope="module")
def config():
    return composed("model.depth=8", "trainer.device=cpu", "trainer.threads=1")


@pytest.fixture
def changed(config):
    """The configuration with some settings changed, as `changed({"seed": 1})`."""

    def change(settings):
        new = deepcopy(config)
        for key, value in settings.items():
            *groups, name = key.split(".")
            node = new
            for group in groups:
                node = node[group]
            node[name] = value
        return new

    return change


def test_a_budget_needs_multiply_adds(changed):
    config = changed({"trainer.budget": 30})
    assert budgeted(config, None, 10) is config
    message = r"^trainer\.budget must be null .*without a layer whose.*got 30$"
    with pytest.raises(ConfigError, match=message):
        budgeted(config, Cost([], 1, 0, "batch"), 10)
    one_shape = nn.Sequential(nn.Flatten(), nn.Linear(3, 1))
    message = r"^trainer\.budget must be null for Sequential, whose .* got 30$"
    with pytest.raises(ConfigError, match=message):
        training_cost(config, one_shape, Constant(), (3, 8, 8))
    config["trainer"]["budget"] = None
    assert training_cost(config, one_shape, Constant(), (3, 8, 8)) is None
    config["show"] = True
    with pytest.raises(ConfigError, match=r"^show must be false for Sequential, .* got True$"):
        training_cost(config, one_shape, Constant(), (3, 8, 8))


@pytest.mark.parametrize("images", [10, 1280, 1300])
def test_a_budget_is_worth_half_a_step(changed, images):
    steps = -(-images // 128)
    step = min(128, images) / images  # of an epoch
    for cost in (
        Cost([], 1, 9, "batch"),
        Cost([BlockCost(1, 0.5, 0, 6, 0, 1, "a", 0.5)], 1, 9, "batch"),
    ):
        share = cost.expected_share * step
        for budget in (share, 0.6 * share):
            of_one = budgeted(changed({"trainer.budget": budget}), cost, images)
            assert of_one["trainer"]["epochs"] == 1 / steps
        for budget in (0.4 * share, 1e-9):
            message = rf"^trainer\.budget must be worth half a step or more, .* has {steps}, got "
            with pytest.raises(ConfigError, match=message):
                budgeted(changed({"trainer.budget": budget}), cost, images)


def falling(low):
    return lambda blocks, progress=1.0: [1 - (1 - low) * progress] * sum(blocks)


@pytest.mark.parametrize("rows", [4, 5, 64])
@pytest.mark.parametrize("schedule", [Uniform(0.9), Uniform(0.1), falling(0.6), falling(0.3)])
def test_subsets_of_few_images_are_counted_as_they_are_drawn(changed, rows, schedule):
    config = changed({"trainer.batch_size": 3 * rows, "trainer.accumulate": 3})
    model = resnet_cifar(14, granularity="subset", schedule=schedule)
    cost = training_cost(config, model, schedule, (3, 8, 8))
    layout, sampler, opened = Layout(model), GateSampler(model, 0), 0.0
    for moment in range(100):
        set_survival(model, layout.survival(schedule, (moment + 0.5) / 100))
        opened += sampler.draw(moment, [rows]).double().mean(1) / 100
    closed = sum((1 - p) * b.branch_macs for p, b in zip(opened, cost.blocks, strict=True))
    assert cost.expected_macs == pytest.approx(float(cost.macs - closed))
    survival = {block.survival for block in cost.blocks}
    assert survival == set(layout.mean_survival(schedule))


def equal(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_network_is_initialised_by_the_seed_and_nothing_else(changed):
    before = torch.get_rng_state()
    models = {seed: build.build_model(changed({"seed": seed}), 7, 2) for seed in (0, 1)}
    assert torch.equal(torch.get_rng_state(), before)
    for seed, model in models.items():
        text = json.dumps([seed, "init"]).encode()
        with torch.random.fork_rng():
            torch.manual_seed(
                int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
            )
            expected = resnet_cifar(8, num_classes=7, in_channels=2)
        assert equal(model, expected)
    weights = [dict(model.named_parameters()) for model in models.values()]
    drawn = [name for name in weights[0] if "conv" in name or "fc" in name]
    assert len(drawn) == 9 and not any(torch.equal(*(w[n] for w in weights)) for n in drawn)


def test_a_network_has_the_settings_of_its_group_and_its_schedule(changed):
    settings = {
        "model.depth": 11,
        "model.block._target_": "sdnet.models.blocks.Bottleneck",
        "model.order": "pre",
        "model.activation": "silu",
        "model.granularity": "sample",
        "model.rescale": "train",
        "schedule.p_L": 0.4,
        "trainer.checkpoint_blocks": 2,
    }
    model = build.build_model(changed(settings), 7, 2)
    assert model.fc.out_features == 7 and model.conv1.in_channels == 2
    assert model.checkpoint_blocks == 2
    assert [b.survival for b in model.blocks] == pytest.approx([0.8, 0.6, 0.4], rel=1e-12)
    for block in model.blocks:
        assert type(block) is Bottleneck
        given = (block.order, block.activation, block.granularity, block.rescale)
        assert given == ("pre", "silu", "sample", "train")
    assert build.build_model(changed({}), 7, 2).checkpoint_blocks is None


def test_recomputation_is_refused_for_a_network_that_cannot_do_it(changed, monkeypatch):
    model = nn.Sequential(BasicBlock(2, 2))
    monkeypatch.setattr(targets, "instantiate", lambda *_, **__: model)
    assert build.build_model(changed({}), 7, 2, Constant()) is model
    with pytest.raises(
        ConfigError, match=r"trainer.checkpoint_blocks must be null for Sequential, .* got 3"
    ):
        build.build_model(changed({"trainer.checkpoint_blocks": 3}), 7, 2, Constant())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("granularity", "sample", "ResNet with granularity sample: it is for sdnet's ResNets"),
        ("rescale", "train", "with rescale=train and a schedule that changes"),
    ],
)
def test_graphs_are_refused_where_they_cannot_be_recorded(changed, name, value, message):
    def rising(stage_blocks, progress=0.0):
        return [0.5 + progress / 2] * sum(stage_blocks)

    build.build_model(changed({"trainer.graphs": True}), 7, 2, rising)
    with pytest.raises(ConfigError, match=f"trainer.graphs must be false .*{message}"):
        config = changed({"trainer.graphs": True, f"model.{name}": value})
        build.build_model(config, 7, 2, rising)


def test_graphs_are_without_effect_on_a_cpu_and_refused_for_several_processes(changed, caplog):
    config = changed({"trainer.graphs": True, "trainer.device": "cpu"})
    build.build_device(config)
    assert "trainer.graphs=true is without effect: it is for CUDA" in caplog.text
    with pytest.raises(ConfigError, match="graphs must be false with several processes"):
        build.build_device(config, World(0, 2))


def test_the_optimizer_has_all_parameters_and_its_groups_settings(changed):
    model = ResNet(BasicBlock, (1,), (4,))
    optimizer, schedule = build.build_optimization(changed({"lr_schedule.gamma": 0.5}), model)
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    names = ("lr", "momentum", "nesterov", "weight_decay", "dampening")
    assert [group[name] for name in names] == [0.1, 0.9, True, 1e-4, 0]
    assert type(schedule) is optim.MultiStep
    assert [schedule(e, 20) for e in (9.9, 10, 15)] == [1.0, 0.5, 0.25]
    build.check_optimization(changed({}), model)
    with pytest.raises(ConfigError, match="optimizer: Invalid momentum value"):
        build.check_optimization(changed({"optimizer.momentum": -1.0}), model)
    with pytest.raises(ConfigError, match=r"lr_schedule\.gamma must be a number above 0"):
        build.build_optimization(changed({"lr_schedule.gamma": 0}), model)


@pytest.mark.parametrize("channels_last", [True, False])
def test_weights_have_the_memory_format_that_is_asked_for(small, channels_last):
    trainer = small(f"trainer.channels_last={str(channels_last).lower()}")
    weights = [m.weight for m in trainer.model.modules() if isinstance(m, nn.Conv2d)]
    wide = [w for w in weights if w.shape[1] > 1]
    assert len(wide) == 6
    for weight in wide:
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert weight.is_contiguous() != channels_last
    (group,) = trainer.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in trainer.model.parameters()]


@pytest.mark.parametrize("granularity", ["batch", "sample", "subset"])
def test_cudnn_searches_no_convolutions_for_each_blocks_own_batch_size(
    small, monkeypatch, granularity
):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    small(f"model.granularity={granularity}")
    assert torch.backends.cudnn.benchmark == (granularity != "subset")


def test_a_trainer_is_given_what_was_built(small, data, tmp_path):
    trainer = small("trainer.epochs=4", "optimizer.lr=0.3", "lr_schedule=constant", "seed=9")
    assert trainer.run.path == tmp_path / "run" and trainer.world.size == 1
    assert type(trainer.schedule) is Uniform and trainer.gates.seed == 9
    assert type(trainer.lr_schedule) is optim.ConstantRate
    assert trainer.optimizer.param_groups[0]["lr"] == 0.3
    assert (trainer.model.fc.out_features, trainer.model.conv1.in_channels) == (11, 1)
    assert (trainer.steps_per_epoch, trainer.epochs, trainer.total_steps) == (3, 4, 12)
    assert trainer.device == torch.device("cpu") and trainer.listeners == ()
    assert sorted(trainer.loaders) == ["test", "train", "validation"]
    assert trainer.settings["epochs"] == 4
    constant = small("schedule=constant", folder="constant")
    assert type(constant.schedule) is Constant


def test_batch_normalisation_is_synchronised_where_it_is_asked_for(small, monkeypatch):
    monkeypatch.setattr(build, "build_device", lambda config, world: torch.device("cpu"))

    def kinds(trainer):
        return {
            type(m)
            for m in trainer.model.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm)
        }

    assert kinds(small("trainer.sync_batchnorm=true")) == {nn.SyncBatchNorm}
    assert kinds(small(folder="plain")) == {nn.BatchNorm2d}


@pytest.mark.parametrize(("local_rank", "met_before"), [(0, 0), (1, 1)])
def test_one_process_of_a_machine_prepares_the_data_first_and_all_meet_once_they_have_built(
    small, local_rank, met_before
):
    world, seen = Half(rank=1, local_rank=local_rank), []
    trainer = small(world=world, at_data=lambda: seen.append(world.met))
    assert trainer.world is world and trainer.run is None
    assert seen == [met_before] and world.met == 2


def test_a_mini_batch_too_small_for_the_processes_is_refused_before_training(small):
    with pytest.raises(ConfigError, match=r"batch_size must be 4 or more .* 2 process"):
        small("trainer.batch_size=3", world=Half())
    with pytest.raises(ConfigError, match="leaves 1 of 20 training images"):
        small("trainer.batch_size=19", world=Half())


@pytest.mark.parametrize(
    ("size", "accumulate", "processes", "images", "message"),
    [
        (12, 2, 3, 24, None),
        (11, 2, 3, 24, "batch_size must be 12 or more for accumulate=2 and 3 process"),
        (2, 1, 1, 20, None),
        (1, 1, 1, 20, "batch_size must be 2 or more for accumulate=1 and 1 process"),
        (8, 1, 3, 19, None),
        (8, 1, 4, 19, "batch_size=8 leaves 3 of 19 training images .* too few for 4 processes"),
        (8, 1, 4, 24, None),
    ],
)
def test_a_mini_batch_has_two_images_for_each_part_and_one_for_each_process(
    size, accumulate, processes, images, message
):
    config = {"trainer": {"batch_size": size, "accumulate": accumulate}}
    if message is None:
        build.check_batches(config, images, processes)
    else:
        with pytest.raises(ConfigError, match=f"^trainer.{message}"):
            build.check_batches(config, images, processes)


@pytest.mark.parametrize(
    "made, message",
    [
        (7, "model._target_ must make an nn.Module, got int"),
        (nn.Linear(2, 2), "model._target_ must make a network with blocks that can be skipped, .*"),
    ],
)
def test_a_network_of_ones_own_needs_blocks(changed, monkeypatch, made, message):
    monkeypatch.setattr(targets, "instantiate", lambda *_, **__: made)
    with pytest.raises(ConfigError, match=f"^{message}"):
        build.build_model(changed({}), 7, 2, Constant())


def test_a_schedule_of_ones_own_is_tried_before_training(changed, monkeypatch):
    monkeypatch.setattr(targets, "instantiate", lambda *_, **__: 0.5)
    with pytest.raises(ConfigError, match=r"^schedule\._target_ must make a callable .* got float"):
        build.build_schedule(changed({}))
    monkeypatch.undo()
    wrong = {
        r"called with \(1, 1, 1\), 0.0 it fails: .* takes 1 positional": lambda blocks: [1.0] * 3,
        r"called with \(1, 1, 1\), 1.0 it fails: survival must be": (
            lambda blocks, progress=0.0: [1.0 - progress] * 3
        ),
    }
    for message, schedule in wrong.items():
        with pytest.raises(ConfigError, match=f"^schedule: {message}"):
            build.build_model(changed({}), 7, 2, schedule)


def test_a_data_set_of_ones_own_returns_a_source(changed, monkeypatch):
    monkeypatch.setattr(targets, "instantiate", lambda *_, **__: {})
    with pytest.raises(ConfigError, match=r"^dataset\._target_ must be a function .* got dict"):
        build.build_data(changed({}))


def test_what_a_network_is_given_by_the_run_is_not_for_its_group(changed):
    for name in ("num_classes", "in_channels", "schedule"):
        with pytest.raises(ConfigError, match=f"^model.{name} follows from .* got 7$"):
            build.build_model(changed({f"model.{name}": 7}), 10, 1)


def test_blocks_of_several_granularities_are_refused(changed, monkeypatch):
    model = nn.Sequential(BasicBlock(2, 2), BasicBlock(2, 2, granularity="sample"))
    monkeypatch.setattr(targets, "instantiate", lambda *_, **__: model)
    with pytest.raises(ConfigError, match=r"^model\.granularity must be one for the model, got \["):
        build.build_model(changed({}), 7, 2, Constant())


@pytest.mark.parametrize("listed", [True, False])
def test_a_shift_beyond_the_image_is_refused_before_it_is_read(changed, listed):
    build.build_data(changed({"dataset.shift": 7, "dataset.size": 8}), listed)
    message = "^dataset.shift must be less than the images' edge, 8, got 8$"
    with pytest.raises(ConfigError, match=message):
        build.build_data(changed({"dataset.shift": 8, "dataset.size": 8}), listed)
    with pytest.raises(ConfigError, match=r"^dataset\.normalization must be one of pixel"):
        build.build_data(changed({"dataset.normalization": "x"}), listed)
