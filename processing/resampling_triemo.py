"""One sampling rate to another, for sound that is already in memory."""

import math
from typing import Any

import numpy as np
import torch

from .media_sources_triemo import import_av

try:
    import torchaudio
except OSError as error:
    raise ImportError(
        "torchaudio is installed as a CUDA build next to a CPU-only torch and does not load. Run "
        "`python -m triemo.serving.repair_torchaudio` (or `make venv` in a clone), which removes its optional "
        f"compiled parts. The loader said: {error}"
    ) from error

__all__ = ["check_sampling_rate", "resample"]

_LARGEST_KERNEL = 20_000_000  # coefficients: 80 MB. 44.1 to 16 kHz needs 72 thousand


def check_sampling_rate(sampling_rate: Any, field: str = "sampling_rate") -> int:
    """The rate as a whole number of Hz; ValueError naming `field` unless it is one and positive."""
    try:
        whole = int(sampling_rate)
        if whole == float(sampling_rate) and whole > 0 and not isinstance(sampling_rate, bool):
            return whole
    except (TypeError, ValueError, OverflowError):
        whole = 0
    raise ValueError(f"{field} must be a positive whole number of Hz, got {sampling_rate!r}.")


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Band-limited resampling of a float32 waveform (samples,) from one rate to another, both in Hz.

    `torchaudio.functional.resample` (windowed sinc); its kernel grows with the rates over their greatest common
    divisor, so that for odd pairs (44101 to 16000 Hz) FFmpeg's resampler, which interpolates its filter, takes over.
    """
    if from_rate == to_rate:
        return waveform
    common = math.gcd(from_rate, to_rate)
    if (from_rate // common) * (to_rate // common) > _LARGEST_KERNEL:
        return _resample_by_ffmpeg(waveform, from_rate, to_rate)
    return torchaudio.functional.resample(torch.from_numpy(waveform), from_rate, to_rate).numpy()


def _resample_by_ffmpeg(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    av = import_av()
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform)[None], format="flt", layout="mono")
    frame.sample_rate = from_rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=to_rate)
    parts = [part.to_ndarray()[0] for part in (*resampler.resample(frame), *resampler.resample(None))]
    return np.concatenate(parts)
