"""What several recipes' tests need."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PIECES = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    *("▁happy ▁h a p y h ▁ 开心 开 心 高兴吗 高 兴 吗 😡 дом д о м ! é".split()),
    "<mask>",
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer of a few pieces in three scripts."""
    scores = {"▁happy": -1.0, "开心": -1.0, "高兴吗": -1.0, "дом": -1.0}
    backend = Tokenizer(models.Unigram([(piece, scores.get(piece, -5.0)) for piece in PIECES], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=16, **names)
