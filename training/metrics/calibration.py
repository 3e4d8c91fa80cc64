"""Calibration: the temperature by which a finished model's logits are divided, and the error before and after."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from sklearn.model_selection import GroupKFold

from triemo.training.data.columns import GROUP_COLUMNS

__all__ = [
    "FEWEST_ROWS",
    "calibrated_error",
    "calibration_temperature",
    "expected_calibration_error",
    "fit_temperature",
    "groups_of",
]

# A few rows that happen to be all right ask for a temperature near 0, and every later answer would be "100 %".
FEWEST_ROWS = 50
BINS = 15
FOLDS = 5
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
    logits: Sequence, labels: Sequence[int], groups: Sequence[str], weights: Sequence[float] | None = None
) -> float | None:
    """
    Fitted to validation logits (rows, classes) and class ids (Guo et al., 2017), within 0.25 and 10, where that helps
    rows that it was not fitted to: over folds of whole groups, five at most, a temperature fitted to the others has to
    lower the cross-entropy by more than the standard error of that difference (the rule of one standard error, Breiman
    et al., 1984: the simpler model unless another is clearly better). Else 1; None with fewer than `FEWEST_ROWS` rows.

    Args:
        logits, labels: of the validation rows.
        groups: (rows,) what no fold divides, such as the speaker; see `groups_of`.
        weights: (rows,) lets corpora of different size count alike.
    """
    if len(labels) < FEWEST_ROWS:
        return None
    x, y = np.asarray(logits), np.asarray(labels)
    w = np.ones(len(y)) if weights is None else np.asarray(weights)
    return _fit(x, y, w) if _helps(x, y, w, np.asarray(groups)) else 1.0


def groups_of(parts: Iterable[Dataset]) -> list[str]:
    """Speaker, or else dialogue, of every row of tables one after the other; a row without is a group of its own."""
    found: list[str] = []
    for number, rows in enumerate(parts):
        column = next((name for name in GROUP_COLUMNS if name in rows.column_names), None)
        names = [None] * len(rows) if column is None else rows[column][:]
        found += [f"{number}: {name}" if name else f"{number}, row {row}" for row, name in enumerate(names)]
    return found


def _helps(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> bool:
    folds = min(FOLDS, len(set(groups)))
    if folds < 2:
        return False
    gains = np.zeros(len(labels))
    for rest, part in GroupKFold(folds).split(logits, labels, groups):
        temperature = _fit(logits[rest], labels[rest], weights[rest])
        x, y = torch.as_tensor(logits[part]).double(), torch.as_tensor(labels[part])
        before, after = (F.cross_entropy(x / t, y, reduction="none").numpy() for t in (1.0, temperature))
        gains[part] = before - after
    shares = weights / weights.sum()
    mean = float(shares @ gains)
    return mean > float(np.sqrt(shares**2 @ (gains - mean) ** 2))


def _fit(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    return round(float(np.clip(fit_temperature(logits, labels, weights), *LIMITS)), 6)
