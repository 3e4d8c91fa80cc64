"""Readers for RAVDESS, FER2013 and GoEmotions in the layout they are distributed in.

Every reader returns a `datasets.DatasetDict` with `train`, `validation` and `test`. Media stay encoded (bytes or
path). The root folder holds `ravdess/`, `fer2013/` and `goemotions/`; it comes from the argument, else from the
environment variable `TRIEMO_DATA`, else it is `../shared/data`.
"""

import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value
from PIL import Image as PILImage

from triemo.training.corpora.labels import (
    EKMAN_LABELS,
    FER2013_LABELS,
    RAVDESS_LABELS,
    label2id,
    map_label,
    to_soft_target,
)

__all__ = [
    "RAVDESS_SPLITS",
    "check_disjoint",
    "corpus_hash",
    "data_root",
    "fer2013_pixels",
    "fer2013_train_filter",
    "load_fer2013",
    "load_goemotions",
    "load_ravdess",
]

# Actors of each split of the released checkpoint. The two sexes alternate, so each split is balanced.
RAVDESS_SPLITS = {"train": tuple(range(1, 19)), "validation": (19, 20), "test": (21, 22, 23, 24)}
SPLITS = ("train", "validation", "test")


def data_root(root: str | Path | None = None) -> Path:
    """Folder that holds the corpora. Raises ValueError when it does not exist."""
    folder = Path(root or os.environ.get("TRIEMO_DATA") or "../shared/data")
    if not folder.is_dir():
        raise ValueError(f"data root: got {str(folder)!r}, expected an existing folder (set TRIEMO_DATA)")
    return folder


def check_disjoint(groups: dict[str, Iterable], what: str = "group") -> None:
    """Raises ValueError naming the first group (an actor, a video, an image hash) that two splits share."""
    seen: dict = {}
    for split, members in groups.items():
        for member in set(members):
            if member in seen:
                raise ValueError(f"{what} {member!r}: got it in both {seen[member]} and {split}, expected one split")
            seen[member] = split


