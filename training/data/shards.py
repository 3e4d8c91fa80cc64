"""Shards of clips, on this disk or behind a URL, as rows dealt out to readers.

A shard is a WebDataset tar, a parquet file or a table as text (csv, tsv, jsonl). A sample of a tar is the run of
members that share a key: `0001.mp4`, `0001.txt`, `0001.json`. The suffix tells the column (`COLUMN_SUFFIXES`); the
fields of the json become columns of their own. The other files have the columns of an emotion table. Media stay
encoded.

One *reader* is one worker of one process. In every epoch the shards are put in another order and dealt out to the
readers; a reader fills a block of rows, shuffles it and hands it out. So its place is a few small numbers, and to go
on from it means to fill one block again, however far into the corpus that is. (A rolling shuffle buffer mixes as well,
but its content is the history of the run, which a resumed one does not have.)
"""

import json
import logging
import math
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from triemo.training.common import joined_seed
from triemo.training.data.columns import MEDIA_COLUMNS, LabelColumn, check_inputs, convert_batch, rough_cost
from triemo.training.data.splits import SPLIT_ALIASES
from triemo.training.data.text_tables import TEXT_FORMATS, text_rows

__all__ = [
    "BrokenShardError",
    "COLUMN_SUFFIXES",
    "Position",
    "RowReading",
    "ShardReader",
    "ShardRows",
    "column_of",
    "column_values",
    "is_archive",
    "list_shards",
    "read_shard",
    "row_ticket",
]

logger = logging.getLogger(__name__)

