"""The model card: `model_card.md` filled from `metrics.json`, and the check that its figures are those measured."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from triemo.modeling import TriemoConfig
from triemo.training.common import HUB_MODEL
from triemo.training.corpora.registry import CORPORA
from triemo.training.publish.figures import (
    details_table,
    figure_rows,
    figures_table,
    find_group,
    replace_figures,
    results_table,
    subset_rows,
)

__all__ = [
    "EXAMPLE",
    "LICENSE",
    "PROBES",
    "RELEASED",
    "TEMPLATE",
    "check_card",
    "dialogue_card",
    "eval_results",
    "origin",
    "plain_card",
    "read_metrics",
    "released_card",
]

TEMPLATE = Path(__file__).resolve().parents[2] / "model_card.md"
RELEASED = "triemo-small"  # the model that model_card.md is about
LICENSE = "cc-by-nc-sa-4.0"  # of its weights
EXAMPLE = "Oh wow, you really came!"  # said in demo.mp4
WATTS = 15  # a busy server core with its share of memory and cooling; an assumption, and the card says so
# Sentences that mislead a reader of words, and what a person would say of them.
PROBES = (
    ("Great, another meeting that could have been an email.", "anger"),
    ("I am not happy about this at all.", "sadness"),
    ("She passed away peacefully last night.", "sadness"),
    ("That trick was sick, do it again!", "joy"),
    ("I laughed until I cried.", "joy"),
    ("The train leaves at nine.", "neutral"),
    ("Don't look now, but somebody is following us.", "fear"),
    ("He chews with his mouth open, I can't watch.", "disgust"),
)
_METRICS = {"accuracy": "accuracy", "uar": "recall", "macro_f1": "f1", "weighted_f1": "f1"}


def eval_results(metrics: Mapping[str, Any]) -> list[EvalResult]:
    """Each test figure and the seven subsets, rounded to four decimals."""
    results = []
    for path, test, measure, value in figure_rows(metrics):
        results.append(
            EvalResult(
                task_type=test.task,
                dataset_type=test.dataset,
                dataset_name=test.name,
                dataset_config=test.config,
                dataset_split=test.split,
                metric_type=_METRICS[path.rpartition(".")[2]],
                metric_name=measure,
                metric_value=round(value, 4),
            )
        )
    for shown, subset, scores in subset_rows(metrics):
        for key, measure in (("uar", "UAR"), ("accuracy", "accuracy")):
            results.append(
                EvalResult(
                    task_type="video-classification",
                    dataset_type="triemo-composites-synthetic",
                    dataset_name=f"Synthetic composites, {shown}",
                    dataset_config=subset,
                    dataset_split="test",
                    metric_type=_METRICS[key],
                    metric_name=measure,
                    metric_value=round(scores[key], 4),
                )
            )
    return results


def released_card(template: str, repo: str, metrics: Mapping[str, Any], reader: Any, **shown: Any) -> str:
    """
    The template filled, with the figures as `model-index`.

    Args:
        template: Markdown with Jinja fields and YAML before it, such as `model_card.md`.
        repo: `user/name`.
        metrics: what `metrics.json` holds.
        reader: the pipeline of the checkpoint, whose answers the card shows.
        shown: further fields of the template: `has_handler`, `has_onnx`, `example_label`.
    """
    read = [reader({"text": sentence}, top_k=1)[0] for sentence, _ in PROBES]
    weakest = [
        (corpus, *min(((name, row["recall"]) for name, row in classes.items()), key=lambda pair: pair[1]))
        for corpus, classes in find_group(metrics, "per_class").items()
    ]
    card = ModelCard.from_template(
        ModelCardData(),
        template_str=template,
        repo=repo,
        metrics=metrics,
        labels=list(reader.model.config.id2label.values()),
        ledger=ledger(metrics),
        languages={group: heard_languages(corpora) for group, corpora in metrics.get("ledger", {}).items()},
        figures=figures_table(metrics),
        details=details_table(metrics),
        subgroups=find_group(metrics, "subgroups"),
        weakest=weakest,
        probes=[(*probe, one["label"], one["score"]) for probe, one in zip(PROBES, read, strict=True)],
        hours=sum(metrics.get("training_minutes", {}).values()) / 60,
        watts=WATTS,
        **shown,
    )
    if any("meld" in corpora for corpora in metrics.get("ledger", {}).values()):
        card.data["datasets"] = [*card.data["datasets"], "declare-lab/MELD"]
    card.data["model_name"] = repo.rpartition("/")[2]
    card.data["eval_results"] = eval_results(metrics)
    return f"{card}\n"


def ledger(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Group of weights, what it learned from, and the licence of that, a row for each corpus."""
    return [
        (group, CORPORA[name].about, CORPORA[name].licence)
        for group, corpora in metrics.get("ledger", {}).items()
        for name in corpora
    ]


