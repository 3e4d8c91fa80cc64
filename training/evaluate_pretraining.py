"""What a pretrained model is good for before any fine-tuning.

    python training/evaluate_pretraining.py --model runs/pretrained --corpora ravdess,fer2013,goemotions
    python training/evaluate_pretraining.py --model runs/pretrained --corpora meld --tasks retrieval,words
    torchrun --nproc_per_node 2 training/evaluate_pretraining.py --model runs/pretrained --table clips.csv

`retrieval`: from each modality to each other, recall@k of a row's own counterpart and mean average precision by
emotion, over all corpora together. `zero_shot`: emotion by the nearest sentences, by corpus, and which sentence a
voice says where there is a column `sentence`. `probe`: a logistic regression on frozen embeddings, fitted on train,
chosen on validation. `words`: what voice and face add to the prediction of masked words, on rows with words and one of
these, or on synthetic composites of the corpora.
"""

import logging
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import HfArgumentParser

from triemo.modeling import TriemoConfig, TriemoForPreTraining, TriemoModel
from triemo.processing import TriemoProcessor
from triemo.training.arguments import check_source
from triemo.training.common import command_line, write_json
from triemo.training.corpora.labels import label2id
from triemo.training.data.collation import EmotionCollator
from triemo.training.data.masking import PretrainCollator
from triemo.training.data.sampling import CompositeRows
from triemo.training.evaluation import EvaluationDataArguments, parts_of
from triemo.training.metrics.probes import (
    SENTENCES,
    linear_probe_scores,
    masked_word_losses,
    read_sentences,
    sentence_scores,
    zero_shot_scores,
)
from triemo.training.metrics.retrieval import Embedded, SentenceEmbedder, embed_rows, join_embedded, retrieval_scores
from triemo.training.metrics.scores import rounded
from triemo.training.sources import load_splits
from triemo.training.start import check_folder

__all__ = ["TASKS", "PretrainingEvaluationArguments", "main"]

logger = logging.getLogger("triemo.training.evaluate_pretraining")

TASKS = ("retrieval", "zero_shot", "probe", "words")
FILE = "pretraining_evaluation.json"


