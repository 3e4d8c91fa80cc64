"""The same global batch on one process and on two: the same loss and the same gradients."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_pretraining import CLASSES, batch_of_five, gradients, pretraining_model
from two_processes import run_two_processes

# Five rows as three and two (all masked tokens but one on the first process), then as four and one, where the second
# process has neither text nor masked tokens.
SCRIPT = """
import json, sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from safetensors.torch import save_file
from tiny_pretraining import CLASSES, batch_of_five, gradients, pretraining_model, rows
from triemo.training.pretraining_trainer import cached_contrastive_step
torch.set_num_threads(1)
dist.init_process_group("gloo")
assert dist.get_world_size() == 2, dist.get_world_size()
rank, found = dist.get_rank(), {}
torch.manual_seed(0)
batch = batch_of_five()
without_text = ("input_ids", "attention_mask", "mlm_labels")
for name, (fields, local_loss) in json.loads(sys.argv[3]).items():
    batch["labels"] = CLASSES if local_loss else torch.full_like(CLASSES, -100)
    for cut in (3, 4):
        for way in ("whole", "cached"):
            model = pretraining_model(**fields).train()
            wrapped = torch.nn.parallel.DistributedDataParallel(model)  # find_unused_parameters=False
            own = rows(batch, slice(0, cut) if rank == 0 else slice(cut, 5))
            if cut == 4 and rank == 1:
                own = {key: tensor for key, tensor in own.items() if key not in without_text}
            if way == "whole":
                losses = wrapped(**own, local_loss=local_loss)
                losses.loss.backward()
            else:
                size = len(own["labels"])
                chunks = [rows(own, slice(0, 1)), rows(own, slice(1, size))] if size > 1 else [own]
                losses = cached_contrastive_step(wrapped, chunks, local_loss=local_loss)
            key = f"{name}-{cut}-{way}"
            parts = {part: losses[part].item() for part in losses if part.endswith("loss")}
            everyone = [None, None]
            dist.all_gather_object(everyone, parts)
            found[key] = everyone
            if rank == 0:
                save_file(gradients(model), f"{sys.argv[2]}/{key}.safetensors")
if rank == 0:
    print(json.dumps(found))
dist.barrier()
del wrapped  # it holds the group, whose threads must have ended before the process does
dist.destroy_process_group()
"""
# Fields of the config, and whether each process computes its own terms only; then classes are known, too.
KINDS = {
    "plain": ({"frame_weight": 1.0}, False),
    "local": ({}, True),
    "blind": ({"mlm_uses_joint_states": False}, False),
    "contrastive": ({"mlm_weight": 0.0}, False),
    "mlm": ({"contrastive_weight": 0.0}, False),
}


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="no gloo backend")
def test_two_processes_give_the_loss_and_the_gradients_of_one(tmp_path):
    script = tmp_path / "two_ranks.py"
    script.write_text(SCRIPT)
    printed = run_two_processes(script, Path(__file__).parent, tmp_path, json.dumps(KINDS), timeout=300)
    found = json.loads(printed.strip().splitlines()[-1])
    assert len(found) == len(KINDS) * 4
    for kind, (fields, local_loss) in KINDS.items():
        model = pretraining_model(**fields).train()
        torch.manual_seed(0)
        output = model(**batch_of_five(), labels=CLASSES if local_loss else None)
        output.loss.backward()
        expected = gradients(model)
        parts = {part: output[part].item() for part in output if part.endswith("loss")}
        for cut in (3, 4):
            for way in ("whole", "cached"):
                key = f"{kind}-{cut}-{way}"
                for of_rank in found[key]:
                    assert of_rank == pytest.approx(parts, abs=1e-5), key
                two = load_file(tmp_path / f"{key}.safetensors")
                assert two.keys() >= expected.keys()
                for name, gradient in two.items():
                    one = expected.get(name, torch.zeros_like(gradient))
                    assert (gradient - one).abs().max() < 1e-5 * max(1.0, one.abs().max()), (key, name)
