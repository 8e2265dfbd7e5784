import numpy as np
import pytest
import torch

from sdnet import rng
from tests.data.keyed import digest, philox


def test_a_key_always_draws_the_same_numbers():
    assert rng.generator(0, "gates", 1).bit_generator.random_raw(2).tolist() == [
        10799044822962257916,
        2948986718276912508,
    ]
    for key in ((0, "gates", 1), (3, "order", 2), (3, "augment", 2), (3, "split")):
        assert (rng.generator(*key).random(4) == philox(*key).random(4)).all()
        with rng.torch_seeded(*key):
            drawn = torch.rand(4)
        own = torch.Generator().manual_seed(digest(4, *key))
        assert torch.equal(drawn, torch.rand(4, generator=own))


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor, np.array], ids="abcd")
def test_whole_numbers_of_any_library_are_the_same_key(kind):
    same = rng.generator(kind(3), "gates", kind(2)).random(4)
    assert (same == rng.generator(3, "gates", 2).random(4)).all()
    with pytest.raises(TypeError):
        rng.generator(kind(3), "gates", 2.5j)


def test_every_part_of_a_key_counts():
    keys = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a", 1, 1), (0, "a"), (0, "a1")]
    numbers = [rng.generator(*key).random() for key in keys]
    tensors = []
    for key in keys:
        with rng.torch_seeded(*key):
            tensors.append(torch.rand(()).item())
    assert len(set(numbers)) == len(set(tensors)) == len(keys)


def test_torchs_generator_goes_on_afterwards_as_if_nothing_had_been():
    state = torch.get_rng_state()
    expected, numpys = torch.rand(3), np.random.get_state()[1].copy()
    torch.set_rng_state(state)
    with pytest.raises(KeyError), rng.torch_seeded(0, "init"):
        torch.rand(7)
        raise KeyError
    rng.generator(0, "order").random(7)
    assert torch.equal(torch.rand(3), expected)
    assert (np.random.get_state()[1] == numpys).all()
