"""The score below which an answer is uncertain, by hand and by counting."""

import numpy as np
import pytest

from triemo.training.metrics.calibration import FEWEST_ROWS
from triemo.training.metrics.plots import plot_risk_coverage
from triemo.training.metrics.selection import pick_min_score, risk_coverage, selective_accuracy


def logits_of(scores: list[float]) -> np.ndarray:
    """Of two classes, the first with these probabilities."""
    scores = np.array(scores)
    return np.stack([np.log(scores), np.log(1 - scores)], axis=1)


def test_curve_by_hand():
    """Scores .9 right, .8 wrong, .8 right, .6 wrong: risks 0, 1/3, 1/2 at coverages 1/4, 3/4, 1."""
    curve = risk_coverage(logits_of([0.8, 0.9, 0.6, 0.8]), np.array([1, 0, 1, 0]))
    assert curve["coverage"] == [0.25, 0.75, 1.0]
    assert curve["risk"] == pytest.approx([0, 1 / 3, 0.5], abs=1e-6)
    assert curve["min_score"] == pytest.approx([0.9, 0.8, 0.6], abs=1e-6)
    assert curve["area"] == pytest.approx(0 * 0.25 + 1 / 3 * 0.5 + 0.5 * 0.25)


def test_least_score_reaches_the_accuracy_with_the_most_rows():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.5, 1, 2000)
    labels = (rng.random(2000) > scores).astype(int)  # calibrated: the best class is right as often as it says
    picked = pick_min_score(logits_of(scores), labels, 0.9)
    assert picked["min_score"] == pytest.approx(0.8, abs=0.05)  # of uniform scores from there on the mean is .9
    found = selective_accuracy(logits_of(scores), labels, picked["min_score"])
    assert found == pytest.approx({**picked})
    assert found["accuracy"] >= 0.9
    for lower in np.sort(scores[scores < picked["min_score"]])[::-7]:
        assert selective_accuracy(logits_of(scores), labels, lower)["accuracy"] < 0.9
    assert pick_min_score(logits_of(scores), labels, 0.5)["min_score"] == 0.0  # every row may be answered


def test_too_few_rows_pick_nothing():
    scores = [0.99] * (FEWEST_ROWS - 1) + [0.6] * 60
    labels = np.array([0] * (FEWEST_ROWS - 1) + [1] * 60)
    assert pick_min_score(logits_of(scores), labels, 0.9) is None
    more = pick_min_score(logits_of([0.99, *scores]), np.append([0], labels), 0.9)
    assert more["min_score"] == pytest.approx((0.99 + 0.6) / 2) and more["accuracy"] == 1.0
    assert selective_accuracy(logits_of(scores), labels, 0.995)["accuracy"] is None


def test_weights_let_corpora_count_alike():
    """Sixty right rows of one corpus and six hundred of another, wrong in a third, below them."""
    scores = [0.9] * 60 + [0.8] * 600
    labels = np.array([0] * 60 + [0, 0, 1] * 200)
    assert pick_min_score(logits_of(scores), labels, 0.8)["coverage"] == pytest.approx(60 / 660)
    weights = np.array([1 / 60] * 60 + [1 / 600] * 600)
    assert pick_min_score(logits_of(scores), labels, 0.8, weights)["coverage"] == pytest.approx(1)


def test_the_figure_is_written_whole(tmp_path):
    curve = risk_coverage(logits_of([0.8, 0.9, 0.6, 0.8]), np.array([1, 0, 1, 0]))
    plot_risk_coverage({"text": curve, "text+audio": curve}, 0.9, "calls", tmp_path / "risk.png")
    assert (tmp_path / "risk.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1
