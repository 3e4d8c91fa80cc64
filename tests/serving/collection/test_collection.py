"""Whole collections: each clip once, whatever stops a reading and however many workers share it."""

import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from media_files import write_sound
from two_processes import run_two_processes
from typer.testing import CliRunner

from triemo.serving.cli import app
from triemo.serving.collection.clips import Collection, open_collection
from triemo.serving.collection.reading import RECORD, ReadCollection, Share, launched_share, read_collection
from triemo.serving.collection.summary import write_summary

COUNT = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine sounds of 0.4 s in two folders, with words beside one of them; the fifth is no sound at all."""
    root = tmp_path_factory.mktemp("calls")
    for number in range(COUNT):
        file = root / "ab"[number % 2] / f"{number:02d}.wav"
        file.parent.mkdir(exist_ok=True)
        tone = 0.3 * np.sin(np.arange(6400) * (0.05 + 0.02 * number)).astype(np.float32)
        write_sound(file, tone[None], 16000)
    (root / "a" / "04.wav").write_text("no sound at all")
    (root / "b" / "01.txt").write_text("oh wow, so happy")
    return root


@pytest.fixture(scope="module")
def collection(folder: Path) -> Collection:
    return open_collection(folder)


@pytest.fixture(scope="module")
def whole(reader: Any, collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a reading that nothing disturbed."""
    return read(reader, collection, tmp_path_factory.mktemp("whole")).table.parent


def read(reader: Any, collection: Collection, output: Path, **settings: Any) -> ReadCollection:
    return read_collection(reader, collection, output, **{"clips_per_part": 2, "batch_size": 2, **settings})


def rows_of(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / "table.parquet").to_pylist()


def test_every_clip_has_the_pipelines_answer_or_the_reason(reader, folder, whole):
    rows = rows_of(whole)
    assert [row["number"] for row in rows] == list(range(COUNT))
    assert [row["clip"] for row in rows] == sorted(f"{'ab'[n % 2]}/{n:02d}.wav" for n in range(COUNT))
    for row in rows:
        assert row["folder"] == row["clip"][0]
        if row["clip"] == "a/04.wav":
            assert row["label"] is None and row["score_joy"] is None and row["uncertain"] is None
            assert "04.wav" in row["problem"]
            continue
        given = {"audio": str(folder / row["clip"])}
        if row["clip"] == "b/01.wav":
            given["text"] = "oh wow, so happy"
        answer = reader(given)
        assert (row["label"], row["score"]) == (answer[0]["label"], pytest.approx(answer[0]["score"], abs=1e-5))
        assert {f"score_{e['label']}": pytest.approx(e["score"], abs=1e-5) for e in answer}.items() <= row.items()
        assert row["modalities"] == (["text", "audio"] if "text" in given else ["audio"])
        assert row["problem"] is None and row["uncertain"] is False


def test_stopped_anywhere_and_started_again_it_is_the_same_table(reader, collection, whole, tmp_path):
    """It is stopped after each clip in turn; what is whole is not read again."""
    read_clips: list[int] = []

    def stop_after(clips: int):
        before = len(read_clips)

        def progress(done: int, total: int) -> None:
            assert total == COUNT
            read_clips.append(done)
            if len(read_clips) - before == clips:
                raise KeyboardInterrupt

        return progress

    for clips in range(1, COUNT):
        with pytest.raises(KeyboardInterrupt):
            read(reader, collection, tmp_path, progress=stop_after(clips))
        assert not (tmp_path / "table.parquet").exists()
        if len(list((tmp_path / "parts").iterdir())) >= 3:
            break
    # As a kill in the middle of writing leaves it.
    (tmp_path / "parts" / ".part-00003.parquet.5f").write_bytes(b"PAR1 and no more")
    names = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "parts").glob("part-*")}
    found = read(reader, collection, tmp_path)
    assert (found.clips, found.own, found.missing_parts) == (COUNT, COUNT, 0)
    assert pq.read_table(found.table).equals(pq.read_table(whole / "table.parquet"))
    assert {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in names} == names
    assert len(list((tmp_path / "parts").iterdir())) == 5


