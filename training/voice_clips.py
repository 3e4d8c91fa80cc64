"""RAVDESS clips as log-mel frames in memory, and batches of them, varied while training.

Shapes: N clips, B batch, T frames at 100 Hz, M mel bins.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from triemo.processing.feature_extraction_triemo import TriemoFeatureExtractor
from triemo.training.augmentation import augment_log_mel, crop_frames, mix_up, one_hot, warp_log_mel

__all__ = ["VoiceClips", "VoiceCollator", "log_mel_frames", "pad_frames"]


def log_mel_frames(paths: Sequence[str]) -> list[torch.Tensor]:
    """Log-mel frames (T, M) of every file, unpadded."""
    extractor = TriemoFeatureExtractor()
    shown = tqdm(paths, desc="log-mel", mininterval=5, disable=len(paths) < 100)
    return [torch.as_tensor(np.asarray(extractor(path)["input_features"][0])).float() for path in shown]


def pad_frames(clips: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (T_i, M) as features (B, T, M) with zeros at the end, and their mask (B, T)."""
    lengths = torch.tensor([len(clip) for clip in clips])
    features = torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True)
    return features, (torch.arange(features.shape[1]) < lengths[:, None]).long()


class VoiceClips(torch.utils.data.Dataset):
    """Clips and class ids; items are `{"clip", "label", "input_length"}`."""

    def __init__(self, clips: Sequence[torch.Tensor], labels: Sequence[int]) -> None:
        self.clips, self.labels = list(clips), list(labels)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        return {"clip": self.clips[index], "label": self.labels[index], "input_length": len(self.clips[index])}


class VoiceCollator:
    """Items of `VoiceClips` as `input_features`, `attention_mask` and `labels` (B, classes).

    Most training clips are warped in tempo and in the length of the vocal tract; all are cut to two or three seconds,
    get a masked band and a masked stretch of time, and most batches are mixed with themselves. RAVDESS has
    few speakers: without strong variation their voices are learnt in place of the emotions.

    Args:
        num_labels: number of classes.
        augment: only for training.
        warp: share of the clips that are warped.
        mix_up: share of the batches that are mixed.
    """

    def __init__(self, num_labels: int, augment: bool, warp: float = 0.8, mix_up: float = 0.8) -> None:
        self.num_labels, self.augment, self.warp, self.mix_up = num_labels, augment, warp, mix_up

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        targets = one_hot(torch.tensor([item["label"] for item in items]), self.num_labels)
        if not self.augment:
            features, mask = pad_frames([item["clip"] for item in items])
            return {"input_features": features, "attention_mask": mask, "labels": targets}
        clips = [self.vary(item["clip"]) for item in items]
        # Of one length, so that no padding is mixed into a voice.
        frames = min(int(200 + 100 * torch.rand(())), *map(len, clips))
        features = torch.stack([crop_frames(clip, frames) for clip in clips])
        mask = torch.ones(features.shape[:2], dtype=torch.long)
        options = {"max_gain": 0.0, "max_tilt": 0.0, "noise_probability": 0.0}
        features = augment_log_mel(features, mask, time_masks=1, frequency_masks=1, **options)
        features, targets = mix_up(features, targets, alpha=0.4, probability=self.mix_up)
        return {"input_features": features, "attention_mask": mask, "labels": targets}

    def vary(self, clip: torch.Tensor) -> torch.Tensor:
        if torch.rand(()) >= self.warp:
            return clip
        return warp_log_mel(clip, max_tempo=0.15, max_stretch=0.12, max_cut=0.0)
