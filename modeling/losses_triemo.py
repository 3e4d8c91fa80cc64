"""Losses of the emotion heads.

Shape legend: B batch, C classes (or regression targets).
"""

from __future__ import annotations

import torch
from torch import nn

from .configuration_triemo import TriemoConfig

IGNORE_INDEX = -100


def emotion_loss(logits: torch.Tensor, labels: torch.Tensor, config: TriemoConfig) -> torch.Tensor:
    """
    The loss that `config.problem_type` names; when it is None, regression for one output and otherwise cross-entropy.

    - single label: `labels` (B,) of class ids (-100 is ignored), or (B, C) of probabilities (soft targets). With
      `class_weights` w and label smoothing, as `torch.nn.functional.cross_entropy` defines them; soft targets are
      averaged over samples, not over weights.
    - multi-label: `labels` (B, C) in [0, 1]; binary cross-entropy, each class's term times its weight.
    - regression: `labels` (B, C) or (B,) for C = 1; mean squared error, or 1 - CCC averaged over targets.

    Raises:
        ValueError: if the shape or the dtype of `labels` does not fit, or a class id is out of range.
    """
    logits = logits.float()
    labels = labels.to(logits.device)
    problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    weights = None if config.class_weights is None else logits.new_tensor(config.class_weights)
    if problem == "single_label_classification" and not labels.is_floating_point():
        if labels.shape != logits.shape[:-1]:
            raise ValueError(f"labels must have shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}.")
        if not torch.compiler.is_compiling():
            wrong = labels[(labels != IGNORE_INDEX) & ((labels < 0) | (labels >= config.num_labels))]
            if len(wrong):
                raise ValueError(
                    f"labels must be class ids from 0 to {config.num_labels - 1} (or {IGNORE_INDEX}), "
                    f"got {int(wrong[0])}."
                )
        return nn.functional.cross_entropy(
            logits.flatten(0, -2),
            labels.flatten(),
            weight=weights,
            label_smoothing=config.label_smoothing,
            ignore_index=IGNORE_INDEX,
        )
    if labels.shape != logits.shape and labels.shape == logits.shape[:-1] and logits.shape[-1] == 1:
        labels = labels.unsqueeze(-1)
    if labels.shape != logits.shape:
        raise ValueError(f"{problem} labels must have shape {tuple(logits.shape)}, got {tuple(labels.shape)}.")
    labels = labels.to(logits.dtype)
    if problem == "single_label_classification":
        return nn.functional.cross_entropy(
            logits.flatten(0, -2), labels.flatten(0, -2), weight=weights, label_smoothing=config.label_smoothing
        )
    if problem == "multi_label_classification":
        return nn.functional.binary_cross_entropy_with_logits(logits, labels, weight=weights)
    if config.regression_loss == "ccc":
        return (1 - concordance(logits.flatten(0, -2), labels.flatten(0, -2))).mean()
    return nn.functional.mse_loss(logits, labels)


def concordance(predictions: torch.Tensor, targets: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """
    Concordance correlation coefficient (Lin, 1989) of each column of (B, C): 2 cov / (var_p + var_t + (mean_p -
    mean_t)^2), with population variances. Shape (C,).
    """
    mean_p, mean_t = predictions.mean(0), targets.mean(0)
    covariance = ((predictions - mean_p) * (targets - mean_t)).mean(0)
    spread = predictions.var(0, unbiased=False) + targets.var(0, unbiased=False) + (mean_p - mean_t) ** 2
    return 2 * covariance / (spread + eps)


__all__ = ["IGNORE_INDEX", "concordance", "emotion_loss"]
