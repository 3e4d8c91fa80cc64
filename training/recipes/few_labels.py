"""What pretraining is for: fine-tuning on a tenth of the labels, with and without it.

    python training/recipes/few_labels.py --data DATA

Both arms have the same architecture, the same tenth of each training split (drawn by the seed, class by class) and the
same steps. Of several `learning_rates` an arm has the one that validation likes best with the first seed; the official
tests are scored once for each run and choose nothing. Without pretraining the text and audio towers are the public
encoders and the face tower is random. With it, towers, projections and what leads voice and face into the joint
encoder are the pretrained ones; that encoder itself starts at random in both, unless `--no_new_joint`. The pretraining
joined sentences, voices and faces by their labels (see `configs/pretrain_small.yaml`), so it saw which training clips
go together.
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase, Trainer, set_seed

from triemo.modeling import TriemoConfig, TriemoForEmotionClassification
from triemo.training.common import write_json
from triemo.training.corpora.labels import EMOTIONS, label2id
from triemo.training.data.composites import CompositeDataset, draw_composites, item_classes
from triemo.training.metrics.scores import classification_scores, mean_and_deviation
from triemo.training.recipes.joint import Corpora, TriModalCollator, predict_logits, single_modality
from triemo.training.recipes.stages import ReleaseRun, trainer_arguments

__all__ = ["FewLabelsRun", "main", "share_of_labels"]

ARMS = ("without", "with")
_ALIGNED = re.compile(r"(text|audio|vision)_tower\.|_projection\.|(audio|vision)_embedding\.")
SPLITS = ("train", "validation", "test")
# Sentences that are scored, and composites of each emotion; of voices and faces all.
SCORED = {"validation": (700, 20), "test": (1500, 40)}


@dataclass
class FewLabelsRun(ReleaseRun):
    """As `release.py`'s, and what is compared."""

    pretrained: str = field(default="runs/pretrain_small", metadata={"help": "what pretrain.py left"})
    text_encoder: str = field(default="sentence-transformers/all-MiniLM-L6-v2", metadata={"help": "Hub id"})
    audio_encoder: str = field(default="openai/whisper-tiny.en", metadata={"help": "Hub id"})
    output: str = "runs/few_labels"
    share: float = field(default=0.1, metadata={"help": "of the labels of each training split"})
    steps: int = field(default=60, metadata={"help": "optimiser steps of 32 examples"})
    learning_rates: str = field(default="3e-4", metadata={"help": "at the peak; of several validation chooses"})
    new_joint: bool = field(default=True, metadata={"help": "the joint encoder starts at random with pretraining too"})
    seeds: str = field(default="0,1,2", metadata={"help": "of the tenth and of the training"})


def main(arguments: list[str] | None = None) -> dict:
    """Runs what is not done yet; writes `<output>/few_labels.json` with means and standard deviations."""
    (run,) = HfArgumentParser(FewLabelsRun, description=__doc__.splitlines()[0]).parse_args_into_dataclasses(arguments)
    torch.set_num_threads(run.threads)
    folder = Path(run.output)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in run.seeds.split(",")]
    rates = [float(rate) for rate in run.learning_rates.split(",")]
    corpora: dict[str, Corpora] = {}

    def report(arm: str, seed: int, rate: float) -> dict:
        file = folder / f"{arm}_{seed}_{rate:g}.json"
        if not file.exists():
            corpora.update(corpora or {split: Corpora(run.data, split, ["goemotions"]) for split in SPLITS})
            start = time.time()
            scored = run_arm(run, arm, seed, rate, corpora, SPLITS[1:] if seed == seeds[0] else SPLITS[2:])
            write_json(file, scored | {"minutes": (time.time() - start) / 60})
            print(file, json.dumps(scored), flush=True)
        return json.loads(file.read_text())

    result, chosen = {}, {}
    for arm in ARMS:
        first = {rate: report(arm, seeds[0], rate) for rate in rates}
        chosen[arm] = best_rate({rate: found["validation"] for rate, found in first.items()})
        found = [first[chosen[arm]], *(report(arm, seed, chosen[arm]) for seed in seeds[1:])]
        result[arm] = spread([each["test"] for each in found])
    settings = {"share": run.share, "steps": run.steps, "learning_rate": chosen, "seeds": seeds}
    settings |= {"learning_rates": rates, "new_joint": run.new_joint}
    write_json(folder / "few_labels.json", {f"{run.share:.0%} of labels": result, "settings": settings})
    print(json.dumps(result, indent=2))
    return result


