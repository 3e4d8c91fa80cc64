"""All corpora by name, as emotion tables (see `data.columns`) that share columns, splits and label sets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

from datasets import DatasetDict
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassFieldValidationError

from triemo.training.corpora.acted import acted_tables
from triemo.training.corpora.dialogue import cped_table, meld_table
from triemo.training.corpora.images import fer2013_table, ferplus_table, raf_db_table
from triemo.training.corpora.mosi import ch_sims_table, cmu_mosei_table, cmu_mosi_table
from triemo.training.corpora.speech import crema_d_table, iemocap_table, ravdess_table
from triemo.training.corpora.text import brighter_table, goemotions_table, smp2020_table, xed_table
from triemo.training.data.splits import check_no_leakage

__all__ = ["CORPORA", "Corpus", "load_corpus"]

CLASSES = ("seven", "own")


@dataclass(frozen=True)
class Corpus:
    """A reader, and the columns whose values are in one split only."""

    read: Callable[..., DatasetDict]
    disjoint: tuple[str, ...]
    default_classes: str = "seven"


CORPORA = {
    "goemotions": Corpus(goemotions_table, ()),
    "meld": Corpus(meld_table, ("dialogue",)),  # the main speakers are in every official split
    "xed": Corpus(xed_table, ()),
    "brighter": Corpus(brighter_table, ()),
    "smp2020": Corpus(smp2020_table, ()),
    "cped": Corpus(cped_table, ("dialogue",)),
    "fer2013": Corpus(fer2013_table, ()),
    "ferplus": Corpus(ferplus_table, ()),
    "raf_db": Corpus(raf_db_table, ()),
    "ravdess": Corpus(ravdess_table, ("speaker",)),
    "crema_d": Corpus(crema_d_table, ("speaker",)),
    **{name: Corpus(read, ("speaker",)) for name, read in acted_tables.items()},
    "iemocap": Corpus(iemocap_table, ("session", "speaker", "dialogue")),
    "cmu_mosi": Corpus(cmu_mosi_table, ("dialogue",), "own"),
    "cmu_mosei": Corpus(cmu_mosei_table, ("dialogue",), "own"),
    # Not checked: whether the official split keeps films apart was not verified, and a check could refuse it.
    "ch_sims": Corpus(ch_sims_table, (), "own"),
}


def load_corpus(name: str, root: str | Path | None = None, classes: str | None = None, **options: Any) -> DatasetDict:
    """
    Load a corpus in the layout it is distributed in.

    Args:
        name: a key of `CORPORA`.
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
    if name not in CORPORA:
        raise ValueError(f"corpus: got {name!r}, expected one of {list(CORPORA)}")
    corpus = CORPORA[name]
    if classes not in (None, *CLASSES):
        raise ValueError(f"classes: got {classes!r}, expected one of {CLASSES}")
    _check_options(name, corpus.read, options)
    data = corpus.read(root, classes or corpus.default_classes, **options)
    check_no_leakage(data, corpus.disjoint)
    return data


def _check_options(name: str, read: Callable[..., DatasetDict], options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that the reader has not, or whose type is not the annotated one."""
    given = ("name", "root", "classes", "return")  # not the caller's
    reader = read.func if isinstance(read, partial) else read
    types = {option: hint for option, hint in get_type_hints(reader).items() if option not in given}
    if unknown := sorted(set(options) - set(types)):
        raise ValueError(f"options of {name}: got {unknown}, expected some of {sorted(types)}")
    try:
        validate_typed_dict(TypedDict(name, types, total=False), dict(options))  # type: ignore[operator]
    except StrictDataclassFieldValidationError as error:
        raise ValueError(f"options of {name}: {error}") from error
