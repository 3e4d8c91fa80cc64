"""The audio tower of the small checkpoint: the lower layers of Whisper's encoder tuned on RAVDESS.

Shapes: N clips, B batch, T frames, D width of a state.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from triemo.modeling import TriemoAudioModel
from triemo.training.corpora import load_ravdess
from triemo.training.emotion_metrics import classification_scores
from triemo.training.label_maps import RAVDESS_LABELS
from triemo.training.pooled_classifier import PooledClassifier
from triemo.training.release_run import ReleaseRun, train_resumable, trainer_arguments
from triemo.training.voice_clips import VoiceClips, VoiceCollator, log_mel_frames, pad_frames

__all__ = ["VOICE", "VoiceTrainer", "fit_voice", "standardise_states", "train_audio", "voice_classifier"]

# What the Trainer of a voice tower is given; the release and the five-fold benchmark share it.
VOICE = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
    "max_grad_norm": 1.0,
    "eval_strategy": "no",
    "save_total_limit": 1,
    "logging_steps": 50,
}
HEAD_RATE = 1e-3
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.")


def voice_classifier(encoder: str, layers: int) -> PooledClassifier:
    """The first `layers` layers of a Whisper encoder under a classifier of the eight RAVDESS classes.

    The upper layers lean towards words: what is read from them is worse. The states are a learned average of the
    layers, and begin without the first.
    """
    tower = TriemoAudioModel.from_whisper(encoder, use_weighted_layer_sum=True)
    tower.layers = tower.layers[:layers]
    tower.config.num_hidden_layers = layers
    start = torch.zeros(layers)
    start[0] = -3.0
    tower.layer_weights = nn.Parameter(start)
    return PooledClassifier(
        tower, len(RAVDESS_LABELS), dropout=0.3, label_smoothing=0.1, standardise=True, deviation=True
    )


class VoiceTrainer(Trainer):
    """The head at `HEAD_RATE`, the layers at the given rate, decayed from the top down; two collators."""

    def __init__(self, *args, layer_decay: float, evaluation_collator: VoiceCollator, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.layer_decay, self.evaluation_collator = layer_decay, evaluation_collator

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None:
            depth = self.model.encoder.config.num_hidden_layers
            groups: dict[float, list] = {}
            for name, parameter in self.model.named_parameters():
                layer, below = _LAYER.match(name), name.startswith("encoder.conv")
                power = depth - 1 - int(layer[1]) if layer else depth if below else 0
                inside = name.startswith("encoder.")
                rate = self.args.learning_rate * self.layer_decay**power if inside else HEAD_RATE
                groups.setdefault(rate, []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [{"params": parameters, "lr": rate} for rate, parameters in groups.items()],
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer

    def get_test_dataloader(self, test_dataset):
        loader = torch.utils.data.DataLoader(
            test_dataset, batch_size=self.args.per_device_eval_batch_size, collate_fn=self.evaluation_collator
        )
        # Unprepared, every batch would be cut to the length of the last one of training.
        return self.accelerator.prepare(loader)


def fit_voice(
    model: PooledClassifier,
    arguments: TrainingArguments,
    train: VoiceClips,
    held_out: VoiceClips,
    layer_decay: float,
) -> tuple[dict[str, float], np.ndarray]:
    """Trains to the last epoch, without looking at `held_out`; returns the scores and the logits (N, C) on it."""
    trainer = VoiceTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        data_collator=VoiceCollator(len(RAVDESS_LABELS), augment=True),
        evaluation_collator=VoiceCollator(len(RAVDESS_LABELS), augment=False),
        layer_decay=layer_decay,
    )
    train_resumable(trainer)
    found = trainer.predict(held_out, metric_key_prefix="held_out")
    return classification_scores(found.predictions, np.asarray(found.label_ids).argmax(1)), found.predictions


@torch.no_grad()
def state_scale(model: TriemoAudioModel, clips: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (D,) of the tower's states over all valid steps of all clips."""
    order = sorted(range(len(clips)), key=lambda index: len(clips[index]))
    total, squares, count = torch.zeros(()).double(), torch.zeros(()).double(), 0
    for start in range(0, len(order), 16):
        features, mask = pad_frames([clips[index] for index in order[start : start + 16]])
        states = model(input_features=features, attention_mask=mask).last_hidden_state
        valid = states[model.output_mask(mask).bool()].double()
        total, squares, count = total + valid.sum(0), squares + (valid**2).sum(0), count + len(valid)
    mean = total / count
    return mean.float(), (squares / count - mean**2).clamp(min=1e-8).sqrt().float()


def standardise_states(model: TriemoAudioModel, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Folds (state - mean) / deviation into the last layer normalisation, which is affine: nothing is added.

    Whisper's states differ in scale by dimension so much that what is trained on top of them learns slowly.
    """
    with torch.no_grad():
        model.layer_norm.bias.copy_((model.layer_norm.bias - mean) / deviation)
        model.layer_norm.weight.div_(deviation)


def train_audio(
    run: ReleaseRun,
    name: str,
    *,
    encoder: str,
    layers: int,
    epochs: int,
    learning_rate: float,
    layer_decay: float,
) -> dict:
    """Tunes the tower on the training actors, standardises its states, saves it. No epoch is chosen: the last is kept.

    Args:
        run: folders and seed.
        name: of the stage.
        encoder: Hub id of a Whisper model, or a folder.
        layers: how many of its encoder's layers are kept, from the bottom.
        epochs: passes over the clips.
        learning_rate: of the top layer, at its peak.
        layer_decay: factor of the rate from each layer to the one below.
    """
    corpus = load_ravdess(run.data)
    clips = {
        split: VoiceClips(
            log_mel_frames(corpus[split]["path"]), [RAVDESS_LABELS.index(x) for x in corpus[split]["original_label"]]
        )
        for split in ("train", "validation")
    }
    torch.manual_seed(run.seed)
    model = voice_classifier(run.encoder(encoder), layers)
    arguments = trainer_arguments(run, name, num_train_epochs=epochs, learning_rate=learning_rate, **VOICE)
    scores, _ = fit_voice(model, arguments, clips["train"], clips["validation"], layer_decay)
    tower = model.encoder.eval()
    weights = [round(float(weight), 4) for weight in tower.layer_weights.softmax(0)]
    standardise_states(tower, *state_scale(tower, clips["train"].clips))
    tower.save_pretrained(run.folder(name))
    steps = math.ceil(len(clips["train"]) / arguments.per_device_train_batch_size) * epochs
    return {"validation_eight_classes": scores, "layer_weights": weights, "steps": steps}
