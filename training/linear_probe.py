"""Linear probe: a logistic regression on frozen embeddings, for each subset of the modalities."""

import logging
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from triemo.training.class_scores import classification_scores
from triemo.training.composites import SUBSETS
from triemo.training.embeddings import Embedded

__all__ = ["linear_probe_scores"]

logger = logging.getLogger(__name__)

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse of the regularisation, as scikit-learn's C


def linear_probe_scores(
    train: Embedded, validation: Embedded | None, test: Embedded, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """
    Scores on `test` by subset (`"audio"`, `"text+audio"`, ...), on rows that have all of it and one class; vectors of
    several modalities are joined. Classes weigh alike. The strength of the regularisation is the one with the best UAR
    on `validation`, 1.0 without one. A subset without rows, or with one class in training, is left out.
    """
    result = {}
    for subset in SUBSETS:
        parts = [None if part is None else _features(part, subset) for part in (train, validation, test)]
        (x, y), chosen_on, (x_test, y_test) = parts  # type: ignore[misc]
        known = np.isin(y_test, y)
        if len(set(y)) < 2 or not known.any():
            continue
        best, best_uar, probe = STRENGTHS[-1], -1.0, None
        has_validation = chosen_on is not None and bool(np.isin(chosen_on[1], y).any())
        for strength in STRENGTHS if has_validation else STRENGTHS[-1:]:
            fitted = make_pipeline(
                StandardScaler(),
                LogisticRegression(C=strength, max_iter=2000, class_weight="balanced", random_state=seed),
            ).fit(x, y)
            uar = _scores(fitted, *chosen_on)["uar"] if has_validation and chosen_on is not None else 0.0
            if uar > best_uar:
                best, best_uar, probe = strength, uar, fitted
        left = int((~known).sum())
        if left:
            logger.warning(f"{'+'.join(subset)}: {left} test rows are of classes that training lacks; not scored.")
        scores = _scores(probe, x_test[known], y_test[known])
        result["+".join(subset)] = {"train_samples": len(y), "samples": int(known.sum()), "strength": best} | scores
    return result


def _features(part: Embedded, subset: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(n, sum of P) and class names (n,) of the rows that have the subset and one class."""
    rows, vectors = part.pairs(subset)
    if not len(rows):
        return np.empty((0, 0)), np.empty(0, dtype=object)
    labelled = part.labels[rows] != ""
    return np.concatenate(vectors, axis=1)[labelled], part.labels[rows][labelled]


def _scores(probe: Any, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    names = list(probe.classes_)
    known = np.isin(labels, names)
    targets = np.array([names.index(label) for label in labels[known]])
    return classification_scores(probe.predict_log_proba(features[known]), targets)
