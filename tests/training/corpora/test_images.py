"""FER2013 as an emotion table, from the official csv (tiny, made here) and from the real parquet files."""

import io
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_files import write_csv
from PIL import Image

from triemo.training.corpora.images import fer2013_train_filter
from triemo.training.corpora.registry import load_corpus

HEADER = ["emotion", "pixels", "Usage"]


def face(level: int) -> str:
    return " ".join(str((level + place) % 256) for place in range(48 * 48))


@pytest.mark.parametrize(
    ("name", "header"), [("fer2013.csv", HEADER), ("icml_face_data.csv", ["emotion", " Usage", " pixels"])]
)
def test_fer2013_csv(tmp_path, name, header):
    """0 angry ... 3 happy, 6 neutral; an image that is also in test goes from train; pixels survive exactly."""
    rows = [("0", face(1), "Training"), ("3", face(9), "Training"), ("6", face(2), "PublicTest")]
    rows += [("3", face(9), "PrivateTest")]
    order = [["emotion", "pixels", "Usage"].index(column.strip()) for column in header]
    write_csv(tmp_path / "fer2013" / name, header, [[row[place] for place in order] for row in rows])
    data = load_corpus("fer2013", tmp_path)
    assert [data[split]["label"][:] for split in data] == [["anger"], ["neutral"], ["joy"]]
    pixels = np.asarray(Image.open(io.BytesIO(data["train"][0]["image"]["bytes"])))
    assert pixels.dtype == np.uint8 and pixels.shape == (48, 48)
    assert " ".join(map(str, pixels.flatten())) == face(1)
    assert data["train"][0]["row"].endswith(f"{name}:2")
    own = load_corpus("fer2013", tmp_path, classes="own", drop_duplicates=False)
    assert own["train"]["label"][:] == ["angry", "happy"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["7", face(1), "Training"], "emotion: got '7' in .*csv:2"),
        (["1", "1 2 3", "Training"], "pixels: got 3 in .*csv:2, expected 2304"),
        (["1", face(1).replace("255", "256"), "Training"], "expected 2304 from 0 to 255"),
        (["1", "a b", "Training"], "pixels: cannot read .*csv:2"),
        (["1", face(1), "Test"], "Usage: got 'Test' in .*csv:2"),
    ],
)
def test_fer2013_csv_errors_name_the_line(tmp_path, row, message):
    write_csv(tmp_path / "fer2013" / "fer2013.csv", HEADER, [row])
    with pytest.raises(ValueError, match=message):
        load_corpus("fer2013", tmp_path)


def test_fer2013_parquet(fer2013_raw):
    """PrivateTest's published counts, by name, over the real splits."""
    assert {split: len(rows) for split, rows in fer2013_raw.items()} == {
        **{"train": 28709, "validation": 3589, "test": 3589},
    }
    assert Counter(fer2013_raw["test"]["label"]) == {
        **{"angry": 491, "disgust": 55, "fear": 528, "happy": 879, "neutral": 626, "sad": 594, "surprise": 416},
    }
    assert fer2013_raw["test"][0]["image"]["bytes"][:2] == b"\xff\xd8"


def test_fer2013_duplicates_are_counted_and_dropped(fer2013_raw):
    """1,853 images repeat another one, 557 images occur in more than one split."""
    hashes = {split: list(rows["pixel_hash"]) for split, rows in fer2013_raw.items()}
    everything = [key for keys in hashes.values() for key in keys]
    assert len(everything) - len(set(everything)) == 1853
    splits = [set(keys) for keys in hashes.values()]
    assert sum(sum(key in split for split in splits) > 1 for key in set(everything)) == 557
    keep, dropped = fer2013_train_filter(hashes, list(fer2013_raw["train"]["label"]))
    assert dropped == {"in_validation_or_test": 703, "conflicting_labels": 73, "repeated_in_train": 1021}
    assert len(keep) == 28709 - 703 - 73 - 1021
    kept = [hashes["train"][row] for row in keep]
    assert len(set(kept)) == len(kept)
    assert not set(kept) & {*hashes["validation"], *hashes["test"]}


def test_fer2013_filter_on_a_hand_made_case():
    """a is held out, b repeats with one label, c repeats with two labels, d is alone."""
    hashes = {"train": ["a", "b", "c", "b", "c", "d"], "validation": ["a"], "test": ["x"]}
    keep, dropped = fer2013_train_filter(hashes, [0, 1, 2, 1, 3, 4])
    assert keep == [1, 5]
    assert dropped == {"in_validation_or_test": 1, "conflicting_labels": 2, "repeated_in_train": 1}


@pytest.mark.parametrize(
    ("content", "label", "message"),
    [(b"no image", 0, "row 0 of .*train.parquet: got bytes"), (b"", 9, "label: got 9 in row 0 of .*train.parquet")],
)
def test_fer2013_bad_rows_are_named(tmp_path, content, label, message):
    (tmp_path / "fer2013").mkdir()
    table = pa.table({"image": [{"bytes": content, "path": "a.jpg"}], "label": [label]})
    pq.write_table(table, tmp_path / "fer2013" / "train.parquet")
    with pytest.raises(ValueError, match=message):
        load_corpus("fer2013", tmp_path)
