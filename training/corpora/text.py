"""GoEmotions as an emotion table, with seven labels or with its own 28."""

from pathlib import Path

from datasets import DatasetDict

from triemo.training.corpora.labels import EMOTIONS, GOEMOTIONS_LABELS
from triemo.training.corpora.official import load_goemotions
from triemo.training.corpora.rows import check_classes, corpus_folder, to_datasets

__all__ = ["goemotions_table"]

FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}


def goemotions_table(root: str | Path | None = None, classes: str = "seven") -> DatasetDict:
    """GoEmotions (Demszky et al., 2020) on its official splits: `text`, `label` (one or more names), `id`.

    Args:
        root: folder of the corpora, with `goemotions/ekman/` or `goemotions/original/`.
        classes: `seven` reads the ekman grouping, `own` the 28 original labels.

    Raises:
        ValueError: naming file and line of a row that is not text, labels, id.
    """
    check_classes(classes)
    if classes == "seven":
        folder = corpus_folder(root, "goemotions/ekman")
        loaded = load_goemotions(root)
        return to_datasets(
            {split: _ekman_rows(dataset[:], folder / FILES[split]) for split, dataset in loaded.items()}
        )
    folder = corpus_folder(root, "goemotions/original")
    return to_datasets({split: _original_rows(folder / name) for split, name in FILES.items()})


def _ekman_rows(columns: dict[str, list], path: Path) -> list[dict]:
    return [
        {"text": text, "label": [EMOTIONS[index] for index in labels], "id": identifier, "row": f"{path}:{number}"}
        for number, (text, labels, identifier) in enumerate(
            zip(columns["text"], columns["labels"], columns["id"], strict=True), start=1
        )
    ]


def _original_rows(path: Path) -> list[dict]:
    if not path.is_file():
        raise ValueError(f"corpus: got no file {str(path)!r}, expected the official split")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        cells = line.split("\t")
        if len(cells) != 3:
            raise ValueError(f"columns: got {len(cells)} in {path}:{number}, expected text, labels, id")
        text, codes, identifier = cells
        known = [code.isdigit() and int(code) < len(GOEMOTIONS_LABELS) for code in codes.split(",")]
        if not all(known):
            raise ValueError(f"label: got {codes!r} in {path}:{number}, expected 0 to {len(GOEMOTIONS_LABELS) - 1}")
        labels = [GOEMOTIONS_LABELS[int(code)] for code in codes.split(",")]
        rows.append({"text": text, "label": labels, "id": identifier, "row": f"{path}:{number}"})
    return rows
