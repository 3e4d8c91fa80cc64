"""Any sound or video file, and its sound track, to plain arrays: the one door through which media come in.

FFmpeg (by PyAV) decodes; stills are read next door. Nothing here needs torch but sound in memory at another rate.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from .media_images_triemo import (
    animation_frames,
    load_image,
    picture_kind,
    read_still,
    shrink_factor,
    split_frames,
)
from .media_sources_triemo import (
    current_limits,
    decode_frames,
    first_stream,
    import_av,
    is_media_source,
    is_tensor,
    open_container,
    open_source,
)

__all__ = [
    "SOURCE_FRAME_RATE",
    "TIME_TOLERANCE_SECONDS",
    "ChannelEnergies",
    "MediaInfo",
    "audio_stream",
    "check_sampling_rate",
    "from_rated_array",
    "is_rated_array",
    "load_audio",
    "load_frames",
    "load_image",
    "probe_media",
    "resample_by_ffmpeg",
    "resampled",
    "start_seconds",
    "tell_cancelled",
    "timed_frames",
    "upright",
    "video_stream",
    "waveform_from_array",
]

_MOST_CHANNELS = 32  # more rows than this are samples: (samples, channels), as soundfile gives them
_FULL_SCALE = {"int8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}
_LARGEST_FLOAT = 8.0  # of full scale; louder floats are not -1..1 but most likely -32768..32767
_CANCELLED = 0.01  # energy of the channels' mean over theirs, below which they are in opposite phase
_SILENCE_SECONDS = 0.02  # a longer gap in a video's sound is filled, so that sound and picture stay together
SOURCE_FRAME_RATE = 25.0  # Hz, of a list of frames, which carries no clock, and of a stream that states no rate
_BY_FFMPEG = ("GIF", "PNG")  # animations that it decodes; of WebP and AVIF it gives one picture or none
TIME_TOLERANCE_SECONDS = 1e-4  # a frame stamped 0.04 s is the one shown at 0.0399999 s
_REORDERED_FRAMES = 20  # more than any codec holds back: a key frame is safe to start from that long before a target


@dataclass(frozen=True)
class MediaInfo:
    """What a source holds. Width and height are pixels as shown (after rotation); None means that it does not say."""

    has_audio: bool
    has_video: bool
    duration_seconds: float | None
    frame_rate: float | None
    width: int | None
    height: int | None


def probe_media(source: Any) -> MediaInfo:
    """What a source holds, from its headers and its first picture.

    Args:
        source: anything `load_audio` or `load_frames` takes, bare arrays of rank 1 aside.

    Raises:
        ValueError: unreadable source, or one that is neither sound nor picture.
    """
    if isinstance(source, Mapping) and not is_media_source(source) or hasattr(source, "get_all_samples"):
        rate = 16000
        return MediaInfo(True, False, len(load_audio(source, rate)) / rate, None, None, None)
    if not is_media_source(source):
        frames = split_frames(source)
        return MediaInfo(False, True, None, None, *load_image(frames[0]).size)
    with open_source(source) as (file, name):
        kind = picture_kind(file, name)
        if kind is not None and not kind[1]:
            return MediaInfo(False, True, None, None, *read_still(file, name).size)
        return _probed(file, name)


def _probed(file: BinaryIO, name: str) -> MediaInfo:
    with open_container(file, name) as container:
        audio, video = first_stream(container, "audio"), first_stream(container, "video")
        if audio is None and video is None:
            raise ValueError(f"Cannot read media from {name}: it has neither sound nor picture.")
        duration = container.duration / 1e6 if container.duration else None
        if video is None:
            return MediaInfo(True, False, duration, None, None, None)
        rate = video.average_rate or video.guessed_rate
        width, height = video.codec_context.width or None, video.codec_context.height or None
        frame = next(decode_frames(container, video, []), None)
        if frame is not None:
            height, width = upright(frame).shape[:2]
        return MediaInfo(audio is not None, True, duration, float(rate) if rate else None, width, height)


def start_seconds(container: Any) -> float:
    """When the file begins, on the clock of its streams: zero of every time that this package reports."""
    return container.start_time / 1e6 if container.start_time is not None else 0.0


# ----- sound ---------------------------------------------------------------------------------------------------------


def load_audio(source: Any, sampling_rate: int = 16000, notes: list[str] | None = None) -> np.ndarray:
    """Load sound as one channel at one rate.

    Args:
        source: sound or video file as path, http(s) or file URL, bytes or `{"bytes", "path"}`;
            `{"array", "sampling_rate"}` (or "raw" for "array") with an array of shape (samples,) or
            (channels, samples); an array, tensor or list of floats, which is taken as sampled at `sampling_rate`
            already; a torchcodec decoder, which `datasets` gives with `decode=True`; a tuple of a rate and an array of
            shape (samples,) or (samples, channels), as Gradio and SciPy give it, or of an array and a rate, as
            torchaudio and soundfile do.
        sampling_rate: of the result, in Hz.
        notes: a list to which is added what the caller should know of this sound.

    Returns:
        Float32 array of shape (samples,), nominally within -1..1: full scale of the source is 1. Channels are
        averaged; where they cancel each other out (opposite phase), the strongest is taken. Where the sound of a video
        begins late or has gaps, silence fills them, so that sample n is at n / sampling_rate seconds on the clock of
        `load_frames`.

    Raises:
        ValueError: unreadable source, no sound track, nothing that can be decoded, no samples, NaN or infinite
            samples, floats far outside -1..1, wrong rank or type, unstated or impossible rate, or beyond
            `MediaLimits`. Of a damaged file what can be decoded is returned.
    """
    sampling_rate = check_sampling_rate(sampling_rate)
    if is_media_source(source):
        with open_source(source) as (file, name):
            with open_container(file, name) as container:
                waveform, strongest = _decode_audio(container, sampling_rate, name)
            if strongest is not None:
                with open_container(file, name) as container:
                    waveform, _ = _decode_audio(container, sampling_rate, name, channel=strongest)
                tell_cancelled(strongest, notes)
            return waveform
    if hasattr(source, "get_all_samples"):
        samples = source.get_all_samples()
        source = {"array": samples.data, "sampling_rate": samples.sample_rate}
    elif is_rated_array(source):
        source = from_rated_array(source)
    if isinstance(source, Mapping):
        array = source.get("array", source.get("raw"))
        if array is None:
            raise ValueError(
                'Sound given as a dict needs "array" and "sampling_rate", or "bytes" or "path", got the keys '
                f"{sorted(map(str, source))}."
            )
        if source.get("sampling_rate") is None:
            raise ValueError('Sound given as {"array", ...} must state its "sampling_rate" in Hz, got none.')
        from .resampling_triemo import resample  # here only: it imports torch, which files are read without

        rate = check_sampling_rate(source["sampling_rate"])
        current_limits().check_sampling_rate(rate, "an array")
        return resample(waveform_from_array(array, notes), rate, sampling_rate)
    return waveform_from_array(source, notes)


def is_rated_array(source: Any) -> bool:
    """Whether it is a tuple of a sampling rate and an array or tensor, in either order."""
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    return any(
        isinstance(rate, (int, float, np.number)) and (isinstance(array, np.ndarray) or is_tensor(array))
        for rate, array in (source, source[::-1])
    )


def from_rated_array(source: tuple) -> dict[str, Any]:
    """Such a tuple as `{"array", "sampling_rate"}`, the array with its channels first."""
    rate_first = isinstance(source[0], (int, float, np.number))
    rate, array = source if rate_first else source[::-1]
    # Gradio and SciPy, with the rate first, give (samples, channels); so does soundfile, torchaudio does not.
    if array.ndim == 2 and (rate_first or array.shape[0] > _MOST_CHANNELS >= array.shape[1]):
        array = array.T
    return {"array": array, "sampling_rate": rate}


def waveform_from_array(array: Any, notes: list[str] | None = None) -> np.ndarray:
    """Samples in memory as a float32 mono waveform of shape (samples,); ValueError for what is not sound.

    Args:
        array: array, tensor or list of shape (samples,) or (channels, samples), whose channels are averaged (of
            channels in opposite phase the strongest is taken). Floats are taken as they are and must be within -1..1
            or near it; int8, int16, int32 and uint8 (unsigned PCM, silence at 128) are scaled to -1..1.
        notes: as in `load_audio`.
    """
    if is_tensor(array):
        array = array.detach().cpu()
        array = (array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy()
    elif isinstance(array, (list, tuple)):
        try:
            array = np.asarray(array, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Sound given as a list must hold numbers only: {error}.") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(
            'Sound must be a path, URL, bytes, {"bytes", "path"}, {"array", "sampling_rate"}, NumPy array, torch '
            f"tensor or list of floats, got {type(array).__module__}.{type(array).__name__}."
        )
    if array.ndim not in (1, 2) or array.ndim == 2 and array.shape[0] > _MOST_CHANNELS:
        raise ValueError(f"Sound must be of shape (samples,) or (channels, samples), got shape {array.shape}.")
    if array.size == 0:
        raise ValueError(f"Sound must hold at least one sample, got shape {array.shape}.")
    if array.dtype.name in _FULL_SCALE:
        array = array.astype(np.float64) / _FULL_SCALE[array.dtype.name]
    elif array.dtype == np.uint8:
        array = (array.astype(np.float64) - 128) / 128
    elif array.dtype.kind != "f":
        raise ValueError(f"Sound must hold floats, int8, int16, int32 or uint8, got {array.dtype}.")
    mono = array.mean(axis=0) if array.ndim == 2 else array
    if array.ndim == 2 and len(array) > 1:
        apart = np.square(array, dtype=np.float64).sum(axis=1)
        if np.square(mono, dtype=np.float64).sum() < _CANCELLED * apart.mean():
            mono = array[apart.argmax()]
            tell_cancelled(int(apart.argmax()), notes)
    waveform = mono.astype(np.float32)
    if not np.isfinite(waveform).all():
        raise ValueError(f"Sound must hold finite samples, got {np.sum(~np.isfinite(waveform))} NaN or infinite ones.")
    largest = float(np.abs(waveform).max())
    if largest > _LARGEST_FLOAT:
        raise ValueError(
            f"Sound given as floats must be within -1..1, got a sample of {largest:g}; divide 16-bit values by 32768 "
            "or give them as int16."
        )
    return waveform


def tell_cancelled(channel: int, notes: list[str] | None) -> None:
    """Adds the note on what `ChannelEnergies` found."""
    if notes is not None:
        notes.append(f"audio: the channels cancel each other out (opposite phase), so only channel {channel} was read")


def _decode_audio(
    container: Any, sampling_rate: int, name: str, channel: int | None = None
) -> tuple[np.ndarray, int | None]:
    """The waveform of all channels' mean, or of one, and which channel to take instead where the mean cancels."""
    stream = audio_stream(container, name)
    errors: list[Exception] = []
    energies = ChannelEnergies()
    limits, samples, chunks = current_limits(), 0, []
    for chunk in resampled(container, stream, sampling_rate, errors, energies, channel, name):
        samples += len(chunk)
        limits.check("seconds", samples / sampling_rate, name, f"sound of more than {limits.seconds:g} seconds")
        chunks.append(chunk)
    if not chunks:
        raise ValueError(f"Cannot read sound from {name}: {errors[-1] if errors else 'the sound track is empty'}.")
    waveform = np.concatenate(chunks)
    if not np.isfinite(waveform).all():
        raise ValueError(f"Cannot read sound from {name}: it holds NaN or infinite samples.")
    return waveform, energies.strongest_of_cancelled() if channel is None else None


