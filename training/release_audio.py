"""The audio tower of the small checkpoint: Whisper's encoder, first probed, then tuned, on RAVDESS.

A linear probe on the frozen encoder comes first, and tuning starts from it (Kumar et al., 2022): from a random head,
the encoder's features were bent to the training voices before the head knew what to read, and unseen actors were read
worse than by the probe alone.

Shapes: N clips, B batch, T frames, L layers, D width of a state, C classes.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import Trainer, TrainingArguments

from triemo.modeling import TriemoAudioModel
from triemo.modeling.layers_triemo import masked_mean
from triemo.training.corpora import load_ravdess
from triemo.training.emotion_metrics import classification_scores
from triemo.training.label_maps import RAVDESS_LABELS, label2id, map_label
from triemo.training.release_run import ReleaseRun, train_resumable, trainer_arguments
from triemo.training.voice_clips import VoiceClips, VoiceCollator, pad_frames

__all__ = [
    "VOICE",
    "VoiceProbe",
    "VoiceTrainer",
    "fit_voice",
    "load_teacher",
    "seven_classes",
    "standardise_states",
    "state_scale",
    "train_audio",
]

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
HEAD_RATE = 1e-4
TEACHER = "teacher.safetensors"  # beside the tower: what reads an emotion from it
LOGIT_OUT = -4.0  # a layer with this logit weighs 1 % in the average
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.")


class VoiceProbe(nn.Module):
    """Linear classifier over mean and standard deviation, in time, of the states of every layer of an encoder.

    Args:
        encoder: the tower.
        num_labels: number of classes C.
        dropout: on the standardised statistics.
    """

    def __init__(self, encoder: TriemoAudioModel, num_labels: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.encoder, self.dropout = encoder, nn.Dropout(dropout)
        width = 2 * encoder.config.num_hidden_layers * encoder.config.hidden_size
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.classifier = nn.Linear(width, num_labels)

    def statistics(self, input_features: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Mean and deviation of every layer, (B, 2 L D)."""
        inputs = {"input_features": input_features, "attention_mask": attention_mask, "output_hidden_states": True}
        mask, found = self.encoder.output_mask(attention_mask), []
        for states in self.encoder(**inputs).hidden_states[1:]:
            mean = masked_mean(states.float(), mask)
            found += [mean, (masked_mean((states.float() - mean[:, None]) ** 2, mask) + 1e-8).sqrt()]
        return torch.cat(found, dim=-1)

    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """`labels` are (B, C) probabilities."""
        values = (self.statistics(input_features, attention_mask) - self.mean) / self.deviation
        logits = self.classifier(self.dropout(values)).float()
        if labels is None:
            return {"logits": logits}
        smoothing = 0.1 if self.training else 0.0
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=smoothing), "logits": logits}

    @torch.no_grad()
    def fit(self, voices: VoiceClips, strength: float) -> None:
        """Fits the classifier on the encoder as it is: logistic regression, `strength` is scikit-learn's C."""
        order = sorted(range(len(voices)), key=lambda index: len(voices.clips[index]))
        parts = [order[start : start + 32] for start in range(0, len(order), 32)]
        values = torch.cat([self.statistics(*pad_frames([voices.clips[index] for index in part])) for part in parts])
        self.mean.copy_(values.mean(0))
        self.deviation.copy_(values.std(0) + 1e-6)
        scaled = ((values - self.mean) / self.deviation).numpy()
        probe = LogisticRegression(C=strength, max_iter=300).fit(scaled, [voices.labels[index] for index in order])
        self.classifier.weight.copy_(torch.from_numpy(probe.coef_))
        self.classifier.bias.copy_(torch.from_numpy(probe.intercept_))


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
    model: VoiceProbe,
    arguments: TrainingArguments,
    train: VoiceClips,
    held_out: VoiceClips,
    layer_decay: float,
    strength: float,
    tuned_share: float = 1.0,
) -> tuple[dict[str, float], np.ndarray]:
    """Probes, trains to the last epoch without looking at `held_out`; gives the scores and the logits (N, C) on it.

    The weights end up `tuned_share` of the way from the probe's to the tuned ones (WiSE-FT, Wortsman et al., 2022).
    """
    model.eval().fit(train, strength)
    probed = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = VoiceTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        data_collator=VoiceCollator(len(RAVDESS_LABELS), augment=True),
        evaluation_collator=VoiceCollator(len(RAVDESS_LABELS), augment=False),
        layer_decay=layer_decay,
    )
    train_resumable(trainer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.lerp(probed[name], parameter, tuned_share))
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


def load_teacher(folder, tower: TriemoAudioModel) -> VoiceProbe:
    """The probe that the stage of `folder` ended with, over its tower, which it freezes; classes are RAVDESS's."""
    probe = VoiceProbe(tower, len(RAVDESS_LABELS))
    missing, unexpected = probe.load_state_dict(load_file(folder / TEACHER), strict=False)
    if unexpected or any(not name.startswith("encoder.") for name in missing):
        raise ValueError(f"{folder / TEACHER}: got {unexpected}, expected the probe of {missing[:3]}")
    return probe.eval().requires_grad_(False)


def seven_classes(logits: torch.Tensor) -> torch.Tensor:
    """Logits (B, 8) of RAVDESS's classes as probabilities (B, 7) of the shared ones: calm adds to neutral."""
    into = torch.zeros(len(RAVDESS_LABELS), len(label2id))
    for index, name in enumerate(RAVDESS_LABELS):
        into[index, label2id[map_label("ravdess", name)]] = 1.0
    return logits.softmax(-1) @ into.to(logits)


def train_audio(
    run: ReleaseRun,
    name: str,
    *,
    encoder: str,
    probe_strength: float,
    epochs: int,
    learning_rate: float,
    layer_decay: float,
    tuned_share: float,
    output_layers: Sequence[int],
) -> dict:
    """Probes and tunes the encoder on the training actors, standardises its states, saves it and its probe.

    No epoch is chosen: the last is kept.

    Args:
        run: folders and seed.
        name: of the stage.
        encoder: Hub id of a Whisper model, or a folder.
        probe_strength: scikit-learn's C of the first probe.
        epochs: passes over the clips.
        learning_rate: of the top layer, at its peak.
        layer_decay: factor of the rate from each layer to the one below.
        tuned_share: how far the weights go from the probed encoder's to the tuned one's.
        output_layers: layers, from 1, whose average the tower gives out.
    """
    corpus = load_ravdess(run.data)
    clips = {split: VoiceClips.of_ravdess(corpus[split]) for split in ("train", "validation")}
    torch.manual_seed(run.seed)
    tower = TriemoAudioModel.from_whisper(run.encoder(encoder), use_weighted_layer_sum=True)
    model = VoiceProbe(tower, len(RAVDESS_LABELS))
    arguments = trainer_arguments(run, name, num_train_epochs=epochs, learning_rate=learning_rate, **VOICE)
    rates = (layer_decay, probe_strength, tuned_share)
    scores, _ = fit_voice(model, arguments, clips["train"], clips["validation"], *rates)
    with torch.no_grad():
        logits = [0.0 if layer + 1 in output_layers else LOGIT_OUT for layer in range(len(tower.layers))]
        tower.layer_weights.copy_(torch.tensor(logits))
    tower.eval()
    standardise_states(tower, *state_scale(tower, clips["train"].clips))
    tower.save_pretrained(run.folder(name))
    head = {key: value.contiguous() for key, value in model.state_dict().items() if not key.startswith("encoder.")}
    save_file(head, run.folder(name) / TEACHER)
    return {"validation_eight_classes": scores}
