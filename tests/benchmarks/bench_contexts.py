"""Seconds per 1,000 utterances of vectors through a conversation's head, the four contexts side by side.

    python tests/benchmarks/bench_contexts.py --dialogues 16 --utterances 10,50,200 --output contexts.json

A batch of dialogues of text, sound and face vectors (300, 74, 35 values, as CMU-MOSI's), random weights: the time does
not depend on them. All run in one process on the same batch, in turn, so the ratios are what to quote. Where the
package MMSA 2.2.1 is installed (`pip install --no-deps MMSA`), its MulT is timed beside, over as many steps with as
many parameters as it has by default; it reads a dialogue as one sample of that many steps.

`--long` runs one dialogue of 1,000 utterances, and one of 5,000 in a causal context of 64, and reports peak memory.
"""

import argparse
import json
import resource
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from interleaved import interleaved_ms

from triemo.modeling import TriemoConfig, TriemoForEmotionSequence
from triemo.training.arguments import CONTEXT_TYPES

WIDTHS = {"text": 300, "audio": 74, "vision": 35}
HEAD = {"num_hidden_layers": 1, "num_attention_heads": 4, "projection_dim": 32, "context_layers": 1, "num_labels": 7}


def head(context: str, width: int = 128, **fields: Any) -> TriemoForEmotionSequence:
    torch.manual_seed(0)
    sizes = {f"{name}_feature_size": size for name, size in WIDTHS.items()}
    sizes |= {"hidden_size": width, "intermediate_size": 2 * width}
    config = TriemoConfig(**HEAD, **sizes, step_aligned=True, context_type=context, **fields)
    return TriemoForEmotionSequence(config).eval()


def vectors(dialogues: int, utterances: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    names = {"text": "text_features", "audio": "input_features", "vision": "vision_features"}
    inputs = {names[m]: torch.randn(dialogues, utterances, width, generator=draw) for m, width in WIDTHS.items()}
    return inputs | {"speakers": torch.arange(utterances).remainder(2).expand(dialogues, -1)}


def mult() -> Any:
    """MulT (Tsai et al., 2019) with the settings that MMSA gives it for CMU-MOSI; None where it is not installed."""
    spec = find_spec("MMSA")
    if spec is None:
        return None
    # The packages above the model import all of MMSA, down to the drivers of GPUs: only their places are needed.
    folder = Path(str(spec.origin)).parent
    for name in ("MMSA", "MMSA.models", "MMSA.models.singleTask"):
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    MULT = import_module("MMSA.models.singleTask.MULT").MULT
    settings = {"dst_feature_dim_nheads": [40, 8], "nlevels": 4, "attn_mask": True, "need_data_aligned": False}
    settings |= {f"attn_dropout{part}": 0.2 for part in ("", "_a", "_v")} | {"relu_dropout": 0.0, "embed_dropout": 0.2}
    settings |= {"res_dropout": 0.0, "output_dropout": 0.5, "text_dropout": 0.1, "train_mode": "classification"}
    settings |= {f"conv1d_kernel_size_{part}": 1 for part in "lav"}
    args = SimpleNamespace(**settings, use_bert=False, feature_dims=list(WIDTHS.values()), seq_lens=[50] * 3)
    args.num_classes = 7
    torch.manual_seed(0)
    return MULT(args).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=16, help="in a batch")
    parser.add_argument("--utterances", default="10,50,200", help="of each dialogue, comma-separated")
    parser.add_argument("--hidden_size", type=int, default=128, help="216 has about as many parameters as MulT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--long", action="store_true", help="memory of long dialogues in place of times")
    parser.add_argument("--output", type=Path, help="JSON to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        result = long_dialogues() if args.long else times(args)
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


def times(args: argparse.Namespace) -> dict[str, Any]:
    models: dict[str, Any] = {context: head(context, args.hidden_size) for context in CONTEXT_TYPES}
    theirs = mult()
    result: dict[str, Any] = {"parameters": {name: parameters(model) for name, model in models.items()}}
    if theirs is not None:
        result["parameters"]["mult"] = parameters(theirs)
    for count in (int(number) for number in args.utterances.split(",")):
        batch = vectors(args.dialogues, count)
        runs: dict[str, Callable[[], Any]] = {
            name: (lambda model=model, batch=batch: model(**batch)) for name, model in models.items()
        }
        if theirs is not None:
            text, audio, video = (batch[name] for name in ("text_features", "input_features", "vision_features"))
            runs["mult"] = lambda given=(text, audio, video): theirs(*given)
        found = interleaved_ms(runs, args.repeats)
        seconds = {name: ms / (args.dialogues * count) for name, ms in found.items()}  # ms each = s per 1,000
        result[f"{count} utterances, seconds per 1,000"] = seconds
        if theirs is not None:
            ratios = {name: seconds["mult"] / value for name, value in seconds.items() if name != "mult"}
            result[f"{count} utterances, times as fast as mult"] = ratios
    return result


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def long_dialogues() -> dict[str, Any]:
    """Peak memory of the process in MiB after each, which only grows: the largest comes last."""
    result: dict[str, Any] = {"start": peak_mib()}
    for context in CONTEXT_TYPES:
        head(context)(**vectors(1, 1000))
        result[f"{context}, 1,000 utterances"] = peak_mib()
    for context in CONTEXT_TYPES:
        head(context, context_causal=True, context_window=64)(**vectors(1, 5000))
        result[f"{context}, 5,000 utterances, causal, window 64"] = peak_mib()
    return result


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
