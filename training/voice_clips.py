"""RAVDESS clips as log-mel frames in memory, and batches of them, varied while training.

Shapes: N clips, B batch, T frames at 100 Hz, M mel bins.
"""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from triemo.processing.feature_extraction_triemo import TriemoFeatureExtractor
from triemo.training.augmentation import one_hot, warp_log_mel
from triemo.training.label_maps import RAVDESS_LABELS

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

    @classmethod
    def of_ravdess(cls, rows: Dataset) -> "VoiceClips":
        """Rows of `load_ravdess`, with its eight classes in the order of `RAVDESS_LABELS`."""
        return cls(log_mel_frames(rows["path"]), [RAVDESS_LABELS.index(label) for label in rows["original_label"]])

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        return {"clip": self.clips[index], "label": self.labels[index], "input_length": len(self.clips[index])}


class VoiceCollator:
    """Items of `VoiceClips` as `input_features`, `attention_mask` and `labels` (B, classes).

    Most training clips are warped in tempo and in the length of the vocal tract, half of the batches are mixed with
    themselves. RAVDESS has few speakers: without variation their voices are learnt in place of the emotions.

    Args:
        num_labels: number of classes.
        augment: only for training.
        warp: share of the clips that are warped.
        mix_up: share of the batches that are mixed.
    """

    def __init__(self, num_labels: int, augment: bool, warp: float = 0.7, mix_up: float = 0.5) -> None:
        self.num_labels, self.augment, self.warp, self.mix_up = num_labels, augment, warp, mix_up

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        targets = one_hot(torch.tensor([item["label"] for item in items]), self.num_labels)
        clips = [self.vary(item["clip"]) if self.augment else item["clip"] for item in items]
        features, mask = pad_frames(clips)
        if self.augment and torch.rand(()) < self.mix_up:
            order = torch.randperm(len(items))
            weight = torch.distributions.Beta(0.4, 0.4).sample()
            weight = torch.maximum(weight, 1 - weight)  # the first clip is the louder one
            features = weight * features + (1 - weight) * features[order]
            targets = weight * targets + (1 - weight) * targets[order]
            mask = torch.maximum(mask, mask[order])
        return {"input_features": features, "attention_mask": mask, "labels": targets}

    def vary(self, clip: torch.Tensor) -> torch.Tensor:
        if torch.rand(()) >= self.warp:
            return clip
        return warp_log_mel(clip, max_tempo=0.15, max_stretch=0.12, max_cut=0.0)
