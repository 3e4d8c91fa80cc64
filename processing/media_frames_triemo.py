"""Frames of a video: evenly spread or at a rate, turned upright, with the time of each."""

import bisect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from .media_images_triemo import load_image, split_frames
from .media_sources_triemo import (
    decode_frames,
    first_stream,
    import_av,
    is_media_source,
    open_container,
    open_source,
)

__all__ = ["SOURCE_FRAME_RATE", "load_frames", "start_seconds", "upright"]

SOURCE_FRAME_RATE = 25.0  # Hz, of a list of frames, which carries no clock, and of a stream that states no rate
_TIME_TOLERANCE_SECONDS = 1e-4  # a frame stamped 0.04 s is the one shown at 0.0399999 s
_REORDERED_FRAMES = 20  # more than any codec holds back: a key frame is safe to start from that long before a target


@dataclass(frozen=True)
class _Timeline:
    """The picture track's place in the file, in seconds from the file's start, and where decoding may begin."""

    start: float
    duration: float
    keyframes: Sequence[int] = ()  # ticks of the stream


def load_frames(
    source: Any,
    num_frames: int | None = None,
    frame_rate: float | None = None,
    max_frames: int | None = None,
    source_frame_rate: float | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Load frames of a video, upright and in order of time.

    Args:
        source: any source `open_source` takes (a still image is a video of one frame), a list of frames (each
            anything `load_image` takes), an array (frames, height, width, channels), a tensor
            (frames, channels, height, width), or one image.
        num_frames: this many frames, shown at the centres of as many equal segments of the duration. A video that
            has fewer gives each of its frames once.
        frame_rate: frames per second; the frames shown at 0, 1 / frame_rate, 2 / frame_rate, ... seconds, each once.
            With neither of the two, every frame.
        max_frames: upper limit for `frame_rate` or for every frame. Where it cuts, the frames are spread evenly over
            the whole duration, as with `num_frames=max_frames`, rather than taken from the beginning.
        source_frame_rate: frames per second of a list or array of frames (default 25), which has no clock of its own.

    Returns:
        RGB frames of shape (height, width, 3), uint8, with the file's rotation and mirroring applied, and their times
        in seconds from the start of the file (of sound or picture, whichever begins first), float64. Only the frames
        returned are kept in memory.

    Raises:
        ValueError: unreadable source, no picture, or no frame can be decoded. Of a damaged file the frames that can
            be decoded are returned.
    """
    _check_request(num_frames, frame_rate, max_frames, source_frame_rate)
    if not is_media_source(source):
        rate = source_frame_rate or SOURCE_FRAME_RATE
        items = split_frames(source)
        times = np.arange(len(items)) / rate
        targets = _targets(_Timeline(0.0, len(items) / rate), num_frames, frame_rate, max_frames)
        if targets is None or len(targets) >= len(items) and frame_rate is None:
            kept = list(range(len(items)))
        else:
            shown = np.searchsorted(times, np.asarray(targets) + _TIME_TOLERANCE_SECONDS, side="right") - 1
            kept = sorted(set(shown.tolist()))
        return [np.asarray(load_image(items[index])) for index in kept], times[kept]

    with open_source(source) as (file, name):
        with open_container(file, name) as container:
            timeline = _timeline(container, name)
        if timeline is None:
            with open_container(file, name) as container:
                timeline = _counted_timeline(container)
        targets = _targets(timeline, num_frames, frame_rate, max_frames)
        with open_container(file, name) as container:
            picked = _pick(container, targets, timeline.keyframes, name)
        if targets is not None and len(picked) < len(targets) and frame_rate is None:
            # Fewer distinct frames than asked for: either the clip has no more, or they are unevenly spaced.
            with open_container(file, name) as container:
                every = _pick(container, None, (), name, limit=len(targets) + 1)
            picked = every if len(every) <= len(targets) else picked
    return [frame for _, frame in picked], np.array([seconds for seconds, _ in picked], dtype=np.float64)


def start_seconds(container: Any) -> float:
    """When the file begins, on the clock of its streams: zero of every time that this package reports."""
    return container.start_time / 1e6 if container.start_time is not None else 0.0


def upright(frame: Any) -> np.ndarray:
    """A decoded frame as RGB (height, width, 3) uint8, turned and mirrored as its display matrix says.

    The matrix maps stored to shown positions, x' = a x + c y and y' = b x + d y (FFmpeg, libavutil/display.h); as
    players do, it is rounded to quarter turns.
    """
    pixels = frame.to_ndarray(format="rgb24")
    side_data = frame.side_data.get(import_av().sidedata.sidedata.Type.DISPLAYMATRIX) if frame.side_data else None
    if side_data is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(side_data), dtype=np.int32)[:5].tolist()
    if abs(a) < abs(b):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _check_request(
    num_frames: int | None, frame_rate: float | None, max_frames: int | None, source_frame_rate: float | None
) -> None:
    if num_frames is not None and frame_rate is not None:
        raise ValueError(f"Give num_frames or frame_rate, not both: got {num_frames} and {frame_rate}.")
    for field, count in (("num_frames", num_frames), ("max_frames", max_frames)):
        if count is not None and (isinstance(count, bool) or count != int(count) or count < 1):
            raise ValueError(f"{field} must be a whole number of at least 1, got {count!r}.")
    for field, rate in (("frame_rate", frame_rate), ("source_frame_rate", source_frame_rate)):
        if rate is not None and not 0 < rate < float("inf"):
            raise ValueError(f"{field} must be a positive number of frames per second, got {rate!r}.")


def _targets(
    timeline: _Timeline, num_frames: int | None, frame_rate: float | None, max_frames: int | None
) -> list[float] | None:
    """The times to show, in seconds from the file's start; None for every frame."""
    if frame_rate is not None:
        count = max(1, int(np.ceil(timeline.duration * frame_rate - 1e-6)))
        if max_frames is None or count <= max_frames:
            return [timeline.start + index / frame_rate for index in range(count)]
        num_frames = max_frames
    elif max_frames is not None:
        num_frames = min(num_frames or max_frames, max_frames)
    if num_frames is None:
        return None
    segment = timeline.duration / num_frames
    return [timeline.start + (index + 0.5) * segment for index in range(num_frames)]


def _video(container: Any, name: str) -> Any:
    stream = first_stream(container, "video")
    if stream is None:
        kinds = sorted({stream.type for stream in container.streams}) or ["no streams"]
        raise ValueError(f"Cannot read frames from {name}: it has no picture track (found: {', '.join(kinds)}).")
    return stream


def _timeline(container: Any, name: str) -> _Timeline | None:
    """The picture's timeline from the file's headers, or None if they do not say how long it is."""
    stream = _video(container, name)
    begin = start_seconds(container)
    start = max(0.0, float(stream.start_time * stream.time_base) - begin) if stream.start_time is not None else 0.0
    if stream.duration:
        duration = float(stream.duration * stream.time_base)
    elif container.duration:
        duration = container.duration / 1e6 - start
    else:
        return None
    keyframes: list[int] = []
    # Only these two keep an index on the clock of the frames; Matroska reads it at the first seek.
    if container.format.name.startswith(("mov", "matroska")) and stream.average_rate:
        if container.format.name.startswith("matroska"):
            container.seek(stream.start_time or 0, stream=stream)
        keyframes = sorted(entry.timestamp for entry in getattr(stream, "index_entries", ()) if entry.is_keyframe)
    return _Timeline(start, duration, keyframes) if duration > 0 else None


def _counted_timeline(container: Any) -> _Timeline:
    """The timeline of a stream or recording without a stated duration, by reading its packets without decoding."""
    av = import_av()
    stream: Any = first_stream(container, "video")
    spans: list[tuple[int, int]] = []
    count = 0
    with suppress(av.FFmpegError, OSError):  # a file that breaks off is as long as what could be read of it
        for packet in container.demux(stream):
            count += packet.size > 0
            if packet.pts is not None:
                spans.append((packet.pts, packet.pts + (packet.duration or 0)))
    rate = float(stream.average_rate or stream.guessed_rate or SOURCE_FRAME_RATE)
    if not spans:
        return _Timeline(0.0, max(count, 1) / rate)
    first, last = min(begin for begin, _ in spans), max(end for _, end in spans)
    start = max(0.0, float(first * stream.time_base) - start_seconds(container))
    return _Timeline(start, max(float((last - first) * stream.time_base), 1 / rate))


def _pick(
    container: Any, targets: list[float] | None, keyframes: Sequence[int], name: str, limit: int | None = None
) -> list[tuple[float, np.ndarray]]:
    """The frames shown at `targets` (ascending seconds), each once; without targets, the first `limit` frames."""
    errors: list[Exception] = []
    stream = _video(container, name)
    stream.thread_type = "AUTO"
    picked: list[tuple[float, np.ndarray]] = []
    if targets is None:
        for seconds, frame in _timed(container, stream, errors):
            picked.append((seconds, upright(frame)))
            if len(picked) == limit:
                break
    else:
        for seconds, frame in _shown_at(container, stream, targets, keyframes, errors):
            picked.append((seconds, upright(frame)))
    if not picked:
        reason = errors[-1] if errors else "no frame could be decoded"
        raise ValueError(f"Cannot read frames from {name}: {reason}.")
    return picked


def _timed(container: Any, stream: Any, errors: list[Exception]) -> Iterator[tuple[float, Any]]:
    begin = start_seconds(container)
    step = 1 / float(stream.average_rate or stream.guessed_rate or SOURCE_FRAME_RATE)
    seconds = -step
    for frame in decode_frames(container, stream, errors):
        seconds = max(0.0, float(frame.pts * stream.time_base) - begin) if frame.pts is not None else seconds + step
        yield seconds, frame


def _shown_at(
    container: Any, stream: Any, targets: list[float], keyframes: Sequence[int], errors: list[Exception]
) -> Iterator[tuple[float, Any]]:
    """Each target's frame is the last one stamped at or before it. Key frames between here and there are jumped to."""
    begin = start_seconds(container)
    frames = _timed(container, stream, errors)
    margin = _REORDERED_FRAMES / float(stream.average_rate) if stream.average_rate else 0.0
    held: tuple[float, Any] | None = None  # shown at the target, as far as decoded
    ahead: tuple[float, Any] | None = None  # decoded, and later than the target before
    given = -1.0
    for target in targets:
        if keyframes:
            latest = bisect.bisect_right(keyframes, (target + begin - margin) / float(stream.time_base)) - 1
            here = ahead or held
            jump = latest > 0 and (here is None or float(keyframes[latest] * stream.time_base) - begin > here[0])
            if jump:
                container.seek(keyframes[latest], stream=stream)
                frames, held, ahead = _timed(container, stream, errors), None, None
        if ahead is None or ahead[0] <= target + _TIME_TOLERANCE_SECONDS:
            held, ahead = ahead or held, None
            for seconds, frame in frames:
                if seconds > target + _TIME_TOLERANCE_SECONDS:
                    ahead = (seconds, frame)
                    break
                held = (seconds, frame)
        # Nothing before the target: the clip's first frame comes later than its headers say.
        shown = held or ahead
        if shown is not None and shown[0] > given:
            given = shown[0]
            yield shown
