"""Seeded tiny models and inputs that the modeling tests share."""

import torch
from transformers import BertConfig, ResNetConfig

from triemo.modeling import TriemoAudioConfig, TriemoConfig, TriemoForEmotionClassification


def tiny_text_config() -> BertConfig:
    return BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=64,
    )


def tiny_audio_config(**overrides) -> TriemoAudioConfig:
    sizes = {"num_mel_bins": 20, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return TriemoAudioConfig(**{**sizes, "intermediate_size": 37, **overrides})


def tiny_vision_config() -> ResNetConfig:
    return ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2
    )


def tiny_config(**overrides) -> TriemoConfig:
    fields = {
        "text_config": tiny_text_config(),
        "audio_config": tiny_audio_config(),
        "vision_config": tiny_vision_config(),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "projection_dim": 24,
        "max_text_positions": 64,
        "num_labels": 7,
    }
    return TriemoConfig(**{**fields, **overrides})


def tiny_model(seed: int = 0, **overrides) -> TriemoForEmotionClassification:
    torch.manual_seed(seed)
    model = TriemoForEmotionClassification(tiny_config(**overrides)).eval()
    # Larger than the usual initial weights: differences between samples must be far above rounding.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def text_inputs(batch: int = 2, steps: int = 7) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.randint(1, 99, (batch, steps)),
        "attention_mask": torch.ones(batch, steps, dtype=torch.long),
    }


def audio_inputs(batch: int = 2, frames: int = 61) -> dict[str, torch.Tensor]:
    return {
        "input_features": torch.randn(batch, frames, 20),
        "audio_attention_mask": torch.ones(batch, frames, dtype=torch.long),
    }


def vision_inputs(batch: int = 2, frames: int = 3) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.randn(batch, frames, 1, 32, 32),
        "video_attention_mask": torch.ones(batch, frames, dtype=torch.long),
        "video_times": torch.arange(frames).float().expand(batch, -1) * 0.3,
    }


def all_inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    return {**text_inputs(batch), **audio_inputs(batch), **vision_inputs(batch)}


KEYS = {
    "text": ("input_ids", "attention_mask"),
    "audio": ("input_features", "audio_attention_mask"),
    "vision": ("pixel_values", "video_attention_mask", "video_times"),
}
SUBSETS = [
    ("text",),
    ("audio",),
    ("vision",),
    ("text", "audio"),
    ("text", "vision"),
    ("audio", "vision"),
    ("text", "audio", "vision"),
]
