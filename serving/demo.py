"""What `triemo demo` does: one clip read from every subset of its modalities, and what each of them contributes."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from triemo.serving import printing as display
from triemo.serving.predict import load_quietly, reading_document, warn_of_fallback
from triemo.serving.reading import Reading, default_model, read_subsets
from triemo.serving.samples import Sample, make_sample

__all__ = ["demo", "demo_sample"]

ASSETS = Path(__file__).resolve().parent / "assets"


def demo_sample() -> Sample:
    """The clip that comes with Triemo: a portrait, a synthetic voice, and the sentence it says."""
    clip = ASSETS / "demo.mp4"
    shown = clip.relative_to(Path.cwd()) if clip.is_relative_to(Path.cwd()) else clip
    return make_sample(str(shown), (ASSETS / "demo.txt").read_text("utf-8").strip())


def demo(
    file: str | None = None,
    text: str | None = None,
    audio: str | None = None,
    image: str | None = None,
    *,
    model: str | None = None,
    device: str | None = None,
    as_json: bool = False,
    **options: Any,
) -> None:
    """
    Print the scores of all subsets side by side, then the contributions to the best label of all together.

    Args:
        file, text, audio, image: the user's own input; with none of them the clip that comes with Triemo.
        options: `num_frames`, `use_sound_track`.

    Raises:
        ValueError: unreadable media, nothing to read from, or a regression model.
    """
    own = any(value is not None for value in (file, text, audio, image))
    sample = make_sample(file, text, audio, image) if own else demo_sample()
    reader = load_quietly(Console(stderr=True), model, device)
    read = read_subsets(reader, sample, **options)
    if as_json:
        reading = Reading(sample, read.evidence, read.ranked)
        document = {
            **reading_document(reading, model or default_model()),
            "subsets": [{"modalities": list(subset), "scores": by_label} for subset, by_label in read.scores.items()],
            "contributions": {"label": read.label, "without_input": read.empty, **read.parts},
        }
        print(json.dumps(document, indent=2))
        warn_of_fallback(reading)
        return
    console = Console()
    display.print_sample(console, sample, read.evidence)
    display.print_subsets(console, read.scores)
    display.print_contributions(console, read.label, read.empty, read.parts)
    display.print_disclaimer(console)
