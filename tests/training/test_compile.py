import copy
import pickle
import threading

import pytest
import torch
from torch import nn

from sdnet import BasicBlock, GateSampler, ResNet, resnet_cifar, set_gates, skip_branches
from sdnet.analysis.cost import network_cost
from sdnet.config import targets
from sdnet.config.errors import ConfigError
from sdnet.launch import build
from sdnet.models import compile as compiling
from sdnet.models.compile import compile_branches
from sdnet.models.gates import Gated, gated_modules
from sdnet.runs.folder import RunFolder
from sdnet.runs.identity import identity
from sdnet.training.counters import Interrupted
from tests.config.composed import composed
from tests.models.networks import WITH_DROP_PATH
from tests.training.test_trainer import StopAfter

SMALL = ["model.depth=8", "dataset.size=8", "trainer.device=cpu", "optimizer.lr=0.01"]


class Counting:
    """A backend that counts the graphs it is given, and how often they are run."""

    def __init__(self, name="eager"):
        self.name, self.graphs, self.runs = name, 0, 0

    def __call__(self, graph, inputs):
        from torch._dynamo import lookup_backend

        compiled = lookup_backend(self.name)(graph, inputs)
        self.graphs += 1

        def counted(*values):
            self.runs += 1
            return compiled(*values)

        return counted


@pytest.fixture(autouse=True)
def fresh():
    """torch.compile as in a process that has not used it."""
    from torch import _dynamo

    _dynamo.reset()
    with _dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):  # torch's own
        yield


def make(folder, *overrides, backend=None):
    config = composed(*SMALL, *overrides)
    folder = RunFolder(folder)
    if not folder.holds_run():
        folder.create(config, {})
    trainer = build.build_trainer(config, folder)
    if backend is not None:
        compile_branches(trainer.model, backend)
    return trainer


def fitted(trainer):
    trainer.fit()
    return trainer.run.rows()


def assert_same(rows, expected):
    """Equal but for rounding, and for one or two images whose two largest logits are close."""
    for row, other in zip(rows, expected, strict=True):
        for name, value in row.items():
            if not name.endswith(("seconds", "per_second")):
                near = {"abs": 0.6} if name.endswith("error") else {"rel": 1e-3}
                assert value == pytest.approx(other[name], **near), name


def evaluations(trainer):
    """Branches that an evaluation of all parts computes."""
    batches = sum(len(trainer.loaders[part]) for part in ("validation", "test"))
    return batches * len(trainer.model.blocks)


def stepped(model, images):
    """Outputs of a training step, with every other gate closed, and of an evaluation; gradients."""
    set_gates(model, [i % 2 == 0 for i in range(len(model.blocks))])
    logits = model.train()(images)
    logits.square().mean().backward()
    with torch.no_grad():
        evaluated = model.eval()(images)
    return [logits, evaluated, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.slow
def test_two_epochs_compile_each_shape_once_per_mode_and_agree_with_the_plain_run(tmp_path):
    two = ["trainer.epochs=2", "schedule.p_L=0.4"]
    plain = fitted(make(tmp_path / "plain", *two))
    backend = Counting("aot_eager")
    trainer = make(tmp_path / "compiled", *two, backend=backend)
    assert_same(fitted(trainer), plain)
    # Three shapes; training with 128 rows and with the last 13, evaluation with 128, 104 and 16.
    assert backend.graphs == 3 * 3
    # Nothing but graphs computed branches: those of open gates, and of two evaluations.
    assert backend.runs == trainer.counters.active + 2 * evaluations(trainer)

    # A run that goes on in the same process has the graphs of the first.
    stopped = make(tmp_path / "parts", *two, backend=backend)
    stopped.listeners = (StopAfter(5),)
    with pytest.raises(Interrupted):
        stopped.fit()
    assert backend.graphs == 3 * 3
    resumed = make(tmp_path / "parts", *two)
    resumed.resume()
    assert_same(fitted(resumed), plain)


def test_a_run_that_reaches_the_limit_of_graphs_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "GRAPHS", 0)  # torch's own limit stays, which is 8
    with pytest.raises(RuntimeError, match=r"BasicBlock.branch cannot be compiled.* 8 graphs are"):
        make(tmp_path / "run", "trainer.epochs=1", backend="eager").fit()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, name, graphs",
    [
        ("model.granularity=sample model.order=pre trainer.accumulate=3", "aot_eager", [9]),
        ("trainer.checkpoint_blocks=2", "aot_eager", [9 + 6]),
        ("model.granularity=subset model.block=bottleneck model.depth=11", "eager", [9]),
        # the processor decides whether few rows have graphs of their own
        ("trainer.precision=bf16 trainer.channels_last=false", "eager", [6, 9]),
    ],
)
def test_compiled_branches_go_with_other_settings(tmp_path, overrides, name, graphs):
    overrides = [*overrides.split(), "trainer.epochs=1"]
    plain = fitted(make(tmp_path / "plain", *overrides))
    backend = Counting(name)
    assert_same(fitted(make(tmp_path / "compiled", *overrides, backend=backend)), plain)
    assert backend.graphs in graphs


@pytest.mark.slow
def test_inductor_computes_the_same():
    plain = ResNet(BasicBlock, (3,), (4,))
    model = copy.deepcopy(plain)
    compile_branches(model)
    images = torch.rand(32, 3, 8, 8)
    near = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(stepped(model, images), stepped(plain, images), **near)
    statistics = [list(network.buffers()) for network in (model, plain)]
    torch.testing.assert_close(*statistics, **near)


