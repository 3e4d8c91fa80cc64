"""Corpus labels mapped to the seven classes every corpus shares.

The order of `EMOTIONS` is the order of the released head. A change of any table here changes what a figure means,
so it comes with a new `LABEL_MAP_VERSION`, which training writes beside its figures.
"""

__all__ = [
    "EKMAN_LABELS",
    "EMOTIONS",
    "FER2013_LABELS",
    "LABEL_MAP_VERSION",
    "RAVDESS_LABELS",
    "label2id",
    "map_label",
    "to_soft_target",
]

LABEL_MAP_VERSION = "1.0"

EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
label2id = {name: index for index, name in enumerate(EMOTIONS)}

# RAVDESS file names carry the emotion as 01 to 08 (Livingstone and Russo, 2018).
RAVDESS_LABELS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
# Official order of the FER2013 csv (Goodfellow et al., 2013).
FER2013_LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
# Order of `labels.txt` in the ekman grouping of GoEmotions (Demszky et al., 2020).
EKMAN_LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")

CALM_POLICIES = ("neutral", "drop")

_TO_SEVEN = {
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
    "goemotions": {name: name for name in EKMAN_LABELS},
}


def map_label(corpus: str, label: str, calm: str = "neutral") -> str | None:
    """Seven-class name of a corpus label.

    Args:
        corpus: `ravdess`, `fer2013` or `goemotions`.
        label: the corpus's own name of the class.
        calm: what becomes of the RAVDESS class calm, `neutral` (merged) or `drop`.

    Returns:
        One of `EMOTIONS`, or None where the example is to be dropped.

    Raises:
        ValueError: for a corpus, label or policy outside the tables.
    """
    if corpus not in _TO_SEVEN:
        raise ValueError(f"corpus: got {corpus!r}, expected one of {sorted(_TO_SEVEN)}")
    if calm not in CALM_POLICIES:
        raise ValueError(f"calm: got {calm!r}, expected one of {CALM_POLICIES}")
    table = _TO_SEVEN[corpus]
    if label not in table:
        raise ValueError(f"label: got {label!r}, expected one of {sorted(table)} for {corpus}")
    if label == "calm" and calm == "drop":
        return None
    return table[label]


def to_soft_target(labels: list[int]) -> list[float]:
    """Equal probability over the given class indices of `EMOTIONS`, 7 values that sum to 1.

    Raises:
        ValueError: when `labels` is empty, repeats a class or holds an index outside 0 to 6.
    """
    if not labels or len(set(labels)) != len(labels) or not all(0 <= index < len(EMOTIONS) for index in labels):
        raise ValueError(f"labels: got {labels!r}, expected one or more different class indices from 0 to 6")
    share = 1.0 / len(labels)
    return [share if index in labels else 0.0 for index in range(len(EMOTIONS))]
