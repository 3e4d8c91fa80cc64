"""Towers: any Hugging Face encoder, or precomputed vectors, brought to one shape.

Shape legend: B batch, L steps of a tower's output, F frames of video, C width of a tower's output.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .audio_tower_triemo import TriemoAudioModel
from .configuration_triemo import TriemoAudioConfig, TriemoConfig


@dataclass
class TowerOutput:
    """States (B, L, C), zero where masked; mask (B, L), 1 = valid; times (B, L) in seconds, None for text."""

    states: torch.Tensor
    mask: torch.Tensor
    times: torch.Tensor | None = None


def tower_width(config: PreTrainedConfig) -> int:
    """Width of the states an encoder with this config returns."""
    if getattr(config, "add_adapter", False):
        return config.output_hidden_size
    if getattr(config, "hidden_sizes", None):
        return config.hidden_sizes[-1]
    return config.hidden_size


def takes_waveform(config: TriemoConfig) -> bool:
    """Whether the audio tower reads `input_values` (samples) rather than `input_features` (frames)."""
    return config.audio_config is not None and getattr(config.audio_config, "conv_stride", None) is not None


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder with random weights from its config, without the pooling layer that nothing here would train."""
    if config.model_type == TriemoAudioConfig.model_type:
        return TriemoAudioModel._from_config(config)
    config._attn_implementation = supported_attention(encoder_class(type(config)), config._attn_implementation)
    return AutoModel.from_config(config, **_without_pooler(type(config)))


def supported_attention(model_class: Any, attn_implementation: str | None) -> str | None:
    """The requested attention backend if this encoder has it, else sdpa, else eager (a ResNet has no attention)."""
    supported = {"sdpa": model_class._supports_sdpa, "flex_attention": model_class._supports_flex_attn}
    known = attn_implementation in (None, "eager")
    if known or supported.get(str(attn_implementation), model_class._supports_flash_attn):
        return attn_implementation
    return "sdpa" if model_class._supports_sdpa else "eager"


def encoder_class(config_class: type) -> Any:
    """The model class that AutoModel builds for a config class."""
    model_class: Any = AutoModel._model_mapping[config_class]
    return model_class[0] if isinstance(model_class, tuple) else model_class


def load_encoder(name_or_path: Any, modality: str, **hub_kwargs: Any) -> PreTrainedModel:
    """
    A pretrained encoder by Hub id or folder (a `PreTrainedModel` passes through). Whisper's encoder becomes a
    [`TriemoAudioModel`]; of a two-tower model such as CLIP, the half that fits the modality is taken.

    Raises:
        ValueError: for an encoder-decoder model other than Whisper.
    """
    if isinstance(name_or_path, PreTrainedModel):
        encoder = name_or_path
        return TriemoAudioModel.from_whisper_encoder(encoder) if encoder.config.model_type == "whisper" else encoder
    hub_kwargs = {"dtype": torch.float32, **hub_kwargs}
    download = {key: value for key, value in hub_kwargs.items() if key != "dtype"}
    config = AutoConfig.from_pretrained(name_or_path, **download)
    if config.model_type == "whisper":
        return TriemoAudioModel.from_whisper(name_or_path, hub_kwargs)
    if config.model_type == TriemoAudioConfig.model_type:
        return TriemoAudioModel.from_pretrained(name_or_path, **hub_kwargs)
    if config.is_encoder_decoder:
        raise ValueError(f"{modality}={name_or_path!r} is an encoder-decoder ({config.model_type}); give an encoder.")
    half = getattr(config, f"{modality}_config", None)
    if half is not None:
        return encoder_class(type(half)).from_pretrained(name_or_path, **hub_kwargs)
    return AutoModel.from_pretrained(name_or_path, **hub_kwargs, **_without_pooler(type(config)))


def _without_pooler(config_class: type) -> dict[str, bool]:
    takes_it = "add_pooling_layer" in inspect.signature(encoder_class(config_class).__init__).parameters
    return {"add_pooling_layer": False} if takes_it else {}


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

    def select_rows(self, mask: torch.Tensor, run_always: bool) -> torch.Tensor | None:
        """
        Indices of the rows to run on (B,), or None for all. `run_always` adds row 0 to an otherwise empty selection,
        so that every process of a distributed training runs every tower.
        """
        if torch.compiler.is_compiling():
            return None
        present = mask.flatten(1).any(1)
        if bool(present.all()):
            return None
        if run_always and not bool(present.any()):
            present = torch.zeros_like(present).index_fill_(0, torch.zeros(1, dtype=torch.long, device=mask.device), 1)
        return present.nonzero().squeeze(1)


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
        encoder = None if config.text_config is None else build_encoder(config.text_config)
        width = config.hidden_size if config.text_vocab_size else config.text_feature_size
        super().__init__(encoder, tower_width(config.text_config) if encoder is not None else int(width or 0))
        self.max_positions = text_positions(config)
        if config.text_vocab_size is not None:
            self.token_embedding = nn.Embedding(config.text_vocab_size, self.width)

    def forward(
        self,
        inputs: torch.Tensor,
        mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        run_always: bool = False,
    ) -> TowerOutput:
        """`inputs`: ids (B, L) or vectors (B, L, C)."""
        if inputs.shape[1] > self.max_positions:
            raise ValueError(
                f"text has {inputs.shape[1]} steps, this model takes at most {self.max_positions}; "
                "truncate it (processor(..., truncation=True))."
            )
        if hasattr(self, "token_embedding"):
            return TowerOutput(self.token_embedding(inputs) * mask.unsqueeze(-1), mask)
        if self.encoder is None:
            return TowerOutput(inputs * mask.unsqueeze(-1).to(inputs.dtype), mask)
        rows = self.select_rows(mask, run_always)
        if rows is not None and len(rows) == 0:
            return TowerOutput(empty_states(self, inputs.shape[:2], inputs.device), mask)
        optional = {} if token_type_ids is None else {"token_type_ids": take(token_type_ids, rows)}
        row_mask = see_first_step(take(mask, rows))
        states = self.encoder(input_ids=take(inputs, rows), attention_mask=row_mask, **optional).last_hidden_state
        states = put(states, rows, inputs.shape[0])
        return TowerOutput(states * mask.unsqueeze(-1).to(states.dtype), mask)


