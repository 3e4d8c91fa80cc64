"""How times and emotions are marked in tables, pictures and pages."""

from collections.abc import Sequence

__all__ = ["clock", "colours_of"]

_COLOURS = {
    "anger": "#d62728",
    "disgust": "#8c6d31",
    "fear": "#9467bd",
    "joy": "#f2c52c",
    "neutral": "#c7c7c7",
    "sadness": "#1f77b4",
    "surprise": "#2ca02c",
}


def clock(seconds: float | None, tenths: bool = False) -> str:
    """1:02:03, 2:03 below an hour, with `tenths` 2:03.4; empty where unknown."""
    if seconds is None:
        return ""
    total = round(seconds * 10) if tenths else int(seconds) * 10
    minutes, rest = divmod(total, 600)
    shown = f"{rest / 10:04.1f}" if tenths else f"{rest // 10:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{shown}" if minutes >= 60 else f"{minutes}:{shown}"


def colours_of(labels: Sequence[str]) -> list[str]:
    """A colour for each label, the same in every picture; labels of one's own take matplotlib's in turn."""
    return [_COLOURS.get(label, f"C{index}") for index, label in enumerate(labels)]
