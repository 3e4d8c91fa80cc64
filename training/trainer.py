"""The Trainer of `finetune.py`: its own order of rows, streams, layer-wise rates, modules kept still, scores.

It stops where nothing can be learned any more, and goes on from a checkpoint with the very losses in its log.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainerCallback
from transformers.trainer_pt_utils import nested_detach, nested_numpify
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, SaveStrategy, denumpify_detensorize

from triemo.modeling.losses_triemo import IGNORE_INDEX
from triemo.training.arguments import FinetuneTrainingArguments
from triemo.training.common import write_json
from triemo.training.data.streaming import EvaluationBatches, ShardBatches, StreamLoader
from triemo.training.metrics.calibration import calibration_temperature
from triemo.training.metrics.scores import lower_is_better
from triemo.training.run_folder import saving, write_checksums
from triemo.training.start import parameter_groups

__all__ = ["EmotionTrainer", "score", "settle_selection", "temperature"]

logger = logging.getLogger(__name__)


class EmotionTrainer(Trainer):
    """
    Args:
        evaluation_collator: for validation and test; `data_collator` is the training's.
        sampler: order of the training rows; None for a stream, a `train_dataset` of [`ShardBatches`].
        still: modules that stay in evaluation mode.
        layerwise_lr_decay, part_lr_factors: see `parameter_groups`.
        loss: from logits and labels to a scalar; the model's own when None.
        kwargs: the Trainer's.
    """

    def __init__(
        self,
        *,
        evaluation_collator: Any,
        sampler: Any = None,
        still: Sequence[nn.Module] = (),
        layerwise_lr_decay: float = 1.0,
        part_lr_factors: Mapping[str, float] | None = None,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.evaluation_collator, self.sampler = evaluation_collator, sampler
        self.still, self.layerwise_lr_decay = list(still), layerwise_lr_decay
        self.part_lr_factors, self.loss = dict(part_lr_factors or {}), loss
        vars(self.model.config).pop("use_cache", None)  # set by the Trainer; no field of ours, so never saved
        self.stream: StreamLoader | None = None
        self.resumed_from: str | None = None
        self.is_counted = True  # False for a batch that another process counts
        self.add_callback(_GoOnLogging(self))

    # Rows ----------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        # The Trainer's own samplers take their order from the global random state, which a resumed run lacks.
        return self.sampler

    def get_train_dataloader(self) -> Any:
        if not isinstance(self.train_dataset, ShardBatches):
            return super().get_train_dataloader()
        self.stream = StreamLoader(self.train_dataset, self.args.dataloader_num_workers, **self.loader_options())
        if self.resumed_from is not None:
            file = Path(self.resumed_from) / self.stream_file
            try:
                self.stream.load_state_dict(json.loads(file.read_text(encoding="utf-8")))
            except OSError as error:
                raise ValueError(f"stream: cannot go on, {file} says where: {error}") from error
        return self.stream

    def loader_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"pin_memory": self.args.dataloader_pin_memory}
        if self.args.dataloader_num_workers:
            options |= {"prefetch_factor": self.args.dataloader_prefetch_factor or 2}
            options |= {"multiprocessing_context": self.args.dataloader_multiprocessing_context}
        return options

    @property
    def stream_file(self) -> str:
        return f"stream_{self.args.process_index}.json"

    # Steps ---------------------------------------------------------------------------------------------------

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        model = next((found for found in (*args, kwargs.get("model")) if found is not None), self.model)
        if self.optimizer is not None or (self.layerwise_lr_decay == 1 and not self.part_lr_factors):
            return super().create_optimizer(*args, **kwargs)
        decayed = set(self.get_decay_parameter_names(model))
        rates = (self.args.learning_rate, self.args.weight_decay, self.layerwise_lr_decay)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = optimizer_class(parameter_groups(model, *rates, decayed, self.part_lr_factors), **options)
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        if model.training:
            for module in self.still:
                module.eval()
        if self.loss is None:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = self.loss(outputs.logits, inputs["labels"])
        if model.training and self.args.world_size > 1 and outputs.logits.dim() == 3:
            # Dialogues differ in length, and the gradient is the mean over processes: each counts by its utterances.
            own = (inputs["labels"] != IGNORE_INDEX).sum().float()
            loss = loss * own * self.args.world_size / self.accelerator.reduce(own.clone(), "sum").clamp(min=1)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.check_loss(loss)
        return loss

    def check_loss(self, loss: torch.Tensor) -> None:
        """Raises ValueError, in all processes at the same step, where the loss of one of them is not finite."""
        bad = (~torch.isfinite(loss.detach()).all()).float()
        if self.args.world_size > 1:
            bad = self.accelerator.reduce(bad, "sum")
        if bad > 0:
            raise self.diverged(f"the loss is {float(loss)}", self.state.global_step + 1)

    def check_weights(self) -> None:
        """The same for weights, of which under FSDP a process sees its share."""
        bad = next((name for name, value in self.model.named_parameters() if not _is_finite(value)), None)
        flag = torch.tensor(float(bad is not None), device=self.args.device)
        if self.args.world_size > 1:
            flag = self.accelerator.reduce(flag, "sum")
        if flag > 0:
            raise self.diverged(f"weights are not finite, first {bad or 'in another process'}", self.state.global_step)

    def diverged(self, what: str, step: int) -> ValueError:
        return ValueError(
            f"step {step}: {what}. Nothing more is saved, what was saved before stays as it is. Try a smaller "
            f"--learning_rate (now {self.args.learning_rate:g}), a longer warm-up, or look for odd values in the data."
        )

    # Evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss = metrics.get(f"{metric_key_prefix}_loss", 0.0)
        if not math.isfinite(loss):
            raise self.diverged(f"the loss of the evaluation is {loss}", self.state.global_step)
        return metrics

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        processes = (self.args.process_index, self.args.world_size)
        batches = EvaluationBatches(rows, self.evaluation_collator, self.args.eval_batch_size, *processes)
        options = {"num_workers": self.args.dataloader_num_workers, **self.loader_options()}
        return DataLoader(batches, batch_size=None, **options)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """
        The Trainer's own, over `EvaluationBatches`: what they give is gathered by batch, so figures are those of one
        process. The Trainer's repeats rows where the last batches are short, and takes no ragged ones from a stream.
        """
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models and model is self.model:  # evaluated without having been trained
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        found = []
        for item in dataloader:
            self.is_counted = item["number"] >= 0
            step = self.prediction_step(model, item["batch"], loss_only, ignore_keys=ignore_keys)
            if self.is_counted:
                loss, *arrays = (part if part is None else nested_numpify(nested_detach(part)) for part in step)
                rows, arrays = labelled_steps(item["rows"], *arrays)
                found.append((item["number"], rows, loss, arrays))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        found = sorted(gather_object(found), key=lambda batch: batch[0])
        if not found:
            raise ValueError(f"{metric_key_prefix}: got no row to score, expected some.")
        predictions, labels = (
            None if columns[0] is None else _joined(columns)
            for columns in zip(*(arrays for *_, arrays in found), strict=True)
        )
        metrics: dict[str, Any] = {}
        if self.compute_metrics is not None and predictions is not None and labels is not None:
            metrics = dict(self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels)))
        counts = np.array([rows for _, rows, *_ in found])
        if found[0][2] is not None:
            metrics["loss"] = float(np.average([loss.mean() for _, _, loss, _ in found], weights=counts))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in denumpify_detensorize(metrics).items()}
        return EvalLoopOutput(
            predictions=predictions, label_ids=labels, metrics=metrics, num_samples=int(counts.sum())
        )

    # Going on ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        self.resumed_from = resume_from_checkpoint
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> Any:
        epochs, *others = super().set_initial_training_values(*args, **kwargs)
        if self.resumed_from and 0 < self.args.max_steps <= _steps_of(self.resumed_from):
            epochs = 0  # else the Trainer takes one step before it sees that there are none left
        return (epochs, *others)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.check_weights()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with saving(folder, self.args.should_save):
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()  # each process writes files of its own
            if self.args.should_save:
                write_checksums(folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        if self.stream is not None:
            write_json(Path(output_dir) / self.stream_file, self.stream.state_dict())
        write_json(Path(output_dir) / self.log_file, self.log_state())
        # The first process marks a checkpoint as whole after this.
        self.accelerator.wait_for_everyone()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self.stream is not None:
            logs |= {"broken_rows": self.stream.broken, "passes": self.stream.passes}
            # The Trainer counts from 0 again after a resume without skipping.
            self.state.epoch = self.state.global_step / self.state.max_steps
        super().log(logs, *args, **kwargs)

    @property
    def log_file(self) -> str:
        return f"log_state_{self.args.process_index}.json"

    def log_state(self) -> dict[str, Any]:
        """What this process has summed up since the last log: the next one is the mean over all steps since then."""
        return {
            "loss_since_log": float(self._tr_loss),
            "loss_before": self._total_loss_scalar,
            "logged_at": self._globalstep_last_logged,
        }

    def load_log_state(self, state: Mapping[str, Any]) -> None:
        self._tr_loss.fill_(state["loss_since_log"])
        self._total_loss_scalar, self._globalstep_last_logged = state["loss_before"], state["logged_at"]
        self._initial_global_step = 0  # the loss that training returns is the mean over all its steps


class _GoOnLogging(TrainerCallback):
    """Restores, once the Trainer has set its sums to zero, those of the checkpoint that it goes on from."""

    def __init__(self, trainer: EmotionTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer.resumed_from is None:
            return
        file = Path(self.trainer.resumed_from) / self.trainer.log_file
        if file.is_file():
            self.trainer.load_log_state(json.loads(file.read_text(encoding="utf-8")))
        else:
            logger.warning(f"{file} is not there: the next loss in the log is that of the steps from here on alone.")


def _steps_of(checkpoint: str) -> int:
    return int(json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])


def _joined(columns: Sequence[Any]) -> Any:
    """Arrays, or tuples of them, of all batches as one."""
    if isinstance(columns[0], tuple):
        return tuple(_joined(parts) for parts in zip(*columns, strict=True))
    return np.concatenate(columns)


def labelled_steps(rows: int, predictions: Any, labels: Any) -> tuple[int, list]:
    """
    How much a batch counts, predictions and labels; of dialogues, (B, N, C) and (B, N), the utterances that have a
    label, one after the other.
    """
    if labels is None or np.ndim(predictions) != 3 or labels.ndim != 2:
        return rows, [predictions, labels]
    known = labels != IGNORE_INDEX
    return int(known.sum()), [predictions[known], labels[known]]


def _is_finite(value: torch.Tensor) -> bool:
    shard = value.to_local() if hasattr(value, "to_local") else value
    return bool(torch.isfinite(shard.detach()).all())


def settle_selection(args: FinetuneTrainingArguments, problem_type: str, has_validation: bool) -> None:
    """What the best checkpoint is; without validation rows, the last one."""
    if not has_validation:
        if args.early_stopping_patience:
            raise ValueError("early_stopping_patience: needs a validation split, and there is none.")
        logger.warning("No validation split: the last weights are kept.")
        args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False
        args.metric_for_best_model = None
        return
    if args.metric_for_best_model == "auto":
        args.metric_for_best_model = "ccc" if problem_type == "regression" else "macro_f1"
    args.greater_is_better = not lower_is_better(args.metric_for_best_model)
    if args.early_stopping_patience and args.eval_strategy == IntervalStrategy.NO:
        raise ValueError("early_stopping_patience: needs --eval_strategy steps or epoch, got no.")
    if args.save_strategy == SaveStrategy.NO:
        args.load_best_model_at_end = False


def score(trainer: EmotionTrainer, rows: Any, name: str) -> dict[str, float]:
    """Loss and scores of the rows of a split, without how fast they came."""
    found = trainer.evaluate(rows, metric_key_prefix=name)
    speed = ("_runtime", "_per_second", "_time")
    own = {key: value for key, value in found.items() if key.startswith(f"{name}_") and not key.endswith(speed)}
    return {key.removeprefix(f"{name}_"): value for key, value in own.items()}


def temperature(trainer: EmotionTrainer, rows: Any, groups: Sequence[str]) -> float | None:
    """The calibration temperature of the trained model; None with too few validation rows. See `groups_of`."""
    output = trainer.predict(rows)
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    return calibration_temperature(logits, output.label_ids, groups or [str(row) for row in range(len(logits))])
