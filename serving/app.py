"""The demo people click: `triemo serve`, and the `app.py` of a Space.

Nothing that a visitor gives is kept: there are no analytics, no flagging, no history; files lie in a temporary folder
until they are replaced or the page is closed, ten minutes at most, and the folder goes when the server stops.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Read once, when the library is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"  # else inputs would be saved in the visitor's browser

import gradio as gr  # noqa: E402
from huggingface_hub import RepoCard  # noqa: E402

from triemo.serving.app_results import problem_html, reading_html  # noqa: E402
from triemo.serving.contributions import uninformed_score  # noqa: E402
from triemo.serving.demo import ASSETS  # noqa: E402
from triemo.serving.faces import face_pictures  # noqa: E402
from triemo.serving.handler import Limits, check_media  # noqa: E402
from triemo.serving.loading import load_reader  # noqa: E402
from triemo.serving.reading import read_subsets  # noqa: E402
from triemo.serving.samples import Sample  # noqa: E402
from triemo.serving.wording import DISCLAIMER  # noqa: E402

__all__ = ["Uploads", "build_app", "open_page", "serve"]

LIMITS = Limits()
SECONDS_KEPT = 600
SECONDS_BETWEEN_SWEEPS = 60
MOST_WAITING = 20
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


def build_app(reader: Any) -> gr.Blocks:
    """
    The page of a loaded pipeline, for `gradio`'s `launch`.

    Raises:
        ValueError: a regression model, whose scores are no probabilities.
    """
    uninformed_score(reader.model.config)
    uploads = Uploads()
    sentence = (ASSETS / "demo.txt").read_text("utf-8").strip()

    def read(video: str | None, voice: str | None, words: str | None) -> str:
        try:
            inputs: dict[str, Any] = {}
            for name, file in (("video", video), ("audio", voice)):
                if file:
                    inputs[name] = _content(file)
            if words and words.strip():
                inputs["text"] = words.strip()
            if not inputs:
                raise ValueError("Nothing to read yet: add a video or a voice, or type what is said.")
            reading = read_subsets(reader, Sample("the input", None, inputs))
        except ValueError as error:
            return problem_html(str(error))
        return reading_html(reading, face_pictures(reader, reading.tensors))

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
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asked = {"fn": read, "inputs": given, "outputs": result, "show_progress": "minimal", "scroll_to_output": True}
        gr.on([button.click, words.submit], **asked, api_name="read")
        examples = {clip_example: (str(ASSETS / "demo.mp4"), None, sentence), words_example: (None, None, sentence)}
        for example, values in examples.items():
            filled = example.click(lambda values=values: values, outputs=given, **private)
            filled.then(**asked, api_visibility="private")
        clear.click(lambda: (None, None, "", NOTHING_YET), outputs=[*given, result], **private)
        gr.on([video.change, voice.change], remember, inputs=[video, voice], queue=False, **private)
        page.unload(forget)
    return page


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


def _launch(page: gr.Blocks, theme: Any, host: str | None, port: int | None) -> str:
    try:
        _, url, _ = page.queue(max_size=MOST_WAITING).launch(
            server_name=host,
            server_port=port,
            theme=theme,
            css_paths=[ASSETS / "app.css"],
            allowed_paths=[str(ASSETS)],
            max_file_size=LIMITS.media_bytes,
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


def _content(file: str) -> dict[str, Any]:
    """A file in memory, within the limits, under the name that the visitor knows."""
    name = Path(file).name
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"{name} was deleted meanwhile; add it once more.") from error
    check_media(content, name, LIMITS)
    return {"bytes": content, "path": name}


def _model_of_the_space() -> str | None:
    named = os.environ.get("TRIEMO_MODEL")
    card = Path(__file__).with_name("README.md")
    if not named and card.is_file():
        models = RepoCard.load(card).data.get("models") or []
        return models[0] if models else None
    return named


if __name__ == "__main__":
    serve()
