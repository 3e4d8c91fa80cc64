"""The measured figures of a checkpoint's `metrics.json` as Markdown tables, for README.md and the model card.

python training/publish/figures.py     # renews the table between the `figures` marks of README.md
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

from scipy.stats import binomtest

__all__ = [
    "SUBSET_NAMES",
    "details_table",
    "figure_rows",
    "figures_table",
    "find_group",
    "interval",
    "replace_figures",
    "results_table",
    "subset_rows",
]

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
SUBSET_NAMES = {"text": "words", "audio": "voice", "vision": "face"}
COMPOSITES, CALIBRATION = "composites_test_synthetic", "expected_calibration_error"

_MEASURES = {"macro_f1": "macro F1", "weighted_f1": "weighted F1", "uar": "UAR", "accuracy": "accuracy"}


@dataclass(frozen=True)
class Test:
    """A test whose scores `metrics.json` may hold.

    Args:
        path: of its scores in the figures.
        shown: what it is called in tables.
        measures: of its scores, those that are shown.
        task, dataset, name, split, config: as the Hub's `model-index` asks for them.
    """

    path: str
    shown: str
    measures: tuple[str, ...]
    task: str
    dataset: str
    name: str
    split: str = "test"
    config: str | None = None


def _text(corpus: str, shown: str, dataset: str, name: str, *measures: str, part: str = "") -> Test:
    return Test(f"{corpus}_test{part}", shown, measures, "text-classification", dataset, name)


def _voice(corpus: str, name: str, people: str) -> Test:
    shown = f"{name}, {people} not heard in training, voice alone"
    return Test(f"{corpus}_test", shown, ("uar", "weighted_f1"), "audio-classification", corpus, name, people)


def _face(path: str, shown: str, dataset: str, name: str, split: str) -> Test:
    return Test(path, f"{shown}, face alone", ("accuracy", "uar"), "image-classification", dataset, name, split)


_GOEMOTIONS = "GoEmotions, official test, ekman, words alone"
_GOEMOTIONS_ID = "google-research-datasets/go_emotions"
_FILMS = "Javanese clips, actors not seen in training"
TESTS = (
    _text("goemotions", _GOEMOTIONS, _GOEMOTIONS_ID, "GoEmotions, ekman", "macro_f1", part=".multi_label"),
    _text(
        "goemotions",
        f"{_GOEMOTIONS}, rows with one label",
        _GOEMOTIONS_ID,
        "GoEmotions, ekman",
        "weighted_f1",
        part=".single_label",
    ),
    _text(
        "meld", "MELD, official test, words alone", "declare-lab/MELD", "MELD, words alone", "weighted_f1", "macro_f1"
    ),
    *(
        _text(
            f"xed_{code}", f"XED, {language}, words alone", "xed", f"XED, {language}", "macro_f1", part=".multi_label"
        )
        for code, language in (("en", "English"), ("zh", "Chinese"))
    ),
    *(
        _text(
            f"brighter_{code}",
            f"BRIGHTER, {language}, words alone",
            "brighter",
            f"BRIGHTER, {language}",
            "macro_f1",
            part=".multi_label",
        )
        for code, language in (("eng", "English"), ("chn", "Chinese"))
    ),
    *(
        _text(
            f"smp2020_{topic}",
            f"SMP2020-EWECT, {topic} topic, official test, Chinese words alone",
            "smp2020-ewect",
            f"SMP2020-EWECT, {topic}",
            "macro_f1",
        )
        for topic in ("usual", "virus")
    ),
    *(
        Test(
            f"ravdess_actors_21_24_calm_{calm}",
            f"RAVDESS, actors 21-24, {how}, voice alone",
            ("weighted_f1", "uar"),
            "audio-classification",
            "ravdess",
            f"RAVDESS, calm {calm}",
            "actors 21-24",
            "calm dropped" if calm == "dropped" else None,
        )
        for calm, how in (("merged", "calm merged into neutral"), ("dropped", "calm dropped"))
    ),
    _voice("casia", "CASIA, Mandarin", "a speaker"),
    _voice("nemo", "nEMO, Polish", "actors"),
    _voice("emovo", "EMOVO, Italian", "actors"),
    _voice("savee", "SAVEE, English", "a speaker"),
    _voice("tess", "TESS, English", "a speaker"),
    _voice("javanese", "Javanese clips", "actors"),
    _face("fer2013_private_test", "FER2013, PrivateTest", "fer2013", "FER2013", "PrivateTest"),
    _face("ferplus_private_test", "FERPlus, PrivateTest, majority of the votes", "ferplus", "FERPlus", "PrivateTest"),
    _face("raf_db_test", "RAF-DB, official test", "raf-db", "RAF-DB", "test"),
    *(
        Test(f"javanese_clips_test.{subset}", f"{_FILMS}, {how}", ("uar",), "video-classification", "javanese", _FILMS)
        for subset, how in (("audio", "voice alone"), ("vision", "face alone"), ("audio+vision", "voice and face"))
    ),
)
_CALIBRATED = {
    "audio": "RAVDESS, voice",
    "text": "GoEmotions, words",
    "text_meld": "MELD, words",
    "vision": "FER2013, face",
}
_ORDER = ("support", "samples", "precision", "recall", "f1", *_MEASURES)


def figures_table(metrics: Mapping[str, Any]) -> str:
    """
    The main tables: every corpus's test, calibration, and the seven subsets, rounded to three decimals.

    What `metrics` lacks gives no row. An interval is given where `per_class` has the recalls and counts behind it.
    """
    rows = [
        (test.shown, measure, f"{value:.3f}", interval(metrics, path) or "-")
        for path, test, measure, value in figure_rows(metrics)
    ]
    for name, error in sorted(find_group(metrics, CALIBRATION).items()):
        least = f" ({error['if_calibrated']:.3f} if calibrated perfectly)" if "if_calibrated" in error else ""
        measure = f"expected calibration error, before / after temperature{least}"
        rows.append((_calibrated(name), measure, f"{error['before']:.3f} / {error['after']:.3f}", "-"))
    tables = [_table(("test", "measure", "value", "95 % interval"), rows)] if rows else []
    subsets = [(name, f"{scores['uar']:.3f}", f"{scores['accuracy']:.3f}") for name, _, scores in subset_rows(metrics)]
    if subsets:
        tables.append(
            "Synthetic composites (a sentence, a voice and a face of the same emotion, joined from the three test "
            "sets;\nthey do not say how well real clips are read):"
        )
        tables.append(_table(("modalities", "UAR", "accuracy"), subsets))
    return "\n\n".join(tables)


def details_table(metrics: Mapping[str, Any]) -> str:
    """Per class, per subgroup, temperatures, folds and few-label training, each under a heading, as far as given."""
    parts = []
    left_out = find_group(metrics, "voice_left_out_corpora")
    if left_out:
        parts.append(f"### Voice: corpora left out of training, one at a time\n\n{_scores_table('corpus', left_out)}")
    abstaining = {
        subset: found["selective"] | {"area": found["risk_coverage"]["area"]}
        for subset, found in find_group(metrics, "abstaining").items()
        if "selective" in found
    }
    if abstaining:
        title = "Answers at or above the stored score, and the area under the curve of risk by coverage"
        parts.append(f"### {title}\n\n{_scores_table('modalities', abstaining)}")
    joined = find_group(metrics, "joined_voices")
    if joined:
        rows = [(name.replace("_", " "), _shown(count)) for name, count in joined.items()]
        parts.append(f"### Longer voices: sounds of RAVDESS joined\n\n{_table(('sounds', 'count'), rows)}")
    per_class = find_group(metrics, "per_class")
    for corpus, classes in per_class.items():
        parts.append(f"### Per class: {corpus}\n\n{_scores_table('class', classes)}")
    for grouping, groups in find_group(metrics, "subgroups").items():
        parts.append(f"### By subgroup: {grouping}\n\n{_scores_table('group', groups)}")
    for name, title in (
        ("calibration_temperatures", "Calibration temperatures"),
        ("ravdess_five_folds", "RAVDESS, five folds of actors"),
        ("meld_fine_tuned", "MELD, words alone, after fine-tuning on it"),
    ):
        rows = [(path.replace("_", " "), shown) for path, shown in _leaves(find_group(metrics, name))]
        if rows:
            parts.append(f"### {title}\n\n{_table(('', 'value'), rows)}")
    parts += _pretraining_tables(find_group(metrics, "pretraining"))
    return "\n\n".join(parts)


def results_table(results: Mapping[str, Any]) -> str:
    """Scores of each split and part that `finetune.py` measured, from its `results.json`; empty where it has none."""
    scored = [
        (split, part, scores) for split in ("validation", "test") for part, scores in results.get(split, {}).items()
    ]
    names = ("samples", *_MEASURES, CALIBRATION, "mae", "ccc")
    shown = [name for name in names if any(name in scores for _, _, scores in scored)]
    rows = [(split, part, *(_shown(_whole(scores.get(name))) for name in shown)) for split, part, scores in scored]
    header = ("split", "data", *(_MEASURES.get(name, name.replace("_", " ")) for name in shown))
    return _table(header, rows) if rows else ""


def _pretraining_tables(pretraining: Mapping[str, Any]) -> Iterator[str]:
    """Few labels by share, without beside with pretraining; and zero-shot by corpus and wording."""
    for share, arms in pretraining.get("few_labels", {}).items():
        if "with" in arms:
            rows = [
                (name, *(next(shown for _, shown in _leaves(arms[arm][name])) for arm in ("without", "with")))
                for name in arms["without"]
            ]
            header = ("UAR", "without pretraining", "with")
            yield f"### Fine-tuning on {share}, with and without pretraining\n\n{_table(header, rows)}"
    rows = [
        (f"{corpus}, {modality}", wording, _shown(scores["uar"]))
        for corpus, modalities in pretraining.get("zero_shot", {}).get("zero_shot", {}).items()
        for modality, wordings in modalities.items()
        for wording, scores in wordings.items()
        if isinstance(scores, Mapping)
    ]
    if rows:
        yield f"### Pretrained: zero-shot, chance 0.143\n\n{_table(('test', 'sentences', 'UAR'), rows)}"


def figure_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Test, str, float]]:
    """Path, test, measure and value of every test figure there is; the path ends with the measure's key."""
    for test in TESTS:
        first, *parts = test.path.split(".")
        scores: Any = find_group(metrics, first)
        for part in parts:
            scores = scores.get(part, {})
        for key in test.measures:
            if isinstance(scores.get(key), int | float):
                measure = f"{_MEASURES[key]}, multi-label" if parts == ["multi_label"] else _MEASURES[key]
                yield f"{test.path}.{key}", test, measure, float(scores[key])


