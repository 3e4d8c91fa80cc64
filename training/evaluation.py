"""What `evaluate_model.py` and `evaluate_pretraining.py` share: which model is scored, and on which rows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from triemo.training.arguments import SourceArguments
from triemo.training.common import default_model
from triemo.training.sources import Parts, load_splits

__all__ = ["EvaluationDataArguments", "load_parts", "parts_of"]


@dataclass
class EvaluationDataArguments(SourceArguments):
    """What is scored, and on what."""

    model: str = field(
        default_factory=default_model, metadata={"help": "Folder or Hub id of a model, or folder of an adapter."}
    )
    split: str = field(default="test", metadata={"help": "Split to score, or all for every row of a table."})
    output: str | None = field(default=None, metadata={"help": "Folder for the figures as JSON and the pictures."})
    batch_size: int = field(default=16, metadata={"help": "Rows, or dialogues, a forward pass."})
    max_length: int | None = field(default=None, metadata={"help": "Longest text in tokens."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU alone."})


def load_parts(args: EvaluationDataArguments, split: str, load: Callable[..., Parts] = load_splits) -> dict[str, Any]:
    """The rows of one split, by part: a table is one, each of several corpora another."""
    return parts_of(args, load(args, merge=split == "all"), split)


def parts_of(args: EvaluationDataArguments, splits: dict[str, dict[str, Any]], split: str) -> dict[str, Any]:
    """The parts of one split. Raises ValueError when it is not there."""
    if not splits.get(split):
        has = ", ".join(name for name, parts in splits.items() if parts)
        advice = f"score one of these with --split, such as --split {'validation' if 'validation' in splits else has}"
        if args.table and set(splits) == {"train", "validation"}:
            # As finetune.py splits a table that says nothing of its rows.
            advice = (
                "--split validation scores those that finetune.py holds out of this table; --split all scores every "
                "row, and for a model that was trained on this table such a score says nothing"
            )
        raise ValueError(f"split: got {split!r}, but {args.table or args.corpora} has {has}; {advice}.")
    return {name: data for name, (data, _) in splits[split].items()}
