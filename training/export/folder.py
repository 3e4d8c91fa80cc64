"""A checkpoint as ONNX: one graph for all subsets of text, voice and face, in float32 and in int8.

    triemo export --model checkpoints/triemo-small --output onnx/

The folder is read by `triemo.serving.onnx.reader.OnnxEmotionReader`, which needs no torch. In it: `model.onnx`,
`model_int8.onnx`, `tokenizer.json`, and MTCNN's networks `face_pnet.onnx`, `face_rnet.onnx`, `face_onet.onnx` where
the checkpoint has them. Labels, temperature and everything about preprocessing stand in the graphs' metadata.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from triemo.modeling.inputs_triemo import MASKS
from triemo.training.export import GRAPHS, METADATA, TOKENIZER
from triemo.training.export.faces import export_face_networks
from triemo.training.export.graph import TriemoGraph
from triemo.training.export.rewrites import quantize_int8, skip_absent_towers, tower_states

__all__ = ["OPSET", "TOLERANCE", "describe", "example_inputs", "export_onnx", "largest_difference", "write_graph"]

OPSET = 21  # the first in which blocks of a weight have scales of their own
TOLERANCE = 1e-4  # of the logits, against torch


def export_onnx(
    model: Any,
    processor: Any,
    output: str | Path,
    int8: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """
    Write a classifier and all that is needed around it into a folder.

    Args:
        model: a `TriemoForEmotionClassification` in float32, reading tokens, log-mel and pictures.
        processor: its `TriemoProcessor`.
        output: the folder; files of the same names in it are replaced, and none before all of them are complete. It is
            made last: an export that is stopped leaves nothing in it.
        int8: write the int8 graph too.
        progress: is told what is being done.

    Returns:
        `files` (name to bytes) and `largest_difference` of the float32 graph's logits from torch's.

    Raises:
        ValueError: a model whose inputs the graph cannot take, or a graph that does not give torch's logits.
    """
    config = model.config
    refused = [name for name in ("text_vocab_size", "text_feature_size", "audio_feature_size", "vision_feature_size")
               if getattr(config, name) is not None]  # fmt: skip
    if refused:
        raise ValueError(
            f"model: a graph is written for towers with encoders, got {', '.join(refused)} in the config."
        )
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise ValueError("model: load it with dtype=torch.float32, got weights in other types.")
    folder = Path(output)
    model = model.eval()
    metadata = describe(model, processor)
    with tempfile.TemporaryDirectory(prefix="triemo-export-") as name:
        work = Path(name)
        progress(f"Writing the graph of {', '.join(config.modalities)}")
        inputs = example_inputs(model, processor)
        graph = TriemoGraph(model, processor.feature_extractor).eval()
        outputs = ["logits", *(f"{modality}_embeds" for modality in config.modalities)]
        write_graph(graph, inputs, outputs, work / GRAPHS["fp32"], metadata)
        states = tower_states(work / GRAPHS["fp32"], config.modalities)
        if int8:
            progress("Reducing its weights to 8 bits")
            quantize_int8(work / GRAPHS["fp32"], work / GRAPHS["int8"])
            skip_absent_towers(work / GRAPHS["int8"], states)
            _set_metadata(work / GRAPHS["int8"], metadata)
        skip_absent_towers(work / GRAPHS["fp32"], states)
        progress("Comparing its logits with torch's, over every subset of the modalities")
        difference = largest_difference(graph, work / GRAPHS["fp32"], inputs, config.modalities)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the graph's logits differ from torch's by {difference:.2g}, expected {TOLERANCE} or less."
            )
        progress(f"Putting graphs, tokenizer and face detector into {folder}")
        if "text" in config.modalities:
            processor.tokenizer.backend_tokenizer.save(str(work / TOKENIZER))
        if "vision" in config.modalities:
            export_face_networks(processor.image_processor, work)
        files = {file.name: file.stat().st_size for file in sorted(work.iterdir())}
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            part = folder / f".{file}.part"  # the temporary folder may lie on another disk
            try:
                shutil.move(work / file, part)
                part.replace(folder / file)
            finally:
                part.unlink(missing_ok=True)
    return {"files": files, "largest_difference": difference}


def describe(model: Any, processor: Any) -> dict[str, Any]:
    """What the runtime has to know, as it stands in the graphs' metadata."""
    config = model.config
    labels = [config.id2label[index] for index in range(config.num_labels)]
    described: dict[str, Any] = {
        "modalities": list(config.modalities),
        "labels": labels,
        "problem_type": config.resolved_problem_type,
        "calibration_temperature": config.calibration_temperature,
        "min_score": config.min_score,
    }
    if "text" in config.modalities:
        longest = min(model.triemo.text_tower.max_positions, processor.tokenizer.model_max_length)
        described["text"] = {"max_length": longest, "pad_token_id": processor.tokenizer.pad_token_id}
    if "audio" in config.modalities:
        described["audio"] = {"sampling_rate": processor.feature_extractor.sampling_rate}
    if "vision" in config.modalities:
        settings = processor.image_processor.to_dict()
        service = ("image_processor_type", "auto_map")
        described["vision"] = {name: value for name, value in settings.items() if name not in service}
        described["video_frame_rate"] = config.video_frame_rate
    return described


