import numpy as np
import pytest
import torch
from datasets import Dataset

from triemo.training.metrics.calibration import (
    FEWEST_ROWS,
    calibrated_error,
    calibration_temperature,
    expected_calibration_error,
    fit_temperature,
    groups_of,
)


def test_calibration_error_by_hand():
    """Two predictions at 0.75, one right: gap 0.25. Two at 0.95, both right: gap 0.05."""
    probabilities = np.array([[0.75, 0.25], [0.75, 0.25], [0.95, 0.05], [0.95, 0.05]])
    error = expected_calibration_error(np.log(probabilities), np.array([0, 1, 0, 0]))
    assert error == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)


def test_error_of_calibrated_probabilities_shrinks_with_rows():
    """One bin of confidence 0.5: the gap's mean is that of |hits / N - 0.5|, sqrt(1 / (2 pi N)) for many rows N."""
    for rows in (100, 10000):
        found = calibrated_error(np.zeros((rows, 2)), draws=500)
        assert found == pytest.approx((1 / (2 * np.pi * rows)) ** 0.5, rel=0.1)
    assert calibrated_error(np.array([[0.0, 100.0]] * 50)) == pytest.approx(0)


def test_temperature_is_recovered():
    """Labels drawn from softmax(logits): three times too sharp logits need the temperature 3."""
    logits = torch.randn(20000, 5)
    labels = torch.distributions.Categorical(logits=logits).sample()
    assert fit_temperature((logits * 3).numpy(), labels.numpy()) == pytest.approx(3, rel=0.05)


def test_temperature_weights_count_as_copies():
    logits, labels = torch.randn(30, 4).numpy(), torch.randint(4, (30,)).numpy()
    copies = np.r_[np.arange(30), np.arange(10), np.arange(10)]
    weights = np.r_[np.full(10, 3.0), np.ones(20)]
    assert fit_temperature(logits, labels, weights) == pytest.approx(
        fit_temperature(logits[copies], labels[copies]), rel=1e-4
    )


def test_a_temperature_is_kept_where_it_helps_rows_that_it_was_not_fitted_to():
    """Three times too sharp: kept, as fitted to all rows. Right as they are: 1, but for chance."""
    logits = torch.randn(400, 5)
    labels = torch.distributions.Categorical(logits=logits).sample().numpy()
    rows = [str(row) for row in range(400)]
    sharp = (logits * 3).numpy()
    assert calibration_temperature(sharp, labels, rows) == pytest.approx(fit_temperature(sharp, labels), abs=1e-6)
    kept = [
        calibration_temperature(logits.numpy()[part], labels[part], rows[:60]) for part in np.split(np.arange(360), 6)
    ]
    assert kept.count(1.0) >= 5
    assert (
        calibration_temperature(sharp[: FEWEST_ROWS - 1], labels[: FEWEST_ROWS - 1], rows[: FEWEST_ROWS - 1]) is None
    )


def test_a_temperature_that_holds_for_one_speaker_alone_is_not_kept():
    """Too sharp for one, too flat for the other; over mixed folds their common temperature would look right."""
    logits = torch.randn(300, 5)
    labels = torch.distributions.Categorical(logits=logits).sample().numpy()
    given = torch.cat([logits[:200] * 4, logits[200:] * 0.25]).numpy()
    speakers = ["a"] * 200 + ["b"] * 100
    assert calibration_temperature(given, labels, [str(row) for row in range(300)]) > 1.5
    assert calibration_temperature(given, labels, speakers) == 1.0
    assert calibration_temperature(given, labels, ["a"] * 300) == 1.0  # nobody is left to ask


def test_groups_are_speakers_else_dialogues_else_rows():
    spoken = Dataset.from_dict({"speaker": ["x", "y", "x", None], "dialogue": ["1", "1", "1", "1"]})
    told = Dataset.from_dict({"dialogue": ["1", "1"]})
    plain = Dataset.from_dict({"text": ["a", "b"]})
    assert groups_of([spoken, told, plain]) == [
        *("0: x", "0: y", "0: x", "0, row 3"),
        *("1: 1", "1: 1"),
        *("2, row 0", "2, row 1"),
    ]