def _calibrated(name: str) -> str:
    """What a calibration error was measured on: a modality's name, with or without a corpus behind it."""
    if name in _CALIBRATED:
        return _CALIBRATED[name]
    modality, _, corpus = name.partition("_")
    return f"{corpus}, {SUBSET_NAMES.get(modality, modality)}"


def find_group(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A group of figures, under `figures` or beside it; empty where there is none."""
    return metrics.get("figures", {}).get(name) or metrics.get(name) or {}


def interval(metrics: Mapping[str, Any], path: str) -> str | None:
    """
    What 95 of 100 test sets of this size would give, as "0.612-0.655": the test's sampling, not the training's seed.

    For accuracy Wilson's interval (1927), for UAR the normal one of a mean of independent recalls. None for other
    measures, and where `per_class` does not yield the very figure.
    """
    figure, _, measure = path.rpartition(".")
    corpus = figure.split(".")[0]
    named = [name for name in find_group(metrics, "per_class") if corpus.startswith(name) or figure == name]
    if not named or measure not in ("accuracy", "uar"):
        return None
    classes = find_group(metrics, "per_class")[max(named, key=len)].values()
    recalls = [(row["recall"], row["support"]) for row in classes if row["support"]]
    value = next(found for place, _, _, found in figure_rows(metrics) if place == path)
    if measure == "accuracy":
        right, total = sum(recall * support for recall, support in recalls), sum(support for _, support in recalls)
        again = right / total
        low, high = binomtest(round(right), round(total)).proportion_ci(method="wilson")
    else:
        again = fmean(recall for recall, _ in recalls)
        variances = [recall * (1 - recall) / support for recall, support in recalls]
        half = NormalDist().inv_cdf(0.975) * sum(variances) ** 0.5 / len(recalls)
        low, high = again - half, again + half
    if abs(again - value) > 1e-6:
        return None
    return f"{low:.3f}-{high:.3f}"


def replace_figures(document: str, table: str) -> str:
    """The document with the table between its marks.

    Raises ValueError if a mark is missing.
    """
    if BEGIN not in document or END not in document:
        raise ValueError(f"expected the marks {BEGIN} and {END} in the document, got none.")
    head, rest = document.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}"


def subset_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Of each of the seven subsets that was scored: its shown name, its key and its scores, the smallest first."""
    scored = {frozenset(key.split("+")): (key, scores) for key, scores in find_group(metrics, COMPOSITES).items()}
    for subset in (chosen for size in (1, 2, 3) for chosen in combinations(SUBSET_NAMES, size)):
        if frozenset(subset) in scored:
            yield (" + ".join(SUBSET_NAMES[name] for name in subset), *scored[frozenset(subset)])


def _scores_table(first: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    names = {key for scores in groups.values() for key, value in scores.items() if isinstance(value, int | float)}
    columns = sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    rows = [(group, *(_shown(scores.get(column)) for column in columns)) for group, scores in groups.items()]
    return _table((first, *(_MEASURES.get(name, name.replace("_", " ")) for name in columns)), rows)


def _leaves(values: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every figure in nested dicts; a list of several, or a mean with its spread, is one figure."""
    spreads = ("std", "spread", "standard_deviation")
    spread = next((values[name] for name in spreads if name in values), None) if isinstance(values, Mapping) else None
    if isinstance(values, Mapping) and "mean" in values and isinstance(spread, int | float):
        yield path, f"{_shown(values['mean'])} ± {_shown(spread)}"
    elif isinstance(values, Mapping):
        for name, value in values.items():
            if name not in ("settings", "seed"):
                yield from _leaves(value, f"{path}, {name}" if path else str(name))
    elif isinstance(values, list) and len(values) > 1 and all(isinstance(value, int | float) for value in values):
        yield path, f"{fmean(values):.3f} ± {stdev(values):.3f} over {len(values)}"
    elif isinstance(values, int | float):
        yield path, _shown(values)


def _whole(value: float | None) -> float | None:
    """A count as a whole number: the Trainer has floats alone."""
    return int(value) if value is not None and value == int(value) and value > 1 else value


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" if line is not lines[1] else f"|{'|'.join(line)}|" for line in lines)


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", type=Path, default=root / "checkpoints" / "triemo-small" / "metrics.json")
    parser.add_argument("--documents", type=Path, nargs="+", default=[root / "README.md"])
    args = parser.parse_args()
    table = figures_table(json.loads(args.metrics.read_text()))
    for path in args.documents:
        unfinished = path.with_suffix(".part")
        unfinished.write_text(replace_figures(path.read_text(), table))
        unfinished.replace(path)
        print(f"figures of {args.metrics} -> {path}")


if __name__ == "__main__":
    main()
