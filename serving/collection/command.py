"""What `triemo read` does: a collection to parts, a table and a summary page, with the progress on stderr."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from triemo.processing.samples_triemo import checked_labels
from triemo.serving.collection.clips import open_collection
from triemo.serving.collection.reading import ReadCollection, launched_share, read_collection
from triemo.serving.collection.summary import write_summary
from triemo.serving.reading import load_reader
from triemo.training.sources import parse_column_map

__all__ = ["read"]

_SECONDS_BETWEEN_LINES = 30


def read(
    source: str,
    output: str,
    *,
    transcripts: str | None = None,
    split: str | None = None,
    column_map: str | None = None,
    outside_files: bool = False,
    model: str | None = None,
    device: str | None = None,
    group: str | None = None,
    time_column: str | None = None,
    num_shards: int = 1,
    shard: int = 0,
    workers: int | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> None:
    """
    Read a collection, print what came of it, and where it is whole write the summary page.

    Args:
        source, transcripts, split, outside_files: as `open_collection` takes them.
        column_map: columns by our names, such as `"text=utterance,video=clip"`.
        output: folder of the parts, `table.parquet` and `summary.html`.
        model, device: as `load_reader` takes them; of several processes each has a GPU of its own.
        group, time_column: as `write_summary` takes them.
        num_shards, shard: of a job array.
        workers: processes that decode; by default as many as this process has cores.
        options: parameters of the pipeline.
        settings: `clips_per_part`, `batch_size`, `restart`, as `read_collection` takes them.

    Raises:
        ValueError: bad arguments, or an output of another reading. A clip that cannot be read is none.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it and forked workers do not go together
    share = launched_share(num_shards, shard)
    if settings.get("restart") and share.of > 1:
        raise ValueError("restart: several workers would delete each other's parts; delete the folder instead.")
    collection = open_collection(source, transcripts, split, parse_column_map(column_map), outside_files)
    reader = load_reader(model, device or _own_device())
    if not isinstance(reader.model, torch.nn.Module):
        raise ValueError("model: a collection is read with a checkpoint, got an exported graph.")
    checked_labels((options or {}).get("candidate_labels"), reader.model.config)
    with _errors_alone(), _progress(share.index == 0) as progress:
        found = read_collection(
            reader,
            collection,
            output,
            share=share,
            workers=_cores() if workers is None else workers,
            options=options,
            progress=progress,
            **settings,
        )
    _print_result(found, output)
    if found.table is not None:
        page = write_summary(found.table, source, group, time_column)
        print(f"{found.table}\n{page}")


def _print_result(found: ReadCollection, output: str) -> None:
    if found.table is None:
        print(
            f"{found.own} of {found.clips} clips are read; {found.missing_parts} parts in {output} are still missing."
        )
        return
    problems = pq.read_table(found.table, columns=["problem"])["problem"]
    broken = len(problems) - problems.null_count
    print(f"{found.clips - broken} of {found.clips} clips are read; {broken} could not be, see the column problem.")


def _own_device() -> str | None:
    place = os.environ.get("LOCAL_RANK")
    return f"cuda:{place}" if place is not None and torch.cuda.is_available() else None


def _cores() -> int:
    """Of this process: those of the machine, shared with the others that were launched on it."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def _errors_alone() -> Iterator[None]:
    """The clips that have nothing to read from stand in the table, each with its reason."""
    logger = logging.getLogger("triemo")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _progress(is_first: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar with the time left; where nobody watches, a line now and then. Of several processes the first tells it."""
    errors = Console(stderr=True)
    if not is_first:
        yield None
    elif errors.is_terminal:
        columns = (TextColumn("Reading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=errors) as bar:
            task = bar.add_task("read", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _Lines()


class _Lines:
    def __init__(self) -> None:
        self._begin = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if now - self._last < _SECONDS_BETWEEN_LINES or done == self._first:
            return
        self._last = now
        minutes = (now - self._begin) / (done - self._first) * (total - done) / 60
        print(f"triemo: {done} of {total} clips, about {minutes:.0f} minutes left", file=sys.stderr, flush=True)
