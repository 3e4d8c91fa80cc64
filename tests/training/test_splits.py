"""Leakage, splitting by groups, and the split files that come with the project."""

import json

import pytest
from datasets import Dataset, DatasetDict

from triemo.training.corpora.official import RAVDESS_SPLITS
from triemo.training.data import splits
from triemo.training.data.splits import (
    check_no_leakage,
    find_duplicates,
    load_split,
    split_by_members,
    split_members,
    split_names,
    split_off,
)


def dataset(**columns: list) -> Dataset:
    return Dataset.from_dict(columns)


def test_shared_speaker_names_both_rows():
    data = DatasetDict(
        train=dataset(speaker=["ann", None], row=["a.csv:2", "a.csv:3"]),
        test=dataset(speaker=[None, "bob", "ann"], row=["b.csv:2", "b.csv:3", "b.csv:4"]),
    )
    with pytest.raises(ValueError, match=r"speaker 'ann': got it in train \(a.csv:2\) and in test \(b.csv:4\)"):
        check_no_leakage(data)
    check_no_leakage(data, ("dialogue", "actor"))
    check_no_leakage({**data, "test": data["test"].select([0, 1])})  # rows taken out are not looked at


def test_dialogue_without_row_column():
    data = {"train": dataset(dialogue=[1, 2]), "validation": dataset(dialogue=[3, 2])}
    with pytest.raises(ValueError, match="dialogue 2: got it in train .row 1 of train. and in validation .row 1 of"):
        check_no_leakage(data)


def test_duplicates_across_splits_are_found(tmp_path, caplog):
    """Equal words but for case, equal bytes, and equal bytes behind two paths; twice in one split is no finding."""
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"same")
    data = {
        "train": dataset(
            text=["Hello ", "hello", "x"],
            audio=[{"bytes": None, "path": str(tmp_path / "a.wav")}, {"bytes": b"1", "path": None}, None],
        ),
        "test": dataset(
            text=["", "other", "HELLO"],
            audio=[{"bytes": b"2", "path": None}, {"bytes": None, "path": str(tmp_path / "b.wav")}, None],
        ),
    }
    assert find_duplicates(data) == [
        {"column": "text", "splits": ("train", "test"), "rows": ("row 0 of train", "row 2 of test")},
        {"column": "audio", "splits": ("train", "test"), "rows": ("row 0 of train", "row 1 of test")},
    ]
    assert "audio: 1 contents are in more than one split" in caplog.text


def test_groups_stay_whole_over_chains():
    """Speaker a talks to b, b to c: their dialogues are one group; d and e are another."""
    data = dataset(
        speaker=["a", "b", "b", "c", "d", "e", "f", "f"],
        dialogue=["1", "1", "2", "2", "3", "3", "4", "4"],
        number=list(range(8)),
    )
    for seed in range(5):
        stays, goes, by = split_off(data, 0.2, seed)
        assert by == "speaker and dialogue"
        assert set(goes["number"]) in ({0, 1, 2, 3}, {4, 5}, {6, 7})
        assert sorted([*stays["number"], *goes["number"]]) == list(range(8))
        check_no_leakage({"train": stays, "validation": goes})


def test_linked_speakers_fall_back_to_dialogues_then_rows(caplog):
    data = dataset(speaker=["a", "b"] * 4, dialogue=[str(number // 2) for number in range(8)])
    _, goes, by = split_off(data, 0.3)
    assert by == "dialogue" and len(goes) == 4
    assert "speaker and dialogue link all rows" in caplog.text
    _, goes, by = split_off(dataset(speaker=["a"] * 10), 0.3)
    assert by == "row" and len(goes) == 3
    with pytest.raises(ValueError, match="share 0.5 of 1 rows"):
        split_off(dataset(text=["a"]), 0.5)


def test_one_group_at_least_stays():
    stays, goes, _ = split_off(dataset(speaker=["a", "a", "a", "b"]), 0.99)
    assert len(stays) and len(goes)


def test_split_files():
    """Each names its corpus, version and source; none has a member in two parts."""
    assert split_names() == ["crema_d_actors", "iemocap_sessions", "ravdess_folds", "ravdess_release"]
    for name in split_names():
        content = load_split(name)
        assert content["name"] == name and content["version"] and content["source"] and content["corpus"]
    release = split_members("ravdess_release")
    assert {split: tuple(map(int, actors)) for split, actors in release.items()} == RAVDESS_SPLITS
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
    monkeypatch.setattr(splits, "SPLITS_FOLDER", tmp_path)
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
