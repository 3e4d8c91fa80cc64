"""Corpora of acted voices: what their file names say, and speakers in one split only."""

from collections import Counter

import pytest
from corpus_files import write_wav

from triemo.training.corpora.acted import ACTED, acted_tables
from triemo.training.corpora.labels import ACTED_CODES, EMOTIONS
from triemo.training.corpora.published_splits import load_split
from triemo.training.corpora.registry import load_corpus

# One name of each corpus: speaker, own label, seven-class label, sentence.
NAMES = {
    "tess/OAF_back_ps.wav": ("OAF", "pleasant surprise", "surprise", "back"),
    "casia/wangzhe/angry/201.wav": ("wangzhe", "angry", "anger", "201"),
    "nemo/samples/SM0_happiness_7.wav": ("SM0", "happiness", "joy", "7"),
    "emovo/m2/gio-m2-b1.wav": ("m2", "joy", "joy", "b1"),
    "savee/JKsa08.wav": ("JK", "sadness", "sadness", "08"),
    "javanese/audio/07-02-05_04.wav": ("07", "fear", "fear", "02"),
}


def fill(root, name: str, code: str) -> None:
    """A clip of every speaker of a corpus's folds, all of one emotion."""
    shapes = {
        "tess": "{who}_back_{code}.wav",
        "casia": "{who}/{code}/201.wav",
        "nemo": "samples/{who}_{code}_1.wav",
        "emovo": "{who}/{code}-{who}-b1.wav",
        "savee": "{who}{code}01.wav",
        "javanese": "audio/{who}-01-{code}_02.wav",
    }
    for fold in load_split(f"{name}_speakers")["folds"]:
        for who in fold:
            write_wav(root / name / shapes[name].format(who=who, code=code))


@pytest.mark.parametrize("path", NAMES)
def test_file_names_say_who_and_what(tmp_path, path):
    name = path.split("/")[0]
    speaker, own, seven, sentence = NAMES[path]
    fill(tmp_path, name, next(code for code, label in ACTED_CODES[name].items() if label == own))
    write_wav(tmp_path / path)
    for classes, label in (("own", own), ("seven", seven)):
        data = load_corpus(name, tmp_path, classes=classes)
        rows = [row for split in data.values() for row in split if row["row"].endswith(path)]
        assert [(row["speaker"], row["label"], row["sentence"]) for row in rows] == [(speaker, label, sentence)]


def test_every_code_has_one_of_the_seven():
    for name in ACTED:
        labels = {load_split(f"{name}_speakers")["corpus"]: set(ACTED_CODES[name].values())}
        assert set(labels) == {name} and all(labels.values())
    assert set(EMOTIONS) >= {seven for _, _, seven, _ in NAMES.values()}


def test_a_strange_name_is_refused(tmp_path):
    fill(tmp_path, "savee", "h")
    write_wav(tmp_path / "savee" / "DCx01.wav")
    with pytest.raises(ValueError, match=r"file name: got 'DCx01'.*expected.*'a', 'd', 'f', 'h', 'n', 'sa', 'su'"):
        load_corpus("savee", tmp_path)


def test_clips_without_a_film_are_refused(tmp_path):
    fill(tmp_path, "casia", "sad")
    with pytest.raises(ValueError, match="clips: got 'video' for casia, expected all, audio"):
        load_corpus("casia", tmp_path, clips="video")


@pytest.mark.parametrize(
    ("name", "clips", "classes"),
    [
        ("tess", 840, 7),
        ("casia", 1200, 6),
        ("nemo", 2076, 6),
        ("emovo", 588, 7),
        ("savee", 226, 4),
        ("javanese", 960, 6),
    ],
)
def test_whole_corpus(data_root, name, clips, classes):
    """Every clip is in one test fold; no speaker is in two splits (checked by `load_corpus` as well)."""
    folds = len(load_split(f"{name}_speakers")["folds"])
    tests = [acted_tables[name](data_root, fold=fold)["test"] for fold in range(folds)]
    assert sum(len(test) for test in tests) == clips
    assert len(Counter(label for test in tests for label in test["label"])) == classes
    speakers = [set(test["speaker"]) for test in tests]
    assert sum(map(len, speakers)) == len(set().union(*speakers))


def test_javanese_films_have_face_and_voice(data_root):
    data = load_corpus("javanese", data_root, clips="video")
    assert sum(len(split) for split in data.values()) == 240
    assert data["test"].column_names[0] == "video"
    assert all(row["path"].endswith(".mp4") for row in data["test"]["video"])
