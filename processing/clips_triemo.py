"""What people pass as pictures and clips, sorted into a batch of clips of RGB frames."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from .media_sources_triemo import is_tensor
from .media_triemo import load_frames, load_image

__all__ = ["Clip", "read_clips"]

_VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .wmv .flv .mpg .mpeg .mts .m2ts .ts .3gp .ogv .gif .y4m".split()
)


@dataclass
class Clip:
    """Frames (height, width, 3) uint8 RGB, none for a sample without picture, and their times in seconds if known."""

    frames: list[np.ndarray]
    times: np.ndarray | None = None


def read_clips(images: Any, times: Sequence | None, num_frames: int | None, frame_rate: float | None) -> list[Clip]:
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
        return Clip(load_frames(item)[0])
    if _suffix(item) not in _VIDEO_SUFFIXES:
        try:
            return Clip([np.asarray(load_image(item))])
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