COLUMN_SUFFIXES = {
    "text": ("txt", "text", "transcript"),
    "audio": ("wav", "flac", "mp3", "ogg", "opus", "m4a", "aac", "aiff", "wma"),
    "video": ("mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "mpeg", "flv", "3gp"),
    "image": ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"),
    "label": ("cls", "label"),
}
_COLUMN_OF = {suffix: column for column, suffixes in COLUMN_SUFFIXES.items() for suffix in suffixes}
_TAR = re.compile(r"\.(tar|tar\.gz|tgz|tar\.bz2|tar\.xz)$", re.IGNORECASE)
_PARQUET = re.compile(r"\.parquet$", re.IGNORECASE)
_TEXT = re.compile(rf"({'|'.join(map(re.escape, TEXT_FORMATS))})$", re.IGNORECASE)

# As WebDataset splits a name: the key ends at the first dot after the last slash.
_MEMBER = re.compile(r"^((?:.*/|)[^./][^.]*)[.]([^/]+)$")
_PARQUET_ROWS = 16


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


@dataclass(frozen=True)
class RowReading:
    """
    How what stands in a shard becomes a row of an emotion table.

    Args:
        column_map: our name to that of a suffix, of a json field or of a column, as `{"text": "caption"}`.
        encoding: of text files; UTF-8 by default.
        root: folder of relative paths of media; that of the shard by default.
        outside_files: whether cells may name files outside that folder, and URLs.
        label: how labels are read; None leaves them as they are.
        belongs: whether a row is of the split that is read; None takes all.
    """

    column_map: Mapping[str, str] | None = None
    encoding: str | None = None
    root: Path | None = None
    outside_files: bool = False
    label: LabelColumn | None = None
    belongs: Callable[[Mapping[str, Any]], bool] | None = None

    def cells(self, path: str, start: int = 0) -> Iterator[dict[str, Any]]:
        """As `read_shard`."""
        return read_shard(path, start, self.column_map, self.encoding)

    def row(self, cells: dict[str, Any], path: str) -> dict[str, Any] | None:
        """The row, or None when it is another split's. Raises ValueError as `convert_batch`."""
        if self.belongs is not None and not self.belongs(cells):
            return None
        batch, place = {name: [value] for name, value in cells.items()}, [str(cells["row"])]
        folder = self.root if self.root is not None else Path() if "://" in path else Path(path).resolve().parent
        if self.label is not None:
            check_inputs(batch, place)
        converted = convert_batch(batch, place, folder, self.label, self.outside_files)
        row = cells | {name: value for name, (value,) in converted.items()}
        if self.label is not None and self.label.name != "label":
            del row[self.label.name]
        return row


class ShardReader:
    """
    One reader's rows, without an end.

    Args:
        paths: all shards, in the same order for every reader.
        reader, readers: which of how many this is. Fewer shards than readers are read by several, each taking every
            n-th row.
        seed: of the order.
        buffer: rows of a block; 1 keeps the order within a shard.
        reading: how rows are read.
        group: if given, rows of like cost come together, in runs of so many.
    """

    def __init__(
        self,
        paths: Sequence[str],
        reader: int,
        readers: int,
        seed: int = 0,
        buffer: int = 1000,
        reading: RowReading = RowReading(),  # noqa: B008
        group: int | None = None,
    ) -> None:
        self.share = math.ceil(readers / len(paths))
        self.pieces = [(path, part) for path in paths for part in range(self.share)]
        self.reader, self.readers, self.seed = reader, readers, seed
        self.buffer, self.reading, self.group = max(1, buffer), reading, group
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
                for at, cells in enumerate(self.reading.cells(path, start), start=start):
                    row = self.reading.row(cells, path) if at % self.share == part else None
                    if row is not None:
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
        return get_length_grouped_indices([self.cost(row) for row in block], self.group, generator=generator)

    @staticmethod
    def cost(row: Mapping[str, Any]) -> int:
        return sum(rough_cost(row.get(name)) for name in ("text", *MEDIA_COLUMNS))


def row_ticket(name: str, epoch: int) -> int:
    """A number for one draw of one row, the same whoever reads it: its masks and augmentation depend on it."""
    digest = blake2b(name.encode(), digest_size=5).digest()
    return (epoch << 40) + int.from_bytes(digest, "big")


class ShardRows:
    """
    Rows in the order of the shards, each with its number as `ticket`, for validation.

    Args:
        paths: the shards.
        limit: rows at most; 0 takes all.
        reading: how rows are read.
    """

    def __init__(self, paths: Sequence[str], limit: int = 0, reading: RowReading = RowReading()) -> None:  # noqa: B008
        self.paths, self.limit, self.reading = list(paths), limit, reading

    def __iter__(self) -> Iterator[dict[str, Any]]:
        read = (self.reading.row(cells, path) for path in self.paths for cells in self.reading.cells(path))
        rows = (row for row in read if row is not None)
        for number, row in enumerate(islice(rows, self.limit or None)):
            yield {**row, "ticket": number}


# Shards and their rows ----------------------------------------------------------------------------------------


def list_shards(where: str | Path) -> dict[str, list[str]]:
    """
    Shards by split.

    Args:
        where: a folder, a file, a pattern (`shards/*.tar`), any of these behind `hf://`, `https://` or another scheme
            of fsspec, or the id of a dataset on the Hub. Tar files come before parquet, and both before text.

    Returns:
        Sorted paths or URLs, keyed by split: of the file's name (`validation-00003.tar`) or of a folder above it;
        `train` where no name says any, and for a single table as text.

    Raises:
        ValueError: nothing there, or tar and parquet files side by side.
    """
    text = str(where)
    if not Path(text).expanduser().exists() and re.fullmatch(r"[\w.\-]+/[\w.\-]+", text):
        text = f"hf://datasets/{text}"
    try:
        system, root = fsspec.core.url_to_fs(str(Path(text).expanduser()) if "://" not in text else text)
        names = system.find(root) if system.isdir(root) else system.glob(root)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"shards: cannot list {where} ({error})") from error
    is_local = "file" in ([system.protocol] if isinstance(system.protocol, str) else system.protocol)
    found = {kind: sorted(filter(kind.search, names)) for kind in (_TAR, _PARQUET, _TEXT)}
    if found[_TAR] and found[_PARQUET]:
        raise ValueError(f"shards: got tar and parquet files in {where}, expected one kind; give a pattern")
    splits: dict[str, list[str]] = {}
    shards = found[_TAR] or found[_PARQUET] or found[_TEXT]
    for name in shards:
        inner = name.removeprefix(root) if system.isdir(root) else name.rsplit("/", 1)[-1]
        split = "train" if shards == [root] and _TEXT.search(root) else _split_of(inner)
        splits.setdefault(split, []).append(name if is_local else system.unstrip_protocol(name))
    if not splits:
        raise ValueError(f"shards: got no tar or parquet file at {where}, nor a csv, tsv or jsonl, expected some")
    return splits


def _split_of(name: str) -> str:
    *folders, file = name.strip("/").lower().split("/")
    for part in (re.split(r"[-_.]", file)[0], *reversed(folders)):
        if part in SPLIT_ALIASES:
            return SPLIT_ALIASES[part]
    return "train"


class BrokenShardError(ValueError):
    """A shard that ends too early or whose bytes make no sense; the rows before that point were given out."""


def read_shard(
    path: str, start: int = 0, column_map: Mapping[str, str] | None = None, encoding: str | None = None
) -> Iterator[dict[str, Any]]:
    """
    Cells of each row of one shard.

    Args:
        path: as `list_shards` gives it.
        start: rows to pass over, without reading their media where the file can be searched.
        column_map, encoding: see `RowReading`.

    Yields:
        Cells by the names of an emotion table; `row` says where they stood.

    Raises:
        BrokenShardError: from where on it cannot be read.
        ValueError: when it is not there.
    """
    try:
        opened = fsspec.open(path, "rb")
        is_local = "file" in opened.fs.protocol
        with opened as file:
            number = start
            if _TEXT.search(path):
                rows = _text_cells(file, path, start, encoding)
            else:
                rows = (_parquet_rows if _PARQUET.search(path) else _tar_rows)(file, path, start, is_local)
            try:
                for row in rows:
                    yield _named_columns(row, column_map)
                    number += 1
            except (tarfile.TarError, EOFError, zlib.error, pa.ArrowInvalid) as error:
                raise BrokenShardError(f"shard: cannot read {path} after row {number} ({error})") from error
    except FileNotFoundError as error:
        raise ValueError(f"shard: got no file {path}, expected it") from error


