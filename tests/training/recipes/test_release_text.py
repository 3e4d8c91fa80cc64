"""The stage of the text tower on a tiny random encoder and made-up sentences."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from triemo.training.corpora.registry import CORPORA
from triemo.training.recipes import text
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.text import PooledClassifier, load_texts, text_scores

CHOSEN = {"happy": "joy", "开心": "joy", "😡": "anger", "高兴吗": "surprise", "é!": "neutral"}


@pytest.fixture
def encoder(tokenizer, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, pad_token_id=1,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.fixture
def corpora(monkeypatch):
    """One corpus of one label, and one of several in two languages, in place of the registry's."""

    def load(name, root, **options):
        words = list(CHOSEN)
        if name == "brighter":
            words = [words[place] for place in ((0, 2) if options["languages"] == ["eng"] else (1, 3))]
        rows = {"text": words * 6, "label": [CHOSEN[word] for word in words] * 6}
        if name == "brighter":
            rows["label"] = [[label, "fear"] if place == 0 else [label] for place, label in enumerate(rows["label"])]
        return {split: rows for split in ("train", "validation", "test")}

    monkeypatch.setattr(text, "load_corpus", load)


SETTINGS = {"epochs": 2, "learning_rate": 1e-2, "bf16": False, "max_tokens": 8}


def test_stage_prunes_trains_resumes_and_hands_over(encoder, corpora, tmp_path):
    run = ReleaseRun(output=str(tmp_path), seed=0)
    settings = SETTINGS | {
        "encoder": encoder,
        "corpora": ["smp2020", "brighter/eng", "brighter/chn"],
        "pieces": 50,
        "frozen_layers": 1,
        "epoch_rows": 64,
        "corpus_power": 0.5,
        "label_smoothing": 0.1,
        "single_label_measure": "macro_f1",
        "batch_size": 8,
    }
    report = text.train_text(run, "text", **settings)
    scores = report["validation"]
    assert {"eval_smp2020_macro_f1", "eval_brighter/eng_macro_f1", "eval_brighter/chn_macro_f1"} <= set(scores)
    kept = AutoTokenizer.from_pretrained(tmp_path / "text")
    assert len(kept) == report["vocabulary"] < len(AutoTokenizer.from_pretrained(encoder))
    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (encoder, tmp_path / "text"))
    assert len(after["embeddings.word_embeddings.weight"]) == len(kept)
    assert torch.equal(after["encoder.layer.0.output.dense.weight"], before["encoder.layer.0.output.dense.weight"])
    assert not torch.equal(after["encoder.layer.1.output.dense.weight"], before["encoder.layer.1.output.dense.weight"])
    again = text.train_text(run, "text", **settings)
    assert again["validation"]["eval_score"] == scores["eval_score"]
    more = text.train_text(run, "more", **{**settings, "start": "text", "learning_rate": 0.0})
    assert more["validation"]["eval_score"] == pytest.approx(scores["eval_score"])


def test_sentences_of_each_once_are_the_default(encoder, corpora, tmp_path):
    run = ReleaseRun(output=str(tmp_path), seed=0)
    report = text.train_text(run, "text", encoder=encoder, corpora=["smp2020"], **SETTINGS)
    assert "eval_smp2020_weighted_f1" in report["validation"] and report["corpora"] == ["smp2020"]


def test_open_licences_leave_corpora_out(encoder, corpora, tmp_path):
    run = ReleaseRun(output=str(tmp_path), seed=0, open_licences=True)
    assert run.usable(["smp2020/usual", "brighter/chn", "goemotions"]) == ["brighter/chn", "goemotions"]
    report = text.train_text(run, "text", encoder=encoder, corpora=["smp2020", "brighter/eng"], **SETTINGS)
    assert report["corpora"] == ["brighter/eng"]
    with pytest.raises(ValueError, match="open_licences: got none of smp2020 that may be used"):
        text.train_text(run, "none", encoder=encoder, corpora=["smp2020"], **SETTINGS)


def test_licences_that_forbid_commercial_use_are_marked():
    assert all("NC" not in corpus.licence for corpus in CORPORA.values() if corpus.commercial)
    assert all(not corpus.commercial for corpus in CORPORA.values() if "research" in corpus.licence)
    assert {name for name, corpus in CORPORA.items() if corpus.commercial} == {
        *("goemotions", "meld", "xed", "brighter", "cped", "crema_d", "javanese")
    }


def test_parts_that_are_none_are_refused(corpora):
    with pytest.raises(ValueError, match="got 'meld/en', expected a part only of xed, brighter, smp2020"):
        load_texts(None, "meld/en", "train")


def test_more_frozen_layers_than_there_are_are_refused(encoder):
    with pytest.raises(ValueError, match="frozen_layers: got 3, expected 0 to 2"):
        PooledClassifier(AutoModel.from_pretrained(encoder), 7, frozen_layers=3)


def test_smoothing_is_of_training_alone(encoder):
    classifier = PooledClassifier(AutoModel.from_pretrained(encoder), 7, label_smoothing=0.2).eval()
    inputs = {"input_ids": torch.tensor([[0, 4, 2]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    target = torch.eye(7)[:1]
    output = classifier(labels=target, **inputs)
    log = output["logits"].detach().log_softmax(-1)[0]
    assert float(output["loss"]) == pytest.approx(-float(log[0]))
    classifier.train()
    for module in classifier.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    classifier.encoder.config.attention_probs_dropout_prob = 0.0
    assert float(classifier(labels=target, **inputs)["loss"]) == pytest.approx(
        float(-(0.8 * log[0] + 0.2 * log.mean())), abs=1e-4
    )


def test_the_measure_of_one_label_is_chosen():
    targets, logits = np.eye(7)[[0, 0, 0, 1]], np.eye(7)[[0, 0, 0, 0]] * 9
    assert text_scores(logits, targets, {"one": 4}, "macro_f1")["score"] == pytest.approx((6 / 7) / 2)
