"""Logits of every row for each of the seven subsets of its modalities, over any number of processes."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from triemo.training.data.collation import MASKS, VECTORS, EmotionCollator, NoModalityError, present_modalities
from triemo.training.data.composites import SUBSETS
from triemo.training.data.sampling import EmotionRows

__all__ = ["PRESENT", "encoded_batches", "only", "predict_subsets"]

logger = logging.getLogger(__name__)

PRESENT = "present"  # every row with whatever it has
INPUTS = {
    "text": ("input_ids", "token_type_ids"),
    "audio": ("input_values", "audio_times"),
    "vision": ("pixel_values", "video_times"),
}


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
    by_subset: dict[str, dict[int, list[float]]] = {PRESENT: {}} | {"+".join(subset): {} for subset in subsets}
    empty = []
    for name, index, row in gather_object(found):
        if row is None:
            empty.append(index)
        else:
            by_subset[name][index] = row
    ordered = {name: dict(sorted(rows_.items())) for name, rows_ in by_subset.items() if rows_}
    return ordered, sorted(empty)


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


def only(sample: dict[str, torch.Tensor], subset: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors of some modalities of a row."""
    names = {name for modality in subset for name in (MASKS[modality], VECTORS[modality], *INPUTS[modality])}
    return {name: tensor for name, tensor in sample.items() if name in names}
