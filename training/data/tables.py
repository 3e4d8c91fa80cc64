"""A table of one's own, or one of the Hub, as the splits of an emotion table (columns: see `columns`).

    load_table("calls.csv")                     # text,audio,label,speaker; sound files beside the csv
    load_table("folder")                        # train.csv, validation.csv, test.csv; jsonl or parquet as well
    load_table("user/dataset", column_map={"text": "utterance", "label": "emotion"})

A csv or tsv is read as text: an empty cell is absent, `NA` and `007` stay what they are. Several labels of one row
stand in a column `labels`, as a list or as `joy|surprise`.
"""

import csv
import glob
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    Value,
    concatenate_datasets,
    load_dataset,
)
from datasets.exceptions import DatasetGenerationError

from triemo.training.data.columns import (
    GROUP_COLUMNS,
    INPUT_COLUMNS,
    LabelColumn,
    check_inputs,
    convert_batch,
    convert_dataset,
    keep_encoded,
    label_kind,
    label_names,
)
from triemo.training.data.splits import SPLIT_ALIASES, SPLIT_NAMES, as_dataset_dict, check_no_leakage, split_off

__all__ = ["folder_of", "load_table", "open_parts", "row_places"]

logger = logging.getLogger(__name__)

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
VALIDATION_SHARE = 0.1
PEEKED_ROWS = 100  # of a stream, from which its columns and the kind of its labels are told


def load_table(
    path_or_hub_id: str | Path,
    split: str | None = None,
    column_map: Mapping[str, str] | None = None,
    streaming: bool = False,
    root: str | Path | None = None,
    *,
    labelled: bool = True,
    disjoint: Sequence[str] = ("speaker", "dialogue"),
    validation_share: float = VALIDATION_SHARE,
    seed: int = 0,
) -> DatasetDict | IterableDatasetDict:
    """
    Load a table with any of text, audio, video, image or vectors, and labels.

    Where there is a train split and no validation, `validation_share` of its rows become one: whole speakers and
    dialogues where there are such columns (`splits.split_off`), else rows. A stream is split by a hash of the
    speaker, else the dialogue, else the row's content, so the share is met on average: a small one may get no row.

    Args:
        path_or_hub_id: a csv, tsv, jsonl or parquet file, with or without a column `split`; a folder with a file for
            each split; or the id of a dataset on the Hub. A stream of a file with a column `split` offers train,
            validation and test, and one that is not there is empty.
        split: the only split wanted. A single file without a column `split` is taken whole for it.
        column_map: our name to the table's, as `{"text": "utterance"}`.
        streaming: read rows as they are asked for; errors come when their row does.
        root: folder of relative media paths; that of the table by default.
        labelled: whether every row must have a label.
        disjoint: columns whose values may not be in two splits; checked unless streaming.
        validation_share: of the rows of train, where there is no validation split; 0 makes none.
        seed: of that split.

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
    opened = open_parts(path_or_hub_id, streaming)
    parts = [(name, source, _rename(data, source, column_map)) for name, source, data in opened]
    _check_columns(parts, labelled)
    labels = _label_columns(parts) if labelled else [None] * len(parts)
    result: dict[str, Any] = {}
    is_whole = False
    for (name, source, data), label in zip(parts, labels, strict=True):
        folder = Path(root) if root is not None else folder_of(source)
        columns = _column_names(data)
        data = (_convert_stream if streaming else _convert)(data, source, folder, label)
        if name is None and "split" in columns:
            pieces = (_divide_stream if streaming else _divide)(data)
        else:
            is_whole = name is None and wanted is not None
            pieces = {name or wanted or "train": data}
        for found, piece in pieces.items():
            result[found] = concatenate_datasets([result[found], piece]) if found in result else piece
    if not streaming:
        check_no_leakage(as_dataset_dict(result), disjoint)
    if "train" in result and "validation" not in result and not is_whole and validation_share > 0:
        split_it = _split_off_stream if streaming else split_off
        result["train"], result["validation"], by = split_it(result["train"], validation_share, seed)
        logger.info(f"{path_or_hub_id}: no validation split, so {validation_share:.0%} of train by {by}, seed {seed}.")
    if wanted is not None:
        if wanted not in result:
            raise ValueError(f"split: got {split!r}, but {path_or_hub_id} has only {sorted(result)}")
        result = {wanted: result[wanted]}
    return IterableDatasetDict(result) if streaming else as_dataset_dict(result)


# Files and Hub datasets as unconverted rows, and the place of each row ----------------------------------------


def open_parts(where: str | Path, streaming: bool) -> list[tuple[str | None, str, Any]]:
    """(split or None, name of the source, unconverted rows) of each file or Hub split."""
    path = Path(where).expanduser()
    if path.is_file():
        return [(None, str(path), _read_file(path, streaming))]
    if path.is_dir():
        return [(name, str(file), _read_file(file, streaming)) for name, file in _files_of_folder(path)]
    identifier = str(where)
    if path.suffix.lower() in FORMATS or not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", identifier):
        raise ValueError(f"table: got {identifier!r}, expected a file, a folder or the id of a dataset on the Hub")
    try:
        loaded = load_dataset(identifier, streaming=streaming)
    except (OSError, ValueError, DatasetGenerationError) as error:  # no network, no such dataset, not readable
        raise ValueError(f"table: got {identifier!r}, no file here and not readable on the Hub ({error})") from error
    return [
        (SPLIT_ALIASES.get(str(name), str(name)), f"{identifier}/{name}", keep_encoded(data))
        for name, data in loaded.items()
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


def _read_file(path: Path, streaming: bool) -> Any:
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"table: got {str(path)!r}, expected a file that ends in one of {sorted(FORMATS)}")
    reader, options = FORMATS[path.suffix.lower()], {}
    try:
        if reader == "csv":
            options = _csv_options(path)
        data_files = {"train": glob.escape(str(path.resolve()))}
        data = load_dataset(reader, data_files=data_files, split="train", streaming=streaming, **options)
        return keep_encoded(data)
    except (DatasetGenerationError, OSError, ValueError) as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"table: got no row in {path}, expected some") from error
        raise ValueError(f"table: cannot read {path} ({error.__cause__ or error})") from error


def _csv_options(path: Path) -> dict:
    """Separator and columns from the header; every cell is read as text, and only an empty one is absent."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline()
        separator = max(",;\t", key=line.count)
        file.seek(0)
        header = next(csv.reader(file, delimiter=separator), [])
    if len(set(header)) != len(header) or not header:
        raise ValueError(f"header: got {header}, expected different column names")
    features = Features({name: Value("string") for name in header})
    return {"sep": separator, "features": features, "keep_default_na": False, "na_values": [""]}


