"""All subsets of a sample's modalities from one batch equal what each gives alone."""

import numpy as np
import pytest
import torch

from triemo.processing.explanations_triemo import subset_scores
from triemo.processing.samples_triemo import present_modalities
from triemo.serving.reading import read_subsets
from triemo.serving.samples import Sample

SENTENCE = "oh wow, you really came!"


@pytest.fixture(scope="module")
def tensors(reader, assets):
    return reader.prepare({"video": str(assets / "demo.mp4"), "text": SENTENCE})


def test_every_subset_equals_the_single_prediction(reader, assets, clips, tensors):
    """The other side of each comparison is given only the files of its subset."""
    scores = subset_scores(reader, tensors)
    alone = {"text": {"text": SENTENCE}, "vision": {"video": str(clips / "mute.mp4")}}
    alone["audio"] = {"audio": str(assets / "demo.mp4")}
    assert list(scores) == [
        ("text",),
        ("audio",),
        ("vision",),
        ("text", "audio"),
        ("text", "vision"),
        ("audio", "vision"),
        ("text", "audio", "vision"),
    ]
    for subset, by_label in scores.items():
        single = reader({key: value for name in subset for key, value in alone[name].items()})
        expected = {entry["label"]: entry["score"] for entry in single}
        assert by_label == pytest.approx(expected, abs=1e-5), subset
        assert list(by_label) == list(reader.model.config.id2label.values())
    # Rounding could not tell the subsets apart if they all gave the same.
    joy = sorted(by_label["joy"] for by_label in scores.values())
    assert min(b - a for a, b in zip(joy, joy[1:], strict=False)) > 1e-4


def test_temperature_is_applied(reader, tensors):
    with torch.no_grad():
        logits = reader.model(**tensors).logits[0]
    temperature = reader.model.config.calibration_temperature
    assert temperature != 1
    expected = torch.softmax(logits / temperature, -1)
    got = torch.tensor(list(subset_scores(reader, tensors)[("text", "audio", "vision")].values()))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_one_call_of_the_model_with_a_row_a_subset(reader, tensors, monkeypatch):
    batches = []
    forward = reader.model.forward

    def counted(**inputs):
        batches.append({len(value) for value in inputs.values()})
        return forward(**inputs)

    monkeypatch.setattr(reader.model, "forward", counted)
    before = {name: value.clone() for name, value in tensors.items()}
    subset_scores(reader, tensors)
    assert batches == [{7}]
    for name, value in tensors.items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)  # the caller's masks are left alone


def test_samples_with_fewer_modalities(reader, clips):
    text = reader.prepare({"text": SENTENCE})
    assert list(subset_scores(reader, text)) == [("text",)]
    # The faceless clip has frames, all of them masked: its picture is no modality.
    faceless = reader.prepare({"video": str(clips / "faceless.mp4"), "text": SENTENCE})
    assert present_modalities(faceless) == ("text", "audio")
    assert list(subset_scores(reader, faceless)) == [("text",), ("audio",), ("text", "audio")]
    empty = {**text, "attention_mask": torch.zeros_like(text["attention_mask"])}
    with pytest.raises(ValueError, match="no modality"):
        subset_scores(reader, empty)


def test_subsets_of_a_long_recording_are_means_of_its_windows(reader):
    """All together is what the pipeline answers; in the window without words, words and voice are the voice."""
    sound = (0.1 * np.random.default_rng(0).standard_normal(9 * 16000)).astype(np.float32)
    inputs = {"audio": {"array": sound, "sampling_rate": 16000}}
    inputs["text"] = [{"text": SENTENCE, "timestamp": (5, 6)}]
    read = read_subsets(reader, Sample("long", None, inputs))
    assert read.evidence.notes[0] == "recording: 9.0 s were read in 2 windows"
    assert dict((entry["label"], entry["score"]) for entry in reader(inputs)) == pytest.approx(
        read.scores["text", "audio"], abs=1e-5
    )
    assert read.empty + sum(read.parts.values()) == pytest.approx(read.scores["text", "audio"][read.label])
    alone = {entry["label"]: entry["score"] for entry in reader({"text": SENTENCE})}
    assert read.scores["text",] == pytest.approx(alone, abs=1e-5)
