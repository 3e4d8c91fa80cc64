"""A recording as a timeline: what is read in each of its windows, of each person, and the moments that stand out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from triemo.serving.onnx.processing.recordings_triemo import recording_seconds
from triemo.serving.onnx.processing.windows_triemo import joined_notes
from triemo.serving.timeline.transcripts import Utterance, read_transcript

__all__ = [
    "Moment",
    "labels_of",
    "moments_that_stand_out",
    "notes_of_timeline",
    "read_timeline",
    "seconds_of",
    "spoken",
    "timed_text",
]

LEAST_CHANGE = 0.25  # of the scores (total variation), below which a window does not stand out
MOST_MOMENTS = 8


@dataclass(frozen=True)
class Moment:
    """
    One window of a timeline.

    Args:
        start, end: seconds in the recording.
        person: id of who is read; None where nobody is seen.
        scores: of each label; empty where there is nothing to read.
        modalities: those of text, audio, vision that it was read from.
        loudness: dB of full scale; None without sound.
        text: what is said in it.
        picture: a small one (height, width, 3) uint8; None without picture.
        notes: what the reader noticed.
    """

    start: float
    end: float
    person: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    modalities: Sequence[str] = ()
    loudness: float | None = None
    text: str | None = None
    picture: np.ndarray | None = None
    notes: Sequence[str] = ()

    @property
    def label(self) -> str | None:
        """The best one; None where there is nothing to read."""
        return max(self.scores, key=self.scores.__getitem__, default=None)

    @property
    def confidence(self) -> float | None:
        """The score of the best label."""
        return max(self.scores.values(), default=None)

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "person": self.person,
            "label": self.label,
            "confidence": self.confidence,
            "scores": dict(self.scores),
            "modalities": list(self.modalities),
            "loudness": None if self.loudness is None else round(self.loudness, 1),
            "text": self.text,
            "notes": list(self.notes),
        }


def moment_of(reader: Any, output: Mapping[str, Any]) -> Moment:
    """From one of the pipeline's `read_windows`."""
    window = output["window"]
    (answer,) = reader.postprocess([output], return_timestamps=True, return_notes=True)
    person = next((one["id"] for one in window.people if one["read"]), None)
    by_label = {entry["label"]: entry["score"] for entry in answer["scores"]}
    return Moment(
        window.start,
        window.end,
        person,
        {label: by_label[label] for label in reader.model.config.id2label.values() if label in by_label},
        answer["modalities"],
        window.loudness,
        window.text,
        window.picture,
        [*answer["notes"], *window.about],
    )


def read_timeline(reader: Any, input_: Any, **parameters: Any) -> Iterator[Moment]:
    """
    The windows of a recording, each as soon as it is read.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline.
        input_: as the pipeline takes it.
        parameters: of the pipeline: `chunk_length_s`, `stride_length_s`, `start`, `end`, `people`, ...

    Raises:
        ValueError: as the pipeline's.
    """
    for output in reader.read_windows(input_, **parameters):
        yield moment_of(reader, output)


def seconds_of(source: Any, name: str) -> float:
    """
    How long a recording lasts.

    Raises:
        ValueError: it is a still, or cannot be read.
    """
    seconds = recording_seconds(source)
    if seconds is None:
        raise ValueError(f"{name} is a still; a timeline needs a sound or a video.")
    return seconds


def spoken(transcript: str | Path, seconds: float, notes: list[str]) -> list[dict[str, Any]]:
    """
    What a transcript of a recording of so many seconds says (`timed_text`).

    Raises:
        ValueError: as `read_transcript`'s.
    """
    return timed_text(read_transcript(transcript, seconds=seconds, notes=notes), notes)


def timed_text(utterances: Sequence[Utterance], notes: list[str]) -> list[dict[str, Any]]:
    """Utterances as the pipeline takes words with times; those without are left out, with a note."""
    said = [one for one in utterances if one.text]
    timed = [one for one in said if one.start is not None]
    if len(timed) < len(said):
        notes.append(f"transcript: {len(said) - len(timed)} turns have no time and are left out")
    return [{"text": one.text, "timestamp": (one.start, one.end)} for one in timed]


def notes_of_timeline(moments: Sequence[Moment], name: str) -> list[str]:
    """
    What was noticed in all windows together.

    Raises:
        ValueError: nothing could be read in any.
    """
    notes = joined_notes([moment.notes for moment in moments])
    if not any(moment.scores for moment in moments):
        raise ValueError(f"{name}: nothing could be read from it ({'; '.join(notes)}).")
    return notes


def labels_of(moments: Sequence[Moment]) -> list[str]:
    """All labels, in the order of the classes."""
    return list(next((moment.scores for moment in moments if moment.scores), {}))


def moments_that_stand_out(moments: Sequence[Moment], most: int = MOST_MOMENTS) -> list[Moment]:
    """
    Those whose scores differ most from their own person's mean over the recording (total variation distance, half the
    sum of differences, at least a quarter), in order of time.
    """
    by_person: dict[int | None, list[Moment]] = {}
    for moment in moments:
        if moment.scores:
            by_person.setdefault(moment.person, []).append(moment)
    ranked: list[tuple[float, Moment]] = []
    for own in by_person.values():
        table = np.array([list(moment.scores.values()) for moment in own])
        weights = np.array([moment.end - moment.start for moment in own])
        mean = np.average(table, axis=0, weights=weights)
        ranked += list(zip((np.abs(table - mean).sum(axis=1) / 2).tolist(), own, strict=True))
    chosen = sorted(ranked, key=lambda pair: -pair[0])[:most]
    return sorted((moment for change, moment in chosen if change >= LEAST_CHANGE), key=lambda moment: moment.start)
