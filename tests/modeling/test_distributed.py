"""Two gloo processes whose batches lack different modalities: nothing waits for ever, nothing is unused."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import audio_inputs, text_inputs, tiny_model, vision_inputs
from two_processes import run_two_processes

SCRIPT = """
import json, sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from tiny_models import audio_inputs, text_inputs, vision_inputs, tiny_model
torch.set_num_threads(1)
dist.init_process_group("gloo")
assert dist.get_world_size() == 2, dist.get_world_size()
alone = sys.argv[2] == "one modality"
model = tiny_model(**({"audio_config": None, "vision_config": None} if alone else {})).train()
for name in model.config.modalities:
    model.triemo.tower(name).encoder.eval()
if sys.argv[2] != "fsdp2":
    wrapped = torch.nn.parallel.DistributedDataParallel(model)  # find_unused_parameters=False: all must be used
else:
    from torch.distributed.fsdp import fully_shard
    mesh = dist.init_device_mesh("cpu", (2,))
    for module in list(model.modules()):
        if type(module).__name__ in ("TriemoEncoderLayer", "BertLayer"):
            fully_shard(module, mesh=mesh)
    wrapped = fully_shard(model, mesh=mesh)
    assert all(p.to_local().numel() < p.numel() for p in model.parameters() if len(p) > 1)
torch.manual_seed(dist.get_rank())
inputs = text_inputs() if alone or dist.get_rank() == 0 else {**audio_inputs(), **vision_inputs()}
for _ in range(2):
    wrapped.zero_grad()
    torch.manual_seed(dist.get_rank())
    wrapped(**inputs, labels=torch.tensor([0, 5])).loss.backward()
gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
missing = [name for name, gradient in gradients.items() if gradient is None]
whole = {n: getattr(g, "full_tensor", lambda g=g: g)() for n, g in gradients.items() if g is not None}
wrapped.eval()
with torch.no_grad():
    logits = wrapped(**inputs).logits
both = [torch.empty_like(logits) for _ in range(2)]
dist.all_gather(both, logits)
norms = {name: gradient.norm().item() for name, gradient in whole.items()}
if dist.get_rank() == 0:
    print(json.dumps({"missing": missing, "norms": norms, "logits": torch.stack(both).tolist()}))
dist.barrier()
del wrapped  # it holds the group, whose threads must have ended before the process does
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="no gloo backend")
def test_ranks_with_different_modalities_train_and_evaluate_together(tmp_path):
    """
    Under DDP and, weights spread over the processes, under FSDP2: every gradient has the same norm, and the logits are
    those of one process. A model of one modality has no parameter without a gradient, either.
    """
    script = tmp_path / "two_ranks.py"
    script.write_text(SCRIPT)
    results = {}
    for how in ("ddp", "fsdp2", "one modality"):
        printed = run_two_processes(script, Path(__file__).parent, how, timeout=240)
        results[how] = json.loads(printed.strip().splitlines()[-1])
        assert results[how]["missing"] == []
    norms = {how: result["norms"] for how, result in results.items()}
    assert 0 < max(norms["ddp"].values()) < float("inf")
    assert norms["fsdp2"] == pytest.approx(norms["ddp"], rel=1e-3, abs=1e-6)
    batches = []
    for rank in range(2):
        torch.manual_seed(rank)
        batches.append({**audio_inputs(), **vision_inputs()} if rank else text_inputs())
    with torch.no_grad():
        expected = torch.stack([tiny_model()(**batch).logits for batch in batches])
    for how in ("ddp", "fsdp2"):
        torch.testing.assert_close(torch.tensor(results[how]["logits"]), expected, atol=1e-5, rtol=1e-4)
