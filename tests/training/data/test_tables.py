"""Tables of one's own: files written here in every accepted form, read map-style and as a stream."""

import json
import re
import wave
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from triemo.training.data.shards import RowReading
from triemo.training.data.streaming import open_streams
from triemo.training.data.tables import load_table
from triemo.training.sources import parse_column_map


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_lines(path: Path, *rows: dict) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_wav(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(b"\0\0" * 160)
    return path


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """Forty rows of eight speakers, five each; a sound for the first ten."""
    lines = ["text,audio,label,speaker,age"]
    for number in range(40):
        sound = f"sounds/{number}.wav" if number < 10 else ""
        if sound:
            write_wav(tmp_path / sound)
        lines.append(f'"line {number}",{sound},{"joy" if number % 2 else "anger"},s{number // 5},0{number}')
    return write(tmp_path / "calls.csv", "\n".join(lines) + "\n")


def load(path: Path, streaming: bool, validation_share: float = 0.1, **options) -> dict[str, list[dict]]:
    """Rows of each split; a stream's without their ticket."""
    if not streaming:
        return {
            split: list(rows) for split, rows in load_table(path, validation_share=validation_share, **options).items()
        }
    streams = open_streams(path, RowReading(**options), validation_share=validation_share)
    rows = {split: list(stream.rows()) for split, stream in streams.items()}
    return {split: [{k: v for k, v in row.items() if k != "ticket"} for row in found] for split, found in rows.items()}


@pytest.mark.parametrize("streaming", [False, True])
def test_one_csv_without_splits(calls, streaming):
    """Media become absolute, cells stay text, speakers stay together, and nothing is lost or doubled."""
    data = load(calls, streaming, validation_share=0.3)
    assert set(data) == {"train", "validation"}
    train, validation = data["train"], data["validation"]
    everything = {row["text"]: row for row in [*train, *validation]}
    assert len(train) + len(validation) == len(everything) == 40
    assert validation and not {row["speaker"] for row in train} & {row["speaker"] for row in validation}
    row = everything["line 7"]
    assert row["audio"] == {"bytes": None, "path": str(calls.parent / "sounds" / "7.wav")}
    assert (row["label"], row["speaker"], row["age"], row["row"]) == ("joy", "s1", "07", f"{calls}:9")
    assert everything["line 20"]["audio"] is None


def test_validation_share_and_seed(calls):
    """4 of 40 rows are asked for, 5 (one speaker) taken; the same seed takes the same, some other seed another."""
    speakers = [set(load_table(calls, seed=seed)["validation"]["speaker"]) for seed in (0, 0, 1, 2, 3)]
    assert all(len(found) == 1 for found in speakers)
    assert speakers[0] == speakers[1] and any(found != speakers[0] for found in speakers)
    assert set(load_table(calls, validation_share=0)) == {"train"}


def test_split_asked_for(calls):
    """A single file is whole; a folder's train is without the rows that validation gets."""
    assert len(load_table(calls, split="test")["test"]) == 40
    folder = calls.parent / "folder"
    write(folder / "train.csv", calls.read_text())
    train = load_table(folder, split="train", root=calls.parent)["train"]
    validation = load_table(folder, split="dev", root=calls.parent)["validation"]
    assert len(train) == 35 and len(validation) == 5
    assert not set(train["text"]) & set(validation["text"])
    with pytest.raises(ValueError, match="split: got 'test', but .*has only"):
        load_table(folder, split="test", root=calls.parent)
    with pytest.raises(ValueError, match="split: got 'tst'"):
        load_table(folder, split="tst")


@pytest.mark.parametrize("streaming", [False, True])
def test_column_split_and_aliases(tmp_path, streaming):
    path = write(tmp_path / "a.tsv", "text\tlabel\tsplit\na\tjoy\ttrain\nb\tfear\tdev\nc\tjoy\tTest\nNA\tjoy\ttrain\n")
    data = load(path, streaming)
    assert [row["text"] for row in data["train"]] == ["a", "NA"]
    assert [row["row"] for row in data["validation"]] == [f"{path}:3"] and [row["text"] for row in data["test"]] == [
        "c"
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_unknown_split_is_named(tmp_path, suffix, streaming):
    path = write(tmp_path / "a.csv", "text,label,split\na,joy,train\nb,joy,holdout\n")
    if suffix == "parquet":
        pd.read_csv(path).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=rf"split: got 'holdout' in .*a\.{suffix}:{3 if suffix == 'csv' else 2}"):
        load(tmp_path / f"a.{suffix}", streaming)


def test_folder_of_jsonl_and_parquet(tmp_path):
    """One file a split, of any format; several labels; vectors as lists, one list being one step."""
    write_lines(tmp_path / "train.jsonl", {"text_features": [1, 2], "label": ["joy", "fear"], "speaker": 7})
    write_lines(tmp_path / "valid.jsonl", {"text_features": [[1.0, 2.0], [3.0, 4.0]], "label": ["joy"], "speaker": 8})
    features = Features(
        {"image": Image(decode=False), "label": List(ClassLabel(names=["joy", "fear"])), "speaker": Value("int64")}
    )
    table = {"image": [{"bytes": b"jpeg", "path": None}], "label": [[1]], "speaker": [9]}
    Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "test-00000-of-00001.parquet"))
    data = load_table(tmp_path)
    assert data["train"][0]["text_features"] == [[1.0, 2.0]]
    assert data["train"][0]["label"] == ["joy", "fear"] and data["train"][0]["speaker"] == "7"
    assert data["validation"][0]["text_features"] == [[1.0, 2.0], [3.0, 4.0]]
    assert data["test"][0]["image"]["bytes"] == b"jpeg"
    assert data["test"][0]["label"] == ["fear"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("column", "cells", "expected"),
    [
        ("label", ["1", "0", "2"], ["1", "0", "2"]),
        ("label", ["1", "-0.5", "2"], [1.0, -0.5, 2.0]),
        ("label", ["joy", "1", "2.5"], ["joy", "1", "2.5"]),
        ("labels", ["joy|fear", "joy", "anger | joy"], [["joy", "fear"], ["joy"], ["anger", "joy"]]),
    ],
)
def test_kinds_of_labels(tmp_path, column, cells, expected, streaming):
    path = write(tmp_path / "a.csv", f"text,{column}\n" + "".join(f"t,{cell}\n" for cell in cells))
    data = load(path, streaming, validation_share=0)
    assert [row["label"] for row in data["train"]] == expected
    assert "labels" not in data["train"][0]


