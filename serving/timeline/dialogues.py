"""From files to dialogues: a table of turns, a transcript, or a recording cut by its transcript."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from triemo.processing.media_triemo import probe_media
from triemo.processing.presence_triemo import is_absent
from triemo.processing.recordings_triemo import recording_seconds, stream_recording
from triemo.serving.samples import UsageError
from triemo.serving.timeline.transcripts import (
    TRANSCRIPT_FORMATS,
    Utterance,
    read_transcript,
    table_rows,
    utterance_of_row,
)
from triemo.training.data.text_tables import TEXT_FORMATS

__all__ = ["Dialogue", "read_dialogues"]

_MEDIA = ("audio", "video", "image")
_SAMPLING_RATE = 16000  # Hz, of what is cut; the feature extractor resamples to its own
_FRAME_RATE = 4.0  # Hz
_LONGEST_SIDE = 960  # pixels of a frame


@dataclass(frozen=True)
class Dialogue:
    """
    Args:
        name: what messages and files call it.
        utterances: who said what and when, in order.
        media: beside each utterance, `audio`, `video` or `image` as the pipeline takes them; of a recording empty.
        recording: what the times are of; None without one.
        notes: what was guessed, cut or left out.
    """

    name: str
    utterances: Sequence[Utterance]
    media: Sequence[dict[str, Any]]
    recording: str | None = None
    notes: list[str] = field(default_factory=list)

    def turns(self) -> Iterator[dict[str, Any]]:
        """The turns as the pipeline takes them, one after the other: media are cut when their turn comes."""
        cuts = cut_recording(self.recording, self.utterances) if self.recording is not None else iter(self.media)
        for one, media in zip(self.utterances, cuts, strict=True):
            yield {"speaker": one.speaker, "text": one.text, **media}


def read_dialogues(
    file: str,
    transcript: str | None = None,
    diarization: str | None = None,
    encoding: str | None = None,
) -> list[Dialogue]:
    """
    Args:
        file: a csv, tsv or JSON lines of turns; or a transcript, which is read from its words alone; or a recording.
            Of a table a row is a turn, with any of the columns `text`, `audio`, `video`, `image` (media relative to
            the table), `speaker`, `start` and `end` (seconds), and `dialogue` and `turn`, by which rows are put
            together and in order.
        transcript: of a recording, in any form that `read_transcript` takes.
        diarization: RTTM or JSON that says who speaks when, where the transcript does not.
        encoding: of the table, transcript and diarization.

    Raises:
        UsageError: a recording without a transcript, or a transcript to something that is no recording.
        ValueError: what cannot be read, named.
    """
    path = Path(file).expanduser()
    suffix = path.suffix.lower()
    if suffix in TRANSCRIPT_FORMATS:
        if transcript is not None:
            raise UsageError(f"--transcript is for a recording, and {file} is a {suffix[1:]} file itself.")
        if suffix in TEXT_FORMATS:
            if diarization is not None:
                raise UsageError("--diarization is for a recording or its transcript; a table has a column speaker.")
            return _dialogues_of_table(path, encoding)
        notes: list[str] = []
        found = read_transcript(path, diarization=diarization, encoding=encoding, notes=notes)
        return [Dialogue(path.name, found, [{}] * len(found), notes=notes)]
    if transcript is None and diarization is None:
        raise UsageError(f"{file}: a recording needs --transcript, or --diarization, to be cut into turns.")
    notes = []
    seconds = recording_seconds(file, _SAMPLING_RATE)
    if seconds is None:
        raise UsageError(f"{file} is a picture; a dialogue is a recording, a transcript or a table of turns.")
    # Without words, who speaks when is all there is to cut by.
    by = diarization if transcript is None else transcript
    beside = None if transcript is None else diarization
    found = read_transcript(str(by), seconds=seconds, diarization=beside, encoding=encoding, notes=notes)
    untimed = [number for number, one in enumerate(found, 1) if one.start is None]
    if untimed:
        raise ValueError(f"{by}: turn {untimed[0]} of {len(found)} has no time, by which {file} could be cut.")
    return [Dialogue(path.name, found, [{}] * len(found), file, notes)]


def cut_recording(file: str, utterances: Sequence[Utterance]) -> Iterator[dict[str, Any]]:
    """
    The sound of each utterance, and of a video its frames, in one pass over the file: no more is held in memory than
    from where the utterance that is cut begins to where it ends.

    Args:
        file: the recording.
        utterances: in the order of their starts, all of which are known.
    """
    info = probe_media(file)
    tracks = {"sound": info.has_audio, "picture": info.has_video}
    clip, sound = (file if there else None for there in (info.has_video, info.has_audio))
    pieces = stream_recording(clip, sound, _SAMPLING_RATE, _FRAME_RATE, longest_side=_LONGEST_SIDE)
    known = {track: 0.0 for track, there in tracks.items() if there}  # up to which second each is read
    chunks: deque[tuple[int, np.ndarray]] = deque()  # with the sample at which each begins
    frames: deque[tuple[float, np.ndarray]] = deque()
    for one in utterances:
        begin, end = one.start or 0.0, one.end or 0.0
        while known and min(known.values()) < end and (piece := next(pieces, None)) is not None:
            known[piece.track] = piece.end
            # Whoever begins later needs nothing from before this one.
            if piece.sound is not None and piece.end > begin:
                chunks.append((round(piece.end * _SAMPLING_RATE) - len(piece.sound), piece.sound))
            if piece.frame is not None and piece.end >= begin:
                frames.append((piece.end, piece.frame))
        while chunks and chunks[0][0] + len(chunks[0][1]) <= begin * _SAMPLING_RATE:
            chunks.popleft()
        while frames and frames[0][0] < begin:
            frames.popleft()
        yield _sound_of(chunks, begin, end) | _frames_of(frames, end)


def _sound_of(chunks: Iterable[tuple[int, np.ndarray]], begin: float, end: float) -> dict[str, Any]:
    first, last = round(begin * _SAMPLING_RATE), round(end * _SAMPLING_RATE)
    parts = [samples[max(0, first - at) : max(0, last - at)] for at, samples in chunks]
    if not sum(map(len, parts)):
        return {}
    return {"audio": {"array": np.concatenate(parts), "sampling_rate": _SAMPLING_RATE}}


def _frames_of(frames: Iterable[tuple[float, np.ndarray]], end: float) -> dict[str, Any]:
    shown = [frame for seconds, frame in frames if seconds < end]
    return {"video": shown} if shown else {}


def _dialogues_of_table(path: Path, encoding: str | None) -> list[Dialogue]:
    rows = table_rows(path, encoding)
    if not rows:
        raise ValueError(f"{path}: holds no turn, expected a row for each.")
    groups: dict[str, list[tuple[Any, Utterance, dict[str, Any]]]] = {}
    for row, place in rows:
        name = path.name if is_absent(row.get("dialogue")) else f"{row['dialogue']}"
        media = {kind: _source(row[kind], path) for kind in _MEDIA if not is_absent(row.get(kind))}
        one = utterance_of_row(row, place)
        one = replace(one, text=None if one.text is None else " ".join(one.text.split()) or None)
        groups.setdefault(name, []).append((_order(row.get("turn"), place), one, media))
    dialogues = []
    for name, turns in groups.items():
        notes: list[str] = []
        order = [number for number, _, _ in turns]
        if None not in order and order != sorted(order):
            turns = sorted(turns, key=lambda turn: turn[0])
            notes.append(f"transcript: the rows of {name} are not in order, and were sorted by their turn")
        dialogues.append(Dialogue(name, [one for _, one, _ in turns], [media for _, _, media in turns], notes=notes))
    return dialogues


def _order(value: Any, place: str) -> float | None:
    if is_absent(value):
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: got the turn {value!r}, expected a number.") from error


def _source(value: Any, table: Path) -> Any:
    """Paths are relative to the table that names them."""
    if not isinstance(value, str) or "://" in value:
        return value
    return str(table.parent / Path(value).expanduser())
