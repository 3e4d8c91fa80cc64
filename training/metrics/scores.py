"""Scores of emotion predictions as an `evaluate.Metric`, which needs no network, and as plain calls.

Shapes: N samples, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support, recall_score

from triemo.training.metrics.calibration import expected_calibration_error

__all__ = [
    "EmotionMetric",
    "best_thresholds",
    "classification_scores",
    "lower_is_better",
    "mean_and_deviation",
    "multi_label_scores",
    "rounded",
    "scores_for_trainer",
]

_DESCRIPTION = """
Accuracy, unweighted average recall (UAR), weighted and macro F1, precision, recall, F1 and support of each class,
confusion matrix and expected calibration error (Guo et al., 2017, 15 bins) of emotion predictions, and the same by
subgroup. Multi-label: macro, micro and samples F1. Regression: mean absolute error, root mean square error, Pearson's
r and the concordance correlation coefficient (Lin, 1989).
"""
_INPUTS = """
Args:
    predictions: logits (classes,) of each sample; for regression the values (targets,).
    references: class id; multi-hot (classes,); or values (targets,) of each sample.
    groups: a name for each sample, such as the speaker's gender; "" where unknown.
To `compute` besides:
    labels: class names in the order of the ids.
    temperature: of the calibration; logits are divided by it.
    threshold: probability from which on a label of several counts as chosen.