def test_killed_it_goes_on(reader, collection, whole, tmp_path):
    """By a signal that no process can catch, once the second part is there."""

    def slowly() -> None:
        torch.set_num_threads(1)
        read(reader, collection, tmp_path, progress=lambda done, total: time.sleep(0.1))

    child = multiprocessing.get_context("fork").Process(target=slowly)
    child.start()
    second = tmp_path / "parts" / "part-00001.parquet"
    until = time.monotonic() + 60
    while not second.exists() and child.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert second.exists() and not (tmp_path / "table.parquet").exists()
    assert pq.read_table(read(reader, collection, tmp_path).table).equals(pq.read_table(whole / "table.parquet"))


def test_shares_of_several_workers_are_the_whole(reader, collection, whole, tmp_path):
    first = read(reader, collection, tmp_path, share=Share(1, 2))
    assert (first.own, first.missing_parts, first.table) == (4, 3, None)
    second = read(reader, collection, tmp_path, share=Share(0, 2), workers=1)
    assert (second.own, second.missing_parts) == (5, 0)
    assert pq.read_table(second.table).equals(pq.read_table(whole / "table.parquet"))


def test_two_launched_processes_give_the_table_of_one(tiny_checkpoint, reader, collection, folder, tmp_path):
    command = ["-m", "triemo.serving.collection", folder, "--output", tmp_path / "two", "--model", tiny_checkpoint]
    printed = run_two_processes(*command, "--device", "cpu", "--clips-per-part", 2, "--batch-size", 2)
    assert f"8 of {COUNT} clips are read; 1 could not be" in printed
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the two has, for with more of them sums are rounded in another order
    try:
        one = read(reader, collection, tmp_path / "one", clips_per_part=2, batch_size=2)
    finally:
        torch.set_num_threads(threads)
    for row, expected in zip(rows_of(tmp_path / "two"), rows_of(one.table.parent), strict=True):
        scores = {name: value for name, value in expected.items() if isinstance(value, float)}
        # Which clips share a batch, and where they lie in memory, rounds sums in another order too.
        assert row == expected | {name: pytest.approx(value, abs=1e-5) for name, value in scores.items()}
    assert (tmp_path / "two" / "summary.html").is_file()


