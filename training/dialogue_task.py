"""`finetune.py --task dialogues`: what it reads and what it trains, a head over the vectors of utterances.

The towers of `--model` stay as they are: each utterance goes through them once, and its vectors are kept in the output
folder. What learns is small, so an epoch over a thousand dialogues takes seconds.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triemo.modeling import MODALITIES, TriemoConfig, TriemoForEmotionSequence
from triemo.processing import UtteranceEncoder
from triemo.training.arguments import DataArguments, FinetuneTrainingArguments, ModelArguments
from triemo.training.data.collation import encode_label
from triemo.training.data.dialogues import DialogueRows, Dialogues, Standardised
from triemo.training.data.sampling import MixtureSampler
from triemo.training.data.utterance_vectors import encoded_modalities, given_widths, utterance_vectors
from triemo.training.sources import Parts, infer_problem
from triemo.training.start import fit_head, load_model

__all__ = ["DialogueTask", "build_dialogue_task", "new_head"]

logger = logging.getLogger(__name__)

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


@dataclass
class DialogueTask:
    """
    Args:
        model: the head, whose config names the checkpoint of the towers.
        splits: `{split: {part: dialogues}}`.
        weights: of the parts of train.
        scale: of all vectors, while it learns.
    """

    model: TriemoForEmotionSequence
    splits: dict[str, dict[str, Dialogues]]
    weights: list[float]
    scale: Standardised

    def training_rows(self, args: FinetuneTrainingArguments, buckets: bool) -> tuple[DialogueRows, MixtureSampler]:
        """The training's dialogues and the order in which they are drawn."""
        rows = self.rows("train")
        sizes = [len(part.turns) for part in self.splits["train"].values()]
        lengths = rows.lengths() if buckets else None
        return rows, MixtureSampler(sizes, self.weights, args.seed, lengths, args.train_batch_size)

    def rows(self, split: str, part: str | None = None) -> DialogueRows:
        """The dialogues of a split, or of one of its parts."""
        parts = self.splits[split]
        return DialogueRows(list(parts.values()) if part is None else [parts[part]], self.scale)


def build_dialogue_task(
    splits: Parts, model_args: ModelArguments, data_args: DataArguments, args: FinetuneTrainingArguments
) -> DialogueTask:
    """
    Vectors of all splits and a head for the labels of train.

    `--model` is a checkpoint with towers, for a new head, or a head that goes on learning.

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
    tables = [data for parts in splits.values() for data, _ in parts.values()]
    given: dict[str, int] = {}
    for data in tables:
        given |= given_widths(data)
    head = _head_of(model_args.model)
    encoder = _encoder(model_args, head, tables, set(given))
    widths = given | ({} if encoder is None else encoder.widths)
    wanted = [name.strip() for name in model_args.labels.split(",")] if model_args.labels else None
    if head is None:
        head = new_head(model_args, widths, encoder, wanted or names)
    fit_head(head, problem, names, wanted)
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
            found[split][part] = Dialogues.of(data, vectors, _label_reader(label2id), f"{part} {split}")
    counts = {split: sum(len(d.turns) for d in parts.values()) for split, parts in found.items()}
    logger.info(f"Dialogues: {counts}; vectors: {widths}.")
    weights = [weight for _, weight in splits["train"].values()]
    return DialogueTask(head, found, weights, Standardised(list(found["train"].values())))


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
    layers = _fields_of(args).get("utterance_layers") or {}
    missing = sorted(wanted - set(model.config.modalities))
    if missing:
        logger.warning(f"{args.model} has no tower for {', '.join(missing)}, which are not read.")
    named = {m: tuple(layers.get(m, (-1,))) for m in MODALITIES if m in wanted and m in model.config.modalities}
    return UtteranceEncoder(model, processor, named, batch_size=32)


def _label_reader(label2id: dict[str, int]) -> Any:
    def read(row: dict[str, Any]) -> Any:
        try:
            return encode_label(row.get("label"), label2id)
        except ValueError as error:
            raise ValueError(f"{row.get('row') or 'row'}: {error}") from error

    return read
