import pytest
import torch
from torch import nn

from sdnet import skip_branches
from sdnet.analysis.measures import measure
from sdnet.analysis.probes.recalibration import recalibrate
from sdnet.config.errors import ConfigError
from sdnet.data.loader import Loader
from tests.analysis.probes.conftest import NORMALIZATION, compute, network
from tests.models.networks import WITH_DROP_PATH


@pytest.mark.parametrize("options", [{}, {"order": "pre", "granularity": "subset"}])
def test_then_what_a_normalization_sees_at_full_depth_has_mean_0_and_variance_1(subject, options):
    model, networks = network(**options), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def note(model, part):
        networks.append(model)
        return compute(model, part)

    found = subject(model, compute=note)
    one = Loader(found.parts["train"], NORMALIZATION, 20)  # all in one batch
    object.__setattr__(found, "batches", lambda part: one)
    rows = recalibrate(found)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert [(row["part"], row["statistics"]) for row in rows] == [
        (part, name) for part in ("validation", "test") for name in ("training", "recomputed")
    ]
    assert networks[0::2] == [model, model] and networks[1] is networks[3] is not model
    for row, network_of_row in zip(rows, networks, strict=True):
        expected = measure(compute(network_of_row, found.parts[row["part"]]))
        assert row.items() >= expected.items()
    assert rows[2]["loss"] != rows[3]["loss"]
    norms = [m for m in networks[1].modules() if isinstance(m, nn.BatchNorm2d)]
    seen = []
    for norm in norms:
        norm.register_forward_hook(lambda norm, given, out: seen.append((norm, out.clone())))
    with torch.no_grad():
        networks[1](next(iter(one))[0])
    assert len(seen) == len(norms) > 5
    for norm, out in seen:
        plain = (out - norm.bias[:, None, None]) / norm.weight[:, None, None]
        assert plain.mean((0, 2, 3)).abs().max() < 1e-2
        assert (plain.var((0, 2, 3)) - 1).abs().max() < 3e-2


def test_a_smaller_batch_at_the_end_does_not_count(subject):
    networks = []

    def note(model, part):
        networks.append(model)
        return compute(model, part)

    found = subject(compute=note)  # 20 images in batches of 8, 8 and 4
    recalibrate(found)
    first = found.model.conv1
    with torch.no_grad():
        two = [first(x).mean((0, 2, 3)) for x, _ in list(found.batches(found.parts["train"]))[:2]]
    torch.testing.assert_close(networks[1].bn1.running_mean, sum(two) / 2)


def test_it_is_for_batchnorm(subject):
    make, size = WITH_DROP_PATH["vit"]
    model = make().eval()
    skip_branches(model)
    with pytest.raises(ConfigError, match="BatchNorm, which net has not"):
        recalibrate(subject(model, size=size))