"""


class EmotionMetric(evaluate.Metric):
    """
    `config_name` is the problem type: `single_label_classification` (the default), `multi_label_classification` or
    `regression`. In several processes give `num_process`, `process_id` and a common `experiment_id`.

    Example:
        >>> metric = EmotionMetric()
        >>> metric.add_batch(predictions=[[2.0, 0.0], [1.0, 0.0]], references=[0, 1], groups=["f", "m"])
        >>> metric.compute(labels=["joy", "anger"])["accuracy"]
        0.5
    """

    def _info(self) -> evaluate.MetricInfo:
        name = self.config_name
        if name in (None, "default"):
            name = "single_label_classification"
        vector = datasets.Sequence(datasets.Value("float64"))
        references = {
            "single_label_classification": datasets.Value("int64"),
            "multi_label_classification": vector,
            "regression": vector,
        }
        if name not in references:
            raise ValueError(f"config_name: got {name!r}, expected one of {', '.join(references)}.")
        features = {"predictions": vector, "references": references[name], "groups": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(
        self,
        predictions: Sequence,
        references: Sequence,
        groups: Sequence[str],
        labels: Sequence[str] | None = None,
        temperature: float = 1.0,
        threshold: float = 0.5,
    ) -> dict[str, Any]:
        logits, targets = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if logits.ndim != 2:
            raise ValueError(f"predictions: got shape {logits.shape}, expected (samples, classes).")
        names = list(labels) if labels is not None else [str(index) for index in range(logits.shape[1])]
        if len(names) != logits.shape[1]:
            raise ValueError(f"labels: got {len(names)} names, expected {logits.shape[1]}, as predictions have.")
        if self.config_name == "regression":
            score, brief = _regression_scores, _regression_scores
        elif self.config_name == "multi_label_classification":
            score = brief = lambda x, y, n: _multi_label_scores(x, y, n, threshold)  # noqa: E731
        else:
            score = lambda x, y, n: _class_scores(x, y, n, temperature)  # noqa: E731
            brief = lambda x, y, n: classification_scores(x, y)  # noqa: E731
        result = {"samples": len(targets), **score(logits, targets, names)}
        members = np.asarray(groups, dtype=str)
        found = [name for name in np.unique(members) if name]
        if found:
            result["groups"] = {
                str(name): {"samples": int((members == name).sum())}
                | brief(logits[members == name], targets[members == name], names)
                for name in found
            }
        return result


def _class_scores(logits: np.ndarray, targets: np.ndarray, names: list[str], temperature: float) -> dict[str, Any]:
    ids = list(range(len(names)))
    predicted = logits.argmax(-1)
    columns = precision_recall_fscore_support(targets, predicted, labels=ids, zero_division=0)
    per_class = {
        name: dict(zip(("precision", "recall", "f1", "support"), map(float, values), strict=True))
        for name, *values in zip(names, *columns, strict=True)
    }
    return classification_scores(logits, targets) | {
        "expected_calibration_error": expected_calibration_error(logits, targets, temperature),
        "per_class": per_class,
        "confusion_matrix": confusion_matrix(targets, predicted, labels=ids).tolist(),  # [truth][prediction]
    }


def _multi_label_scores(logits: np.ndarray, targets: np.ndarray, names: list[str], threshold: float) -> dict[str, Any]:
    # sigmoid(x) >= t, without an overflow far from zero
    chosen = logits >= np.log(threshold / (1 - threshold))
    wanted = targets >= 0.5
    columns = precision_recall_fscore_support(wanted, chosen, average=None, zero_division=0)
    return {
        "accuracy": float((chosen == wanted).all(-1).mean()),
        "macro_f1": float(f1_score(wanted, chosen, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(wanted, chosen, average="micro", zero_division=0)),
        "weighted_f1": float(f1_score(wanted, chosen, average="weighted", zero_division=0)),
        "per_class": {
            name: dict(zip(("precision", "recall", "f1", "support"), map(float, values), strict=True))
            for name, *values in zip(names, *columns, strict=True)
        },
    }


def _regression_scores(values: np.ndarray, targets: np.ndarray, names: list[str]) -> dict[str, Any]:
    per_target = {}
    for column, name in enumerate(names):
        x, y = values[:, column], targets[:, column].astype(float)
        covariance = ((x - x.mean()) * (y - y.mean())).mean()
        product, spread = x.std() * y.std(), x.var() + y.var() + (x.mean() - y.mean()) ** 2
        per_target[name] = {
            "mae": float(np.abs(x - y).mean()),
            "rmse": float(np.sqrt(((x - y) ** 2).mean())),
            "pearson": float(covariance / product) if product > 0 else 0.0,
            "ccc": float(2 * covariance / spread) if spread > 0 else 0.0,
        }
    means = {key: float(np.mean([scores[key] for scores in per_target.values()])) for key in ("mae", "rmse")}
    means |= {key: float(np.mean([scores[key] for scores in per_target.values()])) for key in ("pearson", "ccc")}
    return means | ({"per_target": per_target} if len(names) > 1 else {})


def scores_for_trainer(logits: Any, targets: np.ndarray, problem_type: str, labels: Sequence[str]) -> dict[str, float]:
    """
    The scalar scores of a validation pass. Of soft targets (samples, classes) only rows of one class are scored, by
    class; if there is none, no score is returned.
    """
    values = np.asarray(logits[0] if isinstance(logits, (tuple, list)) else logits, dtype=np.float64)
    targets = np.asarray(targets)
    if problem_type == "single_label_classification" and targets.ndim == 2:
        alone = targets.max(-1) > 0.999
        values, targets = values[alone], targets[alone].argmax(-1)
    if problem_type == "regression" and targets.ndim == 1:
        targets = targets[:, None]
    if not len(targets):
        return {}
    metric = EmotionMetric(problem_type, keep_in_memory=True)
    scores: Mapping[str, Any] = metric.compute(
        predictions=values, references=targets, groups=[""] * len(targets), labels=labels
    )
    return {name: float(value) for name, value in scores.items() if isinstance(value, (int, float))}


def lower_is_better(metric: str) -> bool:
    """Whether a metric is an error, so that the best model has the lowest."""
    return metric.removeprefix("eval_") in {"loss", "mae", "rmse", "expected_calibration_error"}


# Plain calls -------------------------------------------------------------------------------------------------


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


def multi_label_scores(
    logits: np.ndarray, targets: np.ndarray, thresholds: np.ndarray | None = None
) -> dict[str, float]:
    """Macro F1 of softmax(logits) against multi-hot targets (N, C), over the classes that occur in `targets`.

    Without `thresholds` they are fitted to these very targets, which is right for a validation split only.
    """
    scores = torch.softmax(torch.as_tensor(np.asarray(logits)).double(), -1).numpy()
    thresholds = best_thresholds(scores, targets) if thresholds is None else thresholds
    present = np.flatnonzero(np.asarray(targets).any(0))
    return {
        "macro_f1": float(f1_score(targets, scores >= thresholds, labels=present, average="macro", zero_division=0))
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


def mean_and_deviation(values: Sequence[float], of_sample: bool = True) -> dict[str, float]:
    """`{"mean", "standard_deviation"}` of a score over runs, the deviation that of a sample or of exactly these."""
    return {"mean": float(np.mean(values)), "standard_deviation": float(np.std(values, ddof=int(of_sample)))}


def rounded(values: Any) -> Any:
    """Nested scores with six decimals: beyond them the same run on other hardware differs."""
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    return round(values, 6) if isinstance(values, float) else values
