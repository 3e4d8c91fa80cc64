"""Splits of corpora: published with one or for one, from the files under `splits/`, or by a hash.

A file has `name`, `version`, `corpus`, `column` (what is kept whole: `speaker` or `session`), `source`, and either
`splits` (members of train, validation and test) or `folds` (members of each fold). A change of the members changes
what a figure means, so it comes with a new version.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

__all__ = ["load_split", "split_by_hash", "split_by_members", "split_members", "split_names"]

SPLITS_FOLDER = Path(__file__).resolve().parent / "splits"


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


def split_by_hash(member: str) -> str:
    """`train` (eight of ten), `validation` or `test`, by the member's name alone: the same on every machine and in any
    order. For corpora without an official split; what belongs together has to have one name."""
    tenth = int.from_bytes(blake2b(member.encode(), digest_size=8).digest(), "big") % 10
    return ("validation", "test")[tenth] if tenth < 2 else "train"
