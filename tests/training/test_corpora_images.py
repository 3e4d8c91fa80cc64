"""FER2013 as an emotion table, from the official csv (tiny, made here) and from the real parquet files."""

import io
from collections import Counter

import numpy as np
import pytest
from corpus_files import write_csv
from PIL import Image

from triemo.training.corpora import images as corpora_images
from triemo.training.corpora.registry import corpus_labels, load_corpus

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
    assert corpus_labels("fer2013", own, "own") == ["angry", "happy", "neutral"]


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


def test_fer2013_parquet(data_root, fer2013_raw, monkeypatch):
    """Names instead of numbers, in both label sets, over the real splits."""
    monkeypatch.setattr(corpora_images, "load_fer2013", lambda root, drop_duplicates: fer2013_raw)
    data = load_corpus("fer2013", data_root, drop_duplicates=False)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 28709, "validation": 3589, "test": 3589}
    counts = Counter(data["test"]["label"])
    assert (counts["anger"], counts["disgust"], counts["joy"], counts["surprise"]) == (491, 55, 879, 416)
    own = Counter(load_corpus("fer2013", data_root, classes="own", drop_duplicates=False)["test"]["label"])
    assert (own["angry"], own["happy"], own["sad"]) == (491, 879, counts["sadness"])
    assert data["test"][0]["image"]["bytes"][:2] == b"\xff\xd8"
