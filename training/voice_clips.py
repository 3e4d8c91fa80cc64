"""RAVDESS clips as log-mel frames in memory, and batches of them.

Shapes: N clips, B batch, T frames at 100 Hz, M mel bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from triemo.processing.feature_extraction_triemo import TriemoFeatureExtractor
from triemo.training.label_maps import RAVDESS_LABELS

__all__ = ["VoiceClips", "log_mel_frames", "pad_frames"]


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


@dataclass
class VoiceClips:
    """Log-mel frames (T, M), class id and speaker of N clips."""

    clips: list[torch.Tensor]
    labels: list[int]
    speakers: list[int]

    @classmethod
    def of_ravdess(cls, rows: Dataset) -> "VoiceClips":
        """Rows of `load_ravdess`, with its eight classes in the order of `RAVDESS_LABELS`."""
        labels = [RAVDESS_LABELS.index(label) for label in rows["original_label"]]
        return cls(log_mel_frames(rows["path"]), labels, list(rows["actor"]))
