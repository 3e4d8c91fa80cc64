"""Who said what and when: transcripts of every common form, read as a list of utterances in the order they were said.

What is guessed, cut or left out is a note to the caller; what cannot be meant is a ValueError naming file and turn.
"""

import codecs
import html
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triemo.serving.onnx.processing.presence_triemo import is_absent
from triemo.training.data.text_tables import TEXT_FORMATS, check_encoding, text_rows

__all__ = [
    "TRANSCRIPT_FORMATS",
    "Utterance",
    "fit_to_recording",
    "parse_seconds",
    "read_transcript",
    "table_rows",
    "utterance_of_row",
    "with_speakers",
]

TRANSCRIPT_FORMATS = (".srt", ".vtt", ".json", ".txt", ".rttm", *TEXT_FORMATS)
_TIME_FIELDS = {
    "start": ("start", "begin", "start_time", "starttime", "start_seconds", "from", "onset"),
    "end": ("end", "stop", "end_time", "endtime", "end_seconds", "to", "offset"),
}
_CLOCK = re.compile(r"(-)?(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
_LONGEST_NAME_WORDS = 3
# "Ann: hello", "[00:01:02] SPEAKER 1: hello", "王芳：你好". A name does not begin in lower case and is no number.
_NAMED_LINE = re.compile(r"\[?(?P<name>[^\W\d_a-z][\w.'()\- ]{0,38})\]?\s*[:：](?!//)\s*(?P<text>\S.*)", re.DOTALL)
_LEADING_TIME = re.compile(r"[\[(]?(?P<time>(?:\d+:)?\d{1,2}:\d{2}(?:[.,]\d+)?)[\])]?\s+(?P<rest>\S.*)", re.DOTALL)
_ASS_OVERRIDE = re.compile(r"\{\\[^}]*\}")  # placement and colour, which players of SRT take too
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")


@dataclass(frozen=True)
class Utterance:
    """
    Args:
        start, end: in the recording, seconds; None where unknown.
        text: what was said; None where there are no words, or they are not known.
        speaker: a name that is the same in all of a speaker's turns; None where unknown.
    """

    start: float | None = None
    end: float | None = None
    text: str | None = None
    speaker: str | None = None


def read_transcript(
    file: str | Path,
    *,
    seconds: float | None = None,
    diarization: str | Path | None = None,
    encoding: str | None = None,
    notes: list[str] | None = None,
) -> list[Utterance]:
    """
    The utterances of a transcript, by start.

    - `.srt`, `.vtt`: a cue is an utterance; the speaker is its voice (`<v Ann>`), or the name before a colon.
    - `.json`: Whisper's and WhisperX's `segments`, the `chunks` of a transformers pipeline, pyannote's `diarization`
      or `content`, or a list of objects with any of `start`, `end`, `text`, `speaker`.
    - `.txt`: lines `Ann: hello`, with or without a time before; a line without a name goes on with the turn before.
    - `.csv`, `.tsv`, `.jsonl`: a row is an utterance, with columns as in JSON; times are seconds or `1:02:03.5`.
    - `.rttm`: who spoke when, without words.

    Utterances out of order are sorted, those with neither words nor times left out, those that begin before 0 begin
    there, those that overlap are kept; each with a note.

    Args:
        seconds: of the recording that the times are of; see `fit_to_recording`.
        diarization: an `.rttm` or `.json` file that says who spoke where the transcript does not; see `with_speakers`.
        encoding: of the file; UTF-8 by default, or UTF-16 with its mark.
        notes: of what was guessed, cut or left out, one is added each.

    Raises:
        ValueError: an unknown format, a file that cannot be read, a turn that ends before it starts, or no turn.
    """
    path = Path(file).expanduser()
    told: list[str] = [] if notes is None else notes
    suffix = path.suffix.lower()
    if suffix not in TRANSCRIPT_FORMATS:
        raise ValueError(
            f"transcript: got {str(file)!r}, expected a file that ends in {', '.join(TRANSCRIPT_FORMATS)}."
        )
    if not path.is_file():
        raise ValueError(f"transcript: {file} is no file.")
    if suffix in TEXT_FORMATS:
        found = [utterance_of_row(row, place) for row, place in table_rows(path, encoding)]
    else:
        text = _text_of(path, encoding)
        if suffix in (".srt", ".vtt"):
            found = _from_cues(text, suffix[1:], path, told)
        elif suffix == ".json":
            found = _from_json(text, path)
        elif suffix == ".rttm":
            found = _from_rttm(text, path)
        else:
            found = _from_lines(text, told)
    utterances = _in_order([_checked(one, f"{path}, turn {index}") for index, one in enumerate(found, 1)], path, told)
    if diarization is not None:
        utterances = with_speakers(utterances, read_transcript(diarization, encoding=encoding), told)
    return utterances if seconds is None else fit_to_recording(utterances, seconds, str(path), told)


def fit_to_recording(utterances: Sequence[Utterance], seconds: float, name: str, notes: list[str]) -> list[Utterance]:
    """
    The utterances that a recording of `seconds` holds. One that goes on beyond its end is cut there, one that begins
    beyond it is left out, and an unknown end is the next one's start, or the recording's end.

    Raises:
        ValueError: none of them lies in the recording; `name` is the transcript's.
    """
    fitted: list[Utterance] = []
    beyond = cut = 0
    starts = [one.start for one in utterances]
    for index, one in enumerate(utterances):
        if one.start is None:
            fitted.append(one)
            continue
        if one.start >= seconds:
            beyond += 1
            continue
        end = one.end
        if end is None:
            end = next((start for start in starts[index + 1 :] if start is not None), seconds)
        cut += end > seconds
        fitted.append(replace(one, end=min(end, seconds)))
    if not fitted:
        raise ValueError(
            f"{name}: all {len(utterances)} turns begin after the recording's end at {seconds:.1f} s; is it the "
            "transcript of another one?"
        )
    if beyond:
        notes.append(f"transcript: {beyond} turns begin after the recording's end at {seconds:.1f} s and are left out")
    if cut:
        notes.append(f"transcript: {cut} turns go on beyond the recording's end at {seconds:.1f} s and are cut there")
    return fitted


def with_speakers(
    utterances: Sequence[Utterance], diarization: Sequence[Utterance], notes: list[str]
) -> list[Utterance]:
    """
    Utterances without a speaker get the one who spoke longest during them, by `diarization`, whose utterances have
    times and speakers. Where nobody did, or the times are unknown, the speaker stays unknown, with a note.
    """
    named = []
    unknown = 0
    for one in utterances:
        if one.speaker is None and one.start is not None and one.end is not None:
            spoken: Counter[str] = Counter()
            for other in diarization:
                if other.speaker is not None and other.start is not None and other.end is not None:
                    together = min(one.end, other.end) - max(one.start, other.start)
                    if together > 0:
                        spoken[other.speaker] += together  # type: ignore[assignment]  # seconds, which Counter adds too
            if spoken:
                one = replace(one, speaker=spoken.most_common(1)[0][0])
        unknown += one.speaker is None
        named.append(one)
    if unknown:
        notes.append(f"transcript: the speaker of {unknown} of {len(named)} turns is unknown")
    return named


def parse_seconds(value: Any, where: str) -> float | None:
    """
    Seconds of a number, or of text such as "62.5", "1:02.5" or "00:01:02,500"; None for an empty cell.

    Raises:
        ValueError: neither, or not finite; `where` names it.
    """
    if is_absent(value):
        return None
    seconds = math.nan
    if isinstance(value, str):
        clock = _CLOCK.fullmatch(value.strip())
        if clock is not None:
            sign, hours, minutes, rest = clock.groups()
            seconds = int(hours or 0) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))
            return -seconds if sign else seconds
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        pass
    if not math.isfinite(seconds):
        raise ValueError(f"{where}: got the time {value!r}, expected seconds or hours:minutes:seconds.")
    return seconds


