"""Tables in text files, csv and JSON lines, as rows with their places: encodings, separators, unnamed columns."""

import codecs
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["TEXT_FORMATS", "check_encoding", "text_rows"]

TEXT_FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json"}
ENCODING = "utf-8-sig"  # UTF-8, with the mark that some programs put at the beginning or without
_CHUNK = 1 << 20
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # else a cell of 131,072 letters is an error


def text_rows(file: BinaryIO, path: str, encoding: str | None = None) -> Iterator[tuple[dict[str, Any], str]]:
    """
    Rows of a csv or tsv, every cell text and an empty one None, or of JSON lines; each with its place, `path:line`.

    Columns without a name are left out: `DataFrame.to_csv` writes its index as one.

    Raises:
        ValueError: naming the line of what cannot be read, a header that names a column twice, or bytes of another
            encoding.
    """
    text = io.TextIOWrapper(file, encoding=_known(encoding), newline="")
    read = _csv_rows if TEXT_FORMATS[Path(path).suffix.lower()] == "csv" else _json_rows
    try:
        yield from read(text, path)
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, error.object[:_CHUNK], encoding) from error


def _csv_rows(text: io.TextIOWrapper, path: str) -> Iterator[tuple[dict[str, Any], str]]:
    first = text.readline()
    if "\0" in first:
        raise _wrong_encoding(path, first.encode(text.encoding), None)
    reader = csv.reader(_chained(first, text), delimiter=max(",;\t", key=first.count))
    header = [name.strip() for name in next(reader, [])]
    names = [name for name in header if _is_name(name)]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"header: got {header} in {path}, expected different column names")
    start = reader.line_num + 1
    try:
        for cells in reader:
            if any(cells[len(header) :]):
                raise ValueError(
                    f"row: got {len(cells)} cells in {path}:{start}, expected {len(header)}; quote text that holds a "
                    "separator"
                )
            if cells:
                cells += [""] * (len(header) - len(cells))
                yield (
                    {n: cell or None for n, cell in zip(header, cells, strict=False) if _is_name(n)},
                    f"{path}:{start}",
                )
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"table: cannot read {path}:{start} ({error})") from error


def _chained(first: str, rest: io.TextIOWrapper) -> Iterator[str]:
    yield first
    yield from rest


def _is_name(name: str) -> bool:
    """Whether a header's cell names a column; pandas reads an unnamed one as `Unnamed: 0`, and writes it so again."""
    return bool(name) and not name.startswith("Unnamed: ")


def _json_rows(text: io.TextIOWrapper, path: str) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"table: cannot read {path}:{number} ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"table: got a {type(row).__name__} in {path}:{number}, expected an object")
        yield row, f"{path}:{number}"


# Encodings ---------------------------------------------------------------------------------------------------


def check_encoding(path: Path, encoding: str | None) -> None:
    """Raises ValueError, with the encoding that it looks like, when a text file is not in `encoding` (UTF-8)."""
    decoder = codecs.getincrementaldecoder(_known(encoding))()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            try:
                text = decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise _wrong_encoding(str(path), chunk, encoding) from error
            if "\0" in text:
                raise _wrong_encoding(str(path), chunk, encoding)


def _known(encoding: str | None) -> str:
    try:
        return codecs.lookup(encoding or ENCODING).name
    except LookupError as error:
        raise ValueError(f"encoding: got {encoding!r}, expected one such as utf-8, utf-16 or windows-1252") from error


def _wrong_encoding(path: str, content: bytes, encoding: str | None) -> ValueError:
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    guess = "utf-16" if marked or b"\0" in content else "windows-1252"
    return ValueError(f"encoding: {path} is not {encoding or 'utf-8'}; it looks like --encoding {guess}")
