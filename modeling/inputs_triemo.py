"""The door of the model: which tensors it takes, which modality they belong to, and what is wrong with them.

Shape legend: B batch, L steps of an input as it comes in (tokens, frames, samples).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypedDict

import torch
from transformers.utils import TransformersKwargs

from .configuration_triemo import MODALITIES, TriemoConfig

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
# Arguments that pipelines and trainers of the library hand to any model, besides `TransformersKwargs`.
_PASSED_BY_LIBRARY = {"return_dict", "use_cache"}


class TriemoInputs(TypedDict, total=False):
    """
    The tensors of a forward pass. Every one is optional; a sample needs at least one modality. Masks are 1 where valid
    and default to ones.

    Args:
        input_ids: token ids, (B, text steps) int64, with `attention_mask` of the same shape.
        token_type_ids: passed on to the text tower.
        text_features: precomputed text vectors, (B, text steps, text_feature_size), with `attention_mask`.
        input_features: log-mel or MFCC frames, or precomputed audio vectors, (B, audio frames, bins), with
            `audio_attention_mask` (B, audio frames).
        input_values: waveform, (B, samples), with `audio_attention_mask` (B, samples), for towers that take it.
        pixel_values: frames, (B, frames, channels, height, width), with `video_attention_mask` (B, frames).
        vision_features: precomputed vision vectors, (B, frames, vision_feature_size), with `video_attention_mask`.
        audio_times, video_times: when each input step happens, (B, steps) float seconds; default: index / rate.
    """

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    token_type_ids: torch.Tensor | None
    text_features: torch.Tensor | None
    input_features: torch.Tensor | None
    input_values: torch.Tensor | None
    audio_attention_mask: torch.Tensor | None
    pixel_values: torch.Tensor | None
    vision_features: torch.Tensor | None
    video_attention_mask: torch.Tensor | None
    audio_times: torch.Tensor | None
    video_times: torch.Tensor | None


def takes_inputs(forward: Callable) -> Callable:
    """
    For a forward pass `(self, ..., **inputs: Unpack[TriemoInputs])`: its signature names those tensors, first and in
    their order, so that they can be passed by place, and so that `Trainer`, PEFT and `torch.export`, which read there
    what a model takes, find them.

    Raises (the forward pass):
        TypeError: for an argument that neither it nor the library knows. A misspelt mask would be one of ones.
    """
    signature = inspect.signature(forward)
    itself, *own = signature.parameters.values()
    tensors = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)
        for name, annotation in TriemoInputs.__annotations__.items()
    ]
    names = [parameter.name for parameter in (*tensors, *own) if parameter.kind is not parameter.VAR_KEYWORD]
    accepted = {*names, *TransformersKwargs.__annotations__, *_PASSED_BY_LIBRARY}

    @wraps(forward)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(names):
            raise TypeError(f"forward takes at most {len(names)} arguments by place, got {len(args)}.")
        given = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise TypeError(f"forward got {name} twice, by place and by name.")
            # None says nothing: PEFT passes `inputs_embeds=None` to every model.
            if name not in accepted and value is not None:
                raise TypeError(f"forward got an unexpected argument {name!r}; it takes {', '.join(names)}.")
        given.update(kwargs)
        return forward(self, **given)

    checked.__signature__ = signature.replace(parameters=[itself, *tensors, *own])  # type: ignore[attr-defined]
    return checked


@dataclass
class ModalityInputs:
    """Value tensors, masks (B, L) int64 and times (B, L) or None, by modality present in the call."""

    values: dict[str, torch.Tensor] = field(default_factory=dict)
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    times: dict[str, torch.Tensor | None] = field(default_factory=dict)
    token_type_ids: torch.Tensor | None = None

    @classmethod
    def collect(cls, config: TriemoConfig, tensors: Mapping[str, Any]) -> ModalityInputs:
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
        # All in one order: states and masks are joined by it.
        order = [m for m in MODALITIES if m in self.values]
        self.values = {m: self.values[m] for m in order}
        self.masks = {m: self.masks[m] for m in order}
        self.times = {m: self.times[m] for m in order}

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
        "audio": "input_values" if config.takes_waveform else "input_features",
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
        # One second is longer than any encoder's convolutions reach.
        return torch.zeros(batch, config.sampling_rate, device=device)
    if name == "input_features":
        frames = 1 if config.audio_config is None else int(config.audio_frame_rate)
        width = config.audio_feature_size or audio_bins(config) or 0
        return torch.zeros(batch, frames, width, device=device)
    size = getattr(vision, "image_size", None) or 64
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(batch, 1, vision.num_channels, height, width, device=device)


def present_modalities(sample: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """The modalities that a sample's or a batch's masks show, in the order text, audio, vision."""
    return tuple(name for name, mask in MASKS.items() if mask in sample and bool(torch.as_tensor(sample[mask]).any()))


__all__ = [
    "MASKS",
    "VALUES",
    "ModalityInputs",
    "TriemoInputs",
    "accepted_values",
    "present_modalities",
    "takes_inputs",
]
