"""A checkpoint as a graph: the logits of torch for every subset, any length and batch; and what stands beside it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import LABELS, save_tiny_checkpoint, tiny_classifier, tiny_processor
from tiny_models import SUBSETS, tiny_audio_config

pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")

import onnx  # noqa: E402

from triemo.processing import TriemoFeatureExtractor  # noqa: E402
from triemo.training.export import METADATA  # noqa: E402
from triemo.training.export import folder as export_folder  # noqa: E402
from triemo.training.export.folder import example_inputs, export_onnx, largest_difference  # noqa: E402
from triemo.training.export.graph import LogMel, TriemoGraph  # noqa: E402

TEMPERATURES = {"text": 1.5, "audio+vision": 0.7}
# Steps of each modality in the seven samples of a batch; 1 is the least a tracer would rather fix.
TOKENS, SAMPLES, FRAMES = (7, 1, 5, 4, 3, 2, 6), (1, 900, 5000, 1, 161, 3333, 12000), (3, 2, 1, 1, 3, 2, 3)


@pytest.fixture(scope="module")
def model() -> Any:
    audio = tiny_audio_config(num_mel_bins=80, statistics_size=4)
    return tiny_classifier(calibration_temperature=TEMPERATURES, audio_config=audio).eval()


@pytest.fixture(scope="module")
def exported(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    written = export_onnx(model, tiny_processor(), folder)
    assert set(written["files"]) == {"model.onnx", "model_int8.onnx", "tokenizer.json"}
    assert written["largest_difference"] < 1e-4
    assert {file.name for file in folder.iterdir()} == set(written["files"])  # no temporary folder stays
    return folder


def samples() -> list[dict[str, np.ndarray]]:
    """One sample a subset: what it has, unpadded."""
    draw = np.random.default_rng(0)
    made = []
    for subset, tokens, count, frames in zip(SUBSETS, TOKENS, SAMPLES, FRAMES, strict=True):
        sample: dict[str, np.ndarray] = {}
        if "text" in subset:
            sample["input_ids"] = draw.integers(1, 50, (1, tokens))
        if "audio" in subset:
            sample["input_values"] = (0.1 * draw.standard_normal((1, count))).astype(np.float32)
        if "vision" in subset:
            sample["pixel_values"] = draw.standard_normal((1, frames, 1, 32, 32)).astype(np.float32)
            sample["video_times"] = draw.uniform(0, 3, (1, frames)).astype(np.float32)
        made.append(sample)
    return made


def by_torch(model: Any, sample: dict[str, np.ndarray]) -> np.ndarray:
    tensors = {name: torch.from_numpy(value) for name, value in sample.items() if name != "input_values"}
    if "input_values" in sample:
        tensors |= TriemoFeatureExtractor()(sample["input_values"][0], sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        return model(**tensors).logits.numpy()


def batched(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Padded with garbage, which the masks must hide; a modality that nobody has is one masked step."""
    masks = {"input_ids": "attention_mask", "input_values": "audio_attention_mask"}
    masks["pixel_values"] = "video_attention_mask"
    batch: dict[str, np.ndarray] = {}
    kinds = {"input_ids": np.int64, "input_values": np.float32, "pixel_values": np.float32, "video_times": np.float32}
    for name, kind in kinds.items():
        longest = max((row[name].shape[1] for row in rows if name in row), default=1)
        rest = (1, 32, 32) if name == "pixel_values" else ()
        batch[name] = np.full((len(rows), longest, *rest), 3, dtype=kind)
        if name in masks:
            batch[masks[name]] = np.zeros((len(rows), longest), dtype=np.int64)
        for index, row in enumerate(rows):
            if name in row:
                batch[name][index, : row[name].shape[1]] = row[name][0]
                if name in masks:
                    batch[masks[name]][index, : row[name].shape[1]] = 1
    return batch


def logits_of(file: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["logits"], batch)[0]


def test_every_subset_through_one_file_as_in_torch(model, exported):
    rows = samples()
    expected = np.concatenate([by_torch(model, row) for row in rows])
    assert np.abs(logits_of(exported / "model.onnx", batched(rows)) - expected).max() < 1e-4
    for row, logits in zip(rows, expected, strict=True):
        assert np.abs(logits_of(exported / "model.onnx", batched([row])) - logits).max() < 1e-4
    apart = np.abs(expected[:, None] - expected[None]).max(-1) + np.eye(len(rows))
    assert apart.min() > 1e-2  # the samples differ by far more than the tolerance


