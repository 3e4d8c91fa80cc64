"""FER2013, from the official csv or from parquet files."""

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

from triemo.training.corpora.labels import FER2013_LABELS
from triemo.training.corpora.rows import corpus_folder, label_rows, to_datasets
from triemo.training.data.splits import SPLIT_NAMES

__all__ = ["fer2013_pixels", "fer2013_table", "fer2013_train_filter"]

CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
USAGES = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
SIDE = 48


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
