"""Hugging Face encoders inside a tower: how they are built and loaded, and what the tower has to know of them."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .audio_tower_triemo import TriemoAudioModel
from .configuration_triemo import TriemoAudioConfig, TriemoConfig


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder with random weights from its config, without the pooling layer that nothing here would train."""
    if config.model_type == TriemoAudioConfig.model_type:
        return TriemoAudioModel._from_config(config)
    config._attn_implementation = supported_attention(encoder_class(type(config)), config._attn_implementation)
    return AutoModel.from_config(config, **_without_pooler(type(config)))


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


def encoder_class(config_class: type) -> Any:
    """The model class that AutoModel builds for a config class."""
    model_class: Any = AutoModel._model_mapping[config_class]
    return model_class[0] if isinstance(model_class, tuple) else model_class


def _without_pooler(config_class: type) -> dict[str, bool]:
    takes_it = "add_pooling_layer" in inspect.signature(encoder_class(config_class).__init__).parameters
    return {"add_pooling_layer": False} if takes_it else {}


def supported_attention(model_class: Any, attn_implementation: str | None) -> str | None:
    """The requested attention backend if this encoder has it, else sdpa, else eager (a ResNet has no attention)."""
    supported = {"sdpa": model_class._supports_sdpa, "flex_attention": model_class._supports_flex_attn}
    known = attn_implementation in (None, "eager")
    if known or supported.get(str(attn_implementation), model_class._supports_flash_attn):
        return attn_implementation
    return "sdpa" if model_class._supports_sdpa else "eager"


def encoder_width(config: PreTrainedConfig) -> int:
    """Width of the states that an encoder with this config returns."""
    if getattr(config, "add_adapter", False):
        return config.output_hidden_size
    if getattr(config, "hidden_sizes", None):
        return config.hidden_sizes[-1]
    return config.hidden_size


def audio_stride(config: TriemoConfig) -> int:
    """Input steps (samples or frames) that one step of the audio tower stands for."""
    audio: Any = config.audio_config
    if audio is None:
        return 1
    stride = 1
    if config.takes_waveform:
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


__all__ = [
    "audio_stride",
    "build_encoder",
    "encoder_class",
    "encoder_width",
    "load_encoder",
    "supported_attention",
    "text_positions",
]
