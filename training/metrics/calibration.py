"""Calibration: the temperature by which a finished model's logits are divided, and the error before and after."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

__all__ = [
    "FEWEST_ROWS",
    "calibrated_error",
    "calibration_temperature",
    "expected_calibration_error",
    "fit_temperature",
]

# A few rows that happen to be all right ask for a temperature near 0, and every later answer would be "100 %".
FEWEST_ROWS = 50
BINS = 15
LIMITS = (0.25, 10.0)


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """ECE with 15 equal-width bins of the top probability (Guo et al., 2017)."""
    probabilities = torch.softmax(torch.as_tensor(logits).double() / temperature, -1).numpy()
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        abs(right[which == b].mean() - confidence[which == b].mean()) * (which == b).mean() for b in np.unique(which)
    ]
    return float(sum(gaps))


def calibrated_error(logits: np.ndarray, temperature: float = 1.0, draws: int = 200) -> float:
    """
    Expected calibration error that these very probabilities would have if they were right: the mean over labels that
    are drawn from them. It is not zero, since a bin of few rows is never hit exactly, and it grows as rows get fewer
    (Roelofs et al., 2022); an error near it says nothing against a model.
    """
    logits = np.asarray(logits)
    probabilities = torch.softmax(torch.as_tensor(logits).double() / temperature, -1)
    drawn = torch.multinomial(probabilities, draws, replacement=True, generator=torch.Generator().manual_seed(0))
    return float(np.mean([expected_calibration_error(logits, column, temperature) for column in drawn.T.numpy()]))


def fit_temperature(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Temperature that minimises the cross-entropy of logits (N, C) / temperature (Guo et al., 2017).

    `weights` (N,) lets several corpora of different size count alike.
    """
    logits_, labels_ = torch.as_tensor(logits).double(), torch.as_tensor(labels)
    weights_ = torch.ones(len(labels_)).double() if weights is None else torch.as_tensor(weights).double()
    log_temperature = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], lr=0.2, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(logits_ / log_temperature.exp(), labels_, reduction="none")
        loss = (losses * weights_).sum() / weights_.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(log_temperature.detach().exp())


def calibration_temperature(
    logits: Sequence, labels: Sequence[int], weights: Sequence[float] | None = None
) -> float | None:
    """
    Fitted to validation logits (rows, classes) and class ids (Guo et al., 2017), within 0.25 and 10; None when there
    are fewer than `FEWEST_ROWS`. `weights` (rows,) lets corpora of different size count alike.
    """
    if len(labels) < FEWEST_ROWS:
        return None
    fitted = fit_temperature(np.asarray(logits), np.asarray(labels), None if weights is None else np.asarray(weights))
    return round(float(np.clip(fitted, *LIMITS)), 6)
