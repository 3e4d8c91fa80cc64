"""Arguments of `finetune.py` and `pretrain.py`: dataclasses, a YAML file of the same names, the command line over it.

Pretraining has those of fine-tuning where they mean the same, and its own.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from triemo.training.common import default_model

__all__ = [
    "DataArguments",
    "FinetuneTrainingArguments",
    "ModelArguments",
    "PretrainDataArguments",
    "PretrainModelArguments",
    "PretrainTrainingArguments",
    "SourceArguments",
    "StartArguments",
    "parse_arguments",
    "parse_into",
    "parse_pretrain_arguments",
]


@dataclass
class StartArguments:
    """What a run starts from. Without any of the three encoders, `model` goes on learning."""

    model: str = field(
        default_factory=default_model, metadata={"help": "Checkpoint to start from: a folder or a Hub id."}
    )
    text_encoder: str | None = field(
        default=None, metadata={"help": "Compose anew: Hub id or folder of a text encoder."}
    )
    audio_encoder: str | None = field(
        default=None, metadata={"help": "The same for speech, e.g. openai/whisper-tiny."}
    )
    vision_encoder: str | None = field(default=None, metadata={"help": "The same for pictures."})
    model_config: str | None = field(
        default=None, metadata={"help": "JSON of TriemoConfig fields for a composed model, or their YAML mapping."}
    )
    freeze_towers: str = field(
        default="", metadata={"help": "Towers that stay as they are: of text,audio,vision, comma-separated, or all."}
    )


# Fine-tuning -------------------------------------------------------------------------------------------------


@dataclass
class ModelArguments(StartArguments):
    """What is fine-tuned, and how."""

    labels: str | None = field(
        default=None,
        metadata={
            "help": "Class names in order, comma-separated; by default the model's where they fit, else the data's."
        },
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "single_label_classification, multi_label_classification or regression; by default as labels look."
        },
    )
    lora: bool = field(
        default=False, metadata={"help": "Train low-rank adapters and the head in place of all weights."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=16, metadata={"help": "Adapters are scaled by alpha / rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_targets: str | None = field(
        default=None, metadata={"help": "Regular expression over module names; by default each tower's projections."}
    )
    lora_merge: bool = field(
        default=False, metadata={"help": "Save one whole model with the adapters merged in, not the adapters."}
    )
    context_type: str = field(
        default="transformer",
        metadata={
            "help": "With --task dialogues, how utterances see one another: none, transformer, recurrent, graph."
        },
    )
    towers: str = field(
        default="cached",
        metadata={
            "help": "With --task dialogues: cached, a small head learns from what the towers make of each utterance "
            "once; tuned, the towers learn with it, but those of --freeze_towers, as they are or by --lora."
        },
    )
    modality_dropout: float = field(
        default=0.2, metadata={"help": "Chance of dropping a modality of a training sample; one always stays."}
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "Label smoothing of the cross-entropy."})
    class_weights: str = field(
        default="none",
        metadata={
            "help": "none, balanced (rows / classes / rows of the class), balanced:0.5 (that to a power) or numbers."
        },
    )


@dataclass
class SourceArguments:
    """Where rows come from: a table of one's own, or corpora by name."""

    table: str | None = field(
        default=None, metadata={"help": "csv, tsv, jsonl or parquet file, folder of such, or id of a Hub dataset."}
    )
    corpora: str | None = field(
        default=None,
        metadata={"help": 'Corpora and weights, "meld:1.0,goemotions:0.5": an epoch draws weight * rows of each.'},
    )
    corpus_options: str | None = field(
        default=None,
        metadata={"help": 'Options of corpora, as JSON: {"ravdess": {"calm": "drop"}}, {"ravdess": {"fold": 0}}.'},
    )
    classes: str = field(
        default="seven", metadata={"help": "seven: the classes all corpora share; own: the corpus's own."}
    )
    data: str | None = field(default=None, metadata={"help": "Folder of the corpora, or of a table's relative paths."})
    column_map: str | None = field(
        default=None, metadata={"help": 'Our column to the table\'s: "text=Utterance,label=Emotion" or JSON.'}
    )
    encoding: str | None = field(default=None, metadata={"help": "Of a table as text; UTF-8 by default."})
    outside_files: bool = field(
        default=False, metadata={"help": "Let a table's cells name files outside its folder, and URLs."}
    )


