"""The demo people click: `triemo serve`, and the `app.py` of a Space.

Nothing that a visitor gives is kept: there are no analytics, no flagging, no history; files lie in a temporary folder
until they are replaced or the page is closed, ten minutes at most, and the folder goes when the server stops.

Programs call `/emotions`, which answers in JSON: see "The page" in serving/README.md. It has the page's limits.
"""

import base64
import io
import os
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import Any

# Read once, when the library is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"  # else inputs would be saved in the visitor's browser

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import RepoCard  # noqa: E402
from PIL import Image  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402
from starlette.responses import JSONResponse  # noqa: E402

from triemo.processing.contributions_triemo import uninformed_score  # noqa: E402
from triemo.processing.explanations_triemo import disagree, said_alone  # noqa: E402
from triemo.serving.endpoint.handler import check_media, checked_text, limits_from_environment  # noqa: E402
from triemo.serving.printing import DISCLAIMER, NAMES, disagreement, percent, read_from, told_of  # noqa: E402
from triemo.serving.reading import (  # noqa: E402
    SubsetReading,
    load_reader,
    read_subsets,
    subsets_document,
)
from triemo.serving.samples import ASSETS, Sample  # noqa: E402

__all__ = [
    "BodyLimit",
    "Uploads",
    "build_app",
    "data_uri",
    "face_pictures",
    "open_page",
    "problem_html",
    "reading_html",
    "serve",
]

LIMITS = limits_from_environment()
SECONDS_KEPT = 600
SECONDS_BETWEEN_SWEEPS = 60
MOST_WAITING = 20
CALL_BYTES = 1_000_000  # of a call: the words, and the names of uploaded files
UPLOAD_BYTES = 2 * LIMITS.media_bytes + CALL_BYTES  # a video and a voice
INTRODUCTION = f"""# Triemo
What do the words, the voice and the face express? Give any of the three: each alone, every pair and all together are
read side by side.

{DISCLAIMER} It was trained on acted voices, posed faces and English comments, and it is often wrong. Do not judge
people by it.
"""
PRIVACY = (
    "Nothing is stored. A recording or a file is deleted when you remove it or close the page, after "
    f"{SECONDS_KEPT // 60} minutes at the latest; words and results are never written to a file. No analytics."
)
NOTHING_YET = '<p class="triemo-empty">The reading appears here.</p>'


