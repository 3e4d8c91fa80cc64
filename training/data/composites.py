"""Synthetic clips: a sentence, a voice and a face of the same emotion from different corpora.

There is no open corpus here with all three of one person, so the joint path is trained and scored on composites. A
score on them is synthetic and is always called so.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from triemo.modeling import SUBSETS
from triemo.training.corpora.labels import EMOTIONS, to_soft_target

__all__ = ["SUBSETS", "SUBSET_WEIGHTS", "CompositeDataset", "draw_composites", "item_classes"]

# Every subset has to work, and the single modalities are where real examples are.
SUBSET_WEIGHTS = (0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1)


def rows_by_emotion(labels: Sequence[Sequence[int]], single: bool) -> list[np.ndarray]:
    """For each class the rows that carry it; with `single` only rows that carry nothing else."""
    rows: list[list[int]] = [[] for _ in EMOTIONS]
    for row, classes in enumerate(labels):
        if not single or len(classes) == 1:
            for index in classes:
                rows[index].append(row)
    return [np.array(found, dtype=np.int64) for found in rows]


class CompositeDataset(torch.utils.data.Dataset):
    """Training examples of all seven subsets, drawn on the fly; example i depends on `seed` and i alone.

    An item is `{"rows": {modality: row of its corpus}, "label": (7,) float32}`. An example of one modality draws its
    class with probability proportional to count ** `balance` and may carry several labels; one of two or three
    modalities draws the class evenly and joins examples that carry this class only.

    What a model meets besides, each in a share of the examples of two or three modalities:

    - `real`: rows that belong together, one person's voice and face at once;
    - `contradicting`: one modality is of another class, and the target is the mean over the modalities' classes;
    - `silent`: the sound, where there is one, holds no voice: `"silent"` is True, and the label is that of the rest;
    - `misheard`: some of the words are wrong: `"misheard"` is True, and the label stays.

    Args:
        labels: for `text`, `audio` and `vision`, the class indices of every row.
        length: number of examples.
        seed: of the draws.
        subset_weights: probability of each of `SUBSETS`.
        balance: 1 keeps a corpus's class shares, 0 makes them even.
        pairs: rows that belong together, such as `{"audio": 3, "vision": 8}`, all of one class.
        real: share of the examples that are one of `pairs`, whatever the subset.
        contradicting, silent, misheard: shares of the composites.

    Raises:
        ValueError: when a modality has no example of a class that is not shared with another class, a share is not
            one, or there are to be real examples without a pair.
    """

    def __init__(
        self,
        labels: dict[str, Sequence[Sequence[int]]],
        length: int,
        seed: int,
        subset_weights: Sequence[float] = SUBSET_WEIGHTS,
        balance: float = 0.5,
        pairs: Sequence[Mapping[str, int]] = (),
        real: float = 0.0,
        contradicting: float = 0.0,
        silent: float = 0.0,
        misheard: float = 0.0,
    ) -> None:
        shares = {"real": real, "contradicting": contradicting, "silent": silent, "misheard": misheard}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: got {share}, expected a share of 0 to 1")
        if real and not pairs:
            raise ValueError(f"real: got {real} without a pair, expected pairs or 0")
        self.pairs, self.shares = [dict(pair) for pair in pairs], shares
        self.labels, self.length, self.seed = labels, length, seed
        self.subset_weights = np.array(subset_weights) / np.sum(subset_weights)
        self.any_rows = {name: rows_by_emotion(classes, single=False) for name, classes in labels.items()}
        self.single_rows = {name: rows_by_emotion(classes, single=True) for name, classes in labels.items()}
        for name, found in self.single_rows.items():
            empty = [EMOTIONS[index] for index, rows in enumerate(found) if len(rows) == 0]
            if empty:
                raise ValueError(f"labels[{name!r}]: got no example of {empty} alone, expected some of every class")
        counts = {name: np.array([len(rows) for rows in found], float) for name, found in self.any_rows.items()}
        self.class_shares = {name: count**balance / (count**balance).sum() for name, count in counts.items()}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.length:
            raise IndexError(index)
        draw = np.random.default_rng((self.seed, index))
        if self.shares["real"] and draw.random() < self.shares["real"]:
            rows = dict(self.pairs[int(draw.integers(len(self.pairs)))])
            name = next(iter(rows))
            return {"rows": rows, "label": np.array(to_soft_target(list(self.labels[name][rows[name]])), np.float32)}
        subset = SUBSETS[draw.choice(len(SUBSETS), p=self.subset_weights)]
        if len(subset) == 1:
            name = subset[0]
            emotion = draw.choice(len(EMOTIONS), p=self.class_shares[name])
            row = int(draw.choice(self.any_rows[name][emotion]))
            rows, classes = {name: row}, list(self.labels[name][row])
        else:
            emotion = int(draw.integers(len(EMOTIONS)))
            rows = {name: int(draw.choice(self.single_rows[name][emotion])) for name in subset}
            return self.disturbed(rows, emotion, draw)
        return {"rows": rows, "label": np.array(to_soft_target(classes), dtype=np.float32)}

    def disturbed(self, rows: dict[str, int], emotion: int, draw: np.random.Generator) -> dict:
        """A composite as its shares have it: contradicting, silent, misheard, or as it is."""
        label = np.array(to_soft_target([emotion]), dtype=np.float32)
        item = {"rows": rows, "label": label}
        if self.shares["contradicting"] and draw.random() < self.shares["contradicting"]:
            odd = sorted(rows)[int(draw.integers(len(rows)))]
            other = int((emotion + draw.integers(1, len(EMOTIONS))) % len(EMOTIONS))
            rows[odd] = int(draw.choice(self.single_rows[odd][other]))
            label[emotion], label[other] = 1 - 1 / len(rows), 1 / len(rows)
            return item
        if self.shares["silent"] and "audio" in rows and draw.random() < self.shares["silent"]:
            item["silent"] = True
        if self.shares["misheard"] and "text" in rows and draw.random() < self.shares["misheard"]:
            # Wrong words alone beside silence would leave nothing to read the label from.
            if len(rows) > 1 + item.get("silent", False):
                item["misheard"] = True
        return item


def draw_composites(labels: dict[str, Sequence[Sequence[int]]], per_class: int, seed: int) -> list[dict]:
    """Items with all three modalities, `per_class` of every emotion; drop modalities to score the seven subsets."""
    draw = np.random.default_rng(seed)
    found = {name: rows_by_emotion(classes, single=True) for name, classes in labels.items()}
    items = []
    for emotion in range(len(EMOTIONS)):
        for _ in range(per_class):
            rows = {name: int(draw.choice(found[name][emotion])) for name in ("text", "audio", "vision")}
            items.append({"rows": rows, "label": np.array(to_soft_target([emotion]), dtype=np.float32)})
    return items


def item_classes(items: Sequence[dict]) -> list[int]:
    """The class index of each item that carries one class."""
    return [int(item["label"].argmax()) for item in items]