@dataclass
class DataArguments(SourceArguments):
    """What it learns from."""

    task: str = field(
        default="clips",
        metadata={"help": "clips: each row alone; dialogues: each row in its dialogue, by columns dialogue and turn."},
    )
    vectors: str | None = field(
        default=None, metadata={"help": "Folder of the utterances' vectors; by default in output_dir."}
    )
    composites: int = field(
        default=0, metadata={"help": "Synthetic three-modality examples an epoch, joined over the corpora by class."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read a table, or shards of clips, row by row; needs --max_steps."}
    )
    shuffle_buffer: int = field(default=1000, metadata={"help": "Streamed rows that are shuffled together."})
    max_length: int | None = field(default=None, metadata={"help": "Longest text in tokens."})
    augment: bool = field(default=True, metadata={"help": "Vary sound and pictures while training."})
    check_media: bool = field(
        default=True, metadata={"help": "Look before training which validation and test rows hold no face."}
    )
    max_broken_share: float = field(
        default=0.01, metadata={"help": "Share of unreadable rows of a training split from which on the run stops."}
    )
    length_buckets: bool = field(default=True, metadata={"help": "Batches of rows of like length."})


@dataclass
class FinetuneTrainingArguments(TrainingArguments):
    """The Trainer's arguments with defaults that suit fine-tuning, and a few more."""

    output_dir: str = field(default="", metadata={"help": "Folder of checkpoints, model and results."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay, but of biases and norms."})
    num_train_epochs: float = field(default=5.0, metadata={"help": "Passes over the data."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Samples a process and step."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Samples a process in evaluation."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Course of the learning rate."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps, epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep what validation liked best."})
    metric_for_best_model: str | None = field(
        default="auto", metadata={"help": "auto (macro_f1, for regression ccc), uar, weighted_f1, accuracy, loss, ..."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs the columns."})
    report_to: str | None = field(default="none", metadata={"help": "Loggers of the Trainer."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every process runs every tower, so nothing is unused."}
    )
    layerwise_lr_decay: float = field(
        default=1.0, metadata={"help": "Each tower layer learns this factor slower than the one above it."}
    )
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Stop after so many evaluations without a better one; 0 never stops."}
    )
    restart: bool = field(default=False, metadata={"help": "Begin anew even if output_dir holds checkpoints."})


CONTEXT_TYPES = ("none", "transformer", "recurrent", "graph")
FINETUNE_CLASSES = (ModelArguments, DataArguments, FinetuneTrainingArguments)


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, FinetuneTrainingArguments]:
    """
    Arguments of the command line `argv` over those of `--config`'s YAML over the defaults.

    Raises:
        ValueError: a YAML key that is no argument, or arguments that contradict each other.
    """
    usage = "finetune.py --table my.csv --output_dir runs/mine [--config some.yaml] [options; --help lists them]"
    model, data, training = parse_into(FINETUNE_CLASSES, usage, argv)
    check_finetuning(model, data, training)
    return model, data, training


def check_finetuning(model: ModelArguments, data: DataArguments, training: FinetuneTrainingArguments) -> None:
    check_source(data.table, data.corpora)
    check_training(data, training)
    if data.streaming and model.class_weights.startswith("balanced"):
        raise ValueError("class_weights: balanced ones need the counts of all rows, which a stream does not have.")
    if data.classes not in ("seven", "own"):
        raise ValueError(f"classes: got {data.classes!r}, expected seven or own.")
    if data.task not in ("clips", "dialogues"):
        raise ValueError(f"task: got {data.task!r}, expected clips or dialogues.")
    if data.task == "dialogues":
        check_dialogues(model, data, training)
    elif model.towers != "cached":
        raise ValueError(f"towers: got {model.towers!r}, which is for --task dialogues; of clips they always learn.")
    if data.composites < 0:
        raise ValueError(f"composites: got {data.composites}, expected 0 or more.")
    if model.lora and model.lora_r < 1:
        raise ValueError(f"lora_r: got {model.lora_r}, expected 1 or more.")
    if model.lora and training.layerwise_lr_decay != 1:
        raise ValueError("layerwise_lr_decay: has no meaning with --lora; leave it at 1.")


def check_dialogues(model: ModelArguments, data: DataArguments, training: FinetuneTrainingArguments) -> None:
    if model.context_type not in CONTEXT_TYPES:
        raise ValueError(f"context_type: got {model.context_type!r}, expected one of {', '.join(CONTEXT_TYPES)}.")
    if model.towers not in ("cached", "tuned"):
        raise ValueError(f"towers: got {model.towers!r}, expected cached or tuned.")
    encoders = any((model.text_encoder, model.audio_encoder, model.vision_encoder))
    without = {"streaming": data.streaming, "composites": data.composites, "an encoder": encoders}
    for name, given in without.items():
        if given:
            raise ValueError(f"{name}: has no meaning with --task dialogues, which reads a table over --model.")
    if model.towers == "tuned":
        if data.vectors:
            raise ValueError("vectors: has no meaning with --towers tuned, which read each utterance at every step.")
        return
    still = {"lora": model.lora, "freeze_towers": model.freeze_towers}
    still |= {"layerwise_lr_decay": training.layerwise_lr_decay != 1}
    for name, given in still.items():
        if given:
            raise ValueError(f"{name}: has no meaning where the towers of --model stay still; give --towers tuned.")


# Pretraining -------------------------------------------------------------------------------------------------


@dataclass
class PretrainModelArguments(StartArguments):
    """What is pretrained, and on which losses."""

    towers_only: bool = field(
        default=False, metadata={"help": "Take only the towers of `model`; all that joins them starts at random."}
    )
    part_lr_factors: str = field(
        default="",
        metadata={"help": 'Parts that learn slower, "text_tower:0.1,layers:0.5": factors of the learning rate.'},
    )
    new_vision_tower: bool = field(
        default=False, metadata={"help": "The face tower of `model` is a new one: its BatchNorm follows the batches."}
    )
    joint_from_projections: str = field(
        default="",
        metadata={"help": "Modalities that the joint encoder gets as aligned, in the end: of text,audio,vision."},
    )
    mlm_weight: float | None = field(
        default=None, metadata={"help": "Weight of masked language modelling; by default the config's, 1."}
    )
    contrastive_weight: float | None = field(
        default=None, metadata={"help": "Weight of the contrastive loss; by default the config's, 1."}
    )
    frame_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of predicting masked sound and face steps; by default the config's, 0."},
    )
    mlm_uses_joint_states: bool = field(
        default=True, metadata={"help": "Predict masked words with the voice and face at hand; false for an ablation."}
    )
    soft_labels: bool = field(
        default=False, metadata={"help": "Where labels are known, clips of one label are no negatives of each other."}
    )
    local_loss: bool = field(
        default=False, metadata={"help": "Each process computes its own rows of the contrastive loss: less memory."}
    )


@dataclass
class PretrainDataArguments(DataArguments):
    """What it learns from: a table, corpora by name, or with --streaming shards of clips."""

    composite_corpora: str | None = field(
        default=None,
        metadata={"help": "Corpora that composites are joined from, with or without --corpora; by default those."},
    )
    composite_subsets: str = field(
        default="text+audio,text+vision,audio+vision,text+audio+vision:3",
        metadata={"help": "What composites hold, and how often: subsets of modalities with weights."},
    )
    composite_faces: int = field(
        default=1, metadata={"help": "Faces of a composite; several, of one emotion, are the frames of a clip."}
    )
    composite_sentences: int = field(
        default=1, metadata={"help": "Sentences of a composite; several, of one emotion, follow one another."}
    )
    validation_composites: int = field(default=0, metadata={"help": "Synthetic examples of the validation splits."})
    sentence_pairs: bool = field(
        default=False, metadata={"help": "Where a row has no text, its column `sentence` is what the voice says."}
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the words that are masked."})
    validation_rows: int = field(
        default=1000, metadata={"help": "Validation rows of each corpus, at most; 0 for all."}
    )


@dataclass
class PretrainTrainingArguments(FinetuneTrainingArguments):
    """As in fine-tuning, and large contrastive batches in parts."""

    load_best_model_at_end: bool = field(default=False, metadata={"help": "Keep what validation liked best."})
    metric_for_best_model: str | None = field(default="loss", metadata={"help": "loss, or one of its parts."})
    greater_is_better: bool | None = field(default=False, metadata={"help": "Losses are better when smaller."})
    cache_chunk_size: int = field(
        default=0,
        metadata={
            "help": "Run a process's batch in chunks of so many clips, with the gradients of the whole; 0 does not."
        },
    )


PRETRAIN_CLASSES = (PretrainModelArguments, PretrainDataArguments, PretrainTrainingArguments)


def parse_pretrain_arguments(
    argv: list[str] | None = None,
) -> tuple[PretrainModelArguments, PretrainDataArguments, PretrainTrainingArguments]:
    """
    Arguments of the command line `argv` over those of `--config`'s YAML over the defaults.

    Raises:
        ValueError: a YAML key that is no argument, or arguments that contradict each other.
    """
    usage = "pretrain.py --table my.csv --output_dir runs/mine [--config some.yaml] [options; --help lists them]"
    model, data, training = parse_into(PRETRAIN_CLASSES, usage, argv)
    check_pretraining(model, data, training)
    return model, data, training


def check_pretraining(
    model: PretrainModelArguments, data: PretrainDataArguments, training: PretrainTrainingArguments
) -> None:
    only_composites = bool(data.composites and data.composite_corpora and not data.table)
    check_source(data.table, data.corpora or (data.composite_corpora if only_composites else None))
    check_training(data, training)
    if not 0 <= data.mlm_probability < 1:
        raise ValueError(f"mlm_probability: got {data.mlm_probability}, expected 0 up to but not 1.")
    if (data.composites or data.validation_composites) and not (data.corpora or data.composite_corpora):
        raise ValueError("composites: name the --composite_corpora that they are joined from.")
    if min(data.composites, data.validation_composites, data.validation_rows, training.cache_chunk_size) < 0:
        raise ValueError("composites, validation_composites, validation_rows, cache_chunk_size: expected 0 or more.")
    for name in ("composite_faces", "composite_sentences"):
        if getattr(data, name) < 1:
            raise ValueError(f"{name}: got {getattr(data, name)}, expected 1 or more.")
    if training.cache_chunk_size and training.gradient_accumulation_steps > 1:
        raise ValueError("cache_chunk_size: stands in for gradient_accumulation_steps; leave these at 1.")
    if training.cache_chunk_size and training.fp16:
        raise ValueError("cache_chunk_size: takes bf16 or float32, got fp16, whose loss scale it does not know.")
    if model.model_config and not isinstance(json.loads(model.model_config), dict):
        raise ValueError(f"model_config: got {model.model_config}, expected a JSON object.")
    if data.streaming and data.validation_composites:
        raise ValueError("streaming: takes one --table, without corpora and composites.")


# Both --------------------------------------------------------------------------------------------------------


def parse_into(classes: Sequence[type], usage: str, argv: list[str] | None = None) -> tuple[Any, ...]:
    """One object of each dataclass, from the command line over a YAML over the defaults; ValueError as above."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", help="YAML file whose keys are argument names.")
    known, rest = first.parse_known_args(argv)
    parser = HfArgumentParser(classes, usage=usage, parents=[first])
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    parser.set_defaults(bf16=has_bf16, dataloader_pin_memory=torch.cuda.is_available())
    if known.config:
        parser.set_defaults(**read_yaml(known.config, classes))
    parsed = parser.parse_args_into_dataclasses(rest, return_remaining_strings=False, look_for_args_file=False)
    return parsed[: len(classes)]


def read_yaml(path: str, classes: Sequence[type]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"config: cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} holds a {type(values).__name__}, expected a mapping of argument names.")
    accepted = {item.name for cls in classes for item in fields(cls) if item.init}
    unknown = sorted(set(values) - accepted)
    if unknown:
        raise ValueError(f"config: got {unknown} in {path}, which are no arguments; see --help.")
    # Lists and mappings are written out, so that they take the same way as on the command line.
    texts = {"labels", "class_weights", "corpora", "freeze_towers"}
    for name, value in values.items():
        if name in texts and isinstance(value, list):
            values[name] = ",".join(map(str, value))
        elif name in ("corpora", "part_lr_factors", "composite_subsets") and isinstance(value, dict):
            values[name] = ",".join(f"{key}:{number}" for key, number in value.items())
        elif isinstance(value, dict):
            values[name] = json.dumps(value)
    return values


def check_source(table: str | None, corpora: str | None) -> None:
    """Raises ValueError unless exactly one of them is given."""
    if bool(table) == bool(corpora):
        raise ValueError("data: give one of --table and --corpora, got " + ("both." if table else "neither."))


def check_training(data: DataArguments, training: FinetuneTrainingArguments) -> None:
    """What fine-tuning and pretraining ask alike."""
    if not training.output_dir:
        raise ValueError("output_dir: got none, expected a folder for the model and its results.")
    if data.streaming:
        check_streaming(data, training)
    if not 0 < training.layerwise_lr_decay <= 1:
        raise ValueError(f"layerwise_lr_decay: got {training.layerwise_lr_decay}, expected above 0 and at most 1.")
    if training.deepspeed:
        raise ValueError("deepspeed: not supported; use FSDP2 (training/configs/fsdp2.yaml).")


def check_streaming(data: DataArguments, training: FinetuneTrainingArguments) -> None:
    if training.max_steps <= 0:
        raise ValueError("streaming: a stream has no length; say with --max_steps how many steps to train.")
    if not data.table or data.composites:
        raise ValueError("streaming: takes one --table, without corpora and composites.")
    # A stream has no epochs: what would happen at their end happens every so many steps.
    if training.save_strategy == SaveStrategy.EPOCH:
        training.save_strategy = SaveStrategy.STEPS
    if training.eval_strategy == IntervalStrategy.EPOCH:
        training.eval_strategy, training.eval_steps = IntervalStrategy.STEPS, training.save_steps
    # The loader says itself where to go on; the Trainer would decode all rows before that place again.
    training.ignore_data_skip = True
