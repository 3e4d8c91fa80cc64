"""Towers: any Hugging Face encoder, or precomputed vectors, brought to one shape.

Shape legend: B batch, L steps of a tower's output, F frames of video, C width of a tower's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .audio_tower_triemo import TriemoAudioModel
from .configuration_triemo import TriemoConfig
from .encoders_triemo import (
    audio_stride,
    build_encoder,
    encoder_width,
    has_class_token,
    spec_augment_steps,
    text_positions,
)


@dataclass
class TowerOutput:
    """
    Args:
        states: (B, L, C), zero where masked.
        mask: (B, L), 1 = valid.
        times: (B, L) in seconds, None for text.
        hidden_states: on request, what the encoder returned by this name, each (B, ...), for vision (B, F, ...).
    """

    states: torch.Tensor
    mask: torch.Tensor
    times: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class TriemoTower(nn.Module):
    """
    Base of the three towers: `encoder` is the Hugging Face model, or None when vectors come in as they are.

    In eager mode the encoder runs on present rows only. When traced (`torch.compile`, export) it runs on all rows,
    since shapes may not depend on data; a row without any valid step then sees its first one, and is zeroed after.
    """

    encoder: Any

    def __init__(self, encoder: PreTrainedModel | None, width: int):
        super().__init__()
        self.encoder = encoder
        self.width = width

    @property
    def dtype(self) -> torch.dtype | None:
        return None if self.encoder is None else next(self.encoder.parameters()).dtype

    def select_rows(self, mask: torch.Tensor, everywhere: bool) -> torch.Tensor | None:
        """
        Indices of the rows to run on (B,), or None for all. `everywhere` adds row 0 to an otherwise empty selection,
        so that every one of several processes runs every tower.
        """
        if torch.compiler.is_compiling():
            return None
        present = mask.flatten(1).any(1)
        if bool(present.all()):
            return None
        if everywhere and not bool(present.any()):
            present = torch.zeros_like(present).index_fill_(0, torch.zeros(1, dtype=torch.long, device=mask.device), 1)
        return present.nonzero().squeeze(1)

    def encode(
        self, run: Callable[[torch.Tensor | None], tuple], mask: torch.Tensor, steps: torch.Size, everywhere: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """
        Args:
            run: from the rows to run on to their states and hidden states, tensors of shape (rows, ...).
            mask: (B, input steps); rows without a valid one are left out.
            steps: shape of the states without their width.

        Returns:
            States (*steps, C) and hidden states, zeros in the rows that were left out.
        """
        rows = self.select_rows(mask, everywhere)
        if rows is not None and len(rows) == 0:
            return torch.zeros(*steps, self.width, dtype=self.dtype, device=mask.device), None
        states, hidden_states = run(rows)
        if hidden_states is not None:
            hidden_states = tuple(put(state, rows, mask.shape[0]) for state in hidden_states)
        return put(states, rows, mask.shape[0]), hidden_states


def take(values: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Rows of a tensor; everything when `rows` is None."""
    return values if rows is None else values.index_select(0, rows)


def put(states: torch.Tensor, rows: torch.Tensor | None, batch: int) -> torch.Tensor:
    """The inverse of [`take`]: rows back in their places, zeros elsewhere."""
    if rows is None:
        return states
    return states.new_zeros(batch, *states.shape[1:]).index_copy(0, rows, states)


def see_first_step(mask: torch.Tensor) -> torch.Tensor:
    """A mask whose empty rows see their first step: no softmax over nothing, hence no NaN."""
    first = torch.zeros_like(mask)
    first[:, 0] = 1
    return torch.where(mask.any(1, keepdim=True), mask, first)


