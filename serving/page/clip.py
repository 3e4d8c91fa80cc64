"""The page's first tab: what a clip's words, voice and face say in every combination, and what moved the answer."""

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from html import escape
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from triemo.processing.explanations_triemo import disagree, said_alone
from triemo.serving.page import visitors
from triemo.serving.printing import (
    NAMES,
    UNCERTAIN,
    disagreement,
    percent,
    read_from,
    strongest_time,
    strongest_words,
    told_of,
)
from triemo.serving.reading import SubsetReading, read_subsets, subsets_document
from triemo.serving.samples import ASSETS, Sample

__all__ = ["clip_tab", "data_uri", "explanation_html", "face_pictures", "problem_html", "reading_html"]

NOTHING_YET = '<p class="triemo-empty">The reading appears here.</p>'


def clip_tab(reader: Any, turn: AbstractContextManager, busy: Mapping[str, Any]) -> list[Any]:
    """
    The tab's components, within a `gr.Tab`.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline.
        turn: is held while the reader is at work.
        busy: of events that read: how many at once.

    Returns:
        The components that take files.
    """
    sentence = (ASSETS / "demo.txt").read_text("utf-8").strip()

    def reading_of(video: str | None, voice: str | None, words: str | None, explain: bool = False) -> SubsetReading:
        inputs: dict[str, Any] = {}
        for name, file in (("video", video), ("audio", voice)):
            if file:
                inputs[name] = visitors.file_given(file)
        if words and words.strip():
            inputs["text"] = visitors.words_given(words)
        if not inputs:
            raise ValueError("Nothing to read yet: add a video or a voice, or type what is said.")
        with turn:
            return read_subsets(reader, Sample("the input", None, inputs), explain, limits=visitors.LIMITS.media)

    def read(
        video: str | None = None, voice: str | None = None, words: str | None = None, explain: bool = False
    ) -> str:
        try:
            reading = reading_of(video, voice, words, explain)
        except ValueError as error:
            return problem_html(str(error))
        return reading_html(reading, face_pictures(reader, reading.tensors))

    def emotions(
        video: str | None = None, voice: str | None = None, words: str | None = None, explain: bool = False
    ) -> dict[str, Any]:
        try:
            document = subsets_document(reading_of(video, voice, words, explain))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return {name: value for name, value in document.items() if name != "file"}

    with gr.Row():
        with gr.Column():
            video = gr.Video(label="Video: upload or record", sources=["upload", "webcam"])
            voice = gr.Audio(label="Voice, if not the video's own", sources=["microphone", "upload"], type="filepath")
            words = gr.Textbox(
                label="Words", placeholder="What is said", lines=2, max_length=visitors.LIMITS.characters
            )
            explain = gr.Checkbox(label="Explain: which words, moments and frames moved the answer (takes longer)")
            button = gr.Button("Read", variant="primary")
            gr.Markdown("Or try:")
            with gr.Row():
                clip_example = gr.Button("Demo clip", size="sm", min_width=90)
                words_example = gr.Button("Words alone", size="sm", min_width=90)
                clear = gr.Button("Clear", size="sm", min_width=60)
        with gr.Column():
            result = gr.HTML(NOTHING_YET, elem_id="triemo-result", padding=False, container=True, min_height=120)

    given = [video, voice, words]
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    asked = {
        "fn": read,
        "inputs": [*given, explain],
        "outputs": result,
        "show_progress": "minimal",
        "scroll_to_output": True,
    }
    gr.on([button.click, words.submit], **asked, **busy, api_name="read", api_visibility="undocumented")
    gr.Button(visible=False).click(
        emotions, inputs=[*given, explain], outputs=gr.JSON(visible=False), **busy, api_name="emotions"
    )
    examples = {clip_example: (str(ASSETS / "demo.mp4"), None, sentence), words_example: (None, None, sentence)}
    for example, values in examples.items():
        filled = example.click(lambda values=values: values, outputs=given, **private)
        filled.then(**asked, **busy, api_visibility="private")
    clear.click(lambda: (None, None, "", NOTHING_YET), outputs=[*given, result], **private)
    return [video, voice]


