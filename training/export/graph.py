"""The whole model as one graph: token ids, waveform and frames in, logits and unimodal embeddings out.

Shapes: B samples, L tokens, S audio samples, T log-mel frames = ceil(S / hop), F video frames, M mel bins, C classes.
"""

import math
from typing import Any

import torch
from torch import nn

from triemo.processing.feature_extraction_triemo import mel_filters

__all__ = ["LogMel", "TriemoGraph"]


class LogMel(nn.Module):
    """
    `TriemoFeatureExtractor`'s log-mel as a fixed linear map: a short-time Fourier transform written as a convolution
    with windowed cosines and sines, then mel filters, then the logarithm over each clip's own loudest value.

    Args:
        extractor: a `TriemoFeatureExtractor` of type "log_mel".
    """

    dft: torch.Tensor
    filters: torch.Tensor

    def __init__(self, extractor: Any):
        super().__init__()
        self.n_fft, self.hop = extractor.n_fft, extractor.hop_length
        window = torch.hann_window(self.n_fft, dtype=torch.float64)
        steps = torch.arange(self.n_fft, dtype=torch.float64)
        bins = torch.arange(self.n_fft // 2 + 1, dtype=torch.float64)
        angles = 2 * math.pi * torch.outer(bins, steps).remainder(self.n_fft) / self.n_fft
        kernels = torch.cat([angles.cos(), angles.sin()]) * window
        self.register_buffer("dft", kernels.float()[:, None], persistent=False)
        filters = mel_filters(self.n_fft, extractor.feature_size, extractor.sampling_rate)
        # Power is the sum of both squares: one product with the filters, each there twice, adds them up too.
        self.register_buffer("filters", torch.cat([filters, filters], dim=1), persistent=False)

    def forward(self, waveform: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S) samples and their mask, 1 = valid from the first sample on -> frames (B, T, M), mask (B, T)."""
        half = self.n_fft // 2
        waveform = waveform * mask.to(waveform.dtype)
        samples = waveform.shape[1]
        frames = (samples + self.hop - 1) // self.hop
        # Frames past a clip's end that still reach into it count for its loudest value, as in the extractor.
        beyond = half // self.hop + 1
        tail = (frames + beyond - 1) * self.hop + half - samples
        wave = nn.functional.pad(waveform, (0, tail))
        wave = torch.cat([wave[:, 1 : half + 1].flip(1), wave], dim=1)
        spectrum = nn.functional.conv1d(wave[:, None], self.dft, stride=self.hop)
        log_mel = torch.matmul(self.filters, spectrum.square()).clamp(min=1e-10).log10()
        own_frames = (mask.sum(1, keepdim=True) + self.hop - 1) // self.hop
        index = torch.arange(frames + beyond, device=waveform.device)
        counts = (index < own_frames + beyond)[:, None]
        loudest = log_mel.masked_fill(~counts, -10.0).amax((1, 2), keepdim=True)
        log_mel = ((torch.maximum(log_mel, loudest - 8.0) + 4.0) / 4.0)[:, :, :frames]
        valid = index[:frames] < own_frames
        return (log_mel * valid[:, None].to(log_mel.dtype)).transpose(1, 2), valid.long()


class TriemoGraph(nn.Module):
    """
    The classifier with the sound's front end before it. A modality whose mask is all zero is absent; every input of
    the modalities that the model has is given, of an absent one at least one step.

    Args:
        model: a `TriemoForEmotionClassification`.
        extractor: its processor's feature extractor.

    Raises:
        ValueError: a feature extractor whose sound is not log-mel.
    """

    def __init__(self, model: Any, extractor: Any):
        super().__init__()
        self.model = model
        self.front_end = None
        if "audio" in model.config.modalities:
            kind = getattr(extractor, "feature_type", type(extractor).__name__)
            if kind != "log_mel":
                raise ValueError(f"feature_extractor: a graph is written for sound as log_mel only, got {kind!r}.")
            self.front_end = LogMel(extractor)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        video_attention_mask: torch.Tensor | None = None,
        video_times: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """
        Args:
            input_ids, attention_mask: (B, L) int64.
            input_values, audio_attention_mask: (B, S), the raw waveform at the extractor's rate, and int64.
            pixel_values, video_attention_mask, video_times: (B, F, channels, height, width), (B, F) int64, (B, F) s.

        Returns:
            Logits (B, C), then the unimodal embeddings (B, P) of the modalities that the model has, in the order
            text, audio, vision; zeros where absent.
        """
        tensors = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": pixel_values,
            "video_attention_mask": video_attention_mask,
            "video_times": video_times,
        }
        if self.front_end is not None:
            features, mask = self.front_end(input_values, audio_attention_mask)
            tensors |= {"input_features": features, "audio_attention_mask": mask}
        outputs = self.model(**tensors)
        return outputs.logits, *(outputs[f"{modality}_embeds"] for modality in self.model.config.modalities)
