"""The output folder of `finetune.py` and `pretrain.py`: one run at a time, where to go on from, and nothing half.

| file | what it is |
|---|---|
| `run.json` | the arguments of the run, and whether it came to its end |
| `checkpoint-N/` | the Trainer's, after step N; `sha256sums` in it tells whether it still is what was written |
| `.unfinished/` | the trained model until it is measured |
| `.base/` | what an adapter is trained on, until it is saved beside it |
"""

import copy
import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from triemo.modeling import MODALITIES
from triemo.training.arguments import DataArguments, FinetuneTrainingArguments, ModelArguments
from triemo.training.common import command_line, write_json
from triemo.training.start import Start

__all__ = [
    "finish",
    "find_checkpoint",
    "finished_results",
    "last_whole_checkpoint",
    "place_base",
    "run_arguments",
    "run_record",
    "saving",
    "sole_run",
    "write_checksums",
    "write_unfinished",
]

logger = logging.getLogger(__name__)

_BASE, _UNFINISHED, _LOCK = ".base", ".unfinished", ".lock"
_RUN, _RESULTS, _FINISHED, _CHECKSUMS = "run.json", "results.json", "finished", "sha256sums"
# What may differ when a run goes on.
_MAY_CHANGE = re.compile(r"epochs|max_steps|check_media")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


# One run at a time -------------------------------------------------------------------------------------------


@contextmanager
def sole_run(args: FinetuneTrainingArguments) -> Iterator[None]:
    """
    Makes the output folder and keeps every other run out of it.

    Raises:
        ValueError: when it cannot be written to, another run is in it, or its disk is full.
    """
    folder = Path(args.output_dir)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if args.process_index == 0:  # stands for all
                stack.enter_context(FileLock(folder / _LOCK, timeout=0))
        except Timeout as error:
            raise ValueError(
                f"output_dir: another run writes to {folder}; wait for its end, or give another folder."
            ) from error
        except OSError as error:
            raise ValueError(f"output_dir: cannot write to {folder}: {error}") from error
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise ValueError(f"output_dir: cannot write to {folder}: {error}") from error


@contextmanager
def saving(folder: Path, is_main: bool = True) -> Iterator[None]:
    """Removes what could not be written whole. Raises ValueError saying why not."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # safetensors and torch.save have errors of their own
        if is_main:
            shutil.rmtree(folder, ignore_errors=True)
        raise ValueError(
            f"output_dir: cannot write {folder}: {error}. What was saved before is whole; once there is "
            "room, the same command goes on from it."
        ) from error


# Where to go on ----------------------------------------------------------------------------------------------


def run_arguments(
    model_args: ModelArguments, data_args: DataArguments, args: FinetuneTrainingArguments
) -> dict[str, Any]:
    """What makes a run this run."""
    names = ("seed", "learning_rate", "weight_decay", "per_device_train_batch_size", "gradient_accumulation_steps")
    names += ("num_train_epochs", "max_steps", "warmup_steps", "layerwise_lr_decay", "bf16", "world_size")
    return asdict(model_args) | asdict(data_args) | {name: getattr(args, name) for name in names}


def run_record(script: str, argv: list[str] | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.json` says about how the run was made."""
    names = ("torch", "transformers", "datasets", "peft")
    encoders = [arguments[f"{name}_encoder"] for name in MODALITIES if arguments[f"{name}_encoder"]]
    return {
        "arguments": arguments,
        # A name alone does not tell a folder from a Hub id when it is read elsewhere.
        "started_from": {
            name: "folder" if Path(name).is_dir() else "hub" for name in encoders or [arguments["model"]]
        },
        "command": command_line(script, argv),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
    }


def find_checkpoint(arguments: dict[str, Any], args: FinetuneTrainingArguments) -> str | None:
    """
    The checkpoint to go on from: the one named, else the last whole one of the output folder, unless --restart.

    Raises:
        ValueError: naming the arguments that differ from those the run in this folder was begun with, or what a
            checkpoint lacks to go on from.
    """
    folder = Path(args.output_dir)
    file = folder / _RUN
    with args.main_process_first(desc="output folder"):
        if args.process_index == 0:
            for path in folder.glob("checkpoint-*") if args.restart else ():
                shutil.rmtree(path)
        if args.resume_from_checkpoint:
            checkpoint = str(args.resume_from_checkpoint)
            faults = checkpoint_faults(Path(checkpoint), args.world_size)
            if faults:
                raise ValueError(f"resume_from_checkpoint: cannot go on from {checkpoint}: {'; '.join(faults)}.")
        else:
            checkpoint = last_whole_checkpoint(folder, args.world_size)
        if checkpoint and not args.resume_from_checkpoint:
            check_same_run(file, arguments)
        if args.process_index == 0:
            before = _read(file)
            is_finished = checkpoint is not None and before == _as_read(arguments) | {_FINISHED: True}
            write_json(file, arguments | ({_FINISHED: True} if is_finished else {}))
    return checkpoint


def finished_results(checkpoint: str | None, args: FinetuneTrainingArguments) -> dict[str, Any] | None:
    """What `results.json` holds, where this very run has come to its end before."""
    folder = Path(args.output_dir)
    if not checkpoint or args.resume_from_checkpoint or not _read(folder / _RUN).get(_FINISHED):
        return None
    results = _read(folder / _RESULTS)
    if results:
        logger.info(f"{folder} holds this run, finished at step {results['steps']}; --restart begins it anew.")
    return results or None


