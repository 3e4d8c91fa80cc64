"""RAVDESS clips in memory, and the voice statistics of an audio tower: a ridge classifier on the frozen encoder.

Shapes: N clips, B batch, T frames at 100 Hz, M mel bins, L layers, D width of a state, S classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm.auto import tqdm

from triemo.modeling import TriemoAudioModel
from triemo.modeling.audio_tower_triemo import statistics_pooling, voiced_steps
from triemo.processing.feature_extraction_triemo import TriemoFeatureExtractor
from triemo.training.corpora.labels import RAVDESS_LABELS
from triemo.training.metrics.calibration import fit_temperature
from triemo.training.metrics.scores import classification_scores

__all__ = [
    "VoiceClips",
    "clip_logits",
    "fit_statistics",
    "in_order",
    "log_mel_frames",
    "pad_frames",
    "set_statistics",
    "standardise_states",
    "voice_logits",
]

FOLDS = 5  # of speakers, for the temperature
BATCH_SIZE = 16


# Clips -------------------------------------------------------------------------------------------------------


@dataclass
class VoiceClips:
    """Log-mel frames (T, M), class id and speaker of N clips."""

    clips: list[torch.Tensor]
    labels: list[int]
    speakers: list[int]

    @classmethod
    def of_ravdess(cls, rows: Dataset) -> "VoiceClips":
        """Rows of RAVDESS with its own eight classes, numbered in the order of `RAVDESS_LABELS`."""
        labels = [RAVDESS_LABELS.index(label) for label in rows["label"]]
        return cls(log_mel_frames(rows["row"][:]), labels, [int(speaker) for speaker in rows["speaker"]])


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


# Statistics --------------------------------------------------------------------------------------------------


def fit_statistics(tower: TriemoAudioModel, voices: VoiceClips, strength: float) -> dict[str, float]:
    """Makes the statistics of `tower` tell the classes: a ridge classifier, calibrated over unseen speakers.

    Args:
        tower: with `statistics_size` of the number of classes; the encoder stays as it is.
        voices: clips, class ids and speakers.
        strength: of the regularisation, scikit-learn's alpha.

    Returns:
        Scores of predictions that are made for each clip without the other clips of its speaker, and the temperature
        fitted to them.

    Raises:
        ValueError: when the tower has no statistics, or not one for each class.
    """
    classes = max(voices.labels) + 1
    if tower.config.statistics_size != classes:
        raise ValueError(f"statistics_size: got {tower.config.statistics_size}, expected {classes}, one a class")
    values, ids = pooled_statistics(tower, voices.clips).double().numpy(), np.array(voices.labels)
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=strength))
    folds = GroupKFold(min(FOLDS, len(set(voices.speakers))))
    unseen = cross_val_predict(model, values, ids, groups=voices.speakers, cv=folds, method="decision_function")
    temperature = fit_temperature(unseen, ids)
    scaler, ridge = model.fit(values, ids).named_steps.values()
    deviation = float(np.std(model.decision_function(values) / temperature))
    set_statistics(
        tower, scaler.mean_, scaler.scale_, ridge.coef_ / temperature, ridge.intercept_ / temperature, deviation
    )
    return {**classification_scores(unseen, ids), "temperature": temperature}


@torch.no_grad()
def set_statistics(
    tower: TriemoAudioModel,
    centre: np.ndarray,
    deviation: np.ndarray,
    coefficients: np.ndarray,
    intercept: np.ndarray,
    deviation_of_logits: float,
) -> None:
    """Makes the statistics of `tower` give these logits of the standardised values, and add them to the states, each
    class along a direction of its own, all together twice as large as standardised states.

    Args:
        tower: with `statistics_size` of the number of classes S.
        centre, deviation: of the values, (2 L D,); with an infinite deviation, a value counts nothing.
        coefficients, intercept: (S, 2 L D), (S,).
        deviation_of_logits: over the clips that they were fitted to.
    """
    statistics = tower.statistics
    statistics.scale.copy_(torch.from_numpy(1 / deviation))
    statistics.shift.copy_(torch.from_numpy(-centre / deviation))
    statistics.reduce.weight.copy_(torch.from_numpy(coefficients))
    statistics.reduce.bias.copy_(torch.from_numpy(intercept))
    nn.init.orthogonal_(statistics.expand.weight)
    statistics.expand.weight.mul_(2 * (tower.config.hidden_size / len(intercept)) ** 0.5 / deviation_of_logits)


def pooled_statistics(tower: TriemoAudioModel, clips: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean and deviation over the voiced steps of every layer, (N, 2 L D), in the order of the clips."""

    def pool(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = tower(input_features=features, attention_mask=mask, output_hidden_states=True).hidden_states[1:]
        return statistics_pooling(states, voiced_steps(features, mask))

    return in_order(clips, pool)


@torch.no_grad()
def voice_logits(tower: TriemoAudioModel, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What the fitted statistics say of each clip: frames (B, T, M) and mask (B, T) -> logits (B, S)."""
    states = tower(input_features=features, attention_mask=mask, output_hidden_states=True).hidden_states[1:]
    return tower.statistics.summarise(states, voiced_steps(features, mask)).float()


def clip_logits(tower: TriemoAudioModel, clips: Sequence[torch.Tensor]) -> torch.Tensor:
    """[`voice_logits`] of N clips, (N, S)."""
    return in_order(clips, lambda features, mask: voice_logits(tower, features, mask))


@torch.no_grad()
def standardise_states(tower: TriemoAudioModel, clips: Sequence[torch.Tensor]) -> None:
    """Folds (state - mean) / deviation, over all steps of all clips, into the last layer normalisation of `tower`.

    Whisper's states differ in scale by dimension so much that what is trained on top of them learns slowly. The
    normalisation is affine: nothing is added. What the statistics add to the states is not counted.
    """
    total, squares, count = torch.zeros(()).double(), torch.zeros(()).double(), 0
    statistics, tower.statistics = tower.statistics, None
    for _, features, mask in batches(clips):
        states = tower(input_features=features, attention_mask=mask).last_hidden_state
        valid = states[tower.output_mask(mask).bool()].double()
        total, squares, count = total + valid.sum(0), squares + (valid**2).sum(0), count + len(valid)
    tower.statistics = statistics
    mean = total / count
    deviation = (squares / count - mean**2).clamp(min=1e-8).sqrt()
    tower.layer_norm.bias.copy_((tower.layer_norm.bias - mean) / deviation)
    tower.layer_norm.weight.div_(deviation)


@torch.no_grad()
def in_order(
    clips: Sequence[torch.Tensor], function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Rows of `function`(features, mask) for every clip, in the order of the clips."""
    found = [torch.empty(0)] * len(clips)
    for chosen, features, mask in batches(clips):
        for index, values in zip(chosen, function(features, mask), strict=True):
            found[index] = values
    return torch.stack(found)


def batches(clips: Sequence[torch.Tensor]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Indices, features and mask of clips of similar length."""
    order = sorted(range(len(clips)), key=lambda index: len(clips[index]))
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        yield chosen, *pad_frames([clips[index] for index in chosen])
