"""What a run would do, printed for `show=true`."""

from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from sdnet.analysis.cost import Cost
from sdnet.data.splits import Data
from sdnet.models.cutting.gate import Gate
from sdnet.runs.identity import run_name
from sdnet.runs.shown import counted


def show_plan(
    console: Console, config: dict[str, Any], data: Data, model: nn.Module, cost: Cost
) -> None:
    """Prints a row per block, the totals, the data's sizes and the run's identity."""
    title = config["model"].get("name") or type(model).__name__
    # Of sdnet's own networks the number says which; one that was rewritten has its own names.
    rewritten = any(isinstance(module, Gate) for module in model.modules())
    columns = ["block", "stage", "p_l", "parameters", "multiply-adds"]
    table = Table(*columns, *(["share", "gate"] if rewritten else []), title=title)
    for column in table.columns[: len(columns)]:
        column.justify = "right"
    for i, block in enumerate(cost.blocks, start=1):
        macs = block.branch_macs + block.shortcut_macs
        last_of_stage = i < len(cost.blocks) and cost.blocks[i].stage != block.stage
        table.add_row(
            str(block.block),
            str(block.stage),
            f"{block.survival:.4f}",
            f"{block.parameters:,}",
            f"{macs:,}",
            *([f"{macs / cost.macs:.1%}", block.module] if rewritten else []),
            end_section=last_of_stage,
        )
    table.add_section()
    table.add_row(
        "all", "", f"{cost.expected_blocks:.2f}", f"{cost.parameters:,}", f"{cost.macs:,}"
    )
    console.print(table)

    settings, images = config["trainer"], len(data.train)
    steps = -(-images // settings["batch_size"])
    shape = "x".join(map(str, data.image_shape))
    held_out = len(data.validation) if data.validation is not None else 0
    blocks, branches = cost.blocks[-1].block, len(cost.blocks)
    active = "blocks active" if blocks == branches else f"branches active, in {blocks} blocks"
    lines = {
        "expected depth": f"{cost.expected_blocks:.2f} of {branches} {active}",
        "expected compute": f"{cost.expected_share:.1%} of {cost.macs:,} multiply-adds "
        "per image (forward, closed branches skipped)"
        if cost.granularity != "sample"
        else f"100 % of {cost.macs:,} multiply-adds per image: masks save nothing",
        "data": f"{config['dataset']['name']}: {images} training, {held_out} validation, "
        f"{len(data.test)} test images, {shape}, {len(data.classes)} classes",
        "training": f"{counted(settings['epochs'], 'epoch')} of {counted(steps, 'step')}",
        **_budget(settings, cost, images),
        "run": run_name(config),
    }
    for name, text in lines.items():
        console.print(f"{name:17} {text}", markup=False, highlight=False, soft_wrap=True)


def _budget(settings: dict[str, Any], cost: Cost, images: int) -> dict[str, str]:
    """How near the epochs come to the budget that they were chosen for, where there is one."""
    if settings.get("budget") is None:
        return {}
    off = cost.off(settings["budget"], settings["epochs"], images, settings["batch_size"])
    return {
        "budget": f"{counted(settings['budget'], 'epoch')} of constant depth, missed by {off:+.2%}"
    }
