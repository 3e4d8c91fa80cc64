"""Label sets of all corpora, and the maps to the seven classes of those that `label_maps` does not have.

`TO_SEVEN` has the form of the table there, so that the two can become one. A change of any table here changes what a
figure means, so it comes with a new `LABEL_MAP_EXTRA_VERSION`. None means that the example is left out, because none
of the seven classes means the same:

- IEMOCAP `frustrated` lies between anger and sadness, and `other` may be anything. Its code `xxx` (no two annotators
  agreed) is no class at all. `excited` becomes joy, as in the four-class protocol that adds it to happiness.
- CREMA-D and CMU-MOSEI have no surprise or no neutral of their own; nothing is invented for it.
- CMU-MOSI, CMU-MOSEI and CH-SIMS scores say good or bad, which is no emotion, and have no map.
"""

from triemo.training.label_maps import EKMAN_LABELS, FER2013_LABELS, LABEL_MAP_VERSION, RAVDESS_LABELS, map_label

__all__ = [
    "ALL_LABEL_MAPS_VERSION",
    "CREMA_D_CODES",
    "GOEMOTIONS_LABELS",
    "IEMOCAP_CODES",
    "LABEL_MAP_EXTRA_VERSION",
    "MOSEI_LABELS",
    "OWN_LABELS",
    "POLARITIES",
    "TO_SEVEN",
    "to_seven",
]

LABEL_MAP_EXTRA_VERSION = "1.0"
ALL_LABEL_MAPS_VERSION = f"{LABEL_MAP_VERSION}+{LABEL_MAP_EXTRA_VERSION}"

# Order of `labels.txt` of the original grouping (Demszky et al., 2020).
GOEMOTIONS_LABELS = (
    *("admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire"),
    *("disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy"),
    *("love", "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise"),
    "neutral",
)
# Third field of the file names (Cao et al., 2014).
CREMA_D_CODES = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
# Codes of the evaluation files (Busso et al., 2008); `xxx` means that no majority was found.
IEMOCAP_CODES = {
    "ang": "anger",
    "hap": "happiness",
    "exc": "excited",
    "sad": "sadness",
    "neu": "neutral",
    "fru": "frustrated",
    "fea": "fear",
    "sur": "surprise",
    "dis": "disgust",
    "oth": "other",
    "xxx": None,
}
# Order of the official label vectors, after the sentiment (Zadeh et al., 2018).
MOSEI_LABELS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
POLARITIES = ("negative", "neutral", "positive")

OWN_LABELS: dict[str, tuple[str, ...]] = {
    "goemotions": GOEMOTIONS_LABELS,
    "meld": EKMAN_LABELS,
    "fer2013": FER2013_LABELS,
    "ravdess": RAVDESS_LABELS,
    "crema_d": tuple(CREMA_D_CODES.values()),
    "iemocap": tuple(name for name in IEMOCAP_CODES.values() if name is not None),
    "cmu_mosi": POLARITIES,
    "cmu_mosei": POLARITIES,
    "ch_sims": POLARITIES,
}

TO_SEVEN: dict[str, dict[str, str | None]] = {
    # The grouping that comes with the corpus; of it `label_maps` has the seven names themselves.
    "goemotions": {
        **{name: "anger" for name in ("anger", "annoyance", "disapproval")},
        "disgust": "disgust",
        **{name: "fear" for name in ("fear", "nervousness")},
        **{name: "joy" for name in ("admiration", "amusement", "approval", "caring", "desire", "excitement")},
        **{name: "joy" for name in ("gratitude", "joy", "love", "optimism", "pride", "relief")},
        "neutral": "neutral",
        **{name: "sadness" for name in ("disappointment", "embarrassment", "grief", "remorse", "sadness")},
        **{name: "surprise" for name in ("confusion", "curiosity", "realization", "surprise")},
    },
    "meld": {name: name for name in EKMAN_LABELS},
    "crema_d": {
        "anger": "anger",
        "disgust": "disgust",
        "fear": "fear",
        "happy": "joy",
        "neutral": "neutral",
        "sad": "sadness",
    },
    "iemocap": {
        "anger": "anger",
        "happiness": "joy",
        "excited": "joy",
        "sadness": "sadness",
        "neutral": "neutral",
        "frustrated": None,
        "fear": "fear",
        "surprise": "surprise",
        "disgust": "disgust",
        "other": None,
    },
    "cmu_mosei": {
        "happy": "joy",
        "sad": "sadness",
        "anger": "anger",
        "surprise": "surprise",
        "disgust": "disgust",
        "fear": "fear",
    },
}


def to_seven(corpus: str, label: str, calm: str = "neutral") -> str | None:
    """Seven-class name of a label of any corpus; None where the example is to be left out.

    Args:
        corpus: a key of `OWN_LABELS`.
        label: one of the corpus's own labels.
        calm: what becomes of the RAVDESS class calm, `neutral` or `drop`.

    Raises:
        ValueError: for a corpus without a map to seven classes, or a label that is not the corpus's.
    """
    if corpus in ("ravdess", "fer2013"):
        return map_label(corpus, label, calm)
    if corpus not in TO_SEVEN:
        raise ValueError(f"classes: got 'seven' for {corpus}, whose labels have no emotions; expected 'own'")
    table = TO_SEVEN[corpus]
    if label not in table:
        raise ValueError(f"label: got {label!r}, expected one of {sorted(table)} for {corpus}")
    return table[label]
