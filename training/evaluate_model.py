"""Score a model on each of the seven subsets of text, audio and vision that the data has.

    python training/evaluate_model.py --model runs/calls --table calls.csv --split test --output runs/calls/eval
    torchrun --nproc_per_node 2 training/evaluate_model.py --model checkpoints/triemo-small --corpora ravdess,fer2013
    python training/evaluate_model.py --model runs/calls --table calls.csv --calibrate

With --calibrate, `min_score` is set as well: the score from which on answers are right in --selective_accuracy of the
validation rows; those below it are called uncertain.

A subset is scored on the rows that have all of it, `present` on every row with whatever it has. Unreadable media are
an error: a figure over the rest would be another figure.

The model of `finetune.py --task dialogues` is scored in the same way, each utterance in its dialogue, of which it then
sees these modalities alone; `--group dialogue_length` gives the scores of short and long ones.
"""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import HfArgumentParser

from triemo.modeling import TriemoForEmotionSequence
from triemo.training.arguments import check_source
from triemo.training.common import command_line, write_json
from triemo.training.data.collation import MASKS, EmotionCollator
from triemo.training.data.dialogues import DialogueRows
from triemo.training.dialogue_task import scored_dialogues
from triemo.training.evaluation import EvaluationDataArguments, load_parts
from triemo.training.metrics.calibration import FEWEST_ROWS, calibration_temperature, groups_of
from triemo.training.metrics.plots import check_matplotlib, plot_risk_coverage, plot_scores
from triemo.training.metrics.scores import EmotionMetric, rounded
from triemo.training.metrics.selection import pick_min_score, risk_coverage, selective_accuracy
from triemo.training.metrics.subsets import PRESENT, predict_dialogue_subsets, predict_subsets
from triemo.training.sources import check_labels, load_dialogues, load_splits
from triemo.training.start import load_model

__all__ = ["EvaluationArguments", "main"]

logger = logging.getLogger("triemo.training.evaluate_model")

COLUMNS = ("samples", "accuracy", "uar", "macro_f1", "weighted_f1", "expected_calibration_error")
SHORT = {"expected_calibration_error": "ece"}
DIALOGUE_LENGTH = "dialogue_length"
LENGTHS = (5, 10, 20, 50)  # utterances, from which on a dialogue is of the next group


