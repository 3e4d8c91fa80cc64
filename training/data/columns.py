"""Columns of a table of one's own, brought to the form that training reads.

An emotion table has any of the columns `text` (str), `audio`, `video`, `image` (`{"bytes", "path"}`, still encoded),
`text_features`, `audio_features`, `vision_features` (steps, dimensions), and `label`: a class name (str), a list of
class names (several labels), a float or a list of floats (regression). `row` says where a row stood, as `file:line`.
"""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, ClassLabel, Dataset, Image, LargeList, List, Video

from triemo.processing.presence_triemo import is_absent

__all__ = [
    "FEATURE_COLUMNS",
    "GROUP_COLUMNS",
    "INPUT_COLUMNS",
    "LabelColumn",
    "MEDIA_COLUMNS",
    "check_columns",
    "check_inputs",
    "convert_batch",
    "convert_dataset",
    "convert_labels",
    "keep_encoded",
    "label_kind",
    "label_names",
    "meant_columns",
    "read_labels",
    "rough_cost",
]

logger = logging.getLogger(__name__)

MEDIA_COLUMNS = ("audio", "video", "image")
FEATURE_COLUMNS = ("text_features", "audio_features", "vision_features")
INPUT_COLUMNS = ("text", *MEDIA_COLUMNS, *FEATURE_COLUMNS)
GROUP_COLUMNS = ("speaker", "dialogue")
KNOWN_COLUMNS = (*INPUT_COLUMNS, *GROUP_COLUMNS, "label", "labels", "split")
_SYNONYMS = {
    **dict.fromkeys(("utterance", "sentence", "transcript", "transcription", "content", "message", "comment"), "text"),
    **dict.fromkeys(("words", "review", "tweet", "caption", "dialog_text", "text_content"), "text"),
    **dict.fromkeys(("wav", "sound", "speech", "voice", "audio_path", "audio_file", "wav_path"), "audio"),
    **dict.fromkeys(("clip", "movie", "video_path", "video_file", "mp4"), "video"),
    **dict.fromkeys(("picture", "photo", "face", "image_path", "image_file", "img", "frame"), "image"),
    **dict.fromkeys(("emotion", "class", "target", "category", "sentiment", "mood", "feeling", "y"), "label"),
    **dict.fromkeys(("emotions", "classes", "targets"), "labels"),
    **dict.fromkeys(("speaker_id", "actor", "person", "user", "subject"), "speaker"),
    **dict.fromkeys(("dialog", "dialogue_id", "dialog_id", "conversation", "conversation_id"), "dialogue"),
}
LABEL_SEPARATORS = ("|", ";", ",")  # between the labels of a cell of the column `labels`, where a file has no lists
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?|[-+]?\.\d+")
_WHOLE = re.compile(r"[-+]?\d+")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")


@dataclass(frozen=True)
class LabelColumn:
    """
    How labels are read.

    Args:
        name: of the column, `label` or `labels`.
        class_names: of numbers.
        kind: see `label_kind`.
        separator: between the labels of a cell of `labels`.
        spellings: labels that are read as another one, which differs in letter case alone.
        optional: whether a row may have none, and then has None.
    """

    name: str
    class_names: list[str] | None
    kind: str = "class"
    separator: str = LABEL_SEPARATORS[0]
    spellings: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False

    def named(self, values: Sequence[Any]) -> list:
        """Values with class numbers replaced by names and, in a column `labels`, text split into several."""
        return [self._named(value) for value in values]

    def _named(self, value: Any) -> Any:
        if isinstance(value, list):
            return [part if isinstance(part, str) else self._named(part) for part in value]
        if self.name == "labels" and isinstance(value, str) and value.strip():
            return [part.strip() for part in value.split(self.separator)]
        if self.class_names is None or not isinstance(value, int):
            return value
        return self.class_names[value] if value >= 0 else None  # published test sets write -1 for no label


# Whole tables -------------------------------------------------------------------------------------------------


