"""A folder of clips and their transcripts as shards to stream from: WebDataset tar files, or parquet.

The samples of every shard are planned before the first is written, from names and sizes alone. So a packing that was
interrupted goes on with the shard it was at, and the same folder gives the same bytes.
"""

import hashlib
import json
import logging
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, Image, Value, Video

from triemo.processing import load_audio, probe_media
from triemo.training.common import write_json
from triemo.training.data.columns import MEDIA_COLUMNS
from triemo.training.data.shards import column_of
from triemo.training.data.splits import SPLIT_ALIASES, SPLIT_NAMES
from triemo.training.data.tables import open_parts

__all__ = ["PackedClips", "Sample", "check_clip", "pack_clips", "write_parquet", "write_tar"]

logger = logging.getLogger(__name__)

FORMATS = ("tar", "parquet")
RECORD = "packed.json"
FILE_COLUMNS = ("file", "file_name", "clip", "path", "video", "audio", "image", "id", "key")
_ROW_GROUP = 32  # rows a reader of parquet holds at once


@dataclass(frozen=True)
class Sample:
    """One key, its files by column, and what the transcripts say of it."""

    key: str
    files: Mapping[str, Path]
    fields: Mapping[str, Any]
    size: int


@dataclass
class PackedClips:
    """
    Args:
        samples: samples in the shards.
        shards: how many shards.
        broken: clips left out, each with the reason.
        without_transcript: samples without words.
        unused_transcripts: rows of the transcripts that name no clip of the folder.
    """

    samples: int
    shards: int
    broken: dict[str, str]
    without_transcript: int
    unused_transcripts: list[str]


def pack_clips(
    clips: str | Path,
    output: str | Path,
    transcripts: str | Path | None = None,
    format: str = "tar",
    samples_per_shard: int = 1000,
    bytes_per_shard: int = 500_000_000,
    seed: int = 0,
    check: bool = True,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PackedClips:
    """
    Files of one name (`a/0001.mp4`, `a/0001.txt`) are one sample; samples are shuffled over the shards.

    Args:
        clips: folder of video, sound, picture and text files, searched with its sub-folders.
        output: folder of the shards, `train-00000.tar` and so on, and of `packed.json`.
        transcripts: csv, tsv, jsonl or parquet with the name of a clip (one of `FILE_COLUMNS`, with or without its
            suffix) and `text`. A column `split` divides the shards into train, validation and test; all other columns
            (`label`, `speaker`, ...) go into the sample's json.
        format: `tar` or `parquet`.
        samples_per_shard, bytes_per_shard: limits of a shard; one clip larger than the second is a shard by itself.
        seed: of the shuffling.
        check: read every clip, and leave out, named, what cannot be read.
        restart: write all anew even if the folder holds another packing.
        progress: called with samples done and samples in all.

    Raises:
        ValueError: no clip there, transcripts that name none or one twice, or a folder with another packing.
    """
    if format not in FORMATS:
        raise ValueError(f"format: got {format!r}, expected one of {', '.join(FORMATS)}")
    if samples_per_shard < 1 or bytes_per_shard < 1:
        raise ValueError(f"shard: got at most {samples_per_shard} samples and {bytes_per_shard} bytes, expected some")
    samples, unused = collect_samples(Path(clips), None if transcripts is None else Path(transcripts))
    plan = plan_shards(samples, format, samples_per_shard, bytes_per_shard, seed)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    contents = [[name, [[s.key, s.size, dict(s.fields)] for s in part]] for name, part in plan.items()]
    digest = hashlib.sha256(json.dumps([contents, check], default=str).encode()).hexdigest()
    done = finished_shards(folder, digest, restart)
    write = write_tar if format == "tar" else write_parquet
    count = 0
    for name, part in plan.items():
        if name not in done:
            broken = {}
            sound = []
            for sample in part:
                reason = check_sample(sample) if check else None
                if reason is None:
                    sound.append(sample)
                else:
                    broken[sample.key] = reason
                    logger.warning(f"{sample.key}: left out, {reason}")
                count += 1
                if progress:
                    progress(count, len(samples))
            if sound:
                write(folder / name, sound)
            done[name] = {"samples": len(sound), "broken": broken}
            write_json(folder / RECORD, {"plan": digest, "shards": done})
        else:
            count += len(part)
            if progress:
                progress(count, len(samples))
    broken = {key: reason for shard in done.values() for key, reason in shard["broken"].items()}
    if len(broken) == len(samples):
        raise ValueError(f"clips: none of {len(samples)} in {clips} can be read, as {next(iter(broken.items()))}")
    without = sum(not s.fields.get("text") and "text" not in s.files for s in samples if s.key not in broken)
    whole = sum(shard["samples"] for shard in done.values())
    return PackedClips(whole, sum(shard["samples"] > 0 for shard in done.values()), broken, without, unused)


# What there is ------------------------------------------------------------------------------------------------


def collect_samples(folder: Path, transcripts: Path | None) -> tuple[list[Sample], list[str]]:
    """Samples sorted by key, and the rows of the transcripts that belong to none."""
    if not folder.is_dir():
        raise ValueError(f"clips: got {str(folder)!r}, expected a folder")
    files: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.rglob("*")):
        column = column_of(path.suffix.removeprefix("."))
        if column is None or not path.is_file():
            continue
        key = _key(path.relative_to(folder).as_posix())
        if column in files[key]:
            raise ValueError(
                f"clips: got {files[key][column].name} and {path.name} of one name, expected one {column}"
            )
        files[key][column] = path
    files = {key: parts for key, parts in files.items() if set(parts) & set(MEDIA_COLUMNS)}  # type: ignore[assignment]
    if not files:
        raise ValueError(f"clips: got no video, sound or picture in {folder}, expected some")
    fields, unused = ({}, []) if transcripts is None else read_transcripts(transcripts, folder, set(files))
    samples = [
        Sample(key, parts, fields.get(key, {}), sum(path.stat().st_size for path in parts.values()))
        for key, parts in sorted(files.items())
    ]
    return samples, unused


