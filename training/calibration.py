"""The temperature by which a finished model's logits are divided."""

from collections.abc import Sequence

import numpy as np

from triemo.training.emotion_metrics import fit_temperature

__all__ = ["FEWEST_ROWS", "calibration_temperature"]

# A few rows that happen to be all right ask for a temperature near 0, and every later answer would be "100 %".
FEWEST_ROWS = 50
LIMITS = (0.25, 10.0)


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
