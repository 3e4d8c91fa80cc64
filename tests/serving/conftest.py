"""A tiny random checkpoint, the pipeline on it, and a runner of the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from media_files import sine, write_clip, write_sound
from tiny_models import tiny_audio_config, tiny_config, tiny_text_config
from transformers import BertTokenizer
from typer.testing import CliRunner, Result

from triemo.modeling import TriemoForEmotionClassification
from triemo.processing import TriemoFeatureExtractor, TriemoImageProcessor, TriemoProcessor
from triemo.serving.cli import app
from triemo.serving.reading import load_reader

ROOT = Path(__file__).resolve().parent.parent.parent
LABELS = ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
WORDS = "oh wow you really came i can ' t believe it m so happy to see ! , miss am fine".split()
TEMPERATURE = 1.7


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of all three modalities with a calibration temperature; MTCNN finds the faces."""
    folder = tmp_path_factory.mktemp("tiny-triemo")
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    text = tiny_text_config()
    text.vocab_size = len(vocabulary)
    config = tiny_config(
        text_config=text,
        audio_config=tiny_audio_config(num_mel_bins=80),
        calibration_temperature=TEMPERATURE,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    torch.manual_seed(0)
    model = TriemoForEmotionClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # scores of the subsets must differ by far more than rounding
    model.save_pretrained(folder)
    detector = ROOT / "checkpoints" / "triemo-small" / "face_detector.safetensors"
    TriemoProcessor(
        TriemoImageProcessor(face_detector_weights=detector, num_frames=4, detection_size=240),
        TriemoFeatureExtractor(),
        BertTokenizer(vocab=vocabulary, model_max_length=64),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reader(tiny_checkpoint: Path) -> Any:
    return load_reader(str(tiny_checkpoint), "cpu")


@pytest.fixture(scope="session")
def assets() -> Path:
    return ROOT / "serving" / "assets"


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with faceless.mp4 (sound, no face), mute.mp4 (face, no sound), empty.mp4 (neither), broken.mp4 (text),
    face.png and sound.wav."""
    folder = tmp_path_factory.mktemp("clips")
    with (
        av.open(str(ROOT / "serving" / "assets" / "demo.mp4")) as source,
        av.open(str(folder / "mute.mp4"), "w") as to,
    ):
        copy = to.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                to.mux(packet)
    with av.open(str(folder / "mute.mp4")) as source:
        next(source.decode(video=0)).to_image().save(folder / "face.png")
    write_clip(folder / "faceless.mp4", sound=sine(2, 16000), sound_rate=16000)
    write_clip(folder / "empty.mp4")
    write_sound(folder / "sound.wav", sine(1, 16000), 16000)
    (folder / "broken.mp4").write_text("no video at all")
    return folder


@pytest.fixture
def triemo(tiny_checkpoint: Path, reader: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command on the tiny checkpoint, which is loaded once, in a terminal of 80 columns."""
    monkeypatch.setattr("triemo.serving.predict.load_reader", lambda model, device: loaded[model, device])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    runner = CliRunner()
    loaded = {(str(tiny_checkpoint), "cpu"): reader}

    def run(command: str, *arguments: Any) -> Result:
        return runner.invoke(app, [command, *map(str, arguments), "--model", str(tiny_checkpoint), "--device", "cpu"])

    return run
