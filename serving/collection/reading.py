"""A collection to a table of answers, in parts that are written whole.

Part k holds the same clips whatever reads it, and its batches are cut within it. So how many processes, machines and
starts there were changes nothing: a part is either there, whole, or it is read again. Processes never wait for each
other. The one that finds all parts there joins them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import Dataset

from triemo.serving.collection.clips import Clip, Collection
from triemo.training.common import write_json

__all__ = ["CLIPS_PER_PART", "RECORD", "TABLE", "ReadCollection", "Share", "launched_share", "read_collection"]

CLIPS_PER_PART = 64
TABLE = "table.parquet"
RECORD = "collection.json"


@dataclass(frozen=True)
class Share:
    """Which of several workers this one is; it reads every `of`-th part, from the `index`-th on."""

    index: int = 0
    of: int = 1


@dataclass(frozen=True)
class ReadCollection:
    """
    Args:
        clips: in the collection.
        own: of this worker's share.
        missing_parts: still to be read, by other workers.
        table: the joined table, None until every part is there.
    """

    clips: int
    own: int
    missing_parts: int
    table: Path | None


def launched_share(num_shards: int = 1, shard: int = 0) -> Share:
    """
    The share of this process: of the processes that torchrun or accelerate launched, and of a job array's jobs.

    Raises:
        ValueError: no such shard.
    """
    if num_shards < 1 or not 0 <= shard < num_shards:
        raise ValueError(f"shard: got {shard} of num_shards {num_shards}, expected 0 to {max(num_shards, 1) - 1}.")
    processes, process = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    return Share(shard * processes + process, num_shards * processes)


def read_collection(
    reader: Any,
    collection: Collection,
    output: str | Path,
    *,
    share: Share | None = None,
    clips_per_part: int = CLIPS_PER_PART,
    batch_size: int = 8,
    workers: int = 0,
    options: Mapping[str, Any] | None = None,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ReadCollection:
    """
    Read this share of a collection into `output/parts`, and once all parts are there join them to
    `output/table.parquet`. What is there already is not read again.

    A row has `number`, `clip`, `label` and `score` (the best), `uncertain`, `score_...` of each label, `modalities`,
    `notes`, `problem` (why a clip could not be read; then the others are empty), and the columns that are kept, with
    `given_` before a name that is taken.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline.
        output: a folder of its own.
        share: of several workers; by default all of it.
        clips_per_part: a part is what is lost when a worker is stopped.
        batch_size: clips that go through the model at once.
        workers: processes that decode.
        options: further parameters of the pipeline, such as `candidate_labels`.
        restart: read all anew, over what another reading left; not with several workers.
        progress: called with the clips of this share that are done, and how many it has.

    Raises:
        ValueError: `output` holds the answers for other clips, of another model or with other options.
    """
    share, options = share or Share(), dict(options or {})
    folder = Path(output)
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    _check_record(folder, _description(reader, collection, clips_per_part, options), restart)
    columns = _Columns(reader.model.config.id2label.values(), collection.kept)
    numbers = range(0, len(collection), clips_per_part)
    files = [folder / "parts" / f"part-{part:05d}.parquet" for part in range(len(numbers))]
    shares = {part: numbers[part : part + 1][0] for part in range(share.index, len(files), share.of)}
    sizes = {part: min(clips_per_part, len(collection) - first) for part, first in shares.items()}
    own, done = sum(sizes.values()), 0
    for part, first in shares.items():
        for left in files[part].parent.glob(f".{files[part].name}.*"):
            left.unlink()  # of a worker that was stopped while it wrote
        if files[part].is_file():
            done += sizes[part]
            _tell(progress, done, own)
            continue
        clips = [collection[number] for number in range(first, first + sizes[part])]
        rows = []
        for clip, answer in zip(clips, _answers(reader, clips, batch_size, workers, options), strict=True):
            rows.append(columns.row(first + len(rows), clip, answer))
            done += 1
            _tell(progress, done, own)
        _write_table(files[part], columns.schema, iter([pa.Table.from_pylist(rows, columns.schema)]))
    missing = sum(not file.is_file() for file in files)
    if missing:
        return ReadCollection(len(collection), own, missing, None)
    table = folder / TABLE
    _write_table(table, columns.schema, (pq.read_table(file, schema=columns.schema) for file in files))
    return ReadCollection(len(collection), own, 0, table)


def _tell(progress: Callable[[int, int], None] | None, done: int, own: int) -> None:
    if progress is not None:
        progress(done, own)


# Answers


class _Inputs(Dataset):
    """A stream for the pipeline, which answers a list only when it has read all of it."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> Any:
        return self._inputs[index]


