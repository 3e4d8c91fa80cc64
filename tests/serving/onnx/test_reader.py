"""The reader on onnxruntime answers as the pipeline does, and needs only the packages that are named for it."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import sine, write_clip
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from papers import commands, fenced, run_python_block
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("onnxscript", reason="needs the extra `export`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")

import onnx  # noqa: E402

from triemo.processing.media_triemo import load_frames  # noqa: E402
from triemo.serving.cli import app  # noqa: E402
from triemo.serving.onnx.faces import OnnxFaceDetector  # noqa: E402
from triemo.serving.onnx.reader import OnnxConfig, OnnxEmotionReader  # noqa: E402
from triemo.serving.reading import load_reader, read_subsets  # noqa: E402
from triemo.serving.samples import Sample  # noqa: E402
from triemo.serving.timeline.live import StreamingSession  # noqa: E402
from triemo.serving.timeline.recordings import read_timeline  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
SENTENCE = "oh wow, you really came!"
RATE = 16000


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
    chosen: dict[str, Any] = {"candidate_labels": ["joy", "fear"]}
    same(onnx_reader({"text": SENTENCE}, **chosen), reader({"text": SENTENCE}, **chosen))
    assert list(onnx_reader(iter([{"text": SENTENCE}]))) == [onnx_reader({"text": SENTENCE})]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """10 s of the portrait with tones, of which the third to the sixth second are silent."""
    with Image.open(clips / "face.png") as picture:
        face = np.asarray(picture.convert("RGB").resize((240, 240)))
    tones = np.concatenate([sine(1, RATE, 200 + 60 * second) for second in range(10)], axis=1)
    tones[:, 3 * RATE : 6 * RATE] = 0
    path = tmp_path_factory.mktemp("recording") / "long.mp4"
    return write_clip(path, 40, 4, tones, sound_rate=RATE, pictures=lambda _: face)


def test_a_recording_is_read_in_the_windows_of_the_pipeline(reader, onnx_reader, recording):
    """The same times, people, modalities and scores; words at their times; the mean of all without timestamps."""
    words = [{"text": "i ' m so happy", "timestamp": (1, 2)}, {"text": "i miss you", "timestamp": (7, 9)}]
    inputs: list[Any] = [
        str(recording),
        {"video": str(recording), "text": words},
        {"audio": {"array": sine(9, 8000)[0], "sampling_rate": 8000}},
    ]
    options: dict[str, Any] = {"return_timestamps": True, "return_notes": True}
    for input_ in inputs:
        ours, theirs = onnx_reader(input_, **options), reader(input_, **options)
        assert [one["timestamp"] for one in ours] == [one["timestamp"] for one in theirs] and len(ours) > 1
        for got, expected in zip(ours, theirs, strict=True):
            assert got["modalities"] == expected["modalities"]
            assert [one["id"] for one in got["people"]] == [one["id"] for one in expected["people"]]
            same(got["scores"], expected["scores"], 5e-3)
    whole = onnx_reader(str(recording), return_notes=True)
    same(whole["scores"], reader(str(recording)), 5e-3)
    assert whole["notes"][0].startswith("recording: 10.")
    mixed = onnx_reader([{"text": SENTENCE}, str(recording)], batch_size=2, return_notes=True)
    assert mixed[1]["notes"] == whole["notes"]
    same(mixed[1]["scores"], whole["scores"], 1e-5)
    (part,) = onnx_reader(str(recording), start=6, end=9.5, return_timestamps=True)
    assert part["timestamp"] == pytest.approx((6, 9.5), abs=0.26)
    timeline = [moment.row() for moment in read_timeline(onnx_reader, str(recording))]
    assert [(row["start"], row["label"]) for row in timeline] == [
        (pytest.approx(one["timestamp"][0]), one["scores"][0]["label"])
        for one in onnx_reader(str(recording), return_timestamps=True)
    ]


def test_a_live_session_needs_no_torch_either(onnx_reader, tmp_path):
    tones = sine(9, RATE)
    session = StreamingSession(onnx_reader, ["sound"])
    found = session.push(sound=tones[0].astype(np.float32)) + session.close()
    windows = onnx_reader({"audio": {"array": tones[0], "sampling_rate": RATE}}, return_timestamps=True)
    for moment, window in zip(found, windows, strict=True):
        assert (moment.start, moment.end) == window["timestamp"]
        assert moment.scores == pytest.approx({entry["label"]: entry["score"] for entry in window["scores"]}, abs=1e-5)


def test_explanations_are_those_of_the_pipeline(reader, onnx_reader, clips):
    """Exact Shapley values from the graph's own subsets, and what it says without each word and moment."""
    input_ = {"text": SENTENCE, "audio": str(clips / "sound.wav")}
    ours, theirs = (one(input_, explain=True)["explanation"] for one in (onnx_reader, reader))
    assert ours["label"] == theirs["label"] and ours["disagree"] == theirs["disagree"]
    assert ours["contributions"] == pytest.approx(theirs["contributions"], abs=1e-4)
    assert ours["without_input"] + sum(ours["contributions"].values()) == pytest.approx(ours["score"], abs=1e-6)
    for kind in ("words", "moments"):
        assert len(ours[kind]) == len(theirs[kind])
        for got, expected in zip(ours[kind], theirs[kind], strict=True):
            assert got == {**expected, "effect": pytest.approx(expected["effect"], abs=1e-4)}
    subsets = read_subsets(onnx_reader, Sample("input", None, input_), explain=True)
    assert subsets.parts == pytest.approx(ours["contributions"], abs=1e-6)
    assert subsets.explanation["words"] == ours["words"]


