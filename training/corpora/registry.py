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
    """
    Args:
        read: the reader.
        disjoint: columns whose values are in one split only.
        licence: of the data, as its makers state it; weights that learned from it inherit what it forbids.
        commercial: whether it allows commercial use; False also where it says nothing, or research only.
        about: what it is, in a few words.
        languages: that are spoken or written in it.
        default_classes: `seven` where the labels are emotions.
    """

    read: Callable[..., DatasetDict]
    disjoint: tuple[str, ...]
    licence: str
    commercial: bool
    about: str
    languages: tuple[str, ...] = ()
    default_classes: str = "seven"


RESEARCH = "research use, no explicit licence"
_EN, _ZH = ("English",), ("Chinese",)
# Licence, whether commercial, what and in which language. TESS's licence is recalled, not read with the files here.
_ACTED = {
    "tess": ("CC BY-NC-ND 4.0", False, "TESS: acted voices of two women", _EN),
    "casia": (RESEARCH, False, "CASIA: acted voices of four speakers", ("Mandarin",)),
    "nemo": ("CC BY-NC-SA 4.0", False, "nEMO: acted voices of nine actors", ("Polish",)),
    "emovo": (RESEARCH, False, "EMOVO: acted voices of six actors", ("Italian",)),
    "savee": (RESEARCH, False, "SAVEE: acted voices of four men", _EN),
    "javanese": ("MIT", True, "acted clips and voices of ten actors, four sentences", ("Javanese",)),
}
CORPORA = {
    "goemotions": Corpus(goemotions_table, (), "CC BY 4.0", True, "GoEmotions: Reddit comments, ekman grouping", _EN),
    # The main speakers are in every official split. The licence asks for the same of what is derived.
    "meld": Corpus(meld_table, ("dialogue",), "GPL-3.0", True, "MELD: lines of a TV series", _EN),
    "xed": Corpus(
        xed_table, (), "CC BY 4.0", True, "XED: film subtitles, the Chinese ones labelled by projection", _EN + _ZH
    ),
    "brighter": Corpus(brighter_table, (), "CC BY 4.0", True, "BRIGHTER, track A: short texts", _EN + _ZH),
    "smp2020": Corpus(smp2020_table, (), RESEARCH, False, "SMP2020-EWECT: microblogs", _ZH),
    "cped": Corpus(cped_table, ("dialogue",), "Apache-2.0", True, "CPED: dialogues of television plays", _ZH),
    "fer2013": Corpus(fer2013_table, (), RESEARCH, False, "FER2013: faces of the web, grey, 48 x 48 pixels"),
    "ferplus": Corpus(ferplus_table, (), RESEARCH, False, "FERPlus: ten people's votes on FER2013's faces"),
    "raf_db": Corpus(raf_db_table, (), RESEARCH, False, "RAF-DB, basic: faces of the web, aligned, 100 x 100 pixels"),
    "ravdess": Corpus(
        ravdess_table, ("speaker",), "CC BY-NC-SA 4.0", False, "RAVDESS: acted voices of 24 actors, two sentences", _EN
    ),
    "crema_d": Corpus(crema_d_table, ("speaker",), "ODbL 1.0", True, "CREMA-D: acted voices, twelve sentences", _EN),
    **{name: Corpus(read, ("speaker",), *_ACTED[name]) for name, read in acted_tables.items()},
    "iemocap": Corpus(
        iemocap_table, ("session", "speaker", "dialogue"), RESEARCH, False, "IEMOCAP: dialogues of ten actors", _EN
    ),
    "cmu_mosi": Corpus(cmu_mosi_table, ("dialogue",), RESEARCH, False, "CMU-MOSI: video monologues", _EN, "own"),
    "cmu_mosei": Corpus(cmu_mosei_table, ("dialogue",), RESEARCH, False, "CMU-MOSEI: video monologues", _EN, "own"),
    # Not checked: whether the official split keeps films apart was not verified, and a check could refuse it.
    "ch_sims": Corpus(ch_sims_table, (), RESEARCH, False, "CH-SIMS: scenes of films and series", _ZH, "own"),
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
