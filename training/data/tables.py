"""A table of one's own, or one of the Hub, as the splits of an emotion table (columns: see `columns`).

    load_table("calls.csv")                     # text,audio,label,speaker; sound files beside the csv
    load_table("folder")                        # train.csv, validation.csv, test.csv; jsonl or parquet as well
    load_table("user/dataset", column_map={"text": "utterance", "label": "emotion"})

A csv or tsv is read as text: an empty cell is absent, `NA` and `007` stay what they are. Several labels of one row
stand in a column `labels`, as a list or as `joy|surprise`.
"""

import glob
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError

from triemo.training.data.columns import (
    LabelColumn,
    check_columns,
    convert_dataset,
    keep_encoded,
    label_names,
    read_labels,
)
from triemo.training.data.splits import (
    SPLIT_ALIASES,
    SPLIT_NAMES,
    as_dataset_dict,
    check_no_leakage,
    split_named,
    split_off,
)
from triemo.training.data.text_tables import TEXT_FORMATS, check_encoding, text_rows

__all__ = ["VALIDATION_SHARE", "TablePart", "load_table", "open_parts", "rename_columns"]

logger = logging.getLogger(__name__)

FORMATS = {**TEXT_FORMATS, ".json": "json", ".parquet": "parquet"}
VALIDATION_SHARE = 0.1


def load_table(
    path_or_hub_id: str | Path,
    split: str | None = None,
    column_map: Mapping[str, str] | None = None,
    root: str | Path | None = None,
    *,
    labelled: bool = True,
    optional_labels: bool = False,
    disjoint: Sequence[str] = ("speaker", "dialogue"),
    validation_share: float = VALIDATION_SHARE,
    seed: int = 0,
    encoding: str | None = None,
    outside_files: bool = False,
) -> DatasetDict:
    """
    Load a table with any of text, audio, video, image or vectors, and labels.

    Where there is a train split and no validation, `validation_share` of its rows become one: whole speakers and
    dialogues where there are such columns (`splits.split_off`), else rows.

    Args:
        path_or_hub_id: a csv, tsv, jsonl or parquet file, with or without a column `split`; a folder with a file for
            each split; or the id of a dataset on the Hub.
        split: the only split wanted. A single file without a column `split` is taken whole for it.
        column_map: our name to the table's, as `{"text": "utterance"}`.
        root: folder of relative media paths; that of the table by default.
        labelled: whether there must be labels.
        optional_labels: whether single rows may lack one, as utterances that are only context for others.
        disjoint: columns whose values may not be in two splits.
        validation_share: of the rows of train, where there is no validation split; 0 makes none.
        seed: of that split.
        encoding: of text files; UTF-8 by default.
        outside_files: whether cells may name files outside that folder, and URLs.

    Returns:
        The splits; extra columns are kept, `row` is added. Media stay encoded and are not opened.

    Raises:
        ValueError: naming file and row: no input or label column, an empty split, a row without input or label,
            labels of two kinds, a speaker in two splits, or a column of media of which no file is there (some missing
            ones are counted in the log).
    """
    if split is not None and split not in SPLIT_ALIASES:
        raise ValueError(f"split: got {split!r}, expected one of {SPLIT_NAMES}")
    wanted = None if split is None else SPLIT_ALIASES[split]
    parts = [
        part._replace(rows=rename_columns(part.rows, part.source, column_map))
        for part in open_parts(path_or_hub_id, encoding)
    ]
    for part in parts:
        check_columns(part.rows.column_names, part.source, labelled)
        if len(part.rows) == 0:
            raise ValueError(f"table: got no row in {part.source}, expected some")
    labels = _label_columns(parts, optional_labels) if labelled else [None] * len(parts)
    result: dict[str, Dataset] = {}
    is_whole = False
    for part, label in zip(parts, labels, strict=True):
        folder = Path(root) if root is not None else _folder_of(part.source)
        data = convert_dataset(part.rows, part.places, folder, label, outside_files)
        if part.split is None and "split" in data.column_names:
            pieces = _divide(data)
        else:
            is_whole = part.split is None and wanted is not None
            pieces = {part.split or wanted or "train": data}
        for found, piece in pieces.items():
            result[found] = concatenate_datasets([result[found], piece]) if found in result else piece
    check_no_leakage(as_dataset_dict(result), disjoint)
    if "train" in result and "validation" not in result and not is_whole and validation_share > 0:
        result["train"], result["validation"], by = split_off(result["train"], validation_share, seed)
        logger.info(f"{path_or_hub_id}: no validation split, so {validation_share:.0%} of train by {by}, seed {seed}.")
    if wanted is not None:
        if wanted not in result:
            raise ValueError(f"split: got {split!r}, but {path_or_hub_id} has only {sorted(result)}")
        result = {wanted: result[wanted]}
    return as_dataset_dict(result)


# Files and Hub datasets as unconverted rows, and the place of each row ----------------------------------------


class TablePart(NamedTuple):
    """
    Args:
        split: by the file's name or the Hub's; None where it does not say.
        source: file, or name on the Hub.
        rows: as they are there.
        places: of each row: `file:line`, of parquet and the Hub `source:number`, from 1.
    """

    split: str | None
    source: str
    rows: Dataset
    places: list[str]