class TriemoTextTower(TriemoTower):
    """Token ids or precomputed vectors -> states (B, L, C)."""

    def __init__(self, config: TriemoConfig):
        encoder = None if config.text_config is None else build_encoder(config.text_config, "text")
        width = config.hidden_size if config.text_vocab_size else config.text_feature_size
        super().__init__(encoder, encoder_width(config.text_config) if encoder is not None else int(width or 0))
        self.max_positions = text_positions(config, encoder)
        if config.text_vocab_size is not None:
            self.token_embedding = nn.Embedding(config.text_vocab_size, self.width)

    def forward(
        self,
        inputs: torch.Tensor,
        mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        everywhere: bool = False,
        **request: Any,
    ) -> TowerOutput:
        """`inputs`: ids (B, L) or vectors (B, L, C). `request`: such as `output_hidden_states`, to the encoder."""
        if inputs.shape[1] > self.max_positions:
            raise ValueError(
                f"text has {inputs.shape[1]} steps, this model takes at most {self.max_positions}; "
                "truncate it (processor(..., truncation=True))."
            )
        if hasattr(self, "token_embedding"):
            return TowerOutput(self.token_embedding(inputs) * mask.unsqueeze(-1), mask)
        if self.encoder is None:
            return TowerOutput(inputs * mask.unsqueeze(-1).to(inputs.dtype), mask)

        def run(rows: torch.Tensor | None) -> tuple:
            optional = {} if token_type_ids is None else {"token_type_ids": take(token_type_ids, rows)}
            row_mask = see_first_step(take(mask, rows))
            output = self.encoder(input_ids=take(inputs, rows), attention_mask=row_mask, **optional, **request)
            return output.last_hidden_state, output.hidden_states

        states, hidden_states = self.encode(run, mask, mask.shape, everywhere)
        return TowerOutput(states * mask.unsqueeze(-1).to(states.dtype), mask, hidden_states=hidden_states)


class TriemoAudioTower(TriemoTower):
    """Frames (B, frames, bins), waveforms (B, samples) or precomputed vectors -> states (B, L, C)."""

    def __init__(self, config: TriemoConfig):
        encoder = None if config.audio_config is None else build_encoder(config.audio_config, "audio")
        super().__init__(
            encoder, encoder_width(config.audio_config) if encoder else int(config.audio_feature_size or 0)
        )
        self.waveform = config.takes_waveform
        self.input_rate = float(config.sampling_rate if self.waveform else config.audio_frame_rate)
        self.stride = audio_stride(config)
        self.fewest_steps = spec_augment_steps(config.audio_config)
        rate = config.audio_step_rate
        self.pool = 1 if rate is None else max(1, round(self.input_rate / self.stride / rate))

    def forward(
        self,
        inputs: torch.Tensor,
        mask: torch.Tensor,
        times: torch.Tensor | None = None,
        everywhere: bool = False,
        **request: Any,
    ) -> TowerOutput:
        """`times`: (B, frames or samples) seconds of each input step; index over rate when None."""
        if times is None:
            times = torch.arange(inputs.shape[1], device=inputs.device) / self.input_rate
            times = times.expand(inputs.shape[0], -1)
        if self.encoder is None:
            return TowerOutput(inputs * mask.unsqueeze(-1).to(inputs.dtype), mask, times)
        name = "input_values" if self.waveform else "input_features"
        step_mask = self.output_mask(mask)

        # SpecAugment cannot hide steps of a batch that is shorter than what it hides; padding lets it leave it alone.
        short = max(0, self.fewest_steps - inputs.shape[1]) if self.training else 0

        def run(rows: torch.Tensor | None) -> tuple:
            values, row_mask = take(inputs, rows).to(self.dtype), see_first_step(take(mask, rows))
            if short:
                values = nn.functional.pad(values, (0, short) if self.waveform else (0, 0, 0, short))
                row_mask = nn.functional.pad(row_mask, (0, short))
            output = self.encoder(**{name: values}, attention_mask=row_mask, **request)
            return output.last_hidden_state, output.hidden_states

        states, hidden_states = self.encode(run, mask, step_mask.shape, everywhere)
        states = states[:, : step_mask.shape[1]] * step_mask.unsqueeze(-1).to(states.dtype)
        steps = torch.arange(step_mask.shape[1], device=inputs.device) * self.stride
        return TowerOutput(states, step_mask, times[:, steps.clamp(max=times.shape[1] - 1)], hidden_states)

    def output_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Mask of input steps (B, frames or samples) -> mask of tower steps (B, L)."""
        if self.encoder is None or (not self.waveform and self.stride == 1):
            return mask
        if isinstance(self.encoder, TriemoAudioModel) or not hasattr(self.encoder, "_get_feat_extract_output_lengths"):
            return mask[:, :: self.stride]
        lengths = self.encoder._get_feat_extract_output_lengths(
            torch.cat([mask.sum(1), mask.new_tensor([mask.shape[1]])])
        )
        lengths = lengths.to(torch.long).clamp(min=0)
        if not torch.compiler.is_compiling():
            short = (mask.any(1) & (lengths[:-1] < 1)).nonzero()
            if len(short):
                row = int(short[0])
                raise ValueError(
                    f"audio of sample {row} has {int(mask[row].sum())} samples, too few for one step of the audio "
                    f"tower ({self.stride} samples each)."
                )
        steps = torch.arange(int(lengths[-1]), device=mask.device)
        return (steps < lengths[:-1, None]).to(mask.dtype)

    def pool_steps(self, output: TowerOutput) -> TowerOutput:
        """Average states and times over windows of `pool` steps: the joint encoder's rate. Padding does not count."""
        if self.pool == 1 or output.times is None:
            return output
        batch, steps = output.mask.shape
        pad = -steps % self.pool
        mask = nn.functional.pad(output.mask, (0, pad)).view(batch, -1, self.pool)
        weights = mask.to(output.states.dtype)
        count = weights.sum(2).clamp(min=1.0)
        states = nn.functional.pad(output.states, (0, 0, 0, pad)).view(batch, -1, self.pool, output.states.shape[-1])
        times = nn.functional.pad(output.times, (0, pad)).view(batch, -1, self.pool)
        return TowerOutput(
            (states * weights.unsqueeze(-1)).sum(2) / count.unsqueeze(-1),
            mask.any(2).to(output.mask.dtype),
            (times * mask).sum(2) / mask.sum(2).clamp(min=1),
        )


