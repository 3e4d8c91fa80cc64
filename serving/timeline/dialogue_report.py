"""What a dialogue's answers tell together: each speaker's arc, where it turns, who moved whom; and the files of it."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from triemo.serving.timeline.alerts import Alert
from triemo.serving.timeline.html import HtmlPage
from triemo.serving.timeline.marks import clock, colours_of
from triemo.serving.timeline.transcripts import Utterance
from triemo.training.common import write_json, write_whole

__all__ = [
    "DialogueReport",
    "Stretch",
    "TurningPoint",
    "make_report",
    "report_document",
    "told_of_dialogue",
    "write_report",
]

UNKNOWN = "unknown"
INFLUENCE_METHOD = (
    "occlusion: by how much the score of a turn's emotion changes when an earlier turn carries nothing, added up over "
    "the earlier turns of one speaker, and averaged over the turns of the other"
)
_TURNS_BEFORE = 3  # of a speaker's own, that a turning point is told from
_LEAST_CHANGE = 0.3  # total variation distance, 0 to 1
_INFLUENCES_SHOWN = 5


@dataclass(frozen=True)
class Stretch:
    """Turns of one speaker in a row, his own, with one emotion; numbers count the turns of the dialogue from 1."""

    label: str
    first: int
    last: int


@dataclass(frozen=True)
class TurningPoint:
    """
    Args:
        turn: the first of the new emotion.
        before: the emotion of the speaker's turns before, up to three of them, since the turning point before.
        after: that of this turn; the speaker's next turn does not go back to the one before.
        change: total variation distance between their mean scores and this turn's, 0 to 1.
    """

    turn: int
    start: float | None
    speaker: str
    before: str
    after: str
    change: float


@dataclass(frozen=True)
class DialogueReport:
    """
    Args:
        name: of the dialogue.
        labels: in the order of the classes.
        utterances, answers: of each turn what was said and what the pipeline read.
        arcs: of each speaker, in the order of appearance.
        means: mean scores of each speaker's turns.
        influence: of each speaker, how much each speaker moved him; None without explanations.
        notes: of the dialogue; those of turns are in their answers.
    """

    name: str
    labels: list[str]
    utterances: Sequence[Utterance]
    answers: Sequence[Mapping[str, Any]]
    arcs: dict[str, list[Stretch]]
    means: dict[str, dict[str, float]]
    turning_points: list[TurningPoint]
    influence: dict[str, dict[str, float]] | None
    alerts: list[Alert] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_report(
    name: str,
    labels: Sequence[str],
    utterances: Sequence[Utterance],
    answers: Sequence[Mapping[str, Any]],
    alerts: Sequence[Alert] = (),
    notes: Sequence[str] = (),
) -> DialogueReport:
    """What the answers tell together. With explanations, they have all `influences`, not the strongest alone."""
    turns: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer["scores"]:
            turns.setdefault(_name(answer), []).append(index)
    scores = {index: _row(answers[index], labels) for indices in turns.values() for index in indices}
    means = {
        speaker: dict(zip(labels, np.mean([scores[index] for index in indices], axis=0).tolist(), strict=True))
        for speaker, indices in turns.items()
    }
    points = [
        point for indices in turns.values() for point in _turning_points(indices, scores, labels, answers, utterances)
    ]
    return DialogueReport(
        name,
        list(labels),
        utterances,
        answers,
        {speaker: _stretches(indices, answers) for speaker, indices in turns.items()},
        means,
        sorted(points, key=lambda point: point.turn),
        _influence(turns, answers),
        list(alerts),
        list(notes),
    )


def report_document(report: DialogueReport) -> dict[str, Any]:
    """The JSON of a report; turns count from 1."""
    turns = []
    for number, (one, answer) in enumerate(zip(report.utterances, report.answers, strict=True), start=1):
        kept = {key: value for key, value in answer.items() if key != "speaker"}
        if "influences" in kept:
            kept["influences"] = kept["influences"][:_INFLUENCES_SHOWN]
        turns.append({"turn": number, **asdict(one), **kept})
    document: dict[str, Any] = {
        "dialogue": report.name,
        "turns": turns,
        "speakers": [
            {"speaker": speaker, "scores": report.means[speaker], "arc": [asdict(one) for one in arc]}
            for speaker, arc in report.arcs.items()
        ],
        "turning_points": [asdict(point) for point in report.turning_points],
        "alerts": [asdict(alert) for alert in report.alerts],
        "notes": report.notes,
    }
    if report.influence is not None:
        table = [
            {"moved": moved, "by": by, "effect": effect}
            for moved, row in report.influence.items()
            for by, effect in row.items()
        ]
        document["influence"] = {"method": INFLUENCE_METHOD, "table": table}
    return document


def write_report(report: DialogueReport, folder: Path, model: str) -> list[Path]:
    """
    Write `NAME.json`, `NAME.csv`, `NAME.png` and `NAME.html`.

    Returns:
        What was written. Without matplotlib there is no picture, which the report's notes then say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.\-]+", "_", report.name).strip("._") or "dialogue"
    files = {kind: folder / f"{stem}.{kind}" for kind in ("png", "json", "csv", "html")}
    try:
        picture = draw_arcs(report)
        write_whole(files["png"], picture)
    except ImportError:
        picture = None
        report.notes.append("figure: none was drawn, for matplotlib is not installed: pip install 'triemo[timeline]'")
    write_json(files["json"], {**report_document(report), "model": model})
    write_whole(files["csv"], _table(report))
    _page(report, picture, model).write(files["html"])
    return [file for kind, file in files.items() if kind != "png" or picture is not None]


