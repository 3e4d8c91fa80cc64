"""From the words and files on a command line to the pipeline's inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["ASSETS", "Sample", "UsageError", "check_usage", "demo_sample", "make_sample"]

ASSETS = Path(__file__).resolve().parent / "assets"
_ARTICLE = {"audio": "a sound", "image": "a picture", "video": "a video"}
_SENTENCE_LENGTH = 60  # characters of a sentence that stands for its input in messages


class UsageError(ValueError):
    """The command was put together wrongly, whatever the files hold."""


@dataclass(frozen=True)
class Sample:
    """
    Args:
        name: what messages and tables call it.
        file: the file as it was typed, None without one.
        inputs: what the pipeline takes: any of `text`, `audio`, `video`, `image`.
    """

    name: str
    file: str | None = None
    inputs: dict[str, Any] = field(default_factory=dict)


def check_usage(files: Sequence[str], text: str | None, audio: str | None, image: str | None) -> None:
    """
    Raises:
        UsageError: nothing given, or additions to several files.
    """
    added = [f"--{name}" for name, value in (("text", text), ("audio", audio), ("image", image)) if value is not None]
    if not files and not added:
        raise UsageError("nothing to read: give a file, --text, --audio or --image.")
    if len(files) > 1 and added:
        raise UsageError(f"{' and '.join(added)} would add to one file, got {len(files)} files; give one at a time.")


def make_sample(
    file: str | None, text: str | None = None, audio: str | None = None, image: str | None = None
) -> Sample:
    """
    One input: a file and what is said, heard or seen besides, or these alone. The file's content says what it is.

    Raises:
        UsageError: the file is of a kind that an option gives too.
        ValueError: the file is missing or neither video, sound nor image.
    """
    options = {"text": text, "audio": audio, "image": image}
    inputs: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if file is None:
        sources = [value for name, value in inputs.items() if name != "text"]
        return Sample(", ".join(sources) or _quoted(text or ""), None, inputs)
    if "://" not in file and not Path(file).expanduser().exists():
        raise ValueError(f"{file}: no such file (a sentence is given with --text).")
    from triemo.serving.onnx.processing.samples_triemo import media_kind

    source = _fetched(file)
    kind = media_kind(source)
    if kind in inputs or (kind == "video" and "image" in inputs):
        option = "image" if kind == "video" else kind
        raise UsageError(f"{file} is {_ARTICLE[kind]} file, and --{option} is given too; give one of them.")
    return Sample(file, file, {kind: source, **inputs})


def demo_sample() -> Sample:
    """The clip that comes with Triemo: a portrait, a synthetic voice, and the sentence it says."""
    clip = ASSETS / "demo.mp4"
    shown = clip.relative_to(Path.cwd()) if clip.is_relative_to(Path.cwd()) else clip
    return make_sample(str(shown), (ASSETS / "demo.txt").read_text("utf-8").strip())


def _fetched(file: str) -> Any:
    """A URL is downloaded once: its kind, its frames and its sound are each read from the start."""
    if urlsplit(file).scheme not in ("http", "https"):
        return file
    from triemo.serving.onnx.processing.media_sources_triemo import open_source

    with open_source(file) as (content, name):
        return {"bytes": content.read(), "path": name}


def _quoted(text: str) -> str:
    short = text if len(text) <= _SENTENCE_LENGTH else text[: _SENTENCE_LENGTH - 1] + "…"
    return f'"{short}"'