class TriemoAudioTower(TriemoTower):
    """Frames (B, frames, bins), waveforms (B, samples) or precomputed vectors -> states (B, L, C)."""

    def __init__(self, config: TriemoConfig):
        encoder = None if config.audio_config is None else build_encoder(config.audio_config)
        super().__init__(encoder, tower_width(config.audio_config) if encoder else int(config.audio_feature_size or 0))
        self.waveform = takes_waveform(config)
        self.input_rate = float(config.sampling_rate if self.waveform else config.audio_frame_rate)
        self.stride = audio_stride(config)
        rate = config.audio_step_rate
        self.pool = 1 if rate is None else max(1, round(self.input_rate / self.stride / rate))

    def forward(
        self, inputs: torch.Tensor, mask: torch.Tensor, times: torch.Tensor | None = None, run_always: bool = False
    ) -> TowerOutput:
        """`times`: (B, frames or samples) seconds of each input step; index over rate when None."""
        if times is None:
            times = torch.arange(inputs.shape[1], device=inputs.device) / self.input_rate
            times = times.expand(inputs.shape[0], -1)
        if self.encoder is None:
            return TowerOutput(inputs * mask.unsqueeze(-1).to(inputs.dtype), mask, times)
        rows = self.select_rows(mask, run_always)
        step_mask = self.output_mask(mask)
        if rows is not None and len(rows) == 0:
            states = empty_states(self, step_mask.shape, inputs.device)
        else:
            name = "input_values" if self.waveform else "input_features"
            features = take(inputs, rows).to(self.dtype)
            states = self.encoder(
                **{name: features}, attention_mask=see_first_step(take(mask, rows))
            ).last_hidden_state
            states = put(states, rows, inputs.shape[0])
        states = states[:, : step_mask.shape[1]] * step_mask.unsqueeze(-1).to(states.dtype)
        steps = torch.arange(step_mask.shape[1], device=inputs.device) * self.stride
        return TowerOutput(states, step_mask, times[:, steps.clamp(max=times.shape[1] - 1)])

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
        encoder = None if config.vision_config is None else build_encoder(config.vision_config)
        super().__init__(
            encoder, tower_width(config.vision_config) if encoder else int(config.vision_feature_size or 0)
        )
        self.frame_rate = float(config.video_frame_rate)

    def forward(
        self, inputs: torch.Tensor, mask: torch.Tensor, times: torch.Tensor | None = None, run_always: bool = False
    ) -> TowerOutput:
        """`times`: (B, F) seconds of each frame; index over `video_frame_rate` when None."""
        if times is None:
            times = (torch.arange(inputs.shape[1], device=inputs.device) / self.frame_rate).expand(inputs.shape[0], -1)
        if self.encoder is None:
            return TowerOutput(inputs * mask.unsqueeze(-1).to(inputs.dtype), mask, times)
        batch, frames = mask.shape
        flat = inputs.flatten(0, 1)
        rows = self.select_rows(mask.reshape(-1, 1), run_always)
        if rows is not None and len(rows) == 0:
            states = empty_states(self, (batch * frames,), inputs.device)
        else:
            states = put(self.encode_frames(take(flat, rows).to(self.dtype)), rows, batch * frames)
        states = states.view(batch, frames, -1)
        return TowerOutput(states * mask.unsqueeze(-1).to(states.dtype), mask, times)

    def encode_frames(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(n, channels, height, width) -> (n, C): the encoder's pooled output, else its first (class) token."""
        output = self.encoder(pixel_values)
        pooled = getattr(output, "pooler_output", None)
        return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def audio_stride(config: TriemoConfig) -> int:
    """Input steps (samples or frames) that one step of the audio tower stands for."""
    audio: Any = config.audio_config
    if audio is None:
        return 1
    stride = 1
    if takes_waveform(config):
        stride = math.prod(audio.conv_stride)
    elif audio.model_type == TriemoAudioConfig.model_type:
        stride = 2
    if getattr(audio, "add_adapter", False):
        stride *= audio.adapter_stride**audio.num_adapter_layers
    return stride


def text_positions(config: TriemoConfig) -> int:
    """Longest text in steps: the tower's limit and that of learned positions, whichever is smaller."""
    limits = [config.max_text_positions] if config.text_position_type == "learned" else []
    text: Any = config.text_config
    tower = getattr(text, "max_position_embeddings", None)
    if tower is not None:
        # RoBERTa's family counts positions from the padding index upwards.
        offset = text.pad_token_id + 1 if "roberta" in text.model_type else 0
        limits.append(tower - offset)
    return min(limits, default=1 << 30)


def empty_states(tower: TriemoTower, shape: Any, device: torch.device) -> torch.Tensor:
    """Zeros of shape (*shape, C) in the tower's dtype: what a batch without the modality gives."""
    return torch.zeros(*shape, tower.width, dtype=tower.dtype, device=device)


__all__ = [
    "TowerOutput",
    "TriemoAudioTower",
    "TriemoTextTower",
    "TriemoVisionTower",
    "audio_stride",
    "build_encoder",
    "load_encoder",
    "supported_attention",
    "takes_waveform",
    "text_positions",
    "tower_width",
]
