"""The Trainer of `pretrain.py`: each loss by itself, throughput, streams, large batches in cached chunks."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.utils.checkpoint import get_device_states, set_device_states

from triemo.modeling import MODALITIES, TriemoForPreTrainingOutput
from triemo.modeling.distributed_triemo import is_distributed
from triemo.modeling.losses_triemo import IGNORE_INDEX
from triemo.modeling.pretraining_triemo import pretraining_losses
from triemo.training.data.collation import MASKS
from triemo.training.trainer import EmotionTrainer

__all__ = ["LOSS_PARTS", "PretrainTrainer", "cached_contrastive_step", "peak_memory_megabytes"]

WEIGHTED_PARTS = ("mlm", "contrastive", "frame")
LOSS_PARTS = (
    "mlm_loss",
    "contrastive_loss",
    "text_audio_loss",
    "text_vision_loss",
    "audio_vision_loss",
    "frame_loss",
)


class PretrainTrainer(EmotionTrainer):
    """
    Logs beside `loss` its parts (means over the steps that had them), `logit_scale`, `clips_per_second` over all
    processes, the share of steps of each modality that are no padding, and `peak_memory_megabytes` of this process.

    Args:
        cache_chunk_size: run a batch in chunks of so many clips ([`cached_contrastive_step`]); 0 runs it whole.
        local_loss: see `contrastive_losses`.
        kwargs: of the [`EmotionTrainer`].
    """

    def __init__(self, *, cache_chunk_size: int = 0, local_loss: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cache_chunk_size, self.local_loss = cache_chunk_size, local_loss
        self.meters = Meters()
        self.evaluated = Meters()

    def log_state(self) -> dict[str, Any]:
        return super().log_state() | {"meters": self.meters.state_dict()}

    def load_log_state(self, state: Mapping[str, Any]) -> None:
        super().load_log_state(state)
        self.meters.load_state_dict(state["meters"])

    # Steps ---------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        self.meters.count_steps(inputs)
        if not self.cache_chunk_size:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        for module in self.still:
            module.eval()
        chunks = split_batch(self._prepare_inputs(inputs), self.cache_chunk_size)
        with self.compute_loss_context_manager():
            losses = cached_contrastive_step(model, chunks, self.accelerator.backward, self.local_loss)
        self.check_loss(losses["loss"])
        self.meters.add(losses)
        return losses["loss"]

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        given = {**inputs, "local_loss": self.local_loss}
        loss, outputs = super().compute_loss(model, given, return_outputs=True, **kwargs)
        if model.training:
            self.meters.add(outputs)
        elif self.is_counted:
            self.evaluated.add(outputs, inputs.get("mlm_labels"))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= self.meters.means(self.accelerator)
            logs |= self.meters.throughput(self.args.world_size)
            self.meters = Meters()
        super().log(logs, *args, **kwargs)

    # Evaluation ----------------------------------------------------------------------------------------------

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> tuple:
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach().mean(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self.evaluated = Meters()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        parts = self.evaluated.means(self.accelerator)
        parts.pop("logit_scale", None)
        config = self.accelerator.unwrap_model(self.model).config
        # Batches without a part would pull the mean of whole losses down.
        whole = [getattr(config, f"{name}_weight") * parts.get(f"{name}_loss", 0.0) for name in WEIGHTED_PARTS]
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in parts.items()})
        output.metrics[f"{metric_key_prefix}_loss"] = sum(whole)
        return output


class Meters:
    """Sums since the last log: parts of the loss with their weights, clips, steps that count and padded ones."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, torch.Tensor] = {}
        self.clips, self.started = 0, time.perf_counter()
        self.real, self.padded = dict.fromkeys(MASKS, 0.0), dict.fromkeys(MASKS, 0)

    def add(self, outputs: Mapping[str, Any], mlm_labels: torch.Tensor | None = None) -> None:
        """A part that a batch lacks is 0 or None, and does not count; with labels L_MLM counts by its tokens."""
        for name in (*LOSS_PARTS, "logit_scale"):
            value = outputs.get(name)
            if value is None:
                continue
            value = value.detach().double()
            weight = (value != 0).double()
            if name == "mlm_loss" and mlm_labels is not None:
                weight = (mlm_labels != IGNORE_INDEX).sum().double()
            self.sums[name] = self.sums.get(name, 0.0) + value * weight
            self.counts[name] = self.counts.get(name, 0.0) + weight

    def count_steps(self, inputs: Mapping[str, Any]) -> None:
        masks = {modality: inputs[name] for modality, name in MASKS.items() if name in inputs}
        self.clips += len(next(iter(masks.values()))) if masks else 0
        for modality, mask in masks.items():
            self.real[modality] += float(mask.sum())
            self.padded[modality] += mask.numel()

    def state_dict(self) -> dict[str, Any]:
        """All but clips and time, whose ratio is the speed of this call."""
        return {
            "sums": {name: float(value) for name, value in self.sums.items()},
            "counts": {name: float(value) for name, value in self.counts.items()},
            "real": self.real,
            "padded": self.padded,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError for what `state_dict` did not give."""
        for name in ("sums", "counts"):
            values = {part: torch.tensor(value, dtype=torch.double) for part, value in state[name].items()}
            setattr(self, name, values)
        self.real, self.padded = dict(state["real"]), dict(state["padded"])

    def means(self, accelerator: Any) -> dict[str, float]:
        """Over all processes; every one of them has to ask."""
        names = (*LOSS_PARTS, "logit_scale")
        zero = torch.zeros((), dtype=torch.double, device=accelerator.device)
        rows = [torch.stack([values.get(name, zero) for name in names]) for values in (self.sums, self.counts)]
        sums, counts = accelerator.reduce(torch.stack(rows), "sum")
        return {
            name: float(total / count) for name, total, count in zip(names, sums, counts, strict=True) if count > 0
        }

    def throughput(self, processes: int) -> dict[str, float]:
        shares = {
            f"{modality}_unpadded_share": round(self.real[modality] / self.padded[modality], 4)
            for modality in MASKS
            if self.padded[modality]
        }
        speed = self.clips * processes / max(time.perf_counter() - self.started, 1e-9)
        return {"clips_per_second": round(speed, 3), **shares, "peak_memory_megabytes": peak_memory_megabytes()}


def peak_memory_megabytes() -> float:
    """Most memory held so far, of the GPU where there is one, else of this process; 0 where no system call says."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def split_batch(batch: Mapping[str, torch.Tensor], rows: int) -> list[dict[str, torch.Tensor]]:
    """Chunks of so many rows of every tensor."""
    size = len(next(iter(batch.values())))
    return [{name: value[start : start + rows] for name, value in batch.items()} for start in range(0, size, rows)]


# Gradient caching --------------------------------------------------------------------------------------------
#
# Contrastive batches several times as large as memory holds, with the gradient of the whole batch. InfoNCE reads all
# embeddings of a batch at once, but only the embeddings. So (Gao et al., 2021, "Scaling Deep Contrastive Learning
# Batch Size under Memory Limited Setup"): embed chunk by chunk without a graph, compute the loss and its gradient for
# the embeddings, then run each chunk again with a graph and hand it its share of that gradient. Losses of single
# tokens and steps are handled alike, so the means over them are those of the whole batch as well.

EMBEDS = tuple(f"{modality}_embeds" for modality in MODALITIES)
LISTS = ("token_losses", "frame_errors")


def cached_contrastive_step(
    model: Any,
    chunks: Sequence[Mapping[str, torch.Tensor]],
    backward: Callable[[torch.Tensor], Any] | None = None,
    local_loss: bool = False,
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
        local_loss: see `contrastive_losses`.

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
        everywhere = inner.training and is_distributed()
        losses = pretraining_losses(inner.config, whole, _join_labels(chunks, rows), everywhere, local_loss)
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
