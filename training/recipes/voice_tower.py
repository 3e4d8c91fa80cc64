"""The audio tower of many corpora: upper layers and attentive pooling, trained on the kept states of the lower layers.

The tower adds what its pooling picked to every step, and the classifier here reads the mean over the steps, as the
joint model's fusion does of whatever clip it is given: what is trained here is what is read there, at any length.

Shapes: B batch, T steps at 50 Hz, D width of a state, C classes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer

from triemo.modeling import TriemoAudioModel
from triemo.modeling.layers_triemo import masked_mean
from triemo.training.common import write_json
from triemo.training.corpora.labels import EMOTIONS, label2id
from triemo.training.metrics.scores import classification_scores
from triemo.training.recipes.stages import ReleaseRun, train_resumable, trainer_arguments
from triemo.training.recipes.views import EpochViews, balanced_views
from triemo.training.recipes.voice_states import PLAN_FILE, CachedStates, load_tower

__all__ = ["UpperLayers", "train_left_out_corpora", "train_voice_tower"]

HEAD_FACTOR = 5.0  # learning rate of what starts at random, over that of the layers that start from Whisper


class UpperLayers(nn.Module):
    """Classifier over the mean step of a tower whose lower layers have run already.

    Args:
        tower: whole; what lies below `frozen_layers` is kept out of training.
        frozen_layers: lowest layers, whose states come in.
        label_smoothing: share of a target's mass that all classes get in training.
        cut: share of the clips that, in training, lose up to half of their steps at the ends.
    """

    def __init__(self, tower: TriemoAudioModel, frozen_layers: int, label_smoothing: float, cut: float) -> None:
        super().__init__()
        self.tower, self.frozen_layers, self.label_smoothing, self.cut = tower, frozen_layers, label_smoothing, cut
        self.dropout, self.classifier = nn.Dropout(0.2), nn.Linear(tower.config.hidden_size, len(EMOTIONS))
        for part in (tower.conv1, tower.conv2, *tower.layers[:frozen_layers]):
            part.requires_grad_(False)

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """States (B, T, D) after the frozen layers, mask (B, T), probabilities (B, C) -> logits (B, C), loss."""
        if self.training:
            with mask.device:  # where the draws are made
                mask = self.shortened(mask)
        steps = self.tower.continue_from(states, mask, self.frozen_layers)
        logits = self.classifier(self.dropout(masked_mean(steps, mask))).float()
        if labels is None:
            return {"logits": logits}
        smoothing = self.label_smoothing if self.training else 0.0
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=smoothing), "logits": logits}

    def shortened(self, mask: torch.Tensor) -> torch.Tensor:
        """The mask (B, T) without up to a quarter of the steps at either end of some clips."""
        lengths = mask.sum(1, keepdim=True)
        lost = (torch.rand(2, len(mask), 1) * 0.25 * lengths).long() * (torch.rand(len(mask), 1) < self.cut)
        step = torch.arange(mask.shape[1])
        return mask * (step >= lost[0]) * (step < lengths - lost[1])


class StateTrainer(Trainer):
    """Draws its rows by their views (N,), those of like length together."""

    def __init__(self, *args, views: torch.Tensor, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.views = views

    def _get_train_sampler(self, *args, **kwargs) -> EpochViews:
        lengths = [self.train_dataset.lengths[row] for row in self.train_dataset.rows]
        return EpochViews(self.views, self.args.train_batch_size, self.args.seed, lengths)

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None:
            learning = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
            new = [value for name, value in learning.items() if name.startswith(("classifier.", "tower.pooling."))]
            known = [
                value for name, value in learning.items() if not name.startswith(("classifier.", "tower.pooling."))
            ]
            rate = self.args.learning_rate
            groups = [{"params": known, "lr": rate}, {"params": new, "lr": rate * HEAD_FACTOR}]
            self.optimizer = torch.optim.AdamW(groups, weight_decay=self.args.weight_decay)
        return self.optimizer


def pad_states(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Items of [`CachedStates`] as a batch, zeros at the end."""
    states = nn.utils.rnn.pad_sequence([item["states"] for item in items], batch_first=True)
    lengths = torch.tensor([len(item["states"]) for item in items])
    mask = (torch.arange(states.shape[1]) < lengths[:, None]).long()
    return {"states": states, "mask": mask, "labels": torch.stack([item["labels"] for item in items])}


def corpus_scores(logits: np.ndarray, targets: np.ndarray, corpora: Sequence[str]) -> dict[str, float]:
    """UAR of each corpus over the classes that it has, which are then the only answers, and their mean as `score`."""
    names, classes = np.array(corpora), targets.argmax(1)
    scores = {}
    for name in dict.fromkeys(corpora):
        chosen = names == name
        absent = np.setdiff1d(np.arange(targets.shape[1]), classes[chosen])
        answers = logits[chosen].copy()
        answers[:, absent] = -np.inf
        scores[f"{name}_uar"] = classification_scores(answers, classes[chosen])["uar"]
    return {**scores, "score": float(np.mean(list(scores.values())))}


