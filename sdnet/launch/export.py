"""`python -m sdnet export`: a run's network without gates, for those who do not have sdnet.

Every file is read back before it is written, and has to give the logits of the run's own network.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdnet.config.compose import completed
from sdnet.config.errors import ConfigError, one_line
from sdnet.launch import build
from sdnet.launch.load import load_run
from sdnet.launch.plain import plain_network
from sdnet.models.fold import fold
from sdnet.models.gates import gated_modules
from sdnet.runs.files import Damaged, replacing, write_atomically
from sdnet.runs.folder import RunFolder
from sdnet.runs.identity import run_name
from sdnet.training.distributed import ALONE

TOLERANCE = 1e-4  # of the largest logit, in float32
IMAGES = 16  # on which the logits are compared
EDGE, LARGEST = 32, 1024  # pixels: where nothing says it, and where that is believed
ANY_NUMBER = ({0: torch.export.Dim("batch")},)  # of images
LONGEST = 300  # letters of what a library says

Logits = Callable[[Tensor], Tensor]


@dataclass
class Format:
    """A kind of file.

    Attributes:
        name: of the file.
        needs: packages.
        write: from a network, the call that makes one, images and what is to be noted, a file.
        read: from a file, and a network of that class to be filled, what gives logits.
    """

    name: str
    needs: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, dict[str, str]], bytes]
    read: Callable[[bytes, nn.Module], Logits]


def _to_safetensors(network: nn.Module, images: Tensor, notes: dict[str, str]) -> bytes:
    from safetensors.torch import save

    return save({k: v.contiguous() for k, v in network.state_dict().items()}, notes)


def _from_safetensors(content: bytes, network: nn.Module) -> Logits:
    from safetensors.torch import load

    network.load_state_dict(load(content), strict=True)
    return network.eval()


def _program(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(network, (images[:2],), dynamic_shapes=ANY_NUMBER)


def _to_pt2(network: nn.Module, images: Tensor, notes: dict[str, str]) -> bytes:
    file = io.BytesIO()
    torch.export.save(_program(network, images), file, extra_files=dict(notes))
    return file.getvalue()


def _from_pt2(content: bytes, network: nn.Module) -> Logits:
    return torch.export.load(io.BytesIO(content)).module()


def _to_onnx(network: nn.Module, images: Tensor, notes: dict[str, str]) -> bytes:
    names = {"input_names": ["images"], "output_names": ["logits"]}
    program = torch.onnx.export(
        _program(network, images),
        (images[:2],),
        dynamo=True,
        verbose=False,
        dynamic_shapes=ANY_NUMBER,  # once more: for its name
        **names,
    )
    program.model.metadata_props.update(notes)
    return program.model_proto.SerializeToString()


def _from_onnx(content: bytes, network: nn.Module) -> Logits:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


FORMATS = {
    "safetensors": Format(
        "model.safetensors", ("safetensors",), _to_safetensors, _from_safetensors
    ),
    "pt2": Format("model.pt2", (), _to_pt2, _from_pt2),
    "onnx": Format("model.onnx", ("onnx", "onnxscript", "onnxruntime"), _to_onnx, _from_onnx),
}


def export(
    folder: Path,
    out: Path | None = None,
    checkpoint: str = "best",
    formats: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes a run's network into files, and `export.json`; all of them, or none.

    Args:
        out: default `export/` in the run folder.
        checkpoint: see `load_run`.
        formats: of `FORMATS`; None: those for which the packages are here.
        say: takes the lines of what is done.

    Returns:
        The folder of the files.

    Raises:
        ValueError: no run, or one that cannot be written so: why.
    """
    formats = _possible(formats, say)
    run = _run(folder)
    try:
        model = load_run(folder, checkpoint)
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: its checkpoint is not of its network: {one_line(error)[:LONGEST]}"
        ) from error
    config = completed(run.config())
    images, facts = _images(config, model)
    try:
        with torch.no_grad():
            expected = model(images)
        name, network = plain_network(config, expected.shape[1], images.shape[1])
        network.load_state_dict(fold(model), strict=True)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{folder} cannot be exported: {one_line(error)[:LONGEST]}") from error
    facts = _facts(run, config, checkpoint, model) | {"class": name} | facts
    notes = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    written = {}
    for kind in (FORMATS[format] for format in formats):
        try:
            with _quiet():
                content = kind.write(network.eval(), images, notes)
                difference = _difference(kind.read(content, network), images, expected)
        except Exception as error:  # libraries raise what they like
            raise ValueError(
                f"{kind.name} cannot be made: {one_line(error)[:LONGEST]}; nothing was written "
                f"(--format names what is)"
            ) from error
        written[kind.name] = content, difference
    place = run.path / "export" if out is None else out
    place.mkdir(parents=True, exist_ok=True)
    facts["largest_logit"] = expected.abs().max().item()
    facts["largest_difference"] = {name: value for name, (_, value) in written.items()}
    for name, (content, difference) in written.items():
        with replacing(place / name) as file:
            file.write(content)
        say(f"{place / name}  {len(content):,} bytes; logits differ by {difference:.1g} at most")
    write_atomically(place / "export.json", json.dumps(facts, indent=2) + "\n")
    largest = f"largest logit {facts['largest_logit']:.3g}"
    say(f"for {facts['class']}; {largest}, on {facts['compared_on']}")
    return place