def open_parts(where: str | Path, encoding: str | None = None) -> list[TablePart]:
    """Each file of a table, or each split of one on the Hub. Raises ValueError naming what cannot be read."""
    path = Path(where).expanduser()
    if path.is_file():
        return [TablePart(None, str(path), *_read_file(path, encoding))]
    if path.is_dir():
        return [TablePart(name, str(file), *_read_file(file, encoding)) for name, file in _files_of_folder(path)]
    identifier = str(where)
    if path.suffix.lower() in FORMATS or not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", identifier):
        raise ValueError(f"table: got {identifier!r}, expected a file, a folder or the id of a dataset on the Hub")
    try:
        loaded = load_dataset(identifier)
    except (OSError, ValueError, DatasetGenerationError) as error:  # no network, no such dataset, not readable
        raise ValueError(f"table: got {identifier!r}, no file here and not readable on the Hub ({error})") from error
    return [
        TablePart(SPLIT_ALIASES.get(str(name), str(name)), source, keep_encoded(data), _numbered(source, len(data)))
        for name, data in loaded.items()
        for source in [f"{identifier}/{name}"]
    ]


def _files_of_folder(folder: Path) -> list[tuple[str | None, Path]]:
    """Split and file, by names such as `train.csv` or `train-00000-of-00002.parquet`; or the only table there."""
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS)
    named = [(SPLIT_ALIASES.get(re.sub(r"[-_.]\d+(-of-\d+)?$", "", path.stem.lower())), path) for path in tables]
    files = [(name, path) for name, path in named if name is not None]
    for split in SPLIT_NAMES:
        suffixes = {path.suffix for name, path in files if name == split}
        if len(suffixes) > 1:
            raise ValueError(f"table: got {split} as {sorted(suffixes)} in {folder}, expected one format a split")
    if files:
        return files  # type: ignore[return-value]
    if len(tables) != 1:
        found = [path.name for path in tables]
        raise ValueError(f"table: got {found} in {folder}, expected one, or train.csv, validation.csv, test.csv")
    return [(None, tables[0])]


def _read_file(path: Path, encoding: str | None) -> tuple[Dataset, list[str]]:
    """Rows and their places."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"table: got {str(path)!r}, expected a file that ends in one of {sorted(FORMATS)}")
    if suffix != ".parquet":
        check_encoding(path, encoding)
    if FORMATS[suffix] == "csv":
        with path.open("rb") as file:
            rows, places = _columns_of(file, path, encoding)
        return rows, places
    options = {} if suffix == ".parquet" else {"encoding": encoding or "utf-8"}
    try:
        data_files = {"train": glob.escape(str(path.resolve()))}
        data = keep_encoded(load_dataset(FORMATS[suffix], data_files=data_files, split="train", **options))
    except (DatasetGenerationError, OSError, ValueError) as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"table: got no row in {path}, expected some") from error
        raise ValueError(f"table: cannot read {path} ({error.__cause__ or error})") from error
    places = _numbered(str(path), len(data))
    if suffix in TEXT_FORMATS:
        with path.open(encoding=encoding or "utf-8") as lines:
            filled = [number for number, line in enumerate(lines, start=1) if line.strip()]
        places = [f"{path}:{number}" for number in filled]
    return data, places


def _columns_of(file: Any, path: Path, encoding: str | None) -> tuple[Dataset, list[str]]:
    columns: dict[str, list[str | None]] = {}
    places: list[str] = []
    for row, place in text_rows(file, str(path), encoding):
        columns = columns or {name: [] for name in row}
        for name, value in row.items():
            columns[name].append(value)
        places.append(place)
    if not places:
        raise ValueError(f"table: got no row in {path}, expected some")
    return Dataset(pa.table({name: pa.array(values, type=pa.string()) for name, values in columns.items()})), places


def _numbered(source: str, count: int) -> list[str]:
    return [f"{source}:{number}" for number in range(1, count + 1)]


def _folder_of(source: str) -> Path:
    """Folder of the relative paths in a source."""
    return Path(source).resolve().parent if Path(source).is_file() else Path()


# What the rows hold -------------------------------------------------------------------------------------------


def rename_columns(data: Dataset, source: str, column_map: Mapping[str, str] | None) -> Dataset:
    """Our names in place of a table's, from `{ours: theirs}`. Raises ValueError for a column that is not there."""
    for ours, theirs in (column_map or {}).items():
        names = data.column_names
        if theirs not in names:
            raise ValueError(f"column_map: got {theirs!r} for {ours!r}, expected one of {names} of {source}")
        if ours != theirs:
            data = data.remove_columns(ours) if ours in names else data
            data = data.rename_column(theirs, ours)
    return data


def _label_columns(parts: Sequence[TablePart], optional: bool) -> list[LabelColumn]:
    """The label column of each part, by the values of all parts together."""
    columns, values = [], []
    for part in parts:
        name = "label" if "label" in part.rows.column_names else "labels"
        columns.append(LabelColumn(name, label_names(part.rows.features.get(name)), optional=optional))
        values.append(part.rows.select_columns([name])[:][name])
    return read_labels(columns, values, parts[0].source)


def _divide(data: Dataset) -> dict[str, Dataset]:
    """By the column `split`."""
    found: dict[str, list[int]] = {}
    columns = data.select_columns(["split", "row"])[:]
    for index, (value, row) in enumerate(zip(columns["split"], columns["row"], strict=True)):
        found.setdefault(split_named(value, row), []).append(index)
    return {name: data.select(indices).remove_columns("split") for name, indices in found.items()}
