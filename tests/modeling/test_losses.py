"""Losses against hand-computed numbers."""

import math

import numpy as np
import pytest
import torch
from tiny_models import text_inputs, tiny_config, tiny_model

from triemo.modeling.losses_triemo import concordance, emotion_loss

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])


def config(**fields):
    return tiny_config(**{"num_labels": 3, **fields})


def log_softmax(row: torch.Tensor) -> np.ndarray:
    values = row.double().numpy()
    return values - math.log(np.exp(values).sum())


def test_cross_entropy_with_class_weights():
    loss = emotion_loss(LOGITS, torch.tensor([0, 2]), config(), class_weights=[1.0, 2.0, 5.0])
    expected = (-log_softmax(LOGITS[0])[0] * 1.0 - log_softmax(LOGITS[1])[2] * 5.0) / (1.0 + 5.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_label_smoothing_mixes_in_the_uniform_distribution():
    loss = emotion_loss(LOGITS, torch.tensor([0, 2]), config(), label_smoothing=0.3)
    rows = [(0, 0), (1, 2)]
    expected = np.mean(
        [-0.7 * log_softmax(LOGITS[i])[label] - 0.1 * log_softmax(LOGITS[i]).sum() for i, label in rows]
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_soft_targets_equal_hard_ones_when_they_are_one_hot_and_mix_otherwise():
    hard = emotion_loss(LOGITS, torch.tensor([1, 2]), config())
    soft = emotion_loss(LOGITS, torch.eye(3)[[1, 2]], config())
    assert soft.item() == pytest.approx(hard.item(), rel=1e-6)
    halves = emotion_loss(LOGITS[:1], torch.tensor([[0.5, 0.5, 0.0]]), config())
    assert halves.item() == pytest.approx(-(log_softmax(LOGITS[0])[:2].sum()) / 2, rel=1e-6)


def test_unlabelled_samples_are_ignored():
    with_unlabelled = emotion_loss(LOGITS, torch.tensor([-100, 2]), config())
    assert with_unlabelled.item() == pytest.approx(-log_softmax(LOGITS[1])[2], rel=1e-6)


def test_multi_label_is_binary_cross_entropy():
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    loss = emotion_loss(LOGITS, labels, config(problem_type="multi_label_classification"))
    p = 1 / (1 + np.exp(-LOGITS.double().numpy()))
    y = labels.numpy()
    assert loss.item() == pytest.approx(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(), rel=1e-6)


def test_regression_losses():
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.5, 2.0, 1.0]])
    mse = emotion_loss(LOGITS, targets, config(problem_type="regression"))
    assert mse.item() == pytest.approx((1 + 0 + 1 + 0 + 1 + 1) / 6)
    ccc = emotion_loss(LOGITS, targets, config(problem_type="regression", regression_loss="ccc"))
    assert ccc.item() == pytest.approx(1 - concordance(LOGITS, targets).mean().item(), rel=1e-6)


def test_concordance_is_one_for_equals_and_punishes_a_shift():
    values = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert concordance(values, values).item() == pytest.approx(1.0, abs=1e-6)
    # var 1.25, shift 1: 2 * 1.25 / (1.25 + 1.25 + 1)
    assert concordance(values + 1, values).item() == pytest.approx(2.5 / 3.5, rel=1e-6)


def test_one_output_is_regression_by_default():
    loss = emotion_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 0.0]), config(num_labels=1))
    assert loss.item() == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("labels", "fields", "message"),
    [
        (torch.tensor([0, 3]), {}, "class ids from 0 to 2.*got 3"),
        (torch.tensor([-1, 0]), {}, "class ids from 0 to 2.*got -1"),
        (torch.tensor([0]), {}, r"labels must have shape \(2,\), got \(1,\)"),
        (torch.rand(2, 4), {}, r"must have shape \(2, 3\), got \(2, 4\)"),
        (torch.tensor([0, 1]), {"problem_type": "multi_label_classification"}, r"must have shape \(2, 3\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, fields, message):
    with pytest.raises(ValueError, match=message):
        emotion_loss(LOGITS, labels, config(**fields))


def test_the_model_returns_this_loss():
    model = tiny_model()
    labels = torch.tensor([4, 1])
    output = model(**text_inputs(), labels=labels)
    assert output.loss.item() == pytest.approx(emotion_loss(output.logits, labels, model.config).item(), rel=1e-6)
    assert model(**text_inputs()).loss is None


def test_weights_of_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match="one for each of the 3 labels, got 2"):
        emotion_loss(LOGITS, torch.tensor([0, 1]), config(), class_weights=[1.0, 2.0])


def test_a_batch_without_a_label_costs_nothing_and_can_be_learned_from():
    logits = LOGITS.clone().requires_grad_()
    loss = emotion_loss(logits, torch.tensor([-100, -100]), config(), class_weights=[1.0, 2.0, 3.0])
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(logits.grad, torch.zeros_like(logits))