def audio_stream(container: Any, name: str) -> Any:
    """The sound track; ValueError with the file's name where there is none."""
    stream = first_stream(container, "audio")
    if stream is None:
        kinds = sorted({stream.type for stream in container.streams}) or ["no streams"]
        raise ValueError(f"Cannot read sound from {name}: it has no sound track (found: {', '.join(kinds)}).")
    return stream


class ChannelEnergies:
    """Of the channels of a sound and of their mean, added up frame by frame as they are decoded."""

    def __init__(self) -> None:
        self.mixed = 0.0
        self.apart = np.zeros(0)

    def add(self, channels: np.ndarray) -> None:
        """Samples (channels, samples) of one frame, in any unit."""
        if len(channels) < 2:
            return
        if len(self.apart) != len(channels):
            self.mixed, self.apart = 0.0, np.zeros(len(channels))
        values = channels.astype(np.float32) - (128 if channels.dtype == np.uint8 else 0)
        self.mixed += float(np.square(values.mean(axis=0)).sum())
        self.apart += np.square(values).sum(axis=1)

    def strongest_of_cancelled(self) -> int | None:
        """The channel to take where all cancel each other out; None where they do not."""
        if len(self.apart) == 0 or self.mixed >= _CANCELLED * self.apart.mean():
            return None
        return int(self.apart.argmax())


