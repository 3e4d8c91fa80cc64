"""Which files of a corpus hold no voice to learn from: silent, cut, unreadable, or there twice."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from triemo.processing.media_triemo import load_audio

__all__ = ["CheckedSound", "check_sounds"]

RATE = 16000  # Hz
SHORTEST_SECONDS = 0.2
SILENCE = 1e-3  # loudness of the loudest 50 ms, full scale being 1: 60 dB below it
_FRAME = RATE // 20


@dataclass(frozen=True)
class CheckedSound:
    """
    Args:
        path: of the file.
        seconds: how long it is; 0 where nothing can be decoded.
        fault: why it is left out; None for a good file.
    """

    path: str
    seconds: float
    fault: str | None


def check_sounds(paths: Sequence[str], labels: Sequence[str], silence: float = SILENCE) -> list[CheckedSound]:
    """
    Decodes every file as the released model would.

    Of files with the same samples the first stays, if all of them carry the same label; otherwise none does.

    Args:
        paths: files, those that should rather stay first.
        labels: of each.
        silence: loudness below which the loudest 50 ms of a file are silence.

    Returns:
        One finding a file, in the same order.
    """
    found, first_of, labels_of = [], {}, {}
    for path, label in zip(paths, labels, strict=True):
        try:
            waveform = load_audio(path, RATE)
        except ValueError as error:
            found.append((0.0, f"unreadable: {error}", ""))
            continue
        digest = hashlib.sha256((waveform * 32767).round().astype("<i4").tobytes()).hexdigest()
        fault = None
        if len(waveform) < SHORTEST_SECONDS * RATE:
            fault = f"cut: shorter than {SHORTEST_SECONDS} s"
        elif _loudest(waveform) < silence:
            fault = "silent"
        else:
            first_of.setdefault(digest, path)
            labels_of.setdefault(digest, set()).add(label)
        found.append((len(waveform) / RATE, fault, digest))
    result = []
    for path, (seconds, fault, digest) in zip(paths, found, strict=True):
        if fault is None and len(labels_of[digest]) > 1:
            fault = f"duplicate with labels {', '.join(sorted(labels_of[digest]))}"
        elif fault is None and first_of[digest] != path:
            fault = f"duplicate of {first_of[digest]}"
        result.append(CheckedSound(path, round(seconds, 3), fault))
    return result


def _loudest(waveform: np.ndarray) -> float:
    """Root of the mean square of the loudest 50 ms."""
    frames = np.pad(waveform, (0, -len(waveform) % _FRAME)).reshape(-1, _FRAME)
    return float(np.sqrt(np.square(frames, dtype=np.float64).mean(1)).max())
