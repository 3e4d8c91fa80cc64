"""What every room of `training` may use: the released checkpoint's place, seeds of draws, names with numbers, and
files that are never half written."""

import json
import math
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "DIALOGUE_MODEL",
    "HUB_MODEL",
    "command_line",
    "default_model",
    "joined_seed",
    "parse_weights",
    "write_json",
    "write_whole",
]

HUB_MODEL = "triemo/triemo-small"
DIALOGUE_MODEL = "triemo-small-dialogue"  # the released head of conversations
CHECKOUT = Path(__file__).resolve().parent.parent


def default_model(name: str = "triemo-small") -> str:
    """A released checkpoint: its folder in a checkout, else (the package is installed alone) its id on the Hub."""
    folder = CHECKOUT / "checkpoints" / name
    return str(folder) if any(folder.glob("model*.safetensors")) else f"{HUB_MODEL.partition('/')[0]}/{name}"


def joined_seed(*numbers: int) -> int:
    """A seed of 32 bits for, say, a run's seed, an epoch and a row (`numpy.random.SeedSequence`)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def parse_weights(
    text: str,
    field: str,
    names: Collection[str] | None = None,
    *,
    default: float | None = 1.0,
    allow_zero: bool = False,
    below: float = math.inf,
) -> dict[str, float]:
    """
    `"meld:1.0,goemotions:0.5"` as `{"meld": 1.0, "goemotions": 0.5}`; empty text is an empty dictionary.

    Args:
        text: comma-separated names, each with a number after a colon.
        field: the argument that the text was given for, named in errors.
        names: those that may stand there; None allows any.
        default: number of a name without one; None asks for a number.
        allow_zero: whether a number may be 0.
        below: what every number has to be less than.

    Raises:
        ValueError: naming the part that is no such pair, has another name or a number out of range, or comes twice.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (piece.strip() for piece in part.partition(":"))
        try:
            weight = float(number) if number or default is None else default
        except ValueError:
            weight = math.nan
        is_known = bool(name) if names is None else name in names
        if not (is_known and name not in weights and 0 <= weight < below and (weight or allow_zero)):
            known = "names" if names is None else f"some of {', '.join(names)}"
            least = "from 0" if allow_zero else "above 0"
            most = "" if below == math.inf else f" and below {below:g}"
            raise ValueError(f"{field}: got {part!r}, expected {known}, each once with a number {least}{most}.")
        weights[name] = weight
    return weights


def command_line(script: str, argv: list[str] | None) -> str:
    """A script with its arguments, or those of this process, for the record of what it made."""
    return " ".join([script, *(sys.argv[1:] if argv is None else argv)])


def write_whole(file: Path, content: str | bytes) -> None:
    """Under another name first, so that no half of it is ever read; text as UTF-8."""
    part = file.with_name(file.name + ".part")
    part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    part.replace(file)


def write_json(file: Path, values: Any, sort_keys: bool = False) -> None:
    """As `write_whole`."""
    write_whole(file, json.dumps(values, indent=2, default=str, sort_keys=sort_keys) + "\n")