def row_places(source: str, count: int) -> list[str]:
    """`file:line` of every row; of parquet and the Hub `source:number`, from 1."""
    path = Path(source)
    numbers: Any = range(1, count + 1)
    if FORMATS.get(path.suffix.lower()) == "csv" and path.is_file():
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_csv_options(path)["sep"])
            ends = [(bool(cells), reader.line_num) for cells in reader]
        starts = [1] + [end + 1 for _, end in ends]
        numbers = [start for start, (filled, _) in zip(starts, ends, strict=False) if filled][1:]
    elif path.suffix.lower() in (".jsonl", ".ndjson") and path.is_file():
        with path.open(encoding="utf-8") as file:
            numbers = [number for number, line in enumerate(file, start=1) if line.strip()]
    if len(numbers) != count:  # quotes that the two readers understand differently
        numbers = range(1, count + 1)
    return [f"{source}:{number}" for number in numbers]


def folder_of(source: str) -> Path:
    """Folder of the relative paths in a source."""
    return Path(source).resolve().parent if Path(source).is_file() else Path()


# What the rows hold -------------------------------------------------------------------------------------------


def _column_names(data: Any) -> list[str]:
    if data.column_names is None:  # a stream of json does not know them before it is read
        return sorted({name for row in islice(iter(data), PEEKED_ROWS) for name in row})
    return list(data.column_names)


def _rename(data: Any, source: str, column_map: Mapping[str, str] | None) -> Any:
    names = _column_names(data)
    for ours, theirs in (column_map or {}).items():
        if theirs not in names:
            raise ValueError(f"column_map: got {theirs!r} for {ours!r}, expected one of {names} of {source}")
        if ours != theirs:
            data = data.remove_columns(ours) if ours in names else data
            data = data.rename_column(theirs, ours)
            names = [ours if name == theirs else name for name in names if name != ours]
    return data


