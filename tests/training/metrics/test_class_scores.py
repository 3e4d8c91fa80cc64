import numpy as np
import pytest

from triemo.training.metrics.scores import best_thresholds, classification_scores, multi_label_scores


def test_scores_by_hand():
    """Labels 0 0 1 2, predictions 0 1 1 1: recalls 1/2, 1, 0; F1 2/3, 1/2, 0."""
    scores = classification_scores(np.eye(3)[[0, 1, 1, 1]], np.array([0, 0, 1, 2]))
    assert scores["accuracy"] == pytest.approx(0.5)
    assert scores["uar"] == pytest.approx(0.5)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert scores["weighted_f1"] == pytest.approx((2 * 2 / 3 + 1 / 2) / 4)


def test_class_that_does_not_occur_is_left_out_of_uar():
    assert classification_scores(np.eye(3)[[0, 2]], np.array([0, 0]))["uar"] == pytest.approx(0.5)


def test_thresholds_separate_what_can_be_separated():
    scores = np.array([[0.1, 0.6], [0.2, 0.5], [0.3, 0.2], [0.8, 0.1]])
    targets = np.array([[0, 1], [0, 1], [1, 0], [1, 0]])
    low, high = best_thresholds(scores, targets)
    assert 0.2 < low <= 0.3
    assert 0.2 < high <= 0.5


def test_multi_label_scores_use_the_given_thresholds():
    logits = np.log(np.array([[0.6, 0.4], [0.2, 0.8]]))
    targets = np.array([[True, True], [False, True]])
    assert multi_label_scores(logits, targets, np.array([0.5, 0.3]))["macro_f1"] == pytest.approx(1)
    # At 0.5 the second class is missed once: F1 2/3.
    assert multi_label_scores(logits, targets, np.array([0.5, 0.5]))["macro_f1"] == pytest.approx(5 / 6)
