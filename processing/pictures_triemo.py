"""Pictures and clips, as people pass them, to normalised crops of the main face: the image processor's fields and its
arithmetic, in NumPy and Pillow alone, so that a process without torch can run it too.

Shapes: B clips, F frames of the longest clip, C channels (1 grey or 3), H and W pixels of a crop. `settings` are the
image processor's fields (`checked_image_settings`).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict
from urllib.parse import urlsplit

import numpy as np

from .faces_triemo import (
    DEFAULT_FACE_MARGIN,
    DEFAULT_FACE_VERTICAL_OFFSET,
    FaceDetector,
    check_face_detector,
    crop_square,
    cut_crop,
    find_faces,
    follow_main_face,
)
from .media_images_triemo import load_image
from .media_sources_triemo import is_tensor
from .media_triemo import load_frames

__all__ = [
    "DEFAULT_IMAGE_SETTINGS",
    "Clip",
    "TriemoImagesKwargs",
    "checked_image_settings",
    "face_boxes",
    "picture_arrays",
    "read_clips",
]

_VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .wmv .flv .mpg .mpeg .mts .m2ts .ts .3gp .ogv .gif .y4m".split()
)
MODEL_FRAME_RATE = 4.0  # Hz, as the model assumes for frames without times
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's mode "L"

# What a still without a face plainly is, a face cut out before: squarish, and no larger than data sets have them.
_LARGEST_CROP = 256  # pixels
_SQUAREST = 4 / 3
_LEAST_CONTRAST = 8  # of 255 levels
_LOOKED_AT_AGAIN = 4  # frames of a clip in which nothing was found

GetDetector = Callable[[Mapping[str, Any]], FaceDetector | None]  # of a set of fields


# ----- fields --------------------------------------------------------------------------------------------------------


class TriemoImagesKwargs(TypedDict, total=False):
    """Fields of the image processor.

    Attributes:
        do_detect_faces: find the main face and cut it out; otherwise each frame is taken whole.
        face_detector: "auto" (MTCNN if the checkpoint has its weights, else opencv's Haar cascade), "mtcnn", "haar",
            the path of a YuNet `.onnx` file, any callable (frames -> boxes and scores), or None (frames taken whole).
        face_margin: the crop's side is (1 + face_margin) times the geometric mean of the face box's sides.
        face_vertical_offset: how far the crop's centre lies below the box's, in box heights.
        detection_size: frames are shrunk to this longer side in pixels before detection.
        min_face_size: smallest face side looked for, in pixels of the shrunk frame.
            A picture with a shorter side than that holds no face.
        assume_cropped_below: frames whose longer side is at most this many pixels are face crops already.
        detect_every: detection runs on every so many frames of a clip; boxes between are interpolated.
        do_resize: resize the crops to `size`, bilinear with antialiasing.
        size: height and width of a crop in pixels.
        do_grayscale: one channel of luma (ITU-R BT.601) instead of three of RGB.
        do_rescale: multiply by `rescale_factor`.
        rescale_factor: normally 1 / 255.
        do_normalize: subtract `image_mean`, then divide by `image_std`.
        image_mean: one value, or one a channel.
        image_std: one value, or one a channel.
        num_frames: frames taken from a video file; None for all.
        frame_rate: frames per second taken from a video file, at most `num_frames` of them; None spreads `num_frames`
            over the file.
    """

    do_detect_faces: bool | None
    face_detector: Any
    face_margin: float | None
    face_vertical_offset: float | None
    detection_size: int | None
    min_face_size: int | None
    assume_cropped_below: int | None
    detect_every: int | None
    do_resize: bool | None
    size: Any
    do_grayscale: bool | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: Any
    image_std: Any
    num_frames: int | None
    frame_rate: Any


DEFAULT_IMAGE_SETTINGS: dict[str, Any] = {
    "do_detect_faces": True,
    "face_detector": "auto",
    "face_margin": DEFAULT_FACE_MARGIN,
    "face_vertical_offset": DEFAULT_FACE_VERTICAL_OFFSET,
    "detection_size": 480,
    "min_face_size": 24,
    "assume_cropped_below": 64,
    "detect_every": 1,
    "do_resize": True,
    "size": {"height": 96, "width": 96},
    "do_grayscale": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5],
    "image_std": [0.25],
    "num_frames": 16,
    "frame_rate": None,
}

_MAY_BE_NONE = {"face_detector", "num_frames", "frame_rate"}


def checked_image_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A full set of fields in their plain form. None stands for the default, except where it has a meaning of its own
    (face_detector, num_frames, frame_rate). ValueError names the field that is unknown or out of range."""
    unknown = sorted(set(settings) - set(DEFAULT_IMAGE_SETTINGS))
    if unknown:
        raise ValueError(f"Unknown keyword(s) {unknown}; TriemoImageProcessor knows {sorted(DEFAULT_IMAGE_SETTINGS)}")
    checked = {
        name: default if settings.get(name) is None and name not in _MAY_BE_NONE else settings[name]
        for name, default in DEFAULT_IMAGE_SETTINGS.items()
    }
    for name in ("do_detect_faces", "do_resize", "do_grayscale", "do_rescale", "do_normalize"):
        if not isinstance(checked[name], (bool, np.bool_)):
            raise ValueError(f"{name} must be true or false, got {checked[name]!r}")
        checked[name] = bool(checked[name])
    for name, least in (
        ("detection_size", 24),
        ("min_face_size", 12),
        ("assume_cropped_below", 0),
        ("detect_every", 1),
    ):
        checked[name] = _whole(name, checked[name], least)
    if checked["detection_size"] < checked["min_face_size"]:
        raise ValueError(
            f"detection_size={checked['detection_size']} must be at least min_face_size={checked['min_face_size']}"
        )
    if checked["num_frames"] is not None:
        checked["num_frames"] = _whole("num_frames", checked["num_frames"], 1)
    for name in ("face_margin", "face_vertical_offset", "rescale_factor", "frame_rate"):
        if checked[name] is not None:
            checked[name] = _numbers(name, checked[name])[0]
    if checked["face_margin"] <= -1:
        raise ValueError(f"face_margin must be greater than -1, got {checked['face_margin']}")
    if checked["frame_rate"] is not None and checked["frame_rate"] <= 0:
        raise ValueError(f"frame_rate must be positive (Hz), got {checked['frame_rate']}")
    checked["image_mean"] = _numbers("image_mean", checked["image_mean"])
    checked["image_std"] = _numbers("image_std", checked["image_std"])
    if min(checked["image_std"]) <= 0:
        raise ValueError(f"image_std must be positive, got {checked['image_std']}")
    checked["size"] = _size(checked["size"])
    checked["face_detector"] = check_face_detector(checked["face_detector"])
    return checked


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def _numbers(name: str, value: Any) -> list[float]:
    try:
        values = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numeric, got {value!r}") from error
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite numbers, got {value!r}")
    return [float(v) for v in values]


def _size(value: Any) -> dict[str, int]:
    if isinstance(value, (int, np.integer)):
        value = {"height": value, "width": value}
    try:
        sides = dict(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"size must be a number or height and width, got {value!r}") from error
    if set(sides) != {"height", "width"}:
        raise ValueError(f"size must have height and width, got {value!r}")
    return {side: _whole(f"size[{side!r}]", sides[side], 1) for side in ("height", "width")}


# ----- what people pass ----------------------------------------------------------------------------------------------


@dataclass
class Clip:
    """
    Args:
        frames: (height, width, 3) uint8 RGB, none for a sample without picture.
        times: of each frame in seconds, if known.
        without_face: what it is if no face is found in it: "absent", "whole" (taken whole, as a still is that is all
            there is of a sample), or "crop" (taken whole if it looks like a face crop).
    """

    frames: list[np.ndarray]
    times: np.ndarray | None = None
    without_face: str = "absent"
    boxes: np.ndarray | None = None


def read_clips(
    images: Any,
    times: Sequence | None,
    num_frames: int | None,
    frame_rate: float | None,
    without_face: Sequence[str] | None = None,
) -> list[Clip]:
    """Loads a batch of clips.

    A list of pictures is one clip; a list with a clip (list, rank 4 array, video file, None) among its items is a
    batch. From video files come `num_frames` frames spread evenly, or `frame_rate` a second and at most `num_frames`.

    Raises ValueError for an empty batch or clip, for what cannot be read, and for times that do not match.
    """
    if images is None:
        raise ValueError("images: got None; expected a picture, a clip or a batch of clips")
    batched = _is_batch(images)
    items = list(images) if batched else [images]
    if not items:
        raise ValueError("images: got a batch of no clips; expected at least one")
    clips = [_read_clip(item, num_frames, frame_rate) for item in items]
    for clip, seconds in zip(clips, _times_per_clip(times, len(clips), batched), strict=True):
        if seconds is not None:
            clip.times = _checked_times(seconds, len(clip.frames))
    if without_face is not None:
        for clip, choice in zip(clips, without_face, strict=True):
            clip.without_face = choice
    return clips


def _is_batch(images: Any) -> bool:
    if isinstance(images, np.ndarray) or is_tensor(images):
        return images.ndim == 5
    return isinstance(images, (list, tuple)) and any(_is_clip(item) for item in images)


def _is_clip(item: Any) -> bool:
    if isinstance(item, np.ndarray) or is_tensor(item):
        return item.ndim == 4
    return item is None or isinstance(item, (list, tuple)) or _suffix(item) in _VIDEO_SUFFIXES


def _read_clip(item: Any, num_frames: int | None, frame_rate: float | None) -> Clip:
    if item is None:
        return Clip([])
    if isinstance(item, (list, tuple, np.ndarray)) or is_tensor(item):
        is_still = not isinstance(item, (list, tuple)) and item.ndim in (2, 3)
        return Clip(load_frames(item)[0], without_face="whole" if is_still else "absent")
    if _suffix(item) not in _VIDEO_SUFFIXES:
        try:
            return Clip([np.asarray(load_image(item))], without_face="whole")
        except ValueError:
            if not _is_file(item):
                raise
    # A file whose name does not say what it is, and which is no picture.
    if frame_rate is not None:
        return Clip(*load_frames(item, frame_rate=frame_rate, max_frames=num_frames))
    return Clip(*load_frames(item, num_frames=num_frames))


def _is_file(item: Any) -> bool:
    return isinstance(item, (str, os.PathLike, bytes, bytearray, memoryview, Mapping))


def _suffix(item: Any) -> str:
    """The lower-case suffix of a path, URL or `{"path"}`; empty for anything else."""
    if isinstance(item, Mapping):
        item = item.get("path")
    if not isinstance(item, (str, os.PathLike)):
        return ""
    name = os.fspath(item)
    if isinstance(name, str) and "://" in name:
        name = urlsplit(name).path
    return os.path.splitext(os.fsdecode(name))[1].lower()


def _times_per_clip(times: Sequence | None, count: int, batched: bool) -> list[Any]:
    if times is None:
        return [None] * count
    rows = list(times)
    if not batched and not (len(rows) == 1 and (rows[0] is None or np.ndim(rows[0]) == 1)):
        rows = [times]
    if len(rows) != count:
        raise ValueError(f"times must have one entry a clip: got {len(rows)} for {count} clip(s)")
    return rows


def _checked_times(seconds: Any, count: int) -> np.ndarray:
    try:
        values = np.asarray(seconds, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"times must be numbers in seconds, got {seconds!r}") from error
    if values.shape != (count,):
        raise ValueError(f"times must match the frames: got shape {values.shape} for a clip of {count} frame(s)")
    if not np.isfinite(values).all():
        raise ValueError("times must be finite, got NaN or infinity")
    return values


# ----- crops ---------------------------------------------------------------------------------------------------------


def picture_arrays(
    clips: Sequence[Clip], settings: Mapping[str, Any], get_detector: GetDetector
) -> tuple[dict[str, np.ndarray], list[list[str]]]:
    """
    `pixel_values` (B, F, C, H, W) float32, `video_attention_mask` (B, F) int64 and, if any clip has times,
    `video_times` (B, F) float32 in seconds; and for each clip what the caller should know of it.

    Raises:
        ValueError: crops of several sizes without `do_resize`, or a mean or deviation of the wrong length.
    """
    found = [_face_crops(clip, settings, get_detector) for clip in clips]
    crops = [(clip_crops, seen) for clip_crops, seen, _ in found]
    data = {"pixel_values": _stacked(clips, crops, settings)}
    longest = data["pixel_values"].shape[1]
    data["video_attention_mask"] = np.zeros((len(clips), longest), dtype=np.int64)
    for row, (_, seen) in zip(data["video_attention_mask"], crops, strict=True):
        row[: len(seen)] = seen
    if any(clip.times is not None for clip in clips):
        data["video_times"] = np.zeros((len(clips), longest), dtype=np.float32)
        rate = settings["frame_rate"] or MODEL_FRAME_RATE
        for row, clip in zip(data["video_times"], clips, strict=True):
            row[: len(clip.frames)] = np.arange(len(clip.frames)) / rate if clip.times is None else clip.times
    return data, [notes for _, _, notes in found]


def _face_crops(
    clip: Clip, settings: Mapping[str, Any], get_detector: GetDetector
) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """The crops of the frames where the face is seen, (H, W, 3) uint8 each; (F,) bool, which frames; notes."""
    boxes, notes = (clip.boxes, []) if clip.boxes is not None else face_boxes(clip.frames, settings, get_detector)
    if clip.boxes is None and clip.frames and np.isnan(boxes).all() and _is_read_whole(clip, settings):
        boxes = _full_boxes(clip.frames)
        notes = ["vision: no face was found in the picture at any size, so it was read whole"]
    size = (settings["size"]["height"], settings["size"]["width"]) if settings["do_resize"] else None
    margin, offset = settings["face_margin"], settings["face_vertical_offset"]
    seen = ~np.isnan(boxes).any(axis=1)
    crops = []
    for index in np.flatnonzero(seen):
        frame, box = clip.frames[index], boxes[index]
        height, width = frame.shape[:2]
        # A frame taken whole stays whole: no margin around what was cropped already.
        crop = box if (box == [0, 0, width, height]).all() else crop_square(box, width, height, margin, offset)
        crops.append(cut_crop(frame, crop, size))
    return crops, seen, notes


def face_boxes(
    frames: list[np.ndarray], settings: Mapping[str, Any], get_detector: GetDetector
) -> tuple[np.ndarray, list[str]]:
    """
    Boxes (F, 4) of the main face, NaN where it is not seen, and what the caller should know. What is a face crop
    already is its own box. Where nothing is found in any frame, some are looked at again at up to four times
    `detection_size`.

    `get_detector` is asked only where there is something to look for.
    """
    boxes = _full_boxes(frames)
    if not frames:
        return boxes, []
    notes: list[str] = []
    sides = np.array([frame.shape[:2] for frame in frames])
    tiny = sides.min(axis=1) < settings["min_face_size"]
    boxes[tiny] = np.nan
    if tiny.all():
        notes.append(
            f"vision: no face was found: a picture of {sides[0][1]} x {sides[0][0]} pixels is too small for one "
            f"(min_face_size={settings['min_face_size']})"
        )
    searched = np.flatnonzero(~tiny & (sides.max(axis=1) > settings["assume_cropped_below"]))
    detector = get_detector(settings) if len(searched) else None
    if detector is None:
        return boxes, notes
    some = [frames[i] for i in searched]
    found, looked_at = find_faces(detector, some, settings["detect_every"])
    smallest = settings["min_face_size"] / settings["detection_size"]
    if not any(map(len, found)) and not callable(settings["face_detector"]):
        found, looked_at, smallest = _look_again(some, settings, get_detector)
    boxes[searched] = follow_main_face(found, looked_at, len(some))
    counts = [len(faces) for faces in found]
    # Of a clip those of a quarter of its frames: what is taken for a face in one frame alone is none.
    most = max(int(max(counts) > 0), int(np.quantile(counts, 0.75, method="lower")))
    if most == 0:
        notes.append(
            f"vision: no face was found; faces below {100 * smallest:.1f} % of the picture's longer side are not "
            "looked for (raise detection_size), and pictures that are face crops already go with face_detector=None"
        )
    elif most > 1:
        first = boxes[~np.isnan(boxes).any(axis=1)][0].round().astype(int).tolist()
        notes.append(f"vision: {most} faces were found, and the one at {first} (x0, y0, x1, y1 in pixels) was read")
    return boxes, notes


def _look_again(
    frames: list[np.ndarray], settings: Mapping[str, Any], get_detector: GetDetector
) -> tuple[list[np.ndarray], list[int], float]:
    """Faces too small for the first look: as `find_faces`, and the smallest side looked for over the longer side."""
    side = max(max(frame.shape[:2]) for frame in frames)
    size = settings["detection_size"]
    spread = np.unique(np.linspace(0, len(frames) - 1, _LOOKED_AT_AGAIN).round().astype(int)).tolist()
    for factor in (2, 4):
        if size >= side or factor * settings["detection_size"] <= size:
            break
        size = min(side, factor * settings["detection_size"])
        detector = get_detector({**settings, "detection_size": size})
        if detector is not None and any(map(len, detector([frames[i] for i in spread]))):
            return *find_faces(detector, frames, settings["detect_every"]), settings["min_face_size"] / size
    return [np.zeros((0, 5))], [0], settings["min_face_size"] / min(side, size)


def _is_read_whole(clip: Clip, settings: Mapping[str, Any]) -> bool:
    """Whether a clip without a face is taken whole all the same; what is all of one colour never is."""
    if clip.without_face == "absent" or min(clip.frames[0].shape[:2]) < settings["min_face_size"]:
        return False
    height, width = clip.frames[0].shape[:2]
    is_crop = max(height, width) <= min(_LARGEST_CROP, _SQUAREST * min(height, width))
    return (clip.without_face == "whole" or is_crop) and int(np.ptp(clip.frames[0])) >= _LEAST_CONTRAST


def _full_boxes(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Each frame as its own box, (F, 4) float64."""
    return np.array([[0, 0, frame.shape[1], frame.shape[0]] for frame in frames], dtype=np.float64).reshape(-1, 4)


def _stacked(
    clips: Sequence[Clip], crops: list[tuple[list[np.ndarray], np.ndarray]], settings: Mapping[str, Any]
) -> np.ndarray:
    """Normalised crops of all clips, (B, F, C, H, W) float32; the arithmetic is done on all of them at once."""
    flat = [crop for clip_crops, _ in crops for crop in clip_crops]
    shapes = {crop.shape for crop in flat}
    if len(shapes) > 1:
        raise ValueError(f"do_resize=False needs crops of one size, got (height, width, channels) {sorted(shapes)}")
    height, width = shapes.pop()[:2] if shapes else (settings["size"]["height"], settings["size"]["width"])
    channels = 1 if settings["do_grayscale"] else 3
    longest = max(1, max(len(clip.frames) for clip in clips))
    pixels = np.zeros((len(clips), longest, channels, height, width), dtype=np.float32)
    if not flat:
        return pixels
    values = np.stack(flat).astype(np.float32)
    values = (values @ _LUMA)[:, None] if channels == 1 else values.transpose(0, 3, 1, 2)
    if settings["do_rescale"]:
        values = values * np.float32(settings["rescale_factor"])
    if settings["do_normalize"]:
        mean, std = (np.array(settings[name], dtype=np.float32) for name in ("image_mean", "image_std"))
        if {len(mean), len(std)} - {1, channels}:
            raise ValueError(f"image_mean and image_std need 1 or {channels} values, got {len(mean)} and {len(std)}")
        values = (values - mean[:, None, None]) / std[:, None, None]
    valid = np.zeros((len(clips), longest), dtype=bool)
    for row, (_, seen) in zip(valid, crops, strict=True):
        row[: len(seen)] = seen
    pixels[valid] = values
    return pixels
