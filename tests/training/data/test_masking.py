"""Whole words are masked, in the shares asked for, the same for the same seed."""

import pytest
import torch
from tiny_checkpoint import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from triemo.training.data.masking import mask_whole_words

SENTENCES = ["i am so happy this day is fine", "unhappy", "", "what afraidness is this you of the angry day"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def encode(tokenizer, sentences=SENTENCES):
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def words_of(tokenizer, ids):
    """Places of each word of a row, by the continuing-subword prefix, in plain Python."""
    groups = []
    for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        if token in tokenizer.all_special_tokens:
            continue
        if token.startswith("##"):
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def test_words_are_hidden_whole_and_as_many_as_asked(tokenizer):
    ids, mask = encode(tokenizer)
    for seed in range(20):
        masked, labels = mask_whole_words(ids, mask, tokenizer, 0.3, seeded(seed))
        for row in range(len(ids)):
            hidden = set((labels[row] != -100).nonzero().flatten().tolist())
            groups = [set(group) for group in words_of(tokenizer, ids[row])]
            chosen = [group for group in groups if group <= hidden]
            assert set().union(*chosen) == hidden
            assert len(chosen) == min(len(groups), max(1, round(0.3 * len(groups))))
        assert torch.equal(labels[labels != -100], ids[labels != -100])
        assert torch.equal(masked[labels == -100], ids[labels == -100])


def test_eighty_ten_ten_and_only_ordinary_tokens(tokenizer):
    ids = torch.randint(5, len(tokenizer), (400, 100), generator=seeded(1))
    before = ids.clone()
    masked, labels = mask_whole_words(ids, None, tokenizer, 0.15, seeded(2))
    assert torch.equal(ids, before)
    hidden = labels != -100
    assert hidden.float().mean().item() == pytest.approx(0.15, abs=0.01)
    replaced = masked[hidden] == tokenizer.mask_token_id
    kept = masked[hidden] == ids[hidden]
    assert replaced.float().mean().item() == pytest.approx(0.8, abs=0.02)
    # Of the random tokens one in the vocabulary's size is the old one.
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.1 / len(tokenizer), abs=0.015)
    others = masked[hidden][~replaced]
    assert not set(others.tolist()) & set(tokenizer.all_special_ids)


def test_the_seed_alone_decides(tokenizer):
    ids, mask = encode(tokenizer)
    first = mask_whole_words(ids, mask, tokenizer, generator=seeded(3))
    torch.rand(7)
    again = mask_whole_words(ids, mask, tokenizer, generator=seeded(3))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = mask_whole_words(ids, mask, tokenizer, generator=seeded(4))
    assert not torch.equal(first[1], other[1])


def test_padding_and_rows_without_words_are_left_alone(tokenizer):
    ids, mask = encode(tokenizer)
    labels = mask_whole_words(ids, mask, tokenizer, 1.0, seeded())[1]
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert torch.equal(labels != -100, ~special)
    assert (labels[2] == -100).all()
    hidden = torch.zeros_like(mask)
    assert (mask_whole_words(ids, hidden, tokenizer, 1.0, seeded())[1] == -100).all()


def test_words_are_those_of_the_tokenizer(tokenizer):
    """As `BatchEncoding.word_ids` numbers them: all tokens of a word or none, and a word's share of them."""
    encoded = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    labels = mask_whole_words(encoded["input_ids"], encoded["attention_mask"], tokenizer, 0.3, seeded())[1]
    for row in range(len(SENTENCES)):
        words = encoded.word_ids(row)
        hidden = {word for word, label in zip(words, labels[row].tolist(), strict=True) if label != -100}
        assert None not in hidden
        assert all(label != -100 for word, label in zip(words, labels[row].tolist(), strict=True) if word in hidden)
        count = len({word for word in words if word is not None})
        assert len(hidden) == (min(count, max(1, round(count * 0.3))) if count else 0)


def space_marked(mark: str) -> PreTrainedTokenizerFast:
    tokens = ["<pad>", "<mask>", "<s>", f"{mark}un", "happy", f"{mark}day", ",", f"{mark}", "ness"]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", mask_token="<mask>", bos_token="<s>")


@pytest.mark.parametrize("mark", ["\u0120", "\u2581"])
def test_words_of_vocabularies_that_mark_spaces(mark):
    tokenizer = space_marked(mark)
    ids = torch.tensor([[2, 4, 8, 3, 4, 6, 5]])  # happy + ness after the first token; un + happy; comma; day
    for seed in range(10):
        hidden = mask_whole_words(ids, None, tokenizer, 0.25, seeded(seed))[1][0] != -100
        assert hidden.nonzero().flatten().tolist() in ([1, 2], [3, 4], [5], [6])


def test_what_is_refused(tokenizer):
    ids, mask = encode(tokenizer)
    with pytest.raises(ValueError, match="probability must be above 0 and at most 1, got 0.0"):
        mask_whole_words(ids, mask, tokenizer, 0.0)
    with pytest.raises(ValueError, match="attention_mask must have shape"):
        mask_whole_words(ids, mask[:, 1:], tokenizer)
    without = tiny_tokenizer()
    without.mask_token = None
    with pytest.raises(ValueError, match="tokenizer: got one without a mask token"):
        mask_whole_words(ids, mask, without)
