"""Configurations composed from `conf/`, as the command line would."""

from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from sdnet.config import compose
from tests.conftest import ROOT

CONF = ROOT / "conf"
# Where and how a run is computed, kept and shown. All else decides what comes out of it.
NOT_RESULT = {
    *("name", "seeds", "show", "telemetry", "resume", "retry_failed"),
    *("model.name", "schedule.name"),
    *("wandb.mode", "wandb.project", "wandb.entity", "wandb.group", "wandb.name", "wandb.tags"),
    *("dataset.root", "dataset.download", "trainer.device", "trainer.threads", "trainer.workers"),
    *("trainer.checkpoint_every", "trainer.checkpoint_unit", "trainer.eval_batch_size"),
    *("trainer.log_every", "trainer.checkpoint_blocks", "trainer.compile", "trainer.fused"),
    "trainer.graphs",
}


def composed(*overrides):
    compose.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose.resolve(hydra_compose("config", overrides=list(overrides)))
