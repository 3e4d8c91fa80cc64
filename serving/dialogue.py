"""What `triemo dialogue` does: read conversations, whole or turn by turn, print and write what they tell, alert."""

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from triemo.serving import printing
from triemo.serving.reading import load_dialogue_reader
from triemo.serving.samples import UsageError
from triemo.serving.timeline.alerts import Alert, RuleWatch, parse_rule, post_alert
from triemo.serving.timeline.dialogue_report import make_report, report_document, write_report
from triemo.serving.timeline.dialogues import Dialogue, read_dialogues
from triemo.serving.timeline.transcripts import parse_seconds
from triemo.training.common import DIALOGUE_MODEL, default_model

__all__ = ["dialogue", "live_dialogue"]


def dialogue(
    file: str,
    transcript: str | None = None,
    diarization: str | None = None,
    *,
    output: Path | None = None,
    rules: Sequence[str] = (),
    alert: str | None = None,
    allow_private: bool = False,
    keep_empty: bool = False,
    explain: bool = True,
    as_json: bool = False,
    encoding: str | None = None,
    model: str | None = None,
    device: str | None = None,
) -> int:
    """
    Read the dialogues of a file, print them, and write them to `output`.

    Returns:
        The exit status: 1 if an alert could not be delivered.

    Raises:
        UsageError: files or options that do not go together.
        ValueError: a file or the model cannot be read, or a turn carries nothing.
    """
    _check_alert(rules, alert)
    errors = Console(stderr=True)
    dialogues = read_dialogues(file, transcript, diarization, encoding)
    name = model or default_model(DIALOGUE_MODEL)
    with errors.status("Loading the model") if errors.is_terminal else nullcontext():
        reader = load_dialogue_reader(name, device)
    labels = list(reader.model.config.id2label.values())
    watched = [parse_rule(rule, labels) for rule in rules]
    reports, undelivered = [], 0
    explained = explain and reader.model.config.step_aligned
    for one in dialogues:
        if one.recording is not None and set(reader.encoder.layers) == {"text"}:
            one = replace(one, recording=None, notes=[*one.notes, "audio: this model reads words alone"])
        if explain and not explained:
            one = replace(one, notes=[*one.notes, "explanations: there are none of a model with towers of its own"])
        with errors.status(f"Reading {one.name}") if errors.is_terminal else nullcontext():
            answers = _answers(reader, one, keep_empty, explained)
        watch = RuleWatch(watched, one.name)
        alerts = [
            met
            for turn, (utterance, answer) in enumerate(zip(one.utterances, answers, strict=True), start=1)
            for met in watch.push(turn, answer, utterance.start)
        ]
        report = make_report(one.name, labels, one.utterances, answers, alerts, one.notes)
        if output is not None:
            for written in write_report(report, output, name):
                print(written, file=sys.stderr)
        reports.append(report)
    # After what was read is written: whatever becomes of the call, the results are there.
    if alert is not None:
        undelivered = _deliver([met for report in reports for met in report.alerts], alert, allow_private)
    if as_json:
        documents = [{**report_document(report), "model": name} for report in reports]
        print(json.dumps(documents if len(documents) > 1 else documents[0], indent=2))
    else:
        console = Console()
        for report in reports:
            printing.print_dialogue(console, report)
        printing.print_disclaimer(console)
    return int(undelivered > 0)


def live_dialogue(
    lines: TextIO,
    *,
    rules: Sequence[str] = (),
    alert: str | None = None,
    allow_private: bool = False,
    keep_empty: bool = False,
    model: str | None = None,
    device: str | None = None,
    name: str = "live",
) -> int:
    """
    Answer turns as they come, a JSON object a line, each with a line of JSON. A line that cannot be read is answered
    with `{"turn", "error"}`, and does not count.

    Returns:
        The exit status: 1 if a turn could not be read or an alert not be delivered.

    Raises:
        ValueError: a model that needs what comes later.
    """
    _check_alert(rules, alert)
    reader = load_dialogue_reader(model or default_model(DIALOGUE_MODEL), device)
    labels = list(reader.model.config.id2label.values())
    watch = RuleWatch([parse_rule(rule, labels) for rule in rules], name)
    session = reader.session(keep_empty=keep_empty, return_notes=True)
    failed = 0
    for line in filter(None, map(str.strip, lines)):
        number = session.turns + 1
        try:
            turn = json.loads(line)
            if not isinstance(turn, dict):
                raise ValueError(f"got {type(turn).__name__}, expected an object.")
            start = parse_seconds(turn.pop("start", None), f"turn {number}")
            answer = session.push(turn)
        except json.JSONDecodeError as error:
            failed += 1
            print(json.dumps({"turn": number, "error": f"the line is no JSON ({error})"}), flush=True)
            continue
        except ValueError as error:
            failed += 1
            print(json.dumps({"turn": number, "error": " ".join(str(error).split())}), flush=True)
            continue
        met = watch.push(number, answer, start)
        print(json.dumps({"turn": number, **answer, "alerts": [asdict(one) for one in met]}), flush=True)
        if alert is not None:
            failed += _deliver(met, alert, allow_private)
    return int(failed > 0)


def _answers(reader: Any, one: Dialogue, keep_empty: bool, explain: bool) -> list[dict[str, Any]]:
    turns = {"turns": one.turns(), "dialogue": one.name}
    return reader(turns, keep_empty=keep_empty, explain=explain, return_notes=True)


def _check_alert(rules: Sequence[str], alert: str | None) -> None:
    if alert is not None and not rules:
        raise UsageError('--alert needs a --rule, such as "anger rising for 3 turns".')


def _deliver(alerts: Iterable[Alert], url: str, allow_private: bool) -> int:
    """Calls the URL with each, and says on stderr which did not get through; returns how many."""
    failed = 0
    for one in alerts:
        try:
            post_alert(url, one, allow_private)
        except ValueError as error:
            failed += 1
            print(f"triemo: turn {one.turn} of {one.dialogue}: {error}", file=sys.stderr)
    return failed
