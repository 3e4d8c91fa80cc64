"""The released head of conversations, `checkpoints/triemo-small-dialogue`, over the towers of a released checkpoint.

    python training/recipes/dialogue_head.py --data DATA --output runs/dialogue
    python training/recipes/dialogue_head.py --data DATA --output runs/dialogue --corpora meld,cped     # once the
                                                                                                # words may be Chinese

`finetune.py --task dialogues` with the settings of `configs/contexts.yaml`, part `released`, over seeds; of the heads
the one that validation likes best is released, and its test scores are those of that head. The towers are not stored
again: the config names the checkpoint, and a folder of that name beside goes before the Hub.
"""

import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser

from triemo.training.common import DIALOGUE_MODEL, HUB_MODEL, default_model, write_json
from triemo.training.corpora.labels import LABEL_MAP_VERSION
from triemo.training.metrics.scores import mean_and_deviation, rounded
from triemo.training.recipes.contexts import CONFIG, one_run, settings_of
from triemo.training.sources import parse_corpora

__all__ = ["HeadRun", "main"]


@dataclass
class HeadRun:
    """What `dialogue_head.py` takes on the command line."""

    corpora: str = field(default="meld", metadata={"help": "Whose dialogues it learns, comma-separated."})
    config: str = field(default=str(CONFIG), metadata={"help": "YAML of the settings."})
    data: str | None = field(default=None, metadata={"help": "Folder of the corpora (default: TRIEMO_DATA)."})
    model: str = field(default_factory=default_model, metadata={"help": "Checkpoint whose towers it stands on."})
    base: str = field(default=HUB_MODEL, metadata={"help": "Hub id of that checkpoint, for the head's config."})
    seeds: str = field(default="0,1,2", metadata={"help": "Of the heads that validation chooses among."})
    output: str = field(default="runs/dialogue", metadata={"help": "Folder of the runs."})
    layers: str | None = field(default=None, metadata={"help": "Of the text tower, in place of the config's."})
    vectors: str | None = field(
        default=None,
        metadata={"help": "Folder of the utterances' vectors, for several recipes; else in the output's."},
    )
    checkpoint: str = field(default=f"checkpoints/{DIALOGUE_MODEL}", metadata={"help": "Folder of the released head."})
    contexts: str | None = field(default=None, metadata={"help": "JSON of contexts.py, to stand in metrics.json."})
    threads: int = field(default=1, metadata={"help": "torch threads"})


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Returns what `metrics.json` holds."""
    (run,) = HfArgumentParser(HeadRun, description=__doc__.splitlines()[0]).parse_args_into_dataclasses(arguments)
    torch.set_num_threads(run.threads)
    read = yaml.safe_load(Path(run.config).read_text(encoding="utf-8"))
    settings = settings_of(read, read["released"], run.layers) | {"corpora": run.corpora}
    named = parse_corpora(run.corpora)
    options = {name: given for name, given in settings.get("corpus_options", {}).items() if name in named}
    settings["corpus_options"] = options
    context, measure = settings.pop("context_type"), settings["metric_for_best_model"]
    folder = Path(run.output)
    vectors = {"vectors": run.vectors or folder / "vectors"}
    seeds = [int(seed) for seed in run.seeds.split(",")]
    found = {seed: one_run(folder, run.model, context, seed, settings | vectors, run.data) for seed in seeds}
    liked = {seed: _mean(results["validation"], measure) for seed, results in found.items()}
    best = max(liked, key=lambda seed: liked[seed])
    target = Path(run.checkpoint)
    target.mkdir(parents=True, exist_ok=True)
    source = folder / f"{context}_{best}"
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    write_json(target / "config.json", config | {"base_model_name_or_path": run.base}, sort_keys=True)
    part = target / "model.safetensors.part"
    shutil.copyfile(source / "model.safetensors", part)
    part.replace(target / "model.safetensors")
    spread = {
        part: mean_and_deviation([results["test"][part][measure] for results in found.values()], len(seeds) > 1)
        for part in found[best]["test"]
    }
    metrics = {
        "model": target.name,
        "base_model": run.base,
        "corpora": run.corpora.split(","),
        "test": rounded(found[best]["test"]),
        "validation": rounded(found[best]["validation"]),
        f"test_{measure}_over_seeds": rounded(spread),
        "seeds": seeds,
        "chosen_seed": best,
        "settings": {"context_type": context} | settings,
        "parameters": found[best]["parameters"],
        "calibration_temperature": found[best]["calibration_temperature"],
        "label_map_version": LABEL_MAP_VERSION,
        "command": "python training/recipes/dialogue_head.py --data DATA --corpora " + run.corpora,
    }
    if run.contexts:
        compared = json.loads(Path(run.contexts).read_text(encoding="utf-8"))
        metrics["contexts"] = rounded({name: compared[name] for name in ("contexts", "measure", "seeds")})
    write_json(target / "metrics.json", metrics, sort_keys=True)
    print(json.dumps(metrics["test"], indent=2))
    return metrics


def _mean(parts: dict[str, dict[str, float]], measure: str) -> float:
    return sum(scores[measure] for scores in parts.values()) / len(parts)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"dialogue_head.py: {error}")
