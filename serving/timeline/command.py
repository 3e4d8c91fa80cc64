"""What `triemo timeline` does: read a recording window by window, with the time left, and write what was asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from triemo.serving import printing
from triemo.serving.onnx.processing.media_sources_triemo import media_limits
from triemo.serving.onnx.processing.media_triemo import load_audio
from triemo.serving.reading import load_reader
from triemo.serving.samples import UsageError
from triemo.serving.timeline.files import FORMATS, stretches
from triemo.serving.timeline.marks import clock
from triemo.serving.timeline.pictures import timeline_page, timeline_png
from triemo.serving.timeline.recordings import (
    Moment,
    notes_of_timeline,
    read_timeline,
    seconds_of,
    spoken,
    timed_text,
)
from triemo.serving.timeline.transcripts import Utterance, fit_to_recording
from triemo.training.common import write_whole

__all__ = ["timeline"]

_LIMITS = {"seconds": 86_400.0}  # of a recording; memory does not grow with it
_SPEECH_RATE, _SPEECH_SECONDS = 16_000, 30.0  # Hz; of the pieces in which long speech is recognised
_DEFAULT_FORMATS = ("jsonl", "csv", "html")
_SUFFIXES = {suffix.lstrip(".").lower(): suffix for suffix in (*FORMATS, ".png", ".html")}


def timeline(
    file: str,
    *,
    output: Path | None = None,
    formats: Sequence[str] = (),
    transcript: Path | None = None,
    transcribe: str | None = None,
    model: str | None = None,
    device: str | None = None,
    people: str = "main",
    **options: Any,
) -> None:
    """
    Read a recording and write its timeline.

    Args:
        output: folder of the files, named as the recording; by default the one in which this runs.
        formats: any of jsonl, csv, png, html, srt, vtt, textgrid; by default jsonl, csv and html.
        transcript: file with what is said when (`read_transcript`).
        transcribe: speech-recognition model, a folder or Hub id, that says what is said.
        people: "main", "all" or four numbers with commas between them.
        options: `chunk_length_s`, `stride_length_s`, `start`, `end`, `use_sound_track`.

    Raises:
        UsageError: options that do not go together.
        ValueError: unreadable media, transcript or model, or nothing to read.
    """
    wanted = [_suffix(name) for name in formats or _DEFAULT_FORMATS]
    if transcript is not None and transcribe is not None:
        raise UsageError("--transcript and --transcribe both say what is said; give one of them.")
    errors = Console(stderr=True)
    notes: list[str] = []
    with media_limits(_LIMITS):
        seconds = seconds_of(file, file)
    input_: dict[str, Any] = _input_of(file)
    if transcript is not None:
        input_["text"] = spoken(transcript, seconds, notes)
    elif transcribe is not None:
        with errors.status(f"Transcribing with {transcribe}"):
            input_["text"] = transcribed(file, seconds, transcribe, device, notes)
    with errors.status("Loading the model"):
        reader = load_reader(model, device)
    windows = read_timeline(reader, input_, people=_people(people), limits=_LIMITS, **options)
    moments = _with_progress(errors, windows, seconds)
    notes += notes_of_timeline(moments, file)
    written = _write(moments, file, output or Path(), wanted, notes)
    _print(moments, notes, written)


def transcribed(file: str, seconds: float, model: str, device: str | None, notes: list[str]) -> list[dict[str, Any]]:
    """
    What is said when in a recording of so many seconds, by the library's speech-recognition pipeline, as words with
    times (`timed_text`). What a model claims to hear beyond the recording's end is cut or left out, with a note, as of
    a transcript; an end before its start counts as unknown.

    Raises:
        ValueError: the model cannot be loaded, or the file has no sound.
    """
    from transformers import pipeline  # here only: a transcript is read without torch

    with media_limits(_LIMITS):
        sound = {"raw": load_audio(file, _SPEECH_RATE), "sampling_rate": _SPEECH_RATE}
    try:
        recognizer: Any = pipeline("automatic-speech-recognition", model=model, device=device)
    except (OSError, ValueError) as error:
        raise ValueError(f"transcribe: cannot load {model}: {str(error).splitlines()[0]}") from error
    # Whisper goes through long sound by itself, and better than in pieces; what has no timestamps of its own does not.
    ctc = recognizer.type in ("ctc", "ctc_with_lm")
    asked = {"return_timestamps": "word", "chunk_length_s": _SPEECH_SECONDS} if ctc else {"return_timestamps": True}
    heard = []
    for chunk in recognizer(sound, **asked).get("chunks", []):
        start, end = chunk["timestamp"]
        if chunk["text"].strip():
            backwards = start is not None and end is not None and end < start
            heard.append(Utterance(start, None if backwards else end, chunk["text"].strip()))
    if not any(one.start is None or one.start < seconds for one in heard):
        notes.append(f"transcript: {model} heard no words in the recording")
        return []
    return timed_text(fit_to_recording(heard, seconds, model, notes), notes)


def _input_of(file: str) -> dict[str, Any]:
    from triemo.serving.samples import make_sample

    sample = make_sample(file)
    return dict(sample.inputs)


def _people(people: str) -> Any:
    if people in ("main", "all"):
        return people
    try:
        return [float(part) for part in people.split(",")]
    except ValueError as error:
        raise UsageError(f"--people takes main, all or a box x0,y0,x1,y1, got {people!r}.") from error


def _suffix(name: str) -> str:
    known = name.lower().lstrip(".")
    if known not in _SUFFIXES:
        raise UsageError(f"--format takes {', '.join(_SUFFIXES)}, got {name!r}.")
    return _SUFFIXES[known]


def _with_progress(errors: Console, stream: Any, seconds: float) -> list[Moment]:
    columns = (TextColumn("Reading"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    moments: list[Moment] = []
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("read", total=seconds)
        for moment in stream:
            moments.append(moment)
            bar.update(task, completed=moment.end)
    return moments


def _write(
    moments: Sequence[Moment], file: str, folder: Path, suffixes: Sequence[str], notes: Sequence[str]
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(file.rstrip("/")).name
    base = folder / f"{Path(name).stem}.timeline"
    written = []
    for suffix in suffixes:
        path = base.with_name(base.name + suffix)
        if suffix == ".png":
            write_whole(path, timeline_png(moments, name))
        elif suffix == ".html":
            timeline_page(moments, name, notes).write(path)
        else:
            write_whole(path, FORMATS[suffix](moments))
        written.append(path)
    return written


def _print(moments: Sequence[Moment], notes: Sequence[str], written: Sequence[Path]) -> None:
    console = Console()
    for start, end, label, score in stretches(moments):
        line = f"{clock(start):>8} - {clock(end):<8} {label:<10} {printing.percent(score)}"
        console.print(line, markup=False, highlight=False)
    for note in notes:
        console.print(f"Note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for path in written:
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
    printing.print_disclaimer(console)
