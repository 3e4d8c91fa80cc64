"""The face tower of the small checkpoint: a ResNet trained from scratch on FER2013."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification, Trainer

from triemo.training.corpora.images import fer2013_pixels
from triemo.training.corpora.labels import EMOTIONS, label2id
from triemo.training.corpora.registry import load_corpus
from triemo.training.data.augmentation import augment_faces, mix_up, normalise_faces, one_hot
from triemo.training.metrics.scores import classification_scores
from triemo.training.recipes.stages import ReleaseRun, nesterov_sgd, train_resumable, trainer_arguments

__all__ = ["FacePixels", "train_vision"]

RESNET = {
    "num_channels": 1,
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128, 256],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
}


class FacePixels(torch.utils.data.Dataset):
    """All faces of a FER2013 split as one uint8 tensor (28 k faces are 65 MB), fetched a batch at a time."""

    def __init__(self, split) -> None:
        self.pixels = torch.from_numpy(np.stack([fer2013_pixels(image["bytes"]) for image in split["image"]]))
        self.labels = torch.tensor([label2id[label] for label in split["label"]])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {"pixels": self.pixels[indices], "labels": self.labels[indices]}


class FaceTrainer(Trainer):
    """Augments while it trains. The picture may grow over the run, which buys epochs."""

    def __init__(self, *args, sizes: Sequence[int], augment: float, mix_up: float, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.sizes, self.augment, self.mix_up = tuple(sizes), augment, mix_up

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        targets = one_hot(inputs["labels"], len(EMOTIONS))
        if model.training:
            progress = self.state.global_step / max(1, self.state.max_steps)
            size = self.sizes[min(int(progress * len(self.sizes)), len(self.sizes) - 1)]
            with inputs["pixels"].device:  # where the draws are made
                images = augment_faces(inputs["pixels"], size, self.augment)
                images, targets = mix_up(images, targets, alpha=0.3, probability=self.mix_up)
        else:
            images = normalise_faces(inputs["pixels"])
        outputs = model(pixel_values=images.contiguous(memory_format=torch.channels_last))
        logits = outputs.logits.float()
        loss = F.cross_entropy(logits, targets, label_smoothing=0.1 if model.training else 0.0)
        return (loss, {"logits": logits}) if return_outputs else loss

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None:
            self.optimizer = nesterov_sgd(self.model, self.args)
        return self.optimizer


def train_vision(
    run: ReleaseRun,
    name: str,
    *,
    epochs: int,
    learning_rate: float,
    sizes: Sequence[int],
    augment: float,
    mix_up: float,
    start: str | None = None,
) -> dict:
    """Trains, keeps the epoch that is best on PublicTest, saves the `ResNetModel` to `<output>/<name>`.

    Args:
        run: folders and seed.
        name: of the stage.
        epochs: passes over FER2013.
        learning_rate: at its peak.
        sizes: pixels a side of the picture, one after the other in equal parts of the run.
        augment: strength of `augment_faces`.
        mix_up: share of the batches that are mixed.
        start: earlier stage whose tower learns on; None for random weights.
    """
    faces = load_corpus("fer2013", run.data)
    torch.manual_seed(run.seed)
    labels = {"id2label": dict(enumerate(EMOTIONS)), "label2id": label2id}
    if start:
        model = ResNetForImageClassification.from_pretrained(run.folder(start), **labels)
    else:
        model = ResNetForImageClassification(ResNetConfig(**RESNET, **labels))
    trainer = FaceTrainer(
        model=model.to(memory_format=torch.channels_last),
        args=trainer_arguments(
            run,
            name,
            per_device_train_batch_size=128,
            per_device_eval_batch_size=256,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=5e-4,
            max_grad_norm=5.0,
            metric_for_best_model="accuracy",
        ),
        train_dataset=FacePixels(faces["train"]),
        eval_dataset=FacePixels(faces["validation"]),
        data_collator=lambda batch: batch,
        compute_metrics=lambda p: classification_scores(p.predictions, p.label_ids),
        sizes=sizes,
        augment=augment,
        mix_up=mix_up,
    )
    train_resumable(trainer)
    scores = trainer.evaluate()
    trainer.model.resnet.save_pretrained(run.folder(name))
    return {"validation": scores}