def test_embeddings_are_given_too(model, exported):
    (row,) = [sample for sample in samples() if len(sample) == 4]
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"), providers=["CPUExecutionProvider"])
    given = session.run(["text_embeds", "audio_embeds", "vision_embeds"], batched([row]))
    with torch.inference_mode():
        outputs = model(
            input_ids=torch.from_numpy(row["input_ids"]),
            pixel_values=torch.from_numpy(row["pixel_values"]),
            **TriemoFeatureExtractor()(row["input_values"][0], sampling_rate=16000, return_tensors="pt"),
        )
    for got, name in zip(given, ("text_embeds", "audio_embeds", "vision_embeds"), strict=True):
        np.testing.assert_allclose(got, outputs[name].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["model.onnx", "model_int8.onnx"])
def test_towers_of_absent_modalities_do_not_run(exported, tmp_path, name):
    """By the runtime's own profile: nodes inside a condition that is false leave no trace."""
    counts = {}
    for present in ("attention_mask", "audio_attention_mask", "video_attention_mask", "all"):
        (row,) = [sample for sample in samples() if len(sample) == 4]
        batch = batched([row])
        for mask in ("attention_mask", "audio_attention_mask", "video_attention_mask"):
            batch[mask] *= present in (mask, "all")
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / present)
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(exported / name), options, providers=["CPUExecutionProvider"])
        session.run(["logits"], batch)
        events = json.loads(Path(session.end_profiling()).read_text())
        counts[present] = sum(entry["name"].endswith("_kernel_time") for entry in events)
    assert [node.op_type for node in onnx.load(exported / name).graph.node].count("If") == 3
    whole = counts.pop("all")
    assert all(count < whole - 30 for count in counts.values()), (counts, whole)


def test_int8_is_smaller_and_near(model, exported):
    rows = samples()
    expected = np.concatenate([by_torch(model, row) for row in rows])
    got = logits_of(exported / "model_int8.onnx", batched(rows))
    assert np.sqrt(np.mean((got - expected) ** 2)) < 0.05 * expected.std()
    assert (got != expected).any()
    graph = onnx.load(exported / "model_int8.onnx").graph
    held = {weight.name: weight.data_type for weight in graph.initializer}
    assert "MatMulInteger" in {node.op_type for node in graph.node}
    assert sum(kind == onnx.TensorProto.UINT8 for kind in held.values()) > 10


def integer_products(file: Path) -> tuple[onnx.ModelProto, list[onnx.NodeProto], dict[str, np.ndarray]]:
    """A graph, the nodes at its top level that multiply in 8 bits, and its weights."""
    graph = onnx.load(file)
    nodes = [node for node in graph.graph.node if node.op_type == "MatMulInteger"]
    return graph, nodes, {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.graph.initializer}


def test_int8_products_cannot_saturate_on_any_processor(exported):
    """
    Without VNNI, x86 processors sum products of uint8 by int8 in pairs of 16 bits: two of 255 x 127 are cut off. Of
    weights in uint8, or in int8 from -64 to 64, no product is.
    """
    _, nodes, weights = integer_products(exported / "model_int8.onnx")
    assert len(nodes) > 10
    for node in nodes:
        values = weights[node.input[1]]
        assert values.dtype == np.uint8 or np.abs(values.astype(int)).max() <= 64, node.name