def last_whole_checkpoint(folder: Path, processes: int = 1) -> str | None:
    """
    The latest `checkpoint-N` that a run of so many processes can go on from; what later ones lack is said.

    Raises:
        ValueError: when the only checkpoints were written to their end and are damaged since.
    """
    numbers = {path: path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")}
    found = sorted((path for path in numbers if numbers[path].isdigit()), key=lambda path: -int(numbers[path]))
    damaged = []
    for path in found:
        faults = checkpoint_faults(path, processes)
        if not faults:
            return str(path)
        logger.warning(f"{path} is passed over: {'; '.join(faults)}.")
        # The Trainer writes its state last: without one, a run was stopped while it saved.
        if _read(path / "trainer_state.json"):
            damaged.append(f"{path}: {'; '.join(faults)}")
    if damaged:
        raise ValueError(f"output_dir: no checkpoint to go on from. {damaged[0]}. --restart begins anew.")
    return None


def checkpoint_faults(folder: Path, processes: int) -> list[str]:
    """What a checkpoint lacks to be gone on from, file by file; nothing where it is whole."""
    if not folder.is_dir():
        return ["there is no such folder"]
    faults = []
    if not _read(folder / "trainer_state.json").get("global_step"):
        faults.append("trainer_state.json is missing or cannot be read")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and not any(folder.glob("pytorch_model_fsdp*")):
        faults.append("model.safetensors is missing")
    faults += [f"{file.name} cannot be read" for file in weights if not _is_safetensors(file)]
    states = ["rng_state.pth"] if processes == 1 else [f"rng_state_{index}.pth" for index in range(processes)]
    states += ["scheduler.pt"]
    if not (any(folder.glob("optimizer.bin")) or any(path.is_dir() for path in folder.glob("optimizer*"))):
        states.append("optimizer.pt")
    for name in states:
        if not (folder / name).is_file():
            faults.append(f"{name} is missing")
        elif not zipfile.is_zipfile(folder / name):
            faults.append(f"{name} cannot be read")
    return faults or _changed_files(folder)


def write_checksums(folder: Path) -> None:
    """What each file of a checkpoint holds, in the form of `sha256sum`: a byte that flips later makes it another."""
    part = folder / f"{_CHECKSUMS}.part"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != part)
    part.write_text("".join(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files))
    part.replace(folder / _CHECKSUMS)


def _changed_files(folder: Path) -> list[str]:
    """What is no longer as it was written; nothing for a checkpoint without checksums, as older ones are."""
    sums = folder / _CHECKSUMS
    if not sums.is_file():
        return []
    faults = []
    for line in sums.read_text(errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        if not (folder / name).is_file():
            faults.append(f"{name} is missing")
        elif _sha256(folder / name) != expected:
            faults.append(f"{name} is not as it was written (by its checksum)")
    return faults


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _is_safetensors(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as weights:
            weights.keys()
    except (OSError, SafetensorError):
        return False
    return True


def check_same_run(file: Path, arguments: dict[str, Any]) -> None:
    before = _read(file)
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


def _read(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is not there or no JSON object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _as_read(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values, default=str))


# Saving ------------------------------------------------------------------------------------------------------


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


def write_unfinished(trainer: Any, processor: Any, folder: Path, merge: bool = False) -> None:
    """
    Model and, if it has one, processor to `.unfinished` in the folder, so that nothing that goes wrong while they are
    measured costs the training: the whole model; with adapters these beside the weights they were trained on, or with
    `merge` one whole model. Raises ValueError when weights are not finite or cannot be written.
    """
    part, base = folder / _UNFINISHED, folder / _BASE
    is_main = trainer.is_world_process_zero()
    trainer.check_weights()
    if is_main:
        shutil.rmtree(part, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    with saving(part, is_main):
        if not merge:
            trainer.save_model(str(part))
        elif is_main:
            copy.deepcopy(trainer.model).merge_and_unload().save_pretrained(part)
        trainer.accelerator.wait_for_everyone()
        if is_main:
            if base.is_dir():
                for path in () if merge else base.iterdir():
                    path.replace(part / path.name)
                trainer.model.config.save_pretrained(part)
                shutil.rmtree(base)
            if processor is not None:
                processor.save_pretrained(part)
            (part / "training_args.bin").unlink(missing_ok=True)  # a pickle, and run.json says what is in it
    logger.info(f"Trained. Until it is measured, the model lies in {part}.")


def finish(trainer: Any, folder: Path, temperature: float | None, results: dict[str, Any]) -> None:
    """Puts the model of `.unfinished` in its place, file by file, with the temperature of its scores, if any."""
    if not trainer.is_world_process_zero():
        return
    part = folder / _UNFINISHED
    if temperature is not None:
        write_json(part / "config.json", _read(part / "config.json") | {"calibration_temperature": temperature}, True)
    umask = os.umask(0)
    os.umask(umask)
    for path in part.iterdir():
        path.chmod(0o666 & ~umask)  # safetensors writes for the owner alone
        path.replace(folder / path.name)
    part.rmdir()
    write_json(folder / _RESULTS, results)
    write_json(folder / _RUN, _read(folder / _RUN) | {_FINISHED: True})
    logger.info(f"Saved to {folder}.")