def resampled(
    container: Any,
    stream: Any,
    sampling_rate: int,
    errors: list[Exception],
    energies: ChannelEnergies,
    channel: int | None,
    name: str,
    start: float = 0.0,
) -> Iterator[np.ndarray]:
    """The sound of a stream piece by piece, (samples,) float32 at `sampling_rate`.

    Args:
        errors: to which is added what could not be decoded.
        energies: to which each frame is added, unless a channel is chosen.
        channel: the one to take; None for the mean of all.
        name: of the file, for messages.
        start: seconds after the file's beginning at which the sound begins; the container stands there or before.

    Raises:
        ValueError: floats far outside -1..1, or beyond `MediaLimits`.
    """
    make_resampler = import_av().AudioResampler
    resampler: Any = None
    setup = None
    keep_time = first_stream(container, "video") is not None
    clock = start_seconds(container)
    latest = clock + (container.duration or 0) / 1e6  # a broken time stamp must not become hours of silence
    clock += start
    begin, surplus = clock, 0
    limits = current_limits()
    states_floats = str(stream.codec_context.name).startswith("pcm_f")
    for frame in decode_frames(container, stream, errors):
        limits.check_sampling_rate(frame.sample_rate, name)
        if start and frame.time is not None and frame.time + frame.samples / frame.sample_rate <= begin:
            continue
        channels = _channels(frame) if states_floats or frame.layout.nb_channels > 1 else np.zeros((0, 0))
        if states_floats and np.abs(channels).max(initial=0.0) > _LARGEST_FLOAT:
            raise ValueError(
                f"Cannot read sound from {name}: its floats must be within -1..1, got a sample of "
                f"{np.abs(channels).max():g}."
            )
        if channel is None:
            energies.add(channels)
        elif channel < len(channels):
            frame = _mono(frame, channels[channel])
        now = (frame.format.name, frame.layout.name, frame.sample_rate)
        gap = frame.time - clock if keep_time and frame.time is not None and frame.time <= latest else 0.0
        # New at the beginning, after a gap, and where a broadcast changes its sound on the way.
        if setup != now or gap > _SILENCE_SECONDS:
            if resampler is not None:
                yield from _floats(resampler.resample(None))
            elif start and frame.time is not None:
                surplus = max(0, round((begin - frame.time) * sampling_rate))  # the first frame began before
            if gap > _SILENCE_SECONDS:
                limits.check("seconds", gap, name, f"a gap of {gap:.0f} seconds in the sound")
                yield np.zeros(round(gap * sampling_rate), dtype=np.float32)
            # 32-bit integers on purpose: to float FFmpeg mixes channels down without normalising, and stereo clips.
            resampler, setup = make_resampler(format="s32", layout="mono", rate=sampling_rate), now
        for samples in _floats(resampler.resample(frame)):
            yield samples[surplus:]
            surplus = max(0, surplus - len(samples))
        clock = (clock if frame.time is None else frame.time) + frame.samples / frame.sample_rate
    if resampler is not None:
        yield from _floats(resampler.resample(None))


