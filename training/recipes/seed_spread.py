"""Mean and spread, over seeds, of what finetune.py measured.

    python training/recipes/seed_spread.py runs/meld_1 runs/meld_2 runs/meld_3 --output runs/meld.json

Each folder is one finished run; the runs may differ in their seed and in nothing else.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triemo.training.common import write_json
from triemo.training.metrics.scores import mean_and_deviation

__all__ = ["main", "seed_spread"]

_SHOWN = ("lora", "lora_r", "learning_rate", "num_train_epochs", "per_device_train_batch_size")


def seed_spread(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Test scores of several runs as means with standard deviations.

    Args:
        results: what `results.json` of each run holds.

    Returns:
        `{"test": {corpus: {measure: {"mean", "standard_deviation"}}}, "trained_share", "settings"}`, the seeds
        among the settings; the deviation is that of a sample.

    Raises:
        ValueError: with fewer than two runs, with a seed twice, with runs that differ in another argument, and with a
            run that scored no test split or another one.
    """
    if len(results) < 2:
        raise ValueError(f"runs: got {len(results)}, expected at least 2, one a seed")
    seeds = [result["arguments"]["seed"] for result in results]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {seeds}, expected a different one in each run; set --seed")
    first = results[0]
    for seed, result in zip(seeds, results, strict=True):
        ours, theirs = ({**found["arguments"], "seed": None} for found in (first, result))
        differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if differing:
            raise ValueError(
                f"seed {seed}: got another {', '.join(differing)} than seed {seeds[0]}, expected the same"
            )
        if not result["test"] or result["test"].keys() != first["test"].keys():
            raise ValueError(
                f"seed {seed}: got test scores of {sorted(result['test'])}, expected {sorted(first['test']) or 'some'}"
            )
    shown = [name for name in _SHOWN if first["arguments"].get("lora") or not name.startswith("lora_")]
    test = {
        corpus: {
            measure: mean_and_deviation([result["test"][corpus][measure] for result in results])
            for measure in scores
            if measure not in ("samples", "loss")
        }
        for corpus, scores in first["test"].items()
    }
    return {
        "test": test,
        "trained_share": first["trained_parameters"] / first["parameters"],
        "settings": {"seeds": seeds, **{name: first["arguments"].get(name) for name in shown}},
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Reads `results.json` of each folder, prints the spread, and writes it to `--output` if that is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of finetune.py")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    missing = [str(folder) for folder in args.runs if not (folder / "results.json").is_file()]
    if missing:
        raise ValueError(f"runs: got no results.json in {', '.join(missing)}, expected finished runs of finetune.py")
    result = seed_spread([json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in args.runs])
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, result)
    return result


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"seed_spread.py: {error}")
