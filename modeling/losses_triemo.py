"""Losses: of the emotion heads, and the contrastive alignment of text, speech and face.

Shape legend: B rows of this process, N rows of all processes together, C classes (or regression targets), P projection
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import nn

from .configuration_triemo import MODALITIES, TriemoConfig
from .distributed_triemo import gather_rows, mean_over_processes

IGNORE_INDEX = -100


def emotion_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: TriemoConfig,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """
    The loss that `config.problem_type` names; when it is None, regression for one output and otherwise cross-entropy.

    - single label: `labels` (B,) of class ids (-100 is ignored; a loss of 0 where all are, so that one process of
      several may have a batch without a label), or (B, C) of probabilities (soft targets). With
      `class_weights` w and label smoothing, as `torch.nn.functional.cross_entropy` defines them; soft targets are
      averaged over samples, not over weights.
    - multi-label: `labels` (B, C) in [0, 1]; binary cross-entropy, each class's term times its weight.
    - regression: `labels` (B, C) or (B,) for C = 1; mean squared error, or 1 - CCC averaged over targets.

    Raises:
        ValueError: if the shape or the dtype of `labels` does not fit, or a class id is out of range.
    """
    logits = logits.float()
    labels = labels.to(logits.device)
    problem = config.resolved_problem_type
    weights = None if class_weights is None else logits.new_tensor(class_weights)
    if weights is not None and len(weights) != config.num_labels:
        raise ValueError(f"class_weights must be one for each of the {config.num_labels} labels, got {len(weights)}.")
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
            if not bool((labels != IGNORE_INDEX).any()):
                return 0.0 * logits.sum()
        return nn.functional.cross_entropy(
            logits.flatten(0, -2),
            labels.flatten(),
            weight=weights,
            label_smoothing=label_smoothing,
            ignore_index=IGNORE_INDEX,
        )
    if labels.shape != logits.shape and labels.shape == logits.shape[:-1] and logits.shape[-1] == 1:
        labels = labels.unsqueeze(-1)
    if labels.shape != logits.shape:
        raise ValueError(f"{problem} labels must have shape {tuple(logits.shape)}, got {tuple(labels.shape)}.")
    labels = labels.to(logits.dtype)
    if problem == "single_label_classification":
        return nn.functional.cross_entropy(
            logits.flatten(0, -2), labels.flatten(0, -2), weight=weights, label_smoothing=label_smoothing
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


def contrastive_losses(
    embeds: dict[str, torch.Tensor],
    modality_mask: torch.Tensor,
    scale: torch.Tensor,
    config: TriemoConfig,
    labels: torch.Tensor | None = None,
    everywhere: bool = False,
    local_loss: bool = False,
) -> dict[str, torch.Tensor]:
    """
    L_CL and its parts: symmetric InfoNCE over every pair of modalities (van den Oord et al., 2018; symmetric and with
    a learned temperature as in Radford et al., 2021). For a pair (m, n), over the rows i that have both, with unit
    vectors z and temperature tau = 1 / scale,

        L_{m->n} = mean_i -log( exp(z_m[i] . z_n[i] / tau) / sum_j exp(z_m[i] . z_n[j] / tau) )
        L_mn = (L_{m->n} + L_{n->m}) / 2

    and L_CL is the mean of L_mn over the pairs of modalities that the batch has.

    Args:
        embeds: unit vectors (B, P) by modality; rows of absent ones are not read.
        modality_mask: (B, 3) bool, which of text, audio, vision each row has.
        scale: 1 / temperature, a scalar.
        config: of the model.
        labels: (B,) class ids, -100 where unknown. Other rows of the same class are left out of the sum over j: they
            are neither positives nor negatives.
        everywhere: take negatives from all processes, with gradient. Every process has to take part, with any number
            of rows. All processes get the same values.
        local_loss: with `everywhere`, each process computes the terms of its own rows only, (B, N) instead of
            (N, N) similarities; values and gradients are the same again.

    Returns:
        `contrastive_loss` and, for the pairs the model has, `text_audio_loss`, `text_vision_loss`,
        `audio_vision_loss`, scalars in float32; 0 where no row has the pair.

    Raises:
        ValueError: if the labels do not fit.
    """
    if labels is not None and (labels.shape != modality_mask.shape[:1] or labels.is_floating_point()):
        raise ValueError(
            f"labels must be class ids of shape {tuple(modality_mask.shape[:1])}, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    modalities = config.modalities
    classes = torch.full_like(modality_mask[:, 0], IGNORE_INDEX, dtype=torch.long) if labels is None else labels
    stacked = torch.stack([embeds[modality] for modality in modalities], dim=1).float()
    facts = torch.cat([modality_mask.long(), classes.to(stacked.device).long().unsqueeze(1)], dim=1)
    own = slice(0, len(facts))
    if everywhere:
        (stacked, facts), own = gather_rows(stacked, facts)
    rows = own if local_loss and everywhere else slice(0, len(facts))
    alone = torch.eye(len(facts), dtype=torch.bool, device=facts.device)[rows]
    known = facts[:, 3] != IGNORE_INDEX
    candidates = ~((facts[rows, 3:] == facts[:, 3]) & known) | alone

    losses, found = {}, []
    vectors = dict(zip(modalities, stacked.unbind(1), strict=True))
    # Similarities up to 100 need more digits than half precision has.
    with torch.autocast(stacked.device.type, enabled=False):
        for first, second in combinations(modalities, 2):
            both = facts[:, MODALITIES.index(first)].bool() & facts[:, MODALITIES.index(second)].bool()
            # A row without the pair sees itself alone: its term is 0, and its gradient.
            visible = (both & candidates) | alone
            terms = info_nce(vectors[first], vectors[second], visible, rows, scale)
            terms = (terms + info_nce(vectors[second], vectors[first], visible, rows, scale)) / 2
            weights = both[rows].to(terms.dtype)
            losses[f"{first}_{second}_loss"] = mean_over_processes(
                (terms * weights).sum(), weights.sum(), everywhere and local_loss
            )
            found.append(both.any())
        total = torch.stack(list(losses.values())).sum() / torch.stack(found).sum().clamp(min=1)
    return {"contrastive_loss": total, **losses}


def info_nce(
    queries: torch.Tensor, keys: torch.Tensor, visible: torch.Tensor, rows: slice, scale: torch.Tensor
) -> torch.Tensor:
    """
    -log softmax over the visible keys, at each query's own key.

    Args:
        queries: (N, P); those of `rows` are asked.
        keys: (N, P), the key of row i belongs to the query of row i.
        visible: (rows, N) bool.

    Returns:
        One term for each of `rows`.
    """
    similarities = scale * queries[rows] @ keys.T
    similarities = similarities.masked_fill(~visible, torch.finfo(similarities.dtype).min)
    targets = torch.arange(len(keys), device=keys.device)[rows]
    return nn.functional.cross_entropy(similarities, targets, reduction="none")


__all__ = ["IGNORE_INDEX", "concordance", "contrastive_losses", "emotion_loss", "info_nce"]