def corpus_hash(root: str | Path, corpus: str) -> str:
    """sha256 over the sorted lines `relative path, sha256 of the file` of every file of a corpus."""
    folder = data_root(root) / corpus
    if not folder.is_dir():
        raise ValueError(f"corpus: got no folder {str(folder)!r}, expected the corpus {corpus} there")
    lines = sorted(
        f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in folder.rglob("*")
        if path.is_file()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# RAVDESS -----------------------------------------------------------------------------------------------------


def parse_ravdess_name(path: Path) -> dict:
    """Fields of an official RAVDESS name, `modality-channel-emotion-intensity-statement-repetition-actor`.

    Raises:
        ValueError: naming the file and the field that is outside its range.
    """
    fields = path.stem.split("-")
    limits = {"modality": 3, "channel": 2, "emotion": 8, "intensity": 2, "statement": 2, "repetition": 2, "actor": 24}
    if len(fields) != len(limits) or not all(field.isdigit() for field in fields):
        raise ValueError(f"file name: got {path.name!r} in {path.parent}, expected seven two-digit fields")
    values = dict(zip(limits, map(int, fields), strict=True))
    for name, limit in limits.items():
        if not 1 <= values[name] <= limit:
            raise ValueError(f"{name}: got {values[name]} in {path}, expected 1 to {limit}")
    return values


def load_ravdess(
    root: str | Path | None = None,
    calm: str = "neutral",
    splits: dict[str, Iterable[int]] | None = None,
) -> DatasetDict:
    """RAVDESS speech clips, split by actor.

    Columns: `path` (str), `label` (int, seven classes), `original_label` (str, eight classes), `actor`, `statement`,
    `intensity` (int), `gender` (`male` or `female`).

    Args:
        root: folder of the corpora.
        calm: `neutral` merges calm into neutral, `drop` leaves its clips out.
        splits: actor numbers of every split; `RAVDESS_SPLITS` by default.

    Raises:
        ValueError: when an actor is in two splits, a split has no clip or a file has no official name.
    """
    splits = {name: tuple(actors) for name, actors in (splits or RAVDESS_SPLITS).items()}
    check_disjoint(splits, "actor")
    folder = data_root(root) / "ravdess"
    files = sorted(path for path in folder.glob("Actor_*/*") if path.suffix in {".wav", ".flac"})
    rows: dict[str, list[dict]] = {name: [] for name in splits}
    split_of = {actor: name for name, actors in splits.items() for actor in actors}
    for path in files:
        fields = parse_ravdess_name(path)
        original = RAVDESS_LABELS[fields["emotion"] - 1]
        label = map_label("ravdess", original, calm=calm)
        if label is None or fields["actor"] not in split_of:
            continue
        rows[split_of[fields["actor"]]].append(
            {
                "path": str(path),
                "label": label2id[label],
                "original_label": original,
                "actor": fields["actor"],
                "gender": "male" if fields["actor"] % 2 else "female",
                "statement": fields["statement"],
                "intensity": fields["intensity"],
            }
        )
    for name, members in rows.items():
        if not members:
            raise ValueError(f"split {name}: got no clip under {folder} for actors {splits[name]}, expected some")
    return DatasetDict({name: Dataset.from_list(members) for name, members in rows.items()})


# FER2013 -----------------------------------------------------------------------------------------------------


def fer2013_pixels(encoded: bytes, where: str = "image") -> np.ndarray:
    """Grey pixels (48, 48) uint8 of one encoded face. Raises ValueError naming `where` for anything else."""
    try:
        pixels = np.asarray(PILImage.open(io.BytesIO(encoded)).convert("L"))
    except OSError as error:
        raise ValueError(f"{where}: got bytes that are no image ({error}), expected an encoded 48x48 face") from error
    if pixels.shape != (48, 48):
        raise ValueError(f"{where}: got an image of {pixels.shape}, expected (48, 48)")
    return pixels


def fer2013_train_filter(hashes: dict[str, list[str]], labels: list[int]) -> tuple[list[int], dict[str, int]]:
    """Rows of train to keep, and how many are dropped for which reason.

    An image that is also in validation or test goes. Of identical images within train the first stays when all
    of them carry one label; when they disagree, none stays, for no label of them can be trusted.

    Args:
        hashes: one hash of the pixels per row, for `train`, `validation` and `test`.
        labels: labels of the rows of train.
    """
    held_out = set(hashes["validation"]) | set(hashes["test"])
    labels_of = defaultdict(set)
    for key, label in zip(hashes["train"], labels, strict=True):
        labels_of[key].add(label)
    keep, dropped, seen = [], Counter(), set()
    for row, key in enumerate(hashes["train"]):
        if key in held_out:
            dropped["in_validation_or_test"] += 1
        elif len(labels_of[key]) > 1:
            dropped["conflicting_labels"] += 1
        elif key in seen:
            dropped["repeated_in_train"] += 1
        else:
            seen.add(key)
            keep.append(row)
    return keep, dict(dropped)


def load_fer2013(root: str | Path | None = None, drop_duplicates: bool = True) -> DatasetDict:
    """FER2013 faces on the official splits (validation = PublicTest, test = PrivateTest).

    Columns: `image` (`datasets.Image(decode=False)`), `label` (int, seven classes), `pixel_hash` (str, sha1 of the
    decoded pixels).

    Args:
        root: folder of the corpora.
        drop_duplicates: drop from train what `fer2013_train_filter` says. Validation and test stay as published.

    Raises:
        ValueError: naming file and row of a label outside 0 to 6 or of bytes that are no 48x48 image.
    """
    folder = data_root(root) / "fer2013"
    tables = {}
    for split in SPLITS:
        path = folder / f"{split}.parquet"
        if not path.is_file():
            raise ValueError(f"fer2013: got no file {str(path)!r}, expected the official split {split} there")
        columns = pq.read_table(path, columns=["image", "label"]).to_pydict()
        images, labels, hashes = [], [], []
        for row, (image, label) in enumerate(zip(columns["image"], columns["label"], strict=True)):
            if label not in range(len(FER2013_LABELS)):
                raise ValueError(f"label: got {label!r} in row {row} of {path}, expected 0 to 6")
            pixels = fer2013_pixels(image["bytes"], f"row {row} of {path}")
            images.append({"bytes": image["bytes"], "path": None})
            labels.append(label2id[map_label("fer2013", FER2013_LABELS[label])])
            hashes.append(hashlib.sha1(pixels.tobytes()).hexdigest())
        tables[split] = {"image": images, "label": labels, "pixel_hash": hashes}
    if drop_duplicates:
        keep, _ = fer2013_train_filter(
            {split: table["pixel_hash"] for split, table in tables.items()}, tables["train"]["label"]
        )
        tables["train"] = {name: [column[row] for row in keep] for name, column in tables["train"].items()}
    features = Features({"image": Image(decode=False), "label": Value("int64"), "pixel_hash": Value("string")})
    return DatasetDict({split: Dataset.from_dict(table, features=features) for split, table in tables.items()})


# GoEmotions --------------------------------------------------------------------------------------------------


def load_goemotions(root: str | Path | None = None) -> DatasetDict:
    """GoEmotions in its official ekman grouping and splits.

    Columns: `text` (str), `id` (str), `labels` (list of int, seven classes), `soft_label` (7 floats that sum to 1).

    Raises:
        ValueError: naming file and line of a row that has not three columns or a label outside 0 to 6.
    """
    folder = data_root(root) / "goemotions" / "ekman"
    result = {}
    for split, name in zip(SPLITS, ("train.tsv", "dev.tsv", "test.tsv"), strict=True):
        path = folder / name
        if not path.is_file():
            raise ValueError(f"goemotions: got no file {str(path)!r}, expected the official split {split} there")
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
            columns = line.split("\t")
            if len(columns) != 3:
                raise ValueError(f"columns: got {len(columns)} in line {number} of {path}, expected text, labels, id")
            text, labels, identifier = columns
            try:
                own = [EKMAN_LABELS[int(label)] for label in labels.split(",")]
                indices = sorted(label2id[map_label("goemotions", label)] for label in own)
                soft = to_soft_target(indices)
            except (ValueError, IndexError) as error:
                raise ValueError(f"labels: got {labels!r} in line {number} of {path}, expected 0 to 6") from error
            rows.append({"text": text, "id": identifier, "labels": indices, "soft_label": soft})
        features = Features(
            {
                "text": Value("string"),
                "id": Value("string"),
                "labels": Sequence(Value("int64")),
                "soft_label": Sequence(Value("float32"), length=7),
            }
        )
        result[split] = Dataset.from_list(rows, features=features)
    return DatasetDict(result)