def test_vectors_from_npy(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    data = load_table(write(tmp_path / "a.csv", "audio_features,label\na.npy,joy\n"), split="train")
    assert data["train"][0]["audio_features"] == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"audio_features in .*b\.csv:2: cannot read"):
        load_table(write(tmp_path / "b.csv", "audio_features,label\nb.npy,joy\n"))


def test_column_map(tmp_path):
    path = write(tmp_path / "a.csv", "Utterance,Emotion,text\nhello,joy,other\n")
    columns = {"text": "Utterance", "label": "Emotion"}
    row = load_table(path, split="train", column_map=columns)["train"][0]
    assert (row["text"], row["label"]) == ("hello", "joy")
    with pytest.raises(ValueError, match="column_map: got 'Sentence' for 'text', expected one of"):
        load_table(path, column_map={"text": "Sentence"})


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,joy\nb,\n", r"label: got none in .*a\.csv:3"),
        ('text,label\n"a\nb",joy\n,fear\n', r"row: got no input in .*a\.csv:[34]"),
        ("text,mood\na,joy\n", r"columns: got \['text', 'mood'\].*expected `label`"),
        ("words,label\na,joy\n", "columns: got .*expected one of .*text"),
        ("text,label\n", "table: got no row in .*a.csv"),
        ("text,text\na,b\n", "header: got"),
        ("text,label\na,1.5\nb,2\nc,joy\n", None),
    ],
)
def test_errors_name_the_row(tmp_path, content, message, streaming):
    path = write(tmp_path / "a.csv", content)
    if message is None:  # one word makes the numbers names
        assert [row["label"] for row in load_table(path, split="train")["train"]] == ["1.5", "2", "joy"]
        return
    with pytest.raises(ValueError, match=message):
        load(path, streaming, validation_share=0)


