"""The face tower on FER2013 and RAF-DB together: what ten annotators saw, and what each corpus calls it.

FER2013's own labels and the majority of its FERPlus votes agree on two faces of three, so one classifier cannot learn
both: the tower has two linear ones, `consensus` (votes of FERPlus as probabilities, labels of RAF-DB) and `own`
(labels of FER2013). Their weighted sum is again a linear classifier on the same tower.

Shapes: N faces, B batch, S side of a square grey face in pixels; the 2 * 7 logits are consensus, then own.
"""

import copy
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ResNetConfig, ResNetModel, Trainer, TrainerCallback

from triemo.processing import TriemoImageProcessor
from triemo.training.corpora.images import ferplus_majority, ferplus_soft_targets, read_ferplus_votes
from triemo.training.corpora.labels import EMOTIONS, label2id, map_label
from triemo.training.corpora.registry import load_corpus
from triemo.training.data.augmentation import cut_mix, disturb_faces, mix_up
from triemo.training.metrics.scores import classification_scores
from triemo.training.recipes.stages import ReleaseRun, nesterov_sgd, train_resumable, trainer_arguments
from triemo.training.recipes.views import EpochViews
from triemo.training.recipes.vision import RESNET

__all__ = [
    "FACE_SIZE",
    "FaceClassifiers",
    "FaceCorpora",
    "HeldOutFaces",
    "face_scores",
    "grey_faces",
    "held_out_faces",
    "train_faces",
]

CLASSES = len(EMOTIONS)
HEAD_FILE = "face_head.safetensors"
FACE_SIZE = 96
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # of `own` in the blend of both classifiers


# Data --------------------------------------------------------------------------------------------------------


