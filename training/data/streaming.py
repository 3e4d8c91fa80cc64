"""Endless batches from shards for one process of a training, and the state from which they go on exactly."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from triemo.training.data.broken_media import FIRST_NAMED
from triemo.training.data.shards import Position, ShardReader

__all__ = ["ShardBatches", "StreamLoader"]

logger = logging.getLogger(__name__)


class ShardBatches(torch.utils.data.IterableDataset):
    """
    Batches of one process, made in its workers: `{"batch", "slot", "position"}`, without an end.

    Args:
        reader: makes the `ShardReader` of a number among so many.
        prepare, collate: a row to tensors, and these to a batch. ValueError or OSError of `prepare` marks the row as
            broken: named in the log, counted, passed over.
        batch_size: rows of a batch.
        max_broken_share: broken rows allowed of those seen, judged by each reader over at least 1 / share rows.
        process, processes: which of how many this is.
    """

    def __init__(
        self,
        reader: Callable[[int, int], ShardReader],
        prepare: Callable[[dict], Mapping[str, Any]],
        collate: Callable[[list], Mapping[str, Any]],
        batch_size: int,
        max_broken_share: float = 0.01,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if not 0 <= max_broken_share < 1:
            raise ValueError(f"max_broken_share: got {max_broken_share}, expected 0 up to but not 1")
        self.reader, self.prepare, self.collate = reader, prepare, collate
        self.batch_size, self.max_broken_share = batch_size, max_broken_share
        self.process, self.processes = process, processes
        self.positions: dict[int, Position] = {}
        self.taken = 0  # batches of this process before the iteration starts

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, index = (worker.num_workers, worker.id) if worker else (1, 0)
        # The loader asks its workers in turn, from the first: the one whose turn it is must be that.
        slot = (index + self.taken) % workers
        reader = self.reader(self.process * workers + slot, self.processes * workers)
        position, samples, named = self.positions.get(slot, Position()), [], []
        seen, broken = position.seen, position.broken
        for row, place in reader.rows(position):
            seen += 1
            try:
                samples.append(self.prepare(row))
            except (ValueError, OSError) as error:
                broken += 1
                named.append(str(row["row"]))
                logger.warning(f"media: skipped {row['row']} ({error}); {broken} of {seen} rows seen so far.")
                self.check_share(broken + place.broken_shards, seen, named)
            if len(samples) == self.batch_size:
                place = place._replace(seen=seen, broken=broken)
                yield {"batch": self.collate(samples), "slot": slot, "position": place._asdict()}
                samples = []

    def check_share(self, broken: int, seen: int, named: Sequence[str]) -> None:
        least = math.ceil(1 / self.max_broken_share) if self.max_broken_share else 1
        if broken > self.max_broken_share * max(seen, least):
            raise ValueError(
                f"media: got {broken} broken of {seen} rows seen, more than the share {self.max_broken_share:g}; "
                f"first {', '.join(named[:FIRST_NAMED])}"
            )


class StreamLoader:
    """
    The batches of this process for the Trainer, with a state that says where to go on.

    Args:
        batches: where they come from.
        workers: processes that decode; 0 decodes in this one. A run goes on only with as many as it began with.
        options: of the `DataLoader`.
    """

    def __init__(self, batches: ShardBatches, workers: int = 0, **options: Any) -> None:
        self.dataset, self.batch_size, self.workers, self.options = batches, batches.batch_size, workers, options

    def __iter__(self) -> Iterator[Any]:
        # A generator of its own: the loader's draw from the global one would come at another time in a resumed run.
        loader: DataLoader = DataLoader(
            self.dataset, batch_size=None, num_workers=self.workers, generator=torch.Generator(), **self.options
        )
        for item in loader:
            self.dataset.positions[int(item["slot"])] = Position(**item["position"])
            self.dataset.taken += 1
            yield item["batch"]

    @property
    def broken(self) -> int:
        """Rows passed over so far, a shard that ended too early counting as one."""
        return sum(position.broken + position.broken_shards for position in self.dataset.positions.values())

    @property
    def passes(self) -> float:
        """Passes finished, averaged over the readers."""
        epochs = [position.epoch for position in self.dataset.positions.values()]
        return sum(epochs) / len(epochs) if epochs else 0.0

    def state_dict(self) -> dict[str, Any]:
        """After the batches given out so far, whatever the workers have prepared beyond them."""
        positions = {str(slot): position._asdict() for slot, position in self.dataset.positions.items()}
        return {
            "taken": self.dataset.taken,
            "workers": self.workers,
            "processes": self.dataset.processes,
            "batch_size": self.batch_size,
            "positions": positions,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when rows would come in another order: other workers, processes or batch size."""
        now = {"workers": self.workers, "processes": self.dataset.processes, "batch_size": self.batch_size}
        for name, value in now.items():
            if state[name] != value:
                raise ValueError(
                    f"stream: the run began with {name} {state[name]}, got {value}; rows would come in another order."
                )
        self.dataset.taken = int(state["taken"])
        self.dataset.positions = {int(slot): Position(**place) for slot, place in state["positions"].items()}
