"""FER2013 as an emotion table, from the official csv or from parquet files."""

import csv
import hashlib
import io
from pathlib import Path

import numpy as np
from datasets import DatasetDict
from PIL import Image as PILImage

from triemo.training.corpora.labels import EMOTIONS, FER2013_LABELS, label2id, map_label
from triemo.training.corpora.official import fer2013_train_filter, load_fer2013
from triemo.training.corpora.rows import check_classes, corpus_folder, label_rows, to_datasets
from triemo.training.data.splits import as_dataset_dict

__all__ = ["fer2013_table"]

CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
USAGES = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
SIDE = 48


def fer2013_table(root: str | Path | None = None, classes: str = "seven", drop_duplicates: bool = True) -> DatasetDict:
    """FER2013 (Goodfellow et al., 2013): `image` (encoded, 48x48 grey), `label`, `pixel_hash`.

    Reads `fer2013/fer2013.csv` (`emotion,pixels,Usage`) where it is, else `fer2013/train.parquet` and so on. Train
    loses the images that are also in validation or test, repeat one another or carry two labels
    (`corpora.fer2013_train_filter`).

    Args:
        root: folder of the corpora.
        classes: `seven`, or `own`, the same seven under the corpus's names.
        drop_duplicates: whether train loses them; validation and test stay as published.

    Raises:
        ValueError: naming the row of an unknown emotion, usage or of other than 48 * 48 pixels from 0 to 255.
    """
    check_classes(classes)
    folder = corpus_folder(root, "fer2013")
    for name in CSV_NAMES:
        if (folder / name).is_file():
            return _from_csv(folder / name, classes, drop_duplicates)
    own_name = {label2id[map_label("fer2013", name)]: name for name in FER2013_LABELS}
    names = own_name if classes == "own" else dict(enumerate(EMOTIONS))
    splits = {}
    for split, dataset in load_fer2013(root, drop_duplicates).items():
        labels, hashes = dataset["label"][:], dataset["pixel_hash"][:]
        # Rows of train that are dropped leave gaps, so a place is named by what cannot move: the pixels.
        places = [f"{folder / f'{split}.parquet'}:{pixel_hash}" for pixel_hash in hashes]
        dataset = dataset.remove_columns("label").add_column("label", [names[label] for label in labels])
        splits[split] = dataset.add_column("row", places)
    return as_dataset_dict(splits)


def _from_csv(path: Path, classes: str, drop_duplicates: bool) -> DatasetDict:
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
    if drop_duplicates:
        hashes = {split: [row["pixel_hash"] for row in rows] for split, rows in splits.items()}
        labels = [FER2013_LABELS.index(row["label"]) for row in splits["train"]]
        splits["train"] = [splits["train"][row] for row in fer2013_train_filter(hashes, labels)[0]]
    return to_datasets({split: label_rows(rows, "fer2013", classes) for split, rows in splits.items()})


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
    return {
        "image": {"bytes": file.getvalue(), "path": None},
        "label": FER2013_LABELS[int(emotion)],
        "pixel_hash": hashlib.sha1(pixels.tobytes()).hexdigest(),
        "row": where,
    }
