"""The registry and its maps; MELD on the real csv files, and its encodings and clips on tiny ones."""

import re
from collections import Counter

import pytest
from corpus_files import meld_row, write_clip_at, write_meld

from triemo.processing import load_frames
from triemo.training.corpora.dialogue import repair_text
from triemo.training.corpora.labels import OWN_LABELS, TO_SEVEN, map_label
from triemo.training.corpora.registry import CORPORA, load_corpus

# Registry and maps


def test_names_and_options():
    assert set(CORPORA) == set(OWN_LABELS)
    with pytest.raises(ValueError, match="corpus: got 'mosi', expected one of"):
        load_corpus("mosi")
    with pytest.raises(ValueError, match=r"options of meld: got \['fold'\]"):
        load_corpus("meld", fold=1)
    with pytest.raises(ValueError, match=r"options of ravdess: .*'fold'.*\('1'|got str"):
        load_corpus("ravdess", fold="1")


@pytest.mark.parametrize("corpus", sorted(TO_SEVEN))
def test_maps_cover_the_own_labels(corpus):
    """Every own label has an entry, and nothing else has; what is mapped is one of the seven or left out."""
    seven = {"anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"}
    assert set(TO_SEVEN[corpus].values()) - {None} <= seven
    if corpus != "cmu_mosei":  # its emotions stand beside the sentiment
        assert set(TO_SEVEN[corpus]) == set(OWN_LABELS[corpus])
    with pytest.raises(ValueError, match="label: got 'bored'"):
        map_label(corpus, "bored")


def test_maps_that_mean_something():
    assert map_label("iemocap", "excited") == "joy" and map_label("iemocap", "frustrated") is None
    assert map_label("ravdess", "calm") == "neutral" and map_label("ravdess", "calm", calm="drop") is None
    with pytest.raises(ValueError, match="classes: got 'seven' for cmu_mosi"):
        load_corpus("cmu_mosi", classes="seven")
    with pytest.raises(ValueError, match="classes: got 'six'"):
        load_corpus("meld", classes="six")


# MELD


def test_meld_official_counts(data_root):
    """Published: 9,989, 1,109 and 2,610 utterances of 1,039 (one without a line), 114 and 280 dialogues."""
    data = load_corpus("meld", data_root, clips=False)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 9989, "validation": 1109, "test": 2610}
    assert [len(set(rows["dialogue"])) for rows in data.values()] == [1038, 114, 280]
    assert [len(set(rows["speaker"])) for rows in data.values()] == [260, 47, 100]
    assert Counter(data["test"]["label"]) == {
        **{"neutral": 1256, "joy": 402, "anger": 345, "surprise": 281},
        **{"sadness": 208, "disgust": 68, "fear": 50},
    }
    row = data["test"][1]
    assert row["text"].startswith("Oh. That’s so Monica") and row["dialogue"] == "test/0" and row["utterance"] == 1
    assert row["start"] == pytest.approx(14 * 60 + 40.629)
    text = "".join(line for rows in data.values() for line in rows["text"])
    assert not re.search("[\x7f-\x9f]|â€|Ã", text)


@pytest.mark.parametrize(
    ("broken", "right"),
    [
        ("You must\x92ve", "You must’ve"),
        ("You mustâ€™ve â€œthatâ€¦", "You must’ve “that…"),
        ("caf\xe9 – “naïve” â", "caf\xe9 – “naïve” â"),
        ("\x93a\x94\x85 b\x97", "“a”… b—"),
    ],
)
def test_repair_text(broken, right):
    assert repair_text(broken) == right
    assert repair_text(right) == right


@pytest.mark.parametrize(("encoding", "text"), [("utf-8", "It\x92s"), ("utf-8", "It’s"), ("cp1252", "It’s")])
def test_meld_encodings(tmp_path, encoding, text):
    write_meld(tmp_path, [meld_row(1, text)], encoding)
    assert load_corpus("meld", tmp_path)["train"]["text"][:] == ["It’s"]


def test_meld_clips(tmp_path, caplog):
    """Clips are found by dialogue and utterance; a line without its clip is named, and left out on request."""
    folder = write_meld(tmp_path, [meld_row(1, "a", "joy", 0, 0), meld_row(2, "b", "anger", 0, 1)])
    for name in ("train_splits/dia0_utt1", "dev_splits_complete/dia0_utt0", "output_repeated_splits_test/dia0_utt0"):
        write_clip_at(folder / f"{name}.mp4")
    data = load_corpus("meld", tmp_path)
    assert len(data["train"]) == 2 and "video: 1 of 2 files are not there; rows kept" in caplog.text
    assert "dia0_utt0.mp4" in caplog.text and "train_sent_emo.csv:2" in caplog.text
    assert len(load_frames(data["train"][1]["video"], num_frames=2)[0]) == 2
    assert load_corpus("meld", tmp_path, drop_missing=True)["train"]["text"][:] == ["b"]
    assert "video" not in load_corpus("meld", tmp_path, clips=False)["train"].column_names
    (folder / "train_splits" / "dia0_utt1.mp4").unlink()
    with pytest.raises(ValueError, match="video: none of 2 files is there"):
        load_corpus("meld", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: "bored"}, r"label: got 'bored' in .*train_sent_emo\.csv:3"),
        ({5: "x"}, r"row: cannot read .*train_sent_emo\.csv:3"),
        ({9: "12"}, r"row: cannot read .*train_sent_emo\.csv:3"),
    ],
)
def test_meld_errors_name_the_line(tmp_path, change, message):
    row = meld_row(2, "b", "anger", 0, 1)
    for place, value in change.items():
        row[place] = value
    write_meld(tmp_path, [meld_row(1, "a"), row])
    with pytest.raises(ValueError, match=message):
        load_corpus("meld", tmp_path)
