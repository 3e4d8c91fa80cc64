"""A recording of any length as a stream: its sound and a few frames a second in the order of time, in bounded memory.

One pass over the file; times are seconds from its beginning, as everywhere here.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from .media_images_triemo import load_image, picture_kind, split_frames
from .media_sources_triemo import current_limits, import_av, is_media_source, open_container, open_source
from .media_triemo import (
    SOURCE_FRAME_RATE,
    TIME_TOLERANCE_SECONDS,
    ChannelEnergies,
    audio_stream,
    load_audio,
    load_frames,
    resampled,
    start_seconds,
    tell_cancelled,
    timed_frames,
    upright,
    video_stream,
)

__all__ = ["FrameSampler", "Piece", "recording_seconds", "stream_container", "stream_recording"]

_PIECE_SECONDS = 1.0  # of sound in memory that is handed on at once
_CHANNEL_SECONDS = 30.0  # of sound that tell whether its channels cancel each other out
_SPARE_FRAMES = 3  # times the frame rate wanted: a video with more may leave out what no other frame builds on
_BY_FFMPEG = ("GIF", "PNG")  # animations that it decodes as videos


@dataclass(frozen=True)
class Piece:
    """
    The next part of one of the two tracks.

    Args:
        track: "sound" or "picture".
        end: the track is known up to here, in seconds; a frame is shown here.
        sound: (samples,) float32, which follow on those before.
        frame: (height, width, 3) uint8 RGB; None where the picture ends.
        scale: sides of the picture in the file over those of `frame`.
    """

    track: str
    end: float
    sound: np.ndarray | None = None
    frame: np.ndarray | None = None
    scale: float = 1.0


def recording_seconds(source: Any, sampling_rate: int = 16000) -> float | None:
    """How long a medium lasts, by its headers, else by its packets, which are not decoded; None for a still.

    Args:
        source: sound, or a clip, in any form that the processor takes.
        sampling_rate: of an array that states none, in Hz.
    """
    if not is_media_source(source):
        if isinstance(source, (list, tuple)) or getattr(source, "ndim", 1) == 4:
            first = source[0] if len(source) else None
            if not isinstance(first, (int, float, np.number)) and not _is_rated(source):
                return len(split_frames(source)) / SOURCE_FRAME_RATE
        return len(load_audio(source, sampling_rate)) / sampling_rate
    with open_source(source) as (file, name):
        kind = picture_kind(file, name)
        if kind is not None and not (kind[1] and kind[0] in _BY_FFMPEG):
            return None if not kind[1] else float(load_frames(source, num_frames=2)[1][-1])
        with open_container(file, name) as container:
            if container.duration:
                return container.duration / 1e6
            return _counted_seconds(container)


def _is_rated(source: Any) -> bool:
    return isinstance(source, tuple) and len(source) == 2 and any(isinstance(part, (int, float)) for part in source)


def _counted_seconds(container: Any) -> float:
    latest = begin = start_seconds(container)
    with suppress(import_av().FFmpegError, OSError):  # what breaks off is as long as what can be read of it
        for packet in container.demux():
            if packet.pts is not None:
                latest = max(latest, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return latest - begin


def stream_recording(
    clip: Any,
    sound: Any,
    sampling_rate: int,
    frame_rate: float,
    start: float = 0.0,
    end: float | None = None,
    longest_side: int | None = None,
    notes: list[str] | None = None,
) -> Iterator[Piece]:
    """The two tracks of a recording, side by side in the order of time.

    Args:
        clip: whose frames to read, in any form that `load_frames` takes; None for none.
        sound: whose sound, in any form that `load_audio` takes; the clip itself where it is its own; None for none.
        sampling_rate: of the sound, in Hz.
        frame_rate: frames a second, those shown at start + (n + 1/2) / frame_rate seconds, each once.
        start, end: the part to read, in seconds.
        longest_side: pixels to which frames are shrunk when they are decoded.
        notes: to which is added what the caller should know.

    Raises:
        ValueError: as `load_audio` and `load_frames`, as soon as the stream gets there.
    """
    own = clip is not None and sound is clip and is_media_source(clip)
    if not own:
        heard = iter(()) if sound is None else _sound_alone(sound, sampling_rate, start, end, notes)
        seen = iter(()) if clip is None else _frames_alone(clip, frame_rate, start, end, longest_side)
        yield from _side_by_side(heard, seen)
        return
    channel = _cancelled_channel(clip, sampling_rate, notes)
    with open_source(clip) as (file, name), open_container(file, name) as container:
        audio, video = audio_stream(container, name), video_stream(container, name)
        _seek(container, start)
        shared = _SharedPackets(container, (audio, video))
        yield from _side_by_side(
            _sound_pieces(shared, audio, name, sampling_rate, start, end, channel),
            _frame_pieces(shared, video, name, frame_rate, start, end, longest_side),
        )


def stream_container(
    container: Any, name: str, sampling_rate: int, frame_rate: float, longest_side: int | None = None
) -> Iterator[Piece]:
    """As `stream_recording`, of an open container that cannot go back, such as a pipe.

    Raises:
        ValueError: neither sound nor picture, or beyond `MediaLimits`.
    """
    kinds = {stream.type for stream in container.streams}
    audio = audio_stream(container, name) if "audio" in kinds else None
    video = video_stream(container, name) if "video" in kinds or audio is None else None
    shared = _SharedPackets(container, tuple(stream for stream in (audio, video) if stream is not None))
    heard: Iterator[Piece] = iter(())
    seen: Iterator[Piece] = iter(())
    if audio is not None:
        heard = _sound_pieces(shared, audio, name, sampling_rate, 0.0, None, None)
    if video is not None:
        seen = _frame_pieces(shared, video, name, frame_rate, 0.0, None, longest_side)
    yield from _side_by_side(heard, seen)


class _SharedPackets:
    """A container whose tracks are each read as if alone: packets of the other wait, still compressed."""

    def __init__(self, container: Any, streams: tuple) -> None:
        self._container = container
        self._packets = container.demux(*streams)
        self._waiting: dict[int, deque] = {stream.index: deque() for stream in streams}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, stream: Any) -> Iterator[Any]:
        """The packets of one track."""
        own = self._waiting[stream.index]
        while True:
            while not own:
                packet = next(self._packets, None)
                if packet is None:
                    return
                self._waiting[packet.stream.index].append(packet)
            yield own.popleft()


def _side_by_side(heard: Iterator[Piece], seen: Iterator[Piece]) -> Iterator[Piece]:
    """Always the next piece of the track that is behind."""
    ends = {"sound": 0.0, "picture": 0.0}
    tracks = {"sound": heard, "picture": seen}
    while tracks:
        track = min(tracks, key=ends.__getitem__)
        piece = next(tracks[track], None)
        if piece is None:
            del tracks[track]
            continue
        ends[track] = piece.end
        yield piece


def _sound_alone(
    sound: Any, sampling_rate: int, start: float, end: float | None, notes: list[str] | None
) -> Iterator[Piece]:
    if not is_media_source(sound):
        waveform = load_audio(sound, sampling_rate, notes)
        first, last = round(start * sampling_rate), len(waveform)
        last = last if end is None else min(last, round(end * sampling_rate))
        step = round(_PIECE_SECONDS * sampling_rate)
        for begin in range(first, last, step):
            samples = waveform[begin : min(begin + step, last)]
            yield Piece("sound", (begin + len(samples)) / sampling_rate, sound=samples)
        return
    channel = _cancelled_channel(sound, sampling_rate, notes)
    with open_source(sound) as (file, name), open_container(file, name) as container:
        stream = audio_stream(container, name)
        _seek(container, start)
        yield from _sound_pieces(container, stream, name, sampling_rate, start, end, channel)


def _sound_pieces(
    container: Any, stream: Any, name: str, sampling_rate: int, start: float, end: float | None, channel: int | None
) -> Iterator[Piece]:
    errors: list[Exception] = []
    limits, samples = current_limits(), round(start * sampling_rate)
    last = None if end is None else round(end * sampling_rate)
    found = False
    for chunk in resampled(container, stream, sampling_rate, errors, ChannelEnergies(), channel, name, start):
        chunk = chunk if last is None else chunk[: max(0, last - samples)]
        found = True
        if len(chunk):
            if not np.isfinite(chunk).all():
                raise ValueError(f"Cannot read sound from {name}: it holds NaN or infinite samples.")
            samples += len(chunk)
            limits.check("seconds", samples / sampling_rate, name, f"sound of more than {limits.seconds:g} seconds")
            yield Piece("sound", samples / sampling_rate, sound=chunk)
        if last is not None and samples >= last:
            return
    if not found and not start:
        raise ValueError(f"Cannot read sound from {name}: {errors[-1] if errors else 'the sound track is empty'}.")


def _cancelled_channel(source: Any, sampling_rate: int, notes: list[str] | None) -> int | None:
    """The channel to take where those of the beginning cancel each other out (opposite phase)."""
    energies = ChannelEnergies()
    with open_source(source) as (file, name), open_container(file, name) as container:
        stream = audio_stream(container, name)
        if stream.codec_context.layout.nb_channels < 2:
            return None
        samples = 0
        for chunk in resampled(container, stream, sampling_rate, [], energies, None, name):
            samples += len(chunk)
            if samples > _CHANNEL_SECONDS * sampling_rate:
                break
    channel = energies.strongest_of_cancelled()
    if channel is not None:
        tell_cancelled(channel, notes)
    return channel


def _frames_alone(
    clip: Any, frame_rate: float, start: float, end: float | None, longest_side: int | None
) -> Iterator[Piece]:
    if is_media_source(clip):
        with open_source(clip) as (file, name):
            kind = picture_kind(file, name)
            if kind is None or kind[1] and kind[0] in _BY_FFMPEG:
                with open_container(file, name) as container:
                    stream = video_stream(container, name)
                    _seek(container, start)
                    yield from _frame_pieces(container, stream, name, frame_rate, start, end, longest_side)
                return
        frames, times = load_frames(clip)
        pairs: Iterator[tuple[float, Any]] = zip(times.tolist(), frames, strict=True)
        step = float(times[-1]) / max(1, len(times) - 1) or 1 / SOURCE_FRAME_RATE
    else:
        items, step = split_frames(clip), 1 / SOURCE_FRAME_RATE
        pairs = ((index * step, item) for index, item in enumerate(items))
    inside = ((seconds, item) for seconds, item in pairs if end is None or seconds < end)
    for seconds, item in _shown(inside, frame_rate, start, step):
        yield Piece("picture", seconds, frame=None if item is None else np.asarray(load_image(item)))


def _frame_pieces(
    container: Any,
    stream: Any,
    name: str,
    frame_rate: float,
    start: float,
    end: float | None,
    longest_side: int | None,
) -> Iterator[Piece]:
    errors: list[Exception] = []
    stream.thread_type = "AUTO"
    rate = float(stream.average_rate or stream.guessed_rate or SOURCE_FRAME_RATE)
    if rate >= _SPARE_FRAMES * frame_rate:
        stream.codec_context.skip_frame = "NONREF"
    found = False

    def inside() -> Iterator[tuple[float, Any]]:
        for seconds, frame in timed_frames(container, stream, errors, name):
            if end is not None and seconds >= end:
                return
            yield seconds, frame

    for seconds, frame in _shown(inside(), frame_rate, start, 1 / rate):
        if frame is None:
            yield Piece("picture", seconds)
            continue
        found = True
        pixels = upright(frame, longest_side)
        yield Piece("picture", seconds, None, pixels, max(frame.width, frame.height) / max(pixels.shape[:2]))
    if not found and not start:
        raise ValueError(f"Cannot read frames from {name}: {errors[-1] if errors else 'no frame could be decoded'}.")


class FrameSampler:
    """
    Of frames that come one by one picks those shown at start + (n + 1/2) / frame_rate seconds, each once.

    Args:
        frame_rate: in Hz.
        start: seconds.
    """

    def __init__(self, frame_rate: float, start: float = 0.0) -> None:
        self._start = start
        self._targets = ((start + (index + 0.5) / frame_rate) for index in count())
        self._target = next(self._targets)
        self._held: tuple[float, Any] | None = None
        self._latest: float | None = None

    def push(self, seconds: float, frame: Any) -> list[tuple[float, Any]]:
        """What is known to be shown now that the next frame is there."""
        shown = self.skip(seconds)
        self._held, self._latest = (seconds, frame), seconds
        return shown

    def skip(self, seconds: float) -> list[tuple[float, Any]]:
        """What is known to be shown now that no other frame comes before `seconds`."""
        shown = []
        while self._target + TIME_TOLERANCE_SECONDS < seconds:
            if self._held is not None:
                shown.append((max(self._start, self._held[0]), self._held[1]))
                self._held = None
            self._target = next(self._targets)
        return shown

    def finish(self, step: float) -> list[tuple[float, Any]]:
        """What is left where no frame follows within `step` seconds; at last the picture's end and None."""
        if self._latest is None:
            return []
        end = self._latest + step
        shown: list[tuple[float, Any]] = []
        if self._held is not None and self._target < end:
            shown.append((max(self._start, self._held[0]), self._held[1]))
        return [*shown, (max(self._start, end), None)]


def _shown(
    frames: Iterator[tuple[float, Any]], frame_rate: float, start: float, step: float
) -> Iterator[tuple[float, Any]]:
    """Those of all frames that a sampler picks, and the picture's end."""
    sampler = FrameSampler(frame_rate, start)
    for seconds, frame in frames:
        yield from sampler.push(seconds, frame)
    yield from sampler.finish(step)


def _seek(container: Any, start: float) -> None:
    if start > 0:
        container.seek(round((start_seconds(container) + start) * 1e6))
