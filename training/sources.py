"""What a run reads: tables and corpora as weighted parts, the rows drawn from them, and what their labels ask for."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from triemo.training.arguments import DataArguments, PretrainDataArguments, SourceArguments
from triemo.training.common import parse_weights
from triemo.training.corpora.registry import load_corpus
from triemo.training.data.collation import EmotionCollator, NoModalityError
from triemo.training.data.composites import SUBSETS
from triemo.training.data.sampling import MAX_COPIES, CompositeRows, EmotionRows, MixtureSampler
from triemo.training.data.shards import RowReading, ShardReader
from triemo.training.data.streaming import ShardBatches, Stream, open_streams
from triemo.training.data.tables import VALIDATION_SHARE, load_table

__all__ = [
    "Parts",
    "check_labels",
    "class_counts",
    "drop_empty_rows",
    "infer_problem",
    "load_dialogues",
    "load_pretraining_parts",
    "load_splits",
    "load_streams",
    "parse_column_map",
    "parse_corpora",
    "parse_corpus_options",
    "pretraining_composites",
    "subset_weights",
    "training_rows",
    "training_stream",
    "warn_of_classes",
]

logger = logging.getLogger(__name__)

Parts = dict[str, dict[str, tuple[Any, float]]]  # {split: {part: (rows, weight)}}


def load_splits(args: SourceArguments, merge: bool = False) -> Parts:
    """
    `{split: {part: (rows, weight)}}`; a table is one part, of weight 1. With `merge` the only split is `all`, every
    row of the table.

    Raises:
        ValueError: what cannot be read, an empty split, a speaker in two splits, naming the row.
    """
    return _load_splits(args, merge)


def _load_splits(args: SourceArguments, merge: bool, **options: Any) -> Parts:
    """`load_splits` with options of `load_table`."""
    if args.table is None and merge:
        raise ValueError("split: all is for a table; a corpus is scored on one of its splits.")
    if args.table is not None:
        loaded = _load_table(args, args.table, **options, **({"validation_share": 0.0} if merge else {}))
        if merge:
            loaded = {"all": concatenate_datasets(list(loaded.values()))}
        splits: Parts = {name: {Path(args.table).stem: (data, 1.0)} for name, data in loaded.items()}
    else:
        splits = _load_corpora(args, args.corpora or "")
    for name, parts in splits.items():
        for part, (data, _) in parts.items():
            if len(data) == 0:
                raise ValueError(f"split {name}: got no row of {part}, expected some.")
    return splits


def load_dialogues(args: SourceArguments, merge: bool = False) -> Parts:
    """
    `load_splits` of what has dialogues: an utterance may lack a label, and then is only context for others; speakers
    may be in several splits, dialogues not. Of corpora, `utterance` is the `turn` where it is a number.

    Raises:
        ValueError: as `load_splits`, and for a table or corpus without dialogues.
    """
    parts = _load_splits(args, merge, optional_labels=True, disjoint=("dialogue",))
    for split in parts.values():
        for part, (data, weight) in split.items():
            if "dialogue" not in data.column_names:
                raise ValueError(f"task: {part} has no column dialogue, got {', '.join(data.column_names)}.")
            utterance = data.features.get("utterance")
            if "turn" not in data.column_names and utterance is not None and "int" in str(utterance.dtype):
                split[part] = (data.rename_column("utterance", "turn"), weight)
    return parts


def load_pretraining_parts(args: PretrainDataArguments) -> tuple[Parts, Parts]:
    """`load_splits` of what is drawn row by row, and of what composites are joined from; labels need not be there."""
    if args.table:
        loaded = _load_table(args, args.table, labelled=False)
        rows: Parts = {name: {Path(args.table).stem: (data, 1.0)} for name, data in loaded.items()}
    elif args.corpora:
        rows = load_splits(args)
    else:
        joined = _load_corpora(args, args.composite_corpora or "")
        return {name: {} for name in joined}, joined
    if not (args.composites or args.validation_composites):
        return rows, {}
    return rows, rows if args.composite_corpora is None else _load_corpora(args, args.composite_corpora)


def load_streams(args: DataArguments, labelled: bool = True) -> dict[str, Stream]:
    """The table, or the shards, of `args` by split. Raises ValueError naming what cannot be read."""
    root = None if args.data is None else Path(args.data)
    reading = RowReading(parse_column_map(args.column_map), args.encoding, root, args.outside_files)
    # Unlabelled streams are shards as a rule, and large: whoever packs them says what validation is.
    streams = open_streams(args.table or "", reading, labelled, VALIDATION_SHARE if labelled else 0.0)
    if "train" not in streams:
        raise ValueError(f"split: got only {', '.join(streams)}, expected a split train.")
    return streams


def _load_table(args: SourceArguments, table: str, **options: Any) -> dict[str, Any]:
    columns = parse_column_map(args.column_map)
    options |= {"encoding": args.encoding, "outside_files": args.outside_files}
    return load_table(table, None, columns, args.data, **options)


def _load_corpora(args: SourceArguments, text: str) -> Parts:
    splits: Parts = {}
    weights = parse_corpora(text)
    options = parse_corpus_options(args.corpus_options, weights)
    for name, weight in weights.items():
        for found, data in load_corpus(name, args.data, args.classes, **options.get(name, {})).items():
            splits.setdefault(found, {})[name] = (data, weight)
    return splits


# Rows --------------------------------------------------------------------------------------------------------


def training_rows(
    parts: Mapping[str, tuple[Any, float]],
    prepare: Callable[[dict], dict],
    args: DataArguments,
    seed: int,
    batch_size: int,
    composites: CompositeRows | None = None,
) -> tuple[EmotionRows, MixtureSampler]:
    """The training set and the order it is drawn in."""
    drawn: list[Any] = [data for data, _ in parts.values()]
    weights = [weight for _, weight in parts.values()]
    if composites is not None:
        drawn.append(composites)
        weights.append(1.0)
    rows = EmotionRows(drawn, prepare, args.max_broken_share)
    lengths = rows.lengths() if args.length_buckets else None
    return rows, MixtureSampler([len(part) for part in drawn], weights, seed, lengths, batch_size)


def training_stream(stream: Stream, collator: EmotionCollator, data: DataArguments, args: Any) -> ShardBatches:
    """Endless batches of this process; `args` are the Trainer's."""
    reader = partial(
        ShardReader,
        stream.paths,
        seed=args.seed,
        buffer=data.shuffle_buffer,
        reading=stream.reading,
        group=args.train_batch_size if data.length_buckets else None,
    )
    return ShardBatches(
        reader,
        collator.prepare,
        collator.collate,
        args.train_batch_size,
        data.max_broken_share,
        args.process_index,
        args.world_size,
        check=None if stream.reading.label is None else collator.encode_label,
    )


