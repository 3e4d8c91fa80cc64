"""The door of the model: which tensors belong to which modality, and what is wrong with them.

Shape legend: B batch, L steps of an input as it comes in (tokens, frames, samples).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from .configuration_triemo import MODALITIES, TriemoConfig
from .towers_triemo import takes_waveform

MASKS = {"text": "attention_mask", "audio": "audio_attention_mask", "vision": "video_attention_mask"}
TIMES = {"audio": "audio_times", "vision": "video_times"}
# Every value tensor: its modality, its rank and its shape in words.
VALUES = {
    "input_ids": ("text", 2, "(batch, text_steps)"),
    "text_features": ("text", 3, "(batch, text_steps, text_feature_size)"),
    "input_features": ("audio", 3, "(batch, audio_frames, bins)"),
    "input_values": ("audio", 2, "(batch, samples)"),
    "pixel_values": ("vision", 5, "(batch, frames, channels, height, width)"),
    "vision_features": ("vision", 3, "(batch, frames, vision_feature_size)"),
}


@dataclass
class ModalityInputs:
    """Value tensors, masks (B, L) int64 and times (B, L) or None, by modality present in the call."""

    values: dict[str, torch.Tensor] = field(default_factory=dict)
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    times: dict[str, torch.Tensor | None] = field(default_factory=dict)
    token_type_ids: torch.Tensor | None = None

    @classmethod
    def collect(cls, config: TriemoConfig, tensors: dict[str, torch.Tensor | None]) -> ModalityInputs:
        """
        Sort a call's tensors by modality and check them.

        Raises:
            ValueError: for a modality the model lacks, the wrong kind of tensor for it, or a wrong rank or shape.
        """
        inputs = cls()
        accepted = accepted_values(config)
        for name, (modality, rank, shape) in VALUES.items():
            tensor = tensors.get(name)
            if tensor is None:
                continue
            if accepted.get(modality) != name:
                takes = f"takes {accepted[modality]} for {modality}" if modality in accepted else f"has no {modality}"
                raise ValueError(f"{name} was passed, but this model {takes} (it has {accepted}).")
            if tensor.dim() != rank or 0 in tensor.shape[:2]:
                raise ValueError(f"{name} must have shape {shape}, none of them 0, got {tuple(tensor.shape)}.")
            check_width(config, name, tensor)
            inputs.values[modality] = tensor
        # A fixed order, whatever the order of the call, is what concatenation and outputs rely on.
        inputs.values = {m: inputs.values[m] for m in MODALITIES if m in inputs.values}
        for modality, tensor in inputs.values.items():
            mask = tensors.get(MASKS[modality])
            if mask is None:
                mask = torch.ones(tensor.shape[:2], dtype=torch.long, device=tensor.device)
            check_shape(MASKS[modality], mask, tensor.shape[:2])
            times = tensors.get(TIMES[modality]) if modality in TIMES else None
            if times is not None:
                check_shape(TIMES[modality], times, tensor.shape[:2])
            inputs.masks[modality] = (mask > 0).long()
            inputs.times[modality] = times
        for modality, name in MASKS.items():
            if modality not in inputs.values and tensors.get(name) is not None:
                raise ValueError(f"{name} was passed without the {modality} input it belongs to.")
        # `shape[0]`, here and in the towers: `len` and a set would fix the batch size of a traced graph.
        sizes = {modality: tensor.shape[0] for modality, tensor in inputs.values.items()}
        first = next(iter(sizes.values()), 0)
        if any(size != first for size in sizes.values()):
            raise ValueError(f"all modalities must have the same batch size, got {sizes}.")
        token_types = tensors.get("token_type_ids")
        if token_types is not None and "text" in inputs.values:
            check_shape("token_type_ids", token_types, inputs.values["text"].shape[:2])
            inputs.token_type_ids = token_types
        return inputs

    def modality_mask(self) -> torch.Tensor:
        """(B, 3) bool: which of text, audio, vision each sample has."""
        any_mask = next(iter(self.masks.values()))
        absent = torch.zeros(any_mask.shape[0], dtype=torch.bool, device=any_mask.device)
        return torch.stack([self.masks[m].any(1) if m in self.masks else absent for m in MODALITIES], dim=1)

    def check_presence(self) -> None:
        """
        Raises:
            ValueError: if the call has no modality, or one of its samples has none. A traced graph cannot check the
                samples; there the result for such a sample is meaningless.
        """
        if not self.values:
            raise ValueError(f"no modality at all: pass at least one of {', '.join(VALUES)}.")
        if torch.compiler.is_compiling():
            return
        present = self.modality_mask().any(1)
        if not bool(present.all()):
            rows = (~present).nonzero().flatten().tolist()
            raise ValueError(f"samples {rows} of the batch have no modality: every mask row of theirs is zero.")

    def add_missing(self, config: TriemoConfig, device: torch.device) -> None:
        """One zero step, masked, for each modality the batch lacks: all processes then run all towers."""
        batch = len(next(iter(self.values.values())))
        for modality, name in accepted_values(config).items():
            if modality not in self.values:
                self.values[modality] = zero_input(config, name, batch, device)
                self.masks[modality] = torch.zeros(self.values[modality].shape[:2], dtype=torch.long, device=device)
                self.times[modality] = None
        self.values = {m: self.values[m] for m in MODALITIES if m in self.values}

    def drop_modalities(self, probability: float) -> None:
        """Drop each present modality of each sample with this probability, but never a sample's last one."""
        present = self.modality_mask()
        draw = torch.rand(present.shape, device=present.device)
        kept = present & (draw >= probability)
        # Where all were dropped, the present modality with the highest draw stays.
        rescued = torch.zeros_like(present).scatter_(1, (draw * present).argmax(1, keepdim=True), True)
        kept = torch.where(kept.any(1, keepdim=True), kept, rescued & present)
        for index, modality in enumerate(MODALITIES):
            if modality in self.masks:
                self.masks[modality] = self.masks[modality] * kept[:, index : index + 1].long()


