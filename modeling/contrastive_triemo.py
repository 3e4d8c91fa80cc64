"""Contrastive alignment of text, speech and face: symmetric InfoNCE over every pair of modalities.

Shape legend: B rows of this process, N rows of all processes together, P projection size.

For a pair of modalities (m, n), over the rows i that have both, with unit vectors z and temperature tau = 1 / scale:

    L_{m->n} = mean_i -log( exp(z_m[i] . z_n[i] / tau) / sum_j exp(z_m[i] . z_n[j] / tau) )
    L_mn = (L_{m->n} + L_{n->m}) / 2

(van den Oord et al., 2018; symmetric and with a learned temperature as in Radford et al., 2021.) L_CL is the mean of
L_mn over the pairs of modalities that the batch has.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import nn

from .configuration_triemo import MODALITIES, TriemoConfig
from .distributed_triemo import gather_rows, mean_over_processes
from .losses_triemo import IGNORE_INDEX


class ClampFromAbove(torch.autograd.Function):
    """min(value, maximum), whose gradient is kept where it would bring the value back below the maximum."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, maximum: float) -> torch.Tensor:
        ctx.save_for_backward(value)
        ctx.maximum = maximum
        return value.clamp(max=maximum)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (value,) = ctx.saved_tensors
        (gradient,) = gradients
        # A plain clamp has no gradient above the maximum: a scale that an optimiser step took there would stay.
        return torch.where((value < ctx.maximum) | (gradient > 0), gradient, torch.zeros_like(gradient)), None


class TriemoLogitScale(nn.Module):
    """Learned factor of the similarities, 1 / temperature: exp(weight), at most exp(`logit_scale_max`)."""

    def __init__(self, config: TriemoConfig):
        super().__init__()
        self.maximum = float(config.logit_scale_max)
        # One element, not a scalar: FSDP2 shards along the first axis.
        self.weight = nn.Parameter(torch.full((1,), float(config.logit_scale_init_value)))

    def forward(self) -> torch.Tensor:
        """The factor, a scalar in float32."""
        return ClampFromAbove.apply(self.weight.float(), self.maximum).exp().squeeze(0)


def modality_pairs(config: TriemoConfig) -> list[tuple[str, str]]:
    """The pairs of modalities that a model has, in the order text-audio, text-vision, audio-vision."""
    return list(combinations(config.modalities, 2))


def contrastive_losses(
    embeds: dict[str, torch.Tensor],
    modality_mask: torch.Tensor,
    scale: torch.Tensor,
    config: TriemoConfig,
    labels: torch.Tensor | None = None,
    everywhere: bool = False,
) -> dict[str, torch.Tensor]:
    """
    L_CL and its parts; see the formulas at the top of this file.

    Args:
        embeds: unit vectors (B, P) by modality; rows of absent ones are not read.
        modality_mask: (B, 3) bool, which of text, audio, vision each row has.
        scale: 1 / temperature, a scalar.
        config: of the model; `contrastive_local_loss` and `contrastive_soft_labels` count.
        labels: (B,) class ids, -100 where unknown. With `contrastive_soft_labels`, other rows of the same class are
            left out of the sum over j: they are neither positives nor negatives.
        everywhere: take negatives from all processes, with gradient. Every process has to take part, with any number
            of rows. All processes get the same values; with `contrastive_local_loss` each computes the terms of its
            own rows only, (B, N) instead of (N, N) similarities, and the gradients are the same again.

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
    rows = own if config.contrastive_local_loss and everywhere else slice(0, len(facts))
    alone = torch.eye(len(facts), dtype=torch.bool, device=facts.device)[rows]
    candidates = torch.ones_like(alone)
    if config.contrastive_soft_labels:
        known = facts[:, 3] != IGNORE_INDEX
        candidates = ~((facts[rows, 3:] == facts[:, 3]) & known) | alone

    losses, found = {}, []
    vectors = dict(zip(modalities, stacked.unbind(1), strict=True))
    # Similarities up to 100 need more digits than half precision has.
    with torch.autocast(stacked.device.type, enabled=False):
        for first, second in modality_pairs(config):
            both = facts[:, MODALITIES.index(first)].bool() & facts[:, MODALITIES.index(second)].bool()
            # A row without the pair sees itself alone: its term is 0, and its gradient.
            visible = (both & candidates) | alone
            terms = info_nce(vectors[first], vectors[second], visible, rows, scale)
            terms = (terms + info_nce(vectors[second], vectors[first], visible, rows, scale)) / 2
            weights = both[rows].to(terms.dtype)
            losses[f"{first}_{second}_loss"] = mean_over_processes(
                (terms * weights).sum(), weights.sum(), everywhere and config.contrastive_local_loss
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


__all__ = ["TriemoLogitScale", "contrastive_losses", "info_nce", "modality_pairs"]