def _picture(image: dict) -> Image.Image:
    return Image.open(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"])


def grey_faces(images: Sequence[dict], size: int) -> torch.Tensor:
    """Decoded faces of one size as grey uint8 (N, S, S), resized as the image processor does."""
    pixels = torch.from_numpy(np.stack([np.asarray(_picture(image).convert("L")) for image in images]))
    resized = [
        F.interpolate(chunk[:, None].float(), (size, size), mode="bilinear", antialias=True)[:, 0].round().byte()
        for chunk in pixels.split(1024)
    ]
    return torch.cat(resized)


def _smoothed(labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    return F.one_hot(labels, CLASSES) * (1 - smoothing) + smoothing / CLASSES


class FaceCorpora(torch.utils.data.Dataset):
    """The training faces of both corpora in memory, at one size, with how often an epoch shows each.

    RAF-DB's faces come `raf_db_views` times on average, those of its rarer classes more often, by `count ** -power`;
    faces of FER2013 that two annotators in five call disgusted or afraid come three times, all others once.
    """

    def __init__(
        self, ferplus: Dataset, raf_db: Dataset, size: int, raf_db_views: float, power: float, smoothing: float
    ) -> None:
        self.pixels = torch.cat([grey_faces(ferplus["image"], size), grey_faces(raf_db["image"], size)])
        soft = torch.from_numpy(ferplus_soft_targets(np.array(ferplus["votes"]))).float()
        own = torch.tensor([label2id[map_label("fer2013", name)] for name in ferplus["own_label"]])
        labels = torch.tensor([label2id[name] for name in raf_db["label"]])
        # Votes are soft as they are; a face of RAF-DB has no label of FER2013's kind, and its zeros teach nothing.
        consensus = torch.cat([soft, _smoothed(labels, smoothing)])
        self.targets = torch.cat([consensus, F.pad(_smoothed(own, smoothing), (0, 0, 0, len(labels)))], dim=1)
        self.tight = torch.arange(len(self.pixels)) >= len(soft)
        counts = torch.bincount(labels, minlength=CLASSES).double()
        weights = (counts**-power)[labels]
        rare = soft[:, [label2id["disgust"], label2id["fear"]]].sum(1) >= 0.4
        self.views = torch.cat([1.0 + 2 * rare, weights * (raf_db_views * len(labels) / weights.sum())])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {"pixels": self.pixels[indices], "tight": self.tight[indices], "targets": self.targets[indices]}


class HeldOutFaces(torch.utils.data.Dataset):
    """Faces as the released processor reads crops whole, with `labels` (N, 3): is it FER2013's (1) or RAF-DB's (0),
    its class by consensus (-1: none), its class by FER2013's own label (-1: none)."""

    def __init__(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> None:
        self.pixel_values, self.labels = pixel_values, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixel_values[indices], "labels": self.labels[indices]}


def held_out_faces(
    fer2013: DatasetDict, votes: dict[str, np.ndarray], raf_db: DatasetDict, split: str
) -> HeldOutFaces:
    """A split of both corpora, whole.

    Args:
        fer2013: of the registry, all faces of the split.
        votes: of `read_ferplus_votes`.
        raf_db: of the registry.
        split: `validation` or `test`.
    """
    processor = TriemoImageProcessor(do_detect_faces=False)
    pixels = []
    for images in (raf_db[split]["image"], fer2013[split]["image"]):
        for start in range(0, len(images), 256):
            faces = [[_picture(image).convert("RGB")] for image in images[start : start + 256]]
            pixels.append(processor(faces, return_tensors="pt")["pixel_values"][:, 0])
    raf = [[0, label2id[name], -1] for name in raf_db[split]["label"]]
    own = [label2id[name] for name in fer2013[split]["label"]]
    fer = [[1, int(best), label] for best, label in zip(ferplus_majority(votes[split]), own, strict=True)]
    return HeldOutFaces(torch.cat(pixels), torch.tensor(raf + fer))


# Model -------------------------------------------------------------------------------------------------------


class FaceClassifiers(nn.Module):
    """A tower and its two linear classifiers; faces (B, 1, S, S) to logits (B, 14)."""

    def __init__(self, tower: ResNetModel, dropout: float = 0.2) -> None:
        super().__init__()
        self.tower, self.dropout = tower, nn.Dropout(dropout)
        self.head = nn.Linear(tower.config.hidden_sizes[-1], 2 * CLASSES)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return self.head(self.dropout(self.tower(pixel_values=pixel_values).pooler_output.flatten(1)))


class AveragedClassifiers(nn.Module):
    """A model that learns, and the running mean of its weights, which answers outside training.

    The mean forgets by `decay` a step, faster at the start (Polyak averaging as in Tarvainen and Valpola, 2017). Both
    lie in the state, so a checkpoint of the Trainer holds both.
    """

    def __init__(self, live: FaceClassifiers, decay: float) -> None:
        super().__init__()
        self.live, self.decay = live, decay
        self.mean = copy.deepcopy(live).requires_grad_(False)
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.live(pixel_values) if self.training else self.mean.eval()(pixel_values)

    def state_dict(self, *args, **kwargs):
        """Safetensors takes no weights that lie channels last."""
        return {name: value.contiguous() for name, value in super().state_dict(*args, **kwargs).items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, float((1 + self.updates) / (10 + self.updates)))
        mean = self.mean.state_dict()
        for name, value in self.live.state_dict().items():
            if value.is_floating_point():
                mean[name].lerp_(value, 1 - decay)


class UpdateMean(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        model.update()


# Training ----------------------------------------------------------------------------------------------------


def face_scores(logits: np.ndarray, labels: np.ndarray, share: float = 0.0) -> dict[str, float]:
    """Scores of logits (N, 14) against the labels (N, 3) of `HeldOutFaces`.

    Args:
        logits: of both classifiers.
        labels: what is right.
        share: of `own` in the weighted sum that answers for all three.

    Returns:
        `raf_db_…`, `ferplus_…` (faces with a majority) and `fer2013_…` (own labels): accuracy, UAR, F1.
    """
    answer = (1 - share) * logits[:, :CLASSES] + share * logits[:, CLASSES:]
    fer = labels[:, 0] == 1
    result = {}
    for name, rows, column in (("raf_db", ~fer, 1), ("ferplus", fer & (labels[:, 1] >= 0), 1), ("fer2013", fer, 2)):
        found = classification_scores(answer[rows], labels[rows, column])
        result |= {f"{name}_{measure}": value for measure, value in found.items()}
    return result


def _trainer_scores(prediction) -> dict[str, float]:
    scores = face_scores(prediction.predictions, prediction.label_ids)
    own = face_scores(prediction.predictions, prediction.label_ids, share=1.0)["fer2013_accuracy"]
    mean = (scores["raf_db_accuracy"] + scores["ferplus_accuracy"]) / 2
    return {**scores, "fer2013_accuracy_of_own": own, "score": mean}


class FaceTrainer(Trainer):
    """Disturbs and mixes while it trains; draws the rows of an epoch by their views; validates at the size that it
    trains at, for a tower reads faces of another size worse until it has learned on them."""

    def __init__(self, *args, size: int, disturb: float, mix: float, own_weight: float, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.size, self.disturb, self.mix, self.own_weight = size, disturb, mix, own_weight

    def _get_train_sampler(self, *args, **kwargs) -> EpochViews:
        return EpochViews(self.train_dataset.views, self.args.train_batch_size, self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with inputs["pixels"].device:  # where the draws are made
            images, targets = disturb_faces(inputs["pixels"], inputs["tight"], self.disturb), inputs["targets"]
            draw = float(torch.rand(()))
            if draw < self.mix / 2:
                images, targets = mix_up(images, targets, alpha=0.3)
            elif draw < self.mix:
                images, targets = cut_mix(images, targets)
        logits = model(images)
        losses = [
            -(part * F.log_softmax(answer, dim=-1)).sum(-1).mean()
            for part, answer in zip(targets.split(CLASSES, 1), logits.split(CLASSES, 1), strict=True)
        ]
        return losses[0] + self.own_weight * losses[1]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        images = F.interpolate(inputs["pixel_values"], (self.size, self.size), mode="bilinear", antialias=True)
        with torch.no_grad():
            logits = model(images)
        return logits.new_zeros(()), logits, inputs["labels"]

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None:
            self.optimizer = nesterov_sgd(self.model, self.args)
        return self.optimizer


def train_faces(
    run: ReleaseRun,
    name: str,
    *,
    epochs: float,
    learning_rate: float,
    size: int,
    start: str | None = None,
    least_rate: float = 0.0,
    warmup: float = 0.02,
    disturb: float = 0.8,
    mix: float = 0.2,
    own_weight: float = 0.5,
    raf_db_views: float = 1.5,
    power: float = 0.35,
    smoothing: float = 0.08,
    decay: float = 0.998,
) -> dict:
    """Trains on both corpora, keeps the epoch best on validation, saves the `ResNetModel` to `<output>/<name>`.

    Validation is PublicTest and a tenth of RAF-DB's train; what is measured is the running mean of the weights, by the
    mean of the accuracies on RAF-DB and on the majority of the votes. The two classifiers lie beside the tower.

    Args:
        run: folders and seed.
        name: of the stage.
        epochs: passes, each of as many faces as `FaceCorpora` shows.
        learning_rate: at its peak, from which it falls as a cosine.
        size: pixels a side, in training and validation.
        start: earlier stage whose tower (and classifiers, if it has both) learns on; None for random weights.
        least_rate: share of the learning rate that the last step has.
        warmup: share of the steps in which the rate rises.
        disturb: strength of `disturb_faces`.
        mix: share of the batches that are mixed, half of them by `mix_up`, half by `cut_mix`.
        own_weight: of the loss on FER2013's own labels.
        raf_db_views, power, smoothing: of `FaceCorpora`.
        decay: of the mean of the weights.
    """
    ferplus = load_corpus("ferplus", run.data, ties=True)
    raf_db = load_corpus("raf_db", run.data)
    fer2013 = load_corpus("fer2013", run.data, drop_duplicates=False)
    votes = read_ferplus_votes(run.data, {split: len(rows) for split, rows in fer2013.items()})
    torch.manual_seed(run.seed)
    model = FaceClassifiers(
        ResNetModel.from_pretrained(run.folder(start)) if start else ResNetModel(ResNetConfig(**RESNET))
    )
    if start and (run.folder(start) / HEAD_FILE).exists():
        model.head.load_state_dict(load_file(run.folder(start) / HEAD_FILE))
    trainer = FaceTrainer(
        model=AveragedClassifiers(model.to(memory_format=torch.channels_last), decay),
        args=trainer_arguments(
            run,
            name,
            per_device_train_batch_size=128,
            per_device_eval_batch_size=256,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": least_rate},
            warmup_steps=warmup,
            weight_decay=5e-4,
            max_grad_norm=5.0,
            bf16=False,  # four times slower on a processor that emulates it
            metric_for_best_model="score",
        ),
        train_dataset=FaceCorpora(ferplus["train"], raf_db["train"], size, raf_db_views, power, smoothing),
        eval_dataset=held_out_faces(fer2013, votes, raf_db, "validation"),
        data_collator=lambda batch: batch,
        compute_metrics=_trainer_scores,
        callbacks=[UpdateMean()],
        size=size,
        disturb=disturb,
        mix=mix,
        own_weight=own_weight,
    )
    train_resumable(trainer)
    prediction = trainer.predict(trainer.eval_dataset)
    blends = {str(share): face_scores(prediction.predictions, prediction.label_ids, share) for share in SHARES}
    _save(trainer.model.mean, run.folder(name))
    return {"validation": _trainer_scores(prediction), "validation_blends": blends}


def _save(model: FaceClassifiers, folder: Path) -> None:
    model.tower.save_pretrained(folder)
    save_file({name: value.contiguous() for name, value in model.head.state_dict().items()}, folder / HEAD_FILE)
