"""All corpora by name, as emotion tables (see `table_columns`) that share columns, splits and label sets."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from triemo.training.corpora.dialogue import meld_table
from triemo.training.corpora.images import fer2013_table
from triemo.training.corpora.labels import EMOTIONS, MOSEI_LABELS, OWN_LABELS
from triemo.training.corpora.mosi import ch_sims_table, cmu_mosei_table, cmu_mosi_table
from triemo.training.corpora.speech import crema_d_table, iemocap_table, ravdess_table
from triemo.training.corpora.text import goemotions_table
from triemo.training.data.splits import check_no_leakage

__all__ = ["CORPORA", "Corpus", "corpus_labels", "corpus_names", "load_corpus"]


@dataclass(frozen=True)
class Corpus:
    """A reader, and the columns whose values are in one split only."""

    read: Callable[..., DatasetDict]
    disjoint: tuple[str, ...]
    default_classes: str = "seven"


CORPORA = {
    "goemotions": Corpus(goemotions_table, ()),
    "meld": Corpus(meld_table, ("dialogue",)),  # the main speakers are in every official split
    "fer2013": Corpus(fer2013_table, ()),
    "ravdess": Corpus(ravdess_table, ("speaker",)),
    "crema_d": Corpus(crema_d_table, ("speaker",)),
    "iemocap": Corpus(iemocap_table, ("session", "speaker", "dialogue")),
    "cmu_mosi": Corpus(cmu_mosi_table, ("dialogue",), "own"),
    "cmu_mosei": Corpus(cmu_mosei_table, ("dialogue",), "own"),
    # Not checked: whether the official split keeps films apart was not verified, and a check could refuse it.
    "ch_sims": Corpus(ch_sims_table, (), "own"),
}


def corpus_names() -> list[str]:
    """Names that `load_corpus` takes."""
    return list(CORPORA)


def corpus_labels(name: str, data: DatasetDict, classes: str | None = None) -> list[str] | None:
    """Class names in the order of a head's outputs; None where the labels are scores.

    Args:
        name: one of `corpus_names()`.
        data: what `load_corpus` gave.
        classes: as given there. `seven` has all seven; of the own labels those that occur, for some releases have
            fewer (the binary one of CMU-MOSI has no neutral).
    """
    if (classes or _corpus(name).default_classes) == "seven":
        return list(EMOTIONS)
    labels = [label for split in data.values() for label in split["label"][:]]
    if any(isinstance(label, float) for label in labels):
        return None
    present = {part for label in labels for part in (label if isinstance(label, list) else [label])}
    return [label for label in dict.fromkeys((*OWN_LABELS[name], *MOSEI_LABELS)) if label in present]


def load_corpus(name: str, root: str | Path | None = None, classes: str | None = None, **options: Any) -> DatasetDict:
    """
    Load a corpus in the layout it is distributed in.

    Args:
        name: one of `corpus_names()`.
        root: folder of the corpora; by default `TRIEMO_DATA`, else `../shared/data`.
        classes: `seven`, or `own`, the corpus's labels (or scores). By default `seven` where the labels are emotions.
        options: of the reader, such as `fold=0` (ravdess, iemocap), `calm="drop"` (ravdess), `clips=False` (meld),
            `target="polarity"` (cmu_mosi, cmu_mosei, ch_sims).

    Returns:
        `train`, `validation` and `test`; some protocols have no validation. Media stay encoded.

    Raises:
        ValueError: an unknown name or option, a missing file, a label outside the map (with its row), or a speaker or
            dialogue in two splits.
    """
    corpus = _corpus(name)
    try:
        data = corpus.read(root, classes or corpus.default_classes, **options)
    except TypeError as error:
        raise ValueError(f"options of {name}: got {sorted(options)} ({error})") from error
    check_no_leakage(data, corpus.disjoint)
    return data


def _corpus(name: str) -> Corpus:
    if name not in CORPORA:
        raise ValueError(f"corpus: got {name!r}, expected one of {corpus_names()}")
    return CORPORA[name]
