"""The contexts over a conversation side by side: `none`, `transformer`, `recurrent` and `graph`, on the same vectors,
splits and seeds, as one table.

    python training/recipes/contexts.py --corpus meld --data DATA --output runs/contexts
    python training/recipes/contexts.py --corpus cped --data DATA --model runs/small2/text --layers 8,10,-1

Every cell is `finetune.py --task dialogues` with the settings of `configs/contexts.yaml`; the best epoch is
validation's, the test split is scored once a run. `--model` is a checkpoint, or the folder or Hub id of a text
encoder, which then stands for the text tower. What is done is not done again.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, HfArgumentParser

from triemo.modeling import TriemoConfig
from triemo.training.arguments import CONTEXT_TYPES, ModelArguments
from triemo.training.common import default_model, write_json
from triemo.training.finetune import main as finetune
from triemo.training.metrics.scores import mean_and_deviation
from triemo.training.start import compose_model

__all__ = ["ContextsRun", "main", "one_run", "settings_of", "table_of", "towers_of"]

CONFIG = Path(__file__).parent / "configs" / "contexts.yaml"


@dataclass
class ContextsRun:
    """What `contexts.py` takes on the command line."""

    corpus: str = field(default="meld", metadata={"help": "Part of the config: meld, cmu_mosi, cped, cped_own."})
    config: str = field(default=str(CONFIG), metadata={"help": "YAML of the settings."})
    data: str | None = field(default=None, metadata={"help": "Folder of the corpora (default: TRIEMO_DATA)."})
    model: str = field(default_factory=default_model, metadata={"help": "Checkpoint, or a text encoder."})
    contexts: str = field(default=",".join(CONTEXT_TYPES), metadata={"help": "Which, comma-separated."})
    seeds: str = field(default="0,1,2,3,4", metadata={"help": "Of the runs, comma-separated."})
    output: str = field(default="runs/contexts", metadata={"help": "Folder of the runs and the table."})
    layers: str | None = field(default=None, metadata={"help": "Of the text tower, in place of the config's."})
    vectors: str | None = field(
        default=None,
        metadata={"help": "Folder of the utterances' vectors, for several recipes; else in the output's."},
    )
    threads: int = field(default=1, metadata={"help": "torch threads"})


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs what is not done yet; writes `<output>/<corpus>.json` and prints the table.

    Raises:
        ValueError: for a corpus that the config does not name, or as `finetune.py` does.
    """
    parser = HfArgumentParser(ContextsRun, description=__doc__.splitlines()[0])
    (run,) = parser.parse_args_into_dataclasses(arguments)
    torch.set_num_threads(run.threads)
    read = yaml.safe_load(Path(run.config).read_text(encoding="utf-8"))
    if run.corpus not in read["corpora"]:
        raise ValueError(f"corpus: got {run.corpus!r}, expected one of {', '.join(read['corpora'])}")
    settings = settings_of(read, read["corpora"][run.corpus], run.layers)
    measure = settings["metric_for_best_model"]
    folder = Path(run.output) / run.corpus
    folder.mkdir(parents=True, exist_ok=True)
    model = towers_of(run.model, folder / "towers")
    names, seeds = run.contexts.split(","), [int(seed) for seed in run.seeds.split(",")]
    settings["vectors"] = run.vectors or folder / "vectors"
    rows = {name: [one_run(folder, model, name, seed, settings, run.data) for seed in seeds] for name in names}
    result = {
        "contexts": {name: summary(found, measure) for name, found in rows.items()},
        "measure": measure,
        "settings": {name: value for name, value in settings.items() if name != "vectors"},
        "seeds": seeds,
        "model": run.model,
        "command": " ".join(["python", "training/recipes/contexts.py", *(arguments or sys.argv[1:])]),
    }
    write_json(Path(run.output) / f"{run.corpus}.json", result)
    print(table_of(result["contexts"], measure))
    return result


def settings_of(read: Mapping[str, Any], own: Mapping[str, Any], layers: str | None) -> dict[str, Any]:
    """
    Arguments of `finetune.py`: those of all, over them a part's own, over them the layers of the text tower.

    Raises:
        ValueError: layers that are no whole numbers.
    """
    settings = dict(read["all"]) | dict(own)
    if layers is not None:
        try:
            numbers = [int(layer) for layer in layers.split(",")]
        except ValueError as error:
            raise ValueError(f"layers: got {layers!r}, expected whole numbers such as 8,10,-1") from error
        settings["model_config"] = {**settings.get("model_config", {}), "utterance_layers": {"text": numbers}}
    return settings


def towers_of(name: str, folder: Path) -> str:
    """The checkpoint of this name; of a text encoder one made of it in `folder`, with a head that nobody reads."""
    if AutoConfig.from_pretrained(name).model_type == TriemoConfig.model_type:
        return name
    if not (folder / "config.json").is_file():
        model, processor = compose_model(ModelArguments(text_encoder=name), {})
        processor.save_pretrained(folder)
        model.save_pretrained(folder)
    return str(folder)


def one_run(
    folder: Path, model: str, context: str, seed: int, settings: Mapping[str, Any], data: str | None
) -> dict[str, Any]:
    """`results.json` of a run, with its `seconds`."""
    output = folder / f"{context}_{seed}"
    seconds = output / "seconds.json"
    given = dict(settings) | {"model": model, "context_type": context, "seed": seed, "output_dir": output}
    given |= {"task": "dialogues", "use_cpu": True, "disable_tqdm": True}
    given |= {} if data is None else {"data": data}
    argv = [text for name, value in given.items() for text in (f"--{name}", _text(value))]
    start = time.time()
    results = finetune(argv)
    if not seconds.is_file():
        write_json(seconds, time.time() - start)
    return results | {"seconds": json.loads(seconds.read_text())}


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, bool)) else str(value)


def summary(runs: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any]:
    """Means and deviations, those of a sample, over the seeds; a single one has none."""
    scores = {split: [next(iter(found[split].values())) for found in runs] for split in ("validation", "test")}
    return {
        **{
            split: {
                name: mean_and_deviation([one[name] for one in found], of_sample=len(found) > 1)
                for name in dict.fromkeys([measure, "accuracy", "weighted_f1", "macro_f1", "uar"])
            }
            for split, found in scores.items()
        },
        "samples": scores["test"][0]["samples"],
        "parameters": runs[0]["parameters"],
        "seconds": sum(found["seconds"] for found in runs) / len(runs),
    }


def table_of(contexts: Mapping[str, Mapping[str, Any]], measure: str) -> str:
    """Markdown, a context a row."""
    names = ("context", f"test {measure}", "accuracy", f"validation {measure}", "parameters", "seconds")
    rows: list[Sequence[str]] = [names, ["---"] * len(names)]
    for name, found in contexts.items():
        test, validation = (found[split][measure] for split in ("test", "validation"))
        spread = f"{test['mean']:.4f} ± {test['standard_deviation']:.4f}"
        means = (f"{found['test']['accuracy']['mean']:.4f}", f"{validation['mean']:.4f}")
        rows.append((name, spread, *means, f"{found['parameters']:,}", f"{found['seconds']:.0f}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"contexts.py: {error}")
