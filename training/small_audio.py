"""Stage 3 of the small checkpoint: the built-in audio tower, from Whisper's encoder, tuned on RAVDESS."""

import time
from pathlib import Path

import numpy as np
import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from triemo.modeling import TriemoAudioModel
from triemo.processing.feature_extraction_triemo import TriemoFeatureExtractor
from triemo.training.augmentation import augment_log_mel, warp_log_mel
from triemo.training.corpora import load_ravdess
from triemo.training.emotion_metrics import classification_scores
from triemo.training.label_maps import EMOTIONS
from triemo.training.pooled_classifier import PooledClassifier, average_checkpoints

__all__ = ["log_mel_frames", "pad_frames", "train_audio"]

FROZEN_LAYERS = 1  # besides the convolutions
AVERAGED_CHECKPOINTS = 4


def log_mel_frames(paths: list[str]) -> list[torch.Tensor]:
    """Log-mel frames (T, 80) at 100 Hz of every file, unpadded."""
    extractor = TriemoFeatureExtractor()
    return [torch.as_tensor(np.asarray(extractor(path)["input_features"][0])).float() for path in paths]


def pad_frames(clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (T_i, M) as features (B, T, M) with zeros at the end, and their mask (B, T)."""
    lengths = torch.tensor([len(clip) for clip in clips])
    features = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return features, (torch.arange(features.shape[1]) < lengths[:, None]).long()


class Clips(torch.utils.data.Dataset):
    """Log-mel clips in memory with their labels; with `warp` every fetch renders the clip anew."""

    def __init__(self, split, warp: bool) -> None:
        self.clips, self.labels, self.warp = log_mel_frames(split["path"]), list(split["label"]), warp

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        clip = self.clips[index]
        return {"clip": warp_log_mel(clip) if self.warp else clip, "label": self.labels[index]}


def collate_clips(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Rows of `Clips` as the tensors of a `PooledClassifier`."""
    features, mask = pad_frames([row["clip"] for row in rows])
    labels = torch.tensor([row["label"] for row in rows])
    return {"input_features": features, "attention_mask": mask, "labels": labels}


class SpeechTrainer(Trainer):
    """Masks clips while it trains, and trains upper layers faster than lower ones."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            inputs["input_features"] = augment_log_mel(inputs["input_features"], inputs["attention_mask"])
        outputs = model(**inputs)
        return (outputs["loss"], {"logits": outputs["logits"]}) if return_outputs else outputs["loss"]

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None:
            rate, groups = self.args.learning_rate, []
            layers = self.model.encoder.layers
            for depth, layer in enumerate(layers):
                scale = 0.7 ** (len(layers) - 1 - depth)
                groups.append({"params": [p for p in layer.parameters() if p.requires_grad], "lr": rate * scale})
            groups.append({"params": list(self.model.encoder.layer_norm.parameters()), "lr": rate})
            fresh = [*self.model.classifier.parameters(), self.model.encoder.layer_weights]
            groups.append({"params": fresh, "lr": rate * 10})
            groups = [group for group in groups if group["params"]]
            self.optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=self.args.weight_decay)
        return self.optimizer


def train_audio(args) -> dict:
    """Trains on actors 1-18; of the last weights and the mean of the last checkpoints, validation keeps the better."""
    torch.manual_seed(args.seed)
    encoder = TriemoAudioModel.from_whisper(
        args.encoder(args.audio_encoder), use_weighted_layer_sum=True, hidden_dropout=0.1
    )
    for part in (encoder.conv1, encoder.conv2, *encoder.layers[:FROZEN_LAYERS]):
        part.requires_grad_(False)
    model = PooledClassifier(encoder, len(EMOTIONS), dropout=0.3, label_smoothing=0.1)
    folder = Path(args.output) / "audio"
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        num_train_epochs=args.audio_epochs,
        learning_rate=1e-4,
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        bf16=True,
        use_cpu=args.cpu,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=AVERAGED_CHECKPOINTS,
        logging_steps=33,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
    )
    corpus = load_ravdess(args.data)
    trainer = SpeechTrainer(
        model=model,
        args=arguments,
        train_dataset=Clips(corpus["train"], warp=True),
        eval_dataset=Clips(corpus["validation"], warp=False),
        data_collator=collate_clips,
        compute_metrics=lambda p: classification_scores(p.predictions, p.label_ids),
    )
    start = time.time()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir) if folder.exists() else None)
    last, last_scores = model.state_dict(), trainer.evaluate()
    last = {name: value.clone() for name, value in last.items()}
    model.load_state_dict(average_checkpoints(arguments.output_dir, AVERAGED_CHECKPOINTS))
    mean_scores = trainer.evaluate()
    keep_last = last_scores["eval_loss"] < mean_scores["eval_loss"]
    if keep_last:
        model.load_state_dict(last)
    encoder.config.hidden_dropout = 0.0
    encoder.save_pretrained(folder)
    return {
        "validation": last_scores if keep_last else mean_scores,
        "weights": "last" if keep_last else f"mean of the last {AVERAGED_CHECKPOINTS} epochs",
        "minutes": (time.time() - start) / 60,
        "epochs": args.audio_epochs,
    }
