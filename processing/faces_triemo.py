"""From frames to the crop of the one face that matters: detectors, the main face of a clip, the square cut around it.

Boxes are rows x0, y0, x1, y1 in pixels of the frame; frames are (height, width, 3) uint8 RGB.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

__all__ = [
    "DEFAULT_FACE_MARGIN",
    "DEFAULT_FACE_VERTICAL_OFFSET",
    "FARTHEST",
    "FaceDetector",
    "HaarFaceDetector",
    "MOST_MISSES",
    "WORTH_SHOWING",
    "YuNetFaceDetector",
    "bordered",
    "check_face_detector",
    "checked_faces",
    "crop_square",
    "cut_crop",
    "face_distance",
    "find_faces",
    "follow_main_face",
    "locate_main_face",
    "resolve_face_detector",
]

# Where a FER2013 picture lies around the face in it, so that crops of film look like the pictures that train the face
# encoder: over 400 training images, enlarged and bordered so that MTCNN finds the face (88 %), the picture's side is
# 1.07 times the geometric mean of the box's sides (quartiles 0.99 and 1.18) and its centre lies 0.00 heights below the
# box's (quartiles -0.03 and 0.03). tests/benchmarks/bench_faces.py measures it again.
DEFAULT_FACE_MARGIN = 0.07
DEFAULT_FACE_VERTICAL_OFFSET = 0.0

# Measured on the same pictures, Haar's squares are larger than MTCNN's boxes: 1.01 of them make a picture's side.
_HAAR_TO_MTCNN = 1.01 / 1.07
_RETRY_BORDER = 0.5  # of the frame's longer side, on every side
_LARGEST_BORDERED = 1920  # pixels: longer side of a frame before its border
_BORDERED_AT_ONCE = 8

MOST_MISSES = 2  # detections in a row that a face may be missed in and still be the same face
FARTHEST = 0.7  # of the face's side, how far it may move between two detections
_MOST_GROWTH = 1.8  # how much its side may change between them
WORTH_SHOWING = 0.25  # of the main face's mean weight, for a face that takes its place after a cut
_STEADY = 0.7  # intersection over union above which a neighbouring frame's box is the same box plus jitter


class FaceDetector(Protocol):
    """Any callable that finds the faces of frames."""

    def __call__(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        """Frames (height, width, 3) uint8 RGB -> for each an array (faces, 5): x0, y0, x1, y1 in pixels and a score,
        greater is surer."""
        ...


class HaarFaceDetector:
    """The frontal cascade that opencv 4.x carries (Viola and Jones, 2001). Weaker than MTCNN: misses profiles."""

    def __init__(self, detection_size: int = 480, min_face_size: int = 24) -> None:
        cv2 = _opencv()
        if not hasattr(cv2, "data") or not hasattr(cv2, "CascadeClassifier"):
            raise ValueError(
                "face_detector='haar' needs opencv-python-headless 4.x, whose wheel has the cascades, got opencv "
                f"{cv2.__version__}"
            )
        self.detection_size, self.min_face_size = detection_size, min_face_size
        self._cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")

    def __call__(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        cv2 = _opencv()
        results = []
        for frame in frames:
            gray, scale = _shrunk(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY), self.detection_size)
            found, _, scores = self._cascade.detectMultiScale3(
                gray, 1.1, 5, minSize=(self.min_face_size, self.min_face_size), outputRejectLevels=True
            )
            if len(found) == 0:
                results.append(np.zeros((0, 5), dtype=np.float32))
                continue
            corner, side = found[:, :2], found[:, 2:]
            centre, half = corner + side / 2, side * (_HAAR_TO_MTCNN / 2)
            boxes = np.concatenate([centre - half, centre + half], axis=1) / scale
            results.append(np.concatenate([boxes, np.reshape(scores, (-1, 1))], axis=1).astype(np.float32))
        return results


class YuNetFaceDetector:
    """YuNet (Wu, Peng and Yu, 2023) from the user's own ONNX file, run by opencv's `FaceDetectorYN`."""

    def __init__(self, path: str | os.PathLike, detection_size: int = 480, score_threshold: float = 0.6) -> None:
        cv2 = _opencv()
        self.detection_size = detection_size
        try:
            self._network = cv2.FaceDetectorYN.create(os.fspath(path), "", (320, 320), score_threshold)
        except cv2.error as error:
            raise ValueError(f"face_detector: {os.fspath(path)!r} is not a YuNet ONNX file: {error}") from error

    def __call__(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        cv2 = _opencv()
        results = []
        for frame in frames:
            image, scale = _shrunk(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2BGR), self.detection_size)
            self._network.setInputSize((image.shape[1], image.shape[0]))
            _, found = self._network.detect(image)
            found = np.zeros((0, 15), dtype=np.float32) if found is None else found
            boxes = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:4]], axis=1) / scale
            results.append(np.concatenate([boxes, found[:, -1:]], axis=1).astype(np.float32))
        return results


def check_face_detector(kind: Any) -> Any:
    """Returns `kind` if it is one that `resolve_face_detector` knows; ValueError otherwise."""
    if kind is None or callable(kind) or (isinstance(kind, str) and kind in ("auto", "mtcnn", "haar")):
        return kind
    if isinstance(kind, (str, os.PathLike)) and os.fspath(kind).endswith(".onnx"):
        if not os.path.isfile(kind):
            raise ValueError(f"face_detector: no such file: {os.fspath(kind)!r}; expected a YuNet ONNX file")
        return os.fspath(kind)
    raise ValueError(
        "face_detector must be 'auto', 'mtcnn', 'haar', the path of a YuNet .onnx file, a callable or None, got "
        f"{kind!r}"
    )


def resolve_face_detector(
    kind: Any,
    weights: Mapping[str, Any] | None = None,
    detection_size: int = 480,
    min_face_size: int = 24,
) -> FaceDetector | None:
    """The detector that `kind` names.

    Args:
        kind: "auto" (MTCNN if there are weights, else opencv's Haar cascade), "mtcnn", "haar", the path of a YuNet
            `.onnx` file, a callable (returned as it is) or None (no detector).
        weights: MTCNN's, from `load_mtcnn_weights`.
        detection_size: longer side in pixels that frames are shrunk to before detection.
        min_face_size: smallest face side looked for, in pixels of the shrunk frame (YuNet ignores it).

    Raises ValueError for an unknown kind and for one whose weights, file or package are missing.
    """
    kind = check_face_detector(kind)
    if kind is None or callable(kind):
        return kind
    if kind == "mtcnn" or (kind == "auto" and weights is not None):
        if weights is None:
            raise ValueError(
                "face_detector='mtcnn' needs weights: load a checkpoint that has face_detector.safetensors beside it, "
                "or pass face_detector_weights=<path of that file>"
            )
        from .mtcnn_triemo import MtcnnFaceDetector  # here only: it imports torch

        return MtcnnFaceDetector(weights, detection_size, min_face_size)
    if kind in ("auto", "haar"):
        return HaarFaceDetector(detection_size, min_face_size)
    return YuNetFaceDetector(kind, detection_size)


def find_faces(
    detector: FaceDetector, frames: Sequence[np.ndarray], detect_every: int = 1
) -> tuple[list[np.ndarray], list[int]]:
    """All faces of a clip: for each frame looked at an array (faces, 5) of box and score, and those frames' indices.

    Detection runs on every `detect_every`-th frame and the last; a frame in which nothing is found is tried once more
    with a border around it, since a face that fills the frame is hard to find.
    """
    looked_at = sorted({*range(0, len(frames), detect_every), len(frames) - 1})
    found = checked_faces(detector, [frames[i] for i in looked_at])
    empty = [i for i, faces in enumerate(found) if len(faces) == 0]
    for start in range(0, len(empty), _BORDERED_AT_ONCE):
        some = empty[start : start + _BORDERED_AT_ONCE]
        wide, scales, borders = zip(*(bordered(frames[looked_at[i]]) for i in some), strict=True)
        for i, scale, border, faces in zip(some, scales, borders, checked_faces(detector, list(wide)), strict=True):
            found[i] = (faces - np.array([border] * 4 + [0])) / np.array([scale] * 4 + [1])
    return found, looked_at


def bordered(frame: np.ndarray) -> tuple[np.ndarray, float, int]:
    """A frame with its edge repeated around it, the scale it was shrunk by before, and the border's width."""
    scale = min(1.0, _LARGEST_BORDERED / max(frame.shape[:2]))
    if scale < 1.0:  # a border around a large picture is larger still, around a thin one by far
        size = [max(1, round(side * scale)) for side in (frame.shape[1], frame.shape[0])]
        frame = np.asarray(Image.fromarray(frame).resize((size[0], size[1]), Image.Resampling.BILINEAR))
    border = round(max(frame.shape[:2]) * _RETRY_BORDER)
    return np.pad(frame, ((border, border), (border, border), (0, 0)), mode="edge"), scale, border


def locate_main_face(detector: FaceDetector, frames: Sequence[np.ndarray], detect_every: int = 1) -> np.ndarray:
    """Boxes (frames, 4) of the main face of a clip, float64, rows of NaN where it is not seen: `find_faces`, of which
    `follow_main_face` picks one."""
    return follow_main_face(*find_faces(detector, frames, detect_every), len(frames))


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
    least = WORTH_SHOWING * tracks[0].weights.mean()
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
        alive = [(seen, track) for seen, track in alive if position - seen <= MOST_MISSES + 1]
        pairs = [
            (distance, a, b)
            for a, (_, track) in enumerate(alive)
            for b, face in enumerate(faces)
            if (distance := face_distance(track.faces[-1], face)) <= FARTHEST
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


def face_distance(before: np.ndarray, now: np.ndarray) -> float:
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


def crop_square(
    box: np.ndarray, width: int, height: int, margin: float = DEFAULT_FACE_MARGIN, vertical_offset: float = 0.0
) -> np.ndarray:
    """The square cut around a face, x0, y0, x1, y1 in pixels, float64.

    Its side is (1 + margin) times the geometric mean of the box's sides; its centre lies `vertical_offset` box heights
    below the box's. It is shifted into the frame of `width` by `height` as far as it fits; a square larger than the
    frame reaches over the border.
    """
    x0, y0, x1, y1 = np.asarray(box, dtype=np.float64)[:4]
    side = (1 + margin) * np.sqrt((x1 - x0) * (y1 - y0))
    left = (x0 + x1 - side) / 2
    top = (y0 + y1 - side) / 2 + vertical_offset * (y1 - y0)
    left = np.clip(left, min(0.0, width - side), max(0.0, width - side))
    top = np.clip(top, min(0.0, height - side), max(0.0, height - side))
    return np.array([left, top, left + side, top + side])


def cut_crop(frame: np.ndarray, crop: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Cuts `crop` out of a frame and resizes it to `size` (height, width), bilinear with antialiasing: (height,
    width, 3) uint8. What lies over the border repeats the border's pixels. None keeps whole pixels, unresized."""
    height, width = frame.shape[:2]
    if size is None:
        crop = np.round(crop)
    x0, y0 = np.floor(crop[:2]).astype(int)
    x1, y1 = np.ceil(crop[2:]).astype(int)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        piece = frame[y0:y1, x0:x1]
    else:
        rows = np.clip(np.arange(y0, y1), 0, height - 1)
        columns = np.clip(np.arange(x0, x1), 0, width - 1)
        piece = frame[np.ix_(rows, columns)]
    if size is None:
        return np.ascontiguousarray(piece)
    left, top, right, bottom = (float(v) for v in np.asarray(crop) - np.array([x0, y0, x0, y0]))
    image = Image.fromarray(np.ascontiguousarray(piece))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))


def checked_faces(detector: FaceDetector, frames: list[np.ndarray]) -> list[np.ndarray]:
    """What a detector finds, float64 (faces, 5) a frame without empty boxes; ValueError unless it is that."""
    found = detector(frames)
    if len(found) != len(frames):
        raise ValueError(f"face_detector must return one array a frame: got {len(found)} for {len(frames)} frames")
    checked = []
    for faces in found:
        faces = np.asarray(faces, dtype=np.float64)
        faces = faces.reshape(0, 5) if faces.size == 0 else faces
        if faces.ndim != 2 or faces.shape[1] != 5 or not np.isfinite(faces).all():
            raise ValueError(
                f"face_detector must return finite arrays (faces, 5): x0, y0, x1, y1, score; got shape {faces.shape}"
            )
        checked.append(faces[(faces[:, 2] > faces[:, 0]) & (faces[:, 3] > faces[:, 1])])
    return checked


def _shrunk(image: np.ndarray, longer_side: int) -> tuple[np.ndarray, float]:
    """The image with its longer side at most `longer_side` pixels, and the scale it was shrunk by."""
    scale = min(1.0, longer_side / max(image.shape[:2]))
    if scale < 1.0:
        cv2 = _opencv()
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return image, scale


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            "No face detector: install opencv (pip install 'opencv-python-headless<5'), or pass "
            "face_detector_weights=<MTCNN safetensors>, or a callable as face_detector, or face_detector=None for "
            "pictures that are face crops already"
        ) from error
    return cv2
