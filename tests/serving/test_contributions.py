"""Shapley values against hand-computed ones, and their defining properties."""

import pytest

from triemo.modeling import TriemoConfig
from triemo.serving.reading import contributions, shapley_values, uninformed_score


def test_three_modalities_by_hand():
    """Averages over the six orders in which words, voice and face may come, worked out on paper."""
    values = {
        ("text",): 0.4,
        ("audio",): 0.2,
        ("vision",): 0.1,
        ("text", "audio"): 0.7,
        ("text", "vision"): 0.5,
        ("audio", "vision"): 0.3,
        ("text", "audio", "vision"): 0.9,
    }
    # text: first 0.3 (twice), after audio 0.5, after vision 0.4, last 0.6 (twice): 2.7 / 6.
    # audio: first 0.1 (twice), after text 0.3, after vision 0.2, last 0.4 (twice): 1.5 / 6.
    # vision: first 0.0 (twice), after text 0.1, after audio 0.1, last 0.2 (twice): 0.6 / 6.
    shares = shapley_values(values, empty=0.1)
    assert shares == pytest.approx({"text": 0.45, "audio": 0.25, "vision": 0.1}, abs=1e-12)


def test_two_modalities_and_one():
    pair = {("text",): 0.5, ("vision",): 0.3, ("text", "vision"): 0.9}
    assert shapley_values(pair, empty=0.1) == pytest.approx({"text": 0.5, "vision": 0.3}, abs=1e-12)
    assert shapley_values({("audio",): 0.6}, empty=0.25) == pytest.approx({"audio": 0.35})


def test_axioms_on_an_arbitrary_game():
    """They add up; equals get the same; one who adds nothing gets nothing; more players than three work."""
    weight = {"a": 0.3, "b": 0.3, "c": 0.0, "d": -0.2}

    def value(subset):
        return sum(weight[player] for player in subset) + (0.4 if {"a", "b"} <= set(subset) else 0.0)

    names = tuple(weight)
    subsets = [tuple(n for i, n in enumerate(names) if code >> i & 1) for code in range(1, 16)]
    shares = shapley_values({subset: value(subset) for subset in subsets}, empty=0.0)
    assert shares == pytest.approx({"a": 0.5, "b": 0.5, "c": 0.0, "d": -0.2}, abs=1e-12)
    assert sum(shares.values()) == pytest.approx(value(names), abs=1e-12)


def test_a_missing_subset_is_refused():
    with pytest.raises(ValueError, match="got 2 subsets"):
        shapley_values({("text",): 0.5, ("text", "audio"): 0.5}, empty=0.1)
    with pytest.raises(ValueError, match="got 0 subsets"):
        shapley_values({}, empty=0.1)


def test_contributions_take_the_label_asked_for():
    scores = {("text",): {"joy": 0.9, "fear": 0.1}}
    assert contributions(scores, "fear", 0.5) == pytest.approx({"text": -0.4})


def test_uninformed_score_by_kind_of_problem():
    assert uninformed_score(TriemoConfig(num_labels=7)) == 1 / 7
    assert uninformed_score(TriemoConfig(problem_type="multi_label_classification", num_labels=7)) == 0.5
    with pytest.raises(ValueError, match="regression"):
        uninformed_score(TriemoConfig(num_labels=1))
