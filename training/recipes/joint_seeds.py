"""The joint stage over several seeds, with and without what it starts from: does pretraining pay, and how much of a
figure is chance?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from triemo.modeling import TriemoForEmotionClassification
from triemo.training.common import write_json
from triemo.training.metrics.scores import mean_and_deviation
from triemo.training.recipes.joint import train_joint
from triemo.training.recipes.measure_corpora import measured
from triemo.training.recipes.stages import ReleaseRun

__all__ = ["numbers", "train_joint_seeds", "train_one_seed"]

MEASURES = ("accuracy", "uar", "macro_f1", "weighted_f1")  # of which a table is made
NOT_COMPARED = ("per_class", "abstaining", "thresholds", "risk_coverage")


def train_joint_seeds(
    run: ReleaseRun, name: str, *, starts: Mapping[str, str | None], seeds: Sequence[int], **joint: Any
) -> dict:
    """Trains the joint part for each start and seed, and scores each on the tests. What is done is not done again.

    The start that is better on validation, by the UAR of its composites with all subsets counting alike, is named.

    Args:
        run: folders; its seed is not used.
        name: of the stage; the models are `<output>/<name>/<start>_<seed>`.
        starts: a name -> the stage it starts from, as of `train_joint`; null starts at random.
        seeds: of the joint stage.
        joint: what else `train_joint` takes.
    """
    found: dict[str, list[dict]] = {start: [] for start in starts}
    for start, seed in product(starts, seeds):
        found[start].append(train_one_seed(run, name, start, starts[start], seed, joint))
    validation = {start: [report["validation_uar"] for report in reports] for start, reports in found.items()}
    return {
        "validation_uar": {start: mean_and_deviation(scores, len(seeds) > 1) for start, scores in validation.items()},
        "better": max(validation, key=lambda start: np.mean(validation[start])),
        "test": {
            start: {
                figure: mean_and_deviation([report["test"][figure] for report in reports], len(seeds) > 1)
                for figure in reports[0]["test"]
            }
            for start, reports in found.items()
        },
        "seeds": list(seeds),
    }


def train_one_seed(
    run: ReleaseRun, name: str, start: str, stage: str | None, seed: int, joint: Mapping[str, Any]
) -> dict[str, Any]:
    """One start and one seed: `validation_uar` and `test`, a flat table of figures; kept beside the model's folder."""
    part = f"{name}/{start}_{seed}"
    report = run.folder(f"{part}.json")
    if not report.exists():
        own = replace(run, seed=seed)
        trained = train_joint(own, part, start=stage, **joint)
        model = TriemoForEmotionClassification.from_pretrained(run.folder(part)).to(run.device)
        tokenizer = AutoTokenizer.from_pretrained(run.folder(part))
        texts = list(dict.fromkeys(joint["text_corpora"]))
        corpora = {"text_corpora": texts, "voice_check": joint["voice_check"], "face_corpora": joint["face_corpora"]}
        _, figures, _, _ = measured(own, model, tokenizer, **corpora)
        uar = float(np.mean([scores["uar"] for scores in trained["validation_composites"].values()]))
        write_json(report, {"validation_uar": uar, "test": numbers(figures)})
    return json.loads(report.read_text())


def numbers(figures: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """The `MEASURES` and calibration errors of nested figures, by their path."""
    found: dict[str, float] = {}
    for key, value in figures.items():
        path = f"{above}/{key}" if above else key
        if isinstance(value, Mapping):
            found |= {} if key in NOT_COMPARED else numbers(value, path)
        elif isinstance(value, (int, float)) and (key in MEASURES or "right_at" in key or "calibrat" in path):
            found[path] = float(value)
    return found
