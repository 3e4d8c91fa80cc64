"""Files and Hub datasets as unconverted rows, with the place of each row."""

import csv
import glob
import re
from pathlib import Path
from typing import Any

from datasets import Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from triemo.training.splits import SPLIT_NAMES
from triemo.training.table_columns import keep_encoded

__all__ = ["SPLIT_ALIASES", "folder_of", "open_parts", "row_places"]

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
SPLIT_ALIASES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "validation" for name in ("validation", "valid", "val", "dev", "eval", "development")},
    **{name: "test" for name in ("test", "testing")},
}


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