def heard_languages(corpora: Iterable[str]) -> list[str]:
    """Languages of the corpora, each once."""
    return sorted({language for name in corpora for language in CORPORA[name].languages})


def plain_card(
    repo: str,
    labels: list[str],
    example: str,
    base_model: str | None,
    is_adapter: bool,
    results: Mapping[str, Any] | None = None,
) -> str:
    """
    A card for a model of one's own, which says no more than is known.

    Args:
        repo: `user/name`.
        labels: names of the classes.
        example: lines of Python that use the model.
        base_model: of an adapter, the repository of the model that it was trained on.
        is_adapter: whether it is one.
        results: what `finetune.py` left in `results.json`.
    """
    bases, licence = origin(results or {})
    bases = [base_model] if base_model else bases
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="video-classification",
        tags=["emotion-recognition", "multimodal", "triemo", *(["lora"] if is_adapter else [])],
        base_model=bases[0] if len(bases) == 1 else bases or None,
        license=licence,
    )
    if bases:
        data["base_model_relation"] = "adapter" if is_adapter else "finetune"
    table = results_table(results or {})
    measured = (
        "Of `results.json`, as `finetune.py` measured them on the table or corpora that it was given. Where there is\n"
        f"a validation split, the checkpoint was chosen on it.\n\n{table}"
        if table
        else "No figures were measured for this card."
    )
    named = ", ".join(f"[{base}](https://huggingface.co/{base})" for base in bases)
    start = f"It goes on from {named}." if named else "What it goes on from is not known by name."
    terms = f"That is under {licence}." if licence else "Under which licence that is was not found here."
    body = f"""
# {repo.rpartition("/")[2]}

A Triemo {"LoRA adapter" if is_adapter else "model"} that reads emotion from text, speech and video in any combination:
{", ".join(labels)}. It reads expression, not inner feeling.

## Figures

{measured}

## What it is made from

{start} {terms} Weights are bound by the licences of all that they learned from: of what they started from, and of the
data that they were trained on since.

## Use

```python
{example}```

## Not for

Hiring, policing, border control, surveillance, credit, education, diagnosis or any decision about a person.
"""
    return f"---\n{data.to_yaml()}\n---\n{body}"


