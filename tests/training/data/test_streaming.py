"""Order, resuming and skipping of streamed shards. Rows here are numbers in text files: nothing is decoded."""

import io
import itertools
import tarfile
import tracemalloc
from collections import Counter
from functools import partial

import pytest
from torch.utils.data import DataLoader

from triemo.training.data.shards import Position, RowReading, ShardReader, ShardRows
from triemo.training.data.streaming import EvaluationBatches, ShardBatches, StreamLoader, open_streams


def write_shards(folder, sizes, content=b""):
    """Rows "0", "1", ... over shards of these sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count()
    paths = []
    for index, size in enumerate(sizes):
        paths.append(str(folder / f"train-{index:05d}.tar"))
        with tarfile.open(paths[-1], "w") as archive:
            for _ in range(size):
                number = next(numbers)
                for suffix, value in (("txt", str(number).encode()), ("wav", content)):
                    info = tarfile.TarInfo(f"{number}.{suffix}")
                    info.size = len(value)
                    archive.addfile(info, io.BytesIO(value))
    return paths


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("numbers"), [5, 3, 7, 4, 6])


def texts(reader, position=None, count=None):
    rows = reader.rows(position or Position())
    return [row["text"] for row, _ in itertools.islice(rows, count)]


def one_pass(reader):
    """Rows of the first pass."""
    rows = itertools.takewhile(lambda item: item[1].epoch == 0, reader.rows(Position()))
    return [row["text"] for row, _ in rows]


@pytest.mark.parametrize("readers", [1, 2, 3, 5, 7, 12])
@pytest.mark.parametrize("buffer", [1, 4, 100])
def test_every_row_comes_once_a_pass_to_one_reader(paths, readers, buffer):
    """Also with more readers than shards, which then share the rows of one."""
    found = [one_pass(ShardReader(paths, reader, readers, buffer=buffer)) for reader in range(readers)]
    assert sorted(map(int, itertools.chain(*found))) == list(range(25))
    assert all(found)


@pytest.mark.parametrize(("buffer", "group"), [(1, None), (4, None), (100, None), (10, 2)])
def test_any_position_leads_to_the_rest_of_the_rows(paths, buffer, group):
    reader = partial(ShardReader, paths, 1, 2, seed=5, buffer=buffer, group=group)
    whole = list(itertools.islice(reader().rows(Position()), 60))
    tickets = [row["ticket"] for row, _ in whole]
    for taken in range(1, 40):
        rest = itertools.islice(reader().rows(whole[taken - 1][1]), 60 - taken)
        assert [row["ticket"] for row, _ in rest] == tickets[taken:]


def test_passes_differ_and_a_draw_has_one_ticket_whoever_reads_it(paths):
    alone = list(itertools.islice(ShardReader(paths, 0, 1, seed=1).rows(Position()), 50))
    first, second = ([row["text"] for row, _ in part] for part in (alone[:25], alone[25:]))
    assert first != second and sorted(first) == sorted(second) and first != sorted(first, key=int)
    assert len({row["ticket"] for row, _ in alone}) == 50
    tickets = {row["text"]: row["ticket"] for row, _ in alone[:25]}
    for reader in range(3):
        rows = ShardReader(paths, reader, 3, seed=9).rows(Position())
        for row, position in itertools.islice(rows, 8):
            assert position.epoch > 0 or row["ticket"] == tickets[row["text"]]
    assert (
        texts(ShardReader(paths, 0, 1, seed=1), count=25) == first != texts(ShardReader(paths, 0, 1, seed=2), count=25)
    )


def test_shuffling_mixes_over_shards_and_length_groups_sort_nearby(paths):
    order = texts(ShardReader(paths, 0, 1, buffer=25), count=25)
    assert len({int(text) // 5 for text in order[:5]}) > 2
    costs = [len(text) for text in texts(ShardReader(paths, 0, 1, buffer=25, group=5), count=25)]
    assert sum(len(set(costs[start : start + 5])) for start in range(0, 25, 5)) < 10


def loader(paths, workers=0, prepare=None, share=0.01, batch_size=3, **options):
    batches = ShardBatches(
        partial(ShardReader, paths, seed=3, buffer=4, **options),
        prepare or as_number,
        list,
        batch_size,
        share,
    )
    return StreamLoader(batches, workers)


def as_number(row):
    return int(row["text"])


def but_not_seven(row):
    if row["text"] == "7":
        raise ValueError("it is seven")
    return int(row["text"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_after_the_batches_that_were_taken(paths, workers):
    """Whatever its workers had prepared beyond them; the next turn is that of the worker that had it."""
    whole = list(itertools.islice(loader(paths, workers, but_not_seven, 0.2), 20))
    assert 7 not in itertools.chain(*whole) and all(len(batch) == 3 for batch in whole)
    first = loader(paths, workers, but_not_seven, 0.2)
    assert list(itertools.islice(first, 7)) == whole[:7]
    state = first.state_dict()
    second = loader(paths, workers, but_not_seven, 0.2)
    second.load_state_dict(state)
    assert second.broken == first.broken
    assert list(itertools.islice(second, 13)) == whole[7:]


def test_a_loader_of_another_layout_is_refused(paths):
    state = loader(paths, 2).state_dict()
    with pytest.raises(ValueError, match="began with workers 2, got 0"):
        loader(paths, 0).load_state_dict(state)
    with pytest.raises(ValueError, match="began with batch_size 3, got 4"):
        loader(paths, 2, batch_size=4).load_state_dict(state)


def test_broken_rows_are_counted_and_too_many_are_an_error(paths, caplog):
    stream = loader(paths, prepare=but_not_seven, share=0.1)
    for _ in itertools.islice(stream, 32):  # 96 rows and 4 passes
        pass
    assert stream.broken == 4 and "skipped" in caplog.text and ":7 (it is seven)" in caplog.text
    with pytest.raises(ValueError, match=r"got 2 broken of \d+ rows seen, more than the share 0.03; first .*:7, .*:7"):
        for _ in itertools.islice(loader(paths, prepare=but_not_seven, share=0.03), 40):
            pass
    with pytest.raises(ValueError, match="got 1 broken"):
        next(itertools.islice(loader(paths, prepare=but_not_seven, share=0.0), 9, None))


def test_a_shard_cut_short_counts_once_a_pass_also_after_a_resume(tmp_path):
    paths = write_shards(tmp_path, [5, 5], content=b"x" * 600)
    whole = (tmp_path / "train-00001.tar").read_bytes()
    (tmp_path / "train-00001.tar").write_bytes(whole[: 5 * 1024 + 700])  # rows 5 and 6 and a part of 7
    stream = loader(paths, share=0.5, batch_size=1)
    taken = list(itertools.islice(stream, 14))  # two passes
    assert Counter(itertools.chain(*taken)) == dict.fromkeys([0, 1, 2, 3, 4, 5, 6], 2)
    again = loader(paths, share=0.5, batch_size=1)
    again.load_state_dict(stream.state_dict())
    rest, resumed = (list(itertools.islice(one, 7)) for one in (stream_after(paths, 14), again))
    assert rest == resumed
    assert again.broken == stream_broken(paths, 21)


def stream_after(paths, taken):
    return itertools.islice(loader(paths, share=0.5, batch_size=1), taken, None)


def stream_broken(paths, taken):
    stream = loader(paths, share=0.5, batch_size=1)
    for _ in itertools.islice(stream, taken):
        pass
    return stream.broken


def test_shards_without_rows_end_in_an_error(tmp_path):
    paths = write_shards(tmp_path, [0, 0])
    with pytest.raises(ValueError, match="got no row in .* passes"):
        texts(ShardReader(paths, 0, 1), count=1)
    with pytest.raises(ValueError, match="got no row in"):
        open_streams(tmp_path, RowReading(), labelled=False)


def test_a_stream_must_have_an_input_and_where_asked_a_label(paths):
    folder = paths[0].rsplit("/", 1)[0]
    assert open_streams(folder, RowReading(), labelled=False)["train"].paths == paths
    with pytest.raises(ValueError, match=r"columns: got \['text', 'audio'\] in .*expected `label` or `labels`"):
        open_streams(folder, RowReading())


def test_validation_rows_come_in_order_and_end(paths):
    rows = list(ShardRows(paths, limit=7))
    assert [row["text"] for row in rows] == [str(number) for number in range(7)]
    assert [row["ticket"] for row in rows] == list(range(7)) and len(list(ShardRows(paths))) == 25


def test_memory_of_a_long_pass_is_that_of_a_short_one(tmp_path):
    """Rows of 200 kB: forty passes hold no more than two, and that is a buffer and a little more."""
    paths = write_shards(tmp_path, [10] * 4, content=b"x" * 200_000)
    peaks = []
    for passes in (2, 40):
        tracemalloc.start()
        for _ in itertools.islice(loader(paths), passes * 40 // 3):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 1.1 * peaks[0] and peaks[1] < 7 * 200_000


# Evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["table", "stream"])
def test_evaluation_batches_are_those_of_one_process(paths, kind, processes, workers):
    """Each comes once, to one process; all processes get as many, the first again where there are none left."""
    rows = ShardRows(paths, limit=9) if kind == "stream" else [{"text": str(number)} for number in range(9)]
    found = []
    for process in range(processes):
        batches = EvaluationBatches(rows, texts_of, 2, process, processes)
        found.append(list(DataLoader(batches, batch_size=None, num_workers=workers)))
    assert len({len(batches) for batches in found}) == 1 and len(found[0]) == -(-5 // processes)
    items = [item for batches in found for item in batches]
    assert all(item["batch"] == ["0", "1"] and item["rows"] == 0 for item in items if item["number"] < 0)
    counted = sorted((item for item in items if item["number"] >= 0), key=lambda item: item["number"])
    assert [item["batch"] for item in counted] == [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"], ["8"]]
    assert [item["rows"] for item in counted] == [2, 2, 2, 2, 1]


def texts_of(rows):
    return [row["text"] for row in rows]


def test_a_wrong_label_ends_a_stream_that_passes_over_broken_media(paths):
    def check(row):
        if row["text"] == "7":
            raise ValueError("label: got 'glee'")

    batches = ShardBatches(
        partial(ShardReader, paths, buffer=1), as_number, list, 3, max_broken_share=0.9, check=check
    )
    with pytest.raises(ValueError, match="got 'glee'"):
        list(itertools.islice(batches, 9))


def test_a_column_split_divides_a_table_and_tar_files_are_not_read_for_it(tmp_path, monkeypatch):
    """What says that a split is not there stands at the end; of tar files that would be the whole corpus."""
    table = tmp_path / "t.csv"
    table.write_text("text,label,Part\n" + "a,joy,train\n" * 200 + "b,joy,test\n", encoding="utf-8")
    streams = open_streams(table, RowReading(column_map={"split": "Part"}))
    assert [len(list(streams[name].rows())) for name in ("train", "test")] == [200, 1] and set(streams) == {
        "train",
        "test",
    }
    paths = write_shards(tmp_path / "shards", [3, 200])
    monkeypatch.setattr(RowReading, "cells", only_first(RowReading.cells, paths[0]))
    assert set(open_streams(tmp_path / "shards", RowReading(), labelled=False)) == {"train"}


def only_first(read, first):
    def cells(self, path, start=0):
        assert path == first, f"{path} is read for nothing"
        return ({**row, "split": "train"} for row in read(self, path, start))

    return cells
