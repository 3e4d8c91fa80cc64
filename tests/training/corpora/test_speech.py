"""RAVDESS on the real files; CREMA-D and IEMOCAP on tiny ones in the official layout."""

from collections import Counter

import pytest
from corpus_files import write_crema_d, write_iemocap

from triemo.processing import load_audio
from triemo.training.corpora.published_splits import split_members
from triemo.training.corpora.registry import load_corpus

# RAVDESS


def test_ravdess_release_split(data_root):
    """Actors as in the split file; the label names come from the file names alone."""
    data = load_corpus("ravdess", data_root)
    for split, actors in {"train": range(1, 19), "validation": (19, 20), "test": (21, 22, 23, 24)}.items():
        assert set(data[split]["speaker"]) == set(map(str, actors))
    assert Counter(data["test"]["gender"]) == {"male": 120, "female": 120}
    assert {split: len(rows) for split, rows in data.items()} == {"train": 1080, "validation": 120, "test": 240}
    row = data["test"][0]
    assert row["audio"]["bytes"] is None and row["audio"]["path"].endswith("03-01-01-01-01-01-21.flac")
    assert (row["label"], row["speaker"], row["gender"], row["intensity"]) == ("neutral", "21", "male", "normal")
    assert load_audio(row["audio"]).ndim == 1
    assert Counter(data["test"]["label"])["neutral"] == 4 * (4 + 8)  # calm has two intensities, neutral one


def test_ravdess_published_folds(data_root):
    """Eight classes; every clip is in one test fold."""
    folds = [load_corpus("ravdess", data_root, classes="own", fold=fold) for fold in range(5)]
    assert sum(len(data["test"]) for data in folds) == 1440
    assert set(folds[0]["test"]["speaker"]) == {"2", "5", "14", "15", "16"}
    whole = load_corpus("ravdess", data_root, calm="drop", fold=4, validation=False)
    assert set(whole) == {"train", "test"}
    assert not any(path.split("-")[-5] == "02" for path in whole["test"]["row"])


def test_ravdess_labels_follow_the_file_name(data_root):
    own, dropped = (load_corpus("ravdess", data_root, "own", calm=calm) for calm in ("neutral", "drop"))
    row = next(row for row in own["test"] if row["row"].endswith("03-01-06-02-01-01-22.flac"))
    assert (row["label"], row["intensity"], row["gender"]) == ("fearful", "strong", "female")
    assert Counter(own["validation"]["label"])["calm"] == 16
    assert len(own["test"]) - len(dropped["test"]) == 4 * 8
    assert "calm" not in dropped["train"]["label"][:]


def test_ravdess_refuses_a_wrong_file_name_and_names_an_empty_split(tmp_path):
    folder = tmp_path / "ravdess" / "Actor_01"
    folder.mkdir(parents=True)
    (folder / "03-01-09-01-01-01-01.wav").touch()
    with pytest.raises(ValueError, match="emotion: got 9 in .*03-01-09"):
        load_corpus("ravdess", tmp_path)
    (folder / "03-01-09-01-01-01-01.wav").rename(folder / "happy.wav")
    with pytest.raises(ValueError, match="file name: got 'happy.wav'"):
        load_corpus("ravdess", tmp_path)
    (folder / "happy.wav").rename(folder / "03-01-03-01-01-01-01.wav")
    with pytest.raises(ValueError, match="split validation: got no row"):
        load_corpus("ravdess", tmp_path)


# CREMA-D


@pytest.fixture
def crema_d(tmp_path):
    actors = [split_members("crema_d_actors")[split][0] for split in ("train", "validation", "test")]
    names = [f"{actor}_DFA_{code}_XX" for actor in actors for code in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")]
    write_crema_d(tmp_path, [*names, f"{actors[0]}_IEO_SAD_HI"])
    return tmp_path


def test_crema_d(crema_d):
    data = load_corpus("crema_d", crema_d)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 7, "validation": 6, "test": 6}
    assert sorted(data["test"]["label"]) == ["anger", "disgust", "fear", "joy", "neutral", "sadness"]
    row = next(row for row in data["train"] if row["level"] == "HI")
    assert (row["label"], row["sentence"], row["gender"], row["age"]) == (
        "sadness",
        "It's eleven o'clock.",
        "female",
        21,
    )
    assert len(load_audio(row["audio"])) == 1600
    own = load_corpus("crema_d", crema_d, classes="own")
    assert set(own["test"]["label"]) == {"anger", "disgust", "fear", "happy", "neutral", "sad"}


