"""The page's second tab: a recording of any length, read window by window, as a curve, tables and files."""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from triemo.serving.onnx.processing.media_sources_triemo import media_limits
from triemo.serving.onnx.processing.samples_triemo import media_kind
from triemo.serving.page import visitors
from triemo.serving.page.clip import problem_html
from triemo.serving.timeline.files import FORMATS
from triemo.serving.timeline.pictures import timeline_page
from triemo.serving.timeline.recordings import Moment, notes_of_timeline, read_timeline, seconds_of, spoken

__all__ = ["read_recording", "recording_tab", "timeline_html"]

NOTHING_YET = '<p class="triemo-empty">The timeline appears here.</p>'
TRANSCRIPTS = [".srt", ".vtt", ".json"]
_PEOPLE = {"The main person": "main", "Everyone": "all"}
_TYPES = {".csv": "text/csv", ".jsonl": "application/jsonl", ".html": "text/html"}


def recording_tab(reader: Any, turn: AbstractContextManager, busy: Mapping[str, Any]) -> list[Any]:
    """The tab's components, within a `gr.Tab`; arguments and result as of `clip_tab`."""

    def read(
        recording: str | None,
        transcript: str | None,
        people: str = "The main person",
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how the library finds out that there is one
    ) -> str:
        try:
            if not recording:
                raise ValueError("Nothing to read yet: add a recording.")
            return read_recording(reader, turn, recording, transcript, _PEOPLE[people], progress)
        except ValueError as error:
            return problem_html(str(error))

    minutes = visitors.long_limits().seconds / 60
    with gr.Row():
        recording = gr.File(
            label=f"Sound or video, up to {minutes:.0f} minutes",
            height=150,
        )
        transcript = gr.File(label="Transcript with times, if there is one", file_types=TRANSCRIPTS, height=150)
    people = gr.Radio(list(_PEOPLE), value="The main person", label="Whose face")
    with gr.Row():
        button = gr.Button("Read the recording", variant="primary", min_width=140)
        clear = gr.Button("Clear the recording", min_width=140)
    result = gr.HTML(NOTHING_YET, elem_id="triemo-timeline", padding=False, container=True, min_height=120)

    asked = {"show_progress": "full", "scroll_to_output": True, "api_name": "timeline"}
    button.click(read, [recording, transcript, people], result, **asked, **busy, api_visibility="undocumented")
    clear.click(
        lambda: (None, None, NOTHING_YET),
        outputs=[recording, transcript, result],
        api_visibility="private",
        show_progress="hidden",
    )
    return [recording, transcript]


def read_recording(
    reader: Any,
    turn: AbstractContextManager,
    recording: str,
    transcript: str | None = None,
    people: str = "main",
    progress: Callable[..., Any] | None = None,
) -> str:
    """
    A recording's timeline as HTML.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline.
        turn: is held for a few windows at a time, so that others are read in between.
        recording: file of a sound or a video.
        transcript: file of what is said when.
        people: "main" or "all".
        progress: is told the share that is done and what is at work.

    Raises:
        ValueError: either cannot be read or is beyond the limits, or there is nothing to read.
    """
    limits = visitors.long_limits()
    source, name, notes = visitors.file_given(recording, limits), Path(recording).name, list[str]()
    with media_limits(limits.media):
        kind, seconds = media_kind(source), seconds_of(source, name)
    input_: dict[str, Any] = {kind: source}
    if transcript:
        try:
            input_["text"] = spoken(transcript, seconds, notes)
        except ValueError as error:
            # Messages name the file as it lies here, which says nothing to the visitor.
            raise ValueError(str(error).replace(transcript, Path(transcript).name)) from error
    moments = []
    for moment in _by_turns(turn, read_timeline(reader, input_, people=people, limits=limits.media)):
        moments.append(moment)
        if progress is not None:
            progress(min(1.0, moment.end / seconds), desc="Reading")
    return timeline_html(moments, name, notes)


def _by_turns(turn: AbstractContextManager, moments: Iterator[Moment]) -> Iterator[Moment]:
    while True:
        with turn:
            moment = next(moments, None)
        if moment is None:
            return
        yield moment


def timeline_html(moments: Sequence[Moment], name: str, notes: Sequence[str] = ()) -> str:
    """
    The curve, the moments that stand out, people and windows, and the timeline's files to download.

    Args:
        name: of the recording.
        notes: besides those of the windows.

    Raises:
        ValueError: nothing was read.
    """
    told = [*notes, *notes_of_timeline(moments, name)]
    page = timeline_page(moments, name, told)
    files = {suffix: FORMATS[suffix](moments) for suffix in (".csv", ".jsonl")} | {".html": page.render()}
    links = " ".join(
        # The content is in the link itself, so that no file of a visitor's results is ever written.
        f'<a download="{escape(Path(name).stem)}.timeline{suffix}" href="data:{_TYPES[suffix]};base64,'
        f'{base64.b64encode(content.encode()).decode()}">{suffix.lstrip(".").upper()}</a>'
        for suffix, content in files.items()
    )
    return (
        f'<div class="triemo-timeline"><p class="triemo-lead">{escape(name)}</p>'
        f'<p class="triemo-files">Download: {links}</p>{page.body}</div>'
    )
