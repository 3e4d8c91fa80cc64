"""The clips of a collection, from a folder, a table or a data set of the Hub: what each holds, and what is kept of it.

A clip is only looked up here. It is opened where it is read, in a worker process.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from triemo.training.data.columns import FEATURE_COLUMNS, MEDIA_COLUMNS, check_columns, convert_batch, label_names
from triemo.training.data.packing import Sample, collect_samples
from triemo.training.data.splits import SPLIT_ALIASES, SPLIT_NAMES
from triemo.training.data.tables import TablePart, open_parts, rename_columns

__all__ = ["Clip", "Collection", "FolderClips", "TableClips", "open_collection"]


@dataclass(frozen=True)
class Clip:
    """
    Args:
        name: a file, or `file:line` of a table.
        inputs: what the pipeline takes: any of `text`, `audio`, `video`, `image`.
        kept: the further cells of its row.
        problem: why it cannot be read, where that is known before it is opened.
    """

    name: str
    inputs: dict[str, Any]
    kept: dict[str, Any]
    problem: str | None = None


class Collection:
    """
    Clips in an order that is the same at every start and on every machine.

    Attributes:
        kept: the type of each column that is kept beside the answers.
        digest: changes when clips are added, removed, renamed or get other words.
    """

    kept: dict[str, pa.DataType]
    digest: str

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Clip:
        raise NotImplementedError


def open_collection(
    source: str | Path,
    transcripts: str | Path | None = None,
    split: str | None = None,
    column_map: Mapping[str, str] | None = None,
    outside_files: bool = False,
) -> Collection:
    """
    Args:
        source: a folder of videos, sounds and pictures, searched with its sub-folders; a csv, tsv, jsonl or parquet
            table, or a folder of tables; or the id of a data set on the Hub. Columns as in training, without labels.
        transcripts: table with the words of a folder's clips (`pack_clips`).
        split: of a table, the only one; all by default.
        column_map: our name to the table's, as `{"text": "utterance"}`.
        outside_files: whether a table may name files outside its folder, and URLs.

    Raises:
        ValueError: nothing there to read, an unknown split, or transcripts or columns that do not fit.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not _holds_tables_alone(path):
        if split is not None or column_map:
            raise ValueError(f"source: {source} is a folder of clips, which has no splits and columns; give a table.")
        samples, unused = collect_samples(path, None if transcripts is None else Path(transcripts))
        if unused:
            raise ValueError(f"transcripts: {len(unused)} rows name no clip of {source}, the first is {unused[0]}.")
        return FolderClips(path, samples)
    if transcripts is not None:
        raise ValueError(f"transcripts: belong to a folder of clips, and {source} is a table; join them there.")
    parts = [part._replace(rows=rename_columns(part.rows, part.source, column_map)) for part in open_parts(source)]
    return TableClips(_of_split(parts, split, str(source)), outside_files)


class FolderClips(Collection):
    """Files of one name, such as `a/01.mp4` and `a/01.txt`, are one clip; the folder it lies in is kept."""

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        self._folder = folder
        self._samples = samples
        names = dict.fromkeys(name for sample in samples for name in sample.fields if name != "text")
        self.kept = {"folder": pa.string(), **dict.fromkeys(names, pa.string())}
        self.digest = _digest([(s.key, s.size, sorted((n, str(v)) for n, v in s.fields.items())) for s in samples])

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Clip:
        sample = self._samples[index]
        files = {name: path for name, path in sample.files.items() if name in MEDIA_COLUMNS}
        if "video" in files:
            files.pop("image", None)  # a thumbnail
        name = next(iter(files.values())).relative_to(self._folder).as_posix()
        kept = {column: _text(sample.fields.get(column)) for column in self.kept if column != "folder"}
        kept["folder"] = name.rpartition("/")[0]
        inputs: dict[str, Any] = {column: str(path) for column, path in files.items()}
        words = sample.fields.get("text")
        try:
            if words is None and "text" in sample.files:
                words = sample.files["text"].read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return Clip(name, inputs, kept, f"text: cannot read {sample.files['text'].name} ({error})")
        return Clip(name, inputs | ({"text": words.strip()} if words and words.strip() else {}), kept)


