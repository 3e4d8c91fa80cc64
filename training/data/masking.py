"""Whole-word masking for masked language modelling.

Shape legend: B rows, L tokens, V vocabulary.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch

from triemo.modeling.losses_triemo import IGNORE_INDEX

__all__ = ["mask_whole_words", "starts_of_words"]

# How pieces that begin a word begin in byte-level BPE and in SentencePiece.
WORD_STARTS = ("\u0120", "\u2581")
REPLACED, RANDOM = 0.8, 0.1

# Reading a vocabulary takes far longer than masking a batch.
_KNOWN: WeakKeyDictionary[Any, tuple[torch.Tensor, torch.Tensor]] = WeakKeyDictionary()


def mask_whole_words(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    tokenizer: Any,
    probability: float = 0.15,
    generator: torch.Generator | None = None,
    word_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Choose words of every row, at least one, and hide all their tokens. Of the hidden tokens 80 % become the mask
    token, 10 % a random one, 10 % stay (Devlin et al., 2019; whole words as in the authors' later release).

    Args:
        input_ids: (B, L) int64.
        attention_mask: (B, L), 1 = valid; None for all.
        tokenizer: a fast tokenizer with a mask token.
        probability: share of a row's words, rounded to a whole number of words.
        generator: of the random draws.
        word_ids: (B, L) int64, the word that each token belongs to in its row, negative for none, as a fast
            tokenizer's `BatchEncoding.word_ids` says. Without it words begin where the vocabulary says so
            ([`starts_of_words`]).

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
    for name, tensor in (("attention_mask", attention_mask), ("word_ids", word_ids)):
        if tensor is not None and tensor.shape != input_ids.shape:
            raise ValueError(f"{name} must have shape {tuple(input_ids.shape)}, got {tuple(tensor.shape)}.")
    starts, special = (table.to(input_ids.device) for table in _tables(tokenizer))
    usable = ~special[input_ids]
    if attention_mask is not None:
        usable &= attention_mask.bool()
    if word_ids is not None:
        usable &= word_ids >= 0

    def draw() -> torch.Tensor:
        # On the generator's device, so that the seed gives the same words wherever the batch is.
        device = "cpu" if generator is None else generator.device
        return torch.rand(input_ids.shape, generator=generator, device=device).to(input_ids.device)

    words = _number_words(input_ids, usable, starts, word_ids)
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


def _number_words(
    input_ids: torch.Tensor, usable: torch.Tensor, starts: torch.Tensor, word_ids: torch.Tensor | None
) -> torch.Tensor:
    """(B, L), the number of each token's word in its row, from 0; -1 where there is none."""
    # What follows a special token begins a word, whatever it looks like.
    first = usable & ~torch.nn.functional.pad(usable[:, :-1], (1, 0))
    if word_ids is None:
        begins = usable & (starts[input_ids] | first)
    else:
        before = torch.nn.functional.pad(word_ids[:, :-1], (1, 0), value=-1)
        begins = usable & ((word_ids != before) | first)
    return torch.where(usable, begins.long().cumsum(1) - 1, -1)


def starts_of_words(tokenizer: Any) -> torch.Tensor:
    """
    (V,) bool, whether a token begins a word: in WordPiece all without the continuing-subword prefix; in byte-level
    BPE and SentencePiece those with the mark of a space, and punctuation; in any other vocabulary every token.
    """
    return _tables(tokenizer)[0].clone()


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
