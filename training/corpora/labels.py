"""Label sets of all corpora, and the map from them to the seven classes that they share.

The order of `EMOTIONS` is the order of the released head. A change of any table here changes what a figure means,
so it comes with a new `LABEL_MAP_VERSION`, which training writes beside its figures. None means that the example is
left out, because none of the seven classes means the same:

- IEMOCAP `frustrated` lies between anger and sadness, and `other` may be anything. Its code `xxx` (no two annotators
  agreed) is no class at all. `excited` becomes joy, as in the four-class protocol that adds it to happiness.
- CREMA-D and CMU-MOSEI have no surprise or no neutral of their own; nothing is invented for it.
- XED's anticipation and trust, and CPED's positive-other and negative-other are none of the seven.
  CPED's grateful and relaxed become joy, depress sadness and worried fear: the nearest of its own valence.
- FERPlus votes for contempt, for unknown and for no face (NF) name none of the seven; contempt is not disgust.
- CMU-MOSI, CMU-MOSEI and CH-SIMS scores say good or bad, which is no emotion, and have no map.
"""

__all__ = [
    "ACTED_CODES",
    "BRIGHTER_LABELS",
    "CPED_LABELS",
    "SMP2020_LABELS",
    "XED_LABELS",
    "CREMA_D_CODES",
    "EKMAN_LABELS",
    "EMOTIONS",
    "FER2013_LABELS",
    "FERPLUS_VOTES",
    "GOEMOTIONS_LABELS",
    "IEMOCAP_CODES",
    "LABEL_MAP_VERSION",
    "MOSEI_LABELS",
    "OWN_LABELS",
    "POLARITIES",
    "RAF_DB_LABELS",
    "RAVDESS_LABELS",
    "TO_SEVEN",
    "label2id",
    "map_label",
    "to_soft_target",
]

LABEL_MAP_VERSION = "1.1"

EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
label2id = {name: index for index, name in enumerate(EMOTIONS)}

