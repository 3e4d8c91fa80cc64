"""The files of a timeline: rows for programs, subtitles to lay over the video, a tier for researchers."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence

from triemo.serving.timeline.recordings import Moment, labels_of

__all__ = ["as_csv", "as_json_lines", "as_srt", "as_textgrid", "as_vtt", "stretches"]

_NOTHING = "-"  # what stands in a tier where there is nothing to read


def as_json_lines(moments: Iterable[Moment]) -> str:
    """A JSON document a line, each a window."""
    return "".join(json.dumps(moment.row(), ensure_ascii=False) + "\n" for moment in moments)


def as_csv(moments: Sequence[Moment]) -> str:
    """A row for each window, with a column for the score of each label; notes are left to JSON."""
    labels = labels_of(moments)
    content = io.StringIO()
    table = csv.writer(content, lineterminator="\n")
    names = ["start", "end", "person", "label", "confidence", "modalities", "loudness", "text"]
    table.writerow([*names, *(f"score_{label}" for label in labels)])
    for moment in moments:
        row = moment.row()
        cells = ["+".join(row[name]) if name == "modalities" else row[name] for name in names]
        table.writerow([*cells, *(moment.scores.get(label) for label in labels)])
    return content.getvalue()


def stretches(moments: Sequence[Moment]) -> list[tuple[float, float, str, float]]:
    """
    Start, end, label and mean confidence of each stretch in which one label goes on, without overlap: where two
    windows share time, or two people are seen, it goes to the later window and to who is read first.
    """
    found: list[tuple[float, float, str, list[float]]] = []
    taken: list[Moment] = []
    for moment in moments:
        if taken and (moment.start, moment.end) == (taken[-1].start, taken[-1].end):
            continue  # another person of the same window
        taken.append(moment)
    for index, moment in enumerate(taken):
        end = min(moment.end, taken[index + 1].start) if index + 1 < len(taken) else moment.end
        label, confidence = moment.label, moment.confidence
        if label is None or confidence is None or end <= moment.start:
            continue
        if found and found[-1][2] == label and abs(found[-1][1] - moment.start) < 1e-6:
            start, _, _, confidences = found[-1]
            found[-1] = (start, end, label, [*confidences, confidence])
        else:
            found.append((moment.start, end, label, [confidence]))
    return [(start, end, label, sum(values) / len(values)) for start, end, label, values in found]


def as_srt(moments: Sequence[Moment]) -> str:
    """Subtitles (SubRip) that name the emotion and its score."""
    return "".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{label} {100 * score:.0f} %\n\n"
        for number, (start, end, label, score) in enumerate(stretches(moments), 1)
    )


def as_vtt(moments: Sequence[Moment]) -> str:
    """Subtitles (WebVTT) that name the emotion and its score."""
    cues = "".join(
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{label} {100 * score:.0f} %\n\n"
        for start, end, label, score in stretches(moments)
    )
    return f"WEBVTT\n\n{cues}"


def as_textgrid(moments: Sequence[Moment]) -> str:
    """A Praat TextGrid (long text format) with two interval tiers, `emotion` and `confidence`, without gaps."""
    begin = moments[0].start if moments else 0.0
    end = max((moment.end for moment in moments), default=0.0)
    intervals: list[tuple[float, float, str, str]] = []
    at = begin
    for start, stop, label, score in stretches(moments):
        if start > at + 1e-6:
            intervals.append((at, start, _NOTHING, ""))
        intervals.append((max(at, start), stop, label, f"{score:.3f}"))
        at = stop
    if at < end - 1e-6 or not intervals:
        intervals.append((at, end, _NOTHING, ""))
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", f"xmin = {begin:.3f}", f"xmax = {end:.3f}"]
    lines += ["tiers? <exists>", "size = 2", "item []:"]
    for tier, (name, column) in enumerate((("emotion", 2), ("confidence", 3)), 1):
        lines += [f"    item [{tier}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += [f"        xmin = {begin:.3f}", f"        xmax = {end:.3f}"]
        lines.append(f"        intervals: size = {len(intervals)}")
        for number, interval in enumerate(intervals, 1):
            text = str(interval[column]).replace('"', '""')
            lines += [f"        intervals [{number}]:", f"            xmin = {interval[0]:.3f}"]
            lines += [f"            xmax = {interval[1]:.3f}", f'            text = "{text}"']
    return "\n".join(lines) + "\n"


def _clock(seconds: float, point: str) -> str:
    """hh:mm:ss and milliseconds."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


# What a file's suffix asks for, where it is text.
FORMATS: dict[str, Callable[[Sequence[Moment]], str]] = {
    ".jsonl": as_json_lines,
    ".csv": as_csv,
    ".srt": as_srt,
    ".vtt": as_vtt,
    ".TextGrid": as_textgrid,
}