# Formats


def _text_of(path: Path, encoding: str | None) -> str:
    content = path.read_bytes()
    if encoding is None and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    check_encoding(path, encoding)
    return content.decode(encoding or "utf-8-sig")


def _from_cues(text: str, kind: str, path: Path, notes: list[str]) -> list[Utterance]:
    try:
        import webvtt
        from webvtt.errors import MalformedCaptionError, MalformedFileError
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: reading SRT and VTT needs webvtt-py: pip install 'triemo[timeline]'.") from error
    try:
        cues = list(webvtt.from_buffer(io.StringIO(text), format=kind))
    except (MalformedFileError, MalformedCaptionError) as error:
        raise ValueError(f"{path}: cannot be read as {kind.upper()} ({error}).") from error
    lost = sum("-->" in line for line in text.splitlines()) - len(cues)
    if lost > 0:
        notes.append(f"transcript: {lost} cues of {path.name} have times that cannot be read, and are left out")
    utterances = []
    several = 0
    for cue in cues:
        words = _ASS_OVERRIDE.sub("", html.unescape(cue.text))
        several += len(set(_VOICE.findall(cue.raw_text))) > 1 or _is_exchange(words)
        times = (moment.in_milliseconds() / 1000 for moment in (cue.start_time, cue.end_time))
        utterances.append(Utterance(*times, words, cue.voice))
    if several:
        notes.append(f"transcript: {several} cues of {path.name} hold several voices, and are read as one turn each")
    return _named_in_words(utterances, notes)