def draw_arcs(report: DialogueReport) -> bytes:
    """A PNG with a lane for each speaker: the scores of each turn one above the other, over time or turns."""
    from matplotlib.figure import Figure

    speakers = list(report.arcs)
    timed = all(one.start is not None and one.end is not None for one in report.utterances)
    figure = Figure(figsize=(7, 1.2 + 1.1 * len(speakers)), layout="constrained")
    lanes = np.atleast_1d(figure.subplots(len(speakers), 1, sharex=True, squeeze=False)).ravel()
    colours = colours_of(report.labels)
    for lane, speaker in zip(lanes, speakers, strict=True):
        rows = [index for index, one in enumerate(report.answers) if one["scores"] and _name(one) == speaker]
        heights = np.array([_row(report.answers[index], report.labels) for index in rows])
        spans = [(report.utterances[index].start or 0.0, report.utterances[index].end or 0.0) for index in rows]
        left = [begin for begin, _ in spans] if timed else [index + 0.5 for index in rows]
        # A turn of no length would not be seen.
        widths = [max(end - begin, 0.1) for begin, end in spans] if timed else [1.0] * len(rows)
        bottom = np.zeros(len(rows))
        for label, colour, height in zip(report.labels, colours, heights.T, strict=True):
            lane.bar(
                left, height, widths, bottom, align="edge", color=colour, label=label, edgecolor="w", linewidth=0.3
            )
            bottom += height
        for point in report.turning_points:
            if point.speaker == speaker:
                at = point.start if timed and point.start is not None else point.turn - 0.5
                lane.axvline(at, color="k", linestyle="--", linewidth=1)
        lane.set_ylabel(speaker[:20])
        lane.set_yticks([])
    lanes[-1].set_xlabel("seconds" if timed else "turn")
    handles, names = lanes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=min(len(names), 7), frameon=False, fontsize="small"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def told_of_dialogue(report: DialogueReport) -> list[str]:
    """What people are to know, a sentence each: of the dialogue, and of turns, once where several share it."""
    turns: dict[str, list[str]] = {}
    for number, answer in enumerate(report.answers, start=1):
        for note in answer.get("notes", []):
            turns.setdefault(note, []).append(str(number))
    told = [f"{note[0].upper()}{note[1:]}." for note in report.notes]
    return told + [f"Turn {', '.join(numbers)}: {note[0].upper()}{note[1:]}." for note, numbers in turns.items()]


# What is worked out


def _name(answer: Mapping[str, Any]) -> str:
    return UNKNOWN if answer["speaker"] is None else str(answer["speaker"])


def _row(answer: Mapping[str, Any], labels: Sequence[str]) -> np.ndarray:
    by_label = {entry["label"]: entry["score"] for entry in answer["scores"]}
    return np.array([by_label[label] for label in labels])


def _stretches(indices: Sequence[int], answers: Sequence[Mapping[str, Any]]) -> list[Stretch]:
    stretches: list[Stretch] = []
    for index in indices:
        label = answers[index]["label"]
        if stretches and stretches[-1].label == label:
            stretches[-1] = Stretch(label, stretches[-1].first, index + 1)
        else:
            stretches.append(Stretch(label, index + 1, index + 1))
    return stretches


