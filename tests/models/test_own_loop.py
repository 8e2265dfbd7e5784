"""The loops of docs/own-code.md in two processes end as one process would with the whole batch."""

import os
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F

from sdnet import GateSampler, set_gates, skip_branches
from tests.commands import ROOT
from tests.test_docs import FENCED

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
END = """
full = [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in net.parameters()]
torch.save(full, f"{dist.get_rank()}.pt")
dist.destroy_process_group()
"""
PAGE = (ROOT / "docs" / "own-code.md").read_text()
LOOPS = {
    "ddp" if "DistributedDataParallel(" in code else "fsdp": code
    for language, code in FENCED.findall(PAGE)
    if language == "py"
}


def small(code):
    changed = code.replace("img_size=64", "img_size=64, patch_size=16, depth=4, embed_dim=48")
    assert changed != code
    return changed


@pytest.fixture(scope="module")
def expected():
    """One process, the mini-batches of both."""
    torch.manual_seed(0)
    options = {"img_size": 64, "patch_size": 16, "depth": 4, "embed_dim": 48}
    net = timm.create_model("vit_tiny_patch16_224", num_classes=10, drop_path_rate=0.5, **options)
    skip_branches(net)
    sampler = GateSampler(net, seed=0)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    closed = []
    for step in range(3):
        seeds = [torch.Generator().manual_seed(step * 2 + rank) for rank in range(2)]
        images = torch.cat([torch.randn(4, 3, 64, 64, generator=g) for g in seeds])
        gates = sampler.draw(step, 4)
        closed.append(gates.view(-1, 2).any(1).logical_not())  # both branches of a block
        set_gates(net, gates)
        optimizer.zero_grad()
        F.cross_entropy(net(images), torch.arange(4).repeat(2)).backward()
        optimizer.step()
    assert torch.stack(closed).any()
    return [p.detach() for p in net.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_end_as_one(kind, expected, tmp_path):
    (tmp_path / "loop.py").write_text(small(LOOPS[kind]) + END)
    command = [*TORCHRUN, "loop.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        torch.testing.assert_close(
            torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-4, atol=1e-6
        )
