"""What `triemo predict` and `triemo demo` do.

The one reads inputs one after the other, the other a single input from every subset of its modalities.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

from rich.console import Console
from rich.progress import track

from triemo.serving import printing
from triemo.serving.onnx.processing.explanations_triemo import disagree, said_alone
from triemo.serving.onnx.processing.samples_triemo import checked_labels
from triemo.serving.reading import (
    Evidence,
    Reading,
    load_reader,
    read_sample,
    read_subsets,
    reading_document,
    subsets_document,
)
from triemo.serving.samples import Sample, UsageError, demo_sample, make_sample
from triemo.training.common import default_model

__all__ = ["demo", "predict"]


def predict(
    files: Sequence[str],
    text: str | None = None,
    audio: str | None = None,
    image: str | None = None,
    *,
    model: str | None = None,
    device: str | None = None,
    top_k: int | None = None,
    candidate_labels: str | None = None,
    min_score: float | None = None,
    explain: bool = False,
    as_json: bool = False,
    **options: Any,
) -> int:
    """
    Read every input and print the answers; files that cannot be read are named on stderr, and the others still read.

    Args:
        candidate_labels: the labels to choose among, with commas between them.
        min_score: least score of an answer that is not uncertain; by default what is stored with the checkpoint.
        explain: say what each answer rests on.
        options: `num_frames`, `use_sound_track`.

    Returns:
        The exit status: 1 if anything could not be read.

    Raises:
        UsageError: the options and a file do not go together.
        ValueError: the model cannot be loaded, or does not know a label.
    """
    errors = Console(stderr=True)

    @cache
    def get_reader() -> Any:
        reader = _load_quietly(errors, model, device)
        checked_labels(candidate_labels, reader.model.config)  # once, and not of each file
        return reader

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
            results.append((name, _error_line(errors, name, error)))
            continue
        reader = get_reader()
        try:
            results.append(read_sample(reader, sample, candidate_labels, min_score, explain, **options))
        except ValueError as error:
            results.append((name, _error_line(errors, name, error)))
    readings = [result for result in results if isinstance(result, Reading)]
    if as_json:
        documents = [_document(result, model or default_model(), top_k) for result in results]
        print(json.dumps(documents if len(names) > 1 else documents[0], indent=2))
        for reading in readings:
            _warn_of_fallback(reading.sample, reading.evidence)
    elif readings:
        _print_tables(readings, len(names) > 1, top_k, get_reader().model.config.resolved_problem_type != "regression")
    return int(len(readings) < len(results))


def demo(
    file: str | None = None,
    text: str | None = None,
    audio: str | None = None,
    image: str | None = None,
    *,
    model: str | None = None,
    device: str | None = None,
    as_json: bool = False,
    **options: Any,
) -> None:
    """
    Print the scores of all subsets side by side, then the contributions to the best label of all together.

    Args:
        file, text, audio, image: the user's own input; with none of them the clip that comes with Triemo.
        options: `num_frames`, `use_sound_track`.

    Raises:
        ValueError: unreadable media, nothing to read from, or a regression model.
    """
    own = any(value is not None for value in (file, text, audio, image))
    sample = make_sample(file, text, audio, image) if own else demo_sample()
    reader = _load_quietly(Console(stderr=True), model, device)
    read = read_subsets(reader, sample, **options)
    if as_json:
        print(json.dumps({**subsets_document(read), "model": model or default_model()}, indent=2))
        _warn_of_fallback(sample, read.evidence)
        return
    console = Console()
    printing.print_sample(console, sample, read.evidence)
    printing.print_subsets(console, read.scores)
    printing.print_contributions(console, read.label, read.empty, read.parts)
    alone = said_alone(read.scores)
    if disagree(alone):
        printing.print_disagreement(console, alone)
    printing.print_disclaimer(console)


def _load_quietly(errors: Console, model: str | None, device: str | None) -> Any:
    """The pipeline, with a sign of life on stderr where someone watches."""
    with errors.status("Loading the model") if errors.is_terminal else nullcontext():
        return load_reader(model, device)


def _error_line(errors: Console, name: str, error: ValueError) -> str:
    """Name the input and say on stderr, in one line, what is wrong with it; returns what was said."""
    message = " ".join(str(error).split())
    message = message if name in message else f"{name}: {message}"
    errors.print(f"triemo: {message}", markup=False, highlight=False, soft_wrap=True)
    return message


def _warn_of_fallback(sample: Sample, evidence: Evidence) -> None:
    """The note that stands in the tables, on stderr."""
    note = printing.fallback_note(evidence.missing, evidence.modalities)
    if note:
        print(f"triemo: {sample.name}: {note}", file=sys.stderr)


def _document(result: Reading | tuple[str, str], model: str, top_k: int | None) -> dict[str, Any]:
    if isinstance(result, Reading):
        return {**reading_document(result, top_k), "model": model}
    return {"file": result[0], "error": result[1]}


def _print_tables(readings: list[Reading], several: bool, top_k: int | None, is_share: bool) -> None:
    console = Console()
    if several:
        printing.print_summary(console, readings, top_k, is_share)
    else:
        printing.print_reading(console, readings[0], top_k, is_share)
    for reading in readings:
        if several and reading.explanation is not None:
            printing.print_name(console, reading.sample.name)
        told = reading.explanation or []
        for one in told if isinstance(told, list) else [told]:
            printing.print_explanation(console, one)
    printing.print_disclaimer(console)
