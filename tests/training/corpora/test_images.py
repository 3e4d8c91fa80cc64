"""FER2013, FERPlus and RAF-DB as emotion tables: official layouts (tiny, made here) and the real files."""

import io
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_files import write_csv
from PIL import Image

from triemo.training.corpora.images import (
    fer2013_train_filter,
    ferplus_majority,
    ferplus_soft_targets,
    read_ferplus_votes,
)
from triemo.training.corpora.labels import FERPLUS_VOTES, label2id
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


# FERPlus: votes are neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, NF

VOTES = {
    "joy": [2, 8, 0, 0, 0, 0, 0, 0, 0, 0],
    "tie": [0, 0, 4, 0, 0, 0, 4, 2, 0, 0],
    "contempt": [3, 0, 0, 0, 0, 0, 0, 7, 0, 0],
    "no face": [1, 0, 0, 0, 0, 0, 0, 0, 0, 9],
    "none": [0] * 10,
}


def test_votes_to_soft_targets_and_majority():
    """The majority is of all ten votes, the probabilities are of the votes for the seven classes."""
    votes = np.array(list(VOTES.values()))
    assert ferplus_majority(votes).tolist() == [label2id["joy"], -1, -1, -1, -1]
    soft = ferplus_soft_targets(votes[:4])
    assert soft[0].tolist() == [0, 0, 0, 0.8, 0.2, 0, 0]
    assert soft[1].tolist() == [0, 0, 0.5, 0, 0, 0, 0.5]
    assert soft[2].tolist() == soft[3].tolist() == [0, 0, 0, 0, 1, 0, 0]
    with pytest.raises(ValueError, match="votes: got none for the seven classes in row 4"):
        ferplus_soft_targets(votes)


def write_ferplus(root, votes: list[list], usages: list[str]):
    """The official csv of faces, all angry, and the official csv of votes, which follows its rows."""
    faces = [["0", face(3 * place), usage] for place, usage in enumerate(usages)]
    write_csv(root / "fer2013" / "fer2013.csv", HEADER, faces)
    rows = [[usage, f"fer{place:07d}.png", *row] for place, (usage, row) in enumerate(zip(usages, votes, strict=True))]
    write_csv(root / "fer2013" / "fer2013new.csv", ["Usage", "Image name", *FERPLUS_VOTES], rows)


def test_ferplus_official_layout(tmp_path):
    """Rows without one best class go; with `ties` train keeps those whose votes still say something of the seven."""
    train = list(VOTES.values())
    usages = ["Training"] * len(train) + ["PublicTest", "PrivateTest", "PrivateTest"]
    write_ferplus(tmp_path, [*train, VOTES["joy"], VOTES["tie"], VOTES["joy"]], usages)
    data = load_corpus("ferplus", tmp_path)
    assert [data[split]["label"][:] for split in ("train", "validation", "test")] == [["joy"], ["joy"], ["joy"]]
    assert data["train"]["own_label"][:] == ["angry"] and data["train"]["votes"][0] == VOTES["joy"]
    ties = load_corpus("ferplus", tmp_path, ties=True)
    assert ties["train"]["label"][:] == ["joy", None, None]
    assert ties["train"]["votes"][:] == [VOTES["joy"], VOTES["tie"], VOTES["contempt"]]
    assert len(ties["test"]) == 1
    own = load_corpus("ferplus", tmp_path, classes="own")
    assert own["train"]["label"][:] == ["happiness", "contempt"]
    with pytest.raises(ValueError, match="ties: got true with classes 'own'"):
        load_corpus("ferplus", tmp_path, classes="own", ties=True)


def test_ferplus_train_loses_what_is_in_test(tmp_path):
    write_ferplus(tmp_path, [VOTES["joy"]] * 4, ["Training", "Training", "PublicTest", "PrivateTest"])
    rows = [["0", face(level), usage] for level, usage in ((1, "Training"), (2, "Training"), (3, "PublicTest"))]
    write_csv(tmp_path / "fer2013" / "fer2013.csv", HEADER, [*rows, ["3", face(1), "PrivateTest"]])
    assert len(load_corpus("ferplus", tmp_path)["train"]) == 1
    assert len(load_corpus("ferplus", tmp_path, drop_duplicates=False)["train"]) == 2


@pytest.mark.parametrize(
    ("votes", "usages", "message"),
    [
        ([["x"] + [0] * 9], ["Training"], "neutral: got 'x' in .*fer2013new.csv:2, expected a count"),
        ([[1] * 10], ["Test"], "Usage: got 'Test' in .*fer2013new.csv:2"),
        ([[1] * 10] * 2, ["Training"] * 2, "row: got 1 of train in .*fer2013new.csv:3, expected each of 1 once"),
        ([], [], "rows: got 0 of train in .*fer2013new.csv, expected 1"),
    ],
)
def test_ferplus_errors_name_the_line(tmp_path, votes, usages, message):
    write_ferplus(tmp_path, votes, usages)
    with pytest.raises(ValueError, match=message):
        read_ferplus_votes(tmp_path, {"train": 1})


