"""Copies the measured figures of `metrics.json` into README.md and model_card.md, between their `figures` marks.

python training/figures_table.py
"""

import argparse
import json
from itertools import combinations
from pathlib import Path

__all__ = ["figures_table", "replace_figures"]

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
SUBSET_NAMES = {"text": "words", "audio": "voice", "vision": "face"}


def figures_table(metrics: dict) -> str:
    """The figures of a checkpoint's `metrics.json` as Markdown tables, rounded to three decimals."""
    figures = metrics["figures"]
    text, calibration = figures["goemotions_test"], figures["expected_calibration_error"]
    merged, dropped = figures["ravdess_actors_21_24_calm_merged"], figures["ravdess_actors_21_24_calm_dropped"]
    face = figures["fer2013_private_test"]
    rows = [
        ("GoEmotions, official test, ekman, words alone", "macro F1, multi-label", text["multi_label"]["macro_f1"]),
        ("the same, rows with one label, top class", "weighted F1", text["single_label"]["weighted_f1"]),
        ("RAVDESS, actors 21-24, calm merged into neutral, voice alone", "weighted F1", merged["weighted_f1"]),
        ("the same", "UAR", merged["uar"]),
        ("RAVDESS, actors 21-24, calm dropped, voice alone", "weighted F1", dropped["weighted_f1"]),
        ("FER2013, PrivateTest, face alone", "accuracy", face["accuracy"]),
        ("the same", "UAR", face["uar"]),
    ]
    names = {"text": "GoEmotions, words", "audio": "RAVDESS, voice", "vision": "FER2013, face"}
    measure = "expected calibration error, before / after temperature"
    rows += [(names[name], measure, (error["before"], error["after"])) for name, error in sorted(calibration.items())]
    lines = ["| test | measure | value |", "|---|---|---|"]
    lines += [f"| {test} | {measure} | {_rounded(value)} |" for test, measure, value in rows]
    lines += [
        "",
        "Synthetic composites (a sentence, a voice and a face of the same emotion, joined from the three test sets;",
        "they do not say how well real clips are read):",
        "",
        "| modalities | UAR | accuracy |",
        "|---|---|---|",
    ]
    scored = {tuple(name.split("+")): scores for name, scores in figures["composites_test_synthetic"].items()}
    for subset in (chosen for size in (1, 2, 3) for chosen in combinations(SUBSET_NAMES, size)):
        scores = scored[subset]
        shown = " + ".join(SUBSET_NAMES[name] for name in subset)
        lines.append(f"| {shown} | {_rounded(scores['uar'])} | {_rounded(scores['accuracy'])} |")
    return "\n".join(lines)


def replace_figures(document: str, table: str) -> str:
    """The document with the table between its marks.

    Raises ValueError if a mark is missing.
    """
    if BEGIN not in document or END not in document:
        raise ValueError(f"expected the marks {BEGIN} and {END} in the document, got none.")
    head, rest = document.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}"


def _rounded(value: float | tuple[float, float]) -> str:
    return " / ".join(f"{part:.3f}" for part in (value if isinstance(value, tuple) else (value,)))


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", type=Path, default=root / "checkpoints" / "triemo-small" / "metrics.json")
    parser.add_argument("--documents", type=Path, nargs="+", default=[root / "README.md", root / "model_card.md"])
    args = parser.parse_args()
    table = figures_table(json.loads(args.metrics.read_text()))
    for path in args.documents:
        unfinished = path.with_suffix(".part")
        unfinished.write_text(replace_figures(path.read_text(), table))
        unfinished.replace(path)
        print(f"figures of {args.metrics} -> {path}")


if __name__ == "__main__":
    main()