@dataclass
class EvaluationArguments(EvaluationDataArguments):
    """How it is scored."""

    group: str = field(
        default="gender",
        metadata={
            "help": "Column by which scores are also given, where there is one; of dialogues also dialogue_length."
        },
    )
    vectors: str | None = field(
        default=None, metadata={"help": "Folder that keeps the utterances' vectors, as in finetune.py."}
    )
    calibrate: bool = field(
        default=False,
        metadata={"help": "Fit temperature and min_score on the validation split and store them in config.json."},
    )
    selective_accuracy: float = field(
        default=0.9, metadata={"help": "Share of right answers among those that --calibrate lets be certain."}
    )
    plot: bool = field(default=True, metadata={"help": "Draw the pictures."})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Returns what `evaluation.json` holds."""
    (args,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(argv, look_for_args_file=False)
    check_source(args.table, args.corpora)
    if not 0 < args.selective_accuracy <= 1:
        raise ValueError(f"selective_accuracy: got {args.selective_accuracy}, expected above 0 and at most 1.")
    if args.plot and args.output:
        check_matplotlib()
    state = PartialState(cpu=args.use_cpu)
    logging.basicConfig(format="%(message)s", level=logging.INFO if state.is_main_process else logging.ERROR)
    model, processor = load_model(args.model)
    model = model.to(state.device).eval()
    config = model.config
    problem = config.resolved_problem_type
    of_dialogues = isinstance(model, TriemoForEmotionSequence)
    prepare, load = (dialogue_rows, load_dialogues) if of_dialogues else (clip_rows, load_splits)

    def parts_of(split: str) -> dict[str, Scored]:
        found = load_parts(args, split, load)
        return {name: prepare(model, processor, data, name, args, state) for name, data in found.items()}

    result: dict[str, Any] = {"model": args.model, "split": args.split, "labels": list(config.label2id)}
    if args.calibrate:
        result["calibration"] = calibrate(model, parts_of, args, state)
    result["temperature"] = config.calibration_temperature
    result["min_score"] = config.min_score
    result["parts"] = {name: scores_of(model, part) for name, part in parts_of(args.split).items()}
    result["command"] = command_line("training/evaluate_model.py", argv)
    if state.is_main_process:
        for name, scores in result["parts"].items():
            logger.info(table_of(name, scores))
        if args.output:
            folder = Path(args.output)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "evaluation.json", result)
            if args.plot and problem == "single_label_classification":
                for name, scores in result["parts"].items():
                    plot_scores(scores["subsets"], result["labels"], name, folder / f"{name}.png")
                    curves = {subset: row["risk_coverage"] for subset, row in scores["subsets"].items()}
                    plot_risk_coverage(curves, args.selective_accuracy, name, folder / f"{name}_risk_coverage.png")
    state.wait_for_everyone()
    return result


@dataclass
class Scored:
    """
    The rows of one part as they are scored.

    Args:
        targets: (rows,) class ids, -1 where no single answer is right; or (rows, C) several labels or numbers.
        groups: (rows,) by which scores are also given; None where nothing says.
        folds: (rows,) what no fold of a calibration divides.
        counts: what else is told of the rows.
        predict: from whether logits are calibrated to `{subset: {row: logits}}` and the rows that hold nothing.
    """

    targets: np.ndarray
    groups: list[str] | None
    folds: list[str]
    counts: dict[str, int]
    predict: Callable[[bool], tuple[dict[str, dict[int, list[float]]], Sequence[int]]]


def clip_rows(
    model: Any, processor: Any, data: Any, name: str, args: EvaluationArguments, state: PartialState
) -> Scored:
    """Each row alone. Raises ValueError naming the row of an unknown or missing label."""
    problem = model.config.resolved_problem_type
    is_single = problem == "single_label_classification"
    collator = EmotionCollator(
        processor,
        model.config.label2id,
        problem,
        modalities=model.config.modalities,
        max_length=args.max_length,
        soft_labels=is_single,
    )
    check_labels(data, collator.encode_label)
    targets = np.stack([collator.encode_label({"label": label}) for label in data["label"]])  # type: ignore[misc]
    if is_single:
        targets = np.where(targets.max(-1) > 0.999, targets.argmax(-1), -1)
    return Scored(
        targets,
        column_of(data, args.group),
        groups_of([data]),
        {"several_labels": int((targets < 0).sum()) if is_single else 0},
        lambda calibrated: predict_subsets(model, collator, data, state, args.batch_size, calibrated and is_single),
    )


def dialogue_rows(
    model: Any, processor: Any, data: Any, name: str, args: EvaluationArguments, state: PartialState
) -> Scored:
    """Each row in its dialogue; one without a label is context alone. Raises ValueError as `scored_dialogues`."""
    with state.main_process_first():  # which makes the vectors that are kept
        rows = scored_dialogues(model, processor, data, name, args.vectors, args.max_length)
    (part,) = rows.parts
    targets = np.maximum(part.labels.numpy(), -1)
    empty = sorted(set(range(len(data))) - {row for turns in part.turns for row in turns})
    return Scored(
        targets,
        lengths_of(rows, len(data)) if args.group == DIALOGUE_LENGTH else column_of(data, args.group),
        [str(dialogue) for dialogue in data["dialogue"][:]],
        {"dialogues": len(rows), "without_label": int((targets < 0).sum())},
        lambda calibrated: (predict_dialogue_subsets(model, rows, state, args.batch_size, calibrated), empty),
    )


def column_of(data: Any, name: str) -> list[str] | None:
    """A column's values as names, "" where there is none."""
    return ["" if value is None else str(value) for value in data[name][:]] if name in data.column_names else None


def lengths_of(rows: DialogueRows, total: int) -> list[str]:
    """How many utterances the dialogue of each row has, as `5-9`."""
    bounds = (1, *LENGTHS)
    names = [f"{least}-{more - 1}" for least, more in zip(bounds, LENGTHS, strict=False)] + [f"{LENGTHS[-1]}-"]
    found = [""] * total
    for _, turns in rows.items:
        for row in turns:
            found[row] = names[int(np.searchsorted(LENGTHS, len(turns), side="right"))]
    return found