def _answers(
    reader: Any, clips: Sequence[Clip], batch_size: int, workers: int, options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """One for each clip; of what cannot be read, empty `scores` and the reason as its last note."""
    inputs = [clip.inputs for clip in clips if clip.problem is None]
    settings = {"batch_size": batch_size, "num_workers": workers, "return_notes": True, "skip_unreadable": True}
    found = iter(reader(_Inputs(inputs), **settings, **options)) if inputs else iter(())
    died = False
    for clip in clips:
        if clip.problem is not None:
            yield _nothing(clip.problem)
            continue
        answer = None
        if not died:
            try:
                answer = next(found)
            except RuntimeError as error:
                if not _is_dead_worker(error):
                    raise
                died = True  # which clip did it is not told: from here on each is decoded in a process of its own
        yield _answer_alone(reader, clip, settings, options) if answer is None else answer


def _answer_alone(reader: Any, clip: Clip, settings: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return next(iter(reader(_Inputs([clip.inputs]), **{**settings, "batch_size": 1}, **options)))
    except RuntimeError as error:
        if not _is_dead_worker(error):
            raise
        return _nothing(f"the process that decoded it died ({str(error).splitlines()[0]})")


def _is_dead_worker(error: RuntimeError) -> bool:
    return "DataLoader worker" in str(error)


def _nothing(reason: str) -> dict[str, Any]:
    return {"scores": [], "modalities": [], "notes": [reason], "uncertain": False}


# Rows and files


class _Columns:
    """
    Args:
        labels: of the model.
        kept: the type of each column that is kept.
    """

    def __init__(self, labels: Iterable[str], kept: Mapping[str, pa.DataType]) -> None:
        texts = pa.list_(pa.string())
        own = {"number": pa.int64(), "clip": pa.string(), "label": pa.string(), "score": pa.float64()}
        own |= {"uncertain": pa.bool_(), "modalities": texts, "notes": texts, "problem": pa.string()}
        own |= {f"score_{label}": pa.float64() for label in labels}
        self._kept_as = {name: f"given_{name}" if name in own else name for name in kept}
        self.schema = pa.schema([*own.items(), *((self._kept_as[name], kind) for name, kind in kept.items())])

    def row(self, number: int, clip: Clip, answer: Mapping[str, Any]) -> dict[str, Any]:
        """One clip's; without scores, the last note of the answer says why."""
        scores, notes = answer["scores"], answer["notes"]
        found: dict[str, Any] = {"number": number, "clip": clip.name, "modalities": answer["modalities"]}
        if scores:
            found |= {**scores[0], "uncertain": answer["uncertain"], "notes": notes}
            found |= {f"score_{entry['label']}": entry["score"] for entry in scores}
        else:
            found |= {"notes": notes[:-1], "problem": notes[-1]}
        return found | {self._kept_as[name]: value for name, value in clip.kept.items()}


def _write_table(file: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    """Under another name first, and on the disk before it gets its own: what has its name is whole."""
    part = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        with part.open("wb") as sink:
            with pq.ParquetWriter(sink, schema) as writer:
                for table in tables:
                    writer.write_table(table)
            sink.flush()
            os.fsync(sink.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


# What the parts in a folder belong to


def _description(
    reader: Any, collection: Collection, clips_per_part: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    model = hashlib.sha256(json.dumps(reader.model.config.to_diff_dict(), sort_keys=True, default=str).encode())
    for parameter in reader.model.parameters():
        model.update(parameter.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return {
        "clips": len(collection),
        "clips_digest": collection.digest,
        "model_digest": model.hexdigest(),
        "clips_per_part": clips_per_part,
        "options": json.loads(json.dumps(options, sort_keys=True, default=str)),
    }


def _check_record(folder: Path, description: dict[str, Any], restart: bool) -> None:
    file = folder / RECORD
    if restart:
        for old in (folder / "parts").glob("part-*.parquet"):
            old.unlink()
        for old in (file, folder / TABLE):
            old.unlink(missing_ok=True)
    if not file.is_file():
        if any((folder / "parts").glob("part-*.parquet")):
            raise ValueError(f"output: {folder} has parts and no {RECORD}; give an empty folder.")
        write_json(file, description)
        return
    before = json.loads(file.read_text("utf-8"))
    other = [name for name, value in description.items() if before.get(name) != value]
    if other:
        raise ValueError(
            f"output: {folder} holds another reading, which differs in {', '.join(other)}; give another folder, or "
            "--restart to read all anew."
        )
