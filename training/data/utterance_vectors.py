"""The vectors of a table's utterances: those that it brings, else the means of a checkpoint's towers, made once."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from triemo.modeling import MODALITIES
from triemo.processing import UtteranceEncoder
from triemo.processing.samples_triemo import MASKS
from triemo.processing.utterances_triemo import VECTORS
from triemo.training.data.columns import FEATURE_COLUMNS, MEDIA_COLUMNS

__all__ = ["encoded_modalities", "given_widths", "utterance_vectors"]

logger = logging.getLogger(__name__)

_RAW = {"text": ("text",), "audio": ("audio", "video"), "vision": ("image", "video")}


def given_widths(data: Dataset) -> dict[str, int]:
    """Width of the vectors that a table brings, by modality."""
    columns = {m: column for m, column in zip(MODALITIES, FEATURE_COLUMNS, strict=True) if column in data.column_names}
    first = {m: next((cell for cell in data[column] if cell), None) for m, column in columns.items()}
    return {m: len(cell[0]) for m, cell in first.items() if cell}


def encoded_modalities(data: Dataset, has: tuple[str, ...]) -> tuple[str, ...]:
    """Modalities, of those that a model has, which a table holds and brings no vectors of."""
    brings = given_widths(data)
    return tuple(m for m in has if m not in brings and any(column in data.column_names for column in _RAW[m]))


def utterance_vectors(
    data: Dataset, encoder: UtteranceEncoder | None, widths: Mapping[str, int], cache: Path | None, name: str
) -> dict[str, torch.Tensor]:
    """
    Vectors (U, D_m) and masks (U,) of all utterances of a table, as `UtteranceEncoder` gives them.

    What the encoder makes is kept in `cache` by a hash of the table's words and media, of the weights of the towers
    and of the layers: the same content is read once, whatever run and split asks for it. Without one nothing is kept.

    Args:
        data: rows of an emotion table; several vectors of a row count as their mean.
        encoder: of the modalities that the table brings no vectors of; None where there are none.
        widths: of the vectors that it brings; a row of another width is an error.
        cache: folder, or None.
        name: of the table, for messages.

    Raises:
        ValueError: naming the row of media that cannot be read or of vectors of another width.
    """
    result: dict[str, torch.Tensor] = {}
    for modality, width in widths.items():
        result |= _given_vectors(data, modality, width)
    if encoder is None:
        return result
    columns = [column for m in encoder.layers for column in _RAW[m] if column in data.column_names]
    rows = data.select_columns(list(dict.fromkeys(columns)))
    if cache is None:
        return _encoded(data, rows, encoder) | result
    file = cache / f"{_content_hash(rows, encoder)}.safetensors"
    if not file.is_file():
        logger.info(f"{name}: {len(data)} utterances go through the towers of {', '.join(encoder.layers)} once.")
        vectors = _encoded(data, rows, encoder)
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file(vectors, part)
        part.replace(file)
    return load_file(file) | result


def _encoded(data: Dataset, rows: Dataset, encoder: UtteranceEncoder) -> dict[str, torch.Tensor]:
    places = data["row"][:] if "row" in data.column_names else [f"row {row}" for row in range(len(data))]
    try:
        return encoder([dict(row) for row in rows])
    except ValueError as error:
        number, _, reason = str(error).removeprefix("utterance ").partition(": ")
        raise ValueError(f"{places[int(number)]}: {reason}" if number.isdigit() else str(error)) from error


def _given_vectors(data: Dataset, modality: str, width: int) -> dict[str, torch.Tensor]:
    column = f"{modality}_features"
    vectors, mask = torch.zeros(len(data), width), torch.zeros(len(data), dtype=torch.long)
    for row, cell in enumerate(data[column] if column in data.column_names else ()):
        if cell:
            values = torch.tensor(cell, dtype=torch.float32)
            if values.shape[-1] != width:
                place = data[row].get("row") or f"row {row}"
                raise ValueError(f"{place}: got {column} of {values.shape[-1]} values, expected {width}")
            vectors[row], mask[row] = values.mean(0), 1
    return {VECTORS[modality]: vectors, MASKS[modality]: mask}


def _content_hash(rows: Dataset, encoder: UtteranceEncoder) -> str:
    """Of words, media, towers, layers and the processor's settings."""
    digest = hashlib.sha256(json.dumps(encoder.layers, sort_keys=True).encode())
    digest.update(json.dumps(encoder.processor.to_dict(), sort_keys=True, default=str).encode())
    for modality in encoder.layers:
        for name, weight in encoder.base.tower(modality).state_dict().items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).numpy().tobytes())
    for row in rows:
        for column, value in row.items():
            digest.update(f"\0{column}\0".encode())
            digest.update(_content(value) if column in MEDIA_COLUMNS else str(value).encode())
    return digest.hexdigest()[:32]


def _content(cell: Any) -> bytes:
    """Of a medium in a table: its bytes, those of its file, or of a URL the name."""
    if not isinstance(cell, Mapping):
        return str(cell).encode()
    path = cell.get("path")
    if cell.get("bytes") is None and path and Path(path).is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest() if hasattr(hashlib, "file_digest") else file.read()
    return cell["bytes"] if cell.get("bytes") is not None else str(path).encode()
