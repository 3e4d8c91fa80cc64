"""Masked language modelling: the collator of pretraining, and the choice of whole words that it hides.

Shape legend: B rows, L tokens, V vocabulary.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from triemo.modeling.losses_triemo import IGNORE_INDEX
from triemo.processing import TriemoProcessor
from triemo.training.common import joined_seed
from triemo.training.corpora.labels import label2id
from triemo.training.data.collation import EmotionCollator

__all__ = ["PretrainCollator", "class_id", "mask_whole_words"]

# How pieces that begin a word begin in byte-level BPE and in SentencePiece.
WORD_STARTS = ("\u0120", "\u2581")
REPLACED, RANDOM = 0.8, 0.1

# Reading a vocabulary takes far longer than masking a batch.
_KNOWN: WeakKeyDictionary[Any, tuple[torch.Tensor, torch.Tensor]] = WeakKeyDictionary()


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
        super().__init__(processor, label2id, **options)
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


def class_id(label: Any) -> int:
    """A number that stands for one label, the same in all processes; -100 for none and for several at once."""
    if isinstance(label, (list, tuple)):
        label = label[0] if len(label) == 1 else None
    if label is None or label == "":
        return IGNORE_INDEX
    return int.from_bytes(blake2b(str(label).encode(), digest_size=6).digest(), "big")


def mask_whole_words(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    tokenizer: Any,
    probability: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Choose words of every row, at least one, and hide all their tokens. Of the hidden tokens 80 % become the mask
    token, 10 % a random one, 10 % stay (Devlin et al., 2019; whole words as in the authors' later release).

    The vocabulary says where words begin: in WordPiece at all pieces without the continuing-subword prefix; in
    byte-level BPE and SentencePiece at those with the mark of a space, and at punctuation; else at every token.

    Args:
        input_ids: (B, L) int64.
        attention_mask: (B, L), 1 = valid; None for all.
        tokenizer: a fast tokenizer with a mask token.
        probability: share of a row's words, rounded to a whole number of words.
        generator: of the random draws.

    Returns:
        The masked ids and the labels of `TriemoForPreTraining`, both (B, L): the original token where one is hidden,
        -100 elsewhere. Special and padding tokens are never chosen; a row without words gets no label.

    Raises:
        ValueError: without a mask token, or for a probability or shapes that do not fit.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError("tokenizer: got one without a mask token, expected one that was made for masked tokens.")
    if not 0 < probability <= 1:
        raise ValueError(f"probability must be above 0 and at most 1, got {probability}.")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have shape {tuple(input_ids.shape)}, got {tuple(attention_mask.shape)}."
        )
    starts, special = (table.to(input_ids.device) for table in _tables(tokenizer))
    usable = ~special[input_ids]
    if attention_mask is not None:
        usable &= attention_mask.bool()

    def draw() -> torch.Tensor:
        # On the generator's device, so that the seed gives the same words wherever the batch is.
        device = "cpu" if generator is None else generator.device
        return torch.rand(input_ids.shape, generator=generator, device=device).to(input_ids.device)

    words = _number_words(input_ids, usable, starts)
    count = (words.max(1, keepdim=True).values + 1).clamp(min=0)
    wanted = (count * probability).round().long().clamp(min=1).minimum(count)
    # A score for each word; those with the lowest scores of their row are chosen.
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    scores = draw().masked_fill(places >= count, 2.0)
    ranks = scores.argsort(1).argsort(1)
    chosen = (ranks < wanted).gather(1, words.clamp(min=0)) & usable

    labels = torch.where(chosen, input_ids, IGNORE_INDEX)
    lot = draw()
    ordinary = (~special).nonzero().squeeze(1)
    random = ordinary[(draw() * len(ordinary)).long().clamp(max=len(ordinary) - 1)]
    masked = torch.where(chosen & (lot < REPLACED), tokenizer.mask_token_id, input_ids)
    return torch.where(chosen & (lot >= REPLACED) & (lot < REPLACED + RANDOM), random, masked), labels


def _number_words(input_ids: torch.Tensor, usable: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """(B, L), the number of each token's word in its row, from 0; -1 where there is none."""
    # What follows a special token begins a word, whatever it looks like.
    first = usable & ~torch.nn.functional.pad(usable[:, :-1], (1, 0))
    begins = usable & (starts[input_ids] | first)
    return torch.where(usable, begins.long().cumsum(1) - 1, -1)


def _tables(tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether a token begins a word, and whether it is special, each (V,) bool."""
    known = _KNOWN.get(tokenizer)
    if known is None or len(known[0]) < len(tokenizer):
        known = _KNOWN[tokenizer] = _read_vocabulary(tokenizer)
    return known


def _read_vocabulary(tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    vocabulary = tokenizer.get_vocab()
    prefix = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None) or ""
    marked = not prefix and any(token.startswith(WORD_STARTS) for token in vocabulary)
    length = max(len(tokenizer), 1 + max(vocabulary.values()))
    starts, special = torch.ones(length, dtype=torch.bool), torch.zeros(length, dtype=torch.bool)
    for token, index in vocabulary.items():
        if prefix:
            starts[index] = not token.startswith(prefix)
        elif marked:
            is_punctuation = token.isascii() and not any(letter.isalnum() for letter in token)
            starts[index] = token.startswith(WORD_STARTS) or is_punctuation
    special[sorted(tokenizer.all_special_ids)] = True
    return starts, special
