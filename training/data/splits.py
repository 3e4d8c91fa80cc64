"""Splits: a check against leakage, and a second split taken off the first with its groups kept whole."""

import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from triemo.training.data.columns import GROUP_COLUMNS, INPUT_COLUMNS

__all__ = [
    "SPLIT_ALIASES",
    "SPLIT_NAMES",
    "as_dataset_dict",
    "check_no_leakage",
    "is_split_off",
    "split_named",
    "split_off",
]

logger = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "validation", "test")
SPLIT_ALIASES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "validation" for name in ("validation", "valid", "val", "dev", "eval", "development")},
    **{name: "test" for name in ("test", "testing")},
}


# Leakage -----------------------------------------------------------------------------------------------------


def _values(dataset: Dataset, column: str) -> list:
    """A column as plain values; sees rows taken out by a filter, and decodes nothing."""
    return dataset.with_format("arrow").select_columns([column])[:][column].to_pylist()


def _row_names(dataset: Dataset, split: str) -> list[str]:
    if "row" in dataset.column_names:
        return _values(dataset, "row")
    return [f"row {number} of {split}" for number in range(len(dataset))]


def check_no_leakage(splits: Mapping[str, Dataset], columns: Sequence[str] = ("speaker", "dialogue")) -> None:
    """Refuses splits that share a speaker, an actor, a dialogue. Missing columns and empty cells are passed over.

    Raises:
        ValueError: naming the value, the two splits and a row of each.
    """
    for column in columns:
        seen: dict[Any, tuple[str, str]] = {}
        for split, dataset in splits.items():
            if column not in dataset.column_names:
                continue
            for value, row in zip(_values(dataset, column), _row_names(dataset, split), strict=True):
                if value is None:
                    continue
                first_split, first_row = seen.setdefault(value, (split, row))
                if first_split != split:
                    raise ValueError(
                        f"{column} {value!r}: got it in {first_split} ({first_row}) and in {split} ({row}), expected "
                        f"every {column} in one split; allow it by leaving {column!r} out of the columns checked"
                    )


# Splitting ---------------------------------------------------------------------------------------------------


def _components(columns: Sequence[Sequence[Any]], rows: int) -> np.ndarray:
    """A number for each row; rows that share a value in any of the columns, also over other rows, get the same."""
    links: list[tuple[int, int]] = []
    for values in columns:
        first: dict[Any, int] = {}
        links += [(row, first.setdefault(value, row)) for row, value in enumerate(values) if value is not None]
    here, there = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links), dtype=np.int8), (here, there)), shape=(rows, rows))
    return connected_components(graph, directed=False)[1]


def split_off(
    dataset: Dataset, share: float = 0.1, seed: int = 0, columns: Sequence[str] = ("speaker", "dialogue")
) -> tuple[Dataset, Dataset, str]:
    """Takes about `share` of the rows away as a second split, whole groups where there are any.

    A group is all rows linked by a speaker or a dialogue. Where that links everything (the same speakers in every
    dialogue), dialogues alone stay whole; where nothing can, single rows are drawn. Groups come in an order that
    `seed` fixes, until the share is reached; one group at least goes and one stays.

    Returns:
        What stays, what goes, and by what it was split: `speaker and dialogue`, `speaker`, `dialogue` or `row`.

    Raises:
        ValueError: for a share outside (0, 1) or fewer than two rows.
    """
    if not 0 < share < 1 or len(dataset) < 2:
        raise ValueError(f"split: got share {share} of {len(dataset)} rows, expected 0 to 1 of at least two")
    present = {name: _values(dataset, name) for name in columns if name in dataset.column_names}
    present = {name: values for name, values in present.items() if any(value is not None for value in values)}
    tries = [tuple(present), ("dialogue",), ("speaker",)] if len(present) > 1 else [tuple(present)]
    for names in tries:
        groups = _components([present[name] for name in names], len(dataset)) if set(names) <= set(present) else None
        if names and groups is not None and len(np.unique(groups)) > 1:
            by = " and ".join(names)
            break
        if names:
            logger.warning(f"split: {' and '.join(names)} link all rows, so they cannot be kept apart.")
    else:
        groups, by = np.arange(len(dataset)), "row"
    members, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(members))
    # The last group stays whatever the share, and the first goes.
    count = int(np.searchsorted(np.cumsum(sizes[order]), share * len(dataset))) + 1
    gone = np.isin(groups, members[order[: min(count, len(members) - 1)]])
    return dataset.select(np.flatnonzero(~gone)), dataset.select(np.flatnonzero(gone)), by


def is_split_off(row: Mapping[str, Any], share: float, seed: int) -> bool:
    """Whether a row goes when a stream is split, by a hash of its speaker, else its dialogue, else what it holds.

    By what the row says itself: numbers of rows differ when several readers share a stream. So the share is met on
    average.
    """
    group = next((row[name] for name in GROUP_COLUMNS if row.get(name) is not None), None)
    content = group if group is not None else [row.get(name) for name in INPUT_COLUMNS]
    digest = sha256(f"{seed}:{content!r}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split_named(value: Any, row: str) -> str:
    """The split that a cell of the column `split` names. Raises ValueError naming the row of another word."""
    name = SPLIT_ALIASES.get(str(value).strip().lower())
    if name is None:
        raise ValueError(f"split: got {value!r} in {row}, expected one of {sorted(SPLIT_ALIASES)}")
    return name


def as_dataset_dict(splits: Mapping[str, Dataset]) -> DatasetDict:
    """In the order train, validation, test, others after them."""
    ordered = [name for name in SPLIT_NAMES if name in splits] + [name for name in splits if name not in SPLIT_NAMES]
    return DatasetDict({name: splits[name] for name in ordered})