class TableClips(Collection):
    """Rows of one or more tables, one after the other; columns of plain values are kept."""

    def __init__(self, parts: Sequence[TablePart], outside_files: bool) -> None:
        self._parts = parts
        self._outside_files = outside_files
        self._ends: list[int] = []
        self.kept = {}
        contents = []
        for part in parts:
            check_columns(part.rows.column_names, part.source, labelled=False)
            if not set(part.rows.column_names) & {"text", *MEDIA_COLUMNS}:
                raise ValueError(f"columns: {part.source} has vectors alone; expected text, audio, video or image.")
            self._ends.append(len(part.rows) + (self._ends[-1] if self._ends else 0))
            kept = _kept_types(part.rows)
            for name, kind in kept.items():
                self.kept[name] = kind if self.kept.get(name, kind) == kind else pa.string()
            contents.append(_content(part.rows, [name for name in ("text", *kept) if name in part.rows.column_names]))
        self.digest = _digest(contents)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Clip:
        number = next(number for number, end in enumerate(self._ends) if index < end)
        part = self._parts[number]
        place = index - (self._ends[number] - len(part.rows))
        row, where = part.rows[place], part.places[place]
        kept = {}
        for name, kind in self.kept.items():
            classes = label_names(part.rows.features.get(name))
            value = row.get(name)
            if classes is not None and isinstance(value, int):
                value = classes[value] if value >= 0 else None
            kept[name] = _text(value) if kind == pa.string() else value
        cells = {name: [row[name]] for name in ("text", *MEDIA_COLUMNS) if name in row}
        named = next((_file_of(cells[name][0]) for name in MEDIA_COLUMNS if name in cells), None)
        name = named or f"{Path(part.source).name}:{where.rpartition(':')[2]}"
        folder = Path(part.source).resolve().parent if Path(part.source).is_file() else Path()
        try:
            found = convert_batch(cells, [where], folder, None, self._outside_files)
        except ValueError as error:
            return Clip(name, {}, kept, str(error))
        inputs = {column: values[0] for column, values in found.items() if column != "row" and values[0] is not None}
        return Clip(name, inputs, kept, None if inputs else f"nothing to read in {where}")


def _holds_tables_alone(folder: Path) -> bool:
    """Whether a folder is a table in several files: `train.csv` and so on, and no clips beside them."""
    try:
        collect_samples(folder, None)
    except ValueError as error:
        if "got no video, sound or picture" not in str(error):
            raise
        return any(file.is_file() for file in folder.iterdir())
    return False


def _of_split(parts: Sequence[TablePart], split: str | None, source: str) -> list[TablePart]:
    if split is None:
        return list(parts)
    if split not in SPLIT_ALIASES:
        raise ValueError(f"split: got {split!r}, expected one of {SPLIT_NAMES}")
    wanted, found = SPLIT_ALIASES[split], []
    for part in parts:
        if part.split == wanted:
            found.append(part)
        elif part.split is None and "split" in part.rows.column_names:
            values = part.rows.select_columns(["split"])[:]["split"]
            rows = [row for row, value in enumerate(values) if SPLIT_ALIASES.get(str(value).strip().lower()) == wanted]
            if rows:
                places = [part.places[row] for row in rows]
                found.append(part._replace(rows=part.rows.select(rows), places=places))
    if not found:
        raise ValueError(f"split: got {split!r}, and {source} has no row of it.")
    return found


def _kept_types(rows: Dataset) -> dict[str, pa.DataType]:
    """Columns of numbers, text and times, but not what is read; classes by name."""
    kept = {}
    for name, kind in zip(rows.features.arrow_schema.names, rows.features.arrow_schema.types, strict=True):
        if name in ("text", *MEDIA_COLUMNS, *FEATURE_COLUMNS):
            continue
        if label_names(rows.features[name]) is not None or pa.types.is_large_string(kind):
            kept[name] = pa.string()
        elif pa.types.is_primitive(kind) or pa.types.is_string(kind):
            kept[name] = kind
    return kept


def _content(rows: Dataset, names: Sequence[str]) -> list[Any]:
    """What tells one table from another: its plain cells, and how many rows it has."""
    cells = rows.select_columns(list(names))[:] if names else {}
    media = [name for name in MEDIA_COLUMNS if name in rows.column_names]
    files = [[_file_of(row[name]) for name in media] for row in rows.select_columns(media)] if media else []
    return [len(rows), {name: [str(value) for value in values] for name, values in cells.items()}, files]


def _file_of(cell: Any) -> str | None:
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) and str(path) else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _digest(contents: Any) -> str:
    return hashlib.sha256(repr(contents).encode("utf-8", "surrogatepass")).hexdigest()
