"""Sampling rates, and FFmpeg's way from one to another, which needs no torch."""

from typing import Any

import numpy as np

from .media_sources_triemo import import_av

__all__ = ["check_sampling_rate", "resample_by_ffmpeg"]


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
