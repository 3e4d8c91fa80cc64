"""Fine-tune Triemo on a table of one's own or on corpora.

    python training/finetune.py --table calls.csv --output_dir runs/calls
    accelerate launch --config_file training/configs/ddp.yaml training/finetune.py --config training/configs/meld.yaml

A second call with the same arguments goes on from the last checkpoint. `output_dir` ends up with the model, its
processor and `results.json`; `triemo predict --model runs/calls clip.mp4` reads it.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, set_seed

from triemo.modeling import MODALITIES
from triemo.modeling.losses_triemo import emotion_loss
from triemo.training.arguments import DataArguments, FinetuneTrainingArguments, ModelArguments, parse_arguments
from triemo.training.data.collation import EmotionCollator
from triemo.training.data.dialogues import Standardised
from triemo.training.data.sampling import CompositeRows, EmotionRows
from triemo.training.data.streaming import Stream
from triemo.training.dialogue_task import build_dialogue_task
from triemo.training.metrics.calibration import FEWEST_ROWS, groups_of
from triemo.training.metrics.scores import scores_for_trainer
from triemo.training.run_folder import (
    find_checkpoint,
    finish,
    finished_results,
    place_base,
    run_arguments,
    run_record,
    sole_run,
    write_unfinished,
)
from triemo.training.sources import (
    check_labels,
    class_counts,
    drop_empty_rows,
    load_dialogues,
    load_splits,
    load_streams,
    training_rows,
    training_stream,
    warn_of_classes,
)
from triemo.training.start import Start, add_lora, build_start, class_weights, freeze, parse_names
from triemo.training.trainer import EmotionTrainer, score, settle_selection, temperature

__all__ = ["main"]

logger = logging.getLogger("triemo.training.finetune")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Parse, load, build, train, save. Returns what `results.json` holds."""
    model_args, data_args, args = parse_arguments(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO if args.process_index == 0 else logging.ERROR)
    with sole_run(args):
        record = run_record("training/finetune.py", argv, run_arguments(model_args, data_args, args))
        checkpoint = find_checkpoint(record["arguments"], args)
        finished = finished_results(checkpoint, args)
        return finished or finetune(model_args, data_args, args, checkpoint, record)


