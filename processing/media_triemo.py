"""Any sound or video file, and its sound track, to plain arrays: the one door through which media come in.

Pictures and frames live in the siblings this page gathers; sound is decoded here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .media_frames_triemo import load_frames, start_seconds, upright
from .media_images_triemo import load_image, split_frames
from .media_sources_triemo import (
    decode_frames,
    first_stream,
    import_av,
    is_media_source,
    is_tensor,
    open_container,
    open_source,
)
from .sampling_rates_triemo import check_sampling_rate

__all__ = ["MediaInfo", "load_audio", "load_frames", "load_image", "probe_media", "waveform_from_array"]

_MOST_CHANNELS = 32  # more rows than this are samples: (samples, channels), as soundfile gives them
_FULL_SCALE = {"int8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}
_SILENCE_SECONDS = 0.02  # a longer gap in a video's sound is filled, so that sound and picture stay together


@dataclass(frozen=True)
class MediaInfo:
    """What a source holds. Width and height are pixels as shown (after rotation); None means that it does not say."""

    has_audio: bool
    has_video: bool
    duration_seconds: float | None
    frame_rate: float | None
    width: int | None
    height: int | None


def load_audio(source: Any, sampling_rate: int = 16000) -> np.ndarray:
    """Load sound as one channel at one rate.

    Args:
        source: sound or video file as path, http(s) or file URL, bytes or `{"bytes", "path"}`;
            `{"array", "sampling_rate"}` (or "raw" for "array") with an array of shape (samples,) or
            (channels, samples); an array, tensor or list of floats, which is taken as sampled at `sampling_rate`
            already; a torchcodec decoder, which `datasets` gives with `decode=True`.
        sampling_rate: of the result, in Hz.

    Returns:
        Float32 array of shape (samples,), nominally within -1..1: full scale of the source is 1. Where the sound of
        a video begins late or has gaps, silence fills them, so that sample n is at n / sampling_rate seconds on the
        clock of `load_frames`.

    Raises:
        ValueError: unreadable source, no sound track, nothing that can be decoded, no samples, NaN or infinite
            samples, wrong rank or type, unstated or impossible rate. Of a damaged file what can be decoded is
            returned.
    """
    sampling_rate = check_sampling_rate(sampling_rate)
    if is_media_source(source):
        with open_source(source) as (file, name), open_container(file, name) as container:
            return _decode_audio(container, sampling_rate, name)
    if hasattr(source, "get_all_samples"):
        samples = source.get_all_samples()
        source = {"array": samples.data, "sampling_rate": samples.sample_rate}
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

        return resample(waveform_from_array(array), check_sampling_rate(source["sampling_rate"]), sampling_rate)
    return waveform_from_array(source)


def waveform_from_array(array: Any) -> np.ndarray:
    """Samples in memory as a float32 mono waveform of shape (samples,); ValueError for what is not sound.

    Args:
        array: array, tensor or list of shape (samples,) or (channels, samples), whose channels are averaged. Floats
            are taken as they are; int8, int16, int32 and uint8 (unsigned PCM, silence at 128) are scaled to -1..1.
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
    waveform = (array.mean(axis=0) if array.ndim == 2 else array).astype(np.float32)
    if not np.isfinite(waveform).all():
        raise ValueError(f"Sound must hold finite samples, got {np.sum(~np.isfinite(waveform))} NaN or infinite ones.")
    return waveform


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
    with open_source(source) as (file, name), open_container(file, name) as container:
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


def _decode_audio(container: Any, sampling_rate: int, name: str) -> np.ndarray:
    stream = first_stream(container, "audio")
    if stream is None:
        kinds = sorted({stream.type for stream in container.streams}) or ["no streams"]
        raise ValueError(f"Cannot read sound from {name}: it has no sound track (found: {', '.join(kinds)}).")
    errors: list[Exception] = []
    chunks = list(_resampled(container, stream, sampling_rate, errors))
    if not chunks:
        raise ValueError(f"Cannot read sound from {name}: {errors[-1] if errors else 'the sound track is empty'}.")
    waveform = np.concatenate(chunks)
    if not np.isfinite(waveform).all():
        raise ValueError(f"Cannot read sound from {name}: it holds NaN or infinite samples.")
    return waveform


def _resampled(container: Any, stream: Any, sampling_rate: int, errors: list[Exception]) -> Iterator[np.ndarray]:
    make_resampler = import_av().AudioResampler
    resampler: Any = None
    setup = None
    keep_time = first_stream(container, "video") is not None
    clock = start_seconds(container)
    latest = clock + (container.duration or 0) / 1e6  # a broken time stamp must not become hours of silence
    for frame in decode_frames(container, stream, errors):
        now = (frame.format.name, frame.layout.name, frame.sample_rate)
        gap = frame.time - clock if keep_time and frame.time is not None and frame.time <= latest else 0.0
        # New at the beginning, after a gap, and where a broadcast changes its sound on the way.
        if setup != now or gap > _SILENCE_SECONDS:
            if resampler is not None:
                yield from _floats(resampler.resample(None))
            if gap > _SILENCE_SECONDS:
                yield np.zeros(round(gap * sampling_rate), dtype=np.float32)
            # 32-bit integers on purpose: to float FFmpeg mixes channels down without normalising, and stereo clips.
            resampler, setup = make_resampler(format="s32", layout="mono", rate=sampling_rate), now
        yield from _floats(resampler.resample(frame))
        clock = (clock if frame.time is None else frame.time) + frame.samples / frame.sample_rate
    if resampler is not None:
        yield from _floats(resampler.resample(None))


def _floats(frames: list[Any]) -> Iterator[np.ndarray]:
    for frame in frames:
        yield (frame.to_ndarray()[0] / 2.0**31).astype(np.float32)
