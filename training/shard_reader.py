"""Rows of shards, dealt out to readers, in an order that a killed run takes up exactly.

One *reader* is one worker of one process. In every epoch the shards are put in another order and dealt out to the
readers; a reader fills a block of rows, shuffles it and hands it out. So its place is a few small numbers, and to go
on from it means to fill one block again, however far into the corpus that is. (A rolling shuffle buffer mixes as well,
but its content is the history of the run, which a resumed one does not have.)
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info
from transformers.trainer_pt_utils import get_length_grouped_indices

from triemo.training.seeds import joined_seed
from triemo.training.shards import BrokenShardError, read_shard
from triemo.training.table_columns import INPUT_COLUMNS

__all__ = ["Position", "ShardReader", "ShardRows", "check_first_row", "row_ticket"]

logger = logging.getLogger(__name__)


class Position(NamedTuple):
    """
    Where a reader stands.

    Args:
        epoch: passes it has finished.
        piece, row: piece of the epoch and row in it, at which the present block began.
        given: rows of the block that were given out.
        seen, broken: rows given out so far, and those of them that could not be read.
        broken_shards: shards that ended too early, before the present block.
    """

    epoch: int = 0
    piece: int = 0
    row: int = 0
    given: int = 0
    seen: int = 0
    broken: int = 0
    broken_shards: int = 0


def row_ticket(name: str, epoch: int) -> int:
    """A number for one draw of one row, the same whoever reads it: its masks and augmentation depend on it."""
    digest = blake2b(name.encode(), digest_size=5).digest()
    return (epoch << 40) + int.from_bytes(digest, "big")


def check_first_row(paths: Sequence[str], column_map: Mapping[str, str] | None) -> None:
    """Raises ValueError when the first shard is empty or its first row has no input column."""
    row = next(iter(read_shard(paths[0], 0, column_map)), None)
    if row is None:
        raise ValueError(f"shards: got no row in {paths[0]}, expected some")
    if not any(row.get(name) is not None for name in INPUT_COLUMNS):
        raise ValueError(
            f"columns: got {sorted(row)} in {row['row']}, expected one of {INPUT_COLUMNS}; see `column_map`"
        )


class ShardReader:
    """
    One reader's rows, without an end.

    Args:
        paths: all shards, in the same order for every reader.
        reader, readers: which of how many this is. Fewer shards than readers are read by several, each taking every
            n-th row.
        seed: of the order.
        buffer: rows of a block; 1 keeps the order within a shard.
        column_map: see `read_shard`.
        group: if given, rows of like cost come together, in runs of so many.
    """

    def __init__(
        self,
        paths: Sequence[str],
        reader: int,
        readers: int,
        seed: int = 0,
        buffer: int = 1000,
        column_map: Mapping[str, str] | None = None,
        group: int | None = None,
    ) -> None:
        self.share = math.ceil(readers / len(paths))
        self.pieces = [(path, part) for path in paths for part in range(self.share)]
        self.reader, self.readers, self.seed = reader, readers, seed
        self.buffer, self.column_map, self.group = max(1, buffer), column_map, group
        self.broken_shards = 0

    def rows(self, position: Position) -> Iterator[tuple[dict[str, Any], Position]]:
        """Rows from a position on, each with the position after it; `seen` and `broken` are the caller's to count."""
        given, empty = position.given, 0
        source = self.epoch_rows(position)
        while True:
            block = list(islice(source, self.buffer))
            is_last = len(block) < self.buffer
            empty = empty + 1 if is_last and not block and (position.piece, position.row) == (0, 0) else 0
            if empty > self.readers:
                raise ValueError(f"shards: reader {self.reader} of {self.readers} got no row in {empty} passes.")
            after = block[-1][1] if block and not is_last else Position(position.epoch + 1)
            after = after._replace(broken_shards=self.broken_shards)
            order = self.order([row for row, _ in block], position)
            for index in range(given, len(order)):
                row = block[order[index]][0]
                block[order[index]] = ({}, position)  # what was given out need not stay in memory
                yield row, position._replace(given=index + 1)
            if is_last:
                source = self.epoch_rows(after)
            position, given = after, 0

    def epoch_rows(self, position: Position) -> Iterator[tuple[dict[str, Any], Position]]:
        """The rest of an epoch in the order of the shards, each row with where the next one begins."""
        pieces, start = self.epoch_pieces(position.epoch), position.row
        self.broken_shards = position.broken_shards
        for number in range(position.piece, len(pieces)):
            path, part = pieces[number]
            try:
                for at, row in enumerate(read_shard(path, start, self.column_map), start=start):
                    if at % self.share == part:
                        ticket = row_ticket(f"{path.rsplit('/', 1)[-1]}:{at}", position.epoch)
                        yield {**row, "ticket": ticket}, Position(position.epoch, number, at + 1)
            except BrokenShardError as error:
                self.broken_shards += 1
                logger.warning(f"{error}; the rest of it is passed over.")
            start = 0

    def epoch_pieces(self, epoch: int) -> list[tuple[str, int]]:
        """This reader's pieces of an epoch: every process deals the same hand."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.pieces))
        return [self.pieces[index] for index in order[self.reader :: self.readers]]

    def order(self, block: Sequence[Mapping[str, Any]], position: Position) -> list[int]:
        if self.buffer == 1 or not block:
            return list(range(len(block)))
        key = (self.seed, position.epoch, self.reader, position.piece, position.row)
        if self.group is None:
            return np.random.default_rng(key).permutation(len(block)).tolist()
        generator = torch.Generator().manual_seed(joined_seed(*key))
        return get_length_grouped_indices([_cost(row) for row in block], self.group, generator=generator)


def _cost(row: Mapping[str, Any]) -> int:
    """A rough cost: letters of the text and bytes of encoded media."""
    media = [value["bytes"] for value in row.values() if isinstance(value, Mapping) and value.get("bytes")]
    return len(str(row.get("text") or "")) + sum(map(len, media)) // 100


class ShardRows(torch.utils.data.IterableDataset):
    """
    Encoded rows in the order of the shards, for validation; the collator decodes them.

    Args:
        paths: the shards.
        limit: rows at most; 0 takes all.
        column_map: see `read_shard`.
    """

    def __init__(self, paths: Sequence[str], limit: int = 0, column_map: Mapping[str, str] | None = None) -> None:
        self.paths, self.limit, self.column_map = list(paths), limit, column_map

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None and worker.id > 0:  # one reads for all: each would yield every row
            return
        rows = (row for path in self.paths for row in read_shard(path, 0, self.column_map))
        for number, row in enumerate(islice(rows, self.limit or None)):
            yield {**row, "ticket": number}