@dataclass
class PretrainingEvaluationArguments(EvaluationDataArguments):
    """How it is scored."""

    tasks: str = field(default=",".join(TASKS), metadata={"help": f"Some of {', '.join(TASKS)}."})
    ks: str = field(default="1,5,10", metadata={"help": "The k of recall@k, comma-separated."})
    candidates: int | None = field(default=None, metadata={"help": "Rows drawn for recall@k; all by default."})
    sentences: str | None = field(
        default=None, metadata={"help": 'JSON file of sentences for zero-shot: {"joy": ["...", ...], ...}.'}
    )
    max_rows: int | None = field(default=None, metadata={"help": "Rows drawn from each corpus to score."})
    probe_rows: int | None = field(
        default=4000, metadata={"help": "Rows drawn from each corpus's train and validation for the probe."}
    )
    composites: int = field(
        default=0, metadata={"help": "Synthetic composites for `words`, where no corpus has words with voice or face."}
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of words masked for `words`."})
    seed: int = field(default=0, metadata={"help": "Of what is drawn."})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Returns what `pretraining_evaluation.json` holds."""
    parser = HfArgumentParser(PretrainingEvaluationArguments)
    (args,) = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    tasks = [task.strip() for task in args.tasks.split(",") if task.strip()]
    if not tasks or set(tasks) - set(TASKS):
        raise ValueError(f"tasks: got {args.tasks!r}, expected some of {', '.join(TASKS)}.")
    ks = parse_ks(args.ks)
    check_source(args.table, args.corpora)
    sets = SENTENCES if args.sentences is None else read_sentences(args.sentences)
    state = PartialState(cpu=args.use_cpu)
    logging.basicConfig(format="%(message)s", level=logging.INFO if state.is_main_process else logging.ERROR)
    model, pretraining, processor = load_pretrained(args.model, state.device, "words" in tasks)
    collator = EmotionCollator(processor, label2id, modalities=model.config.modalities, max_length=args.max_length)
    splits = load_splits(args, merge=args.split == "all")
    parts = {n: drawn(rows, args.max_rows, args.seed) for n, rows in parts_of(args, splits, args.split).items()}
    embed = partial(embed_rows, model, collator, state=state, batch_size=args.batch_size)
    result: dict[str, Any] = {"model": args.model, "split": args.split}
    result["rows"] = {name: len(rows) for name, rows in parts.items()}
    if set(tasks) - {"words"}:
        embedded = {name: embed(rows) for name, rows in parts.items()}
    if "retrieval" in tasks:
        result["retrieval"] = retrieval_scores(join_embedded(list(embedded.values())), ks, args.candidates, args.seed)
    if "zero_shot" in tasks and "text" in model.config.modalities:
        speak = SentenceEmbedder(model, collator, state.device)
        result["zero_shot"] = {name: zero_shot_scores(part, sets, speak) for name, part in embedded.items()}
        result["sentence"] = {
            name: sentence_scores(part.vectors["audio"], spoken_by(parts[name], part), speak)
            for name, part in embedded.items()
            if "sentence" in parts[name].column_names and "audio" in part.vectors
        }
    if "probe" in tasks:
        known = {
            split: {
                name: embed(drawn(rows, args.probe_rows, args.seed))
                for name, rows in parts_of(args, splits, split).items()
            }
            for split in ("train", "validation")
            if split == "train" or split in splits
        }
        result["probe"] = {
            name: linear_probe_scores(known["train"][name], known.get("validation", {}).get(name), part, args.seed)
            for name, part in embedded.items()
        }
    if pretraining is not None:
        masking = PretrainCollator(
            processor, args.mlm_probability, seed=args.seed, modalities=collator.modalities, max_length=args.max_length
        )
        result["words"] = {
            name: masked_word_losses(pretraining, masking, rows, state, args.batch_size)
            for name, rows in rows_with_words(parts, args.composites, args.seed).items()
        }
    result = rounded(result)
    result["command"] = command_line("training/evaluate_pretraining.py", argv)
    if state.is_main_process:
        logger.info("\n".join(summary(result)))
        if args.output:
            folder = Path(args.output)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / FILE, result)
    state.wait_for_everyone()
    return result


def load_pretrained(
    name: str, device: torch.device, with_head: bool
) -> tuple[TriemoModel, TriemoForPreTraining | None, TriemoProcessor]:
    """
    The base model of any checkpoint, the pretraining model around it where the checkpoint has one, and the processor.

    Raises:
        ValueError: naming what cannot be loaded.
    """
    check_folder(name)
    try:
        processor = TriemoProcessor.from_pretrained(name)
        architectures = TriemoConfig.from_pretrained(name).architectures or []
        if with_head and TriemoForPreTraining.__name__ in architectures:
            whole = TriemoForPreTraining.from_pretrained(name, dtype=torch.float32).to(device).eval()
            return whole.triemo, whole if whole.mlm_head is not None else None, processor
        return TriemoModel.from_pretrained(name, dtype=torch.float32).to(device).eval(), None, processor
    except OSError as error:
        raise ValueError(f"model: cannot load {name}: {error}") from error


def parse_ks(text: str) -> list[int]:
    values = [part.strip() for part in text.split(",")]
    if not all(value.isdigit() and int(value) > 0 for value in values):
        raise ValueError(f"ks: got {text!r}, expected whole numbers above 0 such as 1,5,10.")
    return [int(value) for value in values]


def drawn(rows: Any, most: int | None, seed: int) -> Any:
    """At most so many rows, in their order."""
    if most is None or len(rows) <= most:
        return rows
    return rows.select(np.sort(np.random.default_rng(seed).permutation(len(rows))[:most]))


def spoken_by(rows: Any, part: Embedded) -> list[str | None]:
    """What each voice says."""
    sentences = rows["sentence"][:]
    return [sentences[index] for index in part.rows["audio"]]


def rows_with_words(parts: dict[str, Any], composites: int, seed: int) -> dict[str, Any]:
    """Parts that have words and a voice or a face in one row, else composites of all parts."""
    sources = {"audio", "video", "image", "audio_features", "vision_features"}
    found = {n: rows for n, rows in parts.items() if "text" in rows.column_names and sources & set(rows.column_names)}
    if found or not composites:
        return found
    synthetic = CompositeRows({name: (rows, 1.0) for name, rows in parts.items()}, composites, seed)
    return {"composites_synthetic": [synthetic.draw(ticket) for ticket in range(composites)]}


def summary(result: dict[str, Any]) -> list[str]:
    lines = []
    for direction, scores in result.get("retrieval", {}).items():
        shown = {name: value for name, value in scores.items() if not isinstance(value, dict)}
        shown |= {name: scores["by_emotion"][name] for name in ("map", "chance") if "by_emotion" in scores}
        lines.append(f"{direction:18}" + "  ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    for name, by_modality in result.get("zero_shot", {}).items():
        for modality, scores in by_modality.items():
            uars = "  ".join(f"{key} {value['uar']:.3f}" for key, value in scores.items() if isinstance(value, dict))
            lines.append(f"zero-shot UAR of {modality} in {name} (chance {scores['chance']:.3f}): {uars}")
    for name, by_subset in result.get("probe", {}).items():
        lines += [f"probe UAR of {subset} in {name}: {scores['uar']:.3f}" for subset, scores in by_subset.items()]
    for name, losses in result.get("words", {}).items():
        lines.append(f"masked words of {name}: " + "  ".join(f"{key} {value:.4g}" for key, value in losses.items()))
    return lines


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"evaluate_pretraining.py: {error}")
