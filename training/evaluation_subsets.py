"""Logits of every row for each of the seven subsets of its modalities, over any number of processes."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from triemo.training.collation import MASKS, VECTORS, EmotionCollator, NoModalityError, present_modalities
from triemo.training.composites import SUBSETS
from triemo.training.finetune_rows import EmotionRows

__all__ = ["PRESENT", "predict_subsets"]

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
    order = np.argsort(EmotionRows([rows]).lengths(), kind="stable").tolist()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    subsets = [s for s in SUBSETS if set(s) <= set(model.config.modalities)]
    found: list[tuple[str, int, list[float] | None]] = []
    for batch in batches[state.process_index :: state.num_processes]:
        samples = {}
        for index in batch:
            try:
                samples[index] = collator.encode(rows[index])
            except NoModalityError as error:
                logger.warning(f"left out: {error}")
                found.append((PRESENT, index, None))
        held = {index: present_modalities(sample) for index, sample in samples.items()}
        for subset in [None, *subsets]:
            chosen = [index for index in samples if subset is None or set(subset) <= set(held[index])]
            if not chosen:
                continue
            kept = [samples[index] if subset is None else only(samples[index], subset) for index in chosen]
            inputs = {name: tensor.to(state.device) for name, tensor in collator.collate(kept).items()}
            outputs = model(**inputs)
            temperatures = [
                model.config.temperature_of(mask) if calibrated else 1.0 for mask in outputs.modality_mask.tolist()
            ]
            logits = (outputs.logits.float().cpu() / torch.tensor(temperatures)[:, None]).tolist()
            name = PRESENT if subset is None else "+".join(subset)
            found += [(name, index, row) for index, row in zip(chosen, logits, strict=True)]
    by_subset: dict[str, dict[int, list[float]]] = {PRESENT: {}} | {"+".join(subset): {} for subset in subsets}
    empty = []
    for name, index, row in gather_object(found):
        if row is None:
            empty.append(index)
        else:
            by_subset[name][index] = row
    ordered = {name: dict(sorted(rows_.items())) for name, rows_ in by_subset.items() if rows_}
    return ordered, sorted(empty)


def only(sample: dict[str, torch.Tensor], subset: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors of some modalities of a row."""
    names = {name for modality in subset for name in (MASKS[modality], VECTORS[modality], *INPUTS[modality])}
    return {name: tensor for name, tensor in sample.items() if name in names}
