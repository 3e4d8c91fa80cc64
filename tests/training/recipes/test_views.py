"""Which rows an epoch shows, and how often."""

import numpy as np
import pytest
import torch

from triemo.training.recipes.views import EpochViews, balanced_views


def test_views_are_kept_on_average_and_repeated_by_epoch():
    views = torch.tensor([1.0, 2.5, 0.25, 0.25])
    sampler = EpochViews(views, batch_size=2, seed=0)
    assert len(sampler) == 4
    counts = np.zeros(4)
    for epoch in range(400):
        sampler.set_epoch(epoch)
        rows = list(sampler)
        assert len(rows) == 4 and rows == list(sampler)
        counts += np.bincount(rows, minlength=4)
    assert len(EpochViews(views, batch_size=3, seed=0)) == 3 and len(EpochViews(views, batch_size=8, seed=0)) == 8
    assert counts / 400 == pytest.approx(views.numpy(), abs=0.15)


def test_rows_of_like_length_come_together():
    lengths = [1, 100, 2, 99, 3, 98, 4, 97] * 20
    sampler = EpochViews(torch.ones(160, dtype=torch.float64), 4, 0, lengths)
    rows = list(sampler)
    assert sorted(rows) == list(range(160)) and rows == list(sampler)
    spreads = [np.ptp([lengths[row] for row in rows[start : start + 4]]) for start in range(0, 160, 4)]
    assert np.mean(spreads) < 10  # of 99 at random
    sampler.set_epoch(1)
    assert list(sampler) != rows


def test_views_even_corpora_and_classes():
    """A large corpus of all classes, and a small one of two."""
    corpora = ["large"] * 60 + ["small"] * 15
    classes = [0] * 40 + [1] * 10 + [2] * 10 + [0] * 5 + [1] * 10
    targets = np.eye(3)[classes]
    as_they_are = balanced_views(corpora, targets, 75, corpus_power=1.0, class_power=1.0).numpy()
    assert as_they_are == pytest.approx(np.ones(75))
    even = balanced_views(corpora, targets, 150, corpus_power=0.0, class_power=1.0).numpy()
    assert even[:60].sum() == pytest.approx(75) and even[60:] == pytest.approx(5)
    both = balanced_views(corpora, targets, 90, corpus_power=0.0, class_power=0.0).numpy()
    assert both @ targets == pytest.approx([30, 30, 30])
    assert both[:40] == pytest.approx(both[0]) and both[0] == pytest.approx(both[40] / 4)


def test_a_row_of_two_classes_counts_half_for_each():
    targets = np.array([[1.0, 0.0], [0.5, 0.5]])
    views = balanced_views(["a", "a"], targets, 2, corpus_power=1.0, class_power=0.0).numpy()
    assert views.sum() == pytest.approx(2) and views[1] > views[0]
