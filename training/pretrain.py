"""Pretrain Triemo: masked words from the joint states, and text, speech and face aligned by contrast.

    python training/pretrain.py --table clips.csv --output_dir runs/pretrained
    accelerate launch --config_file training/configs/ddp.yaml training/pretrain.py \
        --table hf://datasets/me/clips --streaming true --max_steps 100000 --output_dir runs/pretrained

A second call with the same arguments goes on from the last checkpoint, with the very rows and losses of a run that was
never stopped. `output_dir` ends up with the model, its processor and `results.json`; `finetune.py --model` takes it.
"""

import logging
import sys
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, set_seed
from transformers.trainer_utils import IntervalStrategy

from triemo.training.arguments import (
    PretrainDataArguments,
    PretrainModelArguments,
    PretrainTrainingArguments,
    parse_pretrain_arguments,
)
from triemo.training.data.masking import PretrainCollator
from triemo.training.data.sampling import EmotionRows
from triemo.training.pretraining_trainer import LOSS_PARTS, PretrainTrainer
from triemo.training.run_folder import (
    find_checkpoint,
    finish,
    finished_results,
    run_arguments,
    run_record,
    sole_run,
    write_unfinished,
)
from triemo.training.sources import (
    drop_empty_rows,
    load_pretraining_parts,
    load_streams,
    pretraining_composites,
    training_rows,
    training_stream,
)
from triemo.training.start import (
    build_pretraining_model,
    enter_as_projected,
    part_lr_factors,
    projected_modalities,
    still_modules,
)

__all__ = ["main"]

logger = logging.getLogger("triemo.training.pretrain")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Parse, load, build, train, save. Returns what `results.json` holds."""
    model_args, data_args, args = parse_pretrain_arguments(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO if args.process_index == 0 else logging.ERROR)
    with sole_run(args):
        record = run_record("training/pretrain.py", argv, run_arguments(model_args, data_args, args))
        checkpoint = find_checkpoint(record["arguments"], args)
        finished = finished_results(checkpoint, args)
        return finished or pretrain(model_args, data_args, args, checkpoint, record)


def pretrain(
    model_args: PretrainModelArguments,
    data_args: PretrainDataArguments,
    args: PretrainTrainingArguments,
    checkpoint: str | None,
    record: dict[str, Any],
) -> dict[str, Any]:
    """The run itself, from its start or a checkpoint; `record` is how it was made."""
    set_seed(args.seed)
    model, processor = build_pretraining_model(model_args)
    still, entering = still_modules(model, model_args), projected_modalities(model, model_args)
    collators = {
        name: PretrainCollator(
            processor,
            data_args.mlm_probability if model.mlm_head is not None else 0.0,
            model_args.soft_labels,
            data_args.sentence_pairs,
            augment=data_args.augment and name == "train",
            seed=args.seed,
            modalities=model.config.modalities,
            max_length=data_args.max_length,
        )
        for name in ("train", "evaluation")
    }
    read = streams if data_args.streaming else tables
    train, sampler, validation = read(data_args, args, collators)
    if validation is None:
        if args.early_stopping_patience:
            raise ValueError("early_stopping_patience: needs a validation split, and there is none.")
        logger.warning("No validation split: the last weights are kept.")
        args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info(f"{trained:,} of {total:,} parameters learn ({trained / total:.1%}).")

    trainer = PretrainTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collators["train"].collate,
        processing_class=processor,
        evaluation_collator=collators["evaluation"],
        callbacks=[EarlyStoppingCallback(args.early_stopping_patience)] if args.early_stopping_patience else None,
        sampler=sampler,
        still=still,
        layerwise_lr_decay=args.layerwise_lr_decay,
        part_lr_factors=part_lr_factors(model, model_args),
        cache_chunk_size=args.cache_chunk_size,
        local_loss=model_args.local_loss,
    )
    if checkpoint:
        logger.info(f"Going on from {checkpoint}.")
    summary = trainer.train(resume_from_checkpoint=checkpoint)
    enter_as_projected(trainer.accelerator.unwrap_model(trainer.model), entering)
    folder = Path(args.output_dir)
    write_unfinished(trainer, processor, folder)
    results: dict[str, Any] = {"parameters": total, "trained_parameters": trained, "steps": trainer.state.global_step}
    results |= {"train_loss": summary.training_loss, "best_checkpoint": trainer.state.best_model_checkpoint}
    if validation is not None:
        found = trainer.evaluate(metric_key_prefix="validation")
        results["validation"] = {
            name: found[f"validation_{name}"] for name in ("loss", *LOSS_PARTS) if f"validation_{name}" in found
        }
    log = trainer.state.log_history
    results |= {"losses": [entry["loss"] for entry in log if "loss" in entry], "history": log} | record
    finish(trainer, folder, None, results)
    return results


def tables(
    data_args: PretrainDataArguments, args: PretrainTrainingArguments, collators: dict[str, PretrainCollator]
) -> tuple[Any, Any, Any]:
    """Training set, its sampler and validation set of a table or of corpora."""
    rows, joined = load_pretraining_parts(data_args)
    if "train" not in rows:
        raise ValueError(f"split: got only {', '.join(rows)}, expected a split train.")
    composites = None
    if data_args.composites:
        composites = pretraining_composites(joined["train"], data_args.composites, args.seed, data_args)
    train, sampler = training_rows(
        rows["train"], collators["train"].prepare, data_args, args.seed, args.train_batch_size, composites
    )
    validation = dict(rows.get("validation", {}))
    for name, (data, weight) in validation.items():
        if 0 < data_args.validation_rows < len(data):
            data = data.shuffle(seed=0).select(range(data_args.validation_rows))
        if data_args.check_media and {"image", "video"} & set(data.column_names):
            data = drop_empty_rows(data, collators["evaluation"].encode, f"{name} validation")
        validation[name] = (data, weight)
    # Validation rows and composites are the same in every evaluation.
    scored: list[Any] = [data for data, _ in validation.values()]
    if data_args.validation_composites:
        if "validation" not in joined:
            raise ValueError("validation_composites: got corpora without a validation split.")
        scored.append(pretraining_composites(joined["validation"], data_args.validation_composites, 0, data_args))
    return train, sampler, EmotionRows(scored) if scored else None


def streams(
    data_args: PretrainDataArguments, args: PretrainTrainingArguments, collators: dict[str, PretrainCollator]
) -> tuple[Any, Any, Any]:
    """The same of a stream; there is no sampler."""
    found = load_streams(data_args, labelled=False)
    validation = found["validation"].rows(data_args.validation_rows) if "validation" in found else None
    return training_stream(found["train"], collators["train"], data_args, args), None, validation


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"pretrain.py: {error}")