def test_int8_products_are_exact_on_this_processor(exported, tmp_path):
    """The runtime's own kernel against NumPy's integers, product by product."""
    graph, nodes, weights = integer_products(exported / "model_int8.onnx")
    shown = {name for node in nodes for name in (*node.input, node.output[0])} - set(weights)
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(shown))
    onnx.save(graph, tmp_path / "shown.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "shown.onnx"), providers=["CPUExecutionProvider"])
    values = dict(zip(sorted(shown), session.run(sorted(shown), batched(samples())), strict=True)) | weights
    for node in nodes:
        left, right, left_zero, right_zero = (values[name].astype(int) for name in node.input)
        assert np.array_equal(values[node.output[0]], (left - left_zero) @ (right - right_zero)), node.name


def test_what_the_runtime_has_to_know_stands_in_both_files(exported):
    for name in ("model.onnx", "model_int8.onnx"):
        facts = json.loads({p.key: p.value for p in onnx.load(exported / name).metadata_props}[METADATA])
        assert facts["labels"] == list(LABELS) and facts["modalities"] == ["text", "audio", "vision"]
        assert facts["calibration_temperature"] == TEMPERATURES
        assert facts["text"] == {"max_length": 32, "pad_token_id": 0}
        assert facts["audio"] == {"sampling_rate": 16000}
        assert facts["vision"]["size"] == {"height": 32, "width": 32}


@pytest.mark.parametrize("settings", [{}, {"feature_size": 20, "n_fft": 512, "hop_length": 100}])
def test_log_mel_of_the_graph_is_the_extractors(settings):
    extractor = TriemoFeatureExtractor(**settings)
    draw = np.random.default_rng(1)
    lengths = (1, 99, 100, 159, 160, 161, 401, 5000)
    clips = [(draw.standard_normal(n) * np.linspace(0.001, 1, n)).astype(np.float32) for n in lengths]
    expected = extractor(clips, sampling_rate=16000, return_tensors="pt")
    waveform, mask = torch.full((len(clips), 5000), 9.0), torch.zeros(len(clips), 5000, dtype=torch.long)
    for row, clip in enumerate(clips):
        waveform[row, : len(clip)], mask[row, : len(clip)] = torch.from_numpy(clip), 1
    features, frame_mask = LogMel(extractor)(waveform, mask)
    torch.testing.assert_close(features, expected["input_features"], atol=2e-5, rtol=0)
    assert torch.equal(frame_mask, expected["audio_attention_mask"])


def test_a_graph_that_differs_is_found(model, exported):
    """The check compares with the model it is given: with another one's weights it must speak."""
    other = tiny_classifier().eval()
    with torch.no_grad():
        other.classifier.out_proj.bias += 1e-3
    inputs = example_inputs(other, tiny_processor())
    graph = TriemoGraph(other, TriemoFeatureExtractor())
    assert largest_difference(graph, exported / "model.onnx", inputs, ("text", "audio", "vision")) > 5e-4


def test_refuses_what_it_cannot_write(model, tmp_path):
    processor = tiny_processor()
    processor.feature_extractor = TriemoFeatureExtractor("mfcc", feature_size=40)
    with pytest.raises(ValueError, match="log_mel only, got 'mfcc'"):
        export_onnx(model, processor, tmp_path)
    with pytest.raises(ValueError, match="dtype=torch.float32"):
        export_onnx(tiny_classifier().to(torch.bfloat16), tiny_processor(), tmp_path)
    vectors = tiny_classifier(vision_config=None, vision_feature_size=8)
    with pytest.raises(ValueError, match="vision_feature_size"):
        export_onnx(vectors, tiny_processor(), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_stopped_export_leaves_nothing_behind_and_says_what_it_did(model, tmp_path, monkeypatch):
    """Nothing is in the folder while it works, so nothing stays when it is killed, and what is beside it goes."""
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "work"))

    def stopped(graph, inputs, modalities, file, metadata):
        file.write_bytes(b"half")
        assert not (tmp_path / "out").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(export_folder, "write_graph", stopped)
    steps = []
    with pytest.raises(KeyboardInterrupt):
        export_onnx(model, tiny_processor(), tmp_path / "out", progress=steps.append)
    assert steps == ["Writing the graph of text, audio, vision"]
    assert not (tmp_path / "out").exists() and not list((tmp_path / "work").iterdir())


def test_a_terminated_export_cleans_up(tmp_path):
    save_tiny_checkpoint(tmp_path / "tiny")
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-m", "triemo.serving.cli", "export", "--model", str(tmp_path / "tiny")]
    child = subprocess.Popen(
        [*command, "--output", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "work")},
    )
    said = child.stderr.readline()
    child.terminate()
    assert child.wait(timeout=120) == 1 and "Writing the graph" in said, child.stderr.read()
    assert not (tmp_path / "out").exists() and not list((tmp_path / "work").glob("triemo-export-*"))