def _key(name: str) -> str:
    """A name without its suffix; other dots would end a WebDataset key too early."""
    stem, dot, suffix = name.rpartition(".")
    name = stem if dot and column_of(suffix) else name
    above, slash, last = name.rpartition("/")
    return above + slash + re.sub(r"[.\s]", "_", last)


def read_transcripts(table: Path, folder: Path, keys: set[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The cells of each key, and the rows that name no clip."""
    found: dict[str, dict[str, Any]] = {}
    unused = []
    for part in open_parts(table):
        names = part.rows.column_names
        column = next((name for name in FILE_COLUMNS if name in names), None)
        if column is None:
            raise ValueError(f"transcripts: got {names} in {part.source}, expected one of {FILE_COLUMNS}")
        for cells, place in zip(part.rows, part.places, strict=True):
            name = Path(str(cells.pop(column)))
            name = name.relative_to(folder) if name.is_relative_to(folder) else name
            key = _key(name.as_posix())
            if key not in keys:
                unused.append(place)
                continue
            if key in found:
                raise ValueError(f"transcripts: got {key} again in {place}, expected each clip once")
            found[key] = {name: value for name, value in cells.items() if value is not None and value != ""}
            split = str(found[key].get("split", "train")).strip().lower()
            if split not in SPLIT_ALIASES:
                raise ValueError(f"split: got {split!r} in {place}, expected one of {', '.join(SPLIT_NAMES)}")
    if not found:
        raise ValueError(f"transcripts: no row of {table} names a clip of {folder}, as {unused[:3]}")
    return found, unused


def plan_shards(
    samples: Sequence[Sample], format: str, most_samples: int, most_bytes: int, seed: int
) -> dict[str, list[Sample]]:
    """The samples of each shard by its name, shuffled."""
    splits: dict[str, list[Sample]] = defaultdict(list)
    for index in np.random.default_rng(seed).permutation(len(samples)):
        sample = samples[index]
        splits[SPLIT_ALIASES[str(sample.fields.get("split", "train")).strip().lower()]].append(sample)
    plan = {}
    for split in (name for name in SPLIT_NAMES if name in splits):
        parts: list[list[Sample]] = [[]]
        size = 0
        for sample in splits[split]:
            if parts[-1] and (len(parts[-1]) >= most_samples or size + sample.size > most_bytes):
                parts.append([])
                size = 0
            parts[-1].append(sample)
            size += sample.size
        plan |= {f"{split}-{number:05d}.{format}": part for number, part in enumerate(parts)}
    return plan


def finished_shards(folder: Path, digest: str, restart: bool) -> dict[str, dict]:
    """Shards that an interrupted packing of the same plan has written."""
    record = folder / RECORD
    if restart or not record.is_file():
        leftover = [path for suffix in FORMATS for path in folder.glob(f"*-?????.{suffix}")]
        if leftover and not restart:
            raise ValueError(f"output: {folder} holds {leftover[0].name} and no {RECORD}; give another, or --restart")
        for path in (record, *leftover):
            path.unlink(missing_ok=True)
        return {}
    before = json.loads(record.read_text(encoding="utf-8"))
    if before["plan"] != digest:
        raise ValueError(f"output: {folder} holds other clips or limits; give another folder, or --restart")
    return before["shards"]


def check_sample(sample: Sample) -> str | None:
    """Why a sample cannot be read; None when it can."""
    for column in MEDIA_COLUMNS:
        if column in sample.files:
            try:
                check_clip(sample.files[column], column)
            except (ValueError, OSError) as error:
                return str(error)
    return None


def check_clip(path: Path, column: str) -> None:
    """Decodes the first picture and all sound. Raises ValueError when either is damaged or what is expected lacks."""
    info = probe_media(str(path))
    if info.has_audio:
        load_audio(str(path))
    if not info.has_audio and column == "audio":
        raise ValueError(f"Cannot read sound from {path}: it has no sound track.")
    if column in ("video", "image") and (not info.has_video or info.width is None):
        raise ValueError(f"Cannot read pictures from {path}: it has none.")


# One shard to a file ------------------------------------------------------------------------------------------


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
