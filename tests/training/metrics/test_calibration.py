import numpy as np
import pytest
import torch

from triemo.training.metrics.calibration import calibrated_error, expected_calibration_error, fit_temperature


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
