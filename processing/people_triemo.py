"""Who is in the picture: faces tracked over a recording, and of each window the person who is read.

Boxes are x0, y0, x1, y1 in pixels of the frame; times are seconds. Nothing here looks further ahead than the frames
that it is given, so that a live session finds the same people as a file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .faces_triemo import FARTHEST, MOST_MISSES, WORTH_SHOWING, bordered, checked_faces, face_distance
from .pictures_triemo import GetDetector

__all__ = ["FaceTracks", "Frame", "PeopleChoice", "Person", "checked_people", "overlap"]

PeopleChoice = str | tuple[float, float, float, float]

_DETECTIONS_PER_SECOND = 1.0  # between them a box is interpolated
_LARGER = (2,)  # times detection_size, at which small faces are looked for where none was found
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 4.0, 64.0  # between two such dear looks in vain
_SAME_BOX = 0.3  # intersection over union from which a face is the one in the box that the caller gave
_OFF_CENTRE = 0.5  # of its weight, which a face at the picture's edge loses
_STILL = 0.25  # of its weight, which a face keeps whose mouth does not move
_MOUTH_PIXELS = 16


@dataclass
class Frame:
    """A frame at its time; `scale` is the file's sides over the frame's."""

    seconds: float
    pixels: np.ndarray
    scale: float = 1.0


@dataclass
class Person:
    """
    Args:
        number: the same in all windows in which the face was followed without a long break.
        box: in the middle of the window, in pixels of the file.
        times: first and last second of the window in which the face is seen.
        boxes: (frames, 4) of the window's frames in their pixels, NaN where it is not seen.
        weight: what speaks for reading this person.
    """

    number: int
    box: list[int]
    times: tuple[float, float]
    boxes: np.ndarray
    weight: float

    @property
    def seen(self) -> np.ndarray:
        """(frames,) bool."""
        return ~np.isnan(self.boxes).any(axis=1)


@dataclass
class _Track:
    number: int
    times: list[float] = field(default_factory=list)
    faces: list[np.ndarray] = field(default_factory=list)  # rows of five: box, score
    looks: list[int] = field(default_factory=list)  # which look it was each time

    def boxes_at(self, seconds: np.ndarray, horizon: float) -> np.ndarray:
        """(times, 4), between two looks in proportion; NaN before the first and after the last up to `horizon`."""
        known = int(np.searchsorted(self.times, horizon, side="right"))
        boxes = np.full((len(seconds), 4), np.nan)
        if not known:
            return boxes
        faces = np.stack(self.faces[:known])
        inside = (seconds >= self.times[0]) & (seconds <= self.times[known - 1])
        for side in range(4):
            boxes[inside, side] = np.interp(seconds[inside], self.times[:known], faces[:, side])
        return boxes

    def score(self, horizon: float) -> float:
        known = int(np.searchsorted(self.times, horizon, side="right"))
        return float(np.mean([face[4] for face in self.faces[:known]]))


def checked_people(people: Any) -> PeopleChoice:
    """Returns `people` if it is "main", "all" or a box of four numbers; ValueError otherwise."""
    if people in ("main", "all") and isinstance(people, str):
        return people
    if isinstance(people, (list, tuple)) and len(people) == 4 and all(isinstance(v, (int, float)) for v in people):
        x0, y0, x1, y1 = map(float, people)
        if x0 < x1 and y0 < y1:
            return x0, y0, x1, y1
    raise ValueError(f"people must be 'main', 'all' or a box x0, y0, x1, y1 in pixels of the picture, got {people!r}.")


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    sides = [min(one[2 + axis], other[2 + axis]) - max(one[axis], other[axis]) for axis in (0, 1)]
    shared = max(0.0, sides[0]) * max(0.0, sides[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(shared / (sum(areas) - shared))


class FaceTracks:
    """
    The faces of a recording, looked for about once a second and linked by place and size.

    Args:
        settings: the image processor's fields.
        get_detector: the detector of such fields.
        frame_rate: of the frames that will come, in Hz.
    """

    def __init__(self, settings: Mapping[str, Any], get_detector: GetDetector, frame_rate: float) -> None:
        self.settings, self._get_detector = settings, get_detector
        self._every = max(1, round(frame_rate / _DETECTIONS_PER_SECOND))
        self._size = settings["detection_size"]
        self._count = self._looks = 0
        self._next_number = 1
        self._alive: list[_Track] = []
        self._all: list[_Track] = []
        self._waits, self._dear_look = _FIRST_WAIT_SECONDS, 0.0
        self._quarter_turns = 0
        self._chosen: set[int] = set()
        self._unseen: Frame | None = None
        self.notes: list[str] = []

    def add(self, frame: Frame) -> None:
        """Takes the next frame in; it is turned upright in place where the recording lies on its side."""
        if self._quarter_turns:
            frame.pixels = np.rot90(frame.pixels, self._quarter_turns)
        self._unseen = frame
        if self._count % self._every == 0:
            self._look(frame)
        self._count += 1

    def finish(self) -> None:
        """The last frame is looked at too, so that no face ends before it."""
        if self._unseen is not None:
            self._look(self._unseen)

    def forget(self, seconds: float) -> None:
        """Drops what ended before."""
        self._all = [track for track in self._all if track.times[-1] >= seconds or track in self._alive]

    def people(self, frames: Sequence[Frame], horizon: float, loudness: np.ndarray | None) -> list[Person]:
        """
        Who is seen in some frames, the one to read first.

        Args:
            frames: of one window.
            horizon: what was looked at later than this does not count.
            loudness: (frames,) of the sound at each frame, where there is one.
        """
        seconds = np.array([frame.seconds for frame in frames])
        found = []
        for track in self._all:
            boxes = track.boxes_at(seconds, horizon)
            seen = ~np.isnan(boxes).any(axis=1)
            if seen.any():
                middle = int(np.flatnonzero(seen)[seen.sum() // 2])
                box = (boxes[middle] * frames[middle].scale).round().astype(int).tolist()
                times = (float(seconds[seen][0]), float(seconds[seen][-1]))
                weight = self._presence(boxes[seen], frames) * track.score(horizon)
                found.append(Person(track.number, box, times, boxes, weight))
        if len(found) > 1:
            moved = np.array([_mouth_movement(person, frames, loudness) for person in found])
            if moved.max() > 0:
                for person, movement in zip(found, moved / moved.max(), strict=True):
                    person.weight *= _STILL + (1 - _STILL) * float(movement)
        return sorted(found, key=lambda person: -person.weight)

    def read_by(self, found: list[Person], choice: PeopleChoice) -> list[Person]:
        """Those of `people` who are read as one: the main person and, after a cut of the film, who takes the place; or
        who is in the box that the caller gave."""
        if not isinstance(choice, str):
            for person in found:
                if overlap(person.box, choice) >= _SAME_BOX:
                    self._chosen.add(person.number)
            found = [person for person in found if person.number in self._chosen]
        taken: list[Person] = []
        for person in found:
            beside = any((person.seen & other.seen).any() for other in taken)
            weak = taken and person.weight / person.seen.sum() < WORTH_SHOWING * taken[0].weight / taken[0].seen.sum()
            if not beside and not weak:
                taken.append(person)
        return taken

    def _presence(self, boxes: np.ndarray, frames: Sequence[Frame]) -> float:
        """Sum over frames of the share of the picture that a face takes, less towards the edge."""
        height, width = frames[0].pixels.shape[:2]
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (height * width)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / [width, height] - 0.5
        return float((areas * (1 - _OFF_CENTRE * np.clip(2 * np.abs(centres[:, 0]), 0, 1))).sum())

    def _look(self, frame: Frame) -> None:
        self._looks += 1
        faces = self._detected(frame.pixels, self._size)
        self._alive = [track for track in self._alive if self._looks - track.looks[-1] <= MOST_MISSES + 1]
        if not len(faces) and not self._alive and frame.seconds >= self._dear_look:
            faces = self._look_harder(frame)
        pairs = sorted(
            (distance, a, b)
            for a, track in enumerate(self._alive)
            for b, face in enumerate(faces)
            if track.times[-1] < frame.seconds and (distance := face_distance(track.faces[-1], face)) <= FARTHEST
        )
        linked: dict[int, int] = {}
        for _, a, b in pairs:
            if a not in linked.values() and b not in linked:
                linked[b] = a
        tracks = list(self._alive)
        for b, face in enumerate(faces):
            if b in linked:
                track = tracks[linked[b]]
            elif any(track.times[-1] == frame.seconds for track in tracks):
                continue  # the last frame, looked at already
            else:
                track = _Track(self._next_number)
                self._next_number += 1
                self._alive.append(track)
                self._all.append(track)
            track.times.append(frame.seconds)
            track.faces.append(face)
            track.looks.append(self._looks)

    def _look_harder(self, frame: Frame) -> np.ndarray:
        """With a border, at a larger size and on its side; after a look in vain the next one waits twice as long."""
        wide, scale, border = bordered(frame.pixels)
        faces = self._detected(wide, self._size)
        if len(faces):
            return (faces - np.array([border] * 4 + [0])) / np.array([scale] * 4 + [1])
        size = self.settings["detection_size"]
        for factor in _LARGER:
            if size * factor <= max(frame.pixels.shape[:2]) and self._size != size * factor:
                faces = self._detected(frame.pixels, size * factor)
                if len(faces):
                    self._size = size * factor
                    self.notes.append(f"vision: the faces are small and were looked for at {self._size} pixels")
                    return faces
        for turns in (1, 3):
            turned = np.rot90(frame.pixels, turns)
            faces = self._detected(turned, self._size)
            if len(faces):
                self._quarter_turns, frame.pixels = turns, turned
                self.notes.append(f"vision: the picture lies on its side and was turned by {90 * turns} degrees")
                return faces
        self._dear_look = frame.seconds + self._waits
        self._waits = min(2 * self._waits, _LONGEST_WAIT_SECONDS)
        return faces

    def _detected(self, pixels: np.ndarray, size: int) -> np.ndarray:
        detector = self._get_detector({**self.settings, "detection_size": size})
        if detector is None:
            return np.zeros((0, 5))
        return checked_faces(detector, [np.ascontiguousarray(pixels)])[0]


def _mouth_movement(person: Person, frames: Sequence[Frame], loudness: np.ndarray | None) -> float:
    """How much the lower half of a face changes from frame to frame beyond what the upper does, where it is loud."""
    seen = person.seen
    movement, weight = 0.0, 0.0
    before: np.ndarray | None = None
    for index, frame in enumerate(frames):
        if not seen[index]:
            before = None
            continue
        now = _small_face(frame.pixels, person.boxes[index])
        if before is not None:
            change = np.abs(now - before).mean(axis=1)
            half = len(change) // 2
            loud = 1.0 if loudness is None else float(loudness[index])
            movement += loud * max(0.0, float(change[half:].mean() - change[:half].mean()))
            weight += loud
        before = now
    return movement / weight if weight else 0.0


def _small_face(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    x0, y0 = np.clip(box[:2].astype(int), 0, [width - 1, height - 1])
    x1, y1 = np.clip(np.ceil(box[2:]).astype(int), [x0 + 1, y0 + 1], [width, height])
    image = Image.fromarray(np.ascontiguousarray(pixels[y0:y1, x0:x1])).convert("L")
    small = np.asarray(image.resize((_MOUTH_PIXELS, _MOUTH_PIXELS), Image.Resampling.BILINEAR), dtype=np.float32)
    return small - small[: _MOUTH_PIXELS // 2].mean()  # light that changes on the whole face is no movement
