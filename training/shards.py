"""Shards of clips: WebDataset tar files and parquet files, on this disk or behind a URL, as rows of an emotion table.

A sample of a tar is the run of members that share a key: `0001.mp4`, `0001.txt`, `0001.json`. The suffix tells the
column (`COLUMN_SUFFIXES`); the fields of the json become columns of their own. A parquet file has the columns of an
emotion table. Rows come in the order of the file, one at a time, media still encoded.
"""

import json
import logging
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from triemo.training.table_columns import MEDIA_COLUMNS
from triemo.training.table_files import SPLIT_ALIASES

__all__ = ["COLUMN_SUFFIXES", "BrokenShardError", "column_of", "list_shards", "read_shard"]

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
# As WebDataset splits a name: the key ends at the first dot after the last slash.
_MEMBER = re.compile(r"^((?:.*/|)[^./][^.]*)[.]([^/]+)$")
_PARQUET_ROWS = 16


class BrokenShardError(ValueError):
    """A shard that ends too early or whose bytes make no sense; the rows before that point were given out."""


def column_of(suffix: str) -> str | None:
    """The column that a file suffix (without the dot) stands for; None for what is no sample's part."""
    return _COLUMN_OF.get(suffix.lower())


def list_shards(where: str | Path) -> dict[str, list[str]]:
    """
    Shards by split.

    Args:
        where: a folder, a file, a pattern (`shards/*.tar`), any of these behind `hf://`, `https://` or another scheme
            of fsspec, or the id of a dataset on the Hub.

    Returns:
        Sorted paths or URLs, keyed by split: of the file's name (`validation-00003.tar`) or of a folder above it;
        `train` where no name says any.

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
    found = {kind: sorted(filter(kind.search, names)) for kind in (_TAR, _PARQUET)}
    if all(found.values()):
        raise ValueError(f"shards: got tar and parquet files in {where}, expected one kind; give a pattern")
    splits: dict[str, list[str]] = {}
    for name in found[_TAR] or found[_PARQUET]:
        inner = name.removeprefix(root) if system.isdir(root) else name.rsplit("/", 1)[-1]
        splits.setdefault(_split_of(inner), []).append(name if is_local else system.unstrip_protocol(name))
    if not splits:
        raise ValueError(f"shards: got no tar or parquet file at {where}, expected some")
    return splits


def _split_of(name: str) -> str:
    *folders, file = name.strip("/").lower().split("/")
    for part in (re.split(r"[-_.]", file)[0], *reversed(folders)):
        if part in SPLIT_ALIASES:
            return SPLIT_ALIASES[part]
    return "train"


def read_shard(path: str, start: int = 0, column_map: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """
    Rows of one shard.

    Args:
        path: as `list_shards` gives it.
        start: rows to pass over, without reading their media where the file can be searched.
        column_map: our name to that of a suffix, of a json field or of a parquet column, as `{"text": "caption"}`.

    Yields:
        Emotion-table rows; `row` says where one stood.

    Raises:
        BrokenShardError: from where on it cannot be read.
        ValueError: when it is not there.
    """
    try:
        opened = fsspec.open(path, "rb")
        is_local = "file" in opened.fs.protocol
        with opened as file:
            read = _parquet_rows if _PARQUET.search(path) else _tar_rows
            number = start
            try:
                for row in read(file, path, start, is_local):
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
