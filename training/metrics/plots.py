"""Pictures of an evaluation: scores by subset, the confusion matrix of all that is present, risk by coverage."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["check_matplotlib", "plot_risk_coverage", "plot_scores"]


def check_matplotlib() -> None:
    """Raises ValueError saying what to install when matplotlib is not there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('plot: matplotlib is not installed; pip install "triemo[demo]", or give --no_plot.')


def plot_scores(subsets: Mapping[str, Mapping[str, Any]], labels: Sequence[str], title: str, file: Path) -> None:
    """
    Bars of macro F1 and accuracy for each subset beside the confusion matrix of the subset `present`.

    Args:
        subsets: scores by subset, as `evaluate_model` makes them.
        labels: class names in the order of the ids.
        title: what was scored.
        file: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    bars, matrix = figure.subplots(1, 2)
    names = list(subsets)
    places = np.arange(len(names))
    for offset, metric, name in ((0.2, "macro_f1", "macro F1"), (-0.2, "accuracy", "accuracy")):
        values = [subsets[subset][metric] for subset in names]
        drawn = bars.barh(places + offset, values, height=0.38, label=name)
        bars.bar_label(drawn, fmt="%.2f", padding=2)
    bars.set_yticks(places, [f"{name} ({subsets[name]['samples']})" for name in names])
    bars.invert_yaxis()
    bars.set_xlim(0, 1.1)
    bars.legend(loc="lower right")
    bars.set_title(title)

    counts = np.array(subsets["present"]["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    matrix.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    matrix.set_yticks(range(len(labels)), labels)
    matrix.set_xlabel("predicted")
    matrix.set_ylabel("true")
    matrix.set_title("all that is present; shade: share of the true class")
    for row, column in np.ndindex(*counts.shape):
        shade = "white" if shares[row, column] > 0.6 else "black"
        matrix.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade, fontsize=8)

    _write(figure, file)


def plot_risk_coverage(
    curves: Mapping[str, Mapping[str, Sequence[float]]], accuracy: float, title: str, file: Path
) -> None:
    """
    The share of wrong answers as rows with the lowest scores are left unanswered, a line for each subset.

    Args:
        curves: by subset, from `risk_coverage`.
        accuracy: that is aimed at, drawn as a line.
        title: what was scored.
        file: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(curve["coverage"], curve["risk"], label=f"{name} (area {curve['area']:.3f})")
    axes.axhline(1 - accuracy, color="grey", linestyle="--", linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("coverage: share of rows with an answer that is not uncertain")
    axes.set_ylabel("risk: share of these that is wrong")
    axes.set_title(title)
    axes.legend(fontsize=8)
    _write(figure, file)


def _write(figure: Any, file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    part = file.with_name(file.name + ".part")
    FigureCanvasAgg(figure).print_png(str(part))
    part.replace(file)
