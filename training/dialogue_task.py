"""`finetune.py --task dialogues`: what it reads and what it trains.

With `--towers cached` a head over the vectors of utterances: the towers of `--model` stay as they are, each utterance
goes through them once, and its vectors are kept in the output folder. What learns is small, so an epoch over a
thousand dialogues takes seconds. With `--towers tuned` the whole model of `--model` and a context over its utterances:
words, sound and pictures go through the towers at every step, and these learn, as they are or by adapters.
"""

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triemo.modeling import MODALITIES, TriemoConfig, TriemoForEmotionSequence
from triemo.processing import TriemoProcessor, UtteranceEncoder
from triemo.training.arguments import DataArguments, FinetuneTrainingArguments, ModelArguments
from triemo.training.data.collation import EmotionCollator
from triemo.training.data.columns import FEATURE_COLUMNS
from triemo.training.data.dialogues import DialogueClips, DialogueRows, Dialogues, Standardised, readable_utterances
from triemo.training.data.sampling import MixtureSampler
from triemo.training.data.utterance_vectors import encoded_modalities, given_widths, utterance_vectors
from triemo.training.sources import Parts, infer_problem
from triemo.training.start import Start, fit_head, load_model

__all__ = ["DialogueTask", "add_context", "build_dialogue_task", "new_head", "scored_dialogues"]

logger = logging.getLogger(__name__)

Arguments = tuple[ModelArguments, DataArguments, FinetuneTrainingArguments]

VECTORS_FOLDER = "vectors"
# A head that learns from a thousand dialogues; `--model_config` changes any of it.
HEAD = {
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "projection_dim": 32,
    "hidden_dropout": 0.3,
    "classifier_dropout": 0.3,
    "context_layers": 1,
    "speaker_dropout": 0.1,
}
# What `--model_config` may say of a context over towers that have their sizes.
CONTEXT_FIELDS = ("context_layers", "context_causal", "context_window", "speaker_dropout")
CONTEXT_FIELDS += ("hidden_dropout", "classifier_dropout")


@dataclass
class DialogueTask:
    """
    Args:
        model: over vectors, its config names the checkpoint of the towers; or over clips, with towers of its own.
        splits: `{split: {part: dialogues}}`.
        weights: of the parts of train.
        scale: of all vectors, while it learns; None for clips.
        collators: of clips, for `train` and `evaluation`; empty for vectors.
        start: what an adapter is trained on; None for a head over vectors.
    """

    model: TriemoForEmotionSequence
    splits: dict[str, dict[str, Dialogues]]
    weights: list[float]
    scale: Standardised | None = None
    collators: Mapping[str, EmotionCollator] = field(default_factory=dict)
    start: Start | None = None

    def training_rows(self, args: FinetuneTrainingArguments, buckets: bool) -> tuple[DialogueRows, MixtureSampler]:
        """The training's dialogues and the order in which they are drawn."""
        rows = self._rows(list(self.splits["train"].values()), "train")
        sizes = [len(part.turns) for part in self.splits["train"].values()]
        lengths = rows.lengths() if buckets else None
        return rows, MixtureSampler(sizes, self.weights, args.seed, lengths, args.train_batch_size)

    def rows(self, split: str, part: str | None = None) -> DialogueRows:
        """The dialogues of a split, or of one of its parts, as they are scored."""
        parts = self.splits[split]
        return self._rows(list(parts.values()) if part is None else [parts[part]], "evaluation")

    def _rows(self, parts: list[Dialogues], use: str) -> DialogueRows:
        return DialogueClips(parts, self.collators[use]) if self.collators else DialogueRows(parts, self.scale)


def build_dialogue_task(
    splits: Parts, model_args: ModelArguments, data_args: DataArguments, args: FinetuneTrainingArguments
) -> DialogueTask:
    """
    A model for the labels of train, and the dialogues of all splits as it takes them.

    `--model` is a checkpoint with towers, for a new head or a new context, or a model of dialogues that goes on
    learning.

    Raises:
        ValueError: labels of several classes a row or numbers; a table without `dialogue`; what cannot be read.
    """
    labelled = {
        part: (data.select(np.flatnonzero([label is not None for label in data["label"][:]])), weight)
        for part, (data, weight) in splits["train"].items()
    }
    problem, soft, names = infer_problem(labelled, model_args.problem_type)
    if problem != "single_label_classification" or soft:
        raise ValueError(f"task: dialogues take one class an utterance, got labels for {problem}.")
    wanted = [name.strip() for name in model_args.labels.split(",")] if model_args.labels else None
    build = _over_clips if model_args.towers == "tuned" else _over_vectors
    task = build(splits, (model_args, data_args, args), names, wanted)
    counts = {split: sum(len(d.turns) for d in parts.values()) for split, parts in task.splits.items()}
    logger.info(f"Dialogues: {counts}.")
    return task