def pretraining_composites(
    parts: Mapping[str, tuple[Any, float]], rows: int, seed: int, args: PretrainDataArguments
) -> CompositeRows:
    """So many synthetic rows an epoch, joined over the parts as `args` say."""
    weights = subset_weights(args.composite_subsets)
    return CompositeRows(parts, rows, seed, weights, args.composite_faces, args.composite_sentences)


def drop_empty_rows(dataset: Dataset, encode: Callable[[Mapping[str, Any]], Any], name: str) -> Dataset:
    """
    Leave out rows in which there is nothing to score, such as a picture without a face, and say how many.

    Raises:
        ValueError: naming the row whose media cannot be read; a figure over the rest would be another figure.
    """
    kept = []
    for index, row in enumerate(dataset):
        try:
            encode(row)
            kept.append(index)
        except NoModalityError as error:
            logger.warning(f"{name}: left out, {error}")
    if not kept:
        raise ValueError(f"{name}: got no row with words, sound or a face, expected some.")
    if len(kept) < len(dataset):
        logger.warning(f"{name}: {len(dataset) - len(kept)} of {len(dataset)} rows hold nothing for the model.")
        return dataset.select(kept)
    return dataset


# Labels ------------------------------------------------------------------------------------------------------


def infer_problem(parts: Mapping[str, tuple[Dataset, float]], wanted: str | None = None) -> tuple[str, bool, list]:
    """
    What the labels of the training parts ask for.

    Returns:
        The problem type; whether targets are soft (single-label with some rows of several classes); class names,
        sorted, or for regression names of the targets.

    Raises:
        ValueError: classes beside numbers, or labels that do not fit the problem wanted.
    """
    labels = [label for data, _ in parts.values() for label in data["label"]]
    several = [isinstance(label, (list, tuple)) for label in labels]
    atoms = [atom for label, is_list in zip(labels, several, strict=True) for atom in (label if is_list else [label])]
    numeric = {isinstance(atom, float) for atom in atoms}
    if numeric == {True, False}:
        raise ValueError("label: got numbers in some rows and classes in others, expected one kind.")
    if not atoms:
        raise ValueError("label: got no label in the training rows, expected some.")
    if numeric == {True}:
        if wanted not in (None, "regression"):
            raise ValueError(f"problem_type: got {wanted}, but the labels are numbers.")
        widths = {len(label) if is_list else 1 for label, is_list in zip(labels, several, strict=True)}
        if len(widths) > 1:
            raise ValueError(f"label: got rows of {sorted(widths)} numbers, expected the same in each.")
        return "regression", False, [f"target_{index}" for index in range(widths.pop())]
    if wanted == "regression":
        raise ValueError(f"problem_type: got regression, but labels are classes such as {atoms[0]!r}.")
    problem = wanted or ("multi_label_classification" if all(several) else "single_label_classification")
    soft = problem.startswith("single") and any(
        is_list and len(label) > 1 for label, is_list in zip(labels, several, strict=True)
    )
    return problem, soft, sorted({str(atom) for atom in atoms})


