"""What `World.reduce` knows of a network."""

import gc
import weakref

from sdnet import resnet_cifar
from sdnet.training.flat import parts_of


def test_the_parts_of_a_network_are_found_once_and_keep_it_no_longer_than_others_do():
    model, other = resnet_cifar(8), resnet_cifar(8)
    parameters, norms = parts_of(model)
    assert parts_of(model)[0] is parameters and parts_of(other)[0] is not parameters
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert len(norms) == sum("num_batches_tracked" in name for name in model.state_dict())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