def pretrained_weights(model: TriemoForEmotionClassification, new_joint: bool) -> dict[str, torch.Tensor]:
    """All weights; with `new_joint` those of towers and projections, and of what leads voice and face further."""
    weights = model.state_dict()
    return {name: value for name, value in weights.items() if _ALIGNED.search(name)} if new_joint else weights


def best_rate(scores: dict[float, dict[str, float]]) -> float:
    """The learning rate whose validation UARs have the highest mean."""
    return max(scores, key=lambda rate: sum(scores[rate].values()))


def spread(found: list[dict[str, float]]) -> dict[str, dict]:
    """`{row: {"uar": {"mean", "standard_deviation"}}}` over seeds; the deviation is that of a sample."""
    return {
        name: {"uar": mean_and_deviation(values)}
        for name, values in ((name, [scores[name] for scores in found]) for name in found[0])
    }


def share_of_labels(labels: list[list[int]], share: float, seed: int) -> list[int]:
    """Rows of a part of a corpus: `share` of each group of rows that have the same labels, at least one, in order."""
    draw, groups = np.random.default_rng(seed), {}
    for row, classes in enumerate(labels):
        groups.setdefault(tuple(classes), []).append(row)
    chosen = [
        draw.choice(rows, size=max(1, round(len(rows) * share)), replace=False) for _, rows in sorted(groups.items())
    ]
    return sorted(int(row) for row in np.concatenate(chosen))


class SharedLabels(CompositeDataset):
    """A `CompositeDataset` over some rows of each modality; items name the rows of the whole corpora."""

    def __init__(self, labels: dict[str, list[list[int]]], rows: dict[str, list[int]], length: int, seed: int) -> None:
        kept = {name: [labels[name][row] for row in rows[name]] for name in labels}
        super().__init__(kept, length, seed)
        self.kept_rows = rows

    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        return {**item, "rows": {name: self.kept_rows[name][row] for name, row in item["rows"].items()}}


def run_arm(
    run: FewLabelsRun, arm: str, seed: int, rate: float, corpora: dict[str, Corpora], splits: Sequence[str]
) -> dict[str, dict[str, float]]:
    """UAR by split and by what is heard or seen, after fine-tuning all weights."""
    set_seed(seed)
    head = {"id2label": dict(enumerate(EMOTIONS)), "label2id": label2id}
    config = TriemoConfig.from_pretrained(run.pretrained, **head)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "projection_dim")
    model = TriemoForEmotionClassification.from_encoders_pretrained(
        text=run.encoder(run.text_encoder),
        audio=run.encoder(run.audio_encoder),
        vision_config=config.vision_config,
        **{name: getattr(config, name) for name in names},
        **head,
    )
    if arm == "with":
        found = TriemoForEmotionClassification.from_pretrained(
            run.pretrained, dtype=torch.float32, allow_new_head=True, **head
        )
        model.load_state_dict(pretrained_weights(found, run.new_joint), strict=False)
    tokenizer = AutoTokenizer.from_pretrained(run.pretrained)
    rows = {name: share_of_labels(labels, run.share, seed) for name, labels in corpora["train"].labels.items()}
    run.seed = seed
    trainer = Trainer(
        model=model,
        args=trainer_arguments(
            run,
            f"{arm}_{seed}_{rate:g}",
            max_steps=run.steps,
            per_device_train_batch_size=32,
            learning_rate=rate,
            weight_decay=0.01,
            train_sampling_strategy="sequential",
            eval_strategy="no",
            save_strategy="no",
            logging_steps=20,
        ),
        train_dataset=SharedLabels(corpora["train"].labels, rows, run.steps * 32, seed),
        data_collator=TriModalCollator(corpora["train"], tokenizer, augment=True),
    )
    trainer.train()
    return {split: uars(model, tokenizer, corpora[split], *SCORED[split]) for split in splits}


def uars(
    model: TriemoForEmotionClassification,
    tokenizer: PreTrainedTokenizerBase,
    corpora: Corpora,
    texts: int,
    composites: int,
) -> dict[str, float]:
    """Of the first `texts` sentences, of all voices and faces, and of so many composites of each emotion."""
    items = {}
    for name in ("text", "audio", "vision"):
        items[name] = [item for item in single_modality(corpora, name) if item["label"].max() == 1]
    items["text"] = items["text"][:texts]
    items["text+audio+vision (synthetic)"] = draw_composites(corpora.labels, composites, seed=0)
    collator, scores = TriModalCollator(corpora, tokenizer, augment=False), {}
    for name, found in items.items():
        logits = predict_logits(model, collator, found).numpy()
        scores[name] = classification_scores(logits, item_classes(found))["uar"]
    return scores


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"few_labels.py: {error}")
