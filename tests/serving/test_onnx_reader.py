"""The reader on onnxruntime answers as the pipeline does, and torch is never imported on the way."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import sine
from typer.testing import CliRunner

pytest.importorskip("onnxscript", reason="needs the extra `export`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")

import onnx  # noqa: E402

from triemo.modeling.inputs_triemo import MASKS as MODEL_MASKS  # noqa: E402
from triemo.processing.media_triemo import load_frames  # noqa: E402
from triemo.serving import subsets  # noqa: E402
from triemo.serving.cli import app  # noqa: E402
from triemo.serving.loading import load_reader  # noqa: E402
from triemo.serving.onnx_faces import OnnxFaceDetector  # noqa: E402
from triemo.serving.onnx_reader import OnnxConfig, OnnxEmotionReader  # noqa: E402

SENTENCE = "oh wow, you really came!"


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    result = CliRunner().invoke(app, ["export", "--model", str(tiny_checkpoint), "--output", str(folder)])
    assert result.exit_code == 0, result.output
    assert "model_int8.onnx" in result.output and "Largest difference of a logit" in result.output
    return folder


@pytest.fixture(scope="module")
def onnx_reader(exported: Path) -> OnnxEmotionReader:
    return OnnxEmotionReader(exported)


def same(got: list[dict], expected: list[dict], tolerance: float = 1e-4) -> None:
    assert {entry["label"]: entry["score"] for entry in got} == pytest.approx(
        {entry["label"]: entry["score"] for entry in expected}, abs=tolerance
    )
    assert [entry["score"] for entry in got] == sorted((entry["score"] for entry in got), reverse=True)


def test_answers_as_the_pipeline_does(reader, onnx_reader, assets, clips):
    clip = str(assets / "demo.mp4")
    inputs: list[Any] = [
        {"text": SENTENCE},
        str(clips / "sound.wav"),
        {"audio": {"array": sine(0.7, 16000), "sampling_rate": 16000}, "text": "i'm fine"},
        str(clips / "faceless.mp4"),
        {"text": SENTENCE, "image": np.zeros((40, 50, 3), np.uint8)},
    ]
    expected = [reader(input_) for input_ in inputs]
    for input_, answer in zip(inputs, expected, strict=True):
        same(onnx_reader(input_), answer)
    for got, answer in zip(onnx_reader(inputs, batch_size=3), expected, strict=True):
        same(got, answer)
    # The face boxes rest on pictures resized by another library, whose bytes may differ by one.
    same(onnx_reader(clip), reader(clip), 5e-3)
    same(onnx_reader({"video": clip, "text": SENTENCE}), reader({"video": clip, "text": SENTENCE}), 5e-3)
    assert onnx_reader(clip, top_k=2) == onnx_reader(clip)[:2]
    assert list(onnx_reader(iter([{"text": SENTENCE}]))) == [onnx_reader({"text": SENTENCE})]


def test_parameters_reach_the_preparation(onnx_reader, assets):
    clip = str(assets / "demo.mp4")
    assert onnx_reader.preprocess(clip, num_frames=2)["pixel_values"].shape[1] == 2
    assert "input_values" not in onnx_reader.preprocess(clip, use_sound_track=False)
    sound = {"audio": sine(1, 8000)}
    assert onnx_reader.preprocess(sound, sampling_rate=8000)["input_values"].shape[1] == pytest.approx(16000, abs=64)
    with pytest.raises(ValueError, match=r"unknown parameters \['frames'\]"):
        onnx_reader(clip, frames=2)


def test_faces_are_those_of_the_torch_detector(reader, exported, assets):
    frames, _ = load_frames(assets / "demo.mp4", num_frames=3)
    settings = reader.processor.image_processor
    sizes = (settings.detection_size, settings.min_face_size)
    ours = OnnxFaceDetector(exported, None, *sizes)(frames)
    theirs = settings._detector(settings._settings({}))(frames)
    for got, expected in zip(ours, theirs, strict=True):
        assert len(expected) == 1
        np.testing.assert_allclose(got[:, :4], expected[:, :4], atol=2.0)  # of 640 pixels
        np.testing.assert_allclose(got[:, 4], expected[:, 4], atol=0.01)
    assert [len(found) for found in OnnxFaceDetector(exported)([np.zeros((60, 80, 3), np.uint8)])] == [0]


def test_int8_and_a_file_by_name(exported, onnx_reader, assets):
    int8 = OnnxEmotionReader(exported, "int8")
    same(int8({"text": SENTENCE}), onnx_reader({"text": SENTENCE}), 0.05)
    assert load_reader(str(exported / "model_int8.onnx"))({"text": SENTENCE}) == int8({"text": SENTENCE})


def test_no_torch_is_imported(exported, assets):
    """In a process of its own, through the command line and through the class."""
    code = (
        "import sys, json\n"
        "from typer.testing import CliRunner\n"
        "from triemo.serving.cli import app\n"
        "folder, clip, text = sys.argv[1:]\n"
        "result = CliRunner().invoke(app, ['predict', clip, '--text', text, '--model', folder, '--json'])\n"
        "from triemo.serving.onnx_reader import OnnxEmotionReader\n"
        "scores = OnnxEmotionReader(folder)({'video': clip, 'text': text})\n"
        "heavy = [name for name in ('torch', 'torchaudio', 'transformers') if name in sys.modules]\n"
        "print(json.dumps([result.exit_code, json.loads(result.stdout), scores, heavy]))\n"
    )
    arguments = [str(exported), str(assets / "demo.mp4"), SENTENCE]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    status, document, scores, heavy = json.loads(done.stdout)
    assert (status, heavy) == (0, [])
    assert document["modalities"] == ["text", "audio", "vision"] and document["frames"]["with_face"] == 4
    same(document["scores"], scores, 1e-6)


def test_scores_by_kind_of_problem_and_subset(onnx_reader):
    outputs = {"logits": np.array([[1.0, -2.0, 0.5]]), "modality_mask": np.array([[True, False, True]])}

    def scores(problem: str, temperature: Any) -> list[float]:
        onnx_reader.config = OnnxConfig(dict(enumerate("abc")), problem, temperature)
        return [entry["score"] for entry in onnx_reader.postprocess(outputs)]

    kept = onnx_reader.config
    try:
        assert scores("regression", 2.0) == [1.0, 0.5, -2.0]
        assert scores("multi_label_classification", 2.0) == pytest.approx([0.62246, 0.56218, 0.26894], abs=1e-5)
        soft = np.exp([0.5, 0.25, -1.0]) / np.exp([0.5, 0.25, -1.0]).sum()
        assert scores("single_label_classification", {"text+vision": 2.0, "text": 9.0}) == pytest.approx(soft)
        plain = np.exp([1.0, 0.5, -2.0]) / np.exp([1.0, 0.5, -2.0]).sum()
        assert scores("single_label_classification", {"text": 9.0}) == pytest.approx(plain)
    finally:
        onnx_reader.config = kept


def test_errors_name_what_is_wrong(onnx_reader, exported, tmp_path, clips):
    with pytest.raises(ValueError, match="keys text, audio, video, image, got"):
        onnx_reader({"sentence": "hello"})
    with pytest.raises(ValueError, match="broken.mp4"):
        onnx_reader(str(clips / "broken.mp4"))
    with pytest.raises(ValueError, match="no face was found"):
        onnx_reader(str(clips / "empty.mp4"))
    with pytest.raises(ValueError, match="top_k must be a whole number"):
        onnx_reader({"text": "hello"}, top_k=0)
    with pytest.raises(ValueError, match="no graph at"):
        OnnxEmotionReader(tmp_path)
    with pytest.raises(ValueError, match="precision must be one of"):
        OnnxEmotionReader(exported, "int4")
    with pytest.raises(ValueError, match="device: graphs run on cpu"):
        load_reader(str(exported), "cuda")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match="cannot load .*broken.onnx"):
        OnnxEmotionReader(tmp_path / "broken.onnx")
    foreign = onnx.load(exported / "face_pnet.onnx")
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="carries no description"):
        OnnxEmotionReader(tmp_path / "foreign.onnx")


def test_masks_are_named_as_the_model_names_them():
    assert list(subsets.MASKS.items()) == list(MODEL_MASKS.items())
