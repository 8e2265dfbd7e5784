"""What a run comes to."""

from typing import Any

from sdnet.models.gates import gated_modules
from sdnet.runs.folder import select


def result_of(trainer: Any) -> dict[str, Any]:
    """The numbers of summary.json, from the rows recorded so far."""
    counters = trainer.counters
    train_seconds = counters.train_seconds + counters.interval_seconds
    rows = trainer.run.rows()
    best, selection = select(rows) if rows else ({}, None)
    return {
        "best_epoch": best.get("epoch"),
        "val_error": best.get("val_error"),
        "test_error": best.get("test_error"),
        "test_top5_error": best.get("test_top5_error"),
        "final_test_error": rows[-1]["test_error"] if rows else None,
        "selection": selection,
        "epochs": trainer.epochs,
        "steps": counters.step,
        "train_seconds": train_seconds,
        "eval_seconds": counters.eval_seconds,
        "seconds_per_epoch": train_seconds * trainer.steps_per_epoch / counters.step
        if counters.step
        else None,
        "expected_active_blocks": sum(trainer.layout.mean_survival(trainer.schedule)),
        "mean_active_blocks": counters.active / counters.step if counters.step else None,
        "blocks": len(gated_modules(trainer.model)),
        "granularity": trainer.gates.granularity,
        **trainer.macs,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "peak_memory_bytes": trainer.memory.bytes(),
        "other_load": counters.other_seconds / (counters.train_seconds + counters.eval_seconds)
        if counters.train_seconds
        else None,
    }