def serve(
    model: str | None = None, host: str | None = None, port: int | None = None, *, device: str | None = None
) -> None:
    """
    Load a checkpoint and serve the page until interrupted.

    Args:
        model: folder or Hub id; by default `TRIEMO_MODEL` of the environment, the model that a Space's card names, or
            the released checkpoint.
        host: address to listen at; by default `GRADIO_SERVER_NAME` of the environment, or this machine alone.
        port: by default `GRADIO_SERVER_PORT`, or the first free one from 7860.
        device: as torch names it; by default a GPU if there is one.

    Raises:
        ValueError: the model cannot be loaded, or the port is taken.
    """
    reader = load_reader(model or _model_of_the_space(), device)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C, so that temporary files are deleted
    with open_page(reader, host, port) as url:
        print(f"Triemo: {url} (Ctrl+C stops it)", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def _model_of_the_space() -> str | None:
    named = os.environ.get("TRIEMO_MODEL")
    card = Path(__file__).with_name("README.md")
    if not named and card.is_file():
        models = RepoCard.load(card).data.get("models") or []
        return models[0] if models else None
    return named


@contextmanager
def open_page(reader: Any, host: str | None = None, port: int | None = None) -> Iterator[str]:
    """
    Serve the page of a loaded pipeline while the context lasts; arguments and errors as of `serve`.

    Yields:
        The page's URL.
    """
    # Fonts of the visitor's machine, so that nothing is asked of a third party.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    with tempfile.TemporaryDirectory(prefix="triemo-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # components read it when they are made
        page = build_app(reader)
        try:
            yield _launch(page, theme, host, port)
        finally:
            page.close(verbose=False)


def _launch(page: gr.Blocks, theme: Any, host: str | None, port: int | None) -> str:
    try:
        _, url, _ = page.queue(max_size=MOST_WAITING).launch(
            server_name=host,
            server_port=port,
            theme=theme,
            css_paths=[ASSETS / "app.css"],
            allowed_paths=[str(ASSETS)],
            max_file_size=LIMITS.media_bytes,
            app_kwargs={"middleware": [Middleware(BodyLimit)]},
            footer_links=[],
            enable_monitoring=False,
            share=False,
            ssr_mode=False,
            pwa=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        place = f"port {port or 7860} of {host or 'this machine'}"
        raise ValueError(f"{place} cannot be listened at; it may be in use.") from error
    return url


def build_app(reader: Any) -> gr.Blocks:
    """
    The page of a loaded pipeline, for `gradio`'s `launch`.

    Raises:
        ValueError: a regression model, whose scores are no probabilities.
    """
    uninformed_score(reader.model.config)
    uploads = Uploads()
    sentence = (ASSETS / "demo.txt").read_text("utf-8").strip()

    def reading_of(video: str | None, voice: str | None, words: str | None) -> SubsetReading:
        inputs: dict[str, Any] = {}
        for name, file in (("video", video), ("audio", voice)):
            if file:
                inputs[name] = _content(file)
        if words and words.strip():
            inputs["text"] = checked_text(words, "words", LIMITS).strip()
        if not inputs:
            raise ValueError("Nothing to read yet: add a video or a voice, or type what is said.")
        return read_subsets(reader, Sample("the input", None, inputs), limits=LIMITS.media)

    def read(video: str | None, voice: str | None, words: str | None) -> str:
        try:
            reading = reading_of(video, voice, words)
        except ValueError as error:
            return problem_html(str(error))
        return reading_html(reading, face_pictures(reader, reading.tensors))

    def emotions(video: str | None = None, voice: str | None = None, words: str | None = None) -> dict[str, Any]:
        try:
            document = subsets_document(reading_of(video, voice, words))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return {name: value for name, value in document.items() if name != "file"}

    def remember(video: str | None, voice: str | None, request: gr.Request) -> None:
        uploads.keep(str(request.session_hash), [file for file in (video, voice) if file])

    def forget(request: gr.Request) -> None:
        uploads.forget(str(request.session_hash))

    with gr.Blocks(
        title="Triemo", analytics_enabled=False, delete_cache=(SECONDS_BETWEEN_SWEEPS, SECONDS_KEPT)
    ) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                video = gr.Video(label="Video: upload or record", sources=["upload", "webcam"])
                voice = gr.Audio(
                    label="Voice, if not the video's own", sources=["microphone", "upload"], type="filepath"
                )
                words = gr.Textbox(label="Words", placeholder="What is said", lines=2, max_length=LIMITS.characters)
                button = gr.Button("Read", variant="primary")
                gr.Markdown("Or try:")
                with gr.Row():
                    clip_example = gr.Button("Demo clip", size="sm", min_width=90)
                    words_example = gr.Button("Words alone", size="sm", min_width=90)
                    clear = gr.Button("Clear", size="sm", min_width=60)
            with gr.Column():
                result = gr.HTML(NOTHING_YET, elem_id="triemo-result", padding=False, container=True, min_height=120)
        gr.Markdown(PRIVACY)

        given = [video, voice, words]
        for upload in (video, voice):
            _refuse_urls(upload)
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asked = {"fn": read, "inputs": given, "outputs": result, "show_progress": "minimal", "scroll_to_output": True}
        one_at_a_time: dict[str, Any] = {"concurrency_id": "reading", "concurrency_limit": 1}
        gr.on([button.click, words.submit], **asked, **one_at_a_time, api_name="read", api_visibility="undocumented")
        gr.Button(visible=False).click(
            emotions, inputs=given, outputs=gr.JSON(visible=False), **one_at_a_time, api_name="emotions"
        )
        examples = {clip_example: (str(ASSETS / "demo.mp4"), None, sentence), words_example: (None, None, sentence)}
        for example, values in examples.items():
            filled = example.click(lambda values=values: values, outputs=given, **private)
            filled.then(**asked, **one_at_a_time, api_visibility="private")
        clear.click(lambda: (None, None, "", NOTHING_YET), outputs=[*given, result], **private)
        gr.on([video.change, voice.change], remember, inputs=[video, voice], queue=False, **private)
        page.unload(forget)
    return page


def _refuse_urls(component: Any) -> None:
    """In place of an uploaded file a call may name a URL, and the library would fetch all of it, whatever its size."""
    taken = component.async_move_resource_to_block_cache

    async def uploads_alone(source: str | Path | None) -> str | None:
        if source is not None and "://" in str(source):
            raise gr.Error("a file must be uploaded here; URLs are not fetched.", print_exception=False)
        return await taken(source)

    component.async_move_resource_to_block_cache = uploads_alone


class BodyLimit:
    """Refuses requests with larger bodies than the page's own ever have, before they are held in memory."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers 413 to a stated length that is too large, and ends what states none and goes on too long."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = UPLOAD_BYTES if scope["path"].rstrip("/").endswith("/upload") else CALL_BYTES
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > most:
            await JSONResponse({"detail": f"a request here may have {most} bytes."}, 413)(scope, receive, send)
            return
        taken = 0

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise HTTPException(413, f"a request here may have {most} bytes.")
            return message

        await self.app(scope, counted, send)


def _content(file: str) -> dict[str, Any]:
    """A file in memory, within the limits, under the name that the visitor knows."""
    name = Path(file).name
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"{name} was deleted meanwhile; add it once more.") from error
    check_media(content, name, LIMITS)
    return {"bytes": content, "path": name}


class Uploads:
    """Which temporary files belong to which visitor, so that they are deleted with the page."""

    def __init__(self) -> None:
        self._files: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def keep(self, session: str, files: Iterable[str]) -> None:
        """These are the visitor's files now; the ones before are deleted, unless another visitor gave the same."""
        with self._lock:
            before = self._files.pop(session, set())
            now = set(files)
            if now:
                self._files[session] = now
            for file in before.difference(now, *self._files.values()):
                Path(file).unlink(missing_ok=True)

    def forget(self, session: str) -> None:
        """The visitor has left."""
        self.keep(session, ())


# What the page shows of a reading, as HTML; `assets/app.css` is its style.


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
        *(f'<p class="triemo-note" role="status">{escape(told)}</p>' for told in told_of(evidence)),
        _scores(reading),
        _faces(faces),
    ]
    if len(reading.scores) > 1:
        parts += [_subsets(reading), _contributions(reading)]
        alone = said_alone(reading.scores)
        if disagree(alone):
            parts.append(f'<p class="triemo-note" role="status">{escape(disagreement(alone))}</p>')
    return f'<div class="triemo-reading">{"".join(parts)}</div>'


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


if __name__ == "__main__":
    serve()
