"""Faces: FER2013 from the official csv or from parquet files, its FERPlus votes, and RAF-DB."""

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import DatasetDict
from PIL import Image as PILImage

from triemo.training.corpora.labels import (
    EMOTIONS,
    FER2013_LABELS,
    FERPLUS_VOTES,
    RAF_DB_LABELS,
    label2id,
    map_label,
)
from triemo.training.corpora.rows import corpus_folder, label_rows, to_datasets
from triemo.training.data.splits import SPLIT_NAMES, as_dataset_dict

__all__ = [
    "fer2013_pixels",
    "fer2013_table",
    "fer2013_train_filter",
    "ferplus_majority",
    "ferplus_soft_targets",
    "ferplus_table",
    "raf_db_table",
    "read_ferplus_votes",
]

CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
USAGES = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
SIDE = 48
_NO_FACE = FERPLUS_VOTES.index("NF")
_VOTE_NAMES = [map_label("ferplus", name) for name in FERPLUS_VOTES]  # None for contempt, unknown and no face
RAF_DB_LIST = "list_patition_label.txt"  # spelled so by its authors


# FER2013 -----------------------------------------------------------------------------------------------------


def fer2013_table(root: str | Path | None = None, classes: str = "seven", drop_duplicates: bool = True) -> DatasetDict:
    """FER2013 (Goodfellow et al., 2013): `image` (encoded, 48x48 grey), `label`, `pixel_hash` (sha1 of the pixels).

    Reads `fer2013/fer2013.csv` (`emotion,pixels,Usage`) where it is, else `fer2013/train.parquet` and so on;
    validation is PublicTest, test is PrivateTest. Train loses the images that are also in validation or test, repeat
    one another or carry two labels (`fer2013_train_filter`).

    Args:
        root: folder of the corpora.
        classes: `seven`, or `own`, the same seven under the corpus's names.
        drop_duplicates: whether train loses them; validation and test stay as published.

    Raises:
        ValueError: naming the row of an unknown emotion, usage or of other than 48 * 48 pixels from 0 to 255.
    """
    folder = corpus_folder(root, "fer2013")
    table = next((folder / name for name in CSV_NAMES if (folder / name).is_file()), None)
    if table is not None:
        splits = _csv_rows(table)
    else:
        splits = {split: _parquet_rows(folder / f"{split}.parquet") for split in SPLIT_NAMES}
    if drop_duplicates:
        hashes = {split: [row["pixel_hash"] for row in rows] for split, rows in splits.items()}
        keep, _ = fer2013_train_filter(hashes, [row["label"] for row in splits["train"]])
        splits["train"] = [splits["train"][row] for row in keep]
    return to_datasets({split: label_rows(rows, "fer2013", classes) for split, rows in splits.items()})


def fer2013_train_filter(hashes: Mapping[str, Sequence[str]], labels: Sequence) -> tuple[list[int], dict[str, int]]:
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


def _parquet_rows(path: Path) -> list[dict]:
    if not path.is_file():
        raise ValueError(f"fer2013: got no file {str(path)!r}, expected the official split {path.stem} there")
    columns = pq.read_table(path, columns=["image", "label"]).to_pydict()
    rows = []
    for number, (image, label) in enumerate(zip(columns["image"], columns["label"], strict=True)):
        where = f"row {number} of {path}"
        if label not in range(len(FER2013_LABELS)):
            raise ValueError(f"label: got {label!r} in {where}, expected 0 to {len(FER2013_LABELS) - 1}")
        rows.append(_row(image["bytes"], fer2013_pixels(image["bytes"], where), label, where))
    return rows


def fer2013_pixels(encoded: bytes, where: str = "image") -> np.ndarray:
    """Grey pixels (48, 48) uint8 of one encoded face. Raises ValueError naming `where` for anything else."""
    try:
        pixels = np.asarray(PILImage.open(io.BytesIO(encoded)).convert("L"))
    except OSError as error:
        raise ValueError(f"{where}: got bytes that are no image ({error}), expected an encoded 48x48 face") from error
    if pixels.shape != (48, 48):
        raise ValueError(f"{where}: got an image of {pixels.shape}, expected (48, 48)")
    return pixels


