"""Figures of benchmarks beside those of the release, in its `metrics.json`."""

import json
from pathlib import Path

from triemo.training.common import write_json
from triemo.training.recipes.stages import ReleaseRun

__all__ = ["train_benchmarks"]


def train_benchmarks(
    run: ReleaseRun, name: str, *, files: dict[str, dict[str, str]], protocols: dict[str, str]
) -> dict:
    """Puts the benchmarks that were run into `metrics.json`; one that was not leaves no trace.

    Args:
        run: `checkpoint` counts.
        name: of the stage.
        files: group of figures -> name of a benchmark -> the JSON file that its script wrote.
        protocols: group of figures -> how they were taken.
    """
    target = Path(run.checkpoint) / "metrics.json"
    metrics = json.loads(target.read_text())
    for group, benchmarks in files.items():
        found = {key: json.loads(Path(file).read_text()) for key, file in benchmarks.items() if Path(file).exists()}
        metrics.pop(group, None)
        metrics.get("protocols", {}).pop(group, None)
        if found:
            metrics[group] = found
            metrics.setdefault("protocols", {})[group] = protocols[group]
    write_json(target, metrics, sort_keys=True)
    return {"groups": [group for group in files if group in metrics]}
