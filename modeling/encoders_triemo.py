"""Hugging Face encoders inside a tower: how they are built and loaded, and what the tower has to know of them."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .audio_tower_triemo import TriemoAudioModel
from .configuration_triemo import TriemoAudioConfig, TriemoConfig
from .loading_triemo import refuse

logger = logging.get_logger(__name__)


# Names of the class token's parameter in image encoders.
CLASS_TOKENS = ("cls_token", "class_embedding")


def build_encoder(config: PreTrainedConfig, modality: str) -> PreTrainedModel:
    """
    An encoder with random weights from its config, without the pooling layer that nothing here would train and, since
    every process of a training has to use every layer, without LayerDrop.
    """
    if config.model_type == TriemoAudioConfig.model_type:
        return TriemoAudioModel._from_config(config)
    config._attn_implementation = supported_attention(encoder_class(type(config)), config._attn_implementation)
    if getattr(config, "layerdrop", 0):
        logger.info(f"LayerDrop of the {modality} encoder ({config.layerdrop}) is switched off.")
        config.layerdrop = 0.0
    return AutoModel.from_config(config, **_without_pooler(config, modality))


def load_encoder(name_or_path: Any, modality: str, **hub_kwargs: Any) -> PreTrainedModel:
    """
    A pretrained encoder by Hub id or folder (a `PreTrainedModel` passes through). Whisper's encoder becomes a
    [`TriemoAudioModel`]; of a two-tower model such as CLIP, the half that fits the modality is taken.

    Raises:
        ValueError: for an encoder-decoder model other than Whisper, or weights that are missing or not finite.
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
        model_class: Any = encoder_class(type(half))
    else:
        model_class, hub_kwargs = AutoModel, hub_kwargs | _without_pooler(config, modality)
    encoder, info = model_class.from_pretrained(name_or_path, output_loading_info=True, **hub_kwargs)
    # Checkpoints that were fine-tuned for speech recognition lack the vector that SpecAugment puts in.
    missing = sorted(name for name in info["missing_keys"] if not name.endswith("masked_spec_embed"))
    refuse(f"{modality}={name_or_path!r}", encoder, {"lacks": missing})
    return encoder


def encoder_class(config_class: type) -> Any:
    """The model class that AutoModel builds for a config class."""
    model_class: Any = AutoModel._model_mapping[config_class]
    return model_class[0] if isinstance(model_class, tuple) else model_class


def _without_pooler(config: PreTrainedConfig, modality: str) -> dict[str, bool]:
    """Image encoders without a class token, such as Swin, keep the pooling layer: no state but its is a frame's."""
    model_class = encoder_class(type(config))
    if "add_pooling_layer" not in inspect.signature(model_class.__init__).parameters:
        return {}
    if modality == "vision":
        with torch.device("meta"):
            bare = model_class(config, add_pooling_layer=False)
        if not has_class_token(bare):
            return {}
    return {"add_pooling_layer": False}


def has_class_token(encoder: PreTrainedModel) -> bool:
    """Whether an image encoder's first state stands for the whole image."""
    return any(name.endswith(CLASS_TOKENS) for name, _ in encoder.named_parameters())


def spec_augment_steps(config: Any) -> int:
    """Fewest input steps (samples or frames) on which SpecAugment inside this audio encoder does not raise."""
    if not getattr(config, "apply_spec_augment", False) or not hasattr(config, "mask_time_length"):
        return 0
    steps = config.mask_time_length
    kernels, strides = getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ())
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        steps = (steps - 1) * stride + kernel
    return steps


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


def text_positions(config: TriemoConfig, encoder: PreTrainedModel | None) -> int:
    """Longest text in steps: the encoder's limit and that of learned positions, whichever is smaller."""
    limits = [config.max_text_positions] if config.text_position_type == "learned" else []
    limit = getattr(config.text_config, "max_position_embeddings", None)
    if encoder is not None and limit is not None:
        # RoBERTa's descendants count positions from the one of padding upwards, which the table then knows.
        tables: Any = [module for name, module in encoder.named_modules() if name.endswith("position_embeddings")]
        padding = next((table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None), -1)
        limits.append(limit - padding - 1)
    return min(limits, default=1 << 30)


__all__ = [
    "audio_stride",
    "build_encoder",
    "encoder_class",
    "encoder_width",
    "has_class_token",
    "load_encoder",
    "spec_augment_steps",
    "supported_attention",
    "text_positions",
]