def dialogue_card(repo: str, config: TriemoConfig, measured: Mapping[str, Any]) -> str:
    """
    A card for a model of conversations, over vectors or with towers of its own, with its test scores as `model-index`.

    Args:
        repo: `user/name`.
        config: of the model.
        measured: `metrics.json` or `results.json`; of `test` the scores by corpus count.
    """
    name, base = repo.rpartition("/")[2], config.base_model_name_or_path
    tests = dict(measured.get("test") or {})
    results = [
        EvalResult(
            task_type="token-classification",
            dataset_type=corpus,
            dataset_name=f"{corpus}, utterances of whole dialogues",
            dataset_split="test",
            metric_type=metric,
            metric_name=measure.replace("_", " "),
            metric_value=round(scores[measure], 4),
        )
        for corpus, scores in tests.items()
        for measure, metric in _METRICS.items()
        if measure in scores
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="token-classification",
        tags=["emotion-recognition", "conversation", "triemo"],
        base_model=base,
        license=LICENSE if base == HUB_MODEL else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    rows = "\n".join(
        f"| {corpus} | {' | '.join(f'{scores[measure]:.3f}' for measure in _METRICS)} |"
        for corpus, scores in tests.items()
    )
    table = (
        f"| test split | {' | '.join(_METRICS)} |\n|---|{'---|' * len(_METRICS)}\n{rows}" if rows else "None measured."
    )
    seen = "what was said before alone" if config.context_causal else "what was said before and after"
    labels = ", ".join(str(config.id2label[index]) for index in range(config.num_labels))
    kind, towers = "model", "towers of its own"
    if config.step_aligned:
        kind = "head"
        towers = f"the towers of\n{base or 'a checkpoint that it does not name'}, which are loaded beside it"
    body = f"""
# {name}

A Triemo {kind} that reads the emotion of every turn of a conversation, knowing {seen} and who spoke:
{labels}. It reads {", ".join(config.modalities)} through {towers}. It reads expression, not inner feeling.

## Figures

{table}

Only turns with a label count. The best epoch was chosen on validation.
{_contexts_table(measured.get("contexts"))}
## Use

```python
from transformers import pipeline

reader = pipeline("conversational-emotion-recognition", model="{repo}", trust_remote_code=True)
print(reader([{{"speaker": "ann", "text": "You did what?"}}, {{"speaker": "bob", "text": "I am so sorry."}}]))
```

## Not for

Hiring, policing, border control, surveillance, credit, education, diagnosis or any decision about a person.
"""
    return f"---\n{data.to_yaml()}\n---\n{body}"


def _contexts_table(compared: Mapping[str, Any] | None) -> str:
    """Of what `contexts.py` wrote, by context the mean and the deviation over seeds on test; empty for None."""
    if compared is None:
        return ""
    measure = compared["measure"]
    lines = [
        f"\nHeads that see what comes later too and differ in their context alone, {measure.replace('_', ' ')} on "
        f"test over {len(compared['seeds'])} seeds:\n",
        "| context | mean | deviation | parameters |",
        "|---|---|---|---|",
    ]
    for name, found in compared["contexts"].items():
        scores = found["test"][measure]
        lines.append(
            f"| {name} | {scores['mean']:.3f} | {scores['standard_deviation']:.3f} | {found['parameters']:,} |"
        )
    return "\n".join([*lines, ""])


def origin(results: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """Hub ids that a run of `finetune.py` went on from, and their licence, as far as both are known here."""
    bases, licences = [], set()
    for name, place in results.get("started_from", {}).items():
        folder = Path(name) if place == "folder" else None
        if (folder is not None and (read_metrics(folder) or {}).get("model") == RELEASED) or name == HUB_MODEL:
            bases.append(HUB_MODEL)
            licences.add(LICENSE)
        elif folder is None:
            bases.append(name)
            licences.add(None)
        elif (folder / "README.md").is_file():
            licences.add(ModelCard.load(folder / "README.md").data.get("license"))
    return bases, licences.pop() if len(licences) == 1 else None


def check_card(card: str, metrics: Mapping[str, Any] | None) -> None:
    """
    Check a finished card as far as that goes without the Hub.

    Args:
        card: the text of README.md.
        metrics: what `metrics.json` holds, None where there is none.

    Raises:
        ValueError: the metadata cannot be read, or a table, a result or a figure with three decimals in the text is
            not that of `metrics`.
    """
    parsed = ModelCard(card)  # its own validation of YAML and model-index
    if not parsed.data.to_dict():
        raise ValueError("card: expected metadata as YAML between two lines of ---, got none.")
    languages = parsed.data.get("language") or []
    for code in [languages] if isinstance(languages, str) else languages:
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", str(code)):
            raise ValueError(f"card: language: got {code!r}, expected a code of two or three letters.")
    if not (metrics and "figures" in metrics):
        return
    if replace_figures(card, figures_table(metrics)) != card or details_table(metrics) not in card:
        raise ValueError("card: its tables are not those of metrics.json; make the card anew from model_card.md.")
    stated = [_comparable(result) for result in parsed.data.get("eval_results") or []]
    measured = [_comparable(result) for result in eval_results(metrics)]
    differ = [one for one in stated if one not in measured] or [one for one in measured if one not in stated]
    if differ:
        raise ValueError(f"card: model-index is not that of metrics.json, first at {differ[0]}.")
    known = {f"{value:.3f}" for value in _numbers(metrics)}
    prose = "\n".join(line for line in parsed.text.splitlines() if not line.startswith("|"))
    unknown = sorted(set(re.findall(r"(?<![\w.-])[01]\.\d{3}(?!\d)", prose)) - known - _computed(metrics))
    if unknown:
        raise ValueError(f"card: metrics.json has no figure {', '.join(unknown)}.")


def _comparable(result: EvalResult) -> dict[str, Any]:
    return {name: value for name, value in vars(result).items() if value is not None}


def _computed(metrics: Mapping[str, Any]) -> set[str]:
    """Figures that the tables derive, such as means over folds."""
    return set(re.findall(r"[01]\.\d{3}", f"{figures_table(metrics)}{details_table(metrics)}"))


def _numbers(values: Any) -> Iterator[float]:
    if isinstance(values, Mapping | list):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _numbers(value)
    elif isinstance(values, int | float):
        yield float(values)


def read_metrics(checkpoint: Path) -> dict[str, Any] | None:
    """What `metrics.json` holds, or None where there is none."""
    file = checkpoint / "metrics.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else None