def test_lines_are_counted_through_line_breaks(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"a\nb",joy\n\nc,joy\nd,joy\n')
    assert load_table(path, split="train")["train"]["row"][:] == [f"{path}:{line}" for line in (2, 5, 6)]


def test_missing_media_are_counted_or_refused(tmp_path, caplog):
    write_wav(tmp_path / "a.wav")
    path = write(tmp_path / "a.csv", "audio,label\na.wav,joy\nb.wav,joy\nhttps://x.org/c.wav,joy\n")
    data = load_table(path, split="train", outside_files=True)
    assert [row["audio"]["path"].split("/")[-1] for row in data["train"]] == ["a.wav", "b.wav", "c.wav"]
    assert f"audio: 1 of 3 rows name a file that is not there, as {tmp_path}/b.wav ({path}:3)" in caplog.text
    with pytest.raises(ValueError, match="audio: none of 2 files is there"):
        load_table(write(tmp_path / "b.csv", "audio,label\nx.wav,joy\ny.wav,joy\n"))
    assert load_table(path, split="train", root=tmp_path, outside_files=True)["train"][0]["audio"]["path"] == str(
        tmp_path / "a.wav"
    )


def test_speaker_in_two_splits_is_refused(tmp_path):
    write(tmp_path / "train.csv", "text,label,speaker\na,joy,ann\nb,joy,bob\n")
    write(tmp_path / "test.csv", "text,label,speaker\nc,joy,bob\n")
    with pytest.raises(ValueError, match=r"speaker 'bob'.*train\.csv:3.*test\.csv:2"):
        load_table(tmp_path)
    assert len(load_table(tmp_path, disjoint=())["test"]) == 1


def test_what_is_no_table(tmp_path):
    with pytest.raises(ValueError, match="expected a file, a folder or the id"):
        load_table(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="no file here and not readable on the Hub"):
        load_table("nobody/nothing")
    with pytest.raises(ValueError, match="expected one, or train.csv"):
        load_table(tmp_path)
    with pytest.raises(ValueError, match="latin.csv is not utf-8; it looks like --encoding windows-1252"):
        (tmp_path / "latin.csv").write_bytes("text,label\ncaf\xe9,joy\n".encode("latin-1"))
        load_table(tmp_path / "latin.csv")


def test_unlabelled(tmp_path):
    path = write(tmp_path / "a.csv", "text\na\nb\n")
    assert load_table(path, split="train", labelled=False)["train"].column_names == ["row", "text"]


def test_stream_divides_the_same_for_any_number_of_workers(calls):
    """The division depends on what a row says, not on when it is read."""
    text = calls.read_text().replace("speaker", "who")
    path = write(calls.parent / "plain.csv", text)
    lines = text.splitlines()
    shuffled = write(calls.parent / "shuffled.csv", "\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    found = [{row["text"] for row in load(p, streaming=True)["validation"]} for p in (path, shuffled)]
    assert found[0] == found[1] and 0 < len(found[0]) < 20


# Tables people really have -----------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_an_index_that_pandas_wrote_is_no_column(tmp_path, streaming):
    """`DataFrame.to_csv` writes it without a name, and again as `Unnamed: 0` when it has read that."""
    frame = pd.DataFrame({"text": ["a", "b"], "label": ["joy", "fear"]})
    frame.to_csv(tmp_path / "a.csv")
    pd.read_csv(tmp_path / "a.csv").to_csv(tmp_path / "b.csv")
    for name in ("a.csv", "b.csv"):
        rows = load(tmp_path / name, streaming, validation_share=0)["train"]
        assert [{**row, "row": row["row"][-1]} for row in rows] == [
            {"text": "a", "label": "joy", "row": "2"},
            {"text": "b", "label": "fear", "row": "3"},
        ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_nan_na_none_and_empty_cells_are_absent(tmp_path, suffix, streaming):
    write_wav(tmp_path / "a.wav")
    frame = pd.DataFrame(
        {"text": ["a", "b", "c", None, " "], "audio": [pd.NA, np.nan, "", "a.wav", "a.wav"], "label": ["joy"] * 5}
    )
    frame["speaker"] = [np.nan, None, "", "x", pd.NA]
    path = tmp_path / f"t.{suffix}"
    {
        "csv": lambda: frame.to_csv(path, index=False),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(path),
    }[suffix]()
    rows = load(path, streaming, validation_share=0)["train"]
    assert [row["text"] for row in rows] == ["a", "b", "c", None, None]
    assert [row["audio"] is None for row in rows] == [True, True, True, False, False]
    assert [row["speaker"] for row in rows] == [None, None, None, "x", None]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_of_nothing_but_nan_is_absent(tmp_path, streaming):
    frame = pd.DataFrame({"text": ["a", "b"], "audio": [np.nan, np.nan], "label": ["joy", "joy"]})
    frame.to_parquet(tmp_path / "t.parquet")
    assert [row["audio"] for row in load(tmp_path / "t.parquet", streaming, 0)["train"]] == [None, None]
    path = write(tmp_path / "a.jsonl", '{"text": NaN, "audio_features": [[1]], "label": "joy"}\n')
    assert load(path, streaming, 0)["train"][0]["text"] is None


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_written_on_windows(tmp_path, streaming):
    write_wav(tmp_path / "clips" / "0.wav")
    path = write(tmp_path / "a.csv", "audio,label\nclips\\0.wav,joy\n")
    row = load(path, streaming, 0)["train"][0]
    assert row["audio"]["path"] == str(tmp_path / "clips" / "0.wav")


@pytest.mark.parametrize("streaming", [False, True])
def test_spellings_of_a_class_are_merged_and_said(tmp_path, streaming, caplog):
    path = write(tmp_path / "a.csv", "text,label\na,joy\nb,JOY\nc, joy \nd,Fear\n")
    assert [row["label"] for row in load(path, streaming, 0)["train"]] == ["joy", "joy", "joy", "Fear"]
    assert "spells classes in several ways, which are read as one: 'JOY' (1 rows) as 'joy'" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_commas_in_labels_divide_them_and_that_is_said(tmp_path, streaming, caplog):
    path = write(tmp_path / "a.csv", 'text,labels\na,"joy,surprise"\nb,joy\nc,"JOY, joy"\n')
    labels = [row["label"] for row in load(path, streaming, 0)["train"]]
    assert labels == [["joy", "surprise"], ["joy"], ["joy"]]
    assert "labels: 2 cells of" in caplog.text and "split at ','" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("header", "advice"),
    [
        ("Text,label", '--column_map "text=Text"'),
        ("Utterance,Emotion", '--column_map "text=Utterance,label=Emotion"'),
        ("utterance,Emotion,Speaker", '--column_map "text=utterance,label=Emotion,speaker=Speaker"'),
        ("wav_path,sentiment", '--column_map "audio=wav_path,label=sentiment"'),
        ("a,b", "see --column_map"),
    ],
)
def test_columns_under_other_names_bring_the_map_that_may_be_meant(tmp_path, header, advice, streaming):
    path = write(tmp_path / "a.csv", f"{header}\n" + ",".join(["x"] * len(header.split(","))) + "\n")
    with pytest.raises(ValueError, match=r"columns: got .* in .*a\.csv") as error:
        load(path, streaming, 0)
    assert advice in str(error.value)
    if "may be meant" in str(error.value):
        given = re.search('--column_map "(.*)"', str(error.value))[1]
        if "text=" in given:
            row = load(path, streaming, 0, column_map=parse_column_map(given))["train"][0]
            assert (row["text"], row["label"]) == ("x", "x")


@pytest.mark.parametrize("streaming", [False, True])
def test_spaces_around_names_of_columns(tmp_path, streaming):
    """In a csv they mean nothing; elsewhere the map that is offered has them."""
    path = write(tmp_path / "a.csv", "text, label\na,joy\n")
    assert load(path, streaming, 0)["train"][0]["label"] == "joy"
    path = write_lines(tmp_path / "a.jsonl", {"text": "a", " label": "joy"})
    with pytest.raises(ValueError, match='--column_map "label= label" may be meant'):
        load(path, streaming, 0)
    row = load(path, streaming, 0, column_map=parse_column_map("label= label"))["train"][0]
    assert row["label"] == "joy"
    with pytest.raises(ValueError, match="column_map: got 'words' for 'text'"):
        load(path, streaming, 0, column_map={"text": "words", "label": " label"})


def test_a_column_split_in_capitals_is_not_passed_over_without_a_word(tmp_path, caplog):
    path = write(tmp_path / "a.csv", "text,label,Split,Speaker\na,joy,train,x\nb,joy,test,y\n")
    load_table(path)
    assert 'others that may be meant: --column_map "split=Split,speaker=Speaker"' in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("encoding", "guess"), [("utf-16", "utf-16"), ("utf-16-le", "utf-16"), ("windows-1252", "windows-1252")]
)
def test_other_encodings_are_named_and_taken_when_given(tmp_path, encoding, guess, suffix, streaming):
    text = 'text,label\n"caf\xe9 \u2019",joy\n' if suffix == "csv" else '{"text": "caf\xe9 \u2019", "label": "joy"}\n'
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=rf"encoding: .*a\.{suffix} is not utf-8; it looks like --encoding {guess}"):
        load(path, streaming, 0)
    assert load(path, streaming, 0, encoding=encoding)["train"][0]["text"] == "caf\xe9 \u2019"
    with pytest.raises(ValueError, match="encoding: got 'klingon', expected one such as utf-8"):
        load(path, streaming, 0, encoding="klingon")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "cell", ["/etc/hostname", "../secret.wav", "a/../../secret.wav", "http://x.org/a.wav", "~/a.wav"]
)
@pytest.mark.parametrize("column", ["audio", "audio_features"])
def test_files_outside_the_folder_are_read_only_when_asked(tmp_path, column, cell, streaming):
    write_wav(tmp_path / "secret.wav")
    (tmp_path / "table" / "a").mkdir(parents=True)
    path = write(tmp_path / "table" / "a.csv", f"text,{column},label\nhello,{cell},joy\n")
    with pytest.raises(
        ValueError, match=rf"{column} in .*a\.csv:2: got '{re.escape(cell)}', a .*--outside_files true"
    ):
        load(path, streaming, 0)
    if column == "audio" and cell != "~/a.wav":
        try:
            row = load(path, streaming, 0, outside_files=True)["train"][0]
        except ValueError as error:  # every file of the column is missing
            assert "files is there" in str(error) and "secret" not in cell
        else:
            assert row["audio"]["path"].endswith(cell.rsplit("/", 1)[-1])


