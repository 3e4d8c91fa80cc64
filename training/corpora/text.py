"""GoEmotions, with seven labels or with its own 28."""

from pathlib import Path

from datasets import DatasetDict

from triemo.training.corpora.labels import EKMAN_LABELS, GOEMOTIONS_LABELS
from triemo.training.corpora.rows import corpus_folder, to_datasets

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
    grouping, names = ("ekman", EKMAN_LABELS) if classes == "seven" else ("original", GOEMOTIONS_LABELS)
    folder = corpus_folder(root, f"goemotions/{grouping}")
    return to_datasets({split: _rows(folder / name, names) for split, name in FILES.items()})


def _rows(path: Path, names: tuple[str, ...]) -> list[dict]:
    if not path.is_file():
        raise ValueError(f"corpus: got no file {str(path)!r}, expected the official split")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        cells = line.split("\t")
        if len(cells) != 3:
            raise ValueError(f"columns: got {len(cells)} in {path}:{number}, expected text, labels, id")
        text, listed, identifier = cells
        codes = listed.split(",")
        if not all(code.isdigit() and int(code) < len(names) for code in codes) or len(set(codes)) != len(codes):
            raise ValueError(f"label: got {listed!r} in {path}:{number}, expected each once, 0 to {len(names) - 1}")
        labels = [names[index] for index in sorted(map(int, codes))]
        rows.append({"text": text, "label": labels, "id": identifier, "row": f"{path}:{number}"})
    return rows