class TriemoVisionTower(TriemoTower):
    """Frames (B, F, channels, height, width) one by one through an image encoder, or vectors -> states (B, F, C)."""

    def __init__(self, config: TriemoConfig):
        encoder = None if config.vision_config is None else build_encoder(config.vision_config, "vision")
        super().__init__(
            encoder, encoder_width(config.vision_config) if encoder else int(config.vision_feature_size or 0)
        )
        self.frame_rate = float(config.video_frame_rate)
        self.has_class_token = encoder is not None and has_class_token(encoder)

    def forward(
        self,
        inputs: torch.Tensor,
        mask: torch.Tensor,
        times: torch.Tensor | None = None,
        everywhere: bool = False,
        **request: Any,
    ) -> TowerOutput:
        """`times`: (B, F) seconds of each frame; index over `video_frame_rate` when None."""
        if times is None:
            times = (torch.arange(inputs.shape[1], device=inputs.device) / self.frame_rate).expand(inputs.shape[0], -1)
        if self.encoder is None:
            return TowerOutput(inputs * mask.unsqueeze(-1).to(inputs.dtype), mask, times)
        frames = inputs.flatten(0, 1)

        def run(rows: torch.Tensor | None) -> tuple:
            return self.encode_frames(take(frames, rows).to(self.dtype), **request)

        flat = mask.reshape(-1, 1)
        states, hidden_states = self.encode(run, flat, flat.shape[:1], everywhere)
        states = states.view(*mask.shape, -1) * mask.unsqueeze(-1).to(states.dtype)
        if hidden_states is not None:
            hidden_states = tuple(state.unflatten(0, mask.shape) for state in hidden_states)
        return TowerOutput(states, mask, times, hidden_states)

    def encode_frames(self, pixel_values: torch.Tensor, **request: Any) -> tuple:
        """
        (n, channels, height, width) -> (n, C), the encoder's pooled output, else its class token; and its hidden
        states on request.

        Raises:
            ValueError: naming an encoder that has neither.
        """
        output = self.encoder(pixel_values, **request)
        hidden_states = getattr(output, "hidden_states", None)
        pooled, pooler = getattr(output, "pooler_output", None), getattr(self.encoder, "pooler", None)
        # BERT's kind of pooler reads the first state, which without a class token is the upper-left patch.
        if pooled is not None and (self.has_class_token or not hasattr(pooler, "dense")):
            return pooled.flatten(1), hidden_states
        if self.has_class_token and output.last_hidden_state.dim() == 3:
            return output.last_hidden_state[:, 0], hidden_states
        raise ValueError(
            f"vision: {type(self.encoder).__name__} has neither a pooled output nor a class token, so that nothing in "
            "it stands for a whole frame; give an encoder that has one."
        )


__all__ = ["TowerOutput", "TriemoAudioTower", "TriemoTextTower", "TriemoTower", "TriemoVisionTower"]
