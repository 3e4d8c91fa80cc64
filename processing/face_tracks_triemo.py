"""Which of the faces in a clip is the main one, and where it is in every frame.

Boxes are rows x0, y0, x1, y1 in pixels of the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["follow_main_face"]

_MOST_MISSES = 2  # detections in a row that a face may be missed in and still be the same face
_FARTHEST = 0.7  # of the face's side, how far it may move between two detections
_MOST_GROWTH = 1.8  # how much its side may change between them
_WORTH_SHOWING = 0.25  # of the main face's mean weight, for a face that takes its place after a cut
_STEADY = 0.7  # intersection over union above which a neighbouring frame's box is the same box plus jitter


@dataclass
class _Track:
    frames: list[int] = field(default_factory=list)
    faces: list[np.ndarray] = field(default_factory=list)  # rows of five: box, score

    @property
    def weights(self) -> np.ndarray:
        faces = np.stack(self.faces)
        return (faces[:, 2] - faces[:, 0]) * (faces[:, 3] - faces[:, 1]) * np.maximum(faces[:, 4], 1e-3)


def follow_main_face(detections: Sequence[np.ndarray], looked_at: Sequence[int], num_frames: int) -> np.ndarray:
    """Boxes (num_frames, 4) of the main face, float64, rows of NaN where it is not seen.

    Detections are linked into tracks by place and size. The main face is the track with the greatest sum over frames
    of area times score: large, sure and there most of the time. Before and after it, tracks that do not run beside it
    are taken too if they are not much weaker: after a cut of the film the speaker is often seen from elsewhere. Inside
    a track, frames without a detection (missed, or not looked at) get a box interpolated in time.

    Args:
        detections: for each frame looked at, an array (faces, 5) of box and score.
        looked_at: those frames' indices, ascending.
        num_frames: length of the clip.
    """
    boxes = np.full((num_frames, 4), np.nan)
    tracks = _link(detections, looked_at)
    if not tracks:
        return boxes
    tracks.sort(key=lambda track: -track.weights.sum())
    least = _WORTH_SHOWING * tracks[0].weights.mean()
    taken = np.zeros(num_frames, dtype=bool)
    for track in tracks:
        first, last = track.frames[0], track.frames[-1]
        if taken[first : last + 1].any() or track.weights.mean() < least:
            continue
        taken[first : last + 1] = True
        inside = np.arange(first, last + 1)
        faces = np.stack(track.faces)
        filled = np.stack([np.interp(inside, track.frames, faces[:, side]) for side in range(4)], axis=1)
        boxes[first : last + 1] = _steadied(filled)
    return boxes


def _link(detections: Sequence[np.ndarray], looked_at: Sequence[int]) -> list[_Track]:
    """Greedy: in each frame the nearest pairs of a track's last box and a new box first."""
    tracks: list[_Track] = []
    alive: list[tuple[int, _Track]] = []  # with the position in `looked_at` where it was last seen
    for position, (frame, faces) in enumerate(zip(looked_at, detections, strict=True)):
        alive = [(seen, track) for seen, track in alive if position - seen <= _MOST_MISSES + 1]
        pairs = [
            (distance, a, b)
            for a, (_, track) in enumerate(alive)
            for b, face in enumerate(faces)
            if (distance := _distance(track.faces[-1], face)) <= _FARTHEST
        ]
        used_tracks: set[int] = set()
        used_faces: set[int] = set()
        for _, a, b in sorted(pairs):
            if a not in used_tracks and b not in used_faces:
                used_tracks.add(a)
                used_faces.add(b)
                alive[a][1].frames.append(frame)
                alive[a][1].faces.append(faces[b])
                alive[a] = (position, alive[a][1])
        for b, face in enumerate(faces):
            if b not in used_faces:
                track = _Track([frame], [face])
                tracks.append(track)
                alive.append((position, track))
    return tracks


def _distance(before: np.ndarray, now: np.ndarray) -> float:
    """Between two boxes' centres, in sides of the mean box; infinite if the sizes are too different."""
    sides = [float(np.sqrt((face[2] - face[0]) * (face[3] - face[1]))) for face in (before, now)]
    if max(sides) > _MOST_GROWTH * min(sides):
        return float("inf")
    offset = (before[:2] + before[2:4] - now[:2] - now[2:4]) / 2
    return float(np.hypot(*offset)) * 2 / sum(sides)


def _steadied(boxes: np.ndarray) -> np.ndarray:
    """Averages each box with the neighbours that nearly coincide with it (weights 1, 2, 1), against jitter; where the
    head moves, boxes overlap less and stay as they are."""
    if len(boxes) < 2:
        return boxes
    before, after = boxes[:-1], boxes[1:]
    corner, far = np.maximum(before[:, :2], after[:, :2]), np.minimum(before[:, 2:], after[:, 2:])
    shared = np.clip(far - corner, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    steady = (shared > _STEADY * (areas[:-1] + areas[1:] - shared)).astype(float)[:, None]
    total, weight = 2 * boxes, np.full((len(boxes), 1), 2.0)
    total[1:] += steady * before
    weight[1:] += steady
    total[:-1] += steady * after
    weight[:-1] += steady
    return total / weight