def convert_dataset(
    dataset: Dataset, rows: list[str], folder: Path, label: LabelColumn | None, outside_files: bool = False
) -> Dataset:
    """`convert_batch` over a whole map-style table; what does not change, such as embedded media, is not copied.

    Raises:
        ValueError: as `convert_batch`; also when no media file of a column is there. Some missing ones are logged.
    """
    table = dataset.with_format("arrow")[:]
    names = set(dataset.column_names)
    absent = [_is_absent(table[name]) for name in INPUT_COLUMNS if name in names]
    empty = np.logical_and.reduce(absent)
    if empty.any():
        raise ValueError(f"row: got no input in {rows[int(empty.argmax())]}, expected one of {INPUT_COLUMNS}")
    changing = {"text", *GROUP_COLUMNS, *([label.name] if label else [])} & names
    changing |= {name for name in MEDIA_COLUMNS if name in names and not _has_only_bytes(table[name])}
    changing |= {name for name in FEATURE_COLUMNS if name in names and not _is_nested(dataset.features[name])}
    cells = {name: table[name].to_pylist() for name in changing}
    converted = convert_batch(cells, rows, folder, label, outside_files)
    # The new places first: a table without any column left would forget how many rows it has.
    dataset = dataset.add_column("_row", pa.array(converted.pop("row"), type=pa.string()))
    gone = {*converted, "row", *([label.name] if label else [])}
    dataset = dataset.remove_columns([name for name in dataset.column_names if name in gone])
    dataset = dataset.rename_column("_row", "row")
    for name, values in converted.items():
        if name in MEDIA_COLUMNS:
            report_missing(name, values, rows)
        dataset = dataset.add_column(name, pa.array(values, type=_arrow_type(name)))
    for name, feature in (("audio", Audio(decode=False)), ("image", Image(decode=False))):
        dataset = dataset.cast_column(name, feature) if name in converted else dataset
    return dataset


def convert_batch(
    batch: dict[str, list], rows: Sequence[str], folder: Path, label: LabelColumn | None, outside_files: bool = False
) -> dict[str, list]:
    """The columns of `batch` that change: inputs, groups and, unless `label` is None, `label`; and `row`.

    Args:
        batch: cells by column; None, NaN, pandas' NA and text without a letter are absent.
        rows: what errors call each row.
        folder: of relative paths.
        label: how labels are read.
        outside_files: whether cells may name files outside `folder`, and URLs.

    Raises:
        ValueError: naming the row of a missing label, of a text that is no string, of unreadable vectors or of a file
            outside the folder.
    """
    result: dict[str, list] = {"row": list(rows)}
    for name, values in batch.items():
        if label is not None and name == label.name:
            result["label"] = convert_labels(label, values, rows)
        elif name in MEDIA_COLUMNS:
            places = [f"{name} in {row}" for row in rows]
            result[name] = [_encoded(v, folder, p, outside_files) for v, p in zip(values, places, strict=True)]
        elif name in FEATURE_COLUMNS:
            places = [f"{name} in {row}" for row in rows]
            result[name] = [_vectors(v, folder, p, outside_files) for v, p in zip(values, places, strict=True)]
        elif name in GROUP_COLUMNS:
            result[name] = [None if _is_nothing(value) else str(value) for value in values]
        elif name == "text":
            result[name] = [None if _is_nothing(value) else value for value in values]
            for value, row in zip(result[name], rows, strict=True):
                if value is not None and not isinstance(value, str):
                    raise ValueError(f"text: got {value!r} in {row}, expected a string")
    return result


