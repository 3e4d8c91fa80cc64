"""What `triemo predict` does: read one input, or several files one after the other."""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

from rich.console import Console
from rich.progress import track

from triemo.serving.printing import fallback_note
from triemo.serving.reading import Reading, default_model, load_reader, read_sample
from triemo.serving.samples import UsageError, make_sample

__all__ = ["error_line", "load_quietly", "predict", "reading_document"]


def predict(
    files: Sequence[str],
    text: str | None = None,
    audio: str | None = None,
    image: str | None = None,
    *,
    model: str | None = None,
    device: str | None = None,
    top_k: int | None = None,
    as_json: bool = False,
    **options: Any,
) -> int:
    """
    Read every input and print the answers; files that cannot be read are named on stderr, and the others still read.

    Args:
        options: `num_frames`, `use_sound_track`.

    Returns:
        The exit status: 1 if anything could not be read.

    Raises:
        UsageError: the options and a file do not go together.
        ValueError: the model cannot be loaded.
    """
    errors = Console(stderr=True)
    get_reader = cache(lambda: load_quietly(errors, model, device))
    results: list[Reading | tuple[str, str]] = []
    names = list(files) or [None]
    hidden = len(names) == 1 or not errors.is_terminal
    for file in track(names, "Reading", console=errors, transient=True, disable=hidden):
        name = file or "input"
        try:
            sample = make_sample(file, text, audio, image)
            name = sample.name
        except UsageError:
            raise
        except ValueError as error:
            results.append((name, error_line(errors, name, error)))
            continue
        reader = get_reader()
        try:
            results.append(read_sample(reader, sample, **options))
        except ValueError as error:
            results.append((name, error_line(errors, name, error)))
    readings = [result for result in results if isinstance(result, Reading)]
    if as_json:
        documents = [_document(result, model or default_model(), top_k) for result in results]
        print(json.dumps(documents if len(names) > 1 else documents[0], indent=2))
        for reading in readings:
            warn_of_fallback(reading)
    elif readings:
        _print_tables(readings, len(names) > 1, top_k, get_reader().model.config.problem_type != "regression")
    return int(len(readings) < len(results))


def load_quietly(errors: Console, model: str | None, device: str | None) -> Any:
    """The pipeline, with a sign of life on stderr where someone watches."""
    with errors.status("Loading the model") if errors.is_terminal else nullcontext():
        return load_reader(model, device)


def error_line(errors: Console, name: str, error: ValueError) -> str:
    """Name the input and say on stderr, in one line, what is wrong with it; returns what was said."""
    message = " ".join(str(error).split())
    message = message if name in message else f"{name}: {message}"
    errors.print(f"triemo: {message}", markup=False, highlight=False, soft_wrap=True)
    return message


def reading_document(reading: Reading, model: str, top_k: int | None = None) -> dict[str, Any]:
    """The JSON of a reading."""
    evidence = reading.evidence
    faces = None if evidence.faces is None else {"with_face": evidence.faces[0], "sampled": evidence.faces[1]}
    return {
        "file": reading.sample.file,
        "text": reading.sample.inputs.get("text"),
        "model": model,
        "label": reading.scores[0]["label"],
        "score": reading.scores[0]["score"],
        "scores": reading.scores[:top_k],
        "modalities": list(evidence.modalities),
        "frames": faces,
        "missing": evidence.missing,
    }


def warn_of_fallback(reading: Reading) -> None:
    """The note that stands in the tables, on stderr."""
    note = fallback_note(reading.evidence.missing, reading.evidence.modalities)
    if note:
        print(f"triemo: {reading.sample.name}: {note}", file=sys.stderr)


def _document(result: Reading | tuple[str, str], model: str, top_k: int | None) -> dict[str, Any]:
    if isinstance(result, Reading):
        return reading_document(result, model, top_k)
    return {"file": result[0], "error": result[1]}


def _print_tables(readings: list[Reading], several: bool, top_k: int | None, is_share: bool) -> None:
    from triemo.serving import printing as display

    console = Console()
    if several:
        display.print_summary(console, readings, top_k, is_share)
    else:
        display.print_reading(console, readings[0], top_k, is_share)
    display.print_disclaimer(console)
