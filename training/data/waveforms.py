"""Augmentation of waveforms: what differs between recordings of the same voice, and between two voices.

All functions take and give float32 samples (S,) at 16 kHz, and draw from a `numpy.random.Generator`.
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
import torchaudio

from triemo.processing.media_sources_triemo import import_av
from triemo.processing.media_triemo import load_audio
from triemo.processing.resampling_triemo import resample

__all__ = ["RATE", "augment_waveform", "in_a_room", "join_waveforms", "through_opus", "with_tempo"]

RATE = 16000  # Hz
N_FFT, HOP = 512, 128
OPUS_RATES = (8000, 12000, 16000, 24000)  # bits a second


def augment_waveform(waveform: np.ndarray, random: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """
    One more recording of a clip.

    At strength 1, each of these befalls a share of the clips: another speed and so another pitch, up to 12 % (half);
    another tempo, up to 15 % (a third); cut short by up to 40 %, 1 s at least remaining (a third); a room (a third);
    noise of a random colour, 5 to 35 dB below the voice (half); a lower rate, down to 6.4 kHz, and so the band of a
    telephone (a quarter); the losses of Opus or of 8-bit companding (a quarter); up to 1.5 s of quiet around (a
    third); a gain of up to 12 dB either way, clipped at full scale (always).

    Args:
        waveform: samples.
        random: of every draw.
        strength: factor of the shares; 0 leaves the clip as it is.

    Returns:
        Samples, as a rule of another number.
    """
    if strength == 0:
        return waveform
    share = random.random(8) / strength
    if share[0] < 1 / 2:
        waveform = resample(waveform, int(random.integers(-6, 7)) * 320 + RATE, RATE)
    if share[1] < 1 / 3:
        waveform = with_tempo(waveform, 1 + random.uniform(-0.15, 0.15))
    if share[2] < 1 / 3 and len(waveform) > RATE:
        kept = max(RATE, int(len(waveform) * random.uniform(0.6, 1)))
        start = int(random.integers(len(waveform) - kept + 1))
        waveform = waveform[start : start + kept]
    if share[3] < 1 / 3:
        waveform = in_a_room(waveform, random)
    if share[4] < 1 / 2:
        waveform = waveform + _noise(len(waveform), random) * _loudness(waveform) * 10 ** -random.uniform(0.25, 1.75)
    if share[5] < 1 / 4:
        lower = int(random.choice([6400, 8000, 8000, 11200]))
        waveform = resample(resample(waveform, RATE, lower), lower, RATE)
    if share[6] < 1 / 4:
        waveform = (
            through_opus(waveform, int(random.choice(OPUS_RATES))) if random.random() < 0.7 else _mu_law(waveform)
        )
    if share[7] < 1 / 3:
        around = [_noise(int(RATE * random.uniform(0, 0.75)), random) * 10 ** -random.uniform(3, 5) for _ in range(2)]
        waveform = np.concatenate([around[0], waveform, around[1]])
    gain = 10 ** (random.uniform(-12, 12) / 20)
    return np.clip(waveform * gain, -1, 1).astype(np.float32)


def with_tempo(waveform: np.ndarray, tempo: float) -> np.ndarray:
    """Quicker (above 1) or slower at the same pitch, by a phase vocoder; clips too short for one stay as they are."""
    if len(waveform) < 2 * N_FFT:
        return waveform
    window = torch.hann_window(N_FFT)
    spectrum = torch.stft(torch.from_numpy(waveform), N_FFT, HOP, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * HOP, N_FFT // 2 + 1)[:, None]
    moved = torchaudio.functional.phase_vocoder(spectrum, tempo, advance)
    return torch.istft(moved, N_FFT, HOP, window=window, length=round(len(waveform) / tempo)).numpy()


def in_a_room(waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """With the echoes of a room: noise that dies away within 0.1 to 0.6 s (60 dB), at most as loud as the voice."""
    length = int(RATE * random.uniform(0.1, 0.6))
    echo = random.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    response = echo * random.uniform(0.2, 1) / np.linalg.norm(echo)
    response[0] = 1.0
    size = len(waveform) + length
    heard = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]
    return heard.astype(np.float32)


def through_opus(waveform: np.ndarray, bit_rate: int) -> np.ndarray:
    """As Opus at so many bits a second leaves it."""
    av = import_av()
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=RATE, layout="mono", bit_rate=bit_rate)
        samples = (np.clip(waveform, -1, 1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return load_audio(file.getvalue(), RATE)[: len(waveform)]


def join_waveforms(waveforms: Sequence[np.ndarray], random: np.random.Generator, seconds: float = 15.0) -> np.ndarray:
    """One after the other with pauses of 0.1 to 0.6 s of quiet, until there are so many seconds."""
    parts: list[np.ndarray] = []
    for waveform in waveforms:
        if parts:
            parts.append((random.standard_normal(int(RATE * random.uniform(0.1, 0.6))) * 1e-4).astype(np.float32))
        parts.append(waveform)
    return np.concatenate(parts)[: int(seconds * RATE)]


def _loudness(waveform: np.ndarray) -> float:
    """Root of the mean square, of the whole clip."""
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)) + 1e-12))


def _noise(length: int, random: np.random.Generator) -> np.ndarray:
    """Noise of loudness 1 whose power falls with the frequency to a power of 0 (white) to 2 (brown)."""
    if length == 0:
        return np.zeros(0, np.float32)
    spectrum = np.fft.rfft(random.standard_normal(length))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** -random.uniform(0, 1)
    noise = np.fft.irfft(spectrum, length)
    return (noise / max(_loudness(noise), 1e-9)).astype(np.float32)


def _mu_law(waveform: np.ndarray) -> np.ndarray:
    code = torchaudio.functional.mu_law_encoding(torch.from_numpy(np.clip(waveform, -1, 1).astype(np.float32)), 256)
    return torchaudio.functional.mu_law_decoding(code, 256).numpy()