def check_columns(names: Sequence[str], source: str, labelled: bool) -> None:
    """Raises ValueError, with the `column_map` that may be meant, for a table without input or label columns."""
    has_label = bool({"label", "labels"} & set(names))
    if {"label", "labels"} <= set(names):
        raise ValueError(f"columns: got both label and labels in {source}, expected one of them")
    if set(names) & set(INPUT_COLUMNS) and (has_label or not labelled):
        _warn_of_unread(names, source)
        return
    wanted = f"one of {INPUT_COLUMNS}" if not set(names) & set(INPUT_COLUMNS) else "`label` or `labels`"
    meant = meant_columns(names, labelled and not has_label)
    advice = "see --column_map"
    if meant:
        advice = '--column_map "' + ",".join(f"{ours}={theirs}" for ours, theirs in meant.items()) + '" may be meant'
    raise ValueError(f"columns: got {list(names)} in {source}, expected {wanted}; {advice}")


def _warn_of_unread(names: Sequence[str], source: str) -> None:
    """A column such as `Split` or `Speaker` that is passed over decides what a figure means."""
    meant = meant_columns(names, label=False)
    unread = [f"{ours}={meant[ours]}" for ours in ("split", *GROUP_COLUMNS) if ours in meant]
    if unread:
        logger.warning(f'columns: {source} has others that may be meant: --column_map "{",".join(unread)}".')


def meant_columns(names: Sequence[str], label: bool = True) -> dict[str, str]:
    """Our columns that a table seems to have under other names, such as `Text`, ` label` or `Utterance`."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[\W_]+", "_", name.strip().lower()).strip("_")
        ours = plain if plain in KNOWN_COLUMNS else _SYNONYMS.get(plain)
        is_wanted = ours is not None and ours not in names and (label or ours not in ("label", "labels"))
        if is_wanted and ours not in found:
            found[ours] = name  # type: ignore[index]
    return found


def check_inputs(batch: dict[str, list], rows: Sequence[str]) -> None:
    """Raises ValueError naming the first row of a batch that has no text, media or vectors at all."""
    for position, row in enumerate(rows):
        values = [batch[name][position] for name in INPUT_COLUMNS if name in batch]
        if all(_is_nothing(value) for value in values):
            raise ValueError(f"row: got no input in {row}, expected one of {INPUT_COLUMNS}")


def keep_encoded(dataset: Any) -> Any:
    """Media features without decoding, for map-style and streamed data alike."""
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, (Audio, Image, Video)) and feature.decode:
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    return dataset


def _is_nothing(value: Any) -> bool:
    """Whether a cell holds nothing, neither bytes nor a path where it is of media."""
    if isinstance(value, Mapping):
        return value.get("bytes") is None and not value.get("path")
    return is_absent(value)


def _is_absent(column: pa.ChunkedArray) -> np.ndarray:
    """Rows without a value; a struct of two nulls and an empty string count as none."""
    if pa.types.is_struct(column.type):
        parts = [pc.struct_field(column, i).is_null() for i in range(column.type.num_fields)]
        return np.logical_and.reduce([part.to_numpy() for part in parts]) | column.is_null().to_numpy()
    absent = column.is_null(nan_is_null=True).to_numpy()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        absent = absent | pc.equal(pc.utf8_trim_whitespace(column), "").fill_null(True).to_numpy()
    return absent


def _has_only_bytes(column: pa.ChunkedArray) -> bool:
    """Whether every row of a media column carries its content."""
    if not pa.types.is_struct(column.type) or "bytes" not in [field.name for field in column.type]:
        return False
    return pc.struct_field(column, "bytes").null_count == 0


def _is_nested(feature: Any) -> bool:
    return isinstance(feature, (List, LargeList)) and isinstance(feature.feature, (List, LargeList))


def _arrow_type(name: str) -> pa.DataType | None:
    """Types that an all-empty column would not show."""
    if name in MEDIA_COLUMNS:
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    if name in FEATURE_COLUMNS:
        return pa.list_(pa.list_(pa.float32()))
    return pa.string() if name in GROUP_COLUMNS else None


# Labels: classes, several classes a row, or numbers -----------------------------------------------------------


def label_names(feature: Any) -> list[str] | None:
    """Names of the classes of a `ClassLabel` column, or of a column of lists of them."""
    if isinstance(feature, (List, LargeList)):
        feature = feature.feature
    return feature.names if isinstance(feature, ClassLabel) else None


def label_kind(values: Sequence[Any]) -> str:
    """What a column of labels holds: `class`, `classes` (several a row), `score` or `scores` (regression).

    Text that is a number with a fraction in some row and a number in every row is a score; whole numbers alone are
    the names of classes.
    """
    present = [value for value in values if not _is_nothing(value)]
    if any(isinstance(value, (list, tuple, np.ndarray)) for value in present):
        parts = [part for value in present if isinstance(value, (list, tuple, np.ndarray)) for part in value]
        return "scores" if parts and all(isinstance(part, float) for part in parts) else "classes"
    if present and all(isinstance(value, str) and _NUMBER.fullmatch(value.strip()) for value in present):
        return "class" if all(_WHOLE.fullmatch(value.strip()) for value in present) else "score"
    return "score" if present and all(isinstance(value, float) for value in present) else "class"


def read_labels(columns: Sequence[LabelColumn], values: Sequence[Sequence[Any]], source: str) -> list[LabelColumn]:
    """
    The label columns of a table's parts with what all their values together tell: kind, separator, spellings. What
    is not as it stands there is said in the log.
    """
    cells = [value for part in values for value in part if isinstance(value, str)]
    separator = next((mark for mark in LABEL_SEPARATORS if any(mark in cell for cell in cells)), LABEL_SEPARATORS[0])
    if any(column.name == "labels" for column in columns) and separator != LABEL_SEPARATORS[0]:
        count = sum(separator in cell for cell in cells)
        logger.warning(f"labels: {count} cells of {source} are split at {separator!r} into several labels.")
    columns = [replace(column, separator=separator) for column in columns]
    named = [value for column, part in zip(columns, values, strict=True) for value in column.named(part)]
    kind = label_kind(named)
    spellings: dict[str, str] = {}
    if kind in ("class", "classes"):
        there = [value for value in named if not _is_nothing(value)]
        counts = Counter(str(name).strip() for value in there for name in (value if kind == "classes" else [value]))
        spellings = _merged_spellings(counts, source)
    return [replace(column, kind=kind, spellings=spellings) for column in columns]


def _merged_spellings(counts: Mapping[str, int], source: str) -> dict[str, str]:
    """`JOY` is read as `joy` where that is the more frequent, or the smaller, spelling of the two."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(counts, key=lambda name: (-counts[name], name.swapcase())):
        groups[name.casefold()].append(name)
    spellings = {name: names[0] for names in groups.values() for name in names[1:]}
    if spellings:
        merged = ", ".join(f"{name!r} ({counts[name]} rows) as {other!r}" for name, other in spellings.items())
        logger.warning(f"label: {source} spells classes in several ways, which are read as one: {merged}.")
    return spellings


