"""RAVDESS clips as log-mel frames in memory, and batches of them, varied for training.

Shapes: N clips, B batch, T frames at 100 Hz, M mel bins.
"""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from triemo.modeling.audio_tower_triemo import voiced_steps
from triemo.processing.feature_extraction_triemo import TriemoFeatureExtractor
from triemo.training.augmentation import augment_log_mel, one_hot, warp_log_mel
from triemo.training.label_maps import RAVDESS_LABELS

__all__ = ["VoiceClips", "VoiceCollator", "log_mel_frames", "pad_frames"]

MARGIN = 15  # frames that stay before and behind what is voiced


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
    """Clips, class ids and speakers; items are `{"clip", "label"}`."""

    def __init__(self, clips: Sequence[torch.Tensor], labels: Sequence[int], speakers: Sequence[int]) -> None:
        self.clips, self.labels, self.speakers = list(clips), list(labels), list(speakers)

    @classmethod
    def of_ravdess(cls, rows: Dataset) -> "VoiceClips":
        """Rows of `load_ravdess`, with its eight classes in the order of `RAVDESS_LABELS`."""
        labels = [RAVDESS_LABELS.index(label) for label in rows["original_label"]]
        return cls(log_mel_frames(rows["path"]), labels, rows["actor"])

    def voiced(self) -> "VoiceClips":
        """The same without the pauses at both ends of every clip."""
        spans = []
        for clip in self.clips:
            steps = voiced_steps(clip[None], torch.ones(1, len(clip), dtype=torch.long))[0].nonzero()
            spans.append(clip[max(0, 2 * int(steps[0]) - MARGIN) : 2 * int(steps[-1]) + 2 + MARGIN])
        return VoiceClips(spans, self.labels, self.speakers)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        return {"clip": self.clips[index], "label": self.labels[index]}


class VoiceCollator:
    """Items of `VoiceClips`, varied, as `input_features`, `attention_mask` and `labels` (B, classes).

    Most clips are warped in tempo and in the length of the vocal tract, half of the batches are mixed with themselves,
    and in every clip a time span and some bins are masked. RAVDESS has few speakers: without variation their voices
    are learnt in place of the emotions.

    Args:
        num_labels: number of classes.
        warp: share of the clips that are warped.
        mix_up: share of the batches that are mixed.
        masks: time and frequency masks of a clip.
    """

    def __init__(self, num_labels: int, warp: float = 0.7, mix_up: float = 0.5, masks: int = 1) -> None:
        self.num_labels, self.warp, self.mix_up, self.masks = num_labels, warp, mix_up, masks

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        targets = one_hot(torch.tensor([item["label"] for item in items]), self.num_labels)
        features, mask = pad_frames([self.vary(item["clip"]) for item in items])
        if torch.rand(()) < self.mix_up:
            order = torch.randperm(len(items))
            weight = torch.distributions.Beta(0.4, 0.4).sample()
            weight = torch.maximum(weight, 1 - weight)  # the first clip is the louder one
            features = weight * features + (1 - weight) * features[order]
            targets = weight * targets + (1 - weight) * targets[order]
            mask = torch.maximum(mask, mask[order])
        counts = {"time_masks": self.masks, "frequency_masks": self.masks}
        features = augment_log_mel(features, mask, max_gain=0.0, max_tilt=0.0, noise_probability=0.0, **counts)
        return {"input_features": features, "attention_mask": mask, "labels": targets}

    def vary(self, clip: torch.Tensor) -> torch.Tensor:
        if torch.rand(()) >= self.warp:
            return clip
        return warp_log_mel(clip, max_tempo=0.15, max_stretch=0.12, max_cut=0.0)
