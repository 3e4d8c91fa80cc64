"""Why an answer is what it is: what words, voice and face each add to its score, and which words, moments and frames.

All of it is measured by leaving out. Modalities get their exact Shapley values, from the scores of all their subsets.
Parts of a modality get what the score loses when the model answers without them and with all else there (occlusion:
Zeiler and Fergus, 2014; erasure: Li et al., 2016). It is an account of the model, not of the person.

Inputs are only indexed, in the way that NumPy and torch share: for every runtime.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from .contributions_triemo import shapley_values, uninformed_score
from .samples_triemo import MASKS, checked_labels, present_modalities, ranked_scores

__all__ = [
    "Subset",
    "contributions",
    "disagree",
    "explain_sample",
    "moved_in_time",
    "said_alone",
    "subset_batch",
    "subset_scores",
    "subsets_of",
]

Subset = tuple[str, ...]
Words = Sequence[tuple[str, Sequence[int]]]

MOMENT_SECONDS = 0.5  # about a syllable or two; of long sounds more, so that there are at most MOST_MOMENTS
MOST_MOMENTS = 32
_ROWS_AT_ONCE = 16


def explain_sample(
    reader: Any,
    tensors: Mapping[str, Any],
    words: Words = (),
    candidate_labels: str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """
    What the score of the best label of a sample rests on.

    A word is left out by masking its tokens, a frame by its mask, as one without a face is; a moment of sound is
    silenced: zeros in a waveform, the sound's own quietest frame in place of each of its features.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline, or what has its `forward` and `model.config`.
        tensors: what `reader.prepare(sample)` returns, a batch of one.
        words: each word and the steps of its tokens (`TriemoProcessor.words_of`).
        candidate_labels: the labels to choose among; all by default.

    Returns:
        `label` and its `score`; `contributions`, of each modality, and `without_input`, which add up to the score;
        `alone`, the label and score of each modality by itself, and `disagree`, whether those labels differ;
        `words` (`word`, `effect`), `moments` (`timestamp`, a pair in seconds, and `effect`) and `frames` (`time` in
        seconds, `effect`), in their order, of the modalities that the sample has. An `effect` above 0 raised the
        score, below 0 lowered it.

    Raises:
        ValueError: the sample has no modality, or the model is one of regression.
    """
    config = reader.model.config
    candidates = checked_labels(candidate_labels, config)
    empty = uninformed_score(config, None if candidates is None else len(candidates))
    scores = subset_scores(reader, tensors, candidate_labels)
    together = scores[present_modalities(tensors)]
    label = max(together, key=together.__getitem__)
    alone = said_alone(scores)
    parts = list(_parts(tensors, words, config))
    effects: dict[str, list[dict[str, Any]]] = {part.kind: [] for part in parts}
    for part, left in zip(parts, _scores_without(reader, tensors, parts, candidate_labels), strict=True):
        effects[part.kind].append({**part.name, "effect": together[label] - (left[label] if left else empty)})
    return {
        "label": label,
        "score": together[label],
        "without_input": empty,
        "contributions": contributions(scores, label, empty),
        "alone": alone,
        "disagree": disagree(alone),
        **effects,
    }


def moved_in_time(explanation: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What `explain_sample` says of a window, with times of the recording in which the window begins at `seconds`."""
    moved = dict(explanation)
    if "moments" in moved:
        moved["moments"] = [
            {**part, "timestamp": tuple(second + seconds for second in part["timestamp"])} for part in moved["moments"]
        ]
    if "frames" in moved:
        moved["frames"] = [{**part, "time": part["time"] + seconds} for part in moved["frames"]]
    return moved


# Subsets of the modalities


def subsets_of(modalities: Subset) -> list[Subset]:
    """All non-empty subsets, the single ones first, all together last."""
    return [subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size)]


def subset_batch(tensors: Mapping[str, Any], subsets: Sequence[Subset]) -> dict[str, Any]:
    """A batch of one to a batch with a row for each subset: the same values, the others' masks all zero."""
    batch = _repeated(tensors, len(subsets))
    for modality, mask in MASKS.items():
        for row, subset in enumerate(subsets):
            if mask in batch and modality not in subset:
                batch[mask][row] = 0
    return batch


def subset_scores(
    reader: Any, tensors: Mapping[str, Any], candidate_labels: str | Sequence[str] | None = None
) -> dict[Subset, dict[str, float]]:
    """
    Scores of every non-empty subset of the modalities that a sample has, from one call of the model.

    Args:
        reader: as in `explain_sample`; the calibration temperature of its config is applied.
        tensors: a batch of one.
        candidate_labels: the labels to choose among; all by default.

    Returns:
        For each subset, such as `("text", "vision")`, the score of each label in the order of the classes. The single
        modalities come first, all together last.

    Raises:
        ValueError: the sample has no modality.
    """
    subsets = subsets_of(present_modalities(tensors))
    if not subsets:
        raise ValueError("no modality at all: every mask is zero.")
    outputs = reader.forward(subset_batch(tensors, subsets))
    return {
        subset: _scores_of(outputs, row, reader.model.config, candidate_labels) for row, subset in enumerate(subsets)
    }


