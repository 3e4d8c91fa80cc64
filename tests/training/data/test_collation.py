"""Rows to batches: what is in them, who is named when something is wrong, draws that depend on the ticket alone."""

import numpy as np
import pytest
import torch
from tiny_checkpoint import LABELS, tiny_processor
from tiny_data import write_face, write_voice

from triemo.training.data.collation import (
    EmotionCollator,
    NoModalityError,
    augment_frames,
    augment_waveform,
    encode_label,
    present_modalities,
)

LABEL2ID = {label: index for index, label in enumerate(LABELS)}


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_voice(folder / "voice.wav", 500, 0)
    write_face(folder / "face.png", 1, 0)
    return {
        "text": "i am so happy",
        "audio": {"bytes": None, "path": str(folder / "voice.wav")},
        "image": {"bytes": (folder / "face.png").read_bytes(), "path": None},
        "label": "joy",
        "row": "table.csv:2",
    }


def test_a_batch_of_different_rows_is_what_the_processor_makes_of_them(processor, row):
    sentence = {"text": "what a day", "audio": None, "image": None, "label": "fear"}
    batch = EmotionCollator(processor, LABEL2ID)([row, sentence])
    path, picture = row["audio"]["path"], row["image"]
    expected = processor(text=[row["text"], sentence["text"]], audio=[path, None], images=[picture, None])
    assert batch.keys() == expected.keys() | {"labels"}
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name
    assert batch["labels"].tolist() == [3, 2]


def test_only_the_modalities_of_the_model_are_read(processor, row):
    broken = {**row, "audio": {"bytes": b"no sound", "path": None}}
    sample = EmotionCollator(processor, LABEL2ID, modalities=("text", "vision")).encode(broken)
    assert present_modalities(sample) == ("text", "vision")
    with pytest.raises(ValueError, match="table.csv:2"):
        EmotionCollator(processor, LABEL2ID).encode(broken)
    with pytest.raises(NoModalityError, match="table.csv:2.*audio"):
        EmotionCollator(processor, LABEL2ID, modalities=("audio",)).encode({**row, "audio": None})


def test_vectors_pass_as_they_are(processor):
    rows = [
        {"audio_features": [[1.0, 2.0], [3.0, 4.0]], "label": "joy"},
        {"audio_features": [[5.0, 6.0]], "label": "fear"},
    ]
    batch = EmotionCollator(processor, LABEL2ID, augment=True)(rows)
    assert batch["input_features"].tolist() == [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [0.0, 0.0]]]
    assert batch["audio_attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_augmentation_depends_on_seed_and_ticket_and_touches_no_other_random_number(processor, row):
    collator = EmotionCollator(processor, LABEL2ID, augment=True, seed=5)
    before = torch.get_rng_state()
    first = collator([{**row, "ticket": 7}])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)
    again = collator([{**row, "ticket": 7}])
    assert all(torch.equal(first[name], again[name]) for name in first)
    others = (collator([{**row, "ticket": 8}]), EmotionCollator(processor, LABEL2ID, augment=True, seed=6)([row]))
    plain = EmotionCollator(processor, LABEL2ID)([row])
    for other in (*others, plain):
        assert torch.equal(other["input_ids"], first["input_ids"])
        assert not torch.equal(other["pixel_values"], first["pixel_values"])
        assert other["input_features"].shape != first["input_features"].shape or not torch.equal(
            other["input_features"], first["input_features"]
        )


def test_noise_and_gain_stay_within_their_limits():
    tone = torch.sin(torch.arange(16000) / 10)
    for seed in range(20):
        torch.manual_seed(seed)
        varied = augment_waveform(tone)
        gain = (varied @ tone) / (tone @ tone)
        rest = varied - gain * tone
        assert 10 ** (-6.5 / 20) < gain < 10 ** (6.5 / 20)
        assert rest.square().mean().sqrt() < gain * tone.square().mean().sqrt() * 10 ** (-14.5 / 20)


def test_frames_of_a_clip_are_turned_alike():
    frame = torch.rand(1, 1, 16, 16)
    torch.manual_seed(0)
    varied = augment_frames(frame.expand(3, -1, -1, -1))
    assert torch.equal(varied[0], varied[1]) and torch.equal(varied[0], varied[2])
    assert not torch.allclose(varied[0], frame[0], atol=0.05)


@pytest.mark.parametrize(
    ("label", "problem", "soft", "expected"),
    [
        ("joy", "single_label_classification", False, 3),
        (["joy"], "single_label_classification", False, 3),
        (["joy", "fear"], "single_label_classification", True, [0, 0, 0.5, 0.5, 0, 0, 0]),
        (["joy", "fear"], "multi_label_classification", False, [0, 0, 1, 1, 0, 0, 0]),
        ([], "multi_label_classification", False, [0] * 7),
        (0.25, "regression", False, [0.25]),
        ([0.25, -1.0], "regression", False, [0.25, -1.0]),
    ],
)
def test_labels(label, problem, soft, expected):
    assert np.array_equal(encode_label(label, LABEL2ID, problem, soft), np.array(expected))


@pytest.mark.parametrize(
    ("label", "problem", "message"),
    [
        ("happy", "single_label_classification", "got 'happy', expected one of anger, disgust"),
        (["joy", "fear"], "single_label_classification", "expected one class"),
        (["joy", "glee"], "multi_label_classification", "got 'glee'"),
        ("high", "regression", "expected a number"),
        (float("nan"), "regression", "finite"),
    ],
)
def test_labels_that_do_not_fit_name_the_row(processor, label, problem, message):
    collator = EmotionCollator(processor, LABEL2ID, problem)
    with pytest.raises(ValueError, match=f"a.csv:9: label: .*{message}"):
        collator([{"text": "i am", "label": label, "row": "a.csv:9"}])
