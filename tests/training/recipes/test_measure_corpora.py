"""What the last stage of a checkpoint of many corpora measures, on answers whose scores are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from triemo.training.corpora.labels import EMOTIONS, label2id
from triemo.training.data.waveforms import RATE
from triemo.training.recipes import measure_corpora
from triemo.training.recipes.measure_corpora import (
    Rows,
    fit_min_scores,
    fit_temperatures,
    joined_voices,
    selective_figures,
    speakers,
    text_figures,
)
from triemo.training.recipes.voice_means import Clip


def rows(classes: list[list[str]], answers: list[str], sure: float = 9.0) -> Rows:
    """Targets of these names, and answers that are sure of one class each."""
    targets = np.array([[name in row for name in EMOTIONS] for row in classes])
    logits = np.array([[sure * (name == answer) for name in EMOTIONS] for answer in answers])
    return Rows(logits, targets, [str(row) for row in range(len(answers))])


def test_brighter_scores_emotions_and_not_the_sentences_without_one():
    truth = [["joy"], ["anger"], ["neutral"], ["fear", "sadness"], ["surprise"]]
    right = rows(truth, ["joy", "anger", "joy", "fear", "surprise"])
    found = text_figures("brighter/eng", right, right)
    # joy: one of two, 2/3; anger, fear and surprise 1; sadness is never chosen: 0. Neutral and disgust have no class.
    assert found["multi_label"]["macro_f1"] == pytest.approx((2 / 3 + 3 + 0) / 5)
    assert found["single_label"]["accuracy"] == 0.75
    with_neutral = text_figures("xed/en", right, right)
    assert with_neutral["multi_label"]["macro_f1"] == pytest.approx((2 / 3 + 3 + 0 + 0) / 6)


def test_thresholds_come_from_validation():
    truth = [["joy", "anger"], ["joy"], ["anger"]]
    validation, test = rows(truth, ["joy", "joy", "anger"]), rows(truth, ["joy", "joy", "anger"], sure=0.5)
    found = text_figures("goemotions", validation, test)
    assert found["thresholds"]["joy"] == text_figures("goemotions", validation, validation)["thresholds"]["joy"]
    one = text_figures("meld", rows([["joy"], ["anger"]], ["joy", "joy"]), rows([["joy"], ["anger"]], ["joy", "joy"]))
    assert one["accuracy"] == 0.5 and "thresholds" not in one


def test_a_small_corpus_counts_as_much_as_a_large_one_in_the_temperature():
    """The large one is right as often as it is sure, the small one is sure and wrong."""
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(7), 4000)
    large_ids = np.array([random.choice(7, p=p) for p in probabilities])
    large = Rows(np.log(probabilities), np.eye(7, dtype=bool)[large_ids], [str(i) for i in range(4000)])
    wrong = Rows(
        np.eye(7)[np.zeros(200, int)] * 6, np.eye(7, dtype=bool)[random.integers(7, size=200)], ["a", "b"] * 100
    )

    def split(audio):
        one = {"own": large}
        return SimpleNamespace(
            subsets={"text+audio": large}, single=lambda: (("text", one), ("audio", audio), ("vision", one))
        )

    alone, both = fit_temperatures(split({"own": large})), fit_temperatures(split({"own": large, "small": wrong}))
    assert alone["audio"] == pytest.approx(1.0, abs=0.05) and both["audio"] > 2
    least = fit_min_scores(split({"own": large, "small": wrong}), both)
    assert set(least) <= set(both) and all(0 <= value < 1 for value in least.values())
    scored = selective_figures(split({"own": large}), alone, {"audio": 0.5})
    assert scored["audio"]["selective"]["coverage"] < 1 and scored["audio"]["selective"]["accuracy"] > 0.5
    assert "selective" not in scored["text"] and scored["text"]["risk_coverage"]["coverage"][-1] == 1
    assert both["text"] == alone["text"] and set(both) == {"text", "audio", "vision", "text+audio"}


def test_joined_voices_are_cut_at_both_lengths(monkeypatch):
    """A reader that says joy to everything above five seconds."""
    lengths = []

    def model(input_features, audio_attention_mask):
        seconds = int(audio_attention_mask.sum()) / 100
        lengths.append(round(seconds))
        return SimpleNamespace(logits=torch.eye(7)[label2id["joy" if seconds > 5 else "anger"]][None])

    model.device = torch.device("cpu")
    monkeypatch.setattr(measure_corpora, "load_audio", lambda path, rate: np.full(3 * RATE, 0.1, np.float32))
    clips = [
        Clip(f"{label}{n}.wav", "ravdess", "test", label, "21", 3.0) for label in ("joy", "anger") for n in range(5)
    ]
    found = joined_voices(model, clips)
    assert found == {"of": 2, "right_at_4_s": 1, "right_at_12_s": 1}
    assert sorted(lengths) == [4, 4, 12, 12]


def test_speakers_by_split():
    clips = [Clip("a", "casia", "train", "joy", speaker, 1.0) for speaker in ("2", "1", "2")]
    assert speakers([*clips, Clip("b", "casia", "test", "joy", "3", 1.0)]) == {
        "casia": {"train": ["1", "2"], "test": ["3"]}
    }
