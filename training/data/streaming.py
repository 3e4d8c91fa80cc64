"""Streams of a table or of shards: which there are, endless batches for training, batches in order for evaluation."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow.parquet as pq
import torch
from datasets import Features
from torch.utils.data import DataLoader, get_worker_info

from triemo.training.data.broken_media import FIRST_NAMED
from triemo.training.data.columns import LabelColumn, check_columns, label_names, read_labels
from triemo.training.data.shards import (
    Position,
    RowReading,
    ShardReader,
    ShardRows,
    column_values,
    is_archive,
    list_shards,
)
from triemo.training.data.splits import SPLIT_NAMES, is_split_off, split_named

__all__ = ["EvaluationBatches", "ShardBatches", "Stream", "StreamLoader", "open_streams"]

logger = logging.getLogger(__name__)

PEEKED_ROWS = 100  # from which the columns of a stream and the kind of its labels are told


class Stream(NamedTuple):
    """The shards of a split and how their rows are read."""

    paths: list[str]
    reading: RowReading

    def rows(self, limit: int = 0) -> ShardRows:
        """In the order of the shards, at most so many; 0 takes all."""
        return ShardRows(self.paths, limit, self.reading)


def open_streams(
    where: str | Path, reading: RowReading, labelled: bool = True, validation_share: float = 0.0, seed: int = 0
) -> dict[str, Stream]:
    """
    The streams of a table or of shards by split: by the names of files and folders, or by a column `split` of a table.

    Where there is no validation split, `validation_share` of train becomes one, by a hash of the speaker, else the
    dialogue, else the row's content: met on average, so that of a small table it may get no row and not be there.

    Args:
        where: see `list_shards`.
        reading: how rows are read; its `label` is told from the first rows.
        labelled: whether every row must have a label.
        validation_share: of the rows of train; 0 makes none.
        seed: of that split.

    Raises:
        ValueError: naming what is not there, no input or label column, or a split without a row.
    """
    shards = list_shards(where)
    streams: dict[str, Stream] = {}
    for split, paths in shards.items():
        head = list(islice(reading.cells(paths[0]), PEEKED_ROWS))
        if not head:
            raise ValueError(f"table: got no row in {paths[0]}, expected some")
        for ours, theirs in (reading.column_map or {}).items():
            if all(ours not in row for row in head):
                raise ValueError(f"column_map: got {theirs!r} for {ours!r}, which the first rows of {paths[0]} lack")
        names = [name for name in dict.fromkeys(name for row in head for name in row) if name != "row"]
        check_columns(names, paths[0], labelled)
        label = _label_column(paths[0], names, head) if labelled else None
        stream = Stream(paths, replace(reading, label=label))
        if len(shards) > 1 or "split" not in names or is_archive(paths[0]):
            streams[split] = stream
            continue
        there = _named_splits(paths, reading)
        streams = {n: _of_split(stream, partial(_is_named, split=n)) for n in SPLIT_NAMES if n in there}
    if "train" in streams and "validation" not in streams and validation_share > 0:
        whole, goes = streams["train"], partial(_goes, share=validation_share, seed=seed)
        validation = _of_split(whole, partial(goes, wanted=True))
        if next(iter(validation.rows()), None) is not None:
            streams |= {"train": _of_split(whole, partial(goes, wanted=False)), "validation": validation}
            logger.info(f"{where}: no validation split, so {validation_share:.0%} of train by hash, seed {seed}.")
    return streams


def _named_splits(paths: Sequence[str], reading: RowReading) -> set[str]:
    """What the column `split` of all rows names: that one is not there shows only at the end of a table."""
    column = (reading.column_map or {}).get("split", "split")
    return {split_named(*cell) for path in paths for cell in column_values(path, column, reading.encoding)}


def _label_column(path: str, names: Sequence[str], head: Sequence[Mapping[str, Any]]) -> LabelColumn:
    name = "label" if "label" in names else "labels"
    class_names = None
    if path.lower().endswith(".parquet"):
        with fsspec.open(path, "rb") as file:
            class_names = label_names(Features.from_arrow_schema(pq.read_schema(file)).get(name))
    return read_labels([LabelColumn(name, class_names)], [[row.get(name) for row in head]], path)[0]


def _of_split(stream: Stream, belongs: Callable[[Mapping[str, Any]], bool]) -> Stream:
    before = stream.reading.belongs
    both = belongs if before is None else partial(_both, before, belongs)
    return stream._replace(reading=replace(stream.reading, belongs=both))


def _both(first: Callable[[Any], bool], second: Callable[[Any], bool], cells: Mapping[str, Any]) -> bool:
    return first(cells) and second(cells)


def _is_named(cells: Mapping[str, Any], split: str) -> bool:
    return split_named(cells.get("split"), str(cells["row"])) == split


def _goes(cells: Mapping[str, Any], share: float, seed: int, wanted: bool) -> bool:
    return is_split_off(cells, share, seed) == wanted


# Training ----------------------------------------------------------------------------------------------------


class ShardBatches(torch.utils.data.IterableDataset):
    """
    Batches of one process, made in its workers: `{"batch", "slot", "position"}`, without an end.

    Args:
        reader: makes the `ShardReader` of a number among so many.
        prepare, collate: a row to tensors, and these to a batch. ValueError or OSError of `prepare` marks the row as
            broken: named in the log, counted, passed over.
        batch_size: rows of a batch.
        max_broken_share: broken rows allowed of those seen, judged by each reader over at least 1 / share rows.
        process, processes: which of how many this is.
        check: raises ValueError for a row whose label is wrong, which ends the run: that is no broken medium.
    """

    def __init__(
        self,
        reader: Callable[[int, int], ShardReader],
        prepare: Callable[[dict], Mapping[str, Any]],
        collate: Callable[[list], Mapping[str, Any]],
        batch_size: int,
        max_broken_share: float = 0.01,
        process: int = 0,
        processes: int = 1,
        check: Callable[[dict], Any] | None = None,
    ) -> None:
        if not 0 <= max_broken_share < 1:
            raise ValueError(f"max_broken_share: got {max_broken_share}, expected 0 up to but not 1")
        self.reader, self.prepare, self.collate = reader, prepare, collate
        self.batch_size, self.max_broken_share = batch_size, max_broken_share
        self.process, self.processes, self.check = process, processes, check
        self.positions: dict[int, Position] = {}
        self.taken = 0  # batches of this process before the iteration starts

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, index = (worker.num_workers, worker.id) if worker else (1, 0)
        # The loader asks its workers in turn, from the first: the one whose turn it is must be that.
        slot = (index + self.taken) % workers
        reader = self.reader(self.process * workers + slot, self.processes * workers)
        position, samples, named = self.positions.get(slot, Position()), [], []
        seen, broken = position.seen, position.broken
        for row, place in reader.rows(position):
            seen += 1
            if self.check is not None:
                self.check(row)
            try:
                samples.append(self.prepare(row))
            except (ValueError, OSError) as error:
                broken += 1
                named.append(str(row["row"]))
                logger.warning(f"media: skipped {row['row']} ({error}); {broken} of {seen} rows seen so far.")
                self.check_share(broken + place.broken_shards, seen, named)
            if len(samples) == self.batch_size:
                place = place._replace(seen=seen, broken=broken)
                yield {"batch": self.collate(samples), "slot": slot, "position": place._asdict()}
                samples = []

    def check_share(self, broken: int, seen: int, named: Sequence[str]) -> None:
        least = math.ceil(1 / self.max_broken_share) if self.max_broken_share else 1
        if broken > self.max_broken_share * max(seen, least):
            raise ValueError(
                f"media: got {broken} broken of {seen} rows seen, more than the share {self.max_broken_share:g}; "
                f"first {', '.join(named[:FIRST_NAMED])}"
            )


class StreamLoader:
    """
    The batches of this process for the Trainer, with a state that says where to go on.

    Args:
        batches: where they come from.
        workers: processes that decode; 0 decodes in this one. A run goes on only with as many as it began with.
        options: of the `DataLoader`.
    """

    def __init__(self, batches: ShardBatches, workers: int = 0, **options: Any) -> None:
        self.dataset, self.batch_size, self.workers, self.options = batches, batches.batch_size, workers, options

    def __iter__(self) -> Iterator[Any]:
        # A generator of its own: the loader's draw from the global one would come at another time in a resumed run.
        loader: DataLoader = DataLoader(
            self.dataset, batch_size=None, num_workers=self.workers, generator=torch.Generator(), **self.options
        )
        for item in loader:
            self.dataset.positions[int(item["slot"])] = Position(**item["position"])
            self.dataset.taken += 1
            yield item["batch"]

    @property
    def broken(self) -> int:
        """Rows passed over so far, a shard that ended too early counting as one."""
        return sum(position.broken + position.broken_shards for position in self.dataset.positions.values())

    @property
    def passes(self) -> float:
        """Passes finished, averaged over the readers."""
        epochs = [position.epoch for position in self.dataset.positions.values()]
        return sum(epochs) / len(epochs) if epochs else 0.0

    def state_dict(self) -> dict[str, Any]:
        """After the batches given out so far, whatever the workers have prepared beyond them."""
        positions = {str(slot): position._asdict() for slot, position in self.dataset.positions.items()}
        return {
            "taken": self.dataset.taken,
            "workers": self.workers,
            "processes": self.dataset.processes,
            "batch_size": self.batch_size,
            "positions": positions,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when rows would come in another order: other workers, processes or batch size."""
        now = {"workers": self.workers, "processes": self.dataset.processes, "batch_size": self.batch_size}
        for name, value in now.items():
            if state[name] != value:
                raise ValueError(
                    f"stream: the run began with {name} {state[name]}, got {value}; rows would come in another order."
                )
        self.dataset.taken = int(state["taken"])
        self.dataset.positions = {int(slot): Position(**place) for slot, place in state["positions"].items()}


