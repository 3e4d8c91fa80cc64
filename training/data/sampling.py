"""How an epoch draws rows: weighted parts, synthetic composites, batches of like cost.

A *ticket* is a number for one draw of one row: epoch and copy times the number of rows, plus the row. It tells the
collator how to augment the draw, so an epoch is the same after a resume and with any number of processes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers.trainer_pt_utils import get_length_grouped_indices

from triemo.training.common import joined_seed
from triemo.training.corpora.labels import EMOTIONS
from triemo.training.data.broken_media import SkipBroken
from triemo.training.data.columns import MEDIA_COLUMNS, rough_cost
from triemo.training.data.composites import SUBSET_WEIGHTS, CompositeDataset

__all__ = ["MAX_COPIES", "CompositeRows", "EmotionRows", "MixtureSampler"]

MAX_COPIES = 1000  # draws of one row in one epoch


class CompositeRows:
    """
    Synthetic rows joined from sentence, voice and face of one emotion (see `composites`); every draw is another one.

    Args:
        parts: corpora.
        rows: in an epoch.
        seed: of the draws.
        subset_weights: probability of each of `SUBSETS`.
        faces, sentences: of a row of more than one modality, all of its emotion. Several faces are the frames of a
            clip, several sentences follow one another. What is shared stands out more from several of each.

    Raises:
        ValueError: when labels are not of the seven classes, or a modality lacks one of them.
    """

    def __init__(
        self,
        parts: Mapping[str, tuple[Dataset, float]],
        rows: int,
        seed: int,
        subset_weights: Sequence[float] = SUBSET_WEIGHTS,
        faces: int = 1,
        sentences: int = 1,
    ) -> None:
        self.numbers = {"text": sentences, "vision": faces}
        self.rows, self.columns = rows, {"text": "text", "audio": "audio", "vision": "image"}
        self.places: dict[str, list[tuple[Dataset, int]]] = {name: [] for name in self.columns}
        classes: dict[str, list[list[int]]] = {name: [] for name in self.columns}
        for name, column in self.columns.items():
            for data, _ in parts.values():
                if column not in data.column_names:
                    continue
                present = data.with_format("arrow")[:][column].is_valid().to_pylist()
                for index, (label, there) in enumerate(zip(data["label"], present, strict=True)):
                    names = list(label) if isinstance(label, (list, tuple)) else [label]
                    if there and set(names) <= set(EMOTIONS):
                        self.places[name].append((data, index))
                        classes[name].append([EMOTIONS.index(emotion) for emotion in names])
        self.items = CompositeDataset(classes, length=2**62, seed=seed, subset_weights=subset_weights)

    def __len__(self) -> int:
        return self.rows

    def draw(self, ticket: int) -> dict[str, Any]:
        item = self.items[ticket]
        row: dict[str, Any] = {"row": f"composite {ticket}"}
        for name, index in item["rows"].items():
            data, place = self.places[name][index]
            row[self.columns[name]] = data[place][self.columns[name]]
        found = np.flatnonzero(item["label"])
        draw = np.random.default_rng((self.items.seed, ticket, 1))
        for name, number in self.numbers.items():
            if number > 1 and name in item["rows"] and len(item["rows"]) > 1:
                column = self.columns[name]
                more = draw.choice(self.items.single_rows[name][found[0]], number - 1)
                places = (self.places[name][index] for index in more)
                values = [row.pop(column), *(data[place][column] for data, place in places)]
                row |= {"text": " ".join(values)} if name == "text" else {"video": values}
        names = [EMOTIONS[index] for index in found]
        return row | {"label": names[0] if len(names) == 1 else names}


class EmotionRows(torch.utils.data.Dataset):
    """
    The parts one after the other, addressed by ticket.

    Args:
        parts: datasets, or `CompositeRows`.
        prepare: what makes tensors of a row, for training: a row whose media cannot be read is then named, counted and
            replaced by another one (see `broken_media`). Without it items are rows, with their `ticket`.
        max_broken_share: of the rows of a part, from which on that is an error.
    """

    def __init__(
        self, parts: Sequence[Any], prepare: Callable[[dict], dict] | None = None, max_broken_share: float = 0.01
    ) -> None:
        self.parts, self.starts = list(parts), np.cumsum([0, *map(len, parts)])
        self.prepare, self.ticket, self.guards = prepare, 0, {}
        if prepare is not None:
            self.guards = {
                number: SkipBroken(part, self._prepare, max_broken_share)
                for number, part in enumerate(self.parts)
                if not isinstance(part, CompositeRows) and len(part)
            }

    def _prepare(self, row: dict) -> dict:
        # The guard hands over the row alone; which draw of it this is was noted by `__getitem__`.
        return self.prepare({**row, "ticket": self.ticket})  # type: ignore[misc]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, ticket: int) -> dict[str, Any]:
        self.ticket = int(ticket)
        index = self.ticket % len(self)
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        if part in self.guards:
            return self.guards[part][index - int(self.starts[part])]
        data = self.parts[part]
        row = data.draw(self.ticket) if isinstance(data, CompositeRows) else data[index - int(self.starts[part])]
        return {**row, "ticket": self.ticket} if self.prepare is None else self._prepare(row)

    def lengths(self) -> list[int]:
        """A rough cost of each row: letters of its text and bytes of its media, without reading them."""
        found: list[int] = []
        for data in self.parts:
            if isinstance(data, CompositeRows):
                found += [0] * len(data)
                continue
            names = [name for name in ("text", *MEDIA_COLUMNS) if name in data.column_names]
            costs = np.zeros(len(data), dtype=np.int64)
            for name in names:
                costs += [rough_cost(value) for value in data.select_columns([name])[:][name]]
            found += costs.tolist()
        return found


class MixtureSampler(torch.utils.data.Sampler):
    """
    Tickets of an epoch: of each part weight * rows, whole copies first and a random rest, all shuffled.

    Args:
        sizes: rows of each part.
        weights: draws a row and epoch.
        seed: of the order; the epoch adds to it.
        lengths: cost of each row; if given, rows of like cost come together in batches of `batch_size`.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], seed: int, lengths: Sequence[int] | None, batch_size: int
    ) -> None:
        self.sizes, self.weights, self.seed = list(sizes), list(weights), seed
        self.lengths, self.batch_size, self.epoch = lengths, batch_size, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(max(1, round(size * weight)) for size, weight in zip(self.sizes, self.weights, strict=True))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(joined_seed(self.seed, self.epoch))
        total, start = sum(self.sizes), 0
        tickets: list[int] = []
        for size, weight in zip(self.sizes, self.weights, strict=True):
            for copy in range(int(np.ceil(weight))):
                wanted = max(1, round(size * weight)) - copy * size
                first = (self.epoch * MAX_COPIES + copy) * total + start
                chosen = torch.randperm(size, generator=generator)[: max(0, wanted)]
                tickets += (first + chosen).tolist()
            start += size
        if self.lengths is None:
            order = torch.randperm(len(tickets), generator=generator).tolist()
        else:
            lengths = [self.lengths[ticket % total] for ticket in tickets]
            order = get_length_grouped_indices(lengths, self.batch_size, generator=generator)
        return iter([tickets[position] for position in order])
