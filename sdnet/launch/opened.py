"""A completed run opened to be looked into: its predictions, its data, its network."""

import logging
from functools import cached_property
from typing import Any

import torch
from torch import nn

from sdnet.config.compose import completed
from sdnet.config.errors import ConfigError, one_line
from sdnet.config.values import check
from sdnet.data.batches import Batches
from sdnet.data.split import Files, Split
from sdnet.data.splits import Data
from sdnet.launch import build
from sdnet.launch.load import load_run
from sdnet.launch.provenance import check_data
from sdnet.models.gates import gated_modules
from sdnet.models.layout import Layout
from sdnet.models.macs import Macs
from sdnet.runs.files import Damaged
from sdnet.runs.folder import RunFolder, select
from sdnet.runs.identity import run_name
from sdnet.runs.predictions import Predictions, read_predictions, write_predictions
from sdnet.training.distributed import ALONE
from sdnet.training.evaluation import Outputs, evaluate

log = logging.getLogger("sdnet")
SHORT = 8  # digits of a hash that is shown
OTHER = 1.0  # points of error by which a network may miss its own result before its data are others
LONGEST = 300  # letters of what a library says


class DataGone(ValueError):
    """The data of a run cannot be read; the text says why."""


class Opened:
    """A completed run. Data and network are read when something first asks for them.

    Args:
        checkpoint: `best` or `last`, see `load_run`; the stored predictions are those of `best`.
        device: as `trainer.device`.
        batch_size: as `trainer.eval_batch_size`; None: the run's.
        images: of the validation and of the test part for probes, drawn by `seed`; None: all.

    Every method raises a ValueError that says what is wrong with the run.
    """

    def __init__(
        self,
        run: RunFolder,
        checkpoint: str = "best",
        device: str = "auto",
        batch_size: int | None = None,
        images: int | None = None,
        seed: int = 0,
    ):
        self.run, self.checkpoint = run, checkpoint
        self.images, self.seed = images, seed
        config = completed(run.config())
        here = {"device": device, "compile": None, "graphs": False, "sync_batchnorm": False}
        here |= {} if batch_size is None else {"eval_batch_size": batch_size}
        here = {"trainer": config["trainer"] | here, "dataset": dict(config["dataset"])}
        if "download" in here["dataset"]:
            here["dataset"]["download"] = False
        self.config: dict[str, Any] = config | here
        check(self.config)  # before anything that it names is called
        self.name = run_name(config)
        self._loaders: list[tuple[Split | Files, Batches, str]] = []

    @cached_property
    def data(self) -> Data:
        try:
            return build.read_data(self.config, build.build_data(self.config, listing=True))
        except (ConfigError, ValueError, OSError) as error:
            raise DataGone(f"its data cannot be read: {one_line(error)[:LONGEST]}") from error

    @cached_property
    def parts(self) -> dict[str, Split | Files]:
        """`validation`, where there is one, `test` and `train`."""
        parts = {name: getattr(self.data, name) for name in ("validation", "test", "train")}
        return {name: part for name, part in parts.items() if part is not None}

    @cached_property
    def device(self) -> torch.device:
        return build.build_device(self.config)

    @cached_property
    def model(self) -> nn.Module:
        """In evaluation mode, on its device, in the memory format of the run."""
        try:
            model = load_run(self.run.path, self.checkpoint)
        except Damaged as error:
            raise ValueError(f"checkpoint {self.checkpoint}.pt is damaged: {error}") from error
        except (RuntimeError, KeyError, TypeError) as error:
            why = one_line(error)[:LONGEST]
            raise ValueError(f"its checkpoint is not of its network: {why}") from error
        layout = torch.contiguous_format
        if self.config["trainer"]["channels_last"]:
            layout = torch.channels_last
        return model.to(self.device, memory_format=layout)

    def compute(self, model: nn.Module, part: Split | Files) -> Predictions:
        """What a network says of a part in evaluation mode, with its gates as they are now."""
        loader, order = self._loader(part)
        outputs = Outputs(loader)
        evaluate(model, loader, self.config["trainer"]["precision"], outputs=outputs)
        return outputs.predictions(order)

    def _loader(self, part: Split | Files) -> tuple[Batches, str]:
        """A part's loader and order, of the last few: on CUDA a loader has a copy of the images."""
        for known, loader, order in self._loaders:
            if known is part:
                return loader, order
        found = self.batches(part), part.order()
        self._loaders = [*self._loaders[-2:], (part, *found)]
        return found

    def batches(self, part: Split | Files) -> Batches:
        """Normalised images of a part without augmentation, and labels, on the device."""
        normalization = self.data.normalization
        return build.build_loader(self.config, normalization, self.device, ALONE, part)

    @cached_property
    def subject(self):
        """What a probe takes."""
        from sdnet.analysis.probes.subject import Subject, some

        self.check_orders(self.predictions)
        parts = {
            name: part if name == "train" else some(part, self.images, self.seed)
            for name, part in self.parts.items()
        }
        return Subject(
            name=self.name,
            model=self.model,
            layout=Layout(self.model),
            survival=[module.survival for module in gated_modules(self.model)],
            macs=Macs(self.model, self.data.image_shape),
            parts=parts,
            compute=self.compute,
            batches=self.batches,
        )

    @cached_property
    def predictions(self) -> dict[str, Predictions]:
        """Those of `validation`, where there is one, and `test` at full depth: the stored ones, or
        else the network's, which are stored then."""
        stored = None if self.checkpoint == "last" else self._stored()
        if stored is not None:
            self._check_error(stored["test"], "its predictions err")
            try:
                self.check_orders(stored)
            except DataGone as gone:
                log.warning("%s: %s: the stored predictions are used", self.run.path, gone)
            return stored
        check_data(self.run, self.config, lambda config: self.data.fingerprint)
        found = {n: self.compute(self.model, p) for n, p in self.parts.items() if n != "train"}
        self._check_error(found["test"], "its network errs")
        if self.checkpoint == "best":
            step = int(select(self.run.rows())[0]["step"])
            epoch = step / -(-len(self.data.train) // self.config["trainer"]["batch_size"])
            write_predictions(self.run.predictions, found, epoch, step)
        return found

    def _stored(self) -> dict[str, Predictions] | None:
        try:
            return read_predictions(self.run.predictions)
        except Damaged as error:
            raise ValueError(f"{error}: remove it to have the network asked again") from error

    def check_orders(self, found: dict[str, Predictions]) -> None:
        """Raises a ValueError where predictions are not of the images that are there now."""
        for name, predictions in found.items():
            part = self.parts.get(name)
            now, then = "none" if part is None else part.order(), predictions.order
            if now != then:
                raise ValueError(
                    f"its predictions are of another {name} set ({then[:SHORT]}) than dataset.root="
                    f"{self.config['dataset'].get('root')} holds now ({now[:SHORT]}): put the "
                    f"run's own back, or remove predictions.npz to have its network asked of these"
                )

    def _check_error(self, test: Predictions, who: str) -> None:
        """Raises a ValueError where the error on these images is not what it was in the run;
        another processor's rounding may change a few."""
        error = 100.0 * float((test.predicted != test.labels).mean())
        name = "test_error" if self.checkpoint == "best" else "final_test_error"
        known = self.run.summary()[name]
        if abs(error - known) > OTHER + 200.0 / len(test):
            raise ValueError(
                f"{who} on {error:.2f} % of the test set that is there now, in its run "
                f"on {known:.2f} %: these are other images, or its predictions or code have changed"
            )