def convert_labels(column: LabelColumn, values: Sequence[Any], rows: Sequence[str]) -> list:
    """Labels of one kind. Raises ValueError naming the row of a label that is missing or of another kind."""
    labels = [
        None if column.optional and _is_nothing(value) else _convert_label(value, row, column.kind)
        for value, row in zip(column.named(values), rows, strict=True)
    ]
    if not column.spellings:
        return labels
    one = column.spellings
    if column.kind == "class":
        return [one.get(label, label) for label in labels]
    return [several and list(dict.fromkeys(one.get(label, label) for label in several)) for several in labels]


def _convert_label(value: Any, row: str, kind: str) -> Any:
    several = kind in ("classes", "scores")
    if _is_nothing(value):
        raise ValueError(f"label: got none in {row}, expected a {kind}")
    if several != isinstance(value, (list, tuple, np.ndarray)):
        raise ValueError(f"label: got {value!r} in {row}, expected {'a list' if several else 'one'} as in other rows")
    if kind == "class":
        return str(value).strip()
    if kind == "classes":
        names = [str(part).strip() for part in value]
        if len(set(names)) != len(names) or "" in names or any(part is None for part in value):
            raise ValueError(f"label: got {value!r} in {row}, expected different class names")
        return names
    try:
        numbers = [float(part) for part in (value if several else [value])]
    except (TypeError, ValueError) as error:
        raise ValueError(f"label: got {value!r} in {row}, expected a number as in other rows") from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"label: got {value!r} in {row}, expected finite numbers")
    return numbers if several else numbers[0]


