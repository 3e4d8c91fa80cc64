"""The image processor's fields: names, meaning, defaults, limits."""

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

from .faces_triemo import DEFAULT_FACE_MARGIN, DEFAULT_FACE_VERTICAL_OFFSET, check_face_detector

__all__ = ["DEFAULT_IMAGE_SETTINGS", "TriemoImagesKwargs", "checked_image_settings"]


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
