"""How often an epoch shows each row, and in which order."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

__all__ = ["EpochViews", "balanced_views"]


class EpochViews(torch.utils.data.Sampler):
    """Every row as often as its views (N,) say on average, in whole batches, for a batch norm does not like the rest.

    What comes in an epoch depends on seed and epoch alone, so a run that was interrupted goes on with the same.

    Args:
        views: of each row, summing to the rows of an epoch.
        batch_size: rows that come together.
        seed: of the draws; the epoch adds to it.
        lengths: of each row; if given, rows of like length come together.
    """

    def __init__(self, views: torch.Tensor, batch_size: int, seed: int, lengths: Sequence[int] | None = None) -> None:
        self.views, self.batch_size, self.seed, self.epoch = views.numpy(), batch_size, seed, 0
        self.lengths = lengths
        self.size = max(1, int(self.views.sum()) // batch_size) * batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        times = np.floor(self.views + random.random(len(self.views))).astype(int)
        rows = random.permutation(np.repeat(np.arange(len(times)), times))
        missing = max(0, self.size - len(rows))
        drawn = [*rows[: self.size].tolist(), *random.choice(rows, missing).tolist()]
        if self.lengths is None:
            return iter(drawn)
        generator = torch.Generator().manual_seed(int(random.integers(2**31)))
        lengths = [self.lengths[row] for row in drawn]
        return iter([drawn[place] for place in get_length_grouped_indices(lengths, self.batch_size, None, generator)])


def balanced_views(
    corpora: Sequence[str], targets: np.ndarray, rows: int, corpus_power: float, class_power: float
) -> torch.Tensor:
    """
    Views of rows of several corpora, to sum to `rows` an epoch.

    A corpus gets a share of its number of rows to the power `corpus_power`, a class within it one of its mass to the
    power `class_power`. Where classes are evened, so are they over all corpora, for a corpus of two classes would
    otherwise pull every answer to these.

    Args:
        corpora: each row's corpus.
        targets: each row's classes as probabilities, (N, C).
        rows: an epoch shows.
        corpus_power: 1 keeps the corpora as large as they are, 0 makes all even.
        class_power: 1 keeps each corpus's class shares, 0 makes them even.

    Returns:
        (N,) float64.
    """
    names = np.array(corpora)
    views = np.zeros(len(names))
    for name in np.unique(names):
        of_corpus = names == name
        mass = targets[of_corpus].sum(0)
        weights = targets[of_corpus] @ np.where(mass > 0, np.maximum(mass, 1e-9) ** (class_power - 1), 0.0)
        views[of_corpus] = of_corpus.sum() ** corpus_power * weights / weights.sum()
    mass = views @ targets / views.sum()
    views *= targets @ np.where(mass > 0, np.maximum(mass, 1e-9) ** (class_power - 1), 0.0)
    return torch.from_numpy(views * (rows / views.sum()))
