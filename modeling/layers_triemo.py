"""Attention, transformer layer and positions shared by the audio tower and the joint encoder.

Shape legend: B batch, L steps, D hidden size, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention with an additive or boolean mask; returns (B, L, H, D/H) and the weights (B, H, L, L)."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class TriemoSelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017) through the attention backend named in the config."""

    def __init__(self, config: PreTrainedConfig, key_bias: bool = True):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=key_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, L, D) -> (B, L, D) and, on request, the weights (B, H, L, L), which only the eager backend gives."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        attend: Callable = eager_attention_forward
        if not output_attentions:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            is_causal=False,
        )
        context = self.out_proj(context.reshape(*hidden_states.shape[:-1], -1))
        return context, weights if output_attentions else None


class TriemoEncoderLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer, names as in Whisper's encoder so that its weights load unchanged."""

    def __init__(self, config: PreTrainedConfig, key_bias: bool = True):
        super().__init__()
        self.self_attn = TriemoSelfAttention(config, key_bias=key_bias)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, output_attentions: bool = False
    ) -> torch.Tensor:
        """(B, L, D) -> (B, L, D)."""
        context, _ = self.self_attn(self.self_attn_layer_norm(hidden_states), attention_mask, output_attentions)
        hidden_states = hidden_states + self.dropout(context)
        feed_forward = self.fc2(self.activation(self.fc1(self.final_layer_norm(hidden_states))))
        return hidden_states + self.dropout(feed_forward)


# What `capture_outputs` records of a model's own layers; encoders inside its towers record for themselves.
RECORDED_OUTPUTS = {"hidden_states": TriemoEncoderLayer, "attentions": TriemoSelfAttention}


def attention_mask_for(
    config: PreTrainedConfig, states: torch.Tensor, valid: torch.Tensor, output_attentions: bool
) -> torch.Tensor | None:
    """The mask of `valid` steps (B, L) in the form that the backend takes, which with `output_attentions` is eager."""
    if output_attentions:
        return valid.bool()[:, None, None, :]
    return create_bidirectional_mask(config=config, inputs_embeds=states, attention_mask=valid)


def sinusoidal_positions(positions: torch.Tensor, channels: int, max_timescale: float = 10000.0) -> torch.Tensor:
    """
    Sines, then cosines, of `positions` (any shape, any real numbers) at `channels / 2` wavelengths from 2 pi to
    2 pi `max_timescale` (Vaswani et al., 2017, in the half-and-half layout of Whisper). Shape (*positions, channels),
    float32.
    """
    half = channels // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / max(half - 1, 1)
    angles = positions.to(torch.float32).unsqueeze(-1) * max_timescale**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Mean of (B, L, D) over the steps whose `mask` (B, L) is set; zeros for a row without any. Summed in float32: in
    half precision the sum of a minute of sound overflows.
    """
    weights = mask.float().unsqueeze(-1)
    return ((states.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)).to(states.dtype)


__all__ = [
    "RECORDED_OUTPUTS",
    "TriemoEncoderLayer",
    "TriemoSelfAttention",
    "attention_mask_for",
    "eager_attention_forward",
    "masked_mean",
    "sinusoidal_positions",
]