def test_uncertain_below_the_least_score(exported, tmp_path):
    """Stored with the graph, for each subset; a call may ask for another."""
    careful = OnnxEmotionReader(changed(exported, tmp_path / "careful", min_score={"text": 0.999}))
    assert careful({"text": SENTENCE})[0]["uncertain"] is True
    assert careful({"text": SENTENCE}, return_notes=True)["uncertain"] is True
    assert "uncertain" not in careful({"text": SENTENCE}, min_score=0.0)[0]
    assert "uncertain" not in OnnxEmotionReader(exported)({"text": SENTENCE})[0]
    with pytest.raises(ValueError, match="min_score must be a number from 0 to 1"):
        careful({"text": SENTENCE}, min_score=2)


def test_parameters_reach_the_preparation(onnx_reader, assets):
    clip = str(assets / "demo.mp4")
    assert onnx_reader.prepare(clip, num_frames=2)["pixel_values"].shape[1] == 2
    assert "input_values" not in onnx_reader.prepare(clip, use_sound_track=False)
    sound = {"audio": sine(1, 8000)}
    assert onnx_reader.prepare(sound, sampling_rate=8000)["input_values"].shape[1] == pytest.approx(16000, abs=64)
    with pytest.raises(ValueError, match=r"unknown parameters \['frames'\]"):
        onnx_reader(clip, frames=2)


def test_limits_and_notes_as_of_the_pipeline(reader, onnx_reader, clips, tmp_path):
    with pytest.raises(ValueError, match=r"sound\.wav.*limit seconds=0\.5"):
        onnx_reader(str(clips / "sound.wav"), limits={"seconds": 0.5})
    silence = {"array": np.zeros(16000, np.float32), "sampling_rate": 16000}
    inputs = [{"text": SENTENCE, "audio": silence}, {"audio": silence}, {"text": "oh wow " * 300}]
    got, expected = (one(inputs, return_notes=True, batch_size=2) for one in (onnx_reader, reader))
    for ours, theirs in zip(got[::2], expected[::2], strict=True):
        assert (ours["modalities"], ours["notes"]) == (theirs["modalities"], theirs["notes"])
        same(ours["scores"], theirs["scores"])
    assert got[0]["notes"][0].startswith("audio: silence") and "windows" in got[2]["notes"][0]
    assert got[1]["scores"] == expected[1]["scores"] == [] and "audio: silence" in got[1]["notes"][0]
    alone = onnx_reader(inputs[0], return_notes=True, top_k=1)
    assert alone["notes"] == got[0]["notes"] and alone["scores"] == got[0]["scores"][:1]


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


