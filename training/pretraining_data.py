"""Data of `pretrain.py`: masked rows, synthetic clips with all pairs, training and validation sets."""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triemo.modeling.losses_triemo import IGNORE_INDEX
from triemo.processing import TriemoProcessor
from triemo.training.arguments import PretrainDataArguments
from triemo.training.common import joined_seed, parse_weights
from triemo.training.corpora.labels import EMOTIONS
from triemo.training.data.collation import EmotionCollator
from triemo.training.data.composites import SUBSETS
from triemo.training.data.masking import mask_whole_words
from triemo.training.data.sampling import CompositeRows, EmotionRows, MixtureSampler
from triemo.training.data.tables import load_table
from triemo.training.sources import load_splits, parse_column_map

__all__ = ["PretrainCollator", "class_id", "evaluation_rows", "load_parts", "subset_weights", "training_rows"]


def subset_weights(text: str) -> tuple[float, ...]:
    """`"text+audio:1,text+vision:4"` as a weight for each of `SUBSETS`. Raises ValueError for anything else."""
    joined = ["+".join(subset) for subset in SUBSETS if len(subset) > 1]
    weights = parse_weights(text, "composite_subsets", joined, allow_zero=True)
    if not any(weights.values()):
        raise ValueError(f"composite_subsets: got {text!r}, expected a weight above 0.")
    # One modality alone has nothing to be aligned with.
    return tuple(weights.get("+".join(subset), 0.0) for subset in SUBSETS)


def class_id(label: Any) -> int:
    """A number that stands for one label, the same in all processes; -100 for none and for several at once."""
    if isinstance(label, (list, tuple)):
        label = label[0] if len(label) == 1 else None
    if label is None or label == "":
        return IGNORE_INDEX
    return int.from_bytes(blake2b(str(label).encode(), digest_size=6).digest(), "big")


class PretrainCollator(EmotionCollator):
    """
    As [`EmotionCollator`], with whole words masked (`mlm_labels`) in place of a target. A row's masks depend on `seed`
    and its ticket alone, as its augmentation does.

    Args:
        processor: a [`TriemoProcessor`].
        mlm_probability: share of the words that are masked; 0 masks none.
        soft_labels: add `labels` (B,), a number for each row's label, -100 where there is none.
        sentence_pairs: the column `sentence` is the text of rows without one. Such sentences are few and known by
            heart: they are not masked, and their label is the sentence.
        options: `augment`, `seed`, `modalities`, `max_length` of the [`EmotionCollator`].
    """

    def __init__(
        self,
        processor: TriemoProcessor,
        mlm_probability: float = 0.15,
        soft_labels: bool = False,
        sentence_pairs: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(processor, {name: index for index, name in enumerate(EMOTIONS)}, **options)
        self.mlm_probability, self.class_labels, self.sentence_pairs = mlm_probability, soft_labels, sentence_pairs

    def prepare(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors (1, ...) of one row."""
        label, is_read = row.get("label"), self.sentence_pairs and not row.get("text") and bool(row.get("sentence"))
        if is_read:
            row, label = {**row, "text": row["sentence"]}, f"sentence: {row['sentence']}"
        sample: dict[str, Any] = dict(self.encode(row))
        if self.mlm_probability and not is_read and "input_ids" in sample:
            generator = torch.Generator().manual_seed(joined_seed(self.seed, int(row.get("ticket") or 0), 1))
            sample["input_ids"], masked = mask_whole_words(
                sample["input_ids"],
                sample["attention_mask"],
                self.processor.tokenizer,
                self.mlm_probability,
                generator,
            )
            # The processor pads with 0, and a step that is not masked is -100.
            sample["mlm_labels"] = masked - IGNORE_INDEX
        if self.class_labels:
            sample["labels"] = np.asarray(class_id(label), dtype=np.int64)
        return sample

    def collate(self, samples: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().collate(samples)
        if "mlm_labels" in batch:
            batch["mlm_labels"] = batch["mlm_labels"] + IGNORE_INDEX
        return batch


Parts = dict[str, dict[str, tuple[Any, float]]]


def load_parts(args: PretrainDataArguments) -> tuple[Parts, Parts]:
    """`{split: {part: (rows, weight)}}` of what is drawn row by row, and of what composites are joined from."""
    if args.table:
        # Unlike fine-tuning, labels need not be there.
        loaded = load_table(args.table, None, parse_column_map(args.column_map), root=args.data, labelled=False)
        rows: Parts = {name: {Path(args.table).stem: (data, 1.0)} for name, data in loaded.items()}
    elif args.corpora:
        rows = load_splits(None, args.corpora, args.data, None, args.classes)
    else:
        joined = load_splits(None, args.composite_corpora, args.data, None, args.classes)
        return {name: {} for name in joined}, joined
    if not (args.composites or args.validation_composites):
        return rows, {}
    if args.composite_corpora is None:
        return rows, rows
    return rows, load_splits(None, args.composite_corpora, args.data, None, args.classes)


def training_rows(
    rows: Parts, joined: Parts, collator: PretrainCollator, args: PretrainDataArguments, seed: int, batch_size: int
) -> tuple[EmotionRows, MixtureSampler]:
    """The training set and the order it is drawn in."""
    parts: list[Any] = [data for data, _ in rows["train"].values()]
    weights = [weight for _, weight in rows["train"].values()]
    if args.composites:
        parts.append(composites_of(joined["train"], args.composites, seed, args))
        weights.append(1.0)
    found = EmotionRows(parts, collator.prepare, args.max_broken_share)
    lengths = found.lengths() if args.length_buckets else None
    return found, MixtureSampler([len(part) for part in parts], weights, seed, lengths, batch_size)


def evaluation_rows(
    rows: Mapping[str, tuple[Any, float]], joined: Parts, args: PretrainDataArguments
) -> EmotionRows | None:
    """The validation set: its rows and composites are the same in every evaluation."""
    parts: list[Any] = [data for data, _ in rows.values()]
    if args.validation_composites:
        if "validation" not in joined:
            raise ValueError("validation_composites: got corpora without a validation split.")
        parts.append(composites_of(joined["validation"], args.validation_composites, 0, args))
    return EmotionRows(parts) if parts else None


def composites_of(
    parts: dict[str, tuple[Any, float]], rows: int, seed: int, args: PretrainDataArguments
) -> CompositeRows:
    weights = subset_weights(args.composite_subsets)
    return CompositeRows(parts, rows, seed, weights, args.composite_faces, args.composite_sentences)
