"""XED, BRIGHTER, SMP2020-EWECT and CPED in their official layouts."""

import json
import logging

import pytest
from corpus_files import write_csv

from triemo.training.corpora.published_splits import split_by_hash
from triemo.training.corpora.registry import load_corpus

BRIGHTER = ["id", "text", "anger", "fear", "joy", "sadness", "surprise"]


def write_lines(path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")


def sentence_in(split: str, start: str = "line") -> str:
    """A sentence that the hash deals to a split."""
    return next(text for text in (f"{start} {number}" for number in range(1000)) if split_by_hash(text) == split)


def write_xed(root, more: tuple[str, ...] = ()) -> None:
    lines = [f"{sentence_in(split)}\t1, 8" for split in ("train", "validation", "test")]
    write_lines(root / "xed" / "en-annotated.tsv", [*lines, *more])
    write_lines(root / "xed" / "neu_en.txt", ["9\tTwo pairs."])
    write_lines(root / "xed" / "zh-projections.tsv", ["我很高興\t5", "da/a.gz\tzh/b.gz\t1\t2\tOkay.\t好"])


def test_xed_labels_and_languages(tmp_path, caplog):
    write_xed(tmp_path, (f"{sentence_in('train', 'only trust')}\t8",))
    data = load_corpus("xed", tmp_path)
    rows = {row["text"]: (row["label"], row["language"]) for split in data.values() for row in split}
    assert rows[sentence_in("test")] == (["anger"], "en")  # trust has no counterpart
    assert rows["Two pairs."] == (["neutral"], "en") and rows["我很高興"] == (["joy"], "zh")
    assert sentence_in("train", "only trust") not in rows and "好" not in rows
    assert "1 lines of zh-projections.tsv have no label" in caplog.text
    own = load_corpus("xed", tmp_path, classes="own")
    assert [row["label"] for row in own["validation"] if row["text"] == sentence_in("validation")] == [
        ["anger", "trust"]
    ]


def test_xed_same_sentence_in_one_split(tmp_path):
    repeated = sentence_in("test")
    write_xed(tmp_path, (f"{repeated}\t6",))
    data = load_corpus("xed", tmp_path, languages=["en"])
    assert [row["label"] for row in data["test"] if row["text"] == repeated] == [["anger"], ["sadness"]]
    assert not any(repeated in data[split]["text"] for split in ("train", "validation"))


def test_xed_names_the_line(tmp_path):
    write_xed(tmp_path, ("What?\t12",))
    with pytest.raises(ValueError, match=r"label: got '12' in .*en-annotated.tsv:4, expected 1 to 9"):
        load_corpus("xed", tmp_path)
    with pytest.raises(ValueError, match=r"languages: got \['fi'\], expected some of \['en', 'zh'\]"):
        load_corpus("xed", tmp_path, languages=["fi"])


def write_brighter(root, test_labels: bool = True) -> None:
    for part in ("train", "dev", "test"):
        marks = [["1", "0", "0", "1", "0"], ["0"] * 5]
        if part == "test" and not test_labels:
            marks = [[""] * 5] * 2
        texts = [sentence_in("train"), sentence_in("test")] if part == "train" else [f"{part} a", f"{part} b"]
        rows = [[f"{part}_{n}", text, *mark] for n, (text, mark) in enumerate(zip(texts, marks, strict=True))]
        write_csv(root / "brighter" / "track_a" / part / "eng.csv", BRIGHTER, rows)


def test_brighter_official_splits(tmp_path):
    write_brighter(tmp_path)
    data = load_corpus("brighter", tmp_path, languages=["eng"])
    assert data["validation"]["text"][:] == ["dev a", "dev b"] and data["test"]["text"][:] == ["test a", "test b"]
    assert data["test"]["label"][:] == [["anger", "sadness"], ["neutral"]]


def test_brighter_test_without_labels(tmp_path, caplog):
    """The development file is scored, and is then no longer what one selects on."""
    write_brighter(tmp_path, test_labels=False)
    data = load_corpus("brighter", tmp_path, languages=["eng"])
    assert {split: rows["text"][:] for split, rows in data.items()} == {
        "train": [sentence_in("train")],
        "validation": [sentence_in("test")],
        "test": ["dev a", "dev b"],
    }
    assert "the test of eng has no labels" in caplog.text


def test_brighter_names_the_row(tmp_path):
    write_brighter(tmp_path)
    write_csv(tmp_path / "brighter" / "track_a" / "dev" / "eng.csv", BRIGHTER, [["x", "a", "2", "0", "0", "0", "0"]])
    with pytest.raises(ValueError, match=r"label: got '2' for anger in .*eng.csv:2, expected 0 or 1"):
        load_corpus("brighter", tmp_path, languages=["eng"])


def write_smp(root, label: str = "neural") -> None:
    for part in ("train", "eval_labeled", "test_labeled"):
        posts = [{"id": 1, "content": " 好 ", "label": label}, {"id": 2, "content": " ", "label": "sad"}]
        write_lines(root / "smp2020_ewect" / f"usual_{part}.txt", [json.dumps(posts)])


def test_smp2020(tmp_path, caplog):
    """Both spellings of neutral; posts without words are left out and counted."""
    for label in ("neural", "neutral"):
        write_smp(tmp_path, label)
        with caplog.at_level(logging.WARNING):
            data = load_corpus("smp2020", tmp_path, topics=["usual"])
        assert data["test"][0]["text"] == "好" and data["test"]["label"][:] == ["neutral"]
    assert "1 posts of usual_train.txt have no words" in caplog.text
    write_smp(tmp_path, "joy")
    with pytest.raises(ValueError, match=r"label: got 'joy' in post 0 of .*usual_train.txt"):
        load_corpus("smp2020", tmp_path, topics=["usual"])


CPED = "TV_ID,Dialogue_ID,Utterance_ID,Speaker,Gender,Age,Scene,Sentiment,Emotion,Utterance".split(",")


def write_cped(root, *files: str) -> None:
    for file in files:
        dialogues = [sentence_in("train", file), sentence_in("validation", file)]
        rows = [
            ["32", dialogue, f"32_000_{turn:03}", "于春晓", "female", "young", "car", "negative", emotion, "怎么了"]
            for dialogue in dialogues
            for turn, emotion in enumerate(("astonished", "negative-other"))
        ]
        write_csv(root / "cped" / f"{file}_split.csv", CPED, rows, "utf-8-sig")


def test_cped_without_its_training_file(tmp_path, caplog):
    """The validation file is trained on, whole dialogues of it are held out, and it says so."""
    write_cped(tmp_path, "valid", "test")
    data = load_corpus("cped", tmp_path)
    for split in ("train", "validation"):
        assert set(data[split]["dialogue"]) == {sentence_in(split, "valid")}
    assert data["test"]["label"][:] == ["surprise", "surprise"]  # negative-other is none of the seven
    whole = load_corpus("cped", tmp_path, keep_unlabelled=True)["test"]
    assert whole["label"][:] == ["surprise", None] * 2 and whole["dialogue"][0] == whole["dialogue"][1]
    assert data["test"][0]["speaker"] == "32/于春晓" and data["test"][0]["utterance"] == 0
    assert "no train_split.csv" in caplog.text
    assert load_corpus("cped", tmp_path, classes="own")["test"]["label"][:2] == ["astonished", "negative-other"]


def test_cped_official_splits(tmp_path):
    write_cped(tmp_path, "train", "valid", "test")
    data = load_corpus("cped", tmp_path)
    assert all(len(set(split["dialogue"])) == 2 for split in data.values())


def test_whole_corpora(data_root):
    """Numbers of rows as the files have them."""
    counts = {
        name: {split: len(rows) for split, rows in load_corpus(name, data_root, classes="own", **options).items()}
        for name, options in {"smp2020": {}, "cped": {}, "brighter": {"languages": ["chn"]}, "xed": {}}.items()
    }
    assert counts["smp2020"] == {"train": 27766 + 8606, "validation": 4000, "test": 8000}
    assert counts["cped"]["test"] == 27438 and counts["cped"]["train"] + counts["cped"]["validation"] == 11137
    assert counts["brighter"] == {"train": 2642, "validation": 200, "test": 2642}
    assert sum(counts["xed"].values()) == 17528 + 9674 + 645
