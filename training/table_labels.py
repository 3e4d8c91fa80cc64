"""Labels of a table of one's own: classes, several classes a row, or numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, LargeList, List

__all__ = ["LabelColumn", "convert_labels", "label_kind", "label_names"]

LABEL_SEPARATOR = "|"  # between the labels of a cell of the column `labels`, where a file has no lists

_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?|[-+]?\.\d+")
_WHOLE = re.compile(r"[-+]?\d+")


@dataclass(frozen=True)
class LabelColumn:
    """How labels are read: from `name` (`label` or `labels`), with the `class_names` of numbers, as one `kind`."""

    name: str
    class_names: list[str] | None
    kind: str = "class"

    def named(self, values: Sequence[Any]) -> list:
        """Values with class numbers replaced by names and, in a column `labels`, text split into several."""
        return [self._named(value) for value in values]

    def _named(self, value: Any) -> Any:
        if isinstance(value, list):
            return [part if isinstance(part, str) else self._named(part) for part in value]
        if self.name == "labels" and isinstance(value, str) and value.strip():
            return [part.strip() for part in value.split(LABEL_SEPARATOR)]
        if self.class_names is None or not isinstance(value, int):
            return value
        return self.class_names[value] if value >= 0 else None  # published test sets write -1 for no label


def label_names(feature: Any) -> list[str] | None:
    """Names of the classes of a `ClassLabel` column, or of a column of lists of them."""
    if isinstance(feature, (List, LargeList)):
        feature = feature.feature
    return feature.names if isinstance(feature, ClassLabel) else None


def label_kind(values: Sequence[Any]) -> str:
    """What a column of labels holds: `class`, `classes` (several a row), `score` or `scores` (regression).

    Text that is a number with a fraction in some row and a number in every row is a score; whole numbers alone are
    the names of classes.
    """
    present = [value for value in values if value is not None and value != ""]
    if any(isinstance(value, (list, tuple, np.ndarray)) for value in present):
        parts = [part for value in present if isinstance(value, (list, tuple, np.ndarray)) for part in value]
        return "scores" if parts and all(isinstance(part, float) for part in parts) else "classes"
    if present and all(isinstance(value, str) and _NUMBER.fullmatch(value.strip()) for value in present):
        return "class" if all(_WHOLE.fullmatch(value.strip()) for value in present) else "score"
    return "score" if present and all(isinstance(value, float) for value in present) else "class"


def convert_labels(values: Sequence[Any], rows: Sequence[str], kind: str) -> list:
    """Labels of one kind. Raises ValueError naming the row of a label that is missing or of another kind."""
    return [_convert_label(value, row, kind) for value, row in zip(values, rows, strict=True)]


def _convert_label(value: Any, row: str, kind: str) -> Any:
    several = kind in ("classes", "scores")
    if value is None or (isinstance(value, str) and not value.strip()) or value != value:
        raise ValueError(f"label: got none in {row}, expected a {kind}")
    if several != isinstance(value, (list, tuple, np.ndarray)):
        raise ValueError(f"label: got {value!r} in {row}, expected {'a list' if several else 'one'} as in other rows")
    if kind == "class":
        return str(value).strip()
    if kind == "classes":
        names = [str(part).strip() for part in value]
        if len(set(names)) != len(names) or "" in names or any(part is None for part in value):
            raise ValueError(f"label: got {value!r} in {row}, expected different class names")
        return names
    try:
        numbers = [float(part) for part in (value if several else [value])]
    except (TypeError, ValueError) as error:
        raise ValueError(f"label: got {value!r} in {row}, expected a number as in other rows") from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"label: got {value!r} in {row}, expected finite numbers")
    return numbers if several else numbers[0]
