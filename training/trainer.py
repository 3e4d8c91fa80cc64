"""The Trainer of `finetune.py`: its own order of rows, layer-wise rates, modules kept still, scores."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from triemo.training.arguments import FinetuneTrainingArguments
from triemo.training.metrics.calibration import calibration_temperature
from triemo.training.metrics.scores import lower_is_better
from triemo.training.start import parameter_groups

__all__ = ["EmotionTrainer", "score", "settle_selection", "temperature"]

logger = logging.getLogger(__name__)


class EmotionTrainer(Trainer):
    """
    Args:
        evaluation_collator: for validation and test; `data_collator` is the training's.
        sampler: order of the training rows; None for a stream.
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

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        # The Trainer's own samplers take their order from the global random state, which a resumed run lacks.
        return self.sampler

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        with self.evaluation_collation():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        with self.evaluation_collation():
            return super().get_test_dataloader(*args, **kwargs)

    @contextmanager
    def evaluation_collation(self) -> Iterator[None]:
        training, self.data_collator = self.data_collator, self.evaluation_collator
        try:
            yield
        finally:
            self.data_collator = training

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
        return (loss, outputs) if return_outputs else loss


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


def temperature(trainer: EmotionTrainer, rows: Any) -> float | None:
    """The calibration temperature of the trained model; None with too few validation rows."""
    output = trainer.predict(rows)
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    return calibration_temperature(logits, output.label_ids)
