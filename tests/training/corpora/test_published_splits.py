"""The split files that come with the project."""

import json

import pytest

from triemo.training.corpora import published_splits
from triemo.training.corpora.published_splits import load_split, split_by_members, split_members, split_names


def test_split_files():
    """Each names its corpus, version and source; none has a member in two parts."""
    speakers = [f"{name}_speakers" for name in ("casia", "emovo", "javanese", "nemo", "savee", "tess")]
    published = ["crema_d_actors", "iemocap_sessions", "ravdess_folds", "ravdess_release"]
    assert split_names() == sorted([*published, *speakers])
    for name in split_names():
        content = load_split(name)
        assert content["name"] == name and content["version"] and content["source"] and content["corpus"]
    release = split_members("ravdess_release")
    assert {split: list(map(int, actors)) for split, actors in release.items()} == {
        **{"train": list(range(1, 19)), "validation": [19, 20], "test": [21, 22, 23, 24]},
    }
    crema_d = split_members("crema_d_actors")
    assert {split: len(actors) for split, actors in crema_d.items()} == {"train": 63, "validation": 14, "test": 14}
    assert sorted(int(actor) for part in crema_d.values() for actor in part) == list(range(1001, 1092))


def test_published_folds():
    """As printed by Luna-Jimenez et al. (2021); the next fold is validation, or stays in train."""
    members = split_members("ravdess_folds", 4)
    assert members["test"] == ["1", "4", "9", "22"]
    assert members["validation"] == ["2", "5", "14", "15", "16"]
    assert len(members["train"]) == 15
    whole = split_members("ravdess_folds", 4, validation=False)
    assert set(whole) == {"train", "test"} and len(whole["train"]) == 20
    tests = [actor for fold in range(5) for actor in split_members("ravdess_folds", fold)["test"]]
    assert sorted(map(int, tests)) == list(range(1, 25))
    assert split_members("iemocap_sessions", 0) == {"train": ["3", "4", "5"], "validation": ["2"], "test": ["1"]}


def test_bad_split_files_and_folds(tmp_path, monkeypatch):
    for name, fold in (("ravdess_release", 0), ("ravdess_folds", None), ("ravdess_folds", 5)):
        with pytest.raises(ValueError, match="fold: got"):
            split_members(name, fold)
    with pytest.raises(ValueError, match="split file: got 'x', expected one of .*ravdess_folds"):
        load_split("x")
    monkeypatch.setattr(published_splits, "SPLITS_FOLDER", tmp_path)
    (tmp_path / "x.json").write_text(json.dumps({"splits": {"train": ["1", "2"], "test": ["2"]}}))
    with pytest.raises(ValueError, match="got a member in two parts"):
        load_split("x")


def test_rows_of_nobody_are_left_out():
    rows = [{"speaker": name} for name in "abca"]
    assert split_by_members(rows, "speaker", {"train": ["a"], "test": ["c"]}) == {
        "train": [{"speaker": "a"}, {"speaker": "a"}],
        "test": [{"speaker": "c"}],
    }
    with pytest.raises(ValueError, match="split test: got no row, expected some of speaker .'z'."):
        split_by_members(rows, "speaker", {"train": ["a"], "test": ["z"]})
