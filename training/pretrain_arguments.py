"""Arguments of `pretrain.py`: those of `finetune.py` where they mean the same, and its own."""

import json
from dataclasses import dataclass, field

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from triemo.training.finetune_arguments import (
    DataArguments,
    FinetuneTrainingArguments,
    StartArguments,
    check_source,
    check_training,
    parse_into,
)

__all__ = [
    "PretrainDataArguments",
    "PretrainModelArguments",
    "PretrainTrainingArguments",
    "parse_pretrain_arguments",
]


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
    shuffle_buffer: int = field(default=1000, metadata={"help": "Streamed rows that are shuffled together."})
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


CLASSES = (PretrainModelArguments, PretrainDataArguments, PretrainTrainingArguments)


def parse_pretrain_arguments(
    argv: list[str] | None = None,
) -> tuple[PretrainModelArguments, PretrainDataArguments, PretrainTrainingArguments]:
    """
    Arguments of the command line `argv` over those of `--config`'s YAML over the defaults.

    Raises:
        ValueError: a YAML key that is no argument, or arguments that contradict each other.
    """
    usage = "pretrain.py --table my.csv --output_dir runs/mine [--config some.yaml] [options; --help lists them]"
    model, data, training = parse_into(CLASSES, usage, argv)
    check(model, data, training)
    return model, data, training


def check(model: PretrainModelArguments, data: PretrainDataArguments, training: PretrainTrainingArguments) -> None:
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
    if data.streaming:
        check_streaming(data, training)


def check_streaming(data: PretrainDataArguments, training: PretrainTrainingArguments) -> None:
    if not data.table or data.composites or data.validation_composites:
        raise ValueError("streaming: takes shards as --table, without corpora and composites.")
    # A stream has no epochs: what would happen at their end happens every so many steps.
    if training.save_strategy == SaveStrategy.EPOCH:
        training.save_strategy = SaveStrategy.STEPS
    if training.eval_strategy == IntervalStrategy.EPOCH:
        training.eval_strategy, training.eval_steps = IntervalStrategy.STEPS, training.save_steps
    # The loader says itself where to go on; the Trainer would decode all rows before that place again.
    training.ignore_data_skip = True
