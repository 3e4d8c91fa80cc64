"""RAVDESS, eight classes, voice alone, on the five published folds of actors: the benchmark of the audio tower.

    python training/recipes/ravdess_folds.py --data ../shared/data --weights ../shared/weights

Each fold is the test once, the other four are training. A fold that is done is skipped. A benchmark of the recipe: no
fold's model is released.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from sklearn.metrics import f1_score
from transformers import HfArgumentParser

from triemo.training.common import write_json
from triemo.training.corpora.labels import RAVDESS_LABELS
from triemo.training.corpora.registry import load_corpus
from triemo.training.metrics.scores import classification_scores, mean_and_deviation
from triemo.training.recipes.audio import build_tower
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.voice import VoiceClips, clip_logits

__all__ = ["FoldRun", "main"]

FOLDS = 5
CALM = RAVDESS_LABELS.index("calm")


@dataclass
class FoldRun(ReleaseRun):
    """As `release.py`'s; `stage` is the number of one fold, from 0, or all."""

    config: str = str(Path(__file__).parent / "configs" / "ravdess_folds.yaml")
    output: str = "runs/ravdess_folds"


def main(arguments: list[str] | None = None) -> dict:
    """Runs the folds asked for, and writes `<output>/folds.json` once all are there."""
    (run,) = HfArgumentParser(FoldRun, description=__doc__.splitlines()[0]).parse_args_into_dataclasses(arguments)
    settings = yaml.safe_load(Path(run.config).read_text())
    run.seed = settings.pop("seed") if run.seed is None else run.seed
    settings.pop("seed", None)
    if run.stage not in ("all", *map(str, range(FOLDS))):
        raise ValueError(f"stage: got {run.stage!r}, expected all or a fold from 0 to {FOLDS - 1}")
    torch.set_num_threads(run.threads)
    Path(run.output).mkdir(parents=True, exist_ok=True)
    for fold in range(FOLDS) if run.stage == "all" else [int(run.stage)]:
        report = Path(run.output) / f"fold_{fold}.json"
        if not report.exists():
            write_json(report, {"command": " ".join(["python", *sys.argv]), **run_fold(run, fold, settings)})
        print(report.read_text())
    reports = [Path(run.output) / f"fold_{fold}.json" for fold in range(FOLDS)]
    if not all(report.exists() for report in reports):
        return {}
    folds = [json.loads(report.read_text()) for report in reports]
    result = {"folds": folds, "seed": run.seed, "settings": settings}
    for key in ("accuracy", "uar", "calm_dropped_weighted_f1"):
        values = [fold[key] for fold in folds]
        result[key] = mean_and_deviation(values, of_sample=False)
    write_json(Path(run.output) / "folds.json", result)
    print(json.dumps({key: result[key] for key in ("accuracy", "uar", "calm_dropped_weighted_f1")}, indent=2))
    return result


def run_fold(run: FoldRun, fold: int, settings: dict) -> dict:
    """Fits to four folds, scores the fifth."""
    corpus = load_corpus("ravdess", run.data, "own", fold=fold, validation=False)
    voices = {name: VoiceClips.of_ravdess(rows) for name, rows in corpus.items()}
    tower, training = build_tower(run, voices["train"], **settings)
    labels, logits = np.array(voices["test"].labels), clip_logits(tower, voices["test"].clips).numpy()
    scores = classification_scores(logits, labels)
    # The published seven-class protocol leaves calm out of the test; then it is no possible answer either.
    spoken = labels != CALM
    logits[:, CALM] = -np.inf
    seven = f1_score(labels[spoken], logits[spoken].argmax(1), average="weighted")
    return {
        "actors": sorted(set(voices["test"].speakers)),
        "clips": len(labels),
        "accuracy": scores["accuracy"],
        "uar": scores["uar"],
        "calm_dropped_weighted_f1": float(seven),
        "unseen_training_speakers": training,
    }


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"ravdess_folds.py: {error}")