# Evaluation --------------------------------------------------------------------------------------------------


class EvaluationBatches(torch.utils.data.IterableDataset):
    """
    The batches of one process, `{"number", "rows", "batch"}`, cut before they are dealt out: the number of processes
    changes no batch. All processes get as many; one that would get fewer gets the first again, as number -1.

    Args:
        rows: map-style, or a stream that ends (`ShardRows`).
        collate: rows to a batch.
        batch_size: rows of a batch.
        process, processes: which of how many this is.
    """

    def __init__(
        self,
        rows: Any,
        collate: Callable[[list], Mapping[str, Any]],
        batch_size: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.rows, self.collate, self.batch_size = rows, collate, batch_size
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, index = (worker.num_workers, worker.id) if worker else (1, 0)
        first, number = None, -1
        for number, batch in enumerate(self._row_batches()):
            first = batch if first is None else first
            # The loader asks its workers in turn.
            if number % self.processes == self.process and number // self.processes % workers == index:
                rows = batch()
                yield {"number": number, "rows": len(rows), "batch": self.collate(rows)}
        rounds, rest = divmod(number + 1, self.processes)
        if first is not None and 0 < rest <= self.process and rounds % workers == index:
            yield {"number": -1, "rows": 0, "batch": self.collate(first())}

    def _row_batches(self) -> Iterator[Callable[[], list]]:
        """What makes the rows of each batch; those of other processes are not read where rows can be addressed."""
        if hasattr(self.rows, "__getitem__"):
            for start in range(0, len(self.rows), self.batch_size):
                yield partial(self._rows_from, start)
            return
        rows = iter(self.rows)
        while batch := list(islice(rows, self.batch_size)):
            yield partial(list, batch)

    def _rows_from(self, start: int) -> list:
        return [self.rows[index] for index in range(start, min(start + self.batch_size, len(self.rows)))]