def _channels(frame: Any) -> np.ndarray:
    """A decoded frame as (channels, samples), in its own unit."""
    samples = frame.to_ndarray()
    return samples if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels).T


def _mono(frame: Any, samples: np.ndarray) -> Any:
    """One channel's samples as a frame with the time and rate of the whole."""
    mono = type(frame).from_ndarray(np.ascontiguousarray(samples)[None], format=frame.format.name, layout="mono")
    mono.sample_rate, mono.time_base, mono.pts = frame.sample_rate, frame.time_base, frame.pts
    return mono


def _floats(frames: list[Any]) -> Iterator[np.ndarray]:
    for frame in frames:
        yield (frame.to_ndarray()[0] / 2.0**31).astype(np.float32)


def check_sampling_rate(sampling_rate: Any, field: str = "sampling_rate") -> int:
    """The rate as a whole number of Hz; ValueError naming `field` unless it is one and positive."""
    try:
        whole = int(sampling_rate)
        if whole == float(sampling_rate) and whole > 0 and not isinstance(sampling_rate, bool):
            return whole
    except (TypeError, ValueError, OverflowError):
        whole = 0
    raise ValueError(f"{field} must be a positive whole number of Hz, got {sampling_rate!r}.")


def resample_by_ffmpeg(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """A float32 waveform (samples,) from one rate to another, both in Hz, by FFmpeg's resampler."""
    av = import_av()
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform)[None], format="flt", layout="mono")
    frame.sample_rate = from_rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=to_rate)
    parts = [part.to_ndarray()[0] for part in (*resampler.resample(frame), *resampler.resample(None))]
    return np.concatenate(parts)