# Over vectors ------------------------------------------------------------------------------------------------


def _over_vectors(splits: Parts, arguments: Arguments, names: list[str], wanted: list[str] | None) -> DialogueTask:
    model_args, data_args, args = arguments
    tables = [data for parts in splits.values() for data, _ in parts.values()]
    given: dict[str, int] = {}
    for data in tables:
        given |= given_widths(data)
    head = _head_of(model_args.model)
    encoder = _encoder(model_args, head, tables, set(given))
    widths = given | ({} if encoder is None else encoder.widths)
    if head is None:
        head = new_head(model_args, widths, encoder, wanted or names)
    fit_head(head, "single_label_classification", names, wanted)
    own = {m: getattr(head.config, f"{m}_feature_size") for m in head.config.modalities}
    if own != widths:
        raise ValueError(f"model: takes vectors of {own} values, got {widths} from the data.")
    cache = Path(data_args.vectors or Path(args.output_dir) / VECTORS_FOLDER)
    found: dict[str, dict[str, Dialogues]] = {}
    label2id = dict(head.config.label2id)
    for split, parts in splits.items():
        found[split] = {}
        for part, (data, _) in parts.items():
            with args.main_process_first(desc="vectors of utterances"):
                vectors = utterance_vectors(data, encoder, given, cache, f"{part} {split}")
            found[split][part] = Dialogues.of_vectors(data, vectors, label2id, f"{part} {split}")
    weights = [weight for _, weight in splits["train"].values()]
    return DialogueTask(head, found, weights, Standardised(list(found["train"].values())))


def scored_dialogues(
    model: TriemoForEmotionSequence,
    processor: TriemoProcessor | None,
    data: Any,
    name: str,
    vectors: str | None = None,
    max_length: int | None = None,
) -> DialogueRows:
    """
    The dialogues of a table as a trained model is scored on them.

    Args:
        model: over vectors, or over clips with its `processor`.
        data, name: the table.
        vectors: folder that keeps those that the towers make.
        max_length: longest text in tokens, of clips.

    Raises:
        ValueError: a table without `dialogue`, vectors of another width, an unknown label, media that cannot be read.
    """
    config = model.config
    if processor is not None:
        options: dict[str, Any] = {"modalities": config.modalities, "max_length": max_length}
        collator = EmotionCollator(processor, config.label2id, **options)
        readable = readable_utterances(data, collator)
        return DialogueClips([Dialogues.of(data, readable, config.label2id, name)], collator)
    given = given_widths(data)
    other = {m: width for m, width in given.items() if width != getattr(config, f"{m}_feature_size")}
    if other:
        raise ValueError(f"{name}: got vectors of {other} values, expected those that the model takes.")
    encoder = UtteranceEncoder.of(model, batch_size=32) if config.base_model_name_or_path else None
    found = utterance_vectors(data, encoder, given, Path(vectors) if vectors else None, name)
    return DialogueRows([Dialogues.of_vectors(data, found, config.label2id, name)])


def new_head(
    args: ModelArguments, widths: dict[str, int], encoder: UtteranceEncoder | None, labels: list[str]
) -> TriemoForEmotionSequence:
    """A head with random weights for vectors of these widths."""
    fields = HEAD | {"context_type": args.context_type} | _fields_of(args)
    fields |= {f"{modality}_feature_size": width for modality, width in widths.items()}
    fields |= {"step_aligned": True, "text_position_type": "sinusoidal", "audio_step_rate": None}
    if encoder is not None:
        name = Path(args.model)
        fields["base_model_name_or_path"] = str(name.resolve()) if name.is_dir() else args.model
        fields["utterance_layers"] = {name: list(layers) for name, layers in encoder.layers.items()}
    own = [] if encoder is None else [str(name) for _, name in sorted(encoder.model.config.id2label.items())]
    names = own if set(labels) <= set(own) else labels
    fields |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    return TriemoForEmotionSequence(TriemoConfig(**fields, problem_type="single_label_classification"))


def _fields_of(args: ModelArguments) -> dict[str, Any]:
    return json.loads(args.model_config) if args.model_config else {}


