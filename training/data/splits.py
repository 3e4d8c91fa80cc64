"""Splits: published ones from files, groups kept whole when a split is made, and a check against leakage.

A file under `splits/` has `name`, `version`, `corpus`, `column` (what is kept whole: `speaker` or `session`),
`source`, and either `splits` (members of train, validation and test) or `folds` (members of each fold). A change of
the members changes what a figure means, so it comes with a new version.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

__all__ = [
    "SPLIT_NAMES",
    "as_dataset_dict",
    "check_no_leakage",
    "find_duplicates",
    "load_split",
    "split_by_members",
    "split_members",
    "split_names",
    "split_off",
]

logger = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "validation", "test")
SPLITS_FOLDER = Path(__file__).resolve().parents[1] / "corpora" / "splits"


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


def _content_key(value: Any) -> str | None:
    """Hash of what a cell holds: text without case and outer space, the bytes of media, the file behind a path."""
    if isinstance(value, str):
        return value.strip().casefold() or None
    if not isinstance(value, Mapping):
        return None
    content, path = value.get("bytes"), value.get("path")
    if content is None and path is not None:
        file = Path(path)
        content = file.read_bytes() if file.is_file() else None
    return None if content is None else hashlib.sha256(content).hexdigest()


def find_duplicates(
    splits: Mapping[str, Dataset], columns: Sequence[str] = ("text", "audio", "video", "image")
) -> list[dict]:
    """The same text, sound, clip or image in two splits: one dict for each, and one logged warning for each column.

    Reads every media file, so it is a check to make once. Short texts ("Yes.") repeat without being leakage.

    Returns:
        `{"column", "splits": (first, second), "rows": (row, row)}`, the first row of each split.
    """
    found = []
    for column in columns:
        first_rows: dict[str, dict[str, str]] = defaultdict(dict)
        for split, dataset in splits.items():
            if column not in dataset.column_names:
                continue
            values = dataset.select_columns([column]).with_format(None)
            for example, row in zip(values, _row_names(dataset, split), strict=True):
                key = _content_key(example[column])
                if key is not None:
                    first_rows[key].setdefault(split, row)
        shared = [rows for rows in first_rows.values() if len(rows) > 1]
        for rows in shared:
            names = tuple(rows)
            pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
            found += [{"column": column, "splits": (a, b), "rows": (rows[a], rows[b])} for a, b in pairs]
        if shared:
            logger.warning(f"{column}: {len(shared)} contents are in more than one split, first {shared[0]}.")
    return found


# Splitting ---------------------------------------------------------------------------------------------------


def _components(columns: Sequence[Sequence[Any]], rows: int) -> np.ndarray:
    """A number for each row; rows that share a value in any of the columns, also over other rows, get the same."""
    parent = list(range(rows))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for values in columns:
        first: dict[Any, int] = {}
        for row, value in enumerate(values):
            if value is not None:
                parent[root(row)] = root(first.setdefault(value, row))
    return np.array([root(row) for row in range(rows)])


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


# Published splits --------------------------------------------------------------------------------------------


def split_names() -> list[str]:
    """Names of the split files that come with the project."""
    return sorted(path.stem for path in SPLITS_FOLDER.glob("*.json"))


def load_split(name: str) -> dict:
    """A split file's content.

    Raises:
        ValueError: when there is no such file, or a member is in two of its splits or folds.
    """
    path = SPLITS_FOLDER / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"split file: got {name!r}, expected one of {split_names()}")
    content = json.loads(path.read_text(encoding="utf-8"))
    parts = content["folds"] if "folds" in content else list(content["splits"].values())
    members = [member for part in parts for member in part]
    if len(set(members)) != len(members):
        raise ValueError(f"split file {name!r}: got a member in two parts, expected each in one")
    return content


def split_members(name: str, fold: int | None = None, validation: bool = True) -> dict[str, list]:
    """Members of train, validation and test.

    Args:
        name: of the split file.
        fold: for a file of folds, which one is the test (from 0). The next one is validation.
        validation: without it the next fold stays in train, as in protocols that train on all others and stop after
            a fixed number of steps.

    Raises:
        ValueError: a fold where the file has none, none where it has some, or outside their number.
    """
    content = load_split(name)
    if "splits" in content:
        if fold is not None:
            raise ValueError(f"fold: got {fold}, expected none, for the split file {name!r} has no folds")
        return content["splits"]
    folds = content["folds"]
    if fold is None or not 0 <= fold < len(folds):
        raise ValueError(f"fold: got {fold}, expected 0 to {len(folds) - 1} for the split file {name!r}")
    held = (fold + 1) % len(folds)
    rest = [m for i, part in enumerate(folds) if i != fold and (i != held or not validation) for m in part]
    return {"train": rest, **({"validation": folds[held]} if validation else {}), "test": folds[fold]}


def split_by_members(rows: Sequence[dict], column: str, members: Mapping[str, Sequence]) -> dict[str, list[dict]]:
    """Rows sorted into splits by the value of a column; rows of nobody's are left out.

    Raises:
        ValueError: naming a split that gets no row.
    """
    split_of = {member: split for split, part in members.items() for member in part}
    result: dict[str, list[dict]] = {split: [] for split in members}
    for row in rows:
        if row[column] in split_of:
            result[split_of[row[column]]].append(row)
    for split, part in result.items():
        if not part:
            raise ValueError(f"split {split}: got no row, expected some of {column} {list(members[split])}")
    return result


def as_dataset_dict(splits: Mapping[str, Dataset]) -> DatasetDict:
    """In the order train, validation, test, others after them."""
    ordered = [name for name in SPLIT_NAMES if name in splits] + [name for name in splits if name not in SPLIT_NAMES]
    return DatasetDict({name: splits[name] for name in ordered})
