"""Windows over a recording: where they begin and end, and what each of them holds.

What the model learned from lasts a few seconds, so that longer material is read in windows. The same cutter is fed by
a file that is decoded as a stream and by a live session, in pieces of any size, and gives the same windows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .media_sources_triemo import fetch, is_media_source
from .media_triemo import is_rated_array
from .people_triemo import FaceTracks, Frame, PeopleChoice, Person, checked_people
from .pictures_triemo import MODEL_FRAME_RATE, Clip
from .presence_triemo import BLOCKS_PER_SECOND, check_text, heard_blocks
from .recordings_triemo import Piece, recording_seconds, stream_recording
from .samples_triemo import has_sound

__all__ = [
    "DEFAULT_CHUNK_SECONDS",
    "Recording",
    "Window",
    "WindowCutter",
    "WindowPlan",
    "Word",
    "is_timed",
    "joined_notes",
    "timed_words",
    "window_plan",
]

DEFAULT_CHUNK_SECONDS = 4.0
_SMALLEST_REST = 1 / 3  # of a window: a shorter rest stays with the window before it
_SHORTEST_CHUNK_SECONDS = 0.5
_PAUSE_SECONDS = 2.2  # of silence: it parts two windows, for what is said is best read from its beginning
# Of silence that stays with what is said before and after it: about what the corpora's own sounds have. With it 55 of
# 56 RAVDESS sounds keep their label when 3 s of silence are put around them, with 0.8 s 47, with 1.2 s 50.
_MARGIN_SECONDS = 1.0
_BIN_SECONDS = 0.1
_BLOCKS_PER_BIN = round(BLOCKS_PER_SECOND * _BIN_SECONDS)
_HEARD_BLOCKS = 3  # of a bin's ten: fewer are a click
_PICTURE_PIXELS = 160  # of the longer side of the picture that stays of a window, at least
_SIDE_FACTOR = 2  # times detection_size, to which frames of a long recording are shrunk when they are decoded
_SECONDS_PER_WORD = 0.4  # of speech, where a word's own time is not known


@dataclass(frozen=True)
class WindowPlan:
    """
    Args:
        chunk: length of a window, seconds.
        left, right: how much of a window's beginning and end its neighbours hold too, seconds.
    """

    chunk: float
    left: float = 0.0
    right: float = 0.0

    @property
    def longest(self) -> float:
        """What is no longer than this is one window, seconds."""
        return self.chunk * (1 + _SMALLEST_REST)

    def frame_rate(self, num_frames: int | None, frame_rate: float | None) -> float:
        """Frames a second (Hz) of a window, by the image processor's fields: `frame_rate`, else its `num_frames` in a
        window."""
        if frame_rate is not None:
            return frame_rate if num_frames is None else min(frame_rate, num_frames / self.chunk)
        return MODEL_FRAME_RATE if num_frames is None else num_frames / self.chunk


def window_plan(chunk_length_s: Any = None, stride_length_s: Any = None) -> WindowPlan:
    """
    The plan that these two, named as in the library's speech recognition, ask for.

    Args:
        chunk_length_s: seconds of a window, 4 by default.
        stride_length_s: seconds that a window shares with each neighbour, one number or (left, right); 0 by default.

    Raises:
        ValueError: no such numbers, or strides that leave nothing of a window.
    """
    chunk = _seconds("chunk_length_s", DEFAULT_CHUNK_SECONDS if chunk_length_s is None else chunk_length_s)
    if chunk < _SHORTEST_CHUNK_SECONDS:
        raise ValueError(f"chunk_length_s must be at least {_SHORTEST_CHUNK_SECONDS} seconds, got {chunk_length_s!r}.")
    strides = 0.0 if stride_length_s is None else stride_length_s
    pair = list(strides) if isinstance(strides, (list, tuple)) else [strides, strides]
    if len(pair) != 2:
        raise ValueError(f"stride_length_s must be one number or (left, right), got {stride_length_s!r}.")
    left, right = (_seconds("stride_length_s", value) for value in pair)
    if left + right > chunk / 2:
        raise ValueError(
            f"stride_length_s must leave half of a window of {chunk:g} seconds, got {left:g} and {right:g} seconds."
        )
    return WindowPlan(chunk, left, right)


def _seconds(field_name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value < float("inf"):
        raise ValueError(f"{field_name} must be a number of seconds from 0, got {value!r}.")
    return float(value)


@dataclass(frozen=True)
class Word:
    """A word, or what cannot be parted, and when it is said, in seconds."""

    text: str
    start: float
    end: float

    @property
    def middle(self) -> float:
        """When it is half said."""
        return (self.start + self.end) / 2


def is_timed(text: Any) -> bool:
    """Whether text comes with times, as `timed_words` takes it."""
    return isinstance(text, Mapping) or isinstance(text, (list, tuple)) and any(isinstance(x, Mapping) for x in text)


def timed_words(text: Any) -> list[Word]:
    """
    Words with their times, spread evenly over the time of the piece of text that they stand in.

    Args:
        text: a list of `{"text", "timestamp": (start, end)}`, as the library's speech recognition gives it, or its
            whole answer, which holds such a list under "chunks". An end of None is reckoned from the words.

    Raises:
        ValueError: an item of another form, or times that run backwards.
    """
    items = text.get("chunks") if isinstance(text, Mapping) else text
    words: list[Word] = []
    for index, item in enumerate(items or []):
        try:
            said, (start, end) = item["text"], item["timestamp"]
            start = float(start)
            parts = said.split()
            end = start + _SECONDS_PER_WORD * len(parts) if end is None else float(end)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(
                f'text: item {index} must be {{"text": ..., "timestamp": (start, end)}} in seconds, got {item!r}.'
            ) from error
        if not start <= end:
            raise ValueError(f"text: item {index} ends at {end:g} s, before it starts at {start:g} s.")
        share = (end - start) / max(1, len(parts))
        words += [Word(part, start + share * i, start + share * (i + 1)) for i, part in enumerate(parts)]
    return words


@dataclass
class Window:
    """
    Args:
        start, end: in the recording, seconds.
        sound: (samples,) float32 of this time; None where there is none, or someone else is heard.
        frames: shown in this time.
        boxes: (frames, 4) of the face that is read, NaN where it is not seen; None to take the frames whole.
        text: what is said in this time.
        people: who is seen, the one that is read first: `id`, `box` (x0, y0, x1, y1 in pixels of the file), `times`
            (first and last second) and whether this window reads them, `read`.
        heard: seconds in which something is heard.
        notes: what the caller should know of it.
        about: what the caller should know of the whole recording; stands in its last window.
        nothing: why there is nothing to read in it, if the reason is known.
        held: seconds in which the person is heard, seen or has words, whichever are most: its weight among others.
        faces: frames in which the face is seen, and frames looked at; None without picture.
        loudness: of the sound, in dB of full scale.
        picture: a small one (height, width, 3) uint8 of its middle.
    """

    start: float
    end: float
    sound: np.ndarray | None = None
    frames: list[Frame] = field(default_factory=list)
    boxes: np.ndarray | None = None
    text: str | None = None
    people: list[dict[str, Any]] = field(default_factory=list)
    heard: float = 0.0
    notes: list[str] = field(default_factory=list)
    about: list[str] = field(default_factory=list)
    nothing: str | None = None
    held: float = 0.0
    faces: tuple[int, int] | None = None
    loudness: float | None = None
    picture: np.ndarray | None = None

    def clip(self, has_more: bool) -> Clip:
        """
        Its frames, as they are made into tensors.

        Args:
            has_more: whether it holds sound or text too; else one frame without a face is taken whole.
        """
        times = np.array([frame.seconds - self.start for frame in self.frames])
        frames = [frame.pixels for frame in self.frames]
        return Clip(frames, times, "absent" if has_more or len(frames) > 1 else "whole", self.boxes)

    def release(self) -> None:
        """Keeps of sound and frames what is told of them, and lets them go."""
        span = self.end - self.start
        seen = 0.0
        if self.frames:
            there = len(self.frames) if self.boxes is None else int((~np.isnan(self.boxes).any(axis=1)).sum())
            seen, self.faces = span * there / len(self.frames), (there, len(self.frames))
            middle = self.frames[len(self.frames) // 2].pixels
            factor = max(1, max(middle.shape[:2]) // _PICTURE_PIXELS)
            self.picture = np.asarray(Image.fromarray(np.ascontiguousarray(middle)).reduce(factor))
        said = min(span, _SECONDS_PER_WORD * len((self.text or "").split()))
        self.held = max(self.heard if self.sound is not None else 0.0, seen, said)
        if self.sound is not None and self.sound.any():
            self.loudness = float(10 * np.log10(np.mean(np.square(self.sound, dtype=np.float64))))
        self.sound, self.frames, self.boxes = None, [], None


class WindowCutter:
    """
    Takes a recording in pieces and gives its windows as soon as they are complete.

    The first window starts at `start` and the last ends with the recording. A window lasts `plan.chunk` seconds; where
    something is heard after a pause, or a pause follows it, it begins or ends in the pause. A rest shorter than a
    third of a window stays with the window before, so that a window is complete only when the recording is known that
    much further; a longer rest begins earlier, to be as long as the others.

    Args:
        plan: how long windows are.
        sampling_rate: of the sound, in Hz.
        tracks: which of "sound" and "picture" will come.
        start: of the recording's part that is read, seconds.
        faces: follows the people in the picture; None to take frames whole.
        people: "main", "all", or the box of a face in pixels of the file.
    """

    def __init__(
        self,
        plan: WindowPlan,
        sampling_rate: int,
        tracks: Iterable[str],
        start: float = 0.0,
        faces: FaceTracks | None = None,
        people: PeopleChoice = "main",
    ) -> None:
        self.plan, self.sampling_rate = plan, sampling_rate
        self.faces, self.people = faces, people
        self.notes: list[str] = []
        self._ends = dict.fromkeys(tracks, start)
        self._origin = self._start = self._break = start
        self._sound = np.zeros(0, dtype=np.float32)  # from `_sound_start` on
        self._sound_start = 0  # samples from the origin
        self._heard = bytearray()  # a bin each, from the origin
        self._loose = np.zeros(0, dtype=np.float32)  # samples that do not fill a bin yet
        self._frames: list[Frame] = []
        self._words: list[Word] = []
        self._late_words = 0

    def push(self, piece: Piece) -> list[Window]:
        """The windows that this piece completes."""
        self._ends[piece.track] = piece.end
        if piece.sound is not None:
            self._sound = np.concatenate([self._sound, piece.sound])
            self._listen(piece.sound)
        if piece.frame is not None:
            frame = Frame(piece.end, piece.frame, piece.scale)
            if self.faces is not None:
                self.faces.add(frame)
            self._frames.append(frame)
        return list(self._complete(min(self._ends.values()), finished=False))

    def add_words(self, words: Sequence[Word]) -> None:
        """Words for windows that are not complete yet; those of earlier windows are counted as lost."""
        late = [word for word in words if word.middle < self._start]
        self._late_words += len(late)
        self._words = sorted([*self._words, *(word for word in words if word not in late)], key=lambda w: w.middle)

    def finish(self) -> list[Window]:
        """The windows that are left where the recording ends."""
        if self.faces is not None:
            self.faces.finish()
        end = max(self._ends.values(), default=self._start)
        windows = list(self._complete(end, finished=True))
        if self._late_words:
            self.notes.append(f"text: {self._late_words} words came after their window was read")
        return windows

    def _listen(self, samples: np.ndarray) -> None:
        size = round(_BIN_SECONDS * self.sampling_rate)
        samples = np.concatenate([self._loose, samples])
        whole = len(samples) // size * size
        for begin in range(0, whole, size):
            blocks = heard_blocks(samples[begin : begin + size], self.sampling_rate)
            self._heard.append(int(blocks.sum()) >= _HEARD_BLOCKS)
        self._loose = samples[whole:]

    def _complete(self, known: float, finished: bool) -> Iterator[Window]:
        while known - self._start > 1e-6:
            horizon = self._start + self.plan.longest
            is_last = finished and known <= horizon + 1e-6
            if known < horizon and not finished:
                return
            parted = self._parted(min(horizon, known))
            start, end = self._start, self._start + self.plan.chunk
            if parted is not None:
                end = parted
            elif is_last:
                start, end = max(self._break, min(start, known - self.plan.chunk)), known
            yield from self._cut(start, end, min(horizon, known))
            if parted is not None:
                self._start = self._break = end
            else:
                self._start = end if is_last else end - self.plan.left - self.plan.right
            self._forget(max(self._break, self._start - self.plan.chunk))

    def _parted(self, horizon: float) -> float | None:
        """Where a pause ends the window that begins now; None where none does."""
        if "sound" not in self._ends or not any(self._heard_between(self._start, horizon)):
            return None
        heard = self._heard_between(self._start, horizon)
        onset = heard.index(1) * _BIN_SECONDS
        pause = round(_PAUSE_SECONDS / _BIN_SECONDS)
        if onset >= _PAUSE_SECONDS:
            cut = self._start + onset - _MARGIN_SECONDS
            return cut if cut < self._start + self.plan.chunk else None
        silent = heard.find(bytes(pause), heard.index(1))
        if silent < 0:
            return None
        cut = self._start + silent * _BIN_SECONDS + _MARGIN_SECONDS
        return cut if cut < self._start + self.plan.chunk else None

    def _heard_between(self, start: float, end: float) -> bytes:
        """A byte for each bin, 1 where something is heard; beyond the sound nothing is."""
        first, last = (round((seconds - self._origin) / _BIN_SECONDS) for seconds in (start, end))
        return bytes(self._heard[first:last]).ljust(last - first, b"\0")

    def _cut(self, start: float, end: float, horizon: float) -> Iterator[Window]:
        sound = None
        if "sound" in self._ends:
            rate, before = self.sampling_rate, self._sound_start
            first, last = (round((seconds - self._origin) * rate) - before for seconds in (start, end))
            sound = self._sound[max(0, first) : max(0, last)].copy()
        frames = [frame for frame in self._frames if start <= frame.seconds < end]
        text = " ".join(word.text for word in self._words if start <= word.middle < end) or None
        window = Window(start, end, sound if sound is not None and len(sound) else None, frames, text=text)
        window.heard = sum(self._heard_between(start, end)) * _BIN_SECONDS
        if self.faces is None or not frames:
            yield window
            return
        window.notes += self.faces.notes
        found = self.faces.people(frames, horizon, _loudness(window, self.sampling_rate))
        if self.people == "all" and len(found) > 1:
            for index, person in enumerate(found):
                one = window if index == 0 else Window(start, end, frames=frames)
                _give(one, [person], [person])
                yield one
            return
        _give(window, found, self.faces.read_by(found, self.people))
        yield window

    def _forget(self, seconds: float) -> None:
        drop = round((seconds - self._origin) * self.sampling_rate) - self._sound_start
        if drop > 0:
            drop = min(drop, len(self._sound))
            self._sound, self._sound_start = self._sound[drop:], self._sound_start + drop
        self._frames = [frame for frame in self._frames if frame.seconds >= seconds]
        self._words = [word for word in self._words if word.middle >= seconds]
        if self.faces is not None:
            self.faces.forget(seconds)


def _give(window: Window, found: Sequence[Person], read: Sequence[Person]) -> None:
    """Who is seen in a window and who of them is read."""
    boxes = np.full((len(window.frames), 4), np.nan)
    for person in read:
        boxes[person.seen] = person.boxes[person.seen]
    window.boxes = boxes
    window.people = [
        {
            "id": person.number,
            "box": person.box,
            "times": person.times,
            "read": any(person is one for one in read),
        }
        for person in found
    ]
    out = [person for person in found if all(person is not one for one in read)]
    if out:
        window.notes.append(
            f"vision: {len(found)} people were seen and {len(read)} read; the others are left out (people='all')"
        )


def _loudness(window: Window, sampling_rate: int) -> np.ndarray | None:
    """(frames,) root mean square of the sound around each frame."""
    if window.sound is None:
        return None
    half = round(sampling_rate / 8)
    centres = [round((frame.seconds - window.start) * sampling_rate) for frame in window.frames]
    parts = [window.sound[max(0, centre - half) : centre + half] for centre in centres]
    return np.array([float(np.sqrt(np.mean(np.square(part)))) if len(part) else 0.0 for part in parts])


@dataclass
class Recording:
    """
    What is to be read in windows: one sample, or a part of it.

    Args:
        given: any of `text`, `audio`, `videos`, `images`, in any form that the processor takes.
        sound: where the sound comes from; None where there is none.
        seconds: how long it lasts; 0 for what does not last.
        start, end: the part to read, seconds.
    """

    given: dict[str, Any]
    sound: Any
    seconds: float
    start: float = 0.0
    end: float | None = None

    @classmethod
    def of(
        cls, given: Mapping[str, Any], sampling_rate: int, start: Any, end: Any, use_sound_track: bool
    ) -> "Recording":
        """
        Args:
            given: as above.
            sampling_rate: of sound given as an array that states none, in Hz.
            start, end: seconds; None reads to the end.
            use_sound_track: whether the sound of a video counts.

        Raises:
            ValueError: a part that is none, or media that cannot be read.
        """
        for name, value in (("start", start), ("end", end)):
            if not (name == "end" and value is None):
                _seconds(name, value)
        if end is not None and end <= start:
            raise ValueError(f"end must lie after start, got {end:g} and {start:g} seconds.")
        given = {name: fetch(value) if name in ("videos", "audio") else value for name, value in given.items()}
        clip, sound = given.get("videos"), given.get("audio")
        lengths = [recording_seconds(medium, sampling_rate) for medium in (clip, sound) if medium is not None]
        seconds = max((length for length in lengths if length is not None), default=0.0)
        if start and start >= seconds:
            raise ValueError(f"start must lie within the recording of {seconds:.2f} seconds, got {start:g}.")
        if sound is None and use_sound_track and has_sound(clip):
            sound = clip
        stated = is_media_source(sound) or isinstance(sound, Mapping) or is_rated_array(sound)
        if sound is not None and not stated and not hasattr(sound, "get_all_samples"):
            sound = {"array": sound, "sampling_rate": sampling_rate}
        return cls(given, sound, seconds, float(start), None if end is None else float(end))

    def fits(self, plan: WindowPlan, people: Any) -> bool:
        """Whether it is read in one piece. Raises ValueError for `people` that cannot be."""
        is_whole = self.start == 0 and self.end is None
        return checked_people(people) == "main" and is_whole and self.seconds <= plan.longest

    @property
    def tracks(self) -> list[str]:
        """Which of "sound" and "picture" it has."""
        there = {"sound": self.sound, "picture": self.given.get("videos")}
        return [name for name, medium in there.items() if medium is not None]

    @property
    def plain_text(self) -> Any:
        """The words without their times."""
        text = self.given.get("text")
        return " ".join(word.text for word in timed_words(text)) if is_timed(text) else text

    def place_words(self, cutter: WindowCutter, fits: Callable[[str], bool]) -> str | None:
        """
        Puts the words into their windows; returns text that goes to all of them.

        Args:
            cutter: that cuts it.
            fits: whether a text is short enough for the model.
        """
        text = self.given.get("text")
        if text is None:
            return None
        if not is_timed(text):
            check_text(text, 0)
            if fits(text):
                return text
            cutter.notes.append("text: it has no times, so its words were spread evenly over the recording")
            last = self.seconds if self.end is None else min(self.seconds, self.end)
            text = [{"text": text, "timestamp": (self.start, last)}]
        cutter.add_words(timed_words(text))
        return None

    def windows(self, cutter: WindowCutter, frame_rate: float, detection_size: int) -> Iterator[Window]:
        """
        Its windows, decoded on the way.

        Args:
            cutter: that cuts it.
            frame_rate: of the frames, in Hz.
            detection_size: pixels to which the longer side is shrunk where faces are looked for.

        Raises:
            ValueError: a still beside it, or media that cannot be read.
        """
        if self.given.get("images") is not None:
            raise ValueError("a still and a recording longer than a window cannot be read together; give one of them.")
        rate, clip = cutter.sampling_rate, self.given.get("videos")
        side = _SIDE_FACTOR * detection_size
        for piece in stream_recording(clip, self.sound, rate, frame_rate, self.start, self.end, side, cutter.notes):
            yield from cutter.push(piece)
        rest = cutter.finish()
        if rest:
            rest[-1].about += cutter.notes
        yield from rest


def joined_notes(notes: Iterable[Sequence[str]]) -> list[str]:
    """The notes of several windows as those of one input: of each kind the first, and in how many windows it is."""
    first: dict[str, str] = {}
    counts: dict[str, int] = {}
    total = 0
    for said in notes:
        total += 1
        for kind, note in {_kind(note): note for note in said}.items():
            first.setdefault(kind, note)
            counts[kind] = counts.get(kind, 0) + 1
    if total <= 1:
        return list(first.values())
    return [f"{note} (in {counts[kind]} of {total} windows)" for kind, note in first.items()]


def _kind(note: str) -> str:
    return "".join(character for character in note if not character.isdigit() and character != ".")
