"""One shard of clips to a file: a WebDataset tar, or parquet with media columns."""

import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, Image, Value, Video

from triemo.training.table_columns import MEDIA_COLUMNS

__all__ = ["Sample", "write_parquet", "write_tar"]

_ROW_GROUP = 32  # rows a reader of parquet holds at once


@dataclass(frozen=True)
class Sample:
    """One key, its files by column, and what the transcripts say of it."""

    key: str
    files: Mapping[str, Path]
    fields: Mapping[str, Any]
    size: int


def write_tar(path: Path, samples: Sequence[Sample]) -> None:
    """A WebDataset shard. Every sample has a .txt and a .json, for some readers ask for the same parts in all."""
    part = path.with_name(path.name + ".part")
    with tarfile.open(part, "w", format=tarfile.GNU_FORMAT) as archive:
        for sample in samples:
            text, fields = _words(sample)
            members = {
                f"{sample.key}.{file.suffix[1:].lower()}": file.read_bytes() for file in _media(sample).values()
            }
            members |= {f"{sample.key}.txt": text.encode(), f"{sample.key}.json": json.dumps(fields).encode()}
            for name, content in members.items():
                info = tarfile.TarInfo(name)  # without times and owners: the same clips give the same bytes
                info.size = len(content)
                archive.addfile(info, BytesIO(content))
    os.replace(part, path)


def write_parquet(path: Path, samples: Sequence[Sample]) -> None:
    """The same as a parquet file that `datasets` reads as media columns."""
    media: dict[str, Any] = {"audio": Audio(), "video": Video(), "image": Image()}
    columns = [name for name in media if any(name in sample.files for sample in samples)]
    names = sorted({name for sample in samples for name in _words(sample)[1]})
    features = Features({"key": Value("string"), **{name: media[name] for name in columns}, "text": Value("string")})
    features |= {name: Value("string") for name in names}
    schema = Features(features).arrow_schema
    part = path.with_name(path.name + ".part")
    with pq.ParquetWriter(part, schema) as writer:
        for start in range(0, len(samples), _ROW_GROUP):
            rows = [_parquet_row(sample, columns, names) for sample in samples[start : start + _ROW_GROUP]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    os.replace(part, path)


def _parquet_row(sample: Sample, columns: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    text, fields = _words(sample)
    row: dict[str, Any] = {"key": sample.key, "text": text or None}
    for name in columns:
        file = sample.files.get(name)
        row[name] = (
            None if file is None else {"bytes": file.read_bytes(), "path": f"{sample.key}{file.suffix.lower()}"}
        )
    return row | {name: None if fields.get(name) is None else str(fields[name]) for name in names}


def _media(sample: Sample) -> dict[str, Path]:
    return {name: sample.files[name] for name in MEDIA_COLUMNS if name in sample.files}


def _words(sample: Sample) -> tuple[str, dict[str, Any]]:
    """The transcript, of the table or of a text file beside the clip, and the other fields."""
    fields = {name: value for name, value in sample.fields.items() if name not in ("text", "split")}
    text = str(sample.fields.get("text") or "")
    if not text and "text" in sample.files:
        text = sample.files["text"].read_text(encoding="utf-8", errors="replace")
    if "label" in sample.files and "label" not in fields:
        fields["label"] = sample.files["label"].read_text(encoding="utf-8").strip()
    return text.strip(), fields