def _is_exchange(words: str) -> bool:
    """Two lines that begin with a dash, which is how subtitles show two people in one cue."""
    return sum(line.lstrip().startswith(("-", "–", "—")) for line in words.splitlines()) > 1


def _named_in_words(utterances: Sequence[Utterance], notes: list[str]) -> list[Utterance]:
    """The names before colons as speakers, where none is known."""
    named = []
    found: dict[str, None] = {}
    for one in utterances:
        speaker, words = _speaker_of(one.text or "")
        if one.speaker is None and speaker is not None:
            found[speaker] = None
            one = replace(one, speaker=speaker, text=words)
        named.append(one)
    if found:
        notes.append(f"transcript: names before a colon are taken for speakers ({', '.join(found)})")
    return named


def _speaker_of(line: str) -> tuple[str | None, str]:
    match = _NAMED_LINE.fullmatch(line.strip())
    if match is None or len(match["name"].split()) > _LONGEST_NAME_WORDS:
        return None, line
    return match["name"].strip(), match["text"]


def _from_lines(text: str, notes: list[str]) -> list[Utterance]:
    turns: list[Utterance] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        timed = _LEADING_TIME.fullmatch(line)
        start = None if timed is None else parse_seconds(timed["time"], line)
        speaker, words = _speaker_of(line if timed is None else timed["rest"])
        if speaker is None and start is None and turns and turns[-1].speaker is not None:
            turns[-1] = replace(turns[-1], text=f"{turns[-1].text} {words}")
        else:
            turns.append(Utterance(start, None, words, speaker))
    if turns and all(turn.speaker is None for turn in turns):
        notes.append("transcript: no line begins with a speaker's name, so each line is a turn of an unknown speaker")
    return turns


def _from_rttm(text: str, path: Path) -> list[Utterance]:
    """NIST's Rich Transcription Time Marked lines: SPEAKER file channel onset duration <NA> <NA> name ..."""
    turns = []
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split()
        if not cells or cells[0] != "SPEAKER":
            continue
        where = f"{path}:{number}"
        if len(cells) < 8:
            raise ValueError(f"{where}: got {len(cells)} fields, expected an RTTM line of 8 or more.")
        start, length = (parse_seconds(cell, where) or 0.0 for cell in cells[3:5])
        turns.append(Utterance(start, start + length, None, None if cells[7] == "<NA>" else cells[7]))
    return turns


def table_rows(path: Path, encoding: str | None = None) -> list[tuple[dict[str, Any], str]]:
    """The rows of a csv, tsv or JSON lines, each with its place; columns under their usual names, whatever else."""
    from triemo.training.data.columns import meant_columns  # pyarrow with it

    with path.open("rb") as file:
        rows = list(text_rows(file, str(path), encoding))
    theirs = meant_columns(list(dict.fromkeys(name for row, _ in rows for name in row)), label=False)
    return [({**row, **{ours: row.get(name) for ours, name in theirs.items()}}, place) for row, place in rows]