# ----- frames --------------------------------------------------------------------------------------------------------


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
            shown = np.searchsorted(times, np.asarray(targets) + TIME_TOLERANCE_SECONDS, side="right") - 1
            kept = sorted(set(shown.tolist()))
        return [np.asarray(load_image(items[index])) for index in kept], times[kept]

    with open_source(source) as (file, name):
        kind = picture_kind(file, name)
        if kind is None or kind[1] and kind[0] in _BY_FFMPEG:
            picked = _frames_of_video(file, name, num_frames, frame_rate, max_frames)
        elif kind[1]:
            picked = _frames_of_animation(file, name, num_frames, frame_rate, max_frames)
        else:
            picked = [(0.0, np.asarray(read_still(file, name)))]
    return [frame for _, frame in picked], np.array([seconds for seconds, _ in picked], dtype=np.float64)


def _frames_of_video(
    file: BinaryIO, name: str, num_frames: int | None, frame_rate: float | None, max_frames: int | None
) -> list[tuple[float, np.ndarray]]:
    with open_container(file, name) as container:
        timeline = _timeline(container, name)
    if timeline is None:
        with open_container(file, name) as container:
            timeline = _counted_timeline(container, name)
    targets = _targets(timeline, num_frames, frame_rate, max_frames)
    keyframes = timeline.keyframes
    try:
        with open_container(file, name) as container:
            picked = _pick(container, targets, keyframes, name)
    except ValueError:
        if not keyframes:
            raise
        # The index of a damaged file may point nowhere: without jumps, then.
        with open_container(file, name) as container:
            picked = _pick(container, targets, (), name)
    if targets is not None and len(picked) < len(targets) and frame_rate is None:
        # Fewer distinct frames than asked for: either the clip has no more, or they are unevenly spaced.
        with open_container(file, name) as container:
            every = _pick(container, None, (), name, limit=len(targets) + 1)
        picked = every if len(every) <= len(targets) else picked
    return picked


def _frames_of_animation(
    file: BinaryIO, name: str, num_frames: int | None, frame_rate: float | None, max_frames: int | None
) -> list[tuple[float, np.ndarray]]:
    times = [seconds for seconds, _ in animation_frames(file, name)]
    step = times[-1] / (len(times) - 1) if len(times) > 1 else 1 / SOURCE_FRAME_RATE
    targets = _targets(_Timeline(0.0, times[-1] + step), num_frames, frame_rate, max_frames)
    wanted = set(range(len(times)))
    if targets is not None and (len(targets) < len(times) or frame_rate is not None):
        shown = np.searchsorted(times, np.asarray(targets) + TIME_TOLERANCE_SECONDS, side="right") - 1
        wanted = set(shown.tolist())
    return [
        (seconds, np.asarray(picture))
        for index, (seconds, picture) in enumerate(animation_frames(file, name))
        if index in wanted
    ]


def upright(frame: Any, longest_side: int | None = None) -> np.ndarray:
    """A decoded frame as RGB (height, width, 3) uint8, turned and mirrored as its display matrix says, and shrunk to
    `longest_side` pixels where it is larger.

    The matrix maps stored to shown positions, x' = a x + c y and y' = b x + d y (FFmpeg, libavutil/display.h); as
    players do, it is rounded to quarter turns. Frames of 4,096 pixels or more are shrunk as stills are.
    """
    # PyAV ties a frame and its side data in a cycle, and a frame keeps its decoder with all its threads until the
    # garbage collector comes by: so a small copy is asked, which has the same.
    turned = frame.reformat(width=8, height=8, interpolation="POINT").side_data
    factor: float = shrink_factor(frame.width, frame.height)
    if longest_side is not None:
        factor = max(factor, max(frame.width, frame.height) / longest_side)
    if factor > 1:
        width, height = max(1, int(frame.width / factor)), max(1, int(frame.height / factor))
        frame = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
    pixels = frame.to_ndarray(format="rgb24")
    side_data = turned.get(import_av().sidedata.sidedata.Type.DISPLAYMATRIX) if turned else None
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


