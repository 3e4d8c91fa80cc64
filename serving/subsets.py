"""The prediction from every subset of a sample's modalities, in one batch of the model."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch

from triemo.modeling import MODALITIES
from triemo.modeling.inputs_triemo import MASKS

__all__ = ["Subset", "present_modalities", "subset_batch", "subset_scores", "subsets_of"]

Subset = tuple[str, ...]


def present_modalities(tensors: Mapping[str, torch.Tensor]) -> Subset:
    """What a batch of one has of text, audio, vision, in this order: those whose mask is not all zero."""
    return tuple(name for name in MODALITIES if MASKS[name] in tensors and bool(tensors[MASKS[name]].any()))


def subsets_of(modalities: Subset) -> list[Subset]:
    """All non-empty subsets, the single ones first, all together last."""
    return [subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size)]


def subset_batch(tensors: Mapping[str, torch.Tensor], subsets: list[Subset]) -> dict[str, torch.Tensor]:
    """A batch of one to a batch with a row for each subset: the same values, the others' masks all zero."""
    batch = {name: value.expand(len(subsets), *value.shape[1:]) for name, value in tensors.items()}
    for modality, mask in MASKS.items():
        if mask in batch:
            kept = torch.tensor([[modality in subset] for subset in subsets], device=batch[mask].device)
            batch[mask] = batch[mask] * kept
    return batch


def subset_scores(reader: Any, tensors: Mapping[str, torch.Tensor]) -> dict[Subset, dict[str, float]]:
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
