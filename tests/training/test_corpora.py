import hashlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triemo.training.corpora.labels import label2id
from triemo.training.corpora.official import (
    RAVDESS_SPLITS,
    check_disjoint,
    corpus_hash,
    data_root,
    fer2013_train_filter,
    load_fer2013,
    load_goemotions,
    load_ravdess,
)


def test_missing_root_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="data root: got .*nowhere"):
        data_root(tmp_path / "nowhere")
    monkeypatch.setenv("TRIEMO_DATA", str(tmp_path))
    assert data_root() == tmp_path


def test_corpus_hash_changes_with_names_and_bytes(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.txt").write_bytes(b"one")
    line = f"a.txt {hashlib.sha256(b'one').hexdigest()}"
    assert corpus_hash(tmp_path, "c") == hashlib.sha256(line.encode()).hexdigest()
    first = corpus_hash(tmp_path, "c")
    (tmp_path / "c" / "a.txt").rename(tmp_path / "c" / "b.txt")
    assert corpus_hash(tmp_path, "c") != first


# RAVDESS


def test_ravdess_splits_hold_their_actors(ravdess):
    assert sum(len(split) for split in ravdess.values()) == 1440
    for name, split in ravdess.items():
        assert set(split["actor"]) == set(RAVDESS_SPLITS[name])
    assert Counter(ravdess["test"]["gender"]) == {"male": 120, "female": 120}


def test_ravdess_labels_follow_the_file_name(ravdess):
    row = next(row for row in ravdess["test"] if Path(row["path"]).stem == "03-01-06-02-01-01-22")
    assert (row["original_label"], row["label"], row["intensity"], row["gender"]) == ("fearful", 2, 2, "female")
    calm = [row["label"] for row in ravdess["validation"] if row["original_label"] == "calm"]
    assert calm == [label2id["neutral"]] * 16


def test_ravdess_calm_can_be_dropped(data_root, ravdess):
    dropped = load_ravdess(data_root, calm="drop")
    assert len(ravdess["test"]) - len(dropped["test"]) == 4 * 8
    assert "calm" not in dropped["train"]["original_label"]


def test_actor_in_two_splits_is_refused(tmp_path):
    with pytest.raises(ValueError, match="actor 3: got it in both train and test"):
        load_ravdess(tmp_path, splits={"train": [1, 2, 3], "test": [3, 4]})
    check_disjoint({"train": [1, 1], "test": [2]})


def test_ravdess_refuses_a_wrong_file_name(tmp_path):
    folder = tmp_path / "ravdess" / "Actor_01"
    folder.mkdir(parents=True)
    (folder / "03-01-09-01-01-01-01.wav").touch()
    with pytest.raises(ValueError, match="emotion: got 9 in .*03-01-09"):
        load_ravdess(tmp_path)
    (folder / "03-01-09-01-01-01-01.wav").rename(folder / "happy.wav")
    with pytest.raises(ValueError, match="file name: got 'happy.wav'"):
        load_ravdess(tmp_path)


def test_ravdess_names_an_empty_split(tmp_path):
    folder = tmp_path / "ravdess" / "Actor_01"
    folder.mkdir(parents=True)
    (folder / "03-01-03-01-01-01-01.wav").touch()
    with pytest.raises(ValueError, match="split validation: got no clip"):
        load_ravdess(tmp_path)


# FER2013


def test_fer2013_duplicates_are_counted_and_dropped(fer2013_raw):
    """1,853 images repeat another one, 557 images occur in more than one split."""
    hashes = {split: list(rows["pixel_hash"]) for split, rows in fer2013_raw.items()}
    assert {split: len(keys) for split, keys in hashes.items()} == {"train": 28709, "validation": 3589, "test": 3589}
    everything = [key for keys in hashes.values() for key in keys]
    assert len(everything) - len(set(everything)) == 1853
    splits = [set(keys) for keys in hashes.values()]
    assert sum(sum(key in split for split in splits) > 1 for key in set(everything)) == 557
    keep, dropped = fer2013_train_filter(hashes, list(fer2013_raw["train"]["label"]))
    assert dropped == {"in_validation_or_test": 703, "conflicting_labels": 73, "repeated_in_train": 1021}
    assert len(keep) == 28709 - 703 - 73 - 1021
    kept = [hashes["train"][row] for row in keep]
    assert len(set(kept)) == len(kept)
    check_disjoint({"train": kept, "held out": hashes["validation"] + hashes["test"]}, "image")


def test_fer2013_filter_on_a_hand_made_case():
    """a is held out, b repeats with one label, c repeats with two labels, d is alone."""
    hashes = {"train": ["a", "b", "c", "b", "c", "d"], "validation": ["a"], "test": ["x"]}
    keep, dropped = fer2013_train_filter(hashes, [0, 1, 2, 1, 3, 4])
    assert keep == [1, 5]
    assert dropped == {"in_validation_or_test": 1, "conflicting_labels": 2, "repeated_in_train": 1}


def test_fer2013_class_counts(fer2013_raw):
    """PrivateTest's published counts, under the released order."""
    assert Counter(fer2013_raw["test"]["label"]) == {0: 491, 1: 55, 2: 528, 3: 879, 4: 626, 5: 594, 6: 416}


@pytest.mark.parametrize(
    ("content", "label", "message"),
    [(b"no image", 0, "row 0 of .*train.parquet: got bytes"), (b"", 9, "label: got 9 in row 0 of .*train.parquet")],
)
def test_fer2013_bad_rows_are_named(tmp_path, content, label, message):
    (tmp_path / "fer2013").mkdir()
    table = pa.table({"image": [{"bytes": content, "path": "a.jpg"}], "label": [label]})
    pq.write_table(table, tmp_path / "fer2013" / "train.parquet")
    with pytest.raises(ValueError, match=message):
        load_fer2013(tmp_path)


# GoEmotions


def test_goemotions_reads_the_official_splits(goemotions):
    assert {name: len(split) for name, split in goemotions.items()} == {
        "train": 43410,
        "validation": 5426,
        "test": 5427,
    }
    row = goemotions["validation"][1]
    assert (row["labels"], row["id"]) == ([3, 4], "ee84bjg")
    assert row["soft_label"] == [0, 0, 0, 0.5, 0.5, 0, 0]


@pytest.mark.parametrize("line", ["no tabs", "text\t7\tid", "text\t\tid", "text\t1,1\tid", "text\tjoy\tid"])
def test_goemotions_bad_lines_are_named(tmp_path, line):
    folder = tmp_path / "goemotions" / "ekman"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text(f"fine\t0\tx\n{line}\n")
    with pytest.raises(ValueError, match=r"line 2 of .*train\.tsv"):
        load_goemotions(tmp_path)
