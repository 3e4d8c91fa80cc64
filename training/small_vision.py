"""Stage 1 of the small checkpoint: a face ResNet trained from scratch on FER2013."""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from triemo.training.augmentation import augment_faces, mix_up, normalise_faces, one_hot
from triemo.training.corpora import fer2013_pixels, load_fer2013
from triemo.training.emotion_metrics import classification_scores
from triemo.training.label_maps import EMOTIONS, label2id

__all__ = ["FacePixels", "train_vision"]


class FacePixels(torch.utils.data.Dataset):
    """All faces of a FER2013 split as one uint8 tensor (28 k faces are 65 MB), fetched a batch at a time."""

    def __init__(self, split) -> None:
        self.pixels = torch.from_numpy(np.stack([fer2013_pixels(image["bytes"]) for image in split["image"]]))
        self.labels = torch.tensor(split["label"])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {"pixels": self.pixels[indices], "labels": self.labels[indices]}


class FaceTrainer(Trainer):
    """Augments while it trains. The image grows over the run (64, 80, 96 pixels a side), which buys epochs."""

    sizes = (64, 80, 96)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        targets = one_hot(inputs["labels"], len(EMOTIONS))
        if model.training:
            progress = self.state.global_step / max(1, self.state.max_steps)
            size = self.sizes[min(int(progress * len(self.sizes)), len(self.sizes) - 1)]
            images, targets = mix_up(augment_faces(inputs["pixels"], size), targets, alpha=0.3, probability=0.5)
        else:
            images = normalise_faces(inputs["pixels"])
        outputs = model(pixel_values=images.contiguous(memory_format=torch.channels_last))
        logits = outputs.logits.float()
        loss = F.cross_entropy(logits, targets, label_smoothing=0.1 if model.training else 0.0)
        return (loss, {"logits": logits}) if return_outputs else loss

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None:
            decay = [p for p in self.model.parameters() if p.dim() > 1]
            plain = [p for p in self.model.parameters() if p.dim() <= 1]
            groups = [
                {"params": decay, "weight_decay": self.args.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ]
            self.optimizer = torch.optim.SGD(groups, lr=self.args.learning_rate, momentum=0.9, nesterov=True)
        return self.optimizer


def train_vision(args) -> dict:
    """Trains, keeps the epoch that is best on PublicTest, saves the `ResNetModel` to `<output>/vision`."""
    faces = load_fer2013(args.data)
    config = ResNetConfig(
        num_channels=1,
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 256],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        id2label=dict(enumerate(EMOTIONS)),
        label2id=label2id,
    )
    torch.manual_seed(args.seed)
    model = ResNetForImageClassification(config).to(memory_format=torch.channels_last)
    folder = Path(args.output) / "vision"
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=128,
        per_device_eval_batch_size=256,
        num_train_epochs=args.vision_epochs,
        learning_rate=0.1,
        weight_decay=5e-4,
        lr_scheduler_type="cosine",
        warmup_steps=0.06,
        max_grad_norm=5.0,
        bf16=True,
        use_cpu=args.cpu,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        logging_steps=100,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
    )
    trainer = FaceTrainer(
        model=model,
        args=arguments,
        train_dataset=FacePixels(faces["train"]),
        eval_dataset=FacePixels(faces["validation"]),
        data_collator=lambda batch: batch,
        compute_metrics=lambda p: classification_scores(p.predictions, p.label_ids),
    )
    start = time.time()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir) if folder.exists() else None)
    scores = trainer.evaluate()
    trainer.model.resnet.save_pretrained(folder)
    return {"validation": scores, "minutes": (time.time() - start) / 60, "epochs": args.vision_epochs}
