"""Gradient caching: contrastive batches several times as large as memory holds, with the gradient of the whole batch.

InfoNCE reads all embeddings of a batch at once, but only the embeddings. So (Gao et al., 2021, "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup"): embed chunk by chunk without a graph, compute the loss
and its gradient for the embeddings, then run each chunk again with a graph and hand it its share of that gradient.
Losses of single tokens and steps are handled alike, so the means over them are those of the whole batch as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch.utils.checkpoint import get_device_states, set_device_states

from triemo.modeling import MODALITIES, TriemoForPreTrainingOutput
from triemo.modeling.distributed_triemo import is_distributed
from triemo.modeling.losses_triemo import IGNORE_INDEX
from triemo.modeling.pretraining_triemo import pretraining_losses

__all__ = ["cached_contrastive_step"]

EMBEDS = tuple(f"{modality}_embeds" for modality in MODALITIES)
LISTS = ("token_losses", "frame_errors")


def cached_contrastive_step(
    model: Any, chunks: Sequence[Mapping[str, torch.Tensor]], backward: Callable[[torch.Tensor], Any] | None = None
) -> dict[str, torch.Tensor]:
    """
    Adds to the parameters' gradients those of `TriemoForPreTraining` on all chunks as one batch. Random numbers, of
    dropout for example, are the same in both passes. Batch normalisation, where an encoder has it and is in training
    mode, sees chunks, not the batch, and its running means move twice.

    Args:
        model: a `TriemoForPreTraining`, as it is or wrapped for distributed training. With several processes,
            negatives come from all, gradients are exchanged in the last chunk only, and every process has to call
            this.
        chunks: arguments of the model's forward pass, a batch each; sizes and modalities may differ.
        backward: what runs the backward pass, such as `accelerator.backward`; `torch.Tensor.backward` by default.

    Returns:
        `loss` and its parts as the model's forward pass gives them, without a graph.

    Raises:
        ValueError: without a chunk, or as the model does.
    """
    if not chunks:
        raise ValueError("chunks: got none, expected one or more batches.")
    inner = extract_model_from_parallel(model)
    outputs, states = [], []
    for chunk in chunks:
        states.append(_RandomState(chunk))
        with torch.no_grad():
            outputs.append(model(**chunk, return_loss=False))
    rows = [len(output.modality_mask) for output in outputs]
    leaves, sizes = _join(outputs, rows)
    whole = TriemoForPreTrainingOutput(modality_mask=torch.cat([o.modality_mask for o in outputs]), **leaves)
    with torch.enable_grad():
        losses = pretraining_losses(
            inner.config, whole, _join_labels(chunks, rows), inner.training and is_distributed()
        )
        gradients = torch.autograd.grad(losses["loss"], list(leaves.values()), allow_unused=True)
    shares = {
        name: (torch.zeros_like(leaf) if gradient is None else gradient).split(sizes[name])
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
        if name in sizes
    }
    scale_gradient = dict(zip(leaves, gradients, strict=True)).get("logit_scale")
    del outputs, whole
    last = len(chunks) - 1
    for index, chunk in enumerate(chunks):
        with _exchanged(model, index == last), states[index].replayed():
            output = model(**chunk, return_loss=False)
            # Its gradient is the whole batch's loss's, as far as it runs through this chunk.
            share = sum(
                (output[name].to(parts[index].dtype) * parts[index]).sum()
                for name, parts in shares.items()
                if name in output
            )
            if scale_gradient is not None:
                share = share + output.logit_scale * (scale_gradient if index == last else 0.0)
            (backward or torch.Tensor.backward)(share)  # type: ignore[arg-type]
    return {name: value.detach() for name, value in losses.items()}


def _join(outputs: list[Any], rows: list[int]) -> tuple[dict[str, torch.Tensor], dict[str, list[int]]]:
    """What losses read of all chunks, as leaves of a graph, and how much of it is each chunk's."""
    leaves, sizes = {}, {}
    for name in (*EMBEDS, *LISTS):
        some = next((output[name] for output in outputs if name in output), None)
        if some is None:
            continue
        parts = [
            output[name]
            if name in output
            else some.new_zeros(count if name in EMBEDS else 0, *some.shape[1:])  # a chunk without this modality
            for output, count in zip(outputs, rows, strict=True)
        ]
        leaves[name], sizes[name] = torch.cat(parts).requires_grad_(), [len(part) for part in parts]
    if outputs[-1].logit_scale is not None:
        leaves["logit_scale"] = outputs[-1].logit_scale.clone().requires_grad_()
    return leaves, sizes


def _join_labels(chunks: Sequence[Mapping[str, torch.Tensor]], rows: list[int]) -> torch.Tensor | None:
    some = next((chunk["labels"] for chunk in chunks if chunk.get("labels") is not None), None)
    if some is None:
        return None
    unknown = [some.new_full((count, *some.shape[1:]), IGNORE_INDEX) for count in rows]
    given = [chunk.get("labels") for chunk in chunks]
    return torch.cat([none if labels is None else labels for labels, none in zip(given, unknown, strict=True)])


class _RandomState:
    """The random state before a chunk, of the processor and of the devices that the chunk lies on."""

    def __init__(self, chunk: Mapping[str, Any]) -> None:
        tensors = [value for value in chunk.values() if torch.is_tensor(value)]
        self.processor = torch.get_rng_state()
        self.devices, self.states = get_device_states(*tensors)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=self.devices, enabled=True):
            torch.set_rng_state(self.processor)
            set_device_states(self.devices, self.states)
            yield


@contextmanager
def _exchanged(model: Any, wanted: bool) -> Iterator[None]:
    """Whether processes exchange gradients in the backward pass: `no_sync` of DDP, or what FSDP2 has in its place."""
    if wanted or not (hasattr(model, "no_sync") or hasattr(model, "set_requires_gradient_sync")):
        yield
    elif hasattr(model, "no_sync"):
        with model.no_sync():
            yield
    else:
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
