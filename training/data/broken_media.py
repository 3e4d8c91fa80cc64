"""Media that cannot be read: skipped in training up to a share, fatal in evaluation."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

__all__ = ["FIRST_NAMED", "SkipBroken"]

logger = logging.getLogger(__name__)

FIRST_NAMED = 3
SOUND, BROKEN = 1, 2  # a row not read yet is 0


class SkipBroken(torch.utils.data.Dataset):
    """
    Items of a map-style dataset through `decode`, guarded against media that cannot be read. `broken` are the rows
    found broken so far.

    In training, an item whose `decode` raises ValueError or OSError is named in the log and replaced by another one;
    the replacement depends on `seed` and the index alone, so that a resumed run sees the same items. All workers of
    one loader count together; each process of a distributed run counts for itself.

    Args:
        dataset: map-style; items may have `row`, by which they are named.
        decode: one item to its tensors. Check labels elsewhere: a label outside the map must not be skipped as media.
        max_share: broken rows allowed of those seen. It is judged over at least `1 / max_share` rows, or all if there
            are fewer. 0 makes the first broken row fatal.
        seed: of the replacements.
        training: False makes any broken item fatal, as evaluation must: over fewer rows a figure is another figure.

    Raises:
        ValueError: from an item, naming how many are broken and the first rows.
    """

    def __init__(
        self,
        dataset: Any,
        decode: Callable[[Any], Any],
        max_share: float = 0.01,
        seed: int = 0,
        training: bool = True,
    ) -> None:
        if not 0 <= max_share < 1:
            raise ValueError(f"max_share: got {max_share}, expected 0 up to but not 1")
        if len(dataset) == 0:
            raise ValueError("dataset: got no row, expected some")
        self.dataset, self.decode, self.max_share = dataset, decode, max_share
        self.seed, self.training = seed, training
        # Shared memory, so that all workers of a loader count into one list.
        self.state = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def broken(self) -> list[int]:
        return torch.nonzero(self.state == BROKEN).flatten().tolist()

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        draw = np.random.default_rng((self.seed, index))
        row = index
        while True:
            item = self.dataset[row]
            if self.state[row] != BROKEN:  # a row known as broken is not opened again
                try:
                    decoded = self.decode(item)
                except (ValueError, OSError) as error:
                    self._note(row, item, error)
                else:
                    self.state[row] = SOUND
                    return decoded
            row = int(draw.integers(len(self)))

    def _note(self, row: int, item: Any, error: Exception) -> None:
        if not self.training:
            raise ValueError(f"media: cannot read {self._name(row, item)} ({error})") from error
        self.state[row] = BROKEN
        broken, seen = self.broken, int((self.state != 0).sum())
        logger.warning(f"media: skipped {self._name(row, item)} ({error}); {len(broken)} of {seen} rows seen so far.")
        # One of the first three says nothing about a share of 1 %: judge over at least 1 / max_share rows.
        least = math.ceil(1 / self.max_share) if self.max_share else 1
        if len(broken) > self.max_share * max(seen, min(least, len(self))):
            first = ", ".join(self._name(number, self.dataset[number]) for number in broken[:FIRST_NAMED])
            raise ValueError(
                f"media: got {len(broken)} broken of {seen} rows seen, more than the share {self.max_share:g}; "
                f"first {first}"
            ) from error

    @staticmethod
    def _name(row: int, item: Any) -> str:
        place = item.get("row") if isinstance(item, dict) else None
        return f"row {row}" if place is None else f"row {row} ({place})"