def packages_to_read() -> list[str]:
    """As serving/README.md names them for a machine without torch."""
    (command,) = (line for line in commands("serving/README.md") if line.startswith("pip install onnxruntime "))
    return command.split()[2:]


def test_python_of_the_readme(exported, assets, tmp_path, monkeypatch):
    (tmp_path / "onnx").symlink_to(exported)
    (tmp_path / "clip.mp4").symlink_to(assets / "demo.mp4")
    monkeypatch.chdir(tmp_path)
    (code,) = fenced("serving/README.md", "python")
    (answer,) = run_python_block(code, {})
    same(answer, OnnxEmotionReader(exported, "int8")({"video": "clip.mp4", "text": "I can't believe it!"}, top_k=3))
    assert len(answer) == 3


def hidden_modules(packages: list[str]) -> list[str]:
    """Top-level modules of everything installed but these packages, what they require, and triemo itself."""
    waiting, kept = list(packages), {"triemo"}
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in kept:
            kept.add(name)
            needed = [Requirement(line) for line in metadata.requires(name) or ()]
            waiting += [entry.name for entry in needed if not entry.marker or entry.marker.evaluate({"extra": ""})]
    installed = metadata.packages_distributions().items()
    return [module for module, owners in installed if not kept & {canonicalize_name(owner) for owner in owners}]


def test_reads_where_only_the_packages_named_for_it_are(exported, onnx_reader, assets, clips, tmp_path):
    """In a process that finds no other package, through the command line and through the class."""
    hidden = hidden_modules(packages_to_read())
    assert {"torch", "torchaudio", "transformers", "datasets", "cv2", "sklearn", "onnx"} <= set(hidden)
    assert not {"onnxruntime", "tokenizers", "numpy", "PIL", "av", "typer", "triemo"} & set(hidden)
    Image.fromarray(load_frames(assets / "demo.mp4", num_frames=1)[0][0]).save(tmp_path / "face.png")
    sound, face, clip = str(clips / "sound.wav"), str(tmp_path / "face.png"), str(assets / "demo.mp4")
    inputs = [
        {"text": SENTENCE},
        sound,
        face,
        clip,
        {"text": SENTENCE, "audio": sound},
        {"text": SENTENCE, "image": face},
        {"audio": sound, "image": face},
        {"text": SENTENCE, "audio": sound, "image": face},
        {"text": SENTENCE, "video": clip},
    ]
    code = """
import importlib.abc, json, sys
hidden, folder, checkpoint, inputs = json.load(sys.stdin)

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
from pathlib import Path
from typer.testing import CliRunner
from triemo.serving.cli import app
from triemo.serving.onnx.reader import OnnxEmotionReader
answers = [OnnxEmotionReader(folder, precision)(inputs) for precision in ("fp32", "int8")]
sentence, clip = inputs[-1]["text"], inputs[-1]["video"]
command = ["predict", clip, "--text", sentence, "--json", "--model"]
results = [CliRunner().invoke(app, [*command, model]) for model in (folder, checkpoint)]
command = ["timeline", clip, "--format", "jsonl", "--output", str(Path(inputs[2]).parent), "--model", folder]
results.append(CliRunner().invoke(app, command))
print(json.dumps([answers, [(result.exit_code, result.stdout, result.stderr) for result in results]]))
"""
    given = json.dumps([hidden, str(exported), str(exported.parent), inputs])
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (fp32, int8), ((status, document, _), (refused, _, message), (timed, _, problem)) = json.loads(done.stdout)
    for got, expected in zip(fp32, onnx_reader(inputs), strict=True):
        same(got, expected, 1e-6)
    for got, expected in zip(int8, fp32, strict=True):
        same(got, expected, 0.05)
    document = json.loads(document)
    assert status == 0 and document["modalities"] == ["text", "audio", "vision"]
    assert document["frames"]["with_face"] == 4
    same(document["scores"], fp32[-1], 1e-6)
    assert timed == 0, problem
    (row,) = map(json.loads, (tmp_path / "demo.timeline.jsonl").read_text("utf-8").splitlines())
    assert row["scores"] == pytest.approx({entry["label"]: entry["score"] for entry in onnx_reader(clip)}, abs=1e-6)
    assert refused == 1 and message.startswith("triemo: this needs the package torch, which is not installed")


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