def check_labels(dataset: Dataset, encode_label: Callable[[Mapping[str, Any]], Any]) -> None:
    """Raises ValueError naming the first row whose label is missing or not among the classes."""
    columns = dataset.select_columns([name for name in ("label", "row") if name in dataset.column_names])
    for index, row in enumerate(columns):
        named = {"row": f"row {index}"} | row
        if encode_label(named) is None:
            raise ValueError(f"{named['row']}: got no label, expected one.")


def warn_of_classes(splits: Parts) -> None:
    """Says in the log, with counts, where classes of one split are not in another, or train has a single one."""
    counts: dict[str, Counter[str]] = {}
    for split, parts in splits.items():
        labels = [label for data, _ in parts.values() for label in data["label"] if label is not None]
        several = [label if isinstance(label, (list, tuple)) else [label] for label in labels]
        counts[split] = Counter(str(name) for names in several for name in names)
    train = counts.pop("train")
    if len(train) == 1:
        ((name, count),) = train.items()
        logger.warning(f"train: all {count} rows are {name}, so there is nothing to tell apart.")
    for split, found in counts.items():
        missing = ", ".join(f"{name} ({train[name]} in train)" for name in sorted(set(train) - set(found)))
        unseen = ", ".join(f"{name} ({found[name]} in {split})" for name in sorted(set(found) - set(train)))
        if missing:
            logger.warning(f"{split}: no row is {missing}, so its scores say nothing of these.")
        if unseen:
            logger.warning(f"train: no row is {unseen}, so these cannot be learned.")


def class_counts(parts: Mapping[str, tuple[Dataset, float]], classes: Sequence[str]) -> dict[str, float]:
    """How often an epoch sees each class; a row of several counts for each of them in part."""
    counts: Counter[str] = Counter()
    for data, weight in parts.values():
        for label in filter(lambda label: label is not None, data["label"]):
            names = list(label) if isinstance(label, (list, tuple)) else [label]
            counts.update({str(name): weight / len(names) for name in names})
    return {name: round(float(counts[name]), 3) for name in classes}


# Options -----------------------------------------------------------------------------------------------------


def parse_corpora(text: str) -> dict[str, float]:
    """`"meld:1.0,goemotions:0.5"` as names and weights; no weight is 1. Raises ValueError for anything else."""
    weights = parse_weights(text, "corpora", below=MAX_COPIES)
    if not weights:
        raise ValueError(f"corpora: got {text!r}, expected names such as meld:1.0,goemotions:0.5.")
    return weights


def parse_corpus_options(text: str | None, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """`'{"ravdess": {"calm": "drop"}}'`, options of the readers of `names`. Raises ValueError for anything else."""
    try:
        options = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"corpus_options: got {text!r}, which is no JSON: {error}.") from error
    if not isinstance(options, dict) or not all(isinstance(given, dict) for given in options.values()):
        raise ValueError(
            f'corpus_options: got {text!r}, expected a mapping such as {{"ravdess": {{"calm": "drop"}}}}.'
        )
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise ValueError(f"corpus_options: got {unknown}, expected some of the corpora {', '.join(names)}.")
    return options


def parse_column_map(text: str | None) -> dict[str, str] | None:
    """`"text=Utterance,label=Emotion"` or a JSON object. Raises ValueError for anything else."""
    if not text:
        return None
    if text.lstrip().startswith("{"):
        try:
            return {str(ours): str(theirs) for ours, theirs in json.loads(text).items()}
        except json.JSONDecodeError as error:
            raise ValueError(f"column_map: got {text!r}, which is no JSON: {error}.") from error
    pairs = [part.partition("=") for part in text.split(",")]
    if any(not (ours and middle and theirs) for ours, middle, theirs in pairs):
        raise ValueError(f'column_map: got {text!r}, expected "ours=theirs,ours=theirs".')
    return {ours.strip(): theirs for ours, _, theirs in pairs}  # a column's name may begin with a space


def subset_weights(text: str) -> tuple[float, ...]:
    """`"text+audio:1,text+vision:4"` as a weight for each of `SUBSETS`. Raises ValueError for anything else."""
    # One modality alone has nothing to be aligned with.
    names = ["+".join(subset) for subset in SUBSETS if len(subset) > 1]
    weights = parse_weights(text, "composite_subsets", names, allow_zero=True)
    if not any(weights.values()):
        raise ValueError(f"composite_subsets: got {text!r}, expected a weight above 0.")
    return tuple(weights.get("+".join(subset), 0.0) for subset in SUBSETS)