def test_the_setting_changes_neither_the_identity_of_a_run_nor_names_of_parameters(tmp_path):
    setting = "trainer.compile=branches"
    assert identity(composed(*SMALL, setting)) == identity(composed(*SMALL))
    compiled, plain = make(tmp_path / "compiled", setting), make(tmp_path / "plain")
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    assert all("branch" in vars(block) for block in compiled.model.blocks)
    assert not any("branch" in vars(block) for block in plain.model.blocks)


def test_a_copy_is_not_compiled():
    model, backend = resnet_cifar(8), Counting()
    cost = network_cost(model, (3, 32, 32))
    compile_branches(model, backend)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        stepped(copied, torch.rand(2, 3, 8, 8))
        assert copied.blocks[0].conv1.weight.grad is not None
    assert network_cost(model, (3, 32, 32)) == cost
    assert not backend.graphs and model.blocks[0].conv1.weight.grad is None


class Doubled(BasicBlock):
    def branch(self, x):
        return 2 * super().branch(x)


class Changing(BasicBlock):
    def branch(self, x):
        return self.survival * super().branch(x)


class Breaking(BasicBlock):
    def branch(self, x):
        print("is in no graph")
        return super().branch(x)


def test_a_block_of_ones_own_has_its_own_branch_compiled():
    plain, backend = ResNet(Doubled, (2,), (4,)), Counting()
    model = copy.deepcopy(plain)
    compile_branches(model, backend)
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(stepped(model, images), stepped(plain, images))
    assert backend.graphs == 2 and backend.runs == 1 + 2


@pytest.mark.parametrize(
    "block, widths, reason",
    [
        (Changing, (4, 8), "keeps changing, and 12 graphs"),  # torch's 8, and 2 for each shape
        (Breaking, (4,), "`print`"),
    ],
)
def test_a_branch_that_would_not_stay_compiled_is_an_error(block, widths, reason, monkeypatch):
    monkeypatch.setattr(compiling, "GRAPHS", 2)
    model = ResNet(block, [1] * len(widths), widths)
    compile_branches(model, backend="eager")
    with pytest.raises(RuntimeError, match=rf"{block.__name__}.branch cannot be .*{reason}"):
        for i in range(1, 12):
            model.blocks[0].survival = 1 / i
            stepped(model, torch.rand(2, 3, 8, 8))


def test_the_limit_is_raised_in_every_thread():
    # torch's settings hold in one thread; on CUDA another one computes the backward pass, and with
    # it the recomputation of activations.
    model, backend = resnet_cifar(8).eval(), Counting()
    compile_branches(model, backend)
    errors = []

    def work():
        try:
            for rows in (32, 8, 1):
                model(torch.rand(rows, 3, 8, 8))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors and backend.graphs == 9


def test_the_limit_on_all_graphs_of_a_function_is_raised_with_that_on_its_recompilations():
    from torch import _dynamo

    model, backend = ResNet(BasicBlock, (1, 1, 1), (4, 8, 16)).eval(), Counting()
    compile_branches(model, backend)
    with _dynamo.config.patch(accumulated_recompile_limit=2):
        model(torch.rand(32, 3, 8, 8))
        assert _dynamo.config.accumulated_recompile_limit == 8 + 3 * compiling.GRAPHS
    assert backend.graphs == 3


class Foreign(Gated):
    num_convs = expansion = 1

    def __init__(self, *_, survival, granularity, rescale, **__):
        super().__init__(survival, granularity, rescale)


@pytest.mark.parametrize("block", [Foreign, None])
def test_a_model_with_other_blocks_is_refused(block, monkeypatch):
    model = nn.Linear(2, 2) if block is None else ResNet(block, (1,), (4,))
    with pytest.raises(ValueError, match=r"has blocks other than ResidualBlock, .* or none"):
        compile_branches(model)
    config = composed(*SMALL, "trainer.compile=branches")
    monkeypatch.setattr(targets, "instantiate", lambda *_, **__: model)
    name = type(model).__name__
    with pytest.raises(ConfigError, match=f"trainer.compile must be null for {name}.* got"):
        build.build_model(config, 10, 1)


def test_a_machine_without_a_compiler_is_told_before_training(monkeypatch):
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(
        ConfigError,
        match=r"trainer.compile must be null on this machine.* got branches: No working C\+\+",
    ):
        build.build_device(composed(*SMALL, "trainer.compile=branches"))


@pytest.mark.parametrize("granularity", ["batch", "subset"])
def test_branches_of_a_rewritten_network_are_compiled(granularity):
    torch.manual_seed(0)
    net = WITH_DROP_PATH["vit"][0]()
    skip_branches(net, granularity=granularity)
    compiled, backend = copy.deepcopy(net), Counting()
    compile_branches(compiled, backend)
    sampler = GateSampler(net, seed=0)
    for step in range(4):
        found = []
        for model in (net, compiled):
            set_gates(model, sampler.draw(step, 6))
            model.zero_grad()
            out = model(torch.ones(6, 3, 32, 32))
            out.sum().backward()
            found.append([out, *(p.grad for p in model.parameters())])
        torch.testing.assert_close(*found)
    assert 2 <= backend.graphs <= 4 < backend.runs  # of three blocks, each with two branches
    assert all(module.compiled is None for module in gated_modules(copy.deepcopy(compiled)))