def fit(
    run: ReleaseRun,
    name: str,
    data: CachedStates,
    training: Sequence[int],
    held: Sequence[int],
    settings: dict,
    *,
    encoder: str,
    layers: int,
    epochs: int,
    epoch_rows: int,
    learning_rate: float,
    batch_size: int = 32,
    pooling: int = 128,
    hidden_dropout: float = 0.1,
    label_smoothing: float = 0.1,
    corpus_power: float = 0.5,
    class_power: float = 0.0,
    cut: float = 0.5,
    keep_best: bool = True,
) -> StateTrainer:
    """Trains on some rows of the cache and measures on others.

    Args:
        run, name: folders, seed and where the Trainer's checkpoints go.
        data: the cache.
        training, held: rows of its plan.
        settings: of the cache.
        encoder: Hub id of the Whisper model, or a folder.
        layers: of it that the tower has.
        epochs: of `epoch_rows` rows.
        epoch_rows: an epoch shows.
        learning_rate: of the layers at its peak; pooling and classifier learn `HEAD_FACTOR` times as fast.
        batch_size: rows a step.
        pooling: `attentive_pooling_size` of the tower.
        hidden_dropout: of the upper layers.
        label_smoothing, cut: of `UpperLayers`.
        corpus_power, class_power: of `balanced_views`.
        keep_best: whether the epoch best on the held rows stays, or the last one.

    Raises:
        ValueError: when the cache was made of another encoder, or the tower has no layer above the frozen ones.
    """
    frozen = settings["frozen_layers"]
    if settings["encoder"] != encoder or layers <= frozen:
        got = f"{encoder} with {layers} layers"
        raise ValueError(f"states: got {got}, expected {settings['encoder']} with more than {frozen}, as in the cache")
    tower = load_tower(run, encoder, layers, hidden_dropout=hidden_dropout, attentive_pooling_size=pooling)
    corpora = [data.clip(row).corpus for row in training]
    targets = np.eye(len(EMOTIONS))[[label2id[data.clip(row).label] for row in training]]
    owners = [data.clip(row).corpus for row in held]
    trainer = StateTrainer(
        model=UpperLayers(tower, frozen, label_smoothing, cut),
        views=balanced_views(corpora, targets, epoch_rows, corpus_power, class_power),
        args=trainer_arguments(
            run,
            name,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=32,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=0.05,
            metric_for_best_model="score",
            load_best_model_at_end=keep_best,
            bf16=False,  # emulated on most processors
        ),
        train_dataset=data.select(training),
        eval_dataset=data.select(held),
        data_collator=pad_states,
        compute_metrics=lambda p: corpus_scores(p.predictions, p.label_ids, owners),
    )
    train_resumable(trainer)
    return trainer


def cache_of(run: ReleaseRun, states: str) -> tuple[CachedStates, dict]:
    """The cache of a stage, and its settings. Raises ValueError where it is not there or not whole."""
    if not (run.folder(states) / PLAN_FILE).exists():
        raise ValueError(f"states: got no {run.folder(states) / PLAN_FILE}, expected that stage to have run")
    return CachedStates(run.folder(states)), json.loads((run.folder(states) / PLAN_FILE).read_text())["settings"]


def train_voice_tower(run: ReleaseRun, name: str, *, states: str, **options) -> dict:
    """Trains the tower on the training speakers of all corpora, keeps the epoch best on their validation speakers.

    Args:
        run: folders and seed.
        name: of the stage, whose folder gets the whole `TriemoAudioModel`.
        states: stage of the cache.
        options: of `fit`.
    """
    data, settings = cache_of(run, states)
    training, held = split_rows(data)
    trainer = fit(run, name, data, training, held, settings, **options)
    scores = trainer.evaluate()
    trainer.model.tower.save_pretrained(run.folder(name))
    return {"validation": scores}


def split_rows(data: CachedStates, without: str | None = None) -> tuple[list[int], list[int]]:
    """Training rows, and validation clips as they are recorded; without any row of one corpus."""
    rows = [row for row in range(len(data.plan)) if data.clip(row).corpus != without]
    recorded = [row for row in rows if data.plan[row].copy == 0 and len(data.plan[row].clips) == 1]
    training = [row for row in rows if data.clip(row).split == "train"]
    return training, [row for row in recorded if data.clip(row).split == "validation"]


def train_left_out_corpora(run: ReleaseRun, name: str, *, states: str, corpora: list[str], **options) -> dict:
    """How well the voice does on people, languages and rooms that it never met: each corpus is left out once.

    The last epoch counts, for nothing of the corpus left out may choose one; all of its clips are scored, as recorded,
    by UAR over its own classes, among which alone an answer is chosen. A corpus that is done is not trained again.

    Args:
        run: folders and seed.
        name: of the stage.
        states: stage of the cache.
        corpora: to leave out, one at a time.
        options: of `fit`.
    """
    data, settings = cache_of(run, states)
    run.folder(name).mkdir(parents=True, exist_ok=True)
    found = {}
    for corpus in corpora:
        report = run.folder(name) / f"{corpus}.json"
        if not report.exists():
            training, _ = split_rows(data, corpus)
            left_out = [
                row
                for row, planned in enumerate(data.plan)
                if data.clip(row).corpus == corpus and planned.copy == 0 and len(planned.clips) == 1
            ]
            if not left_out:
                raise ValueError(f"corpora: got {corpus!r}, of which the cache has no clip, expected one that it has")
            part = Path(name) / corpus
            trainer = fit(run, str(part), data, training, left_out, settings, **options, keep_best=False)
            write_json(report, {"uar": trainer.evaluate()[f"eval_{corpus}_uar"], "clips": len(left_out)})
        found[corpus] = json.loads(report.read_text())
    return {"left_out": found, "mean_uar": float(np.mean([scores["uar"] for scores in found.values()]))}
