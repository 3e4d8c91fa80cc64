"""Logits of every row for each of the seven subsets of its modalities, over any number of processes."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from triemo.training.data.collation import MASKS, EmotionCollator, NoModalityError, only, present_modalities
from triemo.training.data.composites import SUBSETS
from triemo.training.data.dialogues import DialogueRows
from triemo.training.data.sampling import EmotionRows

__all__ = ["PRESENT", "encoded_batches", "predict_dialogue_subsets", "predict_subsets"]

logger = logging.getLogger(__name__)

PRESENT = "present"  # every row with whatever it has


@torch.inference_mode()
def predict_subsets(
    model: Any, collator: EmotionCollator, rows: Any, state: PartialState, batch_size: int, calibrated: bool = True
) -> tuple[dict[str, dict[int, list[float]]], list[int]]:
    """
    Logits of every row by subset. Batches are cut before they are dealt out to the processes, so that the number of
    processes changes nothing, and each row comes back once.

    Returns:
        `{subset: {row: logits}}`, the same on every process; and the rows that hold nothing for the model.

    Raises:
        ValueError: naming the row whose media cannot be read.
    """
    subsets = [s for s in SUBSETS if set(s) <= set(model.config.modalities)]
    found: list[tuple[str, int, list[float] | None]] = []
    for samples, empty_rows in encoded_batches(collator, rows, state, batch_size):
        found += [(PRESENT, index, None) for index in empty_rows]
        held = {index: present_modalities(sample) for index, sample in samples.items()}
        for subset in subsets:
            chosen = [index for index in samples if set(subset) <= set(held[index])]
            if not chosen:
                continue
            kept = [only(samples[index], subset) for index in chosen]
            inputs = {name: tensor.to(state.device) for name, tensor in collator.collate(kept).items()}
            outputs = model(**inputs)
            temperatures = [
                model.config.temperature_of(mask) if calibrated else 1.0 for mask in outputs.modality_mask.tolist()
            ]
            logits = (outputs.logits.float().cpu() / torch.tensor(temperatures)[:, None]).tolist()
            scored = list(zip(chosen, logits, strict=True))
            found += [("+".join(subset), index, row) for index, row in scored]
            # What a row has is one of the subsets.
            found += [(PRESENT, index, row) for index, row in scored if held[index] == subset]
    found = gather_object(found)
    empty = sorted(index for _, index, row in found if row is None)
    return _by_subset(found, subsets), empty


def _by_subset(
    found: Sequence[tuple[str, int, list[float] | None]], subsets: Sequence[Sequence[str]]
) -> dict[str, dict[int, list[float]]]:
    """Subset, row and logits in any order to `{subset: {row: logits}}`, in order, without subsets that no row has."""
    by_subset: dict[str, dict[int, list[float]]] = {PRESENT: {}} | {"+".join(subset): {} for subset in subsets}
    for name, index, row in found:
        if row is not None:
            by_subset[name][index] = row
    return {name: dict(sorted(rows.items())) for name, rows in by_subset.items() if rows}


def encoded_batches(
    collator: EmotionCollator, rows: Any, state: PartialState, batch_size: int
) -> Iterator[tuple[dict[int, dict[str, torch.Tensor]], list[int]]]:
    """
    This process's share of the rows in batches of like cost: their tensors by row, and the rows that hold nothing for
    the model, which are named in the log.

    Raises:
        ValueError: naming the row whose media cannot be read.
    """
    order = np.argsort(EmotionRows([rows]).lengths(), kind="stable").tolist()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for batch in batches[state.process_index :: state.num_processes]:
        samples, empty = {}, []
        for index in batch:
            try:
                samples[index] = collator.encode(rows[index])
            except NoModalityError as error:
                logger.warning(f"left out: {error}")
                empty.append(index)
        yield samples, empty


@torch.inference_mode()
def predict_dialogue_subsets(
    model: Any, rows: DialogueRows, state: PartialState, batch_size: int, calibrated: bool = True
) -> dict[str, dict[int, list[float]]]:
    """
    The same of the utterances of dialogues, each in its dialogue: `{subset: {row: logits}}` of the rows of one table.

    In a subset every utterance has what it has of these modalities; those that have none of them are left out of the
    dialogue, and those that have all of them are scored. `present` are all utterances with all that they have.

    Args:
        model: a `TriemoForEmotionSequence`.
        rows: dialogues of one part.
        state: of the processes, to which whole dialogues are dealt out in batches.
        batch_size: dialogues a pass.
        calibrated: whether logits are divided by the temperature of what an utterance has.
    """
    config = model.config
    subsets = [s for s in SUBSETS if set(s) <= set(config.modalities)]
    order = np.argsort(rows.lengths(), kind="stable").tolist()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    found: list[tuple[str, int, list[float] | None]] = []
    for batch in batches[state.process_index :: state.num_processes]:
        items = [(rows[number], rows.items[number][1]) for number in batch]
        for subset in subsets:
            kept, places = [], []
            for item, numbers in items:
                held = [set(subset) & set(has) for has in rows.present(item)]
                turns = [turn for turn, has in enumerate(held) if has]
                if turns:
                    kept.append(rows.only(item, turns, subset))
                    places.append([(numbers[turn], held[turn]) for turn in turns])
            if not kept:
                continue
            inputs = {name: tensor.to(state.device) for name, tensor in rows.collate(kept).items() if name != "labels"}
            for dialogue, logits in zip(places, model(**inputs).logits.float().cpu(), strict=True):
                for (number, has), row in zip(dialogue, logits, strict=False):  # what comes after them is padding
                    present = [modality in has for modality in MASKS]
                    scaled = (row / (config.temperature_of(present) if calibrated else 1.0)).tolist()
                    found += [("+".join(subset), number, scaled)] if has == set(subset) else []
                    found += [(PRESENT, number, scaled)] if set(subset) == set(config.modalities) else []
    return _by_subset(gather_object(found), subsets)