def _tar_rows(file: BinaryIO, path: str, start: int, is_local: bool) -> Iterator[dict[str, Any]]:
    # Behind a URL the file is read in one go: every search would be another request.
    with tarfile.open(fileobj=file, mode="r:*" if is_local else "r|*") as archive:
        key, number, row = None, -1, dict[str, Any]()
        for member in archive:
            archive.members.clear()  # else it keeps every header of the shard
            match = _MEMBER.match(member.name)
            if not member.isfile() or match is None:
                continue
            if match[1] != key:
                if number >= start:
                    yield row
                key, number = match[1], number + 1
                row = {"row": f"{path}:{key}"}
            if number >= start:
                content = archive.extractfile(member)
                if content is not None:
                    row.setdefault(match[2].lower(), (content.read(), member.name))
        if number >= start:
            yield row


def _parquet_rows(file: BinaryIO, path: str, start: int, is_local: bool) -> Iterator[dict[str, Any]]:
    table = pq.ParquetFile(file, pre_buffer=not is_local)
    first = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if first + rows > start:
            number = first
            for batch in table.iter_batches(_PARQUET_ROWS, row_groups=[group]):
                if number + len(batch) > start:
                    skipped = max(0, start - number)
                    for index, values in enumerate(batch.slice(skipped).to_pylist(), start=number + skipped + 1):
                        yield {**values, "row": f"{path}:{index}"}
                number += len(batch)
        first += rows


def _text_cells(file: BinaryIO, path: str, start: int, encoding: str | None) -> Iterator[dict[str, Any]]:
    for cells, place in islice(text_rows(file, path, encoding), start, None):
        yield {**cells, "row": place}


def _named_columns(row: dict[str, Any], column_map: Mapping[str, str] | None) -> dict[str, Any]:
    """What a tar's members or a parquet's cells are, by the names of an emotion table."""
    cells: dict[str, Any] = {}  # by the names of the file
    columns: dict[str, Any] = {}  # by ours
    fields: dict[str, Any] = {}
    for name, value in row.items():
        column = name
        if isinstance(value, tuple):
            content, member = value
            suffix = name.rsplit(".", 1)[-1]
            if suffix == "json":
                fields = _fields(content, member, row["row"])
                continue
            column = column_of(suffix) or name
            if column in MEDIA_COLUMNS:
                value = {"bytes": content, "path": member}
            else:
                value = content.decode("utf-8", errors="replace").strip()
        elif name in MEDIA_COLUMNS and isinstance(value, bytes):
            value = {"bytes": value, "path": None}
        cells[name] = value
        columns.setdefault(column, value)
    cells |= fields
    columns = {**fields, **columns}
    for ours, theirs in (column_map or {}).items():
        if theirs not in cells and theirs not in columns:
            columns.pop(ours, None)
            continue
        value = cells.get(theirs, columns.get(theirs))
        columns[ours] = {"bytes": value, "path": None} if ours in MEDIA_COLUMNS and isinstance(value, bytes) else value
    return columns


def _fields(content: bytes, member: str, row: str) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError as error:
        logger.warning(f"{row}: {member} is no JSON ({error}); its fields are left out.")
        return {}
    return {str(key): value for key, value in fields.items() if key != "row"} if isinstance(fields, dict) else {}


def is_archive(path: str) -> bool:
    """Whether a shard is a tar, whose columns stand in between the media."""
    return _TAR.search(path) is not None


def column_values(path: str, column: str, encoding: str | None = None) -> Iterator[tuple[Any, str]]:
    """One column of a parquet file or of a table as text, each value with its place; the media beside it stay."""
    with fsspec.open(path, "rb") as file:
        if _PARQUET.search(path):
            batches = pq.ParquetFile(file).iter_batches(columns=[column])
            values = (value for batch in batches for value in batch.column(0).to_pylist())
            yield from ((value, f"{path}:{number}") for number, value in enumerate(values, start=1))
        else:
            yield from ((cells.get(column), place) for cells, place in text_rows(file, path, encoding))


def column_of(suffix: str) -> str | None:
    """The column that a file suffix (without the dot) stands for; None for what is no sample's part."""
    return _COLUMN_OF.get(suffix.lower())
