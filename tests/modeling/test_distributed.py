"""Two gloo processes whose batches lack different modalities: nothing waits for ever, nothing is unused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import json, sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from tiny_models import audio_inputs, text_inputs, vision_inputs, tiny_model
torch.set_num_threads(1)
dist.init_process_group("gloo")
assert dist.get_world_size() == 2, dist.get_world_size()
model = tiny_model().train()
for name in ("text", "audio", "vision"):
    model.triemo.tower(name).encoder.eval()
wrapped = torch.nn.parallel.DistributedDataParallel(model)  # find_unused_parameters=False: all must be used
torch.manual_seed(dist.get_rank())
inputs = text_inputs() if dist.get_rank() == 0 else {**audio_inputs(), **vision_inputs()}
for _ in range(2):
    wrapped.zero_grad()
    wrapped(**inputs, labels=torch.tensor([0, 5])).loss.backward()
missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
if dist.get_rank() == 0:
    print(json.dumps({"missing": missing, "norm": norm}))
dist.barrier()
del wrapped  # it holds the group, whose threads must have ended before the process does
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="no gloo backend")
def test_ranks_with_different_modalities_train_together(tmp_path):
    script = tmp_path / "two_ranks.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
        + ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", str(script), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout.strip().splitlines()[-1])
    assert result["missing"] == []
    assert 0 < result["norm"] < float("inf")
