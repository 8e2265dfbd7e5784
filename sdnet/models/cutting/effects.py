"""What a block's `forward` does besides computing, which its trace would not do again."""

import copy
import random
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

PLAIN = (bool, int, float, str, type(None))
HOLDERS = (list, dict, set, OrderedDict, deque)


@contextmanager
def effects_undone(block: nn.Module) -> Iterator[list[str]]:
    """Puts back what is changed meanwhile in a block's attributes and in random generators.

    Yields:
        What that was, once it is over.
    """
    found: list[str] = []
    attributes, marks = dict(vars(block)), _marks(block)
    held = {name: copy.copy(value) for name, value in attributes.items() if type(value) in HOLDERS}
    python, numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield found
    finally:
        now = _marks(block)
        changed = [name for name in marks | now if marks.get(name, now) != now.get(name, marks)]
        if changed:
            vars(block).clear()
            vars(block).update(attributes)
        for name in held.keys() & set(changed):
            attributes[name].clear()
            add = "extend" if isinstance(held[name], list | deque) else "update"
            getattr(attributes[name], add)(held[name])
        found += [f"changes self.{name}" for name in changed]
        if _drawn(python, numpy, of_torch):
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(of_torch)
            found.append("draws random numbers that do not follow from its input")


def _drawn(python: Any, numpy: Any, of_torch: torch.Tensor) -> bool:
    """Whether random generators are no longer in these states."""
    now = np.random.get_state()
    same_numpy = numpy[2] == now[2] and bool((numpy[1] == now[1]).all())  # type: ignore[index]
    same_torch = torch.equal(of_torch, torch.get_rng_state())
    return not (python == random.getstate() and same_numpy and same_torch)


def _marks(block: nn.Module) -> dict[str, Any]:
    return {name: _mark(value) for name, value in vars(block).items()}


def _mark(value: Any) -> Any:
    """Something that changes with an attribute: of numbers the value, else what is where."""
    if isinstance(value, PLAIN):
        return value
    if type(value) not in HOLDERS:
        return id(value)
    if isinstance(value, dict):
        return id(value), [(key, id(held)) for key, held in value.items()]
    return id(value), [id(held) for held in value]
