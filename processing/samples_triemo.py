"""One sample as people give it: what kind of file it is, its still or frames, and whether it has a sound track."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from .media_images_triemo import load_image
from .media_sources_triemo import fetch, first_stream, is_media_source, open_container, open_source
from .media_triemo import load_frames

__all__ = ["TASK", "has_sound", "media_kind", "read_input", "sample_frames", "stack_padded"]

TASK = "multimodal-emotion-recognition"
_ARGUMENT = {"text": "text", "audio": "audio", "video": "videos", "image": "images"}


def read_input(input_: Any) -> dict[str, Any]:
    """
    A pipeline's input as the processor's arguments: any of `text`, `audio`, `videos`, `images`, one sample each.

    Args:
        input_: path, URL or bytes of a media file, or a dict with any of `text`, `audio`, `video`, `image`.

    Raises:
        ValueError: an unknown key, nothing given, or a file that cannot be read.
    """
    is_file = not isinstance(input_, Mapping) or bool(input_) and set(input_) <= {"bytes", "path"}
    if is_file:
        input_ = fetch(input_)  # once, for its kind and its content
    sample = {media_kind(input_): input_} if is_file else input_
    unknown = sorted(set(sample) - set(_ARGUMENT))
    if unknown:
        raise ValueError(
            f"an input may have the keys {', '.join(_ARGUMENT)}, got {unknown}; of a dataset take the columns "
            "with select_columns and rename_column."
        )
    given = {_ARGUMENT[name]: value for name, value in sample.items() if value is not None}
    if not given:
        raise ValueError(f"an input needs at least one of {', '.join(_ARGUMENT)}, got none.")
    return given


def sample_frames(
    still: Any, clip: Any, num_frames: int | None, frame_rate: float | None
) -> tuple[list[np.ndarray], np.ndarray] | None:
    """
    Frames of a sample and their times in seconds; None without picture. From a clip come `num_frames` frames spread
    evenly, or `frame_rate` a second and at most `num_frames`.

    Raises:
        ValueError: both a still and a clip, or media that cannot be read.
    """
    if still is not None and clip is not None:
        raise ValueError("a sample has either a still or a video, got both.")
    if still is not None:
        return [np.asarray(load_image(still))], np.zeros(1)
    if clip is None:
        return None
    if frame_rate is not None:
        return load_frames(clip, frame_rate=frame_rate, max_frames=num_frames)
    return load_frames(clip, num_frames=num_frames)


def has_sound(clip: Any) -> bool:
    """Whether a clip is a file with a sound track."""
    return clip is not None and is_media_source(clip) and _has_stream(clip, "audio")


def media_kind(source: Any) -> str:
    """
    What a media file is: "image", "video" or "audio", by its content.

    Raises:
        ValueError: if it cannot be read. A string is always a path or URL; a sentence goes in as `{"text": ...}`.
    """
    try:
        with open_source(source) as (file, _):
            try:
                with Image.open(file) as image:
                    return "video" if getattr(image, "n_frames", 1) > 1 else "image"
            except Image.DecompressionBombError:
                return "image"  # and refused as such, by its size
            except (UnidentifiedImageError, OSError):
                pass  # not a picture: sound or video
    except ValueError as error:
        raise ValueError(f'{error} (A sentence is given as {{"text": ...}}.)') from error
    return "video" if _has_stream(source, "video") else "audio"


def stack_padded(rows: list[np.ndarray | None], padding_value: int | float) -> np.ndarray:
    """(1, steps, ...) arrays of different steps, and None, to (B, longest, ...)."""
    some = next(row for row in rows if row is not None)
    longest = max(row.shape[1] for row in rows if row is not None)
    batch = np.full((len(rows), longest, *some.shape[2:]), padding_value, dtype=some.dtype)
    for target, row in zip(batch, rows, strict=True):
        if row is not None:
            target[: row.shape[1]] = row[0]
    return batch


def _has_stream(source: Any, kind: str) -> bool:
    with open_source(source) as (file, name), open_container(file, name) as container:
        found = {stream_kind for stream_kind in ("audio", "video") if first_stream(container, stream_kind) is not None}
        if not found:
            raise ValueError(f"Cannot read media from {name}: it has neither sound nor picture.")
        return kind in found
