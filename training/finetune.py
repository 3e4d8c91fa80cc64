"""Fine-tune Triemo on a table of one's own or on corpora.

    python training/finetune.py --table calls.csv --output_dir runs/calls
    accelerate launch --config_file training/configs/ddp.yaml training/finetune.py --config training/configs/meld.yaml

A second call with the same arguments goes on from the last checkpoint. `output_dir` ends up with the model, its
processor and `results.json`; `triemo predict --model runs/calls clip.mp4` reads it.
"""

import logging
import sys
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, set_seed

from triemo.modeling import MODALITIES
from triemo.modeling.losses_triemo import emotion_loss
from triemo.training.arguments import DataArguments, FinetuneTrainingArguments, ModelArguments, parse_arguments
from triemo.training.data.collation import EmotionCollator
from triemo.training.data.sampling import CompositeRows, EmotionRows
from triemo.training.data.streaming import Stream
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
    load_splits,
    load_streams,
    training_rows,
    training_stream,
    warn_of_classes,
)
from triemo.training.start import add_lora, build_start, class_weights, freeze, parse_names
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

    splits: Any = load_streams(data_args) if data_args.streaming else load_splits(data_args)
    if "train" not in splits:
        raise ValueError(f"split: got only {', '.join(splits)}, expected a split train.")
    start = build_start(model_args, None if data_args.streaming else splits["train"])
    model, config = start.model, start.model.config
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
    config.modality_dropout = model_args.modality_dropout
    counts: dict[str, float] = {}
    weights = None
    if config.problem_type != "regression":
        if not data_args.streaming:
            warn_of_classes(splits)
        counts = dict.fromkeys(labels, 0.0) if data_args.streaming else class_counts(splits["train"], labels)
        weights = class_weights(model_args.class_weights, counts)

    frozen = parse_names(model_args.freeze_towers, "freeze_towers", MODALITIES)
    still = freeze(model, frozen)
    if model_args.lora:
        place_base(start, args)
        model = add_lora(model, model_args, frozen)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    logger.info(f"{trained:,} of {total:,} parameters learn ({trained / total:.1%}); classes: {counts or 'none'}.")

    validation = evaluation_rows(splits["validation"]) if "validation" in splits else None
    settle_selection(args, config.problem_type, validation is not None)
    trainer = EmotionTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collators["train"].collate,
        processing_class=start.processor,
        evaluation_collator=collators["evaluation"],
        compute_metrics=lambda p: scores_for_trainer(p.predictions, p.label_ids, config.problem_type, labels),
        callbacks=[EarlyStoppingCallback(args.early_stopping_patience)] if args.early_stopping_patience else None,
        sampler=sampler,
        still=still,
        layerwise_lr_decay=args.layerwise_lr_decay,
        loss=lambda logits, labels: emotion_loss(logits, labels, config, weights, model_args.label_smoothing),
    )
    if model_args.lora_merge and trainer.is_fsdp_enabled:
        raise ValueError("lora_merge: not under FSDP, where no process holds the whole model; leave the adapters be.")
    if checkpoint:
        logger.info(f"Going on from {checkpoint}.")
    summary = trainer.train(resume_from_checkpoint=checkpoint)

    config.modality_dropout, config.calibration_temperature = 0.0, 1.0  # a user who goes on from here starts without
    folder = Path(args.output_dir)
    write_unfinished(trainer, start.processor, folder, merge=model_args.lora and model_args.lora_merge)

    results: dict[str, Any] = {"labels": labels, "problem_type": config.problem_type, "class_counts": counts}
    results |= {"parameters": total, "trained_parameters": trained, "steps": trainer.state.global_step}
    results |= {"train_loss": summary.training_loss, "best_checkpoint": trainer.state.best_model_checkpoint}
    for name in ("validation", "test"):
        results[name] = {
            part: score(trainer, rows, name) for part, rows in evaluation_parts(splits, name, data_args.table).items()
        }
    if validation is not None and config.problem_type.startswith("single") and not start.soft_labels:
        # The rows of a stream have no number to be found by.
        parts = [] if data_args.streaming else [rows for rows, _ in splits["validation"].values()]
        fitted = temperature(trainer, validation, groups_of(parts))
        if fitted is None:
            logger.info(f"Fewer than {FEWEST_ROWS} validation rows: scores are not calibrated (temperature 1).")
        results["calibration_temperature"] = fitted or 1.0
    results["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    results |= record
    finish(trainer, folder, results.get("calibration_temperature"), results)
    return results


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
