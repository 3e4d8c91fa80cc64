"""One sampling rate to another, for sound that is already in memory."""

import math

import numpy as np
import torch

from .media_triemo import resample_by_ffmpeg

try:
    import torchaudio
except OSError as error:
    raise ImportError(
        "torchaudio is installed as a CUDA build next to a CPU-only torch and does not load. Run "
        "`python -m triemo.serving.repair_torchaudio` (or `make venv` in a clone), which removes its optional "
        f"compiled parts. The loader said: {error}"
    ) from error

__all__ = ["resample"]

_LARGEST_KERNEL = 20_000_000  # coefficients: 80 MB. 44.1 to 16 kHz needs 72 thousand


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Band-limited resampling of a float32 waveform (samples,) from one rate to another, both in Hz.

    `torchaudio.functional.resample` (windowed sinc); its kernel grows with the rates over their greatest common
    divisor, so that for odd pairs (44101 to 16000 Hz) FFmpeg's resampler, which interpolates its filter, takes over.
    """
    if from_rate == to_rate:
        return waveform
    common = math.gcd(from_rate, to_rate)
    if (from_rate // common) * (to_rate // common) > _LARGEST_KERNEL:
        return resample_by_ffmpeg(waveform, from_rate, to_rate)
    return torchaudio.functional.resample(torch.from_numpy(waveform), from_rate, to_rate).numpy()
