"""Scores of class predictions, all from scikit-learn, their spread over runs, and thresholds of several labels."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score

__all__ = ["best_thresholds", "classification_scores", "mean_and_deviation", "multi_label_scores"]


def classification_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, unweighted average recall (UAR), weighted and macro F1 of logits (N, C) against labels (N,).

    Macro F1 and UAR are averaged over the classes that occur in `labels`.
    """
    if isinstance(logits, (tuple, list)):
        logits = logits[0]
    predicted = np.asarray(logits).argmax(-1)
    present = np.unique(labels)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "uar": float(recall_score(labels, predicted, labels=present, average="macro", zero_division=0)),
        "weighted_f1": float(f1_score(labels, predicted, average="weighted", zero_division=0)),
        "macro_f1": float(f1_score(labels, predicted, labels=present, average="macro", zero_division=0)),
    }


def best_thresholds(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Per class the threshold on scores (N, C) in 0..1 with the best F1 against multi-hot targets (N, C)."""
    grid = np.linspace(0.02, 0.9, 89)
    thresholds = []
    for column in range(scores.shape[1]):
        chosen, wanted = scores[:, column, None] >= grid, np.asarray(targets)[:, column, None].astype(bool)
        f1 = 2 * (chosen & wanted).sum(0) / np.maximum(chosen.sum(0) + wanted.sum(), 1)
        thresholds.append(grid[int(np.argmax(f1))])
    return np.array(thresholds)


def multi_label_scores(
    logits: np.ndarray, targets: np.ndarray, thresholds: np.ndarray | None = None
) -> dict[str, float]:
    """Macro F1 over all classes of softmax(logits) against multi-hot targets (N, C).

    Without `thresholds` they are fitted to these very targets, which is right for a validation split only.
    """
    scores = torch.softmax(torch.as_tensor(np.asarray(logits)).double(), -1).numpy()
    thresholds = best_thresholds(scores, targets) if thresholds is None else thresholds
    return {"macro_f1": float(f1_score(targets, scores >= thresholds, average="macro", zero_division=0))}


def mean_and_deviation(values: Sequence[float], of_sample: bool = True) -> dict[str, float]:
    """`{"mean", "standard_deviation"}` of a score over runs, the deviation that of a sample or of exactly these."""
    return {"mean": float(np.mean(values)), "standard_deviation": float(np.std(values, ddof=int(of_sample)))}