def _head_of(name: str) -> TriemoForEmotionSequence | None:
    """The head in a folder or repository; None where that is a checkpoint with towers."""
    try:
        config = TriemoConfig.from_pretrained(name)
        if not config.step_aligned:
            return None
        return TriemoForEmotionSequence.from_pretrained(name, dtype=torch.float32)
    except OSError as error:
        raise ValueError(f"model: cannot load {name}: {error}") from error


def _encoder(
    args: ModelArguments, head: TriemoForEmotionSequence | None, tables: list[Any], given: set[str]
) -> UtteranceEncoder | None:
    """What makes the vectors that the tables do not bring; None where they bring all."""
    if head is not None:
        return UtteranceEncoder.of(head) if head.config.base_model_name_or_path else None
    wanted = {m for data in tables for m in encoded_modalities(data, MODALITIES)} - given
    if not wanted:
        return None
    model, processor = load_model(args.model, allow_new_head=True)
    if isinstance(model, TriemoForEmotionSequence):
        raise ValueError(
            f"model: {args.model} reads dialogues by towers of its own, which --towers tuned goes on with."
        )
    layers = _fields_of(args).get("utterance_layers") or {}
    missing = sorted(wanted - set(model.config.modalities))
    if missing:
        logger.warning(f"{args.model} has no tower for {', '.join(missing)}, which are not read.")
    named = {m: tuple(layers.get(m, (-1,))) for m in MODALITIES if m in wanted and m in model.config.modalities}
    return UtteranceEncoder(model, processor, named, batch_size=32)


# Over clips --------------------------------------------------------------------------------------------------


def _over_clips(splits: Parts, arguments: Arguments, names: list[str], wanted: list[str] | None) -> DialogueTask:
    model_args, data_args, args = arguments
    for parts in splits.values():
        for part, (data, _) in parts.items():
            if brought := sorted(set(FEATURE_COLUMNS) & set(data.column_names)):
                raise ValueError(
                    f"towers: got {', '.join(brought)} in {part}, which go into no tower; leave it cached."
                )
    loaded, processor = load_model(model_args.model, allow_new_head=True)
    if loaded.config.step_aligned:
        raise ValueError(
            f"towers: {model_args.model} is a head over vectors and has none to tune; give the checkpoint of its "
            f"towers, {loaded.config.base_model_name_or_path}."
        )
    is_new = not isinstance(loaded, TriemoForEmotionSequence)
    model = add_context(loaded, model_args.context_type, _fields_of(model_args)) if is_new else loaded
    is_new |= fit_head(model, "single_label_classification", names, wanted)
    config = model.config
    collators = {
        use: EmotionCollator(
            processor,
            config.label2id,
            augment=data_args.augment and use == "train",
            seed=args.seed,
            modalities=config.modalities,
            max_length=data_args.max_length,
        )
        for use in ("train", "evaluation")
    }
    found: dict[str, dict[str, Dialogues]] = {}
    for split, parts in splits.items():
        found[split] = {}
        for part, (data, _) in parts.items():
            check = data_args.check_media
            readable = readable_utterances(data, collators["evaluation"]) if check else [True] * len(data)
            found[split][part] = Dialogues.of(data, readable, dict(config.label2id), f"{part} {split}")
    is_whole = not is_new and not (Path(model_args.model) / "adapter_config.json").is_file()
    start = Start(model, processor, False, model_args.model if is_whole else None)
    weights = [weight for _, weight in splits["train"].values()]
    return DialogueTask(model, found, weights, collators=collators, start=start)


def add_context(base: Any, context_type: str, fields: Mapping[str, Any]) -> TriemoForEmotionSequence:
    """
    A classifier of clips with a new context over the utterances of a dialogue before its head.

    Args:
        base: a `TriemoForEmotionClassification`.
        context_type: of the context.
        fields: those of `TriemoConfig` that leave the weights of `base` as they are.

    Raises:
        ValueError: naming another field.
    """
    if other := sorted(set(fields) - set(CONTEXT_FIELDS)):
        raise ValueError(
            f"model_config: got {', '.join(other)}, expected some of {', '.join(CONTEXT_FIELDS)} with --towers tuned."
        )
    config = copy.deepcopy(base.config)
    for name, value in {**fields, "context_type": context_type}.items():
        setattr(config, name, value)
    model = TriemoForEmotionSequence(config)
    model.triemo.load_state_dict(base.triemo.state_dict())
    model.classifier.load_state_dict(base.classifier.state_dict())
    return model
