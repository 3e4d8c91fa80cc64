"""Size and latency of a checkpoint as a graph (fp32, int8) and in torch (eager, compiled), and whether int8 agrees.

    python tests/benchmarks/bench_onnx.py --repeats 20
    python tests/benchmarks/bench_onnx.py --agreement

Latency: one sample, from tokens, waveform and face crops to logits (log-mel included on every side), in one process,
in turn, medians. Agreement: the share of rows with the same top class as fp32, over the first rows of each corpus's
official test (GoEmotions, MELD, RAVDESS actors 21 to 24, FER2013 PrivateTest). `--onnx` takes a folder that
`triemo export` wrote; without it one is made for the run.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import interleaved_ms

from triemo.serving.onnx.processing.samples_triemo import MASKS
from triemo.serving.onnx.reader import OnnxEmotionReader
from triemo.serving.reading import load_reader
from triemo.training.common import default_model
from triemo.training.corpora.registry import load_corpus
from triemo.training.export.folder import export_onnx

SENTENCE = "I can't believe it, you really came! I have missed you so much."
SUBSETS = [("text", "audio", "vision"), ("text",), ("audio",), ("vision",)]
OF = {"text": ("input_ids",), "audio": ("input_values",), "vision": ("pixel_values", "video_times")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=default_model(), help="checkpoint")
    parser.add_argument("--onnx", help="folder that `triemo export` wrote of it")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the voice")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    parser.add_argument("--agreement", action="store_true", help="compare int8 with fp32 on the corpora")
    parser.add_argument("--rows", type=int, default=500, help="for --agreement")
    parser.add_argument("--data", help="folder of the corpora, else TRIEMO_DATA, else ../shared/data")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.onnx or temporary)
        reader = load_reader(arguments.model, "cpu")
        if arguments.onnx is None:
            export_onnx(reader.model, reader.processor, folder)
        graphs = {name: OnnxEmotionReader(folder, name, arguments.threads) for name in ("fp32", "int8")}
        if arguments.agreement:
            agreement(graphs, arguments)
        else:
            latency(reader, graphs, folder, arguments)


def latency(reader: Any, graphs: dict[str, OnnxEmotionReader], folder: Path, arguments: argparse.Namespace) -> None:
    sides = {"torch": sum(p.numel() * p.element_size() for p in reader.model.parameters()) / 1e6}
    sides |= {name: (folder / file).stat().st_size / 1e6 for name, file in
              (("fp32", "model.onnx"), ("int8", "model_int8.onnx"))}  # fmt: skip
    print("MB in memory or file: " + ", ".join(f"{name} {size:.1f}" for name, size in sides.items()))
    whole = sample(reader, arguments)
    for subset in SUBSETS:
        arrays = {name: value for name, value in whole.items() if any(name in (*OF[m], MASKS[m]) for m in subset)}
        runs: dict[str, Callable[[], Any]] = {"torch eager": torch_run(reader, reader.model, arrays)}
        if not arguments.no_compile:
            runs["torch.compile"] = torch_run(reader, torch.compile(reader.model), arrays)
        for name, graph in graphs.items():
            runs[f"onnx {name}"] = lambda graph=graph, arrays=arrays: graph.forward(arrays)
        medians = interleaved_ms(runs, arguments.repeats)
        eager = medians["torch eager"]
        print(" + ".join(subset))
        for name, median in medians.items():
            print(f"  {name:14s} {median:8.1f} ms  {eager / median:5.2f} x torch eager")


def sample(reader: Any, arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """A sentence, noise that swells as a voice does, and face crops of noise: the time does not depend on content."""
    draw = np.random.default_rng(0)
    count = int(arguments.seconds * 16000)
    tokens = dict(reader.processor(text=SENTENCE, return_tensors="np"))
    side = reader.processor.image_processor.size
    channels = 1 if reader.processor.image_processor.do_grayscale else 3
    shape = (1, arguments.frames, channels, side["height"], side["width"])
    return {
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "input_values": (0.1 * draw.standard_normal((1, count)) * np.linspace(0, 1, count)).astype(np.float32),
        "audio_attention_mask": np.ones((1, count), dtype=np.int64),
        "pixel_values": draw.standard_normal(shape).astype(np.float32),
        "video_attention_mask": np.ones(shape[:2], dtype=np.int64),
        "video_times": np.arange(arguments.frames, dtype=np.float32)[None] / 4,
    }


def torch_run(reader: Any, model: Any, arrays: dict[str, np.ndarray]) -> Callable[[], torch.Tensor]:
    fixed = {n: torch.from_numpy(v) for n, v in arrays.items() if n not in ("input_values", "audio_attention_mask")}
    extractor = reader.processor.feature_extractor

    @torch.inference_mode()
    def run() -> torch.Tensor:
        heard = {}
        if "input_values" in arrays:
            heard = extractor(arrays["input_values"][0], sampling_rate=16000, return_tensors="pt")
        return model(**fixed, **heard).logits

    return run


def agreement(graphs: dict[str, OnnxEmotionReader], arguments: argparse.Namespace) -> None:
    for corpus, options in (("goemotions", {}), ("meld", {"clips": False}), ("ravdess", {}), ("fer2013", {})):
        rows = load_corpus(corpus, arguments.data, **options)["test"]
        rows = rows.select(range(min(arguments.rows, len(rows))))
        logits: dict[str, list[np.ndarray]] = {name: [] for name in graphs}
        for row in rows:
            given = {name: row[name] for name in ("text", "audio", "image") if row.get(name) is not None}
            arrays = graphs["fp32"].prepare(given)
            for name, graph in graphs.items():
                logits[name].append(graph.forward(arrays)["logits"][0])
        fp32, int8 = (np.stack(logits[name]) for name in ("fp32", "int8"))
        same = (fp32.argmax(1) == int8.argmax(1)).mean()
        noise = np.sqrt(np.mean((fp32 - int8) ** 2))
        print(f"{corpus:10s} {len(rows):4d} rows: same top class {100 * same:.1f} %, root mean square {noise:.4f}")


if __name__ == "__main__":
    main()
