"""Gentle tuning of an audio tower on few speakers: from fitted statistics on, and only part of the way in weights.

Shapes: B batch, T frames, M mel bins, S classes.
"""

import re

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainingArguments

from triemo.modeling import TriemoAudioModel
from triemo.modeling.audio_tower_triemo import statistics_pooling, voiced_steps
from triemo.training.release_run import train_resumable
from triemo.training.voice_clips import VoiceClips, VoiceCollator

__all__ = ["TUNING", "VoiceClassifier", "tune_encoder"]

# What the Trainer is given besides epochs and learning rate.
TUNING = {
    "per_device_train_batch_size": 32,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
    "max_grad_norm": 1.0,
    "eval_strategy": "no",
    "save_total_limit": 1,
    "logging_steps": 50,
}
HEAD_RATE = 5e-4
_LAYER = re.compile(r"^layers\.(\d+)\.")


class VoiceClassifier(nn.Module):
    """What the statistics of a tower say, with dropout on them, as a classifier for the Trainer."""

    def __init__(self, tower: TriemoAudioModel, dropout: float = 0.3, label_smoothing: float = 0.1) -> None:
        super().__init__()
        self.tower, self.dropout, self.label_smoothing = tower, nn.Dropout(dropout), label_smoothing

    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Frames (B, T, M) and mask (B, T); `labels` are (B, S) probabilities."""
        inputs = {"input_features": input_features, "attention_mask": attention_mask, "output_hidden_states": True}
        states, statistics = self.tower(**inputs).hidden_states[1:], self.tower.statistics
        pooled = statistics_pooling(states, voiced_steps(input_features, attention_mask))
        logits = statistics.reduce(self.dropout(pooled * statistics.scale + statistics.shift)).float()
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), "logits": logits}


def tune_encoder(
    tower: TriemoAudioModel, voices: VoiceClips, arguments: TrainingArguments, layers: int, share: float
) -> None:
    """Tunes the uppermost layers of `tower`, whose statistics have been fitted, to the last epoch.

    A linear map on the frozen encoder comes first and tuning starts from it (Kumar et al., 2022): under a random head
    the encoder's features are bent to the training voices before the head knows what to read. The weights end up
    `share` of the way from the encoder's to the tuned ones (WiSE-FT, Wortsman et al., 2022); the statistics have to be
    fitted again afterwards.

    Args:
        tower: its encoder changes in place.
        voices: clips, which are cut to what is voiced, and their class ids.
        arguments: with the learning rate of the layers.
        layers: how many learn; what lies below stays as it is.
        share: 0 leaves the encoder alone, 1 takes the tuned one.
    """
    before = {name: parameter.detach().clone() for name, parameter in tower.layers.named_parameters()}
    lowest = len(tower.layers) - layers
    tuned = [p for name, p in tower.named_parameters() if (m := _LAYER.match(name)) and int(m[1]) >= lowest]
    head = list(tower.statistics.reduce.parameters())
    tower.requires_grad_(False)
    for parameter in (*tuned, *head):
        parameter.requires_grad_(True)
    groups = [{"params": tuned, "lr": arguments.learning_rate}, {"params": head, "lr": HEAD_RATE}]
    trainer = Trainer(
        model=VoiceClassifier(tower),
        args=arguments,
        train_dataset=voices.voiced(),
        data_collator=VoiceCollator(tower.config.statistics_size),
        optimizers=(torch.optim.AdamW(groups, weight_decay=arguments.weight_decay), None),
    )
    train_resumable(trainer)
    with torch.no_grad():
        for name, parameter in tower.layers.named_parameters():
            parameter.copy_(torch.lerp(before[name], parameter, share))
    tower.requires_grad_(True).eval()
