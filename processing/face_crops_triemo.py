"""Clips of frames to normalised crops of the main face: the image processor's arithmetic, in NumPy and Pillow alone.

Shapes: B clips, F frames of the longest clip, C channels (1 grey or 3), H and W pixels of a crop. `settings` are the
image processor's fields (`checked_image_settings`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .clips_triemo import Clip
from .faces_triemo import FaceDetector, crop_square, cut_crop, locate_main_face

__all__ = ["face_boxes", "picture_arrays"]

MODEL_FRAME_RATE = 4.0  # Hz, as the model assumes for frames without times
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's mode "L"

GetDetector = Callable[[], FaceDetector | None]


def picture_arrays(
    clips: Sequence[Clip], settings: Mapping[str, Any], get_detector: GetDetector
) -> tuple[dict[str, np.ndarray], list[int]]:
    """
    `pixel_values` (B, F, C, H, W) float32, `video_attention_mask` (B, F) int64 and, if any clip has times,
    `video_times` (B, F) float32 in seconds; and which clips have frames and no face in any of them.

    Raises:
        ValueError: crops of several sizes without `do_resize`, or a mean or deviation of the wrong length.
    """
    crops = [_face_crops(clip, settings, get_detector) for clip in clips]
    missed = [
        i for i, (clip, (_, seen)) in enumerate(zip(clips, crops, strict=True)) if clip.frames and not seen.any()
    ]
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
    return data, missed


def face_boxes(frames: list[np.ndarray], settings: Mapping[str, Any], get_detector: GetDetector) -> np.ndarray:
    """Boxes (F, 4) of the main face, NaN where it is not seen; what is a face crop already is its own box.

    `get_detector` is asked only where there is something to look for.
    """
    boxes = np.array([[0, 0, frame.shape[1], frame.shape[0]] for frame in frames], dtype=np.float64).reshape(-1, 4)
    whole = boxes.max(axis=1, initial=0) <= settings["assume_cropped_below"]
    if whole.all():
        return boxes
    detector = get_detector()
    if detector is not None:
        searched = np.flatnonzero(~whole)
        boxes[searched] = locate_main_face(detector, [frames[i] for i in searched], settings["detect_every"])
    return boxes


def _face_crops(
    clip: Clip, settings: Mapping[str, Any], get_detector: GetDetector
) -> tuple[list[np.ndarray], np.ndarray]:
    """The crops of the frames where the face is seen, (H, W, 3) uint8 each, and (F,) bool: which frames."""
    boxes = face_boxes(clip.frames, settings, get_detector)
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
    return crops, seen


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
