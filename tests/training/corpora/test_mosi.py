"""CMU-MOSI on the real vectors; the layout with clips (MOSI, MOSEI, CH-SIMS) on tiny files."""

from collections import Counter

import numpy as np
import pytest
from corpus_files import CLIP_HEADER, write_opinions

from triemo.processing import probe_media
from triemo.training.corpora.registry import load_corpus

ROWS = [
    ["v1", "1", "good film", "2.4", "2", "1", "3", "Positive", "train"],
    ["v2", "0002", "so so", "0.0", "0", "1", "-1", "Neutral", "valid"],
    ["v3", "3", "bad, very bad", "-1.2", "-1", "-1", "-2", "Negative", "test"],
]


# Vectors


def test_mosi_vectors_on_the_published_split(data_root):
    """1,447 utterances of 62 videos against 752 of 31; vectors and labels belong to their transcript."""
    data = load_corpus("cmu_mosi", data_root, features=("text", "audio", "vision"), validation_share=0)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 1447, "test": 752}
    assert [len(set(rows["dialogue"])) for rows in data.values()] == [62, 31]
    assert Counter(data["test"]["label"]) == {"positive": 467, "negative": 285}
    row = data["train"][0]
    assert (row["utterance"], row["text"]) == ("1DmNV9C1hbY_10", "KIDS ARE GONNA LOVE THE FILM")
    assert [np.shape(row[f"{name}_features"]) for name in ("text", "audio", "vision")] == [(1, 100), (1, 73), (1, 100)]
    np.testing.assert_allclose(row["audio_features"][0][:2], [174.95, 0.80645], rtol=1e-6)
    assert row["text_features"][0][0] == pytest.approx(-1.13522)


def test_mosi_validation_is_whole_videos(data_root):
    data = load_corpus("cmu_mosi", data_root)
    assert len(data["train"]) + len(data["validation"]) == 1447 and len(data["validation"]) >= 145
    assert not set(data["train"]["dialogue"]) & set(data["validation"]["dialogue"])
    assert "text_features" not in data["train"].column_names  # they were made with the labels of train


@pytest.fixture
def vectors(tmp_path):
    """Two videos, one utterance each."""
    folder = tmp_path / "mosi"
    folder.mkdir()
    (folder / "transcripts.csv").write_text('"a_b_1","HI","1","1"\n"c_1","NO","1","0"\n')
    for split, place, label in (("train", 0, 1), ("test", 1, 0)):
        (folder / f"text_{split}.csv").write_text(f"{place},0.5\n")
        (folder / f"audio_{split}0.csv").write_text(f"0.25,0.75,{label}\n")
    return tmp_path


def test_mosi_vectors_by_hand(vectors):
    row = load_corpus("cmu_mosi", vectors, validation_share=0)["train"][0]
    assert row["dialogue"] == "a_b" and row["audio_features"] == [[0.25, 0.75]] and row["label"] == "positive"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("audio_train0.csv", "0.25,0.75,0\n", r"label: got 0 in .*audio_train0\.csv:1"),
        ("audio_train0.csv", "0.25,nan,1\n", r"vectors: got NaN or infinity in .*audio_train0\.csv:1"),
        ("audio_train0.csv", "1,2,1\n3,4,1\n", "vectors: got 2 rows .*expected 1"),
        ("transcripts.csv", "a_1,HI,1,1\nb,2\n", r"columns: got 2 in .*transcripts\.csv:2, expected 4"),
    ],
)
def test_mosi_files_that_disagree(vectors, name, content, message):
    (vectors / "mosi" / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_corpus("cmu_mosi", vectors)


# Clips


def test_ch_sims(tmp_path):
    write_opinions(tmp_path / "ch_sims", ROWS)
    data = load_corpus("ch_sims", tmp_path)
    assert [data[split]["label"][:] for split in data] == [[2.4], [0.0], [-1.2]]
    row = data["test"][0]
    assert (row["score_text"], row["score_audio"], row["score_vision"]) == (-1.0, -1.0, -2.0)
    assert row["video"]["path"].endswith("Raw/v3/0003.mp4") and probe_media(row["video"]).has_video
    polar = load_corpus("ch_sims", tmp_path, target="polarity")
    assert [polar[split]["label"][0] for split in polar] == ["positive", "neutral", "negative"]


def test_mosi_clips(tmp_path):
    """Without annotation the sign decides; vectors of one's own come from .npy files."""
    write_opinions(tmp_path / "mosi", [[*row[:4], row[8]] for row in ROWS], [*CLIP_HEADER[:4], "mode"])
    for video, clip in (("v1", 1), ("v2", 2), ("v3", 3)):
        path = tmp_path / "mosi" / "Features" / "audio" / video / f"{clip:04d}.npy"
        path.parent.mkdir(parents=True)
        np.save(path, np.full((2, 3), clip, dtype=np.float64))
    data = load_corpus("cmu_mosi", tmp_path, target="polarity", features=("audio",))
    assert [data[split]["label"][0] for split in data] == ["positive", "neutral", "negative"]
    assert data["validation"][0]["audio_features"] == [[2.0] * 3] * 2


def test_mosei_emotions(tmp_path):
    """Above zero counts; none at all is left out; the seven classes rename happy and sad."""
    header = ["video_id", "clip_id", "text", "label", "mode", "happy", "sad", "anger", "surprise", "disgust", "fear"]
    rows = [
        ["v1", "1", "a", "1", "train", "0.33", "0", "0", "1", "0", "0"],
        ["v1", "2", "b", "1", "train", "0", "0", "0", "0", "0", "0"],
        ["v2", "1", "c", "0", "valid", "0", "2", "0", "0", "0", "0"],
        ["v3", "1", "d", "-1", "test", "0", "0", "1.5", "0", "1", "1"],
    ]
    write_opinions(tmp_path / "mosei", rows, header, files=False)
    seven = load_corpus("cmu_mosei", tmp_path, classes="seven")
    assert seven["train"]["label"][:] == [["joy", "surprise"]] and seven["validation"]["label"][:] == [["sadness"]]
    own = load_corpus("cmu_mosei", tmp_path, target="emotions")
    assert own["train"]["label"][:] == [["happy", "surprise"]]
    assert load_corpus("cmu_mosei", tmp_path)["test"]["label"][:] == [-1.0]
    with pytest.raises(ValueError, match="target: got 'score' for the seven classes"):
        load_corpus("cmu_mosei", tmp_path, classes="seven", target="score")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (3, "much", r"label: cannot read .*label\.csv:3"),
        (7, "so-so", r"annotation: got 'so-so' in .*label\.csv:3"),
        (8, "dev2", r"mode: got 'dev2' in .*label\.csv:3"),
    ],
)
def test_clips_errors_name_the_line(tmp_path, place, value, message):
    rows = [list(row) for row in ROWS]
    rows[1][place] = value
    write_opinions(tmp_path / "ch_sims", rows, files=False)
    with pytest.raises(ValueError, match=message):
        load_corpus("ch_sims", tmp_path, target="polarity")


def test_video_in_two_splits_is_refused(tmp_path):
    rows = [list(row) for row in ROWS]
    rows[2][0] = "v1"
    write_opinions(tmp_path / "mosei", rows, files=False)
    with pytest.raises(ValueError, match=r"dialogue 'v1': got it in train \(.*:2\) and in test \(.*:4\)"):
        load_corpus("cmu_mosei", tmp_path)
