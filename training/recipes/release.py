"""Trains `checkpoints/triemo-small` in stages, each below an hour on two cores and each resumable.

    make checkpoint
    python training/recipes/release.py --data ../shared/data --weights ../shared/weights --output runs/small

The stages and their settings are in `configs/triemo-small.yaml`; a stage's `kind` names what trains it. Those of
the next checkpoint are in `configs/triemo-small-2.yaml` (`--config`).
"""

import json
import sys
import time
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser

from triemo.training.common import write_json
from triemo.training.recipes.audio import train_audio
from triemo.training.recipes.benchmarks import train_benchmarks
from triemo.training.recipes.faces import train_faces
from triemo.training.recipes.joint import train_joint
from triemo.training.recipes.joint_seeds import train_joint_seeds
from triemo.training.recipes.measure import train_evaluate
from triemo.training.recipes.measure_corpora import train_evaluate_corpora
from triemo.training.recipes.pretrain_joint import train_pretraining
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.text import train_text
from triemo.training.recipes.vision import train_vision
from triemo.training.recipes.voice_means import train_voice_check, train_voice_means
from triemo.training.recipes.voice_tower import train_left_out_corpora, train_voice_tower

__all__ = ["main", "read_stages"]

KINDS = {
    "vision": train_vision,
    "faces": train_faces,
    "text": train_text,
    "audio": train_audio,
    "voice_check": train_voice_check,
    "voice_means": train_voice_means,
    "voice_tower": train_voice_tower,
    "left_out_corpora": train_left_out_corpora,
    "pretraining": train_pretraining,
    "joint": train_joint,
    "joint_seeds": train_joint_seeds,
    "evaluate": train_evaluate,
    "evaluate_corpora": train_evaluate_corpora,
    "benchmarks": train_benchmarks,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the stages asked for and writes what each reports to `<output>/<stage>.json`.

    A stage asked for by name goes on from its last checkpoint even if it was done; its minutes add up.

    Raises:
        ValueError: for a stage that the config does not name, or settings that a stage does not take.
    """
    parser = HfArgumentParser(ReleaseRun, description=__doc__.splitlines()[0])
    (run,) = parser.parse_args_into_dataclasses(arguments)
    seed, stages = read_stages(run.config)
    run.seed = seed if run.seed is None else run.seed
    if run.stage not in (*stages, "all"):
        raise ValueError(f"stage: got {run.stage!r}, expected one of {', '.join((*stages, 'all'))}")
    torch.set_num_threads(run.threads)
    if run.device.type != "cpu":
        torch.set_float32_matmul_precision("high")  # TF32 where the device has it
    Path(run.output).mkdir(parents=True, exist_ok=True)
    for name, (train, settings) in stages.items():
        report_file = Path(run.output) / f"{name}.json"
        if run.stage not in (name, "all"):
            continue
        if run.stage == "all" and report_file.exists():
            print(f"{name}: done before, see {report_file}")
            continue
        start = time.time()
        report = {"command": " ".join(["python", *sys.argv]), "seed": run.seed, "settings": settings}
        before = json.loads(report_file.read_text())["minutes"] if report_file.exists() else 0.0
        report |= train(run, name, **settings)
        report["minutes"] = before + (time.time() - start) / 60
        write_json(report_file, report, sort_keys=True)
        print(report_file.read_text())


def read_stages(config: str | Path) -> tuple[int, dict[str, tuple[Any, dict[str, Any]]]]:
    """The seed, and by name each stage's function and the settings it is called with."""
    read = yaml.safe_load(Path(config).read_text())
    stages = {}
    for given in read["stages"]:
        settings = {key: value for key, value in given.items() if key not in ("name", "kind")}
        if given["kind"] not in KINDS:
            raise ValueError(f"{given['name']}.kind: got {given['kind']!r}, expected one of {', '.join(KINDS)}")
        train = KINDS[given["kind"]]
        try:
            signature(train).bind(None, given["name"], **settings)
        except TypeError as error:
            raise ValueError(f"stage {given['name']}: {error}") from error
        stages[given["name"]] = (train, settings)
    return read["seed"], stages


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"release.py: {error}")