def _possible(formats: Sequence[str] | None, say: Callable[[str], None]) -> list[str]:
    possible = []
    for name in FORMATS if formats is None else formats:
        if name not in FORMATS:
            raise ValueError(f"--format must be of {', '.join(FORMATS)}, got {name!r}")
        missing = [package for package in FORMATS[name].needs if find_spec(package) is None]
        if not missing:
            possible.append(name)
            continue
        text = f"{name} needs {', '.join(missing)}: pip install '.[export]' in sdnet's clone"
        if formats is not None:
            raise ValueError(text)
        say(f"left out: {text}")
    return possible


def _run(folder: Path) -> RunFolder:
    """The folder of one run, whose weights are of use."""
    run = RunFolder(folder)
    if not run.holds_run():
        files = (file for depth in ("*", "*/*") for file in folder.glob(f"{depth}/config.yaml"))
        if below := sorted(file.parent for file in files):
            raise ValueError(
                f"{folder} is not a run folder, but {len(below)} below it are: name one, e.g. "
                f"{below[0]}"
            )
        raise ValueError(f"{folder} is not a run folder: it has no config.yaml")
    try:
        run.check_places()
        summary = run.summary()
    except Damaged as error:
        raise ValueError(f"{folder} is damaged: {error}") from error
    if summary.get("status") == "diverged":
        raise ValueError(f"{folder} holds a run that diverged: {summary.get('reason')}")
    return run


def _images(config: dict[str, Any], model: nn.Module) -> tuple[Tensor, dict[str, Any]]:
    """Images as the network takes them, and what is to be known of them."""
    settings = config["trainer"] | {"eval_batch_size": IMAGES, "workers": 0}
    dataset = config["dataset"]
    dataset = dataset | ({"download": False} if "download" in dataset else {})
    config = config | {"trainer": settings, "dataset": dataset}
    try:
        data = build.build_data(config)
        images, _ = next(
            iter(build.build_loaders(config, data, torch.device("cpu"), ALONE)["test"])
        )
    except (ConfigError, ValueError, OSError) as error:
        channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
        size = dataset.get("size")
        edge = size if type(size) is int and 0 < size <= LARGEST else EDGE
        random = torch.Generator().manual_seed(0)
        images = torch.randn(IMAGES, channels, edge, edge, generator=random)
        told = f"{len(images)} random images: the data cannot be read ({one_line(error)[:LONGEST]})"
        return images, {"input": list(images.shape[1:]), "compared_on": told}
    norm = data.normalization
    mean = norm.mean.transpose(2, 0, 1) if norm.mean.ndim == 3 else norm.mean
    return images.contiguous(), {
        "input": list(images.shape[1:]),
        "normalization": {"of": "pixels 0 to 255", "mean": mean.tolist(), "std": norm.std.tolist()},
        "classes": data.classes,
        "compared_on": f"{len(images)} test images",
    }


def _facts(
    run: RunFolder, config: dict[str, Any], checkpoint: str, model: nn.Module
) -> dict[str, Any]:
    summary = run.summary()
    gated = gated_modules(model)
    return {
        "run": run_name(config),
        "identity": summary.get("identity"),
        "checkpoint": checkpoint,
        "test_error": summary.get("test_error" if checkpoint == "best" else "final_test_error"),
        "survival": [module.survival for module in gated],
        "rescale": gated[0].rescale,
    }


def _difference(logits: Logits, images: Tensor, expected: Tensor) -> float:
    """The largest one between logits, of which those of one image and of several are computed.

    Raises:
        ValueError: it is more than rounding.
    """
    with torch.no_grad():
        found = torch.cat([logits(images[:1]), logits(images[1:])])
    difference, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= TOLERANCE * scale:  # nor where one is no number
        raise ValueError(
            f"its logits differ from the run's by {difference:.2g}, of {scale:.2g} at most"
        )
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters tell their authors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
