"""What carries nothing is absent: empty cells, sound in which nothing is heard, text that the tokenizer does not know.

In NumPy alone, for every runtime. A reason is a sentence for the caller, which begins with the modality.
"""

import logging
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

__all__ = [
    "BLOCKS_PER_SECOND",
    "NothingToReadError",
    "check_text",
    "heard_blocks",
    "is_absent",
    "name_emoji",
    "say_once",
    "unheard",
    "unknown_words",
    "words_at",
]

SHORTEST_SOUND_SECONDS = 0.1  # of what is heard: less holds no syllable
_FAINTEST_LEVEL = 1e-3  # RMS of 10 ms, -60 dB of full scale; the quietest recordings of the corpora reach ten times it
BLOCKS_PER_SECOND = 100

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"  # kana and ideographs: between their words are no spaces
_WORD = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")
_FIRST_EMOJI = 0x2600
_JOINERS = {0xFE0E, 0xFE0F, 0x200D, *range(0x1F3FB, 0x1F400)}  # variation, joining and the skin's colour
# Where Unicode's first name says something else than the picture does; these are its later short names.
_BETTER_NAMES = {"😡": "enraged face", "😤": "face with steam from nose", "🤬": "swearing angry face"}


class NothingToReadError(ValueError):
    """Of a sample nothing is left to read from: all that was given is absent."""


_said: set[str] = set()


def say_once(logger: logging.Logger, notes: Sequence[str]) -> None:
    """Logs each kind of note once in a process; of one kind are notes that differ in numbers alone."""
    for note in notes:
        kind = re.sub(r"[\d.]+", "#", note)
        if kind not in _said:
            _said.add(kind)
            modality, _, told = note.partition(": ")
            logger.warning(
                f"{modality}: {told[:1].upper()}{told[1:]}. (Said once; return_notes=True tells it of every sample.)"
            )


def is_absent(value: Any) -> bool:
    """Whether a value is how an empty cell comes in: None, NaN, pandas' NA, an empty or blank string."""
    if value is None or isinstance(value, str):
        return not (value and value.strip())
    if isinstance(value, (float, np.floating)):
        return bool(np.isnan(value))
    return type(value).__name__ in ("NAType", "NaTType")  # pandas is not imported for it


def unheard(waveform: np.ndarray, sampling_rate: int) -> str | None:
    """
    Why there is nothing to hear in a waveform (samples,), or None if there is: it must be above -60 dB of full scale
    for at least 0.1 s. A constant offset is not heard.
    """
    seconds = len(waveform) / sampling_rate
    if seconds < SHORTEST_SOUND_SECONDS:
        return (
            f"audio: {seconds:.3f} s is too short to hold a syllable (at least {SHORTEST_SOUND_SECONDS:g} s), so the "
            "sound counts as absent"
        )
    heard = float(heard_blocks(waveform, sampling_rate).sum()) / BLOCKS_PER_SECOND
    if heard < SHORTEST_SOUND_SECONDS:
        return f"audio: silence ({heard:.2f} of {seconds:.2f} s are above -60 dB), so the sound counts as absent"
    return None


def heard_blocks(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Which blocks of 10 ms of a waveform (samples,) are above -60 dB of full scale, (blocks,) bool; whole blocks
    only, and a constant offset is not heard."""
    size = max(1, sampling_rate // BLOCKS_PER_SECOND)
    blocks = waveform[: len(waveform) // size * size].reshape(-1, size)
    power = np.einsum("ij,ij->i", blocks, blocks) / size - np.square(blocks.mean(axis=1))
    return power > _FAINTEST_LEVEL**2


def check_text(text: Any, row: int) -> None:
    """ValueError, with the row of the batch, for what is no string or cannot be encoded."""
    if not isinstance(text, str):
        raise ValueError(f"text must be a string or a list of strings, got {type(text).__name__} at {row}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text must be valid Unicode, got a lone surrogate {text[error.start]!r} as character {error.start} of "
            f"the text at {row}."
        ) from error


def name_emoji(text: str, is_unknown: Callable[[str], bool]) -> str:
    """
    The text with each emoji that the tokenizer does not know by its name in Unicode, a run of the same one once.

    Args:
        text: anything.
        is_unknown: whether the tokenizer has no token for a character.
    """
    if text.isascii():
        return text
    parts: list[str] = []
    last = ""
    for character in text:
        name = _emoji_name(character) if is_unknown(character) else ""
        if name:
            parts.append("" if character == last else f" {name} ")
            last = character
        elif not (last and ord(character) in _JOINERS):
            parts.append(character)
            last = ""
    return "".join(parts)


def _emoji_name(character: str) -> str:
    """Lower case; empty for what is no emoji or has no name in this Python's Unicode."""
    if ord(character) < _FIRST_EMOJI or unicodedata.category(character) != "So":
        return ""
    return _BETTER_NAMES.get(character) or unicodedata.name(character, "").lower()


def words_at(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[str, list[int]]]:
    """
    The words of a text, each with the steps of its tokens. A word is what stands between spaces, in scripts without
    them a character.

    Args:
        text: as the tokenizer got it.
        offsets: of each token, the characters where it begins and ends.
    """
    # The last character of a token tells its word: of some tokenizers the first is the space before it.
    last = [end - 1 if end > begin else -1 for begin, end in offsets]
    words = []
    for match in _WORD.finditer(text):
        steps = [step for step, character in enumerate(last) if match.start() <= character < match.end()]
        if steps:
            words.append((match.group(), steps))
    return words


def unknown_words(ids: Sequence[int], unknown: int | None, special: Collection[int]) -> tuple[int, int]:
    """How many of a text's tokens are unknown to the tokenizer, and how many there are, special ones aside."""
    own = [token for token in ids if token == unknown or token not in special]
    return sum(token == unknown for token in own), len(own)
