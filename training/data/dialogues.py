"""Dialogues: the rows of a table by dialogue and turn, as vectors or clips, one dialogue an item, and batches of them.

Shapes: B dialogues, N utterances of the longest, U utterances of a table or of a batch, D_m width of modality m's
vectors.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from triemo.modeling import TriemoForEmotionSequence
from triemo.modeling.contexts_triemo import UNKNOWN_SPEAKER
from triemo.modeling.losses_triemo import IGNORE_INDEX
from triemo.processing.samples_triemo import MASKS
from triemo.processing.utterances_triemo import VECTORS
from triemo.training.data.collation import (
    EmotionCollator,
    NoModalityError,
    encode_label,
    only,
    present_modalities,
)

__all__ = [
    "DialogueClips",
    "DialogueRows",
    "Dialogues",
    "Standardised",
    "collate_dialogues",
    "group_turns",
    "readable_utterances",
]

logger = logging.getLogger(__name__)

_PADDING = {"labels": IGNORE_INDEX, "speakers": UNKNOWN_SPEAKER, "utterance_index": -1}


def group_turns(data: Dataset, name: str) -> list[list[int]]:
    """
    The rows of each dialogue, in the order of its turns, dialogues in the order in which they begin.

    Args:
        data: with `dialogue`, and `turn`, a number; without it turns follow one another as the rows do.
        name: of the table, for messages.

    Raises:
        ValueError: naming the row without a dialogue or with a turn that is no number, and dialogue and turn of what
            comes twice.
    """
    if "dialogue" not in data.column_names:
        raise ValueError(f"columns: got {data.column_names} in {name}, expected `dialogue`, and `turn` if unordered")
    columns = data.select_columns([c for c in ("dialogue", "turn", "row") if c in data.column_names])[:]
    places = columns.get("row") or [f"row {number} of {name}" for number in range(len(data))]
    turns = columns.get("turn")
    if turns is None:
        logger.warning(f"{name}: has no column turn, so the turns of a dialogue are taken to stand in their order.")
        turns = list(range(len(data)))
    found: dict[str, dict[float, int]] = {}
    unordered = set()
    for row, (dialogue, given, place) in enumerate(zip(columns["dialogue"], turns, places, strict=True)):
        if dialogue is None:
            raise ValueError(f"dialogue: got none in {place}, expected the name of one")
        turn = _number(given, place)
        known = found.setdefault(str(dialogue), {})
        if turn in known:
            raise ValueError(
                f"turn: got {given} of dialogue {dialogue!r} in {places[known[turn]]} and in {place}, expected it once"
            )
        if known and turn < max(known):
            unordered.add(dialogue)
        known[turn] = row
    if unordered:
        logger.warning(f"{name}: the turns of {len(unordered)} dialogues are not in their order, and are put in it.")
    return [[rows[turn] for turn in sorted(rows)] for rows in found.values()]


def _number(turn: Any, place: str) -> float:
    try:
        number = float(turn)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise ValueError(f"turn: got {turn!r} in {place}, expected a number")
    return number


@dataclass
class Dialogues:
    """
    The dialogues of one table.

    Args:
        data: its rows.
        turns: rows of each dialogue, as of `group_turns`, without those that nothing can be read from.
        labels: (U,) class ids, -100 where there is none.
        speakers: (U,) names; None where unknown.
        names: of the dialogues.
        vectors: `text_features` (U, D_text), `attention_mask` (U,) and so on, as of `UtteranceEncoder`; empty where
            utterances are read as clips.
    """

    data: Dataset
    turns: list[list[int]]
    labels: torch.Tensor
    speakers: Sequence[str | None]
    names: list[str]
    vectors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        data: Dataset,
        readable: Sequence[bool],
        label2id: Mapping[str, int],
        name: str,
        vectors: Mapping[str, torch.Tensor] | None = None,
    ) -> "Dialogues":
        """
        Those of a table, of which `readable` rows hold something.

        Utterances that nothing can be read from (silence, unknown words) are left out, and named with dialogue and
        turn.

        Raises:
            ValueError: as `group_turns`; a label that is not among the classes; nothing left.
        """
        turns = group_turns(data, name)
        dialogues = [str(value) for value in data["dialogue"][:]]
        empty = [(dialogues[rows[0]], turn) for rows in turns for turn, row in enumerate(rows) if not readable[row]]
        if empty:
            first = ", ".join(f"utterance {turn} of dialogue {dialogue!r}" for dialogue, turn in empty[:3])
            logger.warning(f"{name}: {len(empty)} of {len(data)} utterances hold nothing to read, as {first}.")
        kept = [rows for rows in ([row for row in rows if readable[row]] for rows in turns) if rows]
        if not kept:
            raise ValueError(f"{name}: got no utterance with words, sound or a face, expected some.")
        speakers = data["speaker"][:] if "speaker" in data.column_names else [None] * len(data)
        names = [dialogues[rows[0]] for rows in kept]
        return cls(data, kept, _class_ids(data, label2id), speakers, names, vectors or {})

    @classmethod
    def of_vectors(
        cls, data: Dataset, vectors: Mapping[str, torch.Tensor], label2id: Mapping[str, int], name: str
    ) -> "Dialogues":
        """`of` a table whose vectors are made: readable is what has one."""
        there = torch.stack([vectors[mask].bool() for mask in MASKS.values() if mask in vectors]).any(0).tolist()
        return cls.of(data, there, label2id, name, vectors)


def _class_ids(data: Dataset, label2id: Mapping[str, int]) -> torch.Tensor:
    """(U,) int64, -100 where a row has no label. Raises ValueError naming the row of an unknown one."""
    if "label" not in data.column_names:
        return torch.full((len(data),), IGNORE_INDEX)
    columns = data.select_columns([column for column in ("label", "row") if column in data.column_names])
    ids = []
    for number, row in enumerate(columns):
        try:
            found = encode_label(row["label"], label2id)
        except ValueError as error:
            raise ValueError(f"{row.get('row') or f'row {number}'}: {error}") from error
        ids.append(IGNORE_INDEX if found is None else int(found))
    return torch.tensor(ids)


def readable_utterances(data: Dataset, collator: EmotionCollator) -> list[bool]:
    """(U,) of which rows something can be read. Raises ValueError naming the row whose media cannot be opened."""
    found = []
    for row in data:
        try:
            collator.encode(row)
            found.append(True)
        except NoModalityError:
            found.append(False)
    return found


class Standardised:
    """
    Vectors brought to mean 0 and deviation 1 of the training's, whatever their unit, and in the end the same of the
    model's own weights: the model that is kept takes vectors as they are.

    Args:
        parts: of the training.
    """

    def __init__(self, parts: Sequence[Dialogues]) -> None:
        self.statistics: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for modality, name in VECTORS.items():
            rows = [part.vectors[name][part.vectors[MASKS[modality]] > 0] for part in parts if name in part.vectors]
            if rows and sum(map(len, rows)):
                values = torch.cat(rows).double()
                deviation = values.std(0, unbiased=False)
                # A value that never changes says nothing, whatever it is.
                deviation = torch.where(deviation > 1e-6, deviation, torch.full_like(deviation, torch.inf))
                self.statistics[name] = values.mean(0).float(), deviation.float()

    def __call__(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """(..., D_m) of the tensor of this name, standardised."""
        if name not in self.statistics:
            return values
        mean, deviation = self.statistics[name]
        return (values - mean) / deviation

    @torch.no_grad()
    def fold_into(self, model: TriemoForEmotionSequence) -> None:
        """The model from here on takes vectors as they are, and this leaves them so."""
        for modality, name in VECTORS.items():
            if name in self.statistics:
                mean, deviation = self.statistics.pop(name)
                projection = getattr(model.triemo, f"{modality}_embedding").projection
                projection.weight.div_(deviation.to(projection.weight.device))
                projection.bias.sub_(projection.weight @ mean.to(projection.weight.device))


class DialogueRows(torch.utils.data.Dataset):
    """
    The dialogues of the parts one after the other, addressed by ticket (see `sampling`): vectors (N, D_m), masks (N,),
    `labels` (N,) and `speakers` (N,), in a dialogue 0, 1, ... in the order in which they begin to speak, -1 unknown.
    """

    def __init__(self, parts: Sequence[Dialogues], scale: Standardised | None = None) -> None:
        self.items = [(part, rows) for part in parts for rows in part.turns]
        self.parts, self.scale = list(parts), scale

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, ticket: int) -> dict[str, Any]:
        part, rows = self.items[int(ticket) % len(self)]
        return {**self.read(part, rows, int(ticket)), **self.told(part, rows)}

    def read(self, part: Dialogues, rows: Sequence[int], ticket: int) -> dict[str, Any]:
        """What a dialogue's utterances hold."""
        item = {name: values[rows] for name, values in part.vectors.items()}
        return item if self.scale is None else {name: self.scale(name, values) for name, values in item.items()}

    @staticmethod
    def told(part: Dialogues, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Labels and speakers of a dialogue."""
        numbers: dict[str, int] = {}
        speakers = [
            UNKNOWN_SPEAKER if name is None else numbers.setdefault(str(name), len(numbers))
            for name in (part.speakers[row] for row in rows)
        ]
        return {"labels": part.labels[rows], "speakers": torch.tensor(speakers)}

    def present(self, item: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """(N,) the modalities that each utterance of a dialogue has."""
        masks = {name: item[mask].tolist() for name, mask in MASKS.items() if mask in item}
        return [tuple(name for name in masks if masks[name][turn]) for turn in range(len(item["labels"]))]

    def only(self, item: Mapping[str, Any], turns: Sequence[int], subset: Sequence[str]) -> dict[str, Any]:
        """A dialogue of some of its utterances, with some of their modalities."""
        told = {name: item[name] for name in ("labels", "speakers")}
        return {name: value[list(turns)] for name, value in {**only(item, subset), **told}.items()}

    def collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Dialogues as a batch of the model, padded."""
        return collate_dialogues(items)

    def lengths(self) -> list[int]:
        """Utterances of each dialogue."""
        return [len(rows) for _, rows in self.items]

    def groups(self) -> list[str]:
        """The dialogue of every utterance that has a label, in their order."""
        names = [name for number, part in enumerate(self.parts) for name in (f"{number}: {n}" for n in part.names)]
        return [
            name
            for name, (part, rows) in zip(names, self.items, strict=True)
            for label in part.labels[rows].tolist()
            if label != IGNORE_INDEX
        ]


class DialogueClips(DialogueRows):
    """
    The same as clips: `clips`, the tensors of each utterance as `EmotionCollator.encode` gives them, `labels` (N,) and
    `speakers` (N,).

    Args:
        parts: dialogues.
        collator: what makes tensors of an utterance; `collate` joins them.
    """

    def __init__(self, parts: Sequence[Dialogues], collator: EmotionCollator) -> None:
        super().__init__(parts)
        self.collator = collator
        self.starts = np.cumsum([0, *self.lengths()])

    def read(self, part: Dialogues, rows: Sequence[int], ticket: int) -> dict[str, Any]:
        # Each utterance of each draw has a number of its own, by which it is varied.
        draw, number = divmod(ticket, len(self))
        first = draw * int(self.starts[-1]) + int(self.starts[number])
        return {"clips": [self.collator.encode({**part.data[row], "ticket": first + n}) for n, row in enumerate(rows)]}

    def present(self, item: Mapping[str, Any]) -> list[tuple[str, ...]]:
        return [present_modalities(clip) for clip in item["clips"]]

    def only(self, item: Mapping[str, Any], turns: Sequence[int], subset: Sequence[str]) -> dict[str, Any]:
        return {**super().only(item, turns, subset), "clips": [only(item["clips"][turn], subset) for turn in turns]}

    def collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Dialogues as a batch: the clips (U, ...) of all of them one after the other, `utterance_index`, `labels` and
        `speakers` (B, N).
        """
        ends = np.cumsum([len(item["clips"]) for item in items]).tolist()
        index = [torch.arange(end - len(item["clips"]), end) for item, end in zip(items, ends, strict=True)]
        told = [
            {name: value for name, value in item.items() if name != "clips"} | {"utterance_index": places}
            for item, places in zip(items, index, strict=True)
        ]
        return self.collator.collate([clip for item in items for clip in item["clips"]]) | collate_dialogues(told)


def collate_dialogues(items: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Dialogues as a batch (B, N, ...), padded at their ends: masks with 0, labels with -100, speakers with -1."""
    names = dict.fromkeys(name for item in items for name in item)
    return {
        name: pad_sequence([item[name] for item in items], batch_first=True, padding_value=_PADDING.get(name, 0))
        for name in names
    }