def _from_json(text: str, path: Path) -> list[Utterance]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON ({error}).") from error
    rows = document
    while isinstance(rows, Mapping):
        rows = next((rows[key] for key in _LISTS_OF_JSON if key in rows), None)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"{path}: expected a list of objects, or one under {', '.join(_LISTS_OF_JSON)}.")
    return [utterance_of_row(row, f"{path}, turn {index}") for index, row in enumerate(rows, 1)]


# pyannote's services wrap theirs in "output"; "content" is what its annotations write.
_LISTS_OF_JSON = (
    "segments",
    "chunks",
    "utterances",
    "turns",
    "output",
    "exclusiveDiarization",
    "diarization",
    "content",
)


def utterance_of_row(row: Mapping[str, Any], where: str) -> Utterance:
    """The utterance that a row or an object tells of. Raises ValueError naming the place of what cannot be meant."""
    fields = {str(name).lower(): value for name, value in row.items()}
    if isinstance(fields.get("segment"), Mapping):
        fields |= fields["segment"]
    pair = fields.get("timestamp")
    if isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2:
        fields["start"], fields["end"] = pair
    start, end = (
        next((parse_seconds(fields[name], where) for name in names if not is_absent(fields.get(name))), None)
        for names in _TIME_FIELDS.values()
    )
    words = fields.get("text")
    if not (is_absent(words) or isinstance(words, str)):
        raise ValueError(f"{where}: got the text {words!r}, expected a string.")
    speaker = fields.get("speaker")
    if is_absent(speaker):
        speaker = fields.get("label") if "segment" in fields else _speaker_of_words(fields.get("words"))
    return Utterance(start, end, words, None if is_absent(speaker) else str(speaker))


def _speaker_of_words(words: Any) -> str | None:
    """Of WhisperX, where the segment has none: whose most of its words are."""
    if not isinstance(words, list):
        return None
    spoken = Counter(word["speaker"] for word in words if isinstance(word, Mapping) and word.get("speaker"))
    return spoken.most_common(1)[0][0] if spoken else None


# What every format goes through


def _checked(one: Utterance, where: str) -> Utterance:
    """ValueError for times that cannot be meant; words in one line, and None for what is empty."""
    if one.start is not None and one.end is not None and one.end < one.start:
        raise ValueError(f"{where}: ends at {one.end:g} s, before it starts at {one.start:g} s.")
    words = " ".join((one.text or "").split())
    speaker = " ".join((one.speaker or "").split())
    return replace(one, text=words or None, speaker=speaker or None)


def _in_order(utterances: Iterable[Utterance], path: Path, notes: list[str]) -> list[Utterance]:
    kept: list[Utterance] = []
    empty = early = 0
    for one in utterances:
        if one.start is not None and one.start < 0:
            early += 1
            one = replace(one, start=0.0, end=None if one.end is None else max(one.end, 0.0))
        if one.text is None and (one.start is None or one.end == one.start):
            empty += 1
            continue
        kept.append(one)
    if not kept:
        raise ValueError(f"{path}: holds no turn, expected words or times of at least one.")
    if early:
        notes.append(f"transcript: {early} turns of {path.name} begin before 0 s, where the recording begins")
    if empty:
        notes.append(f"transcript: {empty} turns of {path.name} have neither words nor a length, and are left out")
    # A turn without a time stays behind the one it stood behind.
    last = 0.0
    keys = []
    for one in kept:
        last = last if one.start is None else one.start
        keys.append(last)
    order = sorted(range(len(kept)), key=keys.__getitem__)
    if order != list(range(len(kept))):
        notes.append(f"transcript: the turns of {path.name} are not in order, and were sorted by their start")
    kept = [kept[index] for index in order]
    ends = [one.end for one in kept]
    overlapping = sum(
        one.start is not None and before is not None and one.start < before
        for one, before in zip(kept[1:], ends, strict=False)
    )
    if overlapping:
        notes.append(f"transcript: {overlapping} turns of {path.name} begin before the one before has ended")
    return kept
