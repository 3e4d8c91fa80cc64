"""The output folder of `finetune.py`: which checkpoint to go on from, and saving nothing half."""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from triemo.training.arguments import DataArguments, FinetuneTrainingArguments, ModelArguments
from triemo.training.common import write_json
from triemo.training.start import Start

__all__ = ["find_checkpoint", "last_whole_checkpoint", "place_base", "run_arguments", "save"]

_BASE = ".base"
# What may differ when a run goes on.
_MAY_CHANGE = re.compile(r"epochs|max_steps|check_media")


def run_arguments(
    model_args: ModelArguments, data_args: DataArguments, args: FinetuneTrainingArguments
) -> dict[str, Any]:
    """What makes a run this run."""
    names = ("seed", "learning_rate", "weight_decay", "per_device_train_batch_size", "gradient_accumulation_steps")
    names += ("num_train_epochs", "max_steps", "warmup_steps", "layerwise_lr_decay", "bf16", "world_size")
    return asdict(model_args) | asdict(data_args) | {name: getattr(args, name) for name in names}


def last_whole_checkpoint(folder: Path) -> str | None:
    """The latest `checkpoint-N` that was written to its end: the Trainer's state comes last."""
    found = []
    for path in folder.glob("checkpoint-*"):
        number = path.name.rpartition("-")[2]
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if number.isdigit():
            found.append((int(number), str(path)))
    return max(found)[1] if found else None


def find_checkpoint(
    model_args: ModelArguments, data_args: DataArguments, args: FinetuneTrainingArguments
) -> str | None:
    """
    The checkpoint to go on from: the one named, else the last whole one of the output folder, unless --restart.

    Raises:
        ValueError: naming the arguments that differ from those the run in this folder was begun with.
    """
    folder = Path(args.output_dir)
    file, arguments = folder / "run.json", run_arguments(model_args, data_args, args)
    with args.main_process_first(desc="output folder"):
        if args.process_index == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("checkpoint-*") if args.restart else ():
                shutil.rmtree(path)
        checkpoint = args.resume_from_checkpoint or last_whole_checkpoint(folder)
        if checkpoint and not args.resume_from_checkpoint:
            check_same_run(file, arguments)
        if args.process_index == 0:
            write_json(file, arguments)
    return checkpoint


def check_same_run(file: Path, arguments: dict[str, Any]) -> None:
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    other = [
        f"{name} ({before[name]!r} then, {value!r} now)"
        for name, value in arguments.items()
        if name in before and before[name] != value and not _MAY_CHANGE.search(name)
    ]
    if other:
        raise ValueError(
            f"output_dir: {file.parent} holds checkpoints of another run: {', '.join(other)}. Give another folder, or "
            "--restart to begin anew."
        )


def place_base(start: Start, args: FinetuneTrainingArguments) -> None:
    """
    Keep what an adapter is trained on for the output folder, which is to work wherever it is moved; the adapter's own
    config names the start, or that folder where the start is a model that lies nowhere else.
    """
    folder = Path(args.output_dir)
    with args.main_process_first(desc="base of the adapter"):
        if args.process_index == 0:
            start.model.save_pretrained(folder / _BASE)
    name = Path(start.name) if start.name else folder
    start.model.name_or_path = str(name.resolve()) if name.is_dir() else str(name)


def save(trainer: Any, processor: Any, folder: Path, merge: bool = False) -> None:
    """
    Model and processor to a folder of another name first, then file by file to their place: the whole model; with
    adapters these beside the weights they were trained on, or with `merge` one whole model.
    """
    part = folder / ".unfinished"
    is_main = trainer.is_world_process_zero()
    if merge:
        if is_main:
            trainer.model.merge_and_unload().save_pretrained(part)
    else:
        trainer.save_model(str(part))
    trainer.accelerator.wait_for_everyone()
    if not is_main:
        return
    base = folder / _BASE
    if base.is_dir():
        for path in () if merge else base.iterdir():
            path.replace(part / path.name)
        trainer.model.config.save_pretrained(part)
        shutil.rmtree(base)
    processor.save_pretrained(part)
    (part / "training_args.bin").unlink(missing_ok=True)  # a pickle, and run.json says what is in it
    umask = os.umask(0)
    os.umask(umask)
    for path in part.iterdir():
        path.chmod(0o666 & ~umask)  # safetensors writes for the owner alone
        path.replace(folder / path.name)
    part.rmdir()
