"""One sample read: the scores, what they were read from, and what was missing."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from triemo.serving.contributions import contributions, uninformed_score
from triemo.serving.samples import Sample
from triemo.serving.subsets import Subset, present_modalities, subset_scores

__all__ = ["Evidence", "Reading", "SubsetReading", "prepare", "read_sample", "read_subsets"]

_IMAGE_LOGGER = logging.getLogger("triemo.processing.image_processing_triemo")


@dataclass(frozen=True)
class Evidence:
    """
    Args:
        modalities: those of text, audio, vision that the model gets.
        faces: frames with a face, and frames looked at; None without picture.
        missing: why something that was given is not among the modalities.
    """

    modalities: Subset
    faces: tuple[int, int] | None = None
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """`scores` are `{"label", "score"}`, best first."""

    sample: Sample
    evidence: Evidence
    scores: list[dict[str, Any]]


@dataclass(frozen=True)
class SubsetReading:
    """
    Args:
        scores: of each label from each subset of the modalities, all together last.
        label: the best one of all together.
        empty: its score without any input.
        parts: each modality's part of the way from there to the score of all together.
        tensors: what the model got, a batch of one.
    """

    sample: Sample
    evidence: Evidence
    scores: dict[Subset, dict[str, float]]
    label: str
    empty: float
    parts: dict[str, float]
    tensors: Mapping[str, Any]

    @property
    def ranked(self) -> list[dict[str, Any]]:
        """`{"label", "score"}` of all modalities together, best first."""
        by_label = self.scores[self.evidence.modalities]
        return [{"label": name, "score": score} for name, score in sorted(by_label.items(), key=lambda e: -e[1])]


def prepare(reader: Any, sample: Sample, **options: Any) -> tuple[dict[str, Any], Evidence]:
    """
    The model's input for a sample, and what is in it.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline.
        options: `num_frames`, `use_sound_track`.

    Raises:
        ValueError: unreadable media, or nothing to read from.
    """
    with _said_only_once():
        tensors = reader.preprocess(sample.inputs, **options)
    return tensors, _evidence(sample, tensors, options.get("use_sound_track", True))


def read_sample(reader: Any, sample: Sample, **options: Any) -> Reading:
    """Scores of all labels; arguments and errors as in `prepare`."""
    tensors, evidence = prepare(reader, sample, **options)
    return Reading(sample, evidence, reader.postprocess(reader.forward(tensors)))


def read_subsets(reader: Any, sample: Sample, **options: Any) -> SubsetReading:
    """
    Scores of every subset of the modalities and each one's contribution; arguments as in `prepare`.

    Raises:
        ValueError: unreadable media, nothing to read from, or a regression model.
    """
    empty = uninformed_score(reader.model.config)
    tensors, evidence = prepare(reader, sample, **options)
    scores = subset_scores(reader, tensors)
    together = scores[evidence.modalities]
    label = max(together, key=together.__getitem__)
    return SubsetReading(sample, evidence, scores, label, empty, contributions(scores, label, empty), tensors)


@contextmanager
def _said_only_once() -> Iterator[None]:
    """What a note says of a sample by its name, the log would say once more by its place in a batch of one."""

    def is_other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("No face was found")

    _IMAGE_LOGGER.addFilter(is_other)
    try:
        yield
    finally:
        _IMAGE_LOGGER.removeFilter(is_other)


def _evidence(sample: Sample, tensors: Mapping[str, Any], use_sound_track: bool) -> Evidence:
    modalities = present_modalities(tensors)
    faces = None
    missing = []
    if "video_attention_mask" in tensors:
        mask = tensors["video_attention_mask"]
        faces = (int(mask.sum()), mask.shape[1])
        if "vision" not in modalities:
            missing.append(f"no face was found in {'the picture' if faces[1] == 1 else f'{faces[1]} frames'}")
    if "video" in sample.inputs and "audio" not in modalities and use_sound_track:
        missing.append("the clip has no sound track")
    return Evidence(modalities, faces, missing)
