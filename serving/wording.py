"""Names for people: what the model calls text, audio and vision are words, voice and face to them."""

from collections.abc import Sequence

__all__ = ["DISCLAIMER", "NAMES", "fallback_note", "listed", "percent", "read_from"]

NAMES = {"text": "words", "audio": "voice", "vision": "face"}
DISCLAIMER = "Triemo reads expression, not inner feeling."


def listed(modalities: Sequence[str]) -> str:
    """("text", "audio") to "words and voice"."""
    names = [NAMES[name] for name in modalities]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def read_from(modalities: Sequence[str], faces: tuple[int, int] | None) -> str:
    """What a prediction rests on, such as "words, voice, face (14 of 16 frames)"."""
    parts = [NAMES[name] for name in modalities]
    if "vision" in modalities and faces is not None and faces[1] > 1:
        parts[-1] += f" ({faces[0]} of {faces[1]} frames)"
    return ", ".join(parts)


def fallback_note(missing: Sequence[str], modalities: Sequence[str]) -> str:
    """What was missing and what was read instead; empty if nothing was."""
    if not missing:
        return ""
    what = " and ".join(missing)
    return f"{what[0].upper()}{what[1:]}: read from {listed(modalities)} alone."


def percent(score: float, signed: bool = False) -> str:
    """A share of 1 with one decimal, "72.3 %"."""
    return f"{100 * score:{'+' if signed else ''}.1f} %"
