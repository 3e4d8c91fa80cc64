"""What voice and face add to masked language modelling: its loss with them, without them, and with those of others."""

import logging
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from triemo.modeling import TriemoForPreTraining
from triemo.modeling.losses_triemo import IGNORE_INDEX
from triemo.training.collation import MASKS, VECTORS, NoModalityError, present_modalities
from triemo.training.evaluation_subsets import INPUTS, only
from triemo.training.pretrain_data import PretrainCollator

__all__ = ["masked_word_losses"]

logger = logging.getLogger(__name__)

OTHERS = tuple(name for m in ("audio", "vision") for name in (MASKS[m], VECTORS[m], *INPUTS[m]))


@torch.inference_mode()
def masked_word_losses(
    model: TriemoForPreTraining, collator: PretrainCollator, rows: Any, state: PartialState, batch_size: int
) -> dict[str, float]:
    """
    Cross-entropy, mean over masked tokens, of the rows with words and with a voice or a face. The same words are
    masked each time, and for every model with this tokenizer: they depend on the collator's seed and the row's number.

    Args:
        model: in evaluation mode.
        collator: makes tensors of a row and masks words.
        rows: an emotion table, or a list of rows.
        state: of the processes, which share the rows.
        batch_size: rows a forward pass, 2 or more.

    Returns:
        `tokens`, `matching` (with the row's own voice and face), `mismatched` (with those of another row of the batch)
        and `alone` (words only). Empty when there is no such row.

    Raises:
        ValueError: naming the row whose media cannot be read, or for a model without a masked-token head.
    """
    if model.mlm_head is None:
        raise ValueError("model: got one without a masked-token head, expected mlm_weight above 0.")
    found: list[tuple[int, dict[str, float]]] = []
    # Batches of nearly one size: a last one of one row would have no other row.
    batches = np.array_split(np.arange(len(rows)), max(1, len(rows) // max(2, batch_size)))
    for indices in batches[state.process_index :: state.num_processes]:
        samples = []
        for index in indices.tolist():
            try:
                sample = collator.prepare({**rows[index], "ticket": index})
            except NoModalityError as error:
                logger.warning(f"left out: {error}")
            else:
                samples += [sample] if {"text"} < set(present_modalities(sample)) else []
        if len(samples) < 2:
            continue
        batch = {name: tensor.to(state.device) for name, tensor in collator.collate(samples).items()}
        others = {name: tensor.roll(1, 0) if name in OTHERS else tensor for name, tensor in batch.items()}
        words = only(batch, ("text",)) | {"mlm_labels": batch["mlm_labels"]}
        sums = {
            name: float(model(**inputs, return_loss=False).token_losses.double().sum())
            for name, inputs in (("matching", batch), ("mismatched", others), ("alone", words))
        }
        found.append((int((batch["mlm_labels"] != IGNORE_INDEX).sum()), sums))
    gathered = gather_object(found)
    tokens = sum(count for count, _ in gathered)
    if not tokens:
        return {}
    names = ("matching", "mismatched", "alone")
    return {"tokens": tokens} | {name: sum(sums[name] for _, sums in gathered) / tokens for name in names}