def _turning_points(
    indices: Sequence[int],
    scores: Mapping[int, np.ndarray],
    labels: Sequence[str],
    answers: Sequence[Mapping[str, Any]],
    utterances: Sequence[Utterance],
) -> list[TurningPoint]:
    """Of one speaker. A turn after which the emotion is at once what it was before is none."""
    points: list[TurningPoint] = []
    since = 0
    for place in range(1, len(indices)):
        index = indices[place]
        before = np.mean([scores[i] for i in indices[max(since, place - _TURNS_BEFORE) : place]], axis=0)
        old, new = before.argmax(), scores[index].argmax()
        following = indices[place + 1 : place + 2]
        goes_back = any(scores[i].argmax() == old for i in following)
        change = 0.5 * float(np.abs(scores[index] - before).sum())
        if new != old and change >= _LEAST_CHANGE and not goes_back:
            speaker, start = _name(answers[index]), utterances[index].start
            points.append(TurningPoint(index + 1, start, speaker, labels[old], labels[new], change))
            since = place
    return points


def _influence(
    turns: Mapping[str, Sequence[int]], answers: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float]] | None:
    if not any("influences" in answer for answer in answers):
        return None
    table = {moved: dict.fromkeys(turns, 0.0) for moved in turns}
    for moved, indices in turns.items():
        for index in indices:
            for one in answers[index].get("influences", []):
                by = _name(answers[one["turn"] - 1])
                if one["turn"] - 1 < index and by in turns:
                    table[moved][by] += abs(one["effect"]) / len(indices)
    return table


# What is written


def _table(report: DialogueReport) -> str:
    explained = report.influence is not None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    extra = ["moved_by_turn", "moved_by"] if explained else []
    writer.writerow(
        [
            "dialogue",
            "turn",
            "start",
            "end",
            "speaker",
            "text",
            "label",
            "score",
            *report.labels,
            "modalities",
            *extra,
            "notes",
        ]
    )
    for number, (one, answer) in enumerate(zip(report.utterances, report.answers, strict=True), start=1):
        scores = _row(answer, report.labels).tolist() if answer["scores"] else [None] * len(report.labels)
        strongest = (answer.get("influences") or [{"turn": None, "effect": None}])[0]
        said = [one.start, one.end, one.speaker, one.text, answer["label"], answer["score"]]
        moved = [strongest["turn"], strongest["effect"]] if explained else []
        notes = "; ".join(answer.get("notes", []))
        writer.writerow([report.name, number, *said, *scores, "+".join(answer["modalities"]), *moved, notes])
    return text.getvalue()


def _page(report: DialogueReport, picture: bytes | None, model: str) -> HtmlPage:
    page = HtmlPage(f"Emotions of {report.name}")
    page.paragraph(f"{len(report.answers)} turns, read by {Path(model).name}. It reads expression, not inner feeling.")
    if picture is not None:
        caption = "A bar is a turn, its colours are its scores; dashed lines are turning points."
        page.figure(picture, "Scores of every turn, a lane for each speaker", caption)
    if report.alerts:
        page.heading("Alerts")
        page.table(
            ["turn", "time", "speaker", "rule"],
            [[one.turn, clock(one.start, tenths=True), one.speaker, one.rule] for one in report.alerts],
        )
    page.heading("Turning points")
    if report.turning_points:
        page.table(
            ["turn", "time", "speaker", "from", "to", "change"],
            [
                [p.turn, clock(p.start, tenths=True), p.speaker, p.before, p.after, p.change]
                for p in report.turning_points
            ],
        )
    else:
        page.paragraph("None: nobody's emotion changed for long.")
    if report.influence:
        page.heading("Who moved whom")
        page.table(
            ["moved", *(f"by {speaker}" for speaker in report.influence)],
            [[moved, *row.values()] for moved, row in report.influence.items()],
        )
        page.paragraph(f"By {INFLUENCE_METHOD}.", note=True)
    page.heading("Turns")
    rows = []
    for number, (one, answer) in enumerate(zip(report.utterances, report.answers, strict=True), start=1):
        read = "-" if answer["label"] is None else f"{answer['label']} {answer['score']:.0%}"
        rows.append([number, clock(one.start, tenths=True), _name(answer), read, one.text])
    page.table(["turn", "time", "speaker", "emotion", "words"], rows)
    told = told_of_dialogue(report)
    if told:
        page.heading("Notes")
        page.items(told)
    return page