def scores_of(model: Any, part: Scored) -> dict[str, Any]:
    """
    Scores by subset: `{"samples", "left_out", ..., "subsets": {"text": {...}, ..., "present": {...}}}`.
    Of one class a row also `risk_coverage` and, with the model's `min_score`, the `selective` coverage and accuracy.

    Raises:
        ValueError: naming the row of media that cannot be read; no row left to score.
    """
    config, targets = model.config, part.targets
    problem = config.resolved_problem_type
    is_single = problem == "single_label_classification"
    logits, empty = part.predict(True)
    subsets = {}
    for name, by_row in logits.items():
        scored = [index for index in by_row if not is_single or targets[index] >= 0]
        if not scored:
            continue
        metric = EmotionMetric(problem, keep_in_memory=True)
        metric.add_batch(
            predictions=[by_row[index] for index in scored],
            references=targets[scored],
            groups=[part.groups[index] if part.groups else "" for index in scored],
        )
        subsets[name] = rounded(metric.compute(labels=list(config.label2id)))
        if is_single:
            rows_of_subset = [by_row[index] for index in scored]
            subsets[name]["risk_coverage"] = rounded(risk_coverage(rows_of_subset, targets[scored]))
            if name != PRESENT:  # whose rows have different thresholds
                least = config.min_score_of([modality in name.split("+") for modality in MASKS])
                subsets[name]["selective"] = rounded(selective_accuracy(rows_of_subset, targets[scored], least))
    if not subsets:
        raise ValueError("rows: got none that can be scored, expected some.")
    return {"samples": len(targets), "left_out": len(empty), **part.counts, "subsets": subsets}


def calibrate(
    model: Any, parts_of: Callable[[str], dict[str, Scored]], args: EvaluationArguments, state: PartialState
) -> dict[str, Any]:
    """
    Fit a temperature for each subset on the validation rows, corpora counting alike; store them by the weights. It is
    1 where it does not help speakers, dialogues or rows that it was not fitted to; a subset of too few rows gets none.
    With it goes the `min_score` from which on answers are right often enough; a subset where none is has none.
    """
    problem = model.config.resolved_problem_type
    if problem != "single_label_classification":
        raise ValueError(f"calibrate: fits one class a row, got a model for {problem}.")
    file = Path(args.model) / "config.json"
    if not file.is_file():
        raise ValueError(f"calibrate: got the model {args.model}, expected a folder with config.json to store it in.")
    found: dict[str, tuple[list, list, list, list]] = {}
    for number, part in enumerate(parts_of("validation").values()):
        targets, groups = part.targets, [f"{number}, {name}" for name in part.folds]
        by_subset, _ = part.predict(False)
        for name, by_row in by_subset.items():
            scored = [index for index in by_row if targets[index] >= 0]
            logits, labels, members, weights = found.setdefault(name, ([], [], [], []))
            logits += [by_row[index] for index in scored]
            labels += targets[scored].tolist()
            members += [groups[index] for index in scored]
            weights += [1 / len(scored)] * len(scored)
    present = len(found.pop(PRESENT)[0])
    before, after = model.config.calibration_temperature, {}
    least: dict[str, dict[str, float] | None] = {}
    for name, (logits, labels, members, weights) in found.items():
        fitted = calibration_temperature(logits, labels, members, weights)
        if fitted is not None:
            after[name] = fitted
            scaled = np.asarray(logits) / fitted
            least[name] = rounded(pick_min_score(scaled, labels, args.selective_accuracy, weights))
    if not after:
        raise ValueError(f"calibrate: got {present} validation rows of one class, expected {FEWEST_ROWS} or more.")
    model.config.calibration_temperature = after
    model.config.min_score = {name: picked["min_score"] for name, picked in least.items() if picked is not None}
    stored = {"calibration_temperature": after, "min_score": model.config.min_score}
    if state.is_main_process:
        write_json(file, json.loads(file.read_text(encoding="utf-8")) | stored)
    return {
        "before": before,
        "after": after,
        "samples": present,
        "selective_accuracy": args.selective_accuracy,
        "selected": least,
    }


def table_of(name: str, scores: dict[str, Any]) -> str:
    shown = [column for column in COLUMNS if any(column in row for row in scores["subsets"].values())]
    shown = shown if len(shown) > 1 else ["samples", "mae", "rmse", "pearson", "ccc"]
    lines = [
        f"{name}: {scores['samples']} rows, {scores['left_out']} left out",
        " " * 18 + "".join(f"{SHORT.get(c, c):>13}" for c in shown),
    ]
    for subset, row in scores["subsets"].items():
        cells = "".join(f"{row.get(column, float('nan')):13.4g}" for column in shown)
        lines.append(f"{subset:18}{cells}")
    for subset, row in scores["subsets"].items():
        chosen = row.get("selective", {"min_score": 0})
        if chosen["min_score"] > 0:
            accuracy = "none" if chosen["accuracy"] is None else f"{100 * chosen['accuracy']:.1f} %"
            coverage = f"{100 * chosen['coverage']:.1f} % reach the least score {chosen['min_score']:.3f}"
            lines.append(f"{subset}: {coverage}; of these {accuracy} are right")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"evaluate_model.py: {error}")
