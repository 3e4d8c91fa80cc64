"""The prediction from every subset of a sample's modalities, in one batch of the model."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

__all__ = ["MASKS", "Subset", "present_modalities", "subset_batch", "subset_scores", "subsets_of"]

Subset = tuple[str, ...]

# The mask of each modality, in the order of the modalities; as the model names them, and here without torch.
MASKS = {"text": "attention_mask", "audio": "audio_attention_mask", "vision": "video_attention_mask"}


def present_modalities(tensors: Mapping[str, Any]) -> Subset:
    """What a batch of one has of text, audio, vision, in this order: those whose mask is not all zero."""
    return tuple(name for name, mask in MASKS.items() if mask in tensors and bool(tensors[mask].any()))


def subsets_of(modalities: Subset) -> list[Subset]:
    """All non-empty subsets, the single ones first, all together last."""
    return [subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size)]


def subset_batch(tensors: Mapping[str, Any], subsets: list[Subset]) -> dict[str, Any]:
    """A batch of one to a batch with a row for each subset: the same values, the others' masks all zero."""
    batch = {name: value[[0] * len(subsets)] for name, value in tensors.items()}
    for modality, mask in MASKS.items():
        for row, subset in enumerate(subsets):
            if mask in batch and modality not in subset:
                batch[mask][row] = 0
    return batch


def subset_scores(reader: Any, tensors: Mapping[str, Any]) -> dict[Subset, dict[str, float]]:
    """
    Scores of every non-empty subset of the modalities that a sample has, from one call of the model.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline; its `postprocess` applies the calibration temperature.
        tensors: what `reader.preprocess(sample)` returns, a batch of one.

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
    labels = list(reader.model.config.id2label.values())
    scores = {}
    for index, subset in enumerate(subsets):
        row = {name: values[index : index + 1] for name, values in outputs.items()}
        by_label = {entry["label"]: entry["score"] for entry in reader.postprocess(row)}
        scores[subset] = {label: by_label[label] for label in labels}
    return scores