def video_stream(container: Any, name: str) -> Any:
    """The picture track; ValueError with the file's name where there is none, or one beyond `MediaLimits`."""
    stream = first_stream(container, "video")
    if stream is None:
        kinds = sorted({stream.type for stream in container.streams}) or ["no streams"]
        raise ValueError(f"Cannot read frames from {name}: it has no picture track (found: {', '.join(kinds)}).")
    context = stream.codec_context
    current_limits().check_size(context.width or 1, context.height or 1, name, "frame_pixels")
    return stream


def _timeline(container: Any, name: str) -> _Timeline | None:
    """The picture's timeline from the file's headers, or None if they do not say how long it is."""
    stream = video_stream(container, name)
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
            with suppress(import_av().FFmpegError, OSError):  # a file cut off early has no index
                container.seek(stream.start_time or 0, stream=stream)
        keyframes = sorted(entry.timestamp for entry in getattr(stream, "index_entries", ()) if entry.is_keyframe)
    return _Timeline(start, duration, keyframes) if duration > 0 else None


def _counted_timeline(container: Any, name: str) -> _Timeline:
    """The timeline of a stream or recording without a stated duration, by reading its packets without decoding."""
    av = import_av()
    stream: Any = first_stream(container, "video")
    spans: list[tuple[int, int]] = []
    count = 0
    limits, field = current_limits(), _frames_field(container)
    with suppress(av.FFmpegError, OSError):  # a file that breaks off is as long as what could be read of it
        for packet in container.demux(stream):
            count += packet.size > 0
            limits.check(field, count, name, f"a video of more than {getattr(limits, field)} frames")
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
    stream = video_stream(container, name)
    stream.thread_type = "AUTO"
    picked: list[tuple[float, np.ndarray]] = []
    if targets is None:
        for seconds, frame in timed_frames(container, stream, errors, name):
            picked.append((seconds, upright(frame)))
            if len(picked) == limit:
                break
    else:
        for seconds, frame in _shown_at(container, stream, targets, keyframes, errors, name):
            picked.append((seconds, upright(frame)))
    if not picked:
        reason = errors[-1] if errors else "no frame could be decoded"
        raise ValueError(f"Cannot read frames from {name}: {reason}.")
    return picked


def _frames_field(container: Any) -> str:
    """The limit that counts the frames of this kind of file."""
    return "animation_frames" if container.format.name in ("gif", "apng") else "frames"


def timed_frames(container: Any, stream: Any, errors: list[Exception], name: str) -> Iterator[tuple[float, Any]]:
    """Decoded frames with their seconds from the file's start; what cannot be decoded is added to `errors`."""
    begin = start_seconds(container)
    step = 1 / float(stream.average_rate or stream.guessed_rate or SOURCE_FRAME_RATE)
    seconds = -step
    limits, field = current_limits(), _frames_field(container)
    for count, frame in enumerate(decode_frames(container, stream, errors)):
        limits.check(field, count, name, f"a video of more than {getattr(limits, field)} frames")
        limits.check_size(frame.width, frame.height, name, "frame_pixels")
        seconds = max(0.0, float(frame.pts * stream.time_base) - begin) if frame.pts is not None else seconds + step
        yield seconds, frame


def _shown_at(
    container: Any, stream: Any, targets: list[float], keyframes: Sequence[int], errors: list[Exception], name: str
) -> Iterator[tuple[float, Any]]:
    """Each target's frame is the last one stamped at or before it. Key frames between here and there are jumped to."""
    begin = start_seconds(container)
    frames = timed_frames(container, stream, errors, name)
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
                frames, held, ahead = timed_frames(container, stream, errors, name), None, None
        if ahead is None or ahead[0] <= target + TIME_TOLERANCE_SECONDS:
            held, ahead = ahead or held, None
            for seconds, frame in frames:
                if seconds > target + TIME_TOLERANCE_SECONDS:
                    ahead = (seconds, frame)
                    break
                held = (seconds, frame)
        # Nothing before the target: the clip's first frame comes later than its headers say.
        shown = held or ahead
        if shown is not None and shown[0] > given:
            given = shown[0]
            yield shown