def accepted_values(config: TriemoConfig) -> dict[str, str]:
    """The value tensor that the model takes for each modality it has."""
    names = {
        "text": "input_ids" if config.text_feature_size is None else "text_features",
        "audio": "input_values" if takes_waveform(config) else "input_features",
        "vision": "pixel_values" if config.vision_feature_size is None else "vision_features",
    }
    return {modality: names[modality] for modality in config.modalities}


def check_shape(name: str, tensor: torch.Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}.")


def check_width(config: TriemoConfig, name: str, tensor: torch.Tensor) -> None:
    """The last axis of frames and vectors, and the channels of images, must be what the model was built for."""
    axis = 2 if name == "pixel_values" else -1
    expected = {
        "text_features": config.text_feature_size,
        "vision_features": config.vision_feature_size,
        "pixel_values": getattr(config.vision_config, "num_channels", None),
        "input_features": config.audio_feature_size or audio_bins(config),
    }.get(name)
    if expected is not None and tensor.shape[axis] != expected:
        what = "channels" if name == "pixel_values" else "values a step"
        raise ValueError(f"{name} must have {expected} {what}, got shape {tuple(tensor.shape)}.")


def audio_bins(config: TriemoConfig) -> int | None:
    """Values of an input frame: mel bins of the built-in tower, the input width of wav2vec2-BERT's kind."""
    audio: Any = config.audio_config
    return getattr(audio, "num_mel_bins", None) or getattr(audio, "feature_projection_input_dim", None)


def zero_input(config: TriemoConfig, name: str, batch: int, device: torch.device) -> torch.Tensor:
    """The smallest input of this kind that every encoder accepts."""
    vision: Any = config.vision_config
    if name == "input_ids":
        return torch.zeros(batch, 1, dtype=torch.long, device=device)
    if name == "text_features":
        return torch.zeros(batch, 1, int(config.text_feature_size or 0), device=device)
    if name == "vision_features":
        return torch.zeros(batch, 1, int(config.vision_feature_size or 0), device=device)
    if name == "input_values":
        # One second: SpecAugment inside wav2vec2's kind refuses clips shorter than its mask.
        return torch.zeros(batch, config.sampling_rate, device=device)
    if name == "input_features":
        frames = 1 if config.audio_config is None else int(config.audio_frame_rate)
        width = config.audio_feature_size or audio_bins(config) or 0
        return torch.zeros(batch, frames, width, device=device)
    size = getattr(vision, "image_size", None) or 64
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(batch, 1, vision.num_channels, height, width, device=device)


__all__ = ["MASKS", "VALUES", "ModalityInputs", "accepted_values"]