def example_inputs(model: Any, processor: Any, batch: int = 2) -> dict[str, torch.Tensor]:
    """Inputs of every modality with different lengths in a batch; the numbers are noise with a fixed seed."""
    draw = torch.Generator().manual_seed(0)
    inputs: dict[str, torch.Tensor] = {}
    if "text" in model.config.modalities:
        words = model.get_input_embeddings().num_embeddings
        inputs["input_ids"] = torch.randint(0, words, (batch, 6), generator=draw)
        inputs["attention_mask"] = _ragged(batch, 6)
    if "audio" in model.config.modalities:
        inputs["input_values"] = 0.1 * torch.randn(batch, 12345, generator=draw)
        inputs["audio_attention_mask"] = _ragged(batch, 12345)
    if "vision" in model.config.modalities:
        settings = processor.image_processor.to_dict()
        shape = (1 if settings["do_grayscale"] else 3, settings["size"]["height"], settings["size"]["width"])
        inputs["pixel_values"] = torch.randn(batch, 3, *shape, generator=draw)
        inputs["video_attention_mask"] = _ragged(batch, 3)
        inputs["video_times"] = torch.arange(3).expand(batch, -1) / 4.0
    return inputs


def largest_difference(graph: torch.nn.Module, file: Path, inputs: dict[str, torch.Tensor], modalities: Any) -> float:
    """Of the logits of a file from those of the graph in torch, over every subset of the modalities."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its optimiser warns of nodes that it leaves as they are
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for kept in product((0, 1), repeat=len(modalities)):
        if not any(kept):
            continue
        masks = {MASKS[name]: inputs[MASKS[name]] * keep for name, keep in zip(modalities, kept, strict=True)}
        given = {**inputs, **masks}
        with torch.inference_mode():
            expected = graph(**given)[0].numpy()
        got = session.run(["logits"], {name: np.asarray(value) for name, value in given.items()})[0]
        largest = max(largest, float(np.abs(got - expected).max()))
    return largest


def _ragged(batch: int, steps: int) -> torch.Tensor:
    """Masks (batch, steps) of which each row is shorter than the one before."""
    lengths = steps - torch.arange(batch) * steps // (2 * batch)
    return (torch.arange(steps) < lengths[:, None]).long()


def write_graph(
    graph: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    outputs: list[str],
    file: Path,
    metadata: dict[str, Any],
    translations: Mapping[Callable, Callable] | None = None,
) -> None:
    """
    A graph whose inputs' first two axes, of samples and steps, are of any size; and its metadata. `translations` are
    torch's operators to functions of ONNX, beyond those that torch knows.
    """
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        graph,
        kwargs=inputs,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        dynamic_shapes={name: {0: dynamic, 1: dynamic} for name in inputs},
        input_names=list(inputs),
        output_names=outputs,
        custom_translation_table=dict(translations or {}),
    )
    if program is None:
        raise ValueError("torch.onnx.export gave no graph.")
    program.save(str(file), external_data=False)
    _set_metadata(file, metadata)


def _set_metadata(file: Path, metadata: dict[str, Any]) -> None:
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {METADATA: json.dumps(metadata)})
    onnx.save(model, file)