def changed(exported: Path, folder: Path, **facts: Any) -> Path:
    """A copy of an exported folder whose fp32 graph is described otherwise; None removes a field."""
    shutil.copytree(exported, folder, ignore=shutil.ignore_patterns("model_int8.onnx"))
    graph = onnx.load(folder / "model.onnx")
    (entry,) = (entry for entry in graph.metadata_props if entry.key == "triemo")
    described = {**json.loads(entry.value), **facts}
    entry.value = json.dumps({name: value for name, value in described.items() if value is not None})
    onnx.save(graph, folder / "model.onnx")
    return folder


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"labels": None}, r"lacks \['labels'\]"),
        ({"labels": []}, "no labels"),
        ({"text": None}, r"lacks \['text'\]"),
        ({"modalities": ["text", "smell"]}, "unknown modalities"),
        ({"modalities": None}, "damaged .*modalities"),
        ({"calibration_temperature": float("nan")}, "a temperature that is none"),
        ({"calibration_temperature": {"text": 0.0}}, "a temperature that is none"),
        ({"calibration_temperature": "warm"}, "damaged"),
    ],
)
def test_damaged_descriptions_are_named(exported, tmp_path, facts, said):
    with pytest.raises(ValueError, match=f"description in .*{said}.*; export it once more"):
        OnnxEmotionReader(changed(exported, tmp_path / "it", **facts))


def test_missing_and_broken_files_are_named(exported, tmp_path, capfd):
    def without(*names: str) -> Path:
        folder = changed(exported, tmp_path / "-".join(names))
        for name in names:
            (folder / name).unlink()
        return folder

    folder = changed(exported, tmp_path / "broken")
    for content in ("{", "{}"):
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match="tokenizer.json is damaged"):
            OnnxEmotionReader(folder)
    with pytest.raises(ValueError, match="no tokenizer.json beside the graph"):
        OnnxEmotionReader(without("tokenizer.json"))
    with pytest.raises(ValueError, match="lacks face_rnet.onnx"):
        OnnxEmotionReader(without("face_rnet.onnx"))
    assert capfd.readouterr().err == ""
    OnnxEmotionReader(without("face_pnet.onnx", "face_rnet.onnx", "face_onet.onnx"))
    assert "has no face_*.onnx; opencv looks for faces" in capfd.readouterr().err
    whole = (exported / "model.onnx").read_bytes()
    folder = changed(exported, tmp_path / "cut")
    for size in (0, 100, len(whole) // 2):
        (folder / "model.onnx").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="model: cannot load .*model.onnx"):
            OnnxEmotionReader(folder)


def test_weights_that_are_not_finite_are_named(exported, tmp_path):
    folder = changed(exported, tmp_path / "nan")
    graph = onnx.load(folder / "model.onnx")
    for weights in graph.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT and len(weights.dims) == 2:
            values = onnx.numpy_helper.to_array(weights)
            weights.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan), weights.name))
    onnx.save(graph, folder / "model.onnx")
    with pytest.raises(ValueError, match="numbers that are not finite"):
        OnnxEmotionReader(folder)


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
