"""Peak memory and time of one training step on a large contrastive batch: whole, and with gradient caching.

    python tests/benchmarks/bench_grad_cache.py --batch 256 --chunk 32

Each way runs in a process of its own, on the GPU where there is one.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from transformers import BertConfig

from triemo.modeling import TriemoAudioConfig, TriemoConfig, TriemoForPreTraining
from triemo.training.pretraining_trainer import cached_contrastive_step

SECONDS, TOKENS, FRAMES = 3.0, 24, 4


def peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(way: str, batch: int, chunk: int) -> dict[str, float]:
    """Of the step alone: seconds, and MiB above what model and data take."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    text = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    audio = TriemoAudioConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    model = TriemoForPreTraining(TriemoConfig(text_config=text, audio_config=audio, vision_feature_size=64))
    model = model.to(device).train()
    ids = torch.randint(1000, 30000, (batch, TOKENS))
    data = {
        "input_ids": ids,
        "mlm_labels": torch.where(torch.rand(batch, TOKENS) < 0.15, ids, -100),
        "input_features": torch.randn(batch, int(SECONDS * 100), 80),
        "vision_features": torch.randn(batch, FRAMES, 64),
    }
    data = {name: tensor.to(device) for name, tensor in data.items()}
    size = chunk if way == "cached" else batch
    chunks = [{name: tensor[start : start + size] for name, tensor in data.items()} for start in range(0, batch, size)]
    model(**{name: tensor[:2] for name, tensor in data.items()}).loss.backward()  # memory that comes once
    before, start = peak_mib(device), time.perf_counter()
    if way == "cached":
        loss = cached_contrastive_step(model, chunks)["loss"]
    else:
        loss = model(**data).loss
        loss.backward()
    value = loss.item()
    return {"seconds": time.perf_counter() - start, "mib": peak_mib(device) - before, "loss": value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--way", choices=("whole", "cached"))
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.batch, args.chunk)))
        return
    for way in ("whole", "cached"):
        command = [sys.executable, __file__, "--batch", str(args.batch), "--chunk", str(args.chunk), "--way", way]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{way:7} {found['seconds']:7.2f} s {found['mib']:8.0f} MiB  loss {found['loss']:.5f}")


if __name__ == "__main__":
    main()