# Media and vectors --------------------------------------------------------------------------------------------


def _encoded(value: Any, folder: Path, where: str, outside_files: bool) -> dict | None:
    """`{"bytes", "path"}` with the path below `folder`, or anywhere with `outside_files`."""
    if _is_nothing(value):
        return None
    content: bytes | None
    path: Any
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value), "path": None}
    if isinstance(value, Mapping):
        content, path = value.get("bytes"), value.get("path")
    elif isinstance(value, (str, os.PathLike)):
        content, path = None, os.fspath(value)
    else:
        raise ValueError(f"{where}: got {type(value).__name__}, expected a path, a URL or bytes")
    return {"bytes": content, "path": path if content is not None else _place(path, folder, where, outside_files)}


def _place(path: str, folder: Path, where: str, outside_files: bool) -> str:
    """
    Where a file lies that a cell names. A table from elsewhere must not choose what is read of this disk or network.

    Raises:
        ValueError: a URL, or a file outside `folder`, unless `outside_files`.
    """
    what = "URL" if _URL.match(path) else "file outside the table's folder"
    if what == "URL":
        found = path
    else:
        place = folder / Path(path).expanduser()
        if "\\" in path and not place.exists():  # written on Windows
            place = folder / path.replace("\\", "/")
        found = str(place)
        # By name, not by where links lead: the links in this folder are its owner's.
        if Path(os.path.abspath(place)).is_relative_to(os.path.abspath(folder)):
            return found
    if not outside_files:
        raise ValueError(f"{where}: got {path!r}, a {what}; --outside_files true allows it")
    return found


def rough_cost(value: Any) -> int:
    """What a cell costs to read, for batches of like rows: letters of text, hundreds of bytes of encoded media."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, Mapping):
        return 0
    if value.get("bytes") is not None:
        return len(value["bytes"]) // 100
    path = value.get("path")
    return os.path.getsize(path) // 100 if path and os.path.isfile(path) else 0


def _vectors(value: Any, folder: Path, where: str, outside_files: bool) -> list | None:
    """(steps, dimensions) as lists, from lists or from the path of a .npy file; one vector is one step."""
    if _is_nothing(value):
        return None
    source = _place(value, folder, where, outside_files) if isinstance(value, str) else value
    try:
        array = np.load(source, allow_pickle=False) if isinstance(source, str) else np.asarray(source)
        array = array.astype(np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{where}: cannot read the vectors ({error})") from error
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{where}: got an array of {array.shape}, expected finite (steps, dimensions)")
    return array.tolist()


def report_missing(column: str, values: Sequence[dict | None], rows: Sequence[str]) -> None:
    """Warns of files that are not there, by number and first rows; ValueError when not one of them is."""
    missing = [position for position, value in enumerate(values) if _is_missing_file(value)]
    if not missing:
        return
    first = ", ".join(f"{values[i]['path']} ({rows[i]})" for i in missing[:3])  # type: ignore[index]
    if len(missing) == sum(value is not None for value in values):
        raise ValueError(f"{column}: none of {len(missing)} files is there, among them {first}; expected `root`?")
    logger.warning(f"{column}: {len(missing)} of {len(values)} rows name a file that is not there, as {first}.")


def _is_missing_file(value: dict | None) -> bool:
    if value is None or value["bytes"] is not None or _URL.match(value["path"]):
        return False
    return not os.path.isfile(value["path"])