def finetune(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: FinetuneTrainingArguments,
    checkpoint: str | None,
    record: dict[str, Any],
) -> dict[str, Any]:
    """The run itself, from its start or a checkpoint; `record` is how it was made."""
    set_seed(args.seed)
    read = dialogue_run if data_args.task == "dialogues" else clip_run
    run = read(model_args, data_args, args)
    model, config = run.model, run.model.config
    labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    config.modality_dropout = model_args.modality_dropout
    weights = class_weights(model_args.class_weights, run.counts) if config.problem_type != "regression" else None
    if run.start is not None and model_args.lora:
        place_base(run.start, args)
        model = add_lora(model, model_args, run.frozen)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    logger.info(f"{trained:,} of {total:,} parameters learn ({trained / total:.1%}); classes: {run.counts or 'none'}.")

    settle_selection(args, config.problem_type, run.validation is not None)
    trainer = EmotionTrainer(
        model=model,
        args=args,
        train_dataset=run.train,
        eval_dataset=run.validation,
        data_collator=run.collate,
        processing_class=run.processor,
        evaluation_collator=run.evaluation_collate,
        compute_metrics=lambda p: scores_for_trainer(p.predictions, p.label_ids, config.problem_type, labels),
        callbacks=[EarlyStoppingCallback(args.early_stopping_patience)] if args.early_stopping_patience else None,
        sampler=run.sampler,
        still=run.still,
        layerwise_lr_decay=args.layerwise_lr_decay,
        loss=lambda logits, labels: emotion_loss(logits, labels, config, weights, model_args.label_smoothing),
    )
    if model_args.lora_merge and trainer.is_fsdp_enabled:
        raise ValueError("lora_merge: not under FSDP, where no process holds the whole model; leave the adapters be.")
    if checkpoint:
        logger.info(f"Going on from {checkpoint}.")
    summary = trainer.train(resume_from_checkpoint=checkpoint)

    config.modality_dropout, config.calibration_temperature = 0.0, 1.0  # a user who goes on from here starts without
    if run.scale is not None:
        run.scale.fold_into(model)
    folder = Path(args.output_dir)
    write_unfinished(trainer, run.processor, folder, merge=model_args.lora and model_args.lora_merge)

    results: dict[str, Any] = {"labels": labels, "problem_type": config.problem_type, "class_counts": run.counts}
    results |= {"parameters": total, "trained_parameters": trained, "steps": trainer.state.global_step}
    results |= {"train_loss": summary.training_loss, "best_checkpoint": trainer.state.best_model_checkpoint}
    for name in ("validation", "test"):
        results[name] = {part: score(trainer, rows, name) for part, rows in run.parts(name).items()}
    if run.validation is not None and config.problem_type.startswith("single") and not run.soft_labels:
        fitted = temperature(trainer, run.validation, run.groups)
        if fitted is None:
            logger.info(f"Fewer than {FEWEST_ROWS} validation rows: scores are not calibrated (temperature 1).")
        results["calibration_temperature"] = fitted or 1.0
    results["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    results |= record
    finish(trainer, folder, results.get("calibration_temperature"), results)
    return results


@dataclass
class Run:
    """
    What a task makes of the arguments.

    Args:
        model: with a head for the labels.
        processor: that is saved with it; None for a head over vectors.
        train: rows, with their `sampler`, or a stream, without.
        collate, evaluation_collate: rows to a batch, in training and else.
        validation: its rows; None where there is no such split.
        parts: from the name of a split to its rows by part.
        groups: what no fold of the calibration divides, for every validation row; empty where that is not known.
        counts: how often an epoch sees each class; empty for regression.
        start: what an adapter is trained on; None where there are no adapters.
        frozen: names of towers that stay as they are.
        still: modules that stay in evaluation mode.
        soft_labels: whether targets are probabilities.
        scale: of vectors, while they are learned from.
    """

    model: Any
    processor: Any
    train: Any
    sampler: Any
    collate: Callable[[list], Any]
    evaluation_collate: Callable[[list], Any]
    validation: Any
    parts: Callable[[str], dict[str, Any]]
    groups: list[str]
    counts: dict[str, float]
    start: Start | None = None
    frozen: Sequence[str] = ()
    still: Sequence[Any] = ()
    soft_labels: bool = False
    scale: Standardised | None = None


def clip_run(model_args: ModelArguments, data_args: DataArguments, args: FinetuneTrainingArguments) -> Run:
    """Each row alone."""
    splits: Any = load_streams(data_args) if data_args.streaming else load_splits(data_args)
    check_train(splits)
    start = build_start(model_args, None if data_args.streaming else splits["train"])
    config = start.model.config
    collators = {
        name: EmotionCollator(
            start.processor,
            config.label2id,
            config.problem_type,
            augment=data_args.augment and name == "train",
            seed=args.seed,
            modalities=config.modalities,
            soft_labels=start.soft_labels,
            max_length=data_args.max_length,
        )
        for name in ("train", "evaluation")
    }
    if not data_args.streaming:
        splits = check_rows(splits, collators["evaluation"], data_args.check_media)
    train: Any
    if data_args.streaming:
        train, sampler = training_stream(splits["train"], collators["train"], data_args, args), None
    else:
        composites = CompositeRows(splits["train"], data_args.composites, args.seed) if data_args.composites else None
        train, sampler = training_rows(
            splits["train"], collators["train"].prepare, data_args, args.seed, args.train_batch_size, composites
        )
    labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    counts: dict[str, float] = {}
    if config.problem_type != "regression":
        if not data_args.streaming:
            warn_of_classes(splits)
        counts = dict.fromkeys(labels, 0.0) if data_args.streaming else class_counts(splits["train"], labels)
    frozen = parse_names(model_args.freeze_towers, "freeze_towers", MODALITIES)
    has_validation = "validation" in splits
    # The rows of a stream have no number to be found by.
    tables = [] if data_args.streaming or not has_validation else [rows for rows, _ in splits["validation"].values()]
    return Run(
        model=start.model,
        processor=start.processor,
        train=train,
        sampler=sampler,
        collate=collators["train"].collate,
        evaluation_collate=collators["evaluation"],
        validation=evaluation_rows(splits["validation"]) if has_validation else None,
        parts=lambda name: evaluation_parts(splits, name, data_args.table),
        groups=groups_of(tables),
        counts=counts,
        start=start,
        frozen=frozen,
        still=freeze(start.model, frozen),
        soft_labels=start.soft_labels,
    )


def dialogue_run(model_args: ModelArguments, data_args: DataArguments, args: FinetuneTrainingArguments) -> Run:
    """Each row in its dialogue."""
    splits = load_dialogues(data_args)
    check_train(splits)
    warn_of_classes(splits)
    task = build_dialogue_task(splits, model_args, data_args, args)
    train, sampler = task.training_rows(args, data_args.length_buckets)
    validation = task.rows("validation") if "validation" in splits else None
    frozen = parse_names(model_args.freeze_towers, "freeze_towers", MODALITIES)
    return Run(
        model=task.model,
        processor=None if task.start is None else task.start.processor,
        train=train,
        sampler=sampler,
        collate=train.collate,
        evaluation_collate=train.collate,
        validation=validation,
        parts=lambda name: {part: task.rows(name, part) for part in task.splits.get(name, {})},
        groups=[] if validation is None else validation.groups(),
        counts=class_counts(splits["train"], list(task.model.config.label2id)),
        start=task.start,
        frozen=frozen,
        still=freeze(task.model, frozen),
        scale=task.scale,
    )


def check_train(splits: Mapping[str, Any]) -> None:
    if "train" not in splits:
        raise ValueError(f"split: got only {', '.join(splits)}, expected a split train.")


def check_rows(
    splits: dict[str, dict[str, tuple[Any, float]]], collator: EmotionCollator, check_media: bool
) -> dict[str, dict[str, tuple[Any, float]]]:
    """Look at all labels and at the pictures of validation and test: what is wrong shows before hours of training."""
    checked: dict[str, dict[str, tuple[Any, float]]] = {}
    for name, parts in splits.items():
        checked[name] = {}
        for part, (data, weight) in parts.items():
            check_labels(data, collator.encode_label)
            if check_media and name != "train" and {"image", "video"} & set(data.column_names):
                data = drop_empty_rows(data, collator.encode, f"{part} {name}")
            checked[name][part] = (data, weight)
    return checked


def evaluation_rows(source: Any) -> Any:
    """The rows of a stream, or of all weighted parts, in their order."""
    return source.rows() if isinstance(source, Stream) else EmotionRows([data for data, _ in source.values()])


def evaluation_parts(splits: dict[str, Any], split: str, table: str | None) -> dict[str, Any]:
    """The same by part; a table, streamed or not, is one."""
    source = splits.get(split, {})
    if isinstance(source, Stream):
        return {Path(table or "").stem: evaluation_rows(source)}
    return {part: evaluation_rows({part: rows}) for part, rows in source.items()}


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"finetune.py: {error}")
