"""What people read: tables, 80 columns wide at most where the terminal is no wider, and the words in them.

What the model calls text, audio and vision are words, voice and face to people.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from triemo.serving.onnx.processing.explanations_triemo import Subset
from triemo.serving.reading import Evidence, Reading
from triemo.serving.samples import Sample
from triemo.serving.timeline.dialogue_report import DialogueReport, told_of_dialogue
from triemo.serving.timeline.marks import clock

__all__ = [
    "DISCLAIMER",
    "NAMES",
    "UNCERTAIN",
    "disagreement",
    "fallback_note",
    "listed",
    "percent",
    "print_contributions",
    "print_dialogue",
    "print_disagreement",
    "print_disclaimer",
    "print_explanation",
    "print_name",
    "print_reading",
    "print_sample",
    "print_subsets",
    "print_summary",
    "read_from",
    "strongest_time",
    "strongest_words",
    "told_of",
]

NAMES = {"text": "words", "audio": "voice", "vision": "face"}
DISCLAIMER = "Triemo reads expression, not inner feeling."
UNCERTAIN = "Uncertain: the best score is below the least that is asked for."
_BAR_WIDTH = 30  # characters
_STRONGEST = 5  # words that are named with their numbers


def print_sample(console: Console, sample: Sample, evidence: Evidence) -> None:
    """What was given, what of it was read, and what was missing."""
    for what, name in (("Clip", "video"), ("Picture", "image"), ("Sound", "audio"), ("Words", "text")):
        if name in sample.inputs:
            given = sample.inputs[name] if isinstance(sample.inputs[name], str) else sample.file
            _line(console, f"{what + ':':<11}{given}")
    _line(console, f"Read from: {read_from(evidence.modalities, evidence.faces)}")
    for told in told_of(evidence):
        _line(console, f"Note:      {told}", style="yellow")


def print_reading(console: Console, reading: Reading, top_k: int | None, is_share: bool = True) -> None:
    """One sample: a row for each emotion, best first. `is_share`: scores are parts of 1."""
    print_sample(console, reading.sample, reading.evidence)
    table = _table()
    table.add_column("Emotion")
    table.add_column("Score", justify="right")
    if is_share:
        table.add_column()
    for rank, entry in enumerate(reading.scores[:top_k]):
        score = entry["score"]
        cells = [percent(score), _bar(console, score)] if is_share else [f"{score:.3f}"]
        table.add_row(escape(entry["label"]), *cells, style="bold" if rank == 0 else None)
    console.print(table)
    if reading.uncertain:
        _line(console, UNCERTAIN, style="yellow")


def print_summary(console: Console, readings: Sequence[Reading], top_k: int | None, is_share: bool = True) -> None:
    """Several samples: a row for each, with the first or the `top_k` first emotions."""
    table = _table()
    table.add_column("File", overflow="fold")
    table.add_column("Emotion")
    table.add_column("Score", justify="right")
    table.add_column("Read from", overflow="fold")
    for reading in readings:
        best = reading.scores[: top_k or 1]
        table.add_row(
            escape(reading.sample.name),
            "\n".join(escape(entry["label"]) for entry in best) + (" (uncertain)" if reading.uncertain else ""),
            "\n".join(percent(entry["score"]) if is_share else f"{entry['score']:.3f}" for entry in best),
            read_from(reading.evidence.modalities, reading.evidence.faces),
        )
    console.print(table)
    for reading in readings:
        for told in told_of(reading.evidence):
            _line(console, f"{reading.sample.name}: {told}", style="yellow")


def print_subsets(console: Console, scores: Mapping[Subset, Mapping[str, float]]) -> None:
    """A row for each emotion, a column for each subset of the modalities, in percent; below, what each reads."""
    best = {subset: max(by_label, key=by_label.__getitem__) for subset, by_label in scores.items()}
    everything = max(scores, key=len)
    table = _table()
    table.add_column("%", footer="reads")
    for subset in scores:
        # One name above the other, so that seven columns fit into 80 characters.
        title = "all" if subset == everything and len(subset) == 3 else "\n+ ".join(NAMES[name] for name in subset)
        table.add_column(title, justify="right", footer=escape(best[subset]))
    table.show_footer = True
    for label in scores[everything]:
        cells = [f"{100 * by_label[label]:.1f}" for by_label in scores.values()]
        marked = [
            f"[bold green]{cell}[/]" if best[subset] == label else cell
            for subset, cell in zip(scores, cells, strict=True)
        ]
        table.add_row(escape(label), *marked)
    console.print(table)


def print_contributions(console: Console, label: str, empty: float, parts: Mapping[str, float]) -> None:
    """The way from the score without input to the one with everything, a row for each step."""
    total = empty + sum(parts.values())
    _line(console, f"What makes it {label} (Shapley values, in percentage points)", style="bold")
    table = _table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("without input", f"{100 * empty:.1f}", _bar(console, empty))
    for name, part in parts.items():
        table.add_row(NAMES[name], f"{100 * part:+.1f}", _bar(console, abs(part)), style="red" if part < 0 else None)
    table.add_row("together", f"{100 * total:.1f}", _bar(console, total), style="bold")
    console.print(table)


def print_dialogue(console: Console, report: DialogueReport) -> None:
    """A row for each turn; then each speaker's arc, where it turns, who moved whom, alerts and notes."""
    _line(console, f"{report.name}: {len(report.answers)} turns", style="bold")
    timed = any(one.start is not None for one in report.utterances)
    table = _table()
    for name in ("Turn", *(["Time"] if timed else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Speaker", no_wrap=True, max_width=12)
    table.add_column("Emotion", no_wrap=True)
    table.add_column("Score", justify="right", no_wrap=True)
    table.add_column("Words", no_wrap=True, max_width=max(20, console.width - 48))
    turned = {point.turn for point in report.turning_points}
    for number, (one, answer) in enumerate(zip(report.utterances, report.answers, strict=True), start=1):
        cells = [str(number), *([clock(one.start, tenths=True)] if timed else []), escape(one.speaker or "?")]
        score = "" if answer["score"] is None else percent(answer["score"])
        carried = listed(answer["modalities"]) if answer["modalities"] else "nothing"
        said = escape(one.text or f"({carried})")
        table.add_row(*cells, escape(answer["label"] or "-"), score, said, style="bold" if number in turned else None)
    console.print(table)
    for speaker, arc in report.arcs.items():
        path = " > ".join(one.label for one in arc)
        console.print(f"{speaker}: {path}", markup=False, highlight=False)
    for point in report.turning_points:
        at = f" ({clock(point.start, tenths=True)})" if point.start is not None else ""
        _line(
            console, f"Turning point: turn {point.turn}{at}, {point.speaker}: {point.before} > {point.after}", "bold"
        )
    if report.influence:
        moved = _table(title="Who moved whom (percentage points of a turn's score)", title_justify="left")
        moved.add_column("Moved", overflow="fold", max_width=16)
        for speaker in report.influence:
            moved.add_column(f"by {escape(speaker)}", justify="right", overflow="fold", max_width=19)
        for speaker, row in report.influence.items():
            moved.add_row(escape(speaker), *(f"{100 * effect:.1f}" for effect in row.values()))
        console.print(moved)
    for alert in report.alerts:
        _line(console, f"Alert: turn {alert.turn}, {alert.speaker}: {alert.rule}", style="bold red")
    for told in told_of_dialogue(report):
        _line(console, told, style="yellow")


def print_explanation(console: Console, told: Mapping[str, Any]) -> None:
    """
    What an answer rests on, from `explain_sample`: what modalities add and whether they disagree, then the words,
    moments and frames, in percentage points of the score that is lost without them.
    """
    if "timestamp" in told:
        begin, end = told["timestamp"]
        _line(console, f"From {begin:.1f} to {end:.1f} s", style="bold")
    print_contributions(console, told["label"], told["without_input"], told["contributions"])
    if told["disagree"]:
        print_disagreement(console, told["alone"])
    if told.get("words"):
        _print_words(console, told["words"])
    for kind, name in (("moments", "Voice"), ("frames", "Face")):
        if told.get(kind):
            _print_times(console, name, told[kind])


def _print_words(console: Console, words: Sequence[Mapping[str, Any]]) -> None:
    """The sentence, with what raised the score underlined and what lowered it struck out; then the strongest."""
    most = max(abs(entry["effect"]) for entry in words) or 1.0
    text = Text("Words  ")
    for entry in words:
        share = entry["effect"] / most
        style = "bold underline green" if share > 0.5 else "underline green" if share > 0.1 else ""
        style = style or ("strike red" if share < -0.1 else "")
        text.append(entry["word"], style)
        text.append(" ")
    console.print(text)
    named = strongest_words(words)
    if named:
        _line(console, f"       {named}")


def strongest_words(words: Sequence[Mapping[str, Any]]) -> str:
    """The few words that moved a score most, such as "happy +12.3, not -4.0", in percentage points; empty if none."""
    strongest = sorted(words, key=lambda entry: -abs(entry["effect"]))[:_STRONGEST]
    return ", ".join(
        f"{entry['word']} {100 * entry['effect']:+.1f}" for entry in strongest if abs(entry["effect"]) > 5e-4
    )


def _print_times(console: Console, name: str, parts: Sequence[Mapping[str, Any]]) -> None:
    """A bar for each part of the time, the higher the more it raised the score, and when that was most."""
    most = max(abs(part["effect"]) for part in parts) or 1.0
    steps = " .:-=+*#" if console.options.ascii_only else "▁▂▃▄▅▆▇█"
    text = Text(f"{name:<7}")
    for part in parts:
        height = round((len(steps) - 1) * max(part["effect"], 0.0) / most)
        text.append(steps[height], "red" if part["effect"] < -0.1 * most else "green")
    text.append(f"  {strongest_time(parts)}")
    console.print(text, soft_wrap=True)


def strongest_time(parts: Sequence[Mapping[str, Any]]) -> str:
    """When moments or frames were, and which of them raised a score most, in percentage points."""
    begin, end = _span(parts[0])[0], _span(parts[-1])[1]
    best = max(parts, key=lambda part: part["effect"])
    at, until = _span(best)
    when = f"at {at:.1f} s" if at == until else f"from {at:.1f} to {until:.1f} s"
    return f"{begin:.1f} to {end:.1f} s, most {when} ({100 * best['effect']:+.1f})"


def _span(part: Mapping[str, Any]) -> tuple[float, float]:
    return part.get("timestamp") or (part["time"], part["time"])


def print_name(console: Console, name: str) -> None:
    """Of which sample what follows is."""
    _line(console, name, style="bold underline")


def print_disagreement(console: Console, alone: Mapping[str, Mapping[str, Any]]) -> None:
    _line(console, disagreement(alone), style="yellow")


def disagreement(alone: Mapping[str, Mapping[str, Any]]) -> str:
    """
    How modalities disagree, from `said_alone`: "Words and voice disagree: words alone say joy (80.6 %), voice fear
    (66.5 %)."
    """
    said = [f"{NAMES[name]} {one['label']} ({percent(one['score'])})" for name, one in alone.items()]
    first, _, rest = said[0].partition(" ")
    verb = "say" if "text" in alone else "says"
    names = listed(list(alone))
    return f"{names[0].upper()}{names[1:]} disagree: {', '.join([f'{first} alone {verb} {rest}', *said[1:]])}."


def print_disclaimer(console: Console) -> None:
    _line(console, DISCLAIMER, style="dim")


def listed(modalities: Sequence[str]) -> str:
    """("text", "audio") to "words and voice"."""
    names = [NAMES[name] for name in modalities]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def read_from(modalities: Sequence[str], faces: tuple[int, int] | None) -> str:
    """What a prediction rests on, such as "words, voice, face (14 of 16 frames)"."""
    parts = [NAMES[name] for name in modalities]
    if "vision" in modalities and faces is not None and faces[1] > 1:
        parts[-1] += f" ({faces[0]} of {faces[1]} frames)"
    return ", ".join(parts)


def fallback_note(missing: Sequence[str], modalities: Sequence[str]) -> str:
    """What was missing and what was read instead; empty if nothing was."""
    if not missing:
        return ""
    what = " and ".join(missing)
    return f"{what[0].upper()}{what[1:]}: read from {listed(modalities)} alone."


def told_of(evidence: Evidence) -> list[str]:
    """What people are to know of a reading, a sentence each: what was missing, left out, cut or guessed."""
    note = fallback_note(evidence.missing, evidence.modalities)
    return [*filter(None, [note]), *(f"{told[0].upper()}{told[1:]}." for told in evidence.notes)]


def percent(score: float, signed: bool = False) -> str:
    """A share of 1 with one decimal, "72.3 %"."""
    return f"{100 * score:{'+' if signed else ''}.1f} %"


def _table(**options: Any) -> Table:
    return Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", **options)


def _line(console: Console, text: str, style: str | None = None) -> None:
    """Text as it is: a path is neither markup nor to be broken in the middle."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _bar(console: Console, share: float) -> str:
    block = "#" if console.options.ascii_only else "█"
    return block * round(_BAR_WIDTH * min(share, 1.0))