def said_alone(scores: Mapping[Subset, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """The best `label` and its `score` of each modality by itself, from what `subset_scores` returns."""
    found = {}
    for subset, by_label in scores.items():
        if len(subset) == 1:
            label = max(by_label, key=by_label.__getitem__)
            found[subset[0]] = {"label": label, "score": by_label[label]}
    return found


def disagree(alone: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the modalities, each by itself (`said_alone`), have different best labels."""
    return len({said["label"] for said in alone.values()}) > 1


def contributions(scores: Mapping[Subset, Mapping[str, float]], label: str, empty: float) -> dict[str, float]:
    """
    Each modality's part of the way from the uninformed score of a label to the one with all modalities.

    Args:
        scores: what `subset_scores` returns.
        label: whose score.
        empty: the score without any input, from `uninformed_score`.
    """
    return shapley_values({subset: by_label[label] for subset, by_label in scores.items()}, empty)


# Parts of a modality


@dataclass(frozen=True)
class _Part:
    """
    Args:
        kind: "words", "moments" or "frames".
        name: what the answer says of it.
        erase: takes it out of a row of a batch, in place.
    """

    kind: str
    name: dict[str, Any]
    erase: Callable[[dict[str, Any], int], None]


def _parts(tensors: Mapping[str, Any], words: Words, config: Any) -> Iterator[_Part]:
    present = present_modalities(tensors)
    if "text" in present:
        for word, steps in words:
            # Without its only word there is no text.
            erase = _masking(MASKS["text"], steps if len(words) > 1 else None)
            yield _Part("words", {"word": word}, erase)
    if "audio" in present:
        yield from _moments(tensors, config)
    if "vision" in present:
        times = tensors.get("video_times")
        for frame, has_face in enumerate(tensors[MASKS["vision"]][0].tolist()):
            if has_face:
                time = frame / config.video_frame_rate if times is None else float(times[0][frame])
                yield _Part("frames", {"time": round(time, 3)}, _masking(MASKS["vision"], [frame]))


def _moments(tensors: Mapping[str, Any], config: Any) -> Iterator[_Part]:
    """Equal stretches of the sound, about `MOMENT_SECONDS` each."""
    steps = int(tensors[MASKS["audio"]][0].sum())
    is_waveform = "input_values" in tensors
    name = "input_values" if is_waveform else "input_features"
    rate = config.sampling_rate if is_waveform else config.audio_frame_rate
    silence = 0.0 if is_waveform else _quietest(tensors[name][0][:steps])
    count = int(np.clip(round(steps / rate / MOMENT_SECONDS), 1, MOST_MOMENTS))
    edges = np.linspace(0, steps, count + 1).round().astype(int).tolist()
    for begin, end in zip(edges, edges[1:], strict=False):
        # Sound that is silent all over counts as absent.
        erase = _silencing(name, begin, end, silence) if count > 1 else _masking(MASKS["audio"], None)
        yield _Part("moments", {"timestamp": (begin / rate, end / rate)}, erase)


def _quietest(features: Any) -> Any:
    """Of (frames, bins), log-mel or MFCC, the frame of the least energy: the sum of either falls with it."""
    return features[int(features.sum(1).argmin())]


def _masking(mask: str, steps: Sequence[int] | None) -> Callable[[dict[str, Any], int], None]:
    """Of these steps; of all if None."""

    def erase(batch: dict[str, Any], row: int) -> None:
        batch[mask][row, slice(None) if steps is None else list(steps)] = 0

    return erase


def _silencing(name: str, begin: int, end: int, silence: Any) -> Callable[[dict[str, Any], int], None]:
    def erase(batch: dict[str, Any], row: int) -> None:
        batch[name][row, begin:end] = silence

    return erase


def _scores_without(
    reader: Any, tensors: Mapping[str, Any], parts: Sequence[_Part], candidate_labels: str | Sequence[str] | None
) -> Iterator[dict[str, float] | None]:
    """Scores by label without each part; None where nothing is left to read from."""
    for start in range(0, len(parts), _ROWS_AT_ONCE):
        some = parts[start : start + _ROWS_AT_ONCE]
        batch = _repeated(tensors, len(some))
        for row, part in enumerate(some):
            part.erase(batch, row)
        outputs = reader.forward(batch)
        for row in range(len(some)):
            is_left = bool(outputs["modality_mask"][row].any())
            yield _scores_of(outputs, row, reader.model.config, candidate_labels) if is_left else None


def _repeated(tensors: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A batch of one to a batch of copies."""
    return {name: value[[0] * rows] for name, value in tensors.items()}


def _scores_of(
    outputs: Mapping[str, Any], row: int, config: Any, candidate_labels: str | Sequence[str] | None
) -> dict[str, float]:
    """Scores by label of a row of what `forward` returns, in the order of the classes."""
    present = outputs["modality_mask"][row].tolist()
    ranked = ranked_scores(np.asarray(outputs["logits"][row]), config, present, candidate_labels=candidate_labels)
    by_label = {entry["label"]: entry["score"] for entry in ranked}
    return {label: by_label[label] for label in config.id2label.values() if label in by_label}
