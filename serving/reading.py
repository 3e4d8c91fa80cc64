"""One sample read: the scores, what they were read from, and what was missing."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from triemo.serving.samples import Sample
from triemo.serving.subsets import Subset, present_modalities

__all__ = ["Evidence", "Reading", "prepare", "read_sample"]

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


def prepare(reader: Any, sample: Sample, **options: Any) -> tuple[dict[str, torch.Tensor], Evidence]:
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


def _evidence(sample: Sample, tensors: Mapping[str, torch.Tensor], use_sound_track: bool) -> Evidence:
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