@pytest.mark.parametrize("streaming", [False, True])
def test_absolute_paths_and_links_inside_the_folder_are_its_owners(tmp_path, streaming):
    write_wav(tmp_path / "elsewhere" / "b.wav")
    write_wav(tmp_path / "table" / "a.wav")
    (tmp_path / "table" / "linked").symlink_to(tmp_path / "elsewhere")
    path = write(tmp_path / "table" / "a.csv", f"audio,label\n{tmp_path}/table/a.wav,joy\nlinked/b.wav,joy\n")
    names = [Path(row["audio"]["path"]).name for row in load(path, streaming, 0)["train"]]
    assert names == ["a.wav", "b.wav"]


@pytest.mark.parametrize("streaming", [False, True])
def test_text_with_unquoted_separators_is_named(tmp_path, streaming):
    """A row of more cells than columns has lost its order; one of fewer lacks the last."""
    with pytest.raises(ValueError, match=r"row: got 3 cells in .*a\.csv:3, expected 2; quote text"):
        load(write(tmp_path / "a.csv", "text,label\na,joy\nhello, you,joy\n"), streaming, 0)
    with pytest.raises(ValueError, match=r"label: got none in .*b\.csv:2"):
        load(write(tmp_path / "b.csv", "text,label\nhello\n"), streaming, 0)


def test_cells_of_any_length_are_read(tmp_path):
    path = write(tmp_path / "a.csv", f"text,label\n{'x' * 200_000},joy\n")
    assert len(load_table(path, split="train")["train"][0]["text"]) == 200_000
