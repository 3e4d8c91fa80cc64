"""A multilingual encoder with the word pieces of a few languages only: the same encoder, a fraction of the embeddings.

multilingual-e5-small has 250,037 pieces for a hundred languages, 96 of its 117 million parameters. Text of the kept
languages is cut into the very pieces it was cut into before, as long as these are kept; a word whose piece is gone is
cut into smaller pieces that are there, down to single characters, so nothing becomes unknown that was known before
among the kept characters.
"""

import json
import unicodedata
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

__all__ = ["kept_pieces", "pieces_in", "prune_embeddings", "prune_tokenizer"]

SPACE = "\u2581"  # stands for a space before a word


def kept_pieces(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], most: int = 50_000) -> list[int]:
    """
    Ids to keep, in ascending order: special tokens; every piece of one character that is a letter or ideograph of
    Latin or Chinese script, digit, mark, symbol or emoji; Chinese pieces of two characters; and what `texts` use.

    Args:
        tokenizer: a Unigram tokenizer, as those of XLM-R and multilingual E5.
        texts: the corpora's sentences.
        most: pieces, at most.

    Raises:
        ValueError: when more have to stay.
    """
    pieces = _unigram(tokenizer)
    special = set(tokenizer.all_special_ids)
    kept = special | {index for index, (piece, _) in enumerate(pieces) if _always(piece)} | pieces_in(tokenizer, texts)
    if len(kept) > most:
        raise ValueError(f"vocabulary: got {len(kept)} pieces that have to stay, expected {most} or fewer")
    return sorted(kept)


def pieces_in(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], batch_size: int = 4096) -> set[int]:
    """Ids that occur in texts."""
    found: set[int] = set()
    texts = list(texts)
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(texts[start : start + batch_size], add_special_tokens=False, truncation=False)
        found.update(*map(set, batch["input_ids"]))
    return found


def prune_tokenizer(tokenizer: PreTrainedTokenizerFast, kept: list[int]) -> PreTrainedTokenizerFast:
    """
    The tokenizer with the kept pieces, renumbered in their order.

    Raises:
        ValueError: when a special token is not kept, or the tokenizer is no Unigram model.
    """
    pieces, new_of = _unigram(tokenizer), {old: new for new, old in enumerate(kept)}
    missing = [tokenizer.convert_ids_to_tokens(index) for index in tokenizer.all_special_ids if index not in new_of]
    if missing:
        raise ValueError(f"vocabulary: got {missing} left out, expected all special tokens kept")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"] = [pieces[index] for index in kept if index < len(pieces)]
    state["model"]["unk_id"] = new_of[state["model"]["unk_id"]]
    state["added_tokens"] = [
        {**token, "id": new_of[token["id"]]} for token in state["added_tokens"] if token["id"] in new_of
    ]
    _renumber(state.get("post_processor"), new_of)
    options = {
        name: getattr(tokenizer, name) for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES if name.endswith("_token")
    }
    pruned = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        model_input_names=list(tokenizer.model_input_names),
        **{name: value for name, value in options.items() if isinstance(value, str)},
    )
    if len(pruned) != len(kept):
        raise ValueError(f"vocabulary: got {len(pruned)} pieces after pruning, expected {len(kept)}")
    return pruned


@torch.no_grad()
def prune_embeddings(encoder: Any, kept: list[int], tokenizer: PreTrainedTokenizerFast) -> None:
    """Keep these rows (n, width) of the encoder's word embeddings, in place; its config names the new size."""
    old = encoder.get_input_embeddings()
    new = torch.nn.Embedding(len(kept), old.embedding_dim, padding_idx=tokenizer.pad_token_id, dtype=old.weight.dtype)
    new.weight.copy_(old.weight[torch.tensor(kept)])
    encoder.set_input_embeddings(new)
    encoder.config.vocab_size, encoder.config.pad_token_id = len(kept), tokenizer.pad_token_id


def _unigram(tokenizer: PreTrainedTokenizerFast) -> list[list]:
    """[piece, score] by id."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "Unigram":
        raise ValueError(f"tokenizer: got a {model['type']} model, expected Unigram")
    return model["vocab"]


def _always(piece: str) -> bool:
    text = piece.removeprefix(SPACE)
    if len(text) == 2 and all(map(_is_chinese, text)):
        return True
    # An emoji may be a sign and what says how to show it, or a face and a skin tone.
    signs = [sign for sign in text if sign not in "\ufe0f\u200d"]
    if len(signs) > 1:
        return all(unicodedata.category(sign) in ("So", "Sk") for sign in signs)
    return all(_is_common(sign) for sign in signs)


def _is_chinese(sign: str) -> bool:
    return "CJK UNIFIED" in unicodedata.name(sign, "")


def _is_common(sign: str) -> bool:
    """Whether a sign is no letter of a script other than Latin or Chinese."""
    if not unicodedata.category(sign).startswith("L"):
        return True
    return _is_chinese(sign) or unicodedata.name(sign, "").startswith(("LATIN ", "FULLWIDTH LATIN "))


def _renumber(state: Any, new_of: dict[int, int]) -> None:
    """Ids of special tokens within a post-processor's settings, in place."""
    if isinstance(state, dict):
        if "ids" in state and "tokens" in state:
            state["ids"] = [new_of[index] for index in state["ids"]]
        for name in ("sep", "cls"):
            if isinstance(state.get(name), list) and len(state[name]) == 2 and isinstance(state[name][1], int):
                state[name] = [state[name][0], new_of[state[name][1]]]
        for value in state.values():
            _renumber(value, new_of)
    elif isinstance(state, list):
        for value in state:
            _renumber(value, new_of)
