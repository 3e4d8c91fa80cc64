"""What every room of `training` may use: seeds of draws, and files that are never half written."""

import json
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["joined_seed", "write_json"]


def joined_seed(*numbers: int) -> int:
    """A seed of 32 bits for, say, a run's seed, an epoch and a row (`numpy.random.SeedSequence`)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def write_json(file: Path, values: Any, sort_keys: bool = False) -> None:
    """Under another name first, so that no half of it is ever read."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(values, indent=2, default=str, sort_keys=sort_keys) + "\n", encoding="utf-8")
    part.replace(file)
