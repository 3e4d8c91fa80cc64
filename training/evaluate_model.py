"""Score a model on each of the seven subsets of text, audio and vision that the data has.

    python training/evaluate_model.py --model runs/calls --table calls.csv --split test --output runs/calls/eval
    torchrun --nproc_per_node 2 training/evaluate_model.py --model checkpoints/triemo-small --corpora ravdess,fer2013
    python training/evaluate_model.py --model runs/calls --table calls.csv --calibrate

With --calibrate, `min_score` is set as well: the score from which on answers are right in --selective_accuracy of the
validation rows; those below it are called uncertain.

A subset is scored on the rows that have all of it, `present` on every row with whatever it has. Unreadable media are
an error: a figure over the rest would be another figure.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import HfArgumentParser

from triemo.training.arguments import check_source
from triemo.training.common import command_line, write_json
from triemo.training.data.collation import MASKS, EmotionCollator
from triemo.training.evaluation import EvaluationDataArguments, load_parts
from triemo.training.metrics.calibration import FEWEST_ROWS, calibration_temperature, groups_of
from triemo.training.metrics.plots import check_matplotlib, plot_risk_coverage, plot_scores
from triemo.training.metrics.scores import EmotionMetric, rounded
from triemo.training.metrics.selection import pick_min_score, risk_coverage, selective_accuracy
from triemo.training.metrics.subsets import PRESENT, predict_subsets
from triemo.training.sources import check_labels
from triemo.training.start import load_model

__all__ = ["EvaluationArguments", "evaluate_rows", "main"]

logger = logging.getLogger("triemo.training.evaluate_model")

COLUMNS = ("samples", "accuracy", "uar", "macro_f1", "weighted_f1", "expected_calibration_error")
SHORT = {"expected_calibration_error": "ece"}


@dataclass
class EvaluationArguments(EvaluationDataArguments):
    """How it is scored."""

    group: str = field(
        default="gender", metadata={"help": "Column by which scores are also given, where there is one."}
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
    collator = EmotionCollator(
        processor,
        config.label2id,
        problem,
        modalities=config.modalities,
        max_length=args.max_length,
        soft_labels=problem == "single_label_classification",
    )

    result: dict[str, Any] = {"model": args.model, "split": args.split, "labels": list(config.label2id)}
    if args.calibrate:
        result["calibration"] = calibrate(model, collator, args, state)
    result["temperature"] = config.calibration_temperature
    result["min_score"] = config.min_score
    parts = load_parts(args, args.split)
    result["parts"] = {
        name: evaluate_rows(model, collator, data, state, args.batch_size, args.group) for name, data in parts.items()
    }
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


def targets_of(collator: EmotionCollator, rows: Any) -> np.ndarray:
    """
    Targets of all rows; for one class a row, its id, and -1 where a row names several: no single answer is right.

    Raises:
        ValueError: naming the row of an unknown or missing label.
    """
    check_labels(rows, collator.encode_label)
    targets = np.stack([collator.encode_label({"label": label}) for label in rows["label"]])  # type: ignore[misc]
    if collator.problem_type != "single_label_classification":
        return targets
    return np.where(targets.max(-1) > 0.999, targets.argmax(-1), -1)


def evaluate_rows(
    model: Any, collator: EmotionCollator, rows: Any, state: PartialState, batch_size: int = 16, group: str = "gender"
) -> dict[str, Any]:
    """
    Scores by subset: `{"samples", "left_out", "several_labels", "subsets": {"text": {...}, ..., "present": {...}}}`.
    Of one class a row also `risk_coverage` and, with the model's `min_score`, the `selective` coverage and accuracy.

    Raises:
        ValueError: naming the row of an unknown label or of media that cannot be read; no row left to score.
    """
    targets = targets_of(collator, rows)
    is_single = collator.problem_type == "single_label_classification"
    logits, empty = predict_subsets(model, collator, rows, state, batch_size, calibrated=is_single)
    groups = ["" if name is None else str(name) for name in rows[group]] if group in rows.column_names else None
    subsets = {}
    for name, by_row in logits.items():
        scored = [index for index in by_row if not is_single or targets[index] >= 0]
        if not scored:
            continue
        metric = EmotionMetric(collator.problem_type, keep_in_memory=True)
        metric.add_batch(
            predictions=[by_row[index] for index in scored],
            references=targets[scored],
            groups=[groups[index] if groups else "" for index in scored],
        )
        subsets[name] = rounded(metric.compute(labels=list(model.config.label2id)))
        if is_single:
            rows_of_subset = [by_row[index] for index in scored]
            subsets[name]["risk_coverage"] = rounded(risk_coverage(rows_of_subset, targets[scored]))
            if name != PRESENT:  # whose rows have different thresholds
                least = model.config.min_score_of([modality in name.split("+") for modality in MASKS])
                subsets[name]["selective"] = rounded(selective_accuracy(rows_of_subset, targets[scored], least))
    if not subsets:
        raise ValueError("rows: got none that can be scored, expected some.")
    several = int((targets < 0).sum()) if is_single else 0
    return {"samples": len(rows), "left_out": len(empty), "several_labels": several, "subsets": subsets}


def calibrate(model: Any, collator: EmotionCollator, args: EvaluationArguments, state: PartialState) -> dict[str, Any]:
    """
    Fit a temperature for each subset on the validation rows, corpora counting alike; store them by the weights. It is
    1 where it does not help speakers, dialogues or rows that it was not fitted to; a subset of too few rows gets none.
    With it goes the `min_score` from which on answers are right often enough; a subset where none is has none.
    """
    if collator.problem_type != "single_label_classification":
        raise ValueError(f"calibrate: fits one class a row, got a model for {collator.problem_type}.")
    file = Path(args.model) / "config.json"
    if not file.is_file():
        raise ValueError(f"calibrate: got the model {args.model}, expected a folder with config.json to store it in.")
    parts = list(load_parts(args, "validation").values())
    names = iter(groups_of(parts))
    found: dict[str, tuple[list, list, list, list]] = {}
    for rows in parts:
        targets, groups = targets_of(collator, rows), list(islice(names, len(rows)))
        by_subset, _ = predict_subsets(model, collator, rows, state, args.batch_size, calibrated=False)
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
