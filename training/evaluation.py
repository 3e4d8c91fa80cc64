"""What `evaluate_model.py` and `evaluate_pretraining.py` share: which model is scored, and on which rows."""

from dataclasses import dataclass, field
from typing import Any

from triemo.training.common import default_model
from triemo.training.sources import load_splits

__all__ = ["EvaluationDataArguments", "load_parts", "open_splits", "parts_of"]


@dataclass
class EvaluationDataArguments:
    """What is scored, and on what."""

    model: str = field(
        default_factory=default_model, metadata={"help": "Folder or Hub id of a model, or folder of an adapter."}
    )
    table: str | None = field(
        default=None, metadata={"help": "csv, tsv, jsonl or parquet file, folder, Hub data set."}
    )
    corpora: str | None = field(default=None, metadata={"help": "Names of corpora, comma-separated."})
    corpus_options: str | None = field(
        default=None, metadata={"help": 'Options of corpora, as JSON: {"ravdess": {"calm": "drop"}}.'}
    )
    classes: str = field(
        default="seven", metadata={"help": "seven: the classes all corpora share; own: the corpus's."}
    )
    data: str | None = field(default=None, metadata={"help": "Folder of the corpora or of a table's media."})
    column_map: str | None = field(default=None, metadata={"help": 'As "text=Utterance,label=Emotion" or JSON.'})
    split: str = field(default="test", metadata={"help": "Split to score, or all for every row of a table."})
    output: str | None = field(default=None, metadata={"help": "Folder for the figures as JSON and the pictures."})
    batch_size: int = field(default=16, metadata={"help": "Rows a forward pass."})
    max_length: int | None = field(default=None, metadata={"help": "Longest text in tokens."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU alone."})


def load_parts(args: EvaluationDataArguments, split: str) -> dict[str, Any]:
    """The rows of one split, by part: a table is one, each of several corpora another."""
    return parts_of(args, open_splits(args, merge=split == "all"), split)


def open_splits(args: EvaluationDataArguments, merge: bool = False) -> dict[str, dict[str, Any]]:
    """`{split: {part: (dataset, weight)}}`, as `load_splits`."""
    return load_splits(
        args.table,
        args.corpora,
        args.data,
        args.column_map,
        args.classes,
        merge=merge,
        corpus_options=args.corpus_options,
    )


def parts_of(args: EvaluationDataArguments, splits: dict[str, dict[str, Any]], split: str) -> dict[str, Any]:
    """The parts of one split. Raises ValueError when it is not there."""
    if not splits.get(split):
        has = ", ".join(name for name, parts in splits.items() if parts)
        raise ValueError(
            f"split: got {split!r}, but {args.table or args.corpora} has {has}; --split all scores every row."
        )
    return {name: data for name, (data, _) in splits[split].items()}