# What the tab shows of a reading, as HTML; `assets/app.css` is its style.


def problem_html(message: str) -> str:
    """An error in place of a reading."""
    return f'<div class="triemo-problem" role="alert">{escape(message)}</div>'


def reading_html(reading: SubsetReading, faces: Sequence[tuple[float, Image.Image]]) -> str:
    """
    Args:
        reading: of one sample.
        faces: seconds and crop of each face to show, from `face_pictures`.
    """
    evidence = reading.evidence
    parts = [
        f'<p class="triemo-lead"><strong>{escape(reading.label)}</strong> {percent(reading.ranked[0]["score"])}</p>',
        f"<p>Read from {escape(read_from(evidence.modalities, evidence.faces))}.</p>",
        *(_note(told) for told in [*([UNCERTAIN] if reading.uncertain else []), *told_of(evidence)]),
        _scores(reading),
        _faces(faces),
    ]
    if len(reading.scores) > 1:
        parts += [_subsets(reading), _contributions(reading)]
        alone = said_alone(reading.scores)
        if disagree(alone):
            parts.append(_note(disagreement(alone)))
    if reading.explanation is not None:
        parts.append(explanation_html(reading.explanation))
    return f'<div class="triemo-reading">{"".join(parts)}</div>'


def explanation_html(told: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """The words, moments and frames that moved an answer (`explain_sample`), of a recording those of each window."""
    if isinstance(told, Mapping):
        return f"<h3>What moved it (percentage points lost without each part)</h3>{_moved_by(told)}"
    parts = []
    for one in told:
        begin, end = one["timestamp"]
        shares = ", ".join(f"{NAMES[name]} {100 * part:+.1f}" for name, part in one["contributions"].items())
        said = f"<strong>{escape(one['label'])}</strong> {percent(one['score'])} ({escape(shares)})"
        parts.append(f"<h3>From {begin:.1f} to {end:.1f} s</h3><p>{said}</p>")
        parts += [_note(disagreement(one["alone"]))] if one["disagree"] else []
        parts.append(_moved_by(one))
    return "".join(parts)


def _moved_by(told: Mapping[str, Any]) -> str:
    parts = []
    if told.get("words"):
        most = max(abs(entry["effect"]) for entry in told["words"]) or 1.0
        marked = " ".join(
            f'<span class="{"triemo-lowered" if entry["effect"] < 0 else "triemo-raised"}" '
            f'style="--share: {100 * abs(entry["effect"]) / most:.0f}%" '
            f'title="{100 * entry["effect"]:+.1f}">{escape(entry["word"])}</span>'
            for entry in told["words"]
        )
        strongest = escape(strongest_words(told["words"]) or "none moved it")
        parts.append(f'<p class="triemo-words">{marked}</p><p class="triemo-small">Words: {strongest}</p>')
    for kind, name in (("moments", "Voice"), ("frames", "Face")):
        if told.get(kind):
            most = max(abs(part["effect"]) for part in told[kind]) or 1.0
            bars = "".join(
                f'<span class="triemo-bar{" triemo-down" if part["effect"] < 0 else ""}" '
                f'style="height: {max(4.0, 100 * abs(part["effect"]) / most):.0f}%" '
                f'title="{100 * part["effect"]:+.1f}"></span>'
                for part in told[kind]
            )
            when = escape(strongest_time(told[kind]))
            parts.append(f'<div class="triemo-strip" role="img" aria-label="{name}: {when}">{bars}</div>')
            parts.append(f'<p class="triemo-small">{name}: {when}</p>')
    return "".join(parts)


def _note(told: str) -> str:
    return f'<p class="triemo-note" role="status">{escape(told)}</p>'


def _scores(reading: SubsetReading) -> str:
    rows = "".join(
        _row(entry["label"], percent(entry["score"]), 0.0, entry["score"], is_result=rank == 0)
        for rank, entry in enumerate(reading.ranked)
    )
    return f'<table class="triemo-scores" aria-label="Score of each emotion"><tbody>{rows}</tbody></table>'


def _faces(faces: Sequence[tuple[float, Image.Image]]) -> str:
    if not faces:
        return ""
    still = len(faces) == 1
    figures = "".join(
        f'<figure><img src="{data_uri(picture)}" alt="face at {seconds:.1f} seconds">'
        f"{'' if still else f'<figcaption>{seconds:.1f} s</figcaption>'}</figure>"
        for seconds, picture in faces
    )
    return f'<h3>The face it found</h3><div class="triemo-faces">{figures}</div>'


def _subsets(reading: SubsetReading) -> str:
    """A row for each emotion, a column for each subset of the modalities, in percent."""
    best = {subset: max(by_label, key=by_label.__getitem__) for subset, by_label in reading.scores.items()}
    # One name above the other, so that seven columns fit on a phone.
    head = "".join(f'<th scope="col">{"<br>".join(NAMES[name] for name in subset)}</th>' for subset in reading.scores)
    rows = []
    for label in (entry["label"] for entry in reading.ranked):
        cells = []
        for subset, by_label in reading.scores.items():
            mark = ' class="triemo-best"' if best[subset] == label else ""
            share = f"--share: {100 * by_label[label]:.0f}%"
            cells.append(f'<td{mark} style="{share}">{100 * by_label[label]:.0f}</td>')
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{"".join(cells)}</tr>')
    return (
        "<h3>What each combination says (%)</h3>"
        '<table class="triemo-subsets" aria-label="Score of each emotion from each combination">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _contributions(reading: SubsetReading) -> str:
    """The way from the score without input to the one with everything, a row for each step."""
    reached = reading.empty
    rows = [_row("without input", f"{100 * reading.empty:.1f}", 0.0, reading.empty)]
    for name, part in reading.parts.items():
        rows.append(_row(NAMES[name], f"{100 * part:+.1f}", reached, reached + part))
        reached += part
    rows.append(_row("together", f"{100 * reached:.1f}", 0.0, reached, is_result=True))
    return (
        f"<h3>What makes it {escape(reading.label)} (percentage points)</h3>"
        '<table class="triemo-scores" aria-label="Contribution of words, voice and face">'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _row(name: str, number: str, begin: float, end: float, is_result: bool = False) -> str:
    mark = ' class="triemo-result"' if is_result else ""
    cells = f'<td class="triemo-number">{number}</td><td>{_bar(begin, end)}</td>'
    return f'<tr{mark}><th scope="row">{escape(name)}</th>{cells}</tr>'


def _bar(begin: float, end: float) -> str:
    """From one share of 1 to another; backwards in another colour."""
    low, high = (100 * min(max(share, 0.0), 1.0) for share in sorted((begin, end)))
    down = " triemo-down" if end < begin else ""
    return (
        f'<div class="triemo-track"><div class="triemo-bar{down}" '
        f'style="margin-left: {low:.1f}%; width: {high - low:.1f}%"></div></div>'
    )


# The face crops that the model got, as pictures for people.


def face_pictures(reader: Any, tensors: Mapping[str, torch.Tensor], most: int = 6) -> list[tuple[float, Image.Image]]:
    """
    Some of the faces in a sample, evenly spread over those that were found.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline, whose image processor says how pixels were normalised.
        tensors: a batch of one, as `reader.prepare` returns it.
        most: how many pictures at most.

    Returns:
        The time in seconds and the crop as the model sees it, of each; empty without a face.
    """
    if "pixel_values" not in tensors:
        return []
    found = tensors["video_attention_mask"][0].nonzero().flatten().tolist()
    places = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    times = tensors.get("video_times")
    settings = reader.processor.image_processor
    pictures = []
    for frame in (found[place] for place in places):
        pixels = tensors["pixel_values"][0, frame].float().cpu()
        if settings.do_normalize:
            mean, std = (torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std))
            pixels = pixels * std + mean
        if settings.do_rescale:
            pixels = pixels / settings.rescale_factor
        levels = pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        image = Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels)
        pictures.append((0.0 if times is None else float(times[0, frame]), image))
    return pictures


def data_uri(picture: Image.Image) -> str:
    """A picture inside a page, so that no file of it is written."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
