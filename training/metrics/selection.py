"""Which answers to give: the score below which one is uncertain, and what accuracy the others then have.

Risk and coverage are those of El-Yaniv and Wiener (2010): of the share of rows that are answered (coverage), the share
that is wrong (risk). A row is answered when its best score reaches a threshold. Shapes: N rows, C classes.
"""

from typing import Any

import numpy as np
import torch

from triemo.training.metrics.calibration import FEWEST_ROWS

__all__ = ["pick_min_score", "risk_coverage", "selective_accuracy"]

POINTS = 20  # of the curve that is kept


def pick_min_score(
    logits: np.ndarray, labels: np.ndarray, accuracy: float = 0.9, weights: np.ndarray | None = None
) -> dict[str, float] | None:
    """
    The lowest `min_score` for which the rows that reach it are right in `accuracy` of the cases, so that as many as
    possible are answered; None where no threshold that leaves `FEWEST_ROWS` rows does that.

    Args:
        logits: (N, C) of validation rows, divided by the temperature.
        labels: (N,) class ids.
        accuracy: of the rows that are answered.
        weights: (N,) lets corpora of different size count alike.

    Returns:
        `min_score`, half way to the next lower score, and the `accuracy` and `coverage` that it gives on these rows.
    """
    scores, coverage, right, counts = _curve(logits, labels, weights)
    good = np.flatnonzero((right >= accuracy) & (counts >= FEWEST_ROWS))
    if not len(good):
        return None
    last = int(good[-1])
    lower = scores[last + 1] if last + 1 < len(scores) else 0.0
    threshold = 0.0 if last + 1 == len(scores) else (scores[last] + lower) / 2
    return {"min_score": float(threshold), "accuracy": float(right[last]), "coverage": float(coverage[last])}


def risk_coverage(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """
    The curve of the risk as rows with the lowest scores are left unanswered.

    Returns:
        `area`, under the curve (AURC: the mean risk over all coverages; 0 is perfect); `coverage`, `risk` and
        `min_score` at twenty points, the last of which answers every row.
    """
    scores, coverage, right, _ = _curve(logits, labels, None)
    risk = 1 - right
    steps = np.diff(coverage, prepend=0.0)
    wanted = np.linspace(1 / POINTS, 1, POINTS)
    places = np.unique(np.minimum(np.searchsorted(coverage, wanted - 1e-9), len(coverage) - 1))
    columns = {"coverage": coverage, "risk": risk, "min_score": scores}
    curve = {name: [round(float(values[place]), 6) for place in places] for name, values in columns.items()}
    return {"area": float(risk @ steps), **curve}


def selective_accuracy(logits: np.ndarray, labels: np.ndarray, min_score: float) -> dict[str, float | None]:
    """`coverage`, the share of rows whose best score reaches `min_score`, and their `accuracy`, None without any."""
    best, is_right = _best(logits, labels)
    answered = best >= min_score
    accuracy = float(is_right[answered].mean()) if answered.any() else None
    return {"min_score": min_score, "coverage": float(answered.mean()), "accuracy": accuracy}


def _best(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the best score of each row, and whether its class is right."""
    probabilities = torch.softmax(torch.as_tensor(np.asarray(logits)).double(), -1).numpy()
    return probabilities.max(-1), probabilities.argmax(-1) == np.asarray(labels)


def _curve(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each score, the highest first: it, and the coverage, accuracy and number of the rows that reach it."""
    best, is_right = _best(logits, labels)
    shares = np.ones(len(best)) if weights is None else np.asarray(weights, dtype=float)
    order = np.argsort(-best, kind="stable")
    best, is_right, shares = best[order], is_right[order], shares[order]
    ends = np.append(np.flatnonzero(np.diff(best)), len(best) - 1)  # rows of one score are answered together
    answered = np.cumsum(shares)[ends]
    return best[ends], answered / shares.sum(), np.cumsum(shares * is_right)[ends] / answered, ends + 1