def _csv_rows(path: Path) -> dict[str, list[dict]]:
    splits: dict[str, list[dict]] = {split: [] for split in USAGES.values()}
    with path.open(newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        if set(reader.fieldnames) != {"emotion", "pixels", "Usage"}:
            raise ValueError(f"columns: got {reader.fieldnames} in {path}, expected emotion, pixels, Usage")
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if cells["Usage"] not in USAGES:
                raise ValueError(f"Usage: got {cells['Usage']!r} in {where}, expected one of {sorted(USAGES)}")
            splits[USAGES[cells["Usage"]]].append(_csv_row(cells, where))
    return splits


def _csv_row(cells: dict, where: str) -> dict:
    emotion = cells["emotion"].strip()
    if not emotion.isdigit() or int(emotion) >= len(FER2013_LABELS):
        raise ValueError(f"emotion: got {emotion!r} in {where}, expected 0 to {len(FER2013_LABELS) - 1}")
    try:
        values = np.array(cells["pixels"].split(), dtype=np.int64)
    except ValueError as error:
        raise ValueError(f"pixels: cannot read {where} ({error})") from error
    if values.shape != (SIDE * SIDE,) or values.min() < 0 or values.max() > 255:
        raise ValueError(f"pixels: got {len(values)} in {where}, expected {SIDE * SIDE} from 0 to 255")
    pixels = values.astype(np.uint8).reshape(SIDE, SIDE)
    file = io.BytesIO()
    PILImage.fromarray(pixels).save(file, format="png")
    return _row(file.getvalue(), pixels, int(emotion), where)


def _row(encoded: bytes, pixels: np.ndarray, emotion: int, where: str) -> dict:
    return {
        "image": {"bytes": encoded, "path": None},
        "label": FER2013_LABELS[emotion],
        "pixel_hash": hashlib.sha1(pixels.tobytes()).hexdigest(),
        "row": where,
    }


# FERPlus -----------------------------------------------------------------------------------------------------


def ferplus_table(
    root: str | Path | None = None, classes: str = "seven", drop_duplicates: bool = True, ties: bool = False
) -> DatasetDict:
    """FERPlus (Barsoum et al., 2016): FER2013's faces as ten annotators saw them, on the same splits.

    Columns: those of `fer2013_table`, whose `label` is here the class with most of the ten votes, besides `votes` (10
    counts in the order of `FERPLUS_VOTES`) and `own_label` (what FER2013 says). A row goes where most votes are shared
    by two classes, or are for contempt, unknown or no face, or where there are none. That leaves 3,349 faces of
    PrivateTest.

    Args:
        root: folder of the corpora.
        classes: `seven`, or `own`, under the names of FERPlus, where contempt and unknown stay.
        drop_duplicates: as for `fer2013_table`.
        ties: keep in train, with the label None, the faces without such a class that have votes for one of the seven
            and are faces to most: `ferplus_soft_targets` of their votes are still worth learning. Of `seven` only.

    Raises:
        ValueError: where `fer2013_table` and `read_ferplus_votes` raise it, and for ties with the own classes.
    """
    if ties and classes == "own":
        raise ValueError("ties: got true with classes 'own', expected 'seven'")
    faces = fer2013_table(root, classes="own", drop_duplicates=False)
    votes = read_ferplus_votes(root, {split: len(rows) for split, rows in faces.items()})
    result = {}
    for split, dataset in faces.items():
        keep = np.arange(len(dataset))
        if drop_duplicates and split == "train":
            hashes = {name: rows["pixel_hash"][:] for name, rows in faces.items()}
            keep = np.array(fer2013_train_filter(hashes, dataset["label"][:])[0])
        counts = votes[split][keep]
        best = _single_best(counts)
        names = _VOTE_NAMES if classes == "seven" else [*FERPLUS_VOTES[:_NO_FACE], None]
        labels = [names[index] if index >= 0 else None for index in best]
        kept = np.array([label is not None for label in labels])
        if ties and split == "train":
            kept |= (_of_seven(counts).sum(1) > 0) & (counts.argmax(1) != _NO_FACE)
        rows = np.flatnonzero(kept)
        dataset = dataset.select(keep[rows]).rename_column("label", "own_label")
        dataset = dataset.add_column("label", [labels[row] for row in rows])
        result[split] = dataset.add_column("votes", counts[rows].tolist())
    return as_dataset_dict(result)


def read_ferplus_votes(root: str | Path | None, rows: dict[str, int]) -> dict[str, np.ndarray]:
    """Votes (rows, 10) int64 of each split, in the order of `FERPLUS_VOTES`; zeros for faces without any.

    Reads `fer2013/fer2013new.csv` beside the official `fer2013.csv`, whose rows it follows. Beside parquet files,
    which have an order of their own, it reads `fer2013/ferplus_votes.csv` (`split`, `row` counted from 0, the votes).

    Args:
        root: folder of the corpora.
        rows: how many faces each split has.

    Raises:
        ValueError: naming the line of a vote that is no count, an unknown usage or split, a row that is not there or
            comes twice; or when the number of rows differs from the official csv's.
    """
    folder = corpus_folder(root, "fer2013")
    official = any((folder / name).is_file() for name in CSV_NAMES)
    path = folder / ("fer2013new.csv" if official else "ferplus_votes.csv")
    place = ("Usage",) if official else ("split", "row")
    votes = {split: np.zeros((count, len(FERPLUS_VOTES)), dtype=np.int64) for split, count in rows.items()}
    seen: dict[str, set[int]] = {split: set() for split in rows}
    if not path.is_file():
        raise ValueError(f"votes: got no file {str(path)!r}, expected it")
    with path.open(newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        if missing := {*place, *FERPLUS_VOTES} - set(reader.fieldnames or []):
            raise ValueError(f"columns: got {reader.fieldnames} in {path}, expected also {sorted(missing)}")
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            split = USAGES.get(cells["Usage"], "") if official else cells["split"]
            if split not in votes:
                expected = sorted(USAGES) if official else sorted(rows)
                raise ValueError(f"{place[0]}: got {cells[place[0]]!r} in {where}, expected one of {expected}")
            row = len(seen[split]) if official else _count(cells, "row", where)
            if row >= rows[split] or row in seen[split]:
                raise ValueError(f"row: got {row} of {split} in {where}, expected each of {rows[split]} once")
            seen[split].add(row)
            votes[split][row] = [_count(cells, name, where) for name in FERPLUS_VOTES]
    for split, found in seen.items():
        if official and len(found) != rows[split]:
            raise ValueError(f"rows: got {len(found)} of {split} in {path}, expected {rows[split]} as in fer2013.csv")
    return votes


def ferplus_soft_targets(votes: np.ndarray) -> np.ndarray:
    """Votes (N, 10) as probabilities of the seven classes (N, 7); the other votes are left out.

    Raises:
        ValueError: naming the first row without a vote for one of the seven.
    """
    seven = _of_seven(np.asarray(votes))
    total = seven.sum(1, keepdims=True)
    if not (total > 0).all():
        row = int(np.flatnonzero(total[:, 0] == 0)[0])
        raise ValueError(f"votes: got none for the seven classes in row {row}, expected one or more")
    return seven / total


def ferplus_majority(votes: np.ndarray) -> np.ndarray:
    """Class (N,) that has most of all ten votes (N, 10); -1 where two share the most or it is none of the seven."""
    best = _single_best(np.asarray(votes))
    classes = np.array([-1 if name is None else label2id[name] for name in _VOTE_NAMES])
    return np.where(best >= 0, classes[best], -1)


def _single_best(votes: np.ndarray) -> np.ndarray:
    """Column (N,) with most votes; -1 where it is not one column, or no vote was cast."""
    most = votes.max(1)
    single = ((votes == most[:, None]).sum(1) == 1) & (most > 0)
    return np.where(single, votes.argmax(1), -1)


def _of_seven(votes: np.ndarray) -> np.ndarray:
    seven = np.zeros((len(votes), len(EMOTIONS)))
    for column, name in enumerate(_VOTE_NAMES):
        if name is not None:
            seven[:, label2id[name]] += votes[:, column]
    return seven


def _count(cells: dict, name: str, where: str) -> int:
    if not (cells[name] or "").strip().isdigit():
        raise ValueError(f"{name}: got {cells[name]!r} in {where}, expected a count")
    return int(cells[name])


# RAF-DB ------------------------------------------------------------------------------------------------------


def raf_db_table(
    root: str | Path | None = None, classes: str = "seven", drop_duplicates: bool = True, share: float = 0.1
) -> DatasetDict:
    """RAF-DB, basic emotions (Li et al., 2017): `image` (the aligned crop, 100x100 RGB), `label`, `row`.

    Reads `raf_db/EmoLabel/list_patition_label.txt` and `raf_db/Image/aligned`. The official test is the test; the
    corpus has no validation, so of each class of train the share with the smallest SHA-1 of the file name becomes it,
    the same on every machine.

    Args:
        root: folder of the corpora.
        classes: `seven`, or `own`, the same seven under the corpus's names.
        drop_duplicates: whether train loses the files that are also in validation or test, repeat one another or
            carry two labels.
        share: of train that becomes validation.

    Raises:
        ValueError: naming the line of an unknown split, label or file.
    """
    folder = corpus_folder(root, "raf_db", "RAF-DB", "basic")
    splits = _raf_db_rows(folder)
    if not splits["train"] or not 0 < share < 1:
        raise ValueError(f"share: got {share} of {len(splits['train'])} rows of train, expected 0 to 1 of some")
    held = set()
    for name in RAF_DB_LABELS:
        files = [row["image"]["path"] for row in splits["train"] if row["label"] == name]
        files.sort(key=lambda file: hashlib.sha1(_list_name(file).encode()).hexdigest())
        held.update(files[: round(share * len(files))])
    splits["validation"] = [row for row in splits["train"] if row["image"]["path"] in held]
    splits["train"] = [row for row in splits["train"] if row["image"]["path"] not in held]
    if drop_duplicates:
        hashes = {
            split: [hashlib.sha1(Path(row["image"]["path"]).read_bytes()).hexdigest() for row in rows]
            for split, rows in splits.items()
        }
        keep, _ = fer2013_train_filter(hashes, [row["label"] for row in splits["train"]])
        splits["train"] = [splits["train"][row] for row in keep]
    return to_datasets({split: label_rows(rows, "raf_db", classes) for split, rows in splits.items()})


def _list_name(file: str) -> str:
    """`train_00001.jpg` of `.../train_00001_aligned.jpg`."""
    return Path(file).name.replace("_aligned", "")


def _raf_db_rows(folder: Path) -> dict[str, list[dict]]:
    path = folder / "EmoLabel" / RAF_DB_LIST
    if not path.is_file():
        raise ValueError(f"corpus: got no file {str(path)!r}, expected it")
    splits: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}:{number}"
        name, _, label = line.strip().partition(" ")
        split = name.partition("_")[0]
        if split not in ("train", "test"):
            raise ValueError(f"file: got {name!r} in {where}, expected train_*.jpg or test_*.jpg")
        if not label.isdigit() or not 1 <= int(label) <= len(RAF_DB_LABELS):
            raise ValueError(f"label: got {label!r} in {where}, expected 1 to {len(RAF_DB_LABELS)}")
        file = folder / "Image" / "aligned" / f"{Path(name).stem}_aligned{Path(name).suffix}"
        if not file.is_file():
            raise ValueError(f"image: got no file {str(file)!r} for {where}, expected it")
        image = {"bytes": None, "path": str(file)}
        splits[split].append({"image": image, "label": RAF_DB_LABELS[int(label) - 1], "row": where})
    return splits