def _check_columns(parts: list[tuple[str | None, str, Any]], labelled: bool) -> None:
    for _, source, data in parts:
        names = _column_names(data)
        if not set(names) & set(INPUT_COLUMNS):
            raise ValueError(f"columns: got {names} in {source}, expected one of {INPUT_COLUMNS}; see `column_map`")
        if labelled and not {"label", "labels"} & set(names):
            raise ValueError(f"columns: got {names} in {source}, expected `label` or `labels`; see `column_map`")
        if {"label", "labels"} <= set(names):
            raise ValueError(f"columns: got both label and labels in {source}, expected one of them")
        if not any(True for _ in islice(iter(data.select_columns(names[:1])), 1)):
            raise ValueError(f"table: got no row in {source}, expected some")


def _label_columns(parts: list[tuple[str | None, str, Any]]) -> list[LabelColumn]:
    """The label column of each part; the kind is told from all parts together."""
    columns, values = [], []
    for _, _, data in parts:
        name = "label" if "label" in _column_names(data) else "labels"
        columns.append(LabelColumn(name, label_names((data.features or {}).get(name))))
        chosen = data.select_columns([name])
        seen = chosen[:][name] if isinstance(data, Dataset) else [row[name] for row in islice(chosen, PEEKED_ROWS)]
        values += columns[-1].named(seen)
    kind = label_kind(values)
    return [replace(column, kind=kind) for column in columns]


def _convert(data: Dataset, source: str, folder: Path, label: LabelColumn | None) -> Dataset:
    return convert_dataset(data, row_places(source, len(data)), folder, label)


def _convert_stream(data: IterableDataset, source: str, folder: Path, label: LabelColumn | None) -> IterableDataset:
    # A csv's first row stands in line 2; cells with line breaks move later ones, which a stream cannot know.
    first = 2 if Path(source).suffix.lower() in (".csv", ".tsv") else 1

    convert = partial(_convert_streamed, source=source, first=first, folder=folder, label=label)
    gone = ["labels"] if label is not None and label.name == "labels" else None
    return data.map(convert, with_indices=True, batched=True, batch_size=16, remove_columns=gone)


def _convert_streamed(
    batch: dict[str, list], indices: list[int], source: str, first: int, folder: Path, label: LabelColumn | None
) -> dict[str, list]:
    rows = [f"{source}:{index + first}" for index in indices]
    check_inputs(batch, rows)
    return convert_batch(batch, rows, folder, label)


# Splits -------------------------------------------------------------------------------------------------------


def _split_of(value: Any, row: str) -> str:
    name = SPLIT_ALIASES.get(str(value).strip().lower())
    if name is None:
        raise ValueError(f"split: got {value!r} in {row}, expected one of {sorted(SPLIT_ALIASES)}")
    return name


def _divide(data: Dataset) -> dict[str, Dataset]:
    found: dict[str, list[int]] = {}
    columns = data.select_columns(["split", "row"])[:]
    for index, (value, row) in enumerate(zip(columns["split"], columns["row"], strict=True)):
        found.setdefault(_split_of(value, row), []).append(index)
    return {name: data.select(indices).remove_columns("split") for name, indices in found.items()}


def _divide_stream(data: IterableDataset) -> dict[str, IterableDataset]:
    return {name: data.filter(partial(_is_of, name=name)).remove_columns("split") for name in SPLIT_NAMES}


def _is_of(row: dict, name: str) -> bool:
    return _split_of(row["split"], row["row"]) == name


def _split_off_stream(data: IterableDataset, share: float, seed: int) -> tuple[IterableDataset, IterableDataset, str]:
    stays = data.filter(partial(_is_split_off, share=share, seed=seed, wanted=False))
    return stays, data.filter(partial(_is_split_off, share=share, seed=seed, wanted=True)), "hash"


def _is_split_off(row: dict, share: float, seed: int, wanted: bool) -> bool:
    """By what the row says itself: numbers of rows differ when several workers read a stream."""
    group = next((row[name] for name in GROUP_COLUMNS if row.get(name) is not None), None)
    content = group if group is not None else [row.get(name) for name in INPUT_COLUMNS]
    digest = sha256(f"{seed}:{content!r}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") < share * 2**64) == wanted
