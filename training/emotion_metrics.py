"""Scores of emotion predictions, all from scikit-learn, and calibration."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score, recall_score

__all__ = [
    "best_thresholds",
    "calibrated_error",
    "classification_scores",
    "expected_calibration_error",
    "fit_temperature",
    "multi_label_scores",
]


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


def expected_calibration_error(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0, bins: int = 15
) -> float:
    """ECE with equal-width bins of the top probability (Guo et al., 2017), 15 bins by default."""
    probabilities = torch.softmax(torch.as_tensor(logits).double() / temperature, -1).numpy()
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(right[which == b].mean() - confidence[which == b].mean()) * (which == b).mean() for b in np.unique(which)
    ]
    return float(sum(gaps))


def calibrated_error(logits: np.ndarray, temperature: float = 1.0, seed: int = 0, draws: int = 200) -> float:
    """
    Expected calibration error that these very probabilities would have if they were right: the mean over labels that
    are drawn from them. It is not zero, since a bin of few rows is never hit exactly, and it grows as rows get fewer
    (Roelofs et al., 2022); an error near it says nothing against a model.
    """
    logits = np.asarray(logits)
    probabilities = torch.softmax(torch.as_tensor(logits).double() / temperature, -1)
    drawn = torch.multinomial(probabilities, draws, replacement=True, generator=torch.Generator().manual_seed(seed))
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
