"""Fusion by six directed cross-modal attentions.

Shape legend: B batch, L_m steps of modality m, D hidden size, H heads, d = D / H.

For every ordered pair of modalities m != n:

    A_{m->n} = softmax(Q_m K_n^T / sqrt(d))        context_{m->n} = A_{m->n} V_n

    fused = (6 / number of present pairs) * sum_{m != n} context_{m->n} + sum_m H_m

with one Q, K and V projection per modality. For a clip, context_{m->n} and H_m are averaged over m's valid steps
first; for step-aligned sequences the sums are taken step by step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_triemo import TriemoConfig
from .layers_triemo import eager_attention_forward, masked_mean

NUM_PAIRS = 6  # ordered pairs of three modalities


class TriemoFusionProjections(nn.Module):
    """Q, K and V projection of one modality, each (B, L, D) -> (B, H, L, d)."""

    def __init__(self, config: TriemoConfig):
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads = (*states.shape[:2], -1, self.head_dim)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (projection(states).view(heads).transpose(1, 2) for projection in projections)
        return query, key, value


class TriemoFusion(nn.Module):
    """Six directed attentions between the modalities of a model; see the formula at the top of this file."""

    def __init__(self, config: TriemoConfig):
        super().__init__()
        self.config = config
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.is_causal = False
        self.step_aligned = config.step_aligned
        # A single modality has nobody to attend to; projections would be parameters without a gradient.
        attending = config.modalities if len(config.modalities) > 1 else ()
        self.projections = nn.ModuleDict({m: TriemoFusionProjections(config) for m in attending})

    def forward(
        self,
        states: dict[str, torch.Tensor],
        masks: dict[str, torch.Tensor],
        output_attentions: bool = False,
        visible: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[tuple[str, str], torch.Tensor] | None]:
        """
        Args:
            states: joint states H_m of shape (B, L_m, D), by modality.
            masks: valid steps of shape (B, L_m), by modality. A modality is present in a sample if any step is valid.
            output_attentions: also return A_{m->n}.
            visible: of step-aligned sequences, which steps may be seen from each, (B, L, L) bool; None is all.

        Returns:
            The fused state, (B, D), or (B, L, D) when step-aligned; and on request the attentions of shape
            (B, H, L_m, L_n) keyed `("text", "audio")` for text attending to audio, zero where a side is absent.

        Raises:
            ValueError: if step-aligned sequences differ in length.
        """
        lengths = {modality: state.shape[1] for modality, state in states.items()}
        first = next(iter(lengths.values()))
        if self.step_aligned and any(length != first for length in lengths.values()):
            raise ValueError(f"step-aligned modalities must have the same number of steps, got {lengths}.")
        residual = torch.stack([self.reduce(state, masks[m]) for m, state in states.items()]).sum(0)
        projected = {m: self.projections[m](state) for m, state in states.items() if m in self.projections}
        context = torch.zeros_like(residual)
        pairs = torch.zeros_like(residual[..., :1])
        attentions: dict[tuple[str, str], torch.Tensor] = {}
        for m, state in states.items():
            for n in states:
                if n == m:
                    continue
                query, (_, key, value) = projected[m][0], projected[n]
                seen = masks[n].bool().unsqueeze(1) if visible is None else masks[n].bool().unsqueeze(1) & visible
                attended, weights = self.attend(query, key, value, seen, output_attentions)
                both = (masks[m].bool() & seen.any(-1)).to(state.dtype)
                context = context + self.reduce(attended, both)
                pairs = pairs + (both.unsqueeze(-1) if self.step_aligned else both.amax(1, keepdim=True))
                if weights is not None:
                    attentions[m, n] = weights * both[:, None, :, None]
        fused = context * (NUM_PAIRS / pairs.clamp(min=1.0)) + residual
        return fused, attentions if output_attentions else None

    def reduce(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Over a clip the mean of the valid steps, (B, D); step-aligned the steps themselves, zero where masked."""
        return states * mask.to(states.dtype).unsqueeze(-1) if self.step_aligned else masked_mean(states, mask)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """softmax(Q K^T / sqrt(d)) V over keys `seen` (B, L_m or 1, L_n) -> (B, L_m, D) and, if asked, the weights."""
        # A step without any key attends to everything instead of nothing (no NaN); its pair is zeroed by presence.
        visible = (seen | ~seen.any(-1, keepdim=True)).unsqueeze(1).expand(-1, 1, query.shape[2], -1)
        attend: Callable = eager_attention_forward
        # Flash kernels cannot mask keys of a cross-attention whose sides differ in length; sdpa can.
        if not output_attentions and self.config._attn_implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        context, weights = attend(self, query, key, value, visible, scaling=self.scaling, is_causal=False)
        return context.flatten(2), weights if output_attentions else None


__all__ = ["NUM_PAIRS", "TriemoFusion"]
