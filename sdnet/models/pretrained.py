"""Weights from a file, for a network that begins with them. Nothing in the file is executed."""

import functools
import hashlib
import logging
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the digest is wanted before torch is there
    from torch import Tensor, nn

SHOWN = 3  # names that an error lists

log = logging.getLogger("sdnet")


def digest_of(file: str) -> str:
    """Sixteen hex digits for a file's content.

    Raises:
        ValueError: it cannot be read.
    """
    path = Path(file).expanduser()
    try:
        stat = path.stat()
        return _digest(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise ValueError(f"pretrained_file={file} cannot be read: {error.strerror}") from error


@functools.cache  # a sweep asks for each of its runs
def _digest(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def load_pretrained(model: "nn.Module", file: str, digest: str | None = None) -> None:
    """Gives a network the weights of a .pt, .pth or .safetensors file, its state_dict.

    All of them have to fit but those of a classifier for other classes: that stays as it is.

    Args:
        digest: what `digest_of` has to give.

    Raises:
        ValueError: the file is another one, no state_dict, or that of another network.
    """
    from sdnet.models.classifier import classifier_names

    if digest is not None and digest_of(file) != digest:
        raise ValueError(f"pretrained_file={file} is not the file that the run was begun with")
    own, state = model.state_dict(), _read(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    others = {n: tuple(t.shape) for n, t in state.items() if n in own and t.shape != own[n].shape}
    fresh = [name for name in classifier_names(model) if name in others]
    told = {
        "lacks": [n for n in own if n not in state and not n.endswith("num_batches_tracked")],
        "has besides": [name for name in state if name not in own],
        "has in other shapes": [
            f"{name} {others[name]} for {shapes[name]}" for name in others if name not in fresh
        ],
    }
    if wrong := [f"{what} {_some(names)}" for what, names in told.items() if names]:
        raise ValueError(
            f"pretrained_file={file} does not hold the weights of this {type(model).__name__}: it "
            f"{'; it '.join(wrong)}"
        )
    if next(model.parameters()).is_meta:  # only tried
        return
    for name in fresh:
        del state[name]
    model.load_state_dict(state, strict=False)
    if fresh:
        counts = others[fresh[0]][0], shapes[fresh[0]][0]
        log.info("%s: its classifier is for %d classes; that for %d is new", file, *counts)


def _read(file: str) -> dict[str, "Tensor"]:
    """The tensors of a file by name; of a checkpoint of sdnet those of its network."""
    import torch

    path = Path(file).expanduser()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise ValueError(f"pretrained_file={file} needs safetensors: pip install it") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"pretrained_file={file} holds something else than tensors and plain values, which is "
            f"not loaded"
        ) from error
    except Exception as error:  # parsers raise more than they say
        raise ValueError(f"pretrained_file={file} cannot be read as weights") from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ValueError(f"pretrained_file={file} must hold a state_dict: tensors by name")
    return state


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
