"""What the readers of corpora share: where corpora lie, labels by the wanted set, clips that are not there, rows.

The root folder holds `ravdess/`, `fer2013/`, `goemotions/` and so on; it comes from the argument, else from the
environment variable `TRIEMO_DATA`, else it is `../shared/data`.
"""

import csv
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Audio, Dataset, DatasetDict, Image

from triemo.training.corpora.labels import map_label
from triemo.training.data.columns import FEATURE_COLUMNS, MEDIA_COLUMNS
from triemo.training.data.splits import as_dataset_dict

__all__ = [
    "SOUND_SUFFIXES",
    "corpus_folder",
    "corpus_hash",
    "data_root",
    "label_rows",
    "media_rows",
    "read_csv",
    "to_datasets",
]

logger = logging.getLogger(__name__)

# A corpus is the same in whatever format somebody keeps its sound.
SOUND_SUFFIXES = (".wav", ".flac", ".opus", ".ogg", ".mp3", ".m4a")
_TYPES = {
    "text": pa.string(),
    **{name: pa.struct({"bytes": pa.binary(), "path": pa.string()}) for name in MEDIA_COLUMNS},
    **{name: pa.list_(pa.list_(pa.float32())) for name in FEATURE_COLUMNS},
}


def data_root(root: str | Path | None = None) -> Path:
    """Folder that holds the corpora. Raises ValueError when it does not exist."""
    folder = Path(root or os.environ.get("TRIEMO_DATA") or "../shared/data")
    if not folder.is_dir():
        raise ValueError(f"data root: got {str(folder)!r}, expected an existing folder (set TRIEMO_DATA)")
    return folder


def corpus_hash(root: str | Path | None, corpus: str) -> str:
    """sha256 over the sorted lines `relative path, sha256 of the file` of every file of a corpus."""
    folder = corpus_folder(root, corpus)
    lines = sorted(
        f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in folder.rglob("*")
        if path.is_file()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def corpus_folder(root: str | Path | None, *names: str) -> Path:
    """The first folder of these names under the data root. Raises ValueError when none is there."""
    folders = [data_root(root) / name for name in names]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise ValueError(f"corpus: got no folder {' or '.join(map(str, folders))}, expected the corpus there")


def read_csv(path: Path, needed: Sequence[str], encoding: str = "utf-8-sig") -> list[dict]:
    """Rows of a csv with a header, each with `row` (`file:line`).

    Raises:
        ValueError: when the file or one of the needed columns is missing, or a row has too few cells.
    """
    if not path.is_file():
        raise ValueError(f"corpus: got no file {str(path)!r}, expected it")
    with path.open(encoding=encoding, newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        header = [name.strip() for name in reader.fieldnames or []]
        if missing := set(needed) - set(header):
            raise ValueError(f"columns: got {header} in {path}, expected also {sorted(missing)}")
        reader.fieldnames = header
        rows = []
        for cells in reader:
            if any(cells[name] is None for name in needed):
                raise ValueError(f"columns: got too few in {path}:{reader.line_num}, expected {header}")
            rows.append({**cells, "row": f"{path}:{reader.line_num}"})
    return rows


def label_rows(
    rows: Sequence[dict], corpus: str, classes: str, keep_unlabelled: bool = False, **options: Any
) -> list[dict]:
    """Rows whose own labels (a name or a list of names) become those of the wanted set; without what has no class.

    Of several labels of a row those without a counterpart go; the row stays as long as one is left, or, with
    `keep_unlabelled`, without a label.
    """
    if classes == "own":
        return list(rows)
    kept = []
    for row in rows:
        label = row["label"]
        names = [map_label(corpus, name, **options) for name in (label if isinstance(label, list) else [label])]
        mapped = sorted({name for name in names if name is not None})
        if mapped:
            kept.append({**row, "label": mapped if isinstance(label, list) else mapped[0]})
        elif keep_unlabelled:
            kept.append({**row, "label": None})
    return kept


def media_rows(rows: Sequence[dict], column: str, drop_missing: bool) -> list[dict]:
    """Paths in a media column as `{"bytes", "path"}`; files that are not there are counted, named and maybe dropped.

    Raises:
        ValueError: when none is there.
    """
    missing = [row for row in rows if row[column] is not None and not Path(row[column]).is_file()]
    if missing:
        names = ", ".join(f"{row[column]} ({row['row']})" for row in missing[:3])
        if len(missing) == len(rows):
            raise ValueError(f"{column}: none of {len(rows)} files is there, as {names}")
        fate = "left out" if drop_missing else "kept without their file"
        logger.warning(f"{column}: {len(missing)} of {len(rows)} files are not there; rows {fate}, as {names}.")
    gone = {id(row) for row in missing} if drop_missing else set()
    kept = [row for row in rows if id(row) not in gone]
    return [{**row, column: row[column] and {"bytes": None, "path": str(row[column])}} for row in kept]


def to_datasets(splits: Mapping[str, Sequence[dict]]) -> DatasetDict:
    """Rows of each split as an emotion table. Raises ValueError for an empty split."""
    result = {}
    for name, rows in splits.items():
        if not rows:
            raise ValueError(f"split {name}: got no row, expected some")
        result[name] = _to_dataset(rows)
    return as_dataset_dict(result)


def _to_dataset(rows: Sequence[dict]) -> Dataset:
    """With the types of media and vectors stated, since rows without them would not show any."""
    names = list(rows[0])
    columns = {name: pa.array([row[name] for row in rows], type=_TYPES.get(name)) for name in names}
    dataset = Dataset(pa.table(columns))
    # By a cast: encoding through the feature would ask for torchcodec, even of a path.
    for name, feature in (("audio", Audio(decode=False)), ("image", Image(decode=False))):
        dataset = dataset.cast_column(name, feature) if name in names else dataset
    return dataset
