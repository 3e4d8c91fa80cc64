"""One sample as people give it, and the answer they get: what modalities an input has, its still or frames, whether it
has a sound track; scores from logits. In NumPy alone, for every runtime.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .media_images_triemo import load_image, picture_kind
from .media_sources_triemo import (
    MediaLimitError,
    fetch,
    first_stream,
    is_media_source,
    is_tensor,
    open_container,
    open_source,
)
from .media_triemo import is_rated_array, load_frames
from .presence_triemo import is_absent

__all__ = [
    "MASKS",
    "TASK",
    "TOLD",
    "check_top_k",
    "checked_labels",
    "has_sound",
    "is_uncertain",
    "joined_scores",
    "media_kind",
    "present_modalities",
    "ranked_scores",
    "read_input",
    "sample_frames",
    "stack_padded",
]

TASK = "multimodal-emotion-recognition"
# The mask of each modality, in the order of the modalities; all zero is how an absent one looks.
MASKS = {"text": "attention_mask", "audio": "audio_attention_mask", "vision": "video_attention_mask"}
# What goes along with a batch and is for people, a list for each sample, rather than a tensor for the model.
TOLD = ("notes", "words")
_ARGUMENT = {"text": "text", "audio": "audio", "video": "videos", "image": "images"}
_MOST_CHANNELS = 32  # rows of an array of rank 2 that is sound; more are a picture's


def read_input(input_: Any) -> dict[str, Any]:
    """
    A pipeline's input as the processor's arguments: any of `text`, `audio`, `videos`, `images`, one sample each.

    Args:
        input_: path, URL, bytes or open file of a medium; a PIL image; an array or tensor (rank 1 or a few rows of
            floats: sound; picture; rank 4: frames); sound as `{"array", "sampling_rate"}` or a tuple of the two; or a
            dict with any of `text`, `audio`, `video`, `image`, where empty cells (`is_absent`) count as not given.

    Raises:
        ValueError: an unknown key, nothing given, or a file that cannot be read.
    """
    if isinstance(input_, Mapping) and not _is_medium(input_):
        sample = input_
    else:
        input_ = fetch(input_)  # once, for its kind and its content
        sample = {_kind_in_memory(input_) or media_kind(input_): input_}
    unknown = sorted(set(map(str, sample)) - set(_ARGUMENT))
    if unknown:
        raise ValueError(
            f"an input may have the keys {', '.join(_ARGUMENT)}, got {unknown}; of a dataset take the columns "
            "with select_columns and rename_column."
        )
    given = {_ARGUMENT[name]: value for name, value in sample.items() if not is_absent(value)}
    if not given:
        raise ValueError(f"nothing to process: an input needs at least one of {', '.join(_ARGUMENT)}, got none.")
    return given


def _is_medium(mapping: Mapping) -> bool:
    """Whether a dict is one medium, as `datasets` gives it, rather than a sample of several."""
    keys = set(mapping)
    return bool(keys) and (keys <= {"bytes", "path"} or bool(keys & {"array", "raw"}))


def _kind_in_memory(value: Any) -> str | None:
    """What something decoded already is: "audio", "image" or "video"; None for a file."""
    if isinstance(value, Mapping) and not is_media_source(value):
        return "audio"
    if is_rated_array(value) or hasattr(value, "get_all_samples"):
        return "audio"
    if isinstance(value, Image.Image):
        return "image"
    if isinstance(value, np.ndarray) or is_tensor(value):
        if value.ndim == 1 or value.ndim == 2 and len(value) <= _MOST_CHANNELS:
            return "audio"
        return "video" if value.ndim == 4 else "image"
    return None


def sample_frames(
    still: Any, clip: Any, num_frames: int | None, frame_rate: float | None
) -> tuple[list[np.ndarray], np.ndarray] | None:
    """
    Frames of a sample and their times in seconds; None without picture. From a clip come `num_frames` frames spread
    evenly, or `frame_rate` a second and at most `num_frames`.

    Raises:
        ValueError: both a still and a clip, or media that cannot be read.
    """
    if still is not None and clip is not None:
        raise ValueError("a sample has either a still or a video, got both.")
    if still is not None:
        return [np.asarray(load_image(still))], np.zeros(1)
    if clip is None:
        return None
    if frame_rate is not None:
        return load_frames(clip, frame_rate=frame_rate, max_frames=num_frames)
    return load_frames(clip, num_frames=num_frames)


def has_sound(clip: Any) -> bool:
    """Whether a clip is a file with a sound track."""
    if clip is None or not is_media_source(clip):
        return False
    with open_source(clip) as (file, name):
        return picture_kind(file, name) is None and "audio" in _streams(file, name)


def media_kind(source: Any) -> str:
    """
    What a media file is: "image", "video" or "audio", by its content.

    Raises:
        ValueError: if it cannot be read. A string is always a path or URL; a sentence goes in as `{"text": ...}`.
    """
    try:
        with open_source(source) as (file, name):
            picture = picture_kind(file, name)
            if picture is not None:
                return "video" if picture[1] else "image"
            return "video" if "video" in _streams(file, name) else "audio"
    except MediaLimitError:
        raise
    except ValueError as error:
        if not isinstance(source, str):
            raise
        raise ValueError(f'{error} (A sentence is given as {{"text": ...}}.)') from error


def _streams(file: Any, name: str) -> set[str]:
    """Which of "audio" and "video" a file holds; ValueError if neither."""
    with open_container(file, name) as container:
        found = {kind for kind in ("audio", "video") if first_stream(container, kind) is not None}
    if not found:
        raise ValueError(f"Cannot read media from {name}: it has neither sound nor picture.")
    return found


def stack_padded(rows: Sequence[np.ndarray | None], padding_value: int | float) -> np.ndarray:
    """(1, steps, ...) arrays of different steps, and None, to (B, longest, ...)."""
    some = next(row for row in rows if row is not None)
    longest = max(row.shape[1] for row in rows if row is not None)
    batch = np.full((len(rows), longest, *some.shape[2:]), padding_value, dtype=some.dtype)
    for target, row in zip(batch, rows, strict=True):
        if row is not None:
            target[: row.shape[1]] = row[0]
    return batch


def present_modalities(tensors: Mapping[str, Any]) -> tuple[str, ...]:
    """What a batch of one has of text, audio, vision, in this order: those whose mask is not all zero."""
    return tuple(name for name, mask in MASKS.items() if mask in tensors and bool(tensors[mask].any()))


def check_top_k(top_k: Any) -> None:
    """ValueError unless it is how many labels to return, or None for all."""
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise ValueError(f"top_k must be a whole number of at least 1, got {top_k!r}.")


def checked_labels(candidate_labels: str | Sequence[str] | None, config: Any) -> list[str] | None:
    """
    The labels to choose among, in the order of the classes; None for all.

    Args:
        candidate_labels: a list, or a string with commas between them, as zero-shot pipelines take.
        config: has `id2label`.

    Raises:
        ValueError: naming what is no label of the model; none given.
    """
    if candidate_labels is None:
        return None
    given = candidate_labels.split(",") if isinstance(candidate_labels, str) else candidate_labels
    names = [name.strip() if isinstance(name, str) else name for name in given]
    known = list(config.id2label.values())
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) if unknown else "none"
        raise ValueError(f"candidate_labels: got {got}, expected some of {', '.join(known)}.")
    return [name for name in known if name in names]


def ranked_scores(
    logits: np.ndarray,
    config: Any,
    modality_mask: Sequence[bool],
    top_k: int | None = None,
    candidate_labels: str | Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """
    The answer for one sample, best first.

    Args:
        logits: (classes,).
        config: has `resolved_problem_type`, `id2label` and `temperature_of`, which scales all but regression.
        modality_mask: whether the sample has text, audio and vision.
        top_k: how many labels; all by default.
        candidate_labels: the labels to choose among (`checked_labels`). Their scores are those after the temperature,
            divided by their sum: of several labels a sample each keeps its own, and values of a regression theirs.

    Returns:
        `{"label", "score"}` of each label: a probability, of each label its own in multi-label, or the value itself in
        regression.

    Raises:
        ValueError: an unknown candidate label.
    """
    candidates = checked_labels(candidate_labels, config)
    chosen = [index for index, name in config.id2label.items() if candidates is None or name in candidates]
    values = np.asarray(logits, dtype=np.float64)[chosen]
    scaled = values / config.temperature_of(modality_mask)
    problem = config.resolved_problem_type
    if problem == "regression":
        scores = values
    elif problem == "multi_label_classification":
        scores = 1 / (1 + np.exp(-scaled))
    else:
        # Of the candidates alone: the same as dividing by the sum of their scores, and it cannot be 0 / 0.
        scores = np.exp(scaled - scaled.max())
        scores /= scores.sum()
    order = np.argsort(-scores, kind="stable")[:top_k].tolist()
    return [{"label": config.id2label[chosen[place]], "score": float(scores[place])} for place in order]


def is_uncertain(
    scores: Sequence[Mapping[str, Any]], config: Any, modality_mask: Sequence[bool], min_score: float | None = None
) -> bool:
    """
    Whether the best of the scores is below what an answer needs; never in regression, whose values are no certainty.

    Args:
        scores: from `ranked_scores`; without any, nothing is claimed and nothing is uncertain.
        config: has `resolved_problem_type` and `min_score_of`.
        modality_mask: whether the sample has text, audio and vision.
        min_score: in place of the config's.
    """
    if not scores or config.resolved_problem_type == "regression":
        return False
    return scores[0]["score"] < (config.min_score_of(modality_mask) if min_score is None else min_score)


def joined_scores(
    logits: Sequence[np.ndarray],
    config: Any,
    modality_masks: Sequence[Sequence[bool]],
    weights: Sequence[float],
    top_k: int | None = None,
    candidate_labels: str | Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """
    The answer for several windows of one sample: the weighted mean of their scores, best first; of one window its own.

    Args:
        logits, modality_masks: of each window, as in `ranked_scores`.
        weights: of each window; all alike if they are all 0.
        config, top_k, candidate_labels: as in `ranked_scores`.
    """
    if len(logits) == 1:
        return ranked_scores(logits[0], config, modality_masks[0], top_k, candidate_labels)
    total: dict[str, float] = {}
    shares = np.asarray(weights, dtype=np.float64)
    shares = shares / shares.sum() if shares.sum() > 0 else np.full(len(logits), 1 / len(logits))
    for values, mask, share in zip(logits, modality_masks, shares.tolist(), strict=True):
        for entry in ranked_scores(values, config, mask):
            total[entry["label"]] = total.get(entry["label"], 0.0) + share * entry["score"]
    candidates = checked_labels(candidate_labels, config)
    if candidates is not None:
        total = {label: score for label, score in total.items() if label in candidates}
        if config.resolved_problem_type == "single_label_classification":
            whole = sum(total.values())
            total = {label: score / whole for label, score in total.items()}
    order = sorted(config.id2label.values(), key=lambda label: -total.get(label, float("-inf")))
    return [{"label": label, "score": total[label]} for label in order if label in total][:top_k]
