from collections import Counter

import numpy as np
import pytest

from triemo.training.data.composites import SUBSETS, CompositeDataset, draw_composites

# Seven single-label rows a class and modality; text has a row of two labels besides.
LABELS = {name: [[row % 7] for row in range(49)] for name in ("text", "audio", "vision")}
LABELS["text"] = [*LABELS["text"], [0, 6]]


def test_example_depends_on_seed_and_index_alone():
    first, second = (CompositeDataset(LABELS, 50, seed=3) for _ in range(2))
    reversed_order = {index: second[index] for index in reversed(range(50))}
    for index in range(50):
        assert first[index]["rows"] == reversed_order[index]["rows"]
        assert (first[index]["label"] == reversed_order[index]["label"]).all()
    other = CompositeDataset(LABELS, 50, seed=4)
    assert any(first[index]["rows"] != other[index]["rows"] for index in range(50))


def test_joined_examples_carry_one_emotion():
    data = CompositeDataset(LABELS, 500, seed=0)
    seen = Counter()
    for item in data:
        seen[tuple(item["rows"])] += 1
        if len(item["rows"]) > 1:
            emotion = int(item["label"].argmax())
            assert item["label"].max() == 1
            assert all(LABELS[name][row] == [emotion] for name, row in item["rows"].items())
    assert set(seen) == set(SUBSETS)


def test_single_sentences_may_have_several_labels():
    only_text = CompositeDataset(LABELS, 400, seed=0, subset_weights=(1, 0, 0, 0, 0, 0, 0))
    soft = [item["label"] for item in only_text if item["rows"]["text"] == 49]
    assert soft and all((label == np.array([0.5, 0, 0, 0, 0, 0, 0.5], np.float32)).all() for label in soft)


def test_balance_moves_class_shares():
    """36 rows of class 0 against 1 of each other class: shares 36:1 as counted, 6:1 at a half, 1:1 at 0."""
    labels = {name: [[0]] * 36 + [[index] for index in range(1, 7)] for name in ("text", "audio", "vision")}
    for balance, ratio in ((1.0, 36), (0.5, 6), (0.0, 1)):
        shares = CompositeDataset(labels, 1, seed=0, balance=balance).class_shares["audio"]
        assert shares[0] / shares[1] == pytest.approx(ratio)


def test_missing_class_is_named():
    labels = {**LABELS, "vision": [[index] for index in range(6)]}
    with pytest.raises(ValueError, match=r"labels\['vision'\].*'surprise'"):
        CompositeDataset(labels, 1, seed=0)


def test_drawn_composites_are_even_and_repeatable():
    items = draw_composites(LABELS, per_class=3, seed=1)
    assert Counter(int(item["label"].argmax()) for item in items) == dict.fromkeys(range(7), 3)
    for item in items:
        assert {LABELS[name][row][0] for name, row in item["rows"].items()} == {int(item["label"].argmax())}
    assert [item["rows"] for item in items] == [item["rows"] for item in draw_composites(LABELS, 3, seed=1)]


def test_what_a_model_meets_besides_composites():
    pairs = [{"audio": 3, "vision": 10}]
    shares = {"real": 0.2, "contradicting": 0.3, "silent": 0.5, "misheard": 0.5}
    data = CompositeDataset(LABELS, 2000, seed=0, pairs=pairs, **shares)
    items = [data[index] for index in range(2000)]
    assert sum(item["rows"] == pairs[0] for item in items) == pytest.approx(400, abs=60)
    composites = [item for item in items if len(item["rows"]) > 1 and item["rows"] != pairs[0]]
    odd = [item for item in composites if item["label"].max() < 1]
    assert len(odd) == pytest.approx(0.3 * len(composites), rel=0.2)
    for item in odd:
        classes = [LABELS[name][row][0] for name, row in item["rows"].items()]
        expected = np.bincount(classes, minlength=7) / len(classes)
        assert np.allclose(item["label"], expected) and not item.get("silent") and not item.get("misheard")
    for item in composites:
        assert "audio" in item["rows"] or not item.get("silent")
        assert "text" in item["rows"] or not item.get("misheard")
        assert not (set(item["rows"]) == {"text", "audio"} and item.get("silent") and item.get("misheard"))
    assert any(item.get("silent") for item in composites) and any(item.get("misheard") for item in composites)
    assert not any(item.get("silent") or item.get("misheard") for item in items if len(item["rows"]) == 1)


def test_shares_that_are_none_are_refused():
    with pytest.raises(ValueError, match="silent: got 1.5, expected a share of 0 to 1"):
        CompositeDataset(LABELS, 5, seed=0, silent=1.5)
    with pytest.raises(ValueError, match="real: got 0.1 without a pair"):
        CompositeDataset(LABELS, 5, seed=0, real=0.1)
