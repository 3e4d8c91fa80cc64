"""The text tower of the small checkpoint: a sentence encoder tuned on corpora of one and of several labels."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer

from triemo.modeling.layers_triemo import masked_mean
from triemo.processing.processing_triemo import with_named_emoji
from triemo.training.corpora.labels import EMOTIONS, label2id, to_soft_target
from triemo.training.corpora.registry import load_corpus
from triemo.training.metrics.scores import classification_scores, multi_label_scores
from triemo.training.recipes.stages import ReleaseRun, train_resumable, trainer_arguments
from triemo.training.recipes.views import EpochViews, balanced_views
from triemo.training.recipes.vocabulary import kept_pieces, prune_embeddings, prune_tokenizer

__all__ = ["MAX_TOKENS", "PooledClassifier", "label_ids", "load_texts", "train_text"]

MAX_TOKENS = 64  # 99.9 % of the comments are shorter
HEAD_FILE = "text_head.safetensors"
PARTS = {"xed": "languages", "brighter": "languages", "smp2020": "topics"}  # a reader's option that chooses a part


def train_text(
    run: ReleaseRun,
    name: str,
    *,
    encoder: str,
    corpora: list[str],
    epochs: int,
    learning_rate: float,
    start: str | None = None,
    pieces: int | None = None,
    max_tokens: int = MAX_TOKENS,
    frozen_layers: int = 0,
    batch_size: int = 32,
    epoch_rows: int | None = None,
    corpus_power: float = 1.0,
    label_smoothing: float = 0.0,
    single_label_measure: str = "weighted_f1",
    bf16: bool = True,
) -> dict:
    """Trains on soft targets (several labels share the mass), keeps the best epoch by the mean validation score.

    Nothing is put before a sentence, not even the "query: " that E5 was trained with: whoever tokenises a sentence
    with the released tokenizer would have to know of it, and fine-tuning makes it needless.

    Args:
        run: folders and seed; its `open_licences` leaves corpora out.
        name: of the stage.
        encoder: Hub id of the sentence encoder, or a folder.
        corpora: names of text corpora, or of a language or topic of one, as of `load_texts`.
        epochs: passes over all of them, or over `epoch_rows`.
        learning_rate: at its peak.
        start: earlier text stage whose tower, tokenizer and classifier learn on, in place of `encoder`.
        pieces: word pieces to keep at most, of those that the training sentences use and the rules of `kept_pieces`;
            None keeps the encoder's.
        max_tokens: of a sentence; what is longer is cut.
        frozen_layers: lowest layers that stay as they are, like the word embeddings, which always do.
        batch_size: sentences a step.
        epoch_rows: sentences an epoch, drawn over the corpora by `corpus_power`; None is each once.
        corpus_power: of `balanced_views`.
        label_smoothing: share of a sentence's mass that all classes get.
        single_label_measure: of `classification_scores`, by which corpora of one label are scored.
        bf16: whether to compute in bfloat16, which some processors emulate, many times slower.

    Raises:
        ValueError: when no corpus is left.
    """
    corpora = run.usable(corpora)
    texts = {split: {part: load_texts(run.data, part, split) for part in corpora} for split in ("train", "validation")}
    source = str(run.folder(start)) if start else run.encoder(encoder)
    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(run.seed)
    model = AutoModel.from_pretrained(source, add_pooling_layer=False, dtype=torch.float32)
    if pieces is not None and start is None:
        kept = kept_pieces(tokenizer, (text for found, _ in texts["train"].values() for text in found), pieces)
        tokenizer = prune_tokenizer(tokenizer, kept)
        prune_embeddings(model, kept, tokenizer)
    classifier = PooledClassifier(model, len(EMOTIONS), frozen_layers, label_smoothing)
    if start:
        classifier.classifier.load_state_dict(load_file(run.folder(start) / HEAD_FILE))

    def tokens(split: str) -> list[Dataset]:
        parts = []
        for found, classes in texts[split].values():
            rows = dict(tokenizer(with_named_emoji(found, tokenizer), truncation=True, max_length=max_tokens))
            parts.append(Dataset.from_dict({**rows, "labels": [to_soft_target(ids) for ids in classes]}))
        return parts

    sizes = {part: len(found) for part, (found, _) in texts["validation"].items()}
    train = concatenate_datasets(tokens("train"))
    views = None
    if epoch_rows is not None:
        owners = [part for part, (found, _) in texts["train"].items() for _ in found]
        views = balanced_views(owners, np.array(train["labels"][:]), epoch_rows, corpus_power, class_power=1.0)
    trainer = SentenceTrainer(
        model=classifier,
        views=views,
        args=trainer_arguments(
            run,
            name,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=128,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=0.01,
            lr_scheduler_type="linear",
            train_sampling_strategy="group_by_length",
            metric_for_best_model="score",
            bf16=bf16,
        ),
        train_dataset=train,
        eval_dataset=concatenate_datasets(tokens("validation")),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: text_scores(p.predictions, np.asarray(p.label_ids), sizes, single_label_measure),
    )
    train_resumable(trainer)
    scores = trainer.evaluate()
    model.save_pretrained(run.folder(name))
    save_file(classifier.classifier.state_dict(), run.folder(name) / HEAD_FILE)
    tokenizer.save_pretrained(run.folder(name))
    return {"validation": scores, "corpora": corpora, "vocabulary": len(tokenizer)}


class PooledClassifier(nn.Module):
    """Classifier over the mean state of a text encoder, whose word embeddings stay as they are.

    Args:
        encoder: of width `config.hidden_size`.
        num_labels: number of classes C.
        frozen_layers: lowest layers that stay as they are too.
        label_smoothing: share of a target's mass that all classes get in training.

    Raises:
        ValueError: for more frozen layers than there are.
    """

    def __init__(
        self, encoder: nn.Module, num_labels: int, frozen_layers: int = 0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.encoder, self.dropout, self.label_smoothing = encoder, nn.Dropout(0.1), label_smoothing
        self.classifier = nn.Linear(encoder.config.hidden_size, num_labels)
        if not 0 <= frozen_layers <= encoder.config.num_hidden_layers:
            raise ValueError(f"frozen_layers: got {frozen_layers}, expected 0 to {encoder.config.num_hidden_layers}")
        # Half of the parameters, most of them seen too seldom here to learn: a quarter of the step's time saved.
        encoder.embeddings.word_embeddings.requires_grad_(False)
        if frozen_layers:
            encoder.embeddings.requires_grad_(False)
            encoder.encoder.layer[:frozen_layers].requires_grad_(False)

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """`inputs` go to the encoder and hold `attention_mask`; `labels` are (B, C) probabilities."""
        pooled = masked_mean(self.encoder(**inputs).last_hidden_state.float(), inputs["attention_mask"])
        logits = self.classifier(self.dropout(pooled)).float()
        if labels is None:
            return {"logits": logits}
        smoothing = self.label_smoothing if self.training else 0.0
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=smoothing), "logits": logits}


class SentenceTrainer(Trainer):
    """Evaluates in the order of the rows, which tells their corpus; grouping by length would shuffle them too. With
    `views` (N,), training draws its rows by them."""

    def __init__(self, *args, views: torch.Tensor | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.views = views

    def _get_train_sampler(self, *args, **kwargs) -> torch.utils.data.Sampler:
        if self.views is None:
            return super()._get_train_sampler(*args, **kwargs)
        lengths = [len(ids) for ids in self.train_dataset["input_ids"][:]]
        return EpochViews(self.views, self.args.train_batch_size, self.args.seed, lengths)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(eval_dataset)


def load_texts(root: str | None, corpus: str, split: str) -> tuple[list[str], list[list[int]]]:
    """Sentences of a corpus, or of a part of one such as `xed/zh`, and the class indices of each.

    Raises:
        ValueError: for a part of a corpus that has none, or not this one.
    """
    name, _, part = corpus.partition("/")
    if part and name not in PARTS:
        raise ValueError(f"corpora: got {corpus!r}, expected a part only of {', '.join(PARTS)}")
    options = {PARTS[name]: [part]} if part else {"clips": False} if name == "meld" else {}
    data = load_corpus(name, root, **options)[split]
    return list(data["text"]), [label_ids(label) for label in data["label"]]


def label_ids(label: str | list[str]) -> list[int]:
    """Class indices of a row's label or labels."""
    return sorted(label2id[name] for name in ([label] if isinstance(label, str) else label))


def text_scores(
    logits: np.ndarray, targets: np.ndarray, rows: Mapping[str, int], single_label_measure: str = "weighted_f1"
) -> dict[str, float]:
    """Each corpus by its own protocol, and the mean of all as `score`; `rows` are the corpora in their order."""
    scores, start = {}, 0
    for name, count in rows.items():
        part, wanted = logits[start : start + count], targets[start : start + count]
        if (wanted > 0).sum(1).max() > 1:
            scores[f"{name}_macro_f1"] = multi_label_scores(part, wanted > 0)["macro_f1"]
        else:
            found = classification_scores(part, wanted.argmax(1))[single_label_measure]
            scores[f"{name}_{single_label_measure}"] = found
        start += count
    return {**scores, "score": float(np.mean(list(scores.values())))}