# RAVDESS file names carry the emotion as 01 to 08 (Livingstone and Russo, 2018).
RAVDESS_LABELS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
# Official order of the FER2013 csv (Goodfellow et al., 2013).
FER2013_LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
# Columns of the official csv of votes (Barsoum et al., 2016).
FERPLUS_VOTES = (
    *("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    *("unknown", "NF"),
)
# Numbered 1 to 7 in the official list (Li et al., 2017).
RAF_DB_LABELS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
# Order of `labels.txt` in the ekman grouping of GoEmotions (Demszky et al., 2020).
EKMAN_LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
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

# Codes in the file names of small corpora of acted voices (see `acted.ACTED`), and what they stand for.
ACTED_CODES: dict[str, dict[str, str]] = {
    "tess": {
        "angry": "angry",
        "disgust": "disgust",
        "fear": "fear",
        "happy": "happy",
        "neutral": "neutral",
        "ps": "pleasant surprise",
        "sad": "sad",
    },
    "casia": {name: name for name in ("angry", "fear", "happy", "neutral", "sad", "surprise")},
    "nemo": {name: name for name in ("anger", "fear", "happiness", "neutral", "sadness", "surprised")},
    "emovo": {
        "dis": "disgust",
        "gio": "joy",
        "neu": "neutral",
        "pau": "fear",
        "rab": "anger",
        "sor": "surprise",
        "tri": "sadness",
    },
    "savee": {
        "a": "anger",
        "d": "disgust",
        "f": "fear",
        "h": "happiness",
        "n": "neutral",
        "sa": "sadness",
        "su": "surprise",
    },
    "javanese": {"01": "neutral", "02": "sad", "03": "happy", "04": "surprise", "05": "fear", "06": "anger"},
}
# Numbers in the files of XED, from 1 (Oehman et al., 2020); 9 stands in its file of neutral lines.
XED_LABELS = ("anger", "anticipation", "disgust", "fear", "joy", "sadness", "surprise", "trust", "neutral")
# Columns of BRIGHTER's track A (Muhammad et al., 2025); English has no disgust. A row with none is neutral.
BRIGHTER_LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
# SMP2020-EWECT writes "neural" for neutral.
SMP2020_LABELS = ("angry", "fear", "happy", "neural", "sad", "surprise")
CPED_LABELS = (
    *("happy", "grateful", "relaxed", "positive-other", "neutral", "anger", "sadness", "fear", "depress", "disgust"),
    *("astonished", "worried", "negative-other"),
)

OWN_LABELS: dict[str, tuple[str, ...]] = {
    "goemotions": GOEMOTIONS_LABELS,
    "meld": EKMAN_LABELS,
    "fer2013": FER2013_LABELS,
    "ferplus": FERPLUS_VOTES,
    "raf_db": RAF_DB_LABELS,
    "ravdess": RAVDESS_LABELS,
    "crema_d": tuple(CREMA_D_CODES.values()),
    "iemocap": tuple(name for name in IEMOCAP_CODES.values() if name is not None),
    **{name: tuple(codes.values()) for name, codes in ACTED_CODES.items()},
    "xed": XED_LABELS,
    "brighter": BRIGHTER_LABELS,
    "smp2020": SMP2020_LABELS,
    "cped": CPED_LABELS,
    "cmu_mosi": POLARITIES,
    "cmu_mosei": POLARITIES,
    "ch_sims": POLARITIES,
}

CALM_POLICIES = ("neutral", "drop")

# Names that mean the same in every corpus that uses them.
_PLAIN: dict[str, str | None] = {
    **{name: "anger" for name in ("anger", "angry")},
    "disgust": "disgust",
    "fear": "fear",
    **{name: "joy" for name in ("joy", "happy", "happiness")},
    **{name: "neutral" for name in ("neutral", "neural")},
    **{name: "sadness" for name in ("sad", "sadness")},
    **{name: "surprise" for name in ("surprise", "surprised", "pleasant surprise", "astonished")},
}


def _plain(names: tuple[str, ...], **others: str | None) -> dict[str, str | None]:
    return {name: others[name] if name in others else _PLAIN[name] for name in names}


TO_SEVEN: dict[str, dict[str, str | None]] = {
    "ravdess": {
        "neutral": "neutral",
        "calm": "neutral",
        "happy": "joy",
        "sad": "sadness",
        "angry": "anger",
        "fearful": "fear",
        "disgust": "disgust",
        "surprised": "surprise",
    },
    "fer2013": {
        "angry": "anger",
        "disgust": "disgust",
        "fear": "fear",
        "happy": "joy",
        "sad": "sadness",
        "surprise": "surprise",
        "neutral": "neutral",
    },
    "ferplus": {
        "neutral": "neutral",
        "happiness": "joy",
        "surprise": "surprise",
        "sadness": "sadness",
        "anger": "anger",
        "disgust": "disgust",
        "fear": "fear",
        "contempt": None,
        "unknown": None,
        "NF": None,
    },
    "raf_db": {
        "surprise": "surprise",
        "fear": "fear",
        "disgust": "disgust",
        "happiness": "joy",
        "sadness": "sadness",
        "anger": "anger",
        "neutral": "neutral",
    },
    # The grouping that comes with the corpus, whose seven names stand for themselves.
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
    **{name: _plain(OWN_LABELS[name]) for name in (*ACTED_CODES, "brighter", "smp2020")},
    "xed": _plain(XED_LABELS, anticipation=None, trust=None),
    "cped": {
        **_plain(("happy", "neutral", "anger", "sadness", "fear", "disgust", "astonished")),
        **{name: "joy" for name in ("grateful", "relaxed")},
        "depress": "sadness",
        "worried": "fear",
        **{name: None for name in ("positive-other", "negative-other")},
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


def map_label(corpus: str, label: str, calm: str = "neutral") -> str | None:
    """Seven-class name of a corpus label.

    Args:
        corpus: a key of `TO_SEVEN`.
        label: one of the corpus's own names; of GoEmotions, those of either grouping.
        calm: what becomes of the RAVDESS class calm, `neutral` (merged) or `drop`.

    Returns:
        One of `EMOTIONS`, or None where the example is to be left out.

    Raises:
        ValueError: for a corpus without a map to seven classes, a label that is not the corpus's, or another policy.
    """
    if corpus in OWN_LABELS and corpus not in TO_SEVEN:
        raise ValueError(f"classes: got 'seven' for {corpus}, whose labels have no emotions; expected 'own'")
    if corpus not in TO_SEVEN:
        raise ValueError(f"corpus: got {corpus!r}, expected one of {sorted(TO_SEVEN)}")
    if calm not in CALM_POLICIES:
        raise ValueError(f"calm: got {calm!r}, expected one of {CALM_POLICIES}")
    table = TO_SEVEN[corpus]
    if label not in table:
        raise ValueError(f"label: got {label!r}, expected one of {sorted(table)} for {corpus}")
    return None if (label, calm) == ("calm", "drop") else table[label]


def to_soft_target(labels: list[int]) -> list[float]:
    """Equal probability over the given class indices of `EMOTIONS`, 7 values that sum to 1.

    Raises:
        ValueError: when `labels` is empty, repeats a class or holds an index outside 0 to 6.
    """
    if not labels or len(set(labels)) != len(labels) or not all(0 <= index < len(EMOTIONS) for index in labels):
        raise ValueError(f"labels: got {labels!r}, expected one or more different class indices from 0 to 6")
    share = 1.0 / len(labels)
    return [share if index in labels else 0.0 for index in range(len(EMOTIONS))]
