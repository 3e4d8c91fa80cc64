"""The Trainer of `pretrain.py`: each loss by itself, throughput, streams, large batches in cached chunks."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triemo.modeling.losses_triemo import IGNORE_INDEX
from triemo.training.collation import MASKS
from triemo.training.finetune_folder import write_json
from triemo.training.finetune_trainer import EmotionTrainer
from triemo.training.grad_cache import cached_contrastive_step
from triemo.training.pretrain_stream import ShardBatches, StreamLoader

__all__ = ["LOSS_PARTS", "PretrainTrainer", "peak_memory_megabytes"]

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
        cache_chunk_size: run a batch in chunks of so many clips (`grad_cache`); 0 runs it whole.
        kwargs: of the [`EmotionTrainer`]; a `train_dataset` of [`ShardBatches`] is a stream.
    """

    def __init__(self, *, cache_chunk_size: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cache_chunk_size = cache_chunk_size
        self.stream: StreamLoader | None = None
        self.meters = Meters()
        self.evaluated = Meters()

    # Streams -------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        if not isinstance(self.train_dataset, ShardBatches):
            return super().get_train_dataloader()
        workers = self.args.dataloader_num_workers
        options: dict[str, Any] = {"pin_memory": self.args.dataloader_pin_memory}
        if workers:
            options |= {"prefetch_factor": self.args.dataloader_prefetch_factor or 2}
            options |= {"multiprocessing_context": self.args.dataloader_multiprocessing_context}
        self.stream = StreamLoader(self.train_dataset, workers, **options)
        if self.resumed_from is not None:
            file = Path(self.resumed_from) / self.stream_file
            try:
                self.stream.load_state_dict(json.loads(file.read_text(encoding="utf-8")))
            except OSError as error:
                raise ValueError(f"stream: cannot go on, {file} says where: {error}") from error
        return self.stream

    @property
    def stream_file(self) -> str:
        return f"stream_{self.args.process_index}.json"

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        self.resumed_from = resume_from_checkpoint
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.stream is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            write_json(Path(output_dir) / self.stream_file, self.stream.state_dict())
        # The first process marks a checkpoint as whole after this.
        self.accelerator.wait_for_everyone()

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
            losses = cached_contrastive_step(model, chunks, self.accelerator.backward)
        self.meters.add(losses)
        return losses["loss"]

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            self.meters.add(outputs)
        else:
            self.evaluated.add(outputs, inputs.get("mlm_labels"))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= self.meters.means(self.accelerator)
            logs |= self.meters.throughput(self.args.world_size)
            if self.stream is not None:
                logs |= {"broken_rows": self.stream.broken, "passes": self.stream.passes}
                # The Trainer counts from 0 again after a resume without skipping.
                self.state.epoch = self.state.global_step / self.state.max_steps
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
