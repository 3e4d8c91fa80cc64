"""A WAV file as the stock audio pipeline takes it: a path it would hand to a system's ffmpeg, which may be missing."""

import wave

import numpy as np


def read_pcm(path: str) -> dict:
    """16-bit samples, the mean of the channels, float32 within -1..1."""
    with wave.open(path) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
        raw = samples.reshape(-1, file.getnchannels()).mean(1).astype(np.float32) / 32768
        return {"raw": raw, "sampling_rate": file.getframerate()}