def test_ferplus_votes_beside_parquet(tmp_path):
    """There the votes name their row; faces without votes have zeros."""
    path = tmp_path / "fer2013" / "ferplus_votes.csv"
    with pytest.raises(ValueError, match="data root"):
        read_ferplus_votes(tmp_path / "nowhere", {"test": 2})
    write_csv(path, ["split", "row", *FERPLUS_VOTES], [["test", 1, *VOTES["joy"]]])
    assert read_ferplus_votes(tmp_path, {"test": 2})["test"].tolist() == [[0] * 10, VOTES["joy"]]
    write_csv(path, ["split", "row", *FERPLUS_VOTES], [["test", 1, *VOTES["joy"]]] * 2)
    with pytest.raises(ValueError, match="row: got 1 of test in .*csv:3, expected each of 2 once"):
        read_ferplus_votes(tmp_path, {"test": 2})
    write_csv(path, ["split", "row"], [])
    with pytest.raises(ValueError, match="columns: got .*expected also"):
        read_ferplus_votes(tmp_path, {"test": 2})


def test_ferplus_real_votes(data_root):
    """Counts of the published csv; the votes agree with FER2013's own labels on two faces of three."""
    rows = {"train": 28709, "validation": 3589, "test": 3589}
    votes = read_ferplus_votes(data_root, rows)
    assert [(votes[split].sum(1) > 0).sum() for split in rows] == [28560, 3579, 3573]
    classes = ferplus_majority(votes["test"])
    assert np.bincount(classes[classes >= 0]).tolist() == [316, 22, 92, 909, 1165, 424, 421]


# RAF-DB


def write_raf_db(root, lines: list[str], levels: dict[str, int] | None = None):
    """The official list, and for each of its lines an aligned picture of one colour."""
    folder = root / "raf_db"
    (folder / "Image" / "aligned").mkdir(parents=True)
    (folder / "EmoLabel").mkdir()
    (folder / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines) + "\n")
    for number, line in enumerate(lines):
        name = line.split(" ")[0]
        level = (levels or {}).get(name, number)
        Image.new("RGB", (8, 8), (level, 0, 0)).save(folder / "Image" / "aligned" / name.replace(".", "_aligned."))
    return folder


def names_of(dataset) -> list[str]:
    return [image["path"].rpartition("/")[2].replace("_aligned", "") for image in dataset["image"]]


def test_raf_db_official_layout(tmp_path):
    """1 surprise ... 7 neutral; a tenth of each class of train is validation, whatever the order of the list."""
    lines = [f"train_{number:05d}.png {1 + number % 7}" for number in range(70)] + ["test_0001.png 4"]
    write_raf_db(tmp_path / "a", lines)
    data = load_corpus("raf_db", tmp_path / "a")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 63, "validation": 7, "test": 1}
    assert set(Counter(data["validation"]["label"]).values()) == {1} and data["test"]["label"][:] == ["joy"]
    assert data["test"][0]["row"].endswith("list_patition_label.txt:71")
    write_raf_db(tmp_path / "b", lines[::-1])
    assert sorted(names_of(load_corpus("raf_db", tmp_path / "b")["validation"])) == names_of(data["validation"])
    own = load_corpus("raf_db", tmp_path / "a", classes="own", share=0.5)
    assert own["test"]["label"][:] == ["happiness"] and len(own["validation"]) == 35
    assert set(names_of(data["validation"])) < set(names_of(own["validation"]))


def test_raf_db_train_loses_what_is_in_test_or_repeated(tmp_path):
    lines = [f"train_{number:05d}.png 4" for number in range(5)] + ["train_00009.png 5", "test_0001.png 4"]
    levels = {"train_00000.png": 99, "test_0001.png": 99, "train_00009.png": 50, "train_00001.png": 50}
    levels |= {"train_00002.png": 7, "train_00003.png": 7}
    write_raf_db(tmp_path, lines, levels)
    with pytest.raises(ValueError, match="split validation: got no row"):
        load_corpus("raf_db", tmp_path, share=0.05)
    data = load_corpus("raf_db", tmp_path, share=0.2, drop_duplicates=False)
    assert len(data["train"]) == 5
    kept = set(names_of(load_corpus("raf_db", tmp_path, share=0.2)["train"]))
    held = names_of(data["validation"])[0]
    assert "train_00000.png" not in kept
    same = {"train_00002.png": "train_00003.png", "train_00003.png": "train_00002.png"}
    assert not {held, same.get(held)} & kept and len({*same} & kept) <= 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("valid_0001.jpg 4", "file: got 'valid_0001.jpg' in .*txt:2, expected train_"),
        ("test_0001.jpg 8", "label: got '8' in .*txt:2, expected 1 to 7"),
        ("test_0001.jpg", "label: got '' in .*txt:2"),
    ],
)
def test_raf_db_errors_name_the_line(tmp_path, line, message):
    write_raf_db(tmp_path, ["train_00001.jpg 4", line])
    with pytest.raises(ValueError, match=message):
        load_corpus("raf_db", tmp_path)


def test_raf_db_names_a_missing_picture(tmp_path):
    folder = write_raf_db(tmp_path, ["train_00001.jpg 4"])
    (folder / "Image" / "aligned" / "train_00001_aligned.jpg").unlink()
    with pytest.raises(ValueError, match="image: got no file .*train_00001_aligned.jpg' for .*txt:1"):
        load_corpus("raf_db", tmp_path)


def test_raf_db_real_files(data_root):
    data = load_corpus("raf_db", data_root)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 11043, "validation": 1226, "test": 3068}
    assert Counter(data["test"]["label"])["joy"] == 1185 and Counter(data["test"]["label"])["fear"] == 74
    assert not set(names_of(data["train"])) & set(names_of(data["validation"]))
