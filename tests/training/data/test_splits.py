"""Leakage, and splitting by groups."""

import pytest
from datasets import Dataset, DatasetDict

from triemo.training.data.splits import check_no_leakage, split_off


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