@pytest.mark.parametrize("name", ["1001_DFA_ANG", "1092_DFA_ANG_XX", "1001_ABC_ANG_XX", "1001_DFA_SUR_XX"])
def test_crema_d_bad_names_are_named(crema_d, name):
    write_crema_d(crema_d, [name], people=False)
    with pytest.raises(ValueError, match=f"file name: got '{name}.wav'"):
        load_corpus("crema_d", crema_d)


def test_crema_d_needs_its_folder_and_people(tmp_path, crema_d):
    (crema_d / "crema_d" / "VideoDemographics.csv").write_text("ActorID,Age,Sex,Race\n1091,20,Male,Asian\n")
    with pytest.raises(ValueError, match="expected it in VideoDemographics.csv"):
        load_corpus("crema_d", crema_d)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="corpus: got no folder .*crema_d or .*CREMA-D"):
        load_corpus("crema_d", tmp_path / "empty")


# IEMOCAP


@pytest.fixture
def iemocap(tmp_path):
    """One utterance of each kind in every session; the first session has all codes."""
    every = ["ang", "hap", "exc", "sad", "neu", "fru", "fea", "sur", "dis", "oth", "xxx"]
    write_iemocap(tmp_path, {1: every, **{session: ["ang", "exc", "fru", "xxx"] for session in range(2, 6)}})
    return tmp_path


def test_iemocap_map_label(iemocap):
    """Excited joins joy; frustrated, other and no-majority go; sessions and speakers stay apart."""
    data = load_corpus("iemocap", iemocap, fold=0)
    assert sorted(data["test"]["label"]) == sorted(
        ["anger", "joy", "joy", "sadness", "neutral", "fear", "surprise", "disgust"]
    )
    assert {split: len(rows) for split, rows in data.items()} == {"train": 6, "validation": 2, "test": 8}
    assert set(data["validation"]["session"]) == {"2"}
    row = data["test"][1]
    assert row["text"] == "Line 1 goes on." and row["speaker"] == "Ses01M" and row["gender"] == "male"
    assert (row["valence"], row["arousal"], row["dominance"]) == (2.5, 3.0, 3.5)
    assert (row["start"], row["end"], row["dialogue"]) == (1.5, 2.25, "Ses01F_script01_1")
    assert row["row"].endswith("Ses01F_script01_1.txt:6")
    assert len(load_audio(row["audio"])) == 1600


def test_iemocap_own_classes(iemocap):
    data = load_corpus("iemocap", iemocap, classes="own", validation=False, keep_tags=True)
    assert set(data) == {"train", "test"} and set(data["test"]["session"]) == {"5"}
    assert data["test"]["label"][:] == ["anger", "excited", "frustrated"]
    assert data["test"][0]["text"] == "Line 0 [LAUGHTER] goes on."


def test_iemocap_errors_name_the_line(iemocap):
    path = next(iemocap.glob("iemocap/Session2/dialog/EmoEvaluation/Ses*.txt"))
    path.write_text(path.read_text().replace("\texc\t", "\tbor\t"))
    with pytest.raises(ValueError, match=r"label: got 'bor' in .*Ses02F_script01_1\.txt:6"):
        load_corpus("iemocap", iemocap)


def test_iemocap_missing_sound_is_counted(iemocap, caplog):
    next(iemocap.glob("iemocap/Session3/sentences/wav/*/*F000.wav")).unlink()
    assert len(load_corpus("iemocap", iemocap, fold=2)["test"]) == 2
    assert "audio: 1 of 16 files are not there; rows kept" in caplog.text