def test_shares_count_jobs_and_processes(monkeypatch):
    assert launched_share() == Share(0, 1) and launched_share(4, 3) == Share(3, 4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert [launched_share(3, shard) for shard in range(3)] == [Share(1, 6), Share(3, 6), Share(5, 6)]
    with pytest.raises(ValueError, match="shard: got 3 of num_shards 3, expected 0 to 2"):
        launched_share(3, 3)


def test_a_clip_that_kills_its_process_is_recorded(reader, collection, whole, tmp_path, monkeypatch):
    preprocess = reader.preprocess

    def fatal(input_: Any, **parameters: Any) -> Any:
        if str(input_.get("audio")).endswith("02.wav"):
            os._exit(7)
        return preprocess(input_, **parameters)

    monkeypatch.setattr(reader, "preprocess", fatal)
    rows = rows_of(read(reader, collection, tmp_path, workers=1, clips_per_part=COUNT).table.parent)
    assert [row["clip"] for row in rows if row["problem"]] == ["a/02.wav", "a/04.wav"]
    assert "the process that decoded it died" in rows[1]["problem"]
    for row, expected in zip(rows, rows_of(whole), strict=True):
        if row["clip"] != "a/02.wav":
            assert row["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_an_output_of_another_reading_is_not_mixed_up(reader, collection, folder, whole, tmp_path):
    read(reader, collection, tmp_path, options={"candidate_labels": ["joy", "fear"]})
    rows = rows_of(tmp_path)
    assert {row["label"] for row in rows} - {None} <= {"joy", "fear"}
    assert all(row["score_anger"] is None for row in rows)
    with pytest.raises(ValueError, match=r"another reading, which differs in options; .* --restart"):
        read(reader, collection, tmp_path)
    with pytest.raises(ValueError, match="differs in clips_per_part, options"):
        read(reader, collection, tmp_path, clips_per_part=3)
    assert pq.read_table(read(reader, collection, tmp_path, restart=True).table).equals(
        pq.read_table(whole / "table.parquet")
    )
    (tmp_path / RECORD).unlink()
    with pytest.raises(ValueError, match="has parts and no collection.json"):
        read(reader, collection, tmp_path)


def write_calls(folder: Path, root: Path) -> Path:
    table = root / "calls.csv"
    table.write_text(
        "audio,text,speaker,date,label\n"
        f"{folder / 'a' / '00.wav'},I am so happy,ann,2026-01-05,joy\n"
        ",oh wow,bob,2026-01-06,\n"
        "missing.wav,,ann,2026-02-01,\n"
        ",,bob,2026-02-02,\n"
        f"{folder / 'b' / '03.wav'},,ann,2026-02-03,anger\n"
    )
    return table


def test_a_table_with_speakers_and_dates(reader, folder, tmp_path):
    """Its own label is kept under another name; what is missing or empty is recorded by row."""
    table = write_calls(folder, tmp_path)
    outside = rows_of(read(reader, open_collection(table), tmp_path / "strict").table.parent)
    assert [bool(row["problem"]) for row in outside] == [True, False, True, True, True]
    assert "outside_files" in outside[0]["problem"]

    output = read(reader, open_collection(table, outside_files=True), tmp_path / "results").table.parent
    rows = rows_of(output)
    assert [row["problem"] is None for row in rows] == [True, True, False, False, True]
    assert [row["given_label"] for row in rows] == ["joy", None, None, None, "anger"]
    assert [row["clip"] for row in rows[1:4]] == ["calls.csv:3", "missing.wav", "calls.csv:5"]
    assert rows[0]["score"] == pytest.approx(
        reader({"audio": str(folder / "a" / "00.wav"), "text": "I am so happy"})[0]["score"], abs=1e-5
    )
    page = write_summary(output / "table.parquet", "calls.csv").read_text("utf-8")
    assert re.search(r"<td class=.number.>5</td><td class=.number.>3</td><td class=.number.>2</td>", page)
    by_speaker = page[page.index("By speaker") : page.index("Over time, by date")]
    assert re.findall(r"<tr><td>(\w+)</td><td class=.number.>(\d)</td>", by_speaker) == [("ann", "2"), ("bob", "1")]
    assert "2026-01-05 00:00" in page and "data:image/png" in page and "missing.wav" in page
    with pytest.raises(ValueError, match="group: got 'agent', expected one of number, clip"):
        write_summary(output / "table.parquet", "calls.csv", group="agent")


def test_a_dataset_of_the_hub(reader, monkeypatch, tmp_path, folder):
    sounds = [str(folder / "a" / "00.wav"), str(folder / "b" / "03.wav")]
    rows = datasets.Dataset.from_dict({"audio": sounds, "emotion": [1, 0]})
    rows = rows.cast_column("audio", datasets.Audio()).cast_column("emotion", datasets.ClassLabel(names=["no", "yes"]))
    hub = datasets.DatasetDict({"train": rows, "test": rows.select([1])})
    monkeypatch.setattr("triemo.training.data.tables.load_dataset", lambda name: hub)
    opened = open_collection("me/sounds", split="test", outside_files=True)
    (row,) = rows_of(read(reader, opened, tmp_path).table.parent)
    assert row["emotion"] == "no" and row["score"] == pytest.approx(reader(sounds[1])[0]["score"], abs=1e-5)
    assert len(open_collection("me/sounds")) == 3
    with pytest.raises(ValueError, match="split: got 'dev', and me/sounds has no row of it"):
        open_collection("me/sounds", split="dev")


def test_the_command_and_its_mistakes(tiny_checkpoint, reader, folder, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("triemo.serving.collection.command.load_reader", lambda model, device: reader)
    runner = CliRunner()

    def run(*arguments: Any) -> Any:
        return runner.invoke(app, ["read", *map(str, arguments)])

    shards = ["--clips-per-part", 2, "--batch-size", 2, "--workers", 0, "--num-shards", 2]
    first = run(folder, "--output", tmp_path, *shards, "--shard", 0)
    assert first.exit_code == 0 and "5 of 9 clips are read; 2 parts" in first.stdout
    second = run(folder, "--output", tmp_path, *shards, "--shard", 1)
    assert second.exit_code == 0, second.output
    assert "8 of 9 clips are read; 1 could not be" in second.stdout
    assert pq.read_table(tmp_path / "table.parquet").equals(pq.read_table(whole / "table.parquet"))
    for wrong, named in (
        ([tmp_path / "nowhere", "--output", tmp_path], "nowhere"),
        ([folder, "--output", tmp_path, "--shard", 3], "shard: got 3 of num_shards 1"),
        ([folder, "--output", tmp_path, "--candidate-labels", "glee"], "candidate_labels: got 'glee'"),
        ([folder, "--output", tmp_path, "--split", "test"], "has no splits"),
    ):
        result = run(*wrong)
        assert result.exit_code == 1 and named in result.stderr and len(result.stderr.splitlines()) == 1
