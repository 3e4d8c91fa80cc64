"""The text tower of the small checkpoint: a sentence encoder tuned on GoEmotions (ekman grouping) and MELD."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer

from triemo.modeling.layers_triemo import masked_mean
from triemo.training.corpora.labels import EMOTIONS, label2id, to_soft_target
from triemo.training.corpora.registry import load_corpus
from triemo.training.metrics.scores import classification_scores, multi_label_scores
from triemo.training.recipes.stages import ReleaseRun, train_resumable, trainer_arguments

__all__ = ["MAX_TOKENS", "PooledClassifier", "label_ids", "load_texts", "train_text"]

MAX_TOKENS = 64  # 99.9 % of the comments are shorter


def train_text(
    run: ReleaseRun, name: str, *, encoder: str, corpora: list[str], epochs: int, learning_rate: float
) -> dict:
    """Trains on soft targets (several labels share the mass), keeps the best epoch by the mean validation score.

    Args:
        run: folders and seed.
        name: of the stage.
        encoder: Hub id of the sentence encoder, or a folder.
        corpora: names of text corpora.
        epochs: passes over all of them.
        learning_rate: at its peak.
    """
    tokenizer = AutoTokenizer.from_pretrained(run.encoder(encoder))

    def tokens(corpus: str, split: str) -> Dataset:
        texts, classes = load_texts(run.data, corpus, split)
        rows = dict(tokenizer(texts, truncation=True, max_length=MAX_TOKENS))
        return Dataset.from_dict({**rows, "labels": [to_soft_target(ids) for ids in classes]})

    validation = {corpus: tokens(corpus, "validation") for corpus in corpora}
    sizes = {corpus: len(rows) for corpus, rows in validation.items()}
    torch.manual_seed(run.seed)
    model = AutoModel.from_pretrained(run.encoder(encoder), add_pooling_layer=False, dtype=torch.float32)
    # Half of the parameters, most of them seen too seldom here to learn: a quarter of the step's time saved.
    model.embeddings.word_embeddings.requires_grad_(False)
    trainer = InOrderTrainer(
        model=PooledClassifier(model, len(EMOTIONS)),
        args=trainer_arguments(
            run,
            name,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=128,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=0.01,
            lr_scheduler_type="linear",
            train_sampling_strategy="group_by_length",
            metric_for_best_model="score",
        ),
        train_dataset=concatenate_datasets([tokens(corpus, "train") for corpus in corpora]),
        eval_dataset=concatenate_datasets(list(validation.values())),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: text_scores(p.predictions, np.asarray(p.label_ids), sizes),
    )
    train_resumable(trainer)
    scores = trainer.evaluate()
    model.save_pretrained(run.folder(name))
    tokenizer.save_pretrained(run.folder(name))
    return {"validation": scores}


class PooledClassifier(nn.Module):
    """Classifier over the mean state of a text encoder.

    Args:
        encoder: of width `config.hidden_size`.
        num_labels: number of classes C.
    """

    def __init__(self, encoder: nn.Module, num_labels: int) -> None:
        super().__init__()
        self.encoder, self.dropout = encoder, nn.Dropout(0.1)
        self.classifier = nn.Linear(encoder.config.hidden_size, num_labels)

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """`inputs` go to the encoder and hold `attention_mask`; `labels` are (B, C) probabilities."""
        pooled = masked_mean(self.encoder(**inputs).last_hidden_state.float(), inputs["attention_mask"])
        logits = self.classifier(self.dropout(pooled)).float()
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class InOrderTrainer(Trainer):
    """Evaluates in the order of the rows, which tells their corpus; grouping by length would shuffle them too."""

    def _get_eval_sampler(self, eval_dataset: Dataset) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(eval_dataset)


def load_texts(root: str | None, corpus: str, split: str) -> tuple[list[str], list[list[int]]]:
    """Sentences of a corpus and the class indices of each."""
    data = load_corpus(corpus, root, **({"clips": False} if corpus == "meld" else {}))[split]
    return list(data["text"]), [label_ids(label) for label in data["label"]]


def label_ids(label: str | list[str]) -> list[int]:
    """Class indices of a row's label or labels."""
    return sorted(label2id[name] for name in ([label] if isinstance(label, str) else label))


def text_scores(logits: np.ndarray, targets: np.ndarray, rows: Mapping[str, int]) -> dict[str, float]:
    """Each corpus by its own protocol, and the mean of both as `score`; `rows` are the corpora in their order."""
    scores, start = {}, 0
    for name, count in rows.items():
        part, wanted = logits[start : start + count], targets[start : start + count]
        if (wanted > 0).sum(1).max() > 1:
            scores[f"{name}_macro_f1"] = multi_label_scores(part, wanted > 0)["macro_f1"]
        else:
            scores[f"{name}_weighted_f1"] = classification_scores(part, wanted.argmax(1))["weighted_f1"]
        start += count
    return {**scores, "score": float(np.mean(list(scores.values())))}
