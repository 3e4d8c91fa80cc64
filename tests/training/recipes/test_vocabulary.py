"""A pruned vocabulary cuts kept text as before, and its rows are the old ones."""

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from triemo.training.recipes.vocabulary import kept_pieces, prune_embeddings, prune_tokenizer


def test_kept_text_is_cut_as_before(tokenizer):
    kept = kept_pieces(tokenizer, ["happy"])
    pruned = prune_tokenizer(tokenizer, kept)
    assert len(pruned) == len(kept) < len(tokenizer)
    for text in ("happy", "开心!", "😡", "é"):
        assert pruned.tokenize(text) == tokenizer.tokenize(text)
    # The piece of three characters is gone, and its characters are there.
    assert tokenizer.tokenize("高兴吗")[-1] == "高兴吗" and pruned.tokenize("高兴吗")[-3:] == ["高", "兴", "吗"]
    assert pruned.unk_token_id in pruned("дом")["input_ids"] and "😡" in pruned.get_vocab()
    ids = pruned("happy")["input_ids"]
    assert ids[0] == pruned.bos_token_id and ids[-1] == pruned.eos_token_id
    assert pruned.mask_token_id == len(kept) - 1 and pruned.pad_token == "<pad>"


def test_pruned_tokenizer_survives_the_disk(tokenizer, tmp_path):
    pruned = prune_tokenizer(tokenizer, kept_pieces(tokenizer, []))
    pruned.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again("happy 开心 😡")["input_ids"] == pruned("happy 开心 😡")["input_ids"]
    assert again.model_max_length == 16


def test_encoder_gives_the_same_states(tokenizer):
    """Of text whose pieces are all kept."""
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, pad_token_id=1,
    )  # fmt: skip
    encoder = BertModel(config).eval()
    with torch.no_grad():
        before = encoder(**tokenizer("happy 开心", return_tensors="pt")).last_hidden_state
        kept = kept_pieces(tokenizer, ["happy"])
        pruned = prune_tokenizer(tokenizer, kept)
        prune_embeddings(encoder, kept, pruned)
        after = encoder(**pruned("happy 开心", return_tensors="pt")).last_hidden_state
    assert torch.equal(before, after)
    assert encoder.config.vocab_size == encoder.get_input_embeddings().num_embeddings == len(kept)
    assert encoder.config.pad_token_id == pruned.pad_token_id


def test_too_many_and_too_few_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"vocabulary: got \d+ pieces that have to stay, expected 5 or fewer"):
        kept_pieces(tokenizer, ["happy"], most=5)
    with pytest.raises(ValueError, match=r"vocabulary: got \['<mask>'\] left out"):
        prune_tokenizer(tokenizer, list(range(10)))
