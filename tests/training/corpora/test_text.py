"""GoEmotions on the real files, in both groupings, and bad lines of it."""

import pytest

from triemo.training.corpora.labels import GOEMOTIONS_LABELS, map_label
from triemo.training.corpora.registry import load_corpus


def test_goemotions_reads_the_official_splits(goemotions):
    assert {name: len(split) for name, split in goemotions.items()} == {
        "train": 43410,
        "validation": 5426,
        "test": 5427,
    }
    row = goemotions["validation"][1]
    assert (row["label"], row["id"]) == (["joy", "neutral"], "ee84bjg")


def test_goemotions_groupings_agree(data_root, goemotions):
    """The 28 labels through our map give the official ekman file, for every comment of the three splits."""
    own, seven = load_corpus("goemotions", data_root, classes="own"), goemotions
    assert {split: len(rows) for split, rows in own.items()} == {"train": 43410, "validation": 5426, "test": 5427}
    for split, rows in own.items():
        assert rows["id"][:] == seven[split]["id"][:] and rows["text"][:] == seven[split]["text"][:]
        mapped = [sorted({map_label("goemotions", name) for name in label}) for label in rows["label"][:]]
        assert mapped == [sorted(label) for label in seven[split]["label"][:]]
    names = (data_root / "goemotions" / "original" / "labels.txt").read_text().split()
    assert tuple(names) == GOEMOTIONS_LABELS
    assert {name for rows in own.values() for label in rows["label"] for name in label} == set(names)


@pytest.mark.parametrize(("grouping", "classes", "last"), [("ekman", "seven", 6), ("original", "own", 27)])
def test_goemotions_bad_lines_are_named(tmp_path, grouping, classes, last):
    folder = tmp_path / "goemotions" / grouping
    folder.mkdir(parents=True)
    for labels in (f"{last + 1}", "1,1", "joy", ""):
        (folder / "train.tsv").write_text(f"fine\t0,{last}\tx\ntext\t{labels}\tid\n")
        with pytest.raises(ValueError, match=rf"label: got '{labels}' in .*train\.tsv:2, expected .* 0 to {last}"):
            load_corpus("goemotions", tmp_path, classes)
    (folder / "train.tsv").write_text(f"fine\t0,{last}\tx\nno tabs\n")
    with pytest.raises(ValueError, match=r"columns: got 1 in .*train\.tsv:2"):
        load_corpus("goemotions", tmp_path, classes)
