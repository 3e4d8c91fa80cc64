"""The demo people click: `triemo serve`, and the `app.py` of a Space.

Nothing that a visitor gives is kept: there are no analytics, no flagging, no history; files lie in a temporary folder
until they are replaced or the page is closed, ten minutes at most, and the folder goes when the server stops.

Programs call `/emotions`, which answers in JSON: see "The page" in serving/README.md. It has the page's limits.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Read once, when the library is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"  # else inputs would be saved in the visitor's browser

import gradio as gr  # noqa: E402
from huggingface_hub import RepoCard  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from triemo.processing.contributions_triemo import uninformed_score  # noqa: E402
from triemo.serving.page.clip import clip_tab  # noqa: E402
from triemo.serving.page.live import live_tab  # noqa: E402
from triemo.serving.page.recording import recording_tab  # noqa: E402
from triemo.serving.page.visitors import LIMITS, BodyLimit, Uploads, refuse_urls, sweep_sounds  # noqa: E402
from triemo.serving.printing import DISCLAIMER  # noqa: E402
from triemo.serving.reading import load_reader  # noqa: E402
from triemo.serving.samples import ASSETS  # noqa: E402

__all__ = ["build_app", "open_page", "serve"]

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
    turn = threading.Lock()  # one is read at a time, and a long recording lets others in between

    def remember(
        video: str | None, voice: str | None, recording: str | None, transcript: str | None, request: gr.Request
    ) -> None:
        given = (video, voice, recording, transcript)
        uploads.keep(str(request.session_hash), [file for file in given if file])

    def forget(request: gr.Request) -> None:
        uploads.forget(str(request.session_hash))
        sweep_sounds()

    with gr.Blocks(
        title="Triemo", analytics_enabled=False, delete_cache=(SECONDS_BETWEEN_SWEEPS, SECONDS_KEPT)
    ) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Tab("Clip"):
            taking = clip_tab(reader, turn, {"concurrency_id": "reading", "concurrency_limit": 1})
        with gr.Tab("Timeline"):
            taking += recording_tab(reader, turn, {"concurrency_id": "timelines", "concurrency_limit": 1})
        with gr.Tab("Live"):
            live_tab(reader, turn)
        gr.Markdown(PRIVACY)
        for upload in taking:
            refuse_urls(upload)
        changed = [upload.change for upload in taking]
        gr.on(changed, remember, inputs=taking, queue=False, api_visibility="private", show_progress="hidden")
        page.unload(forget)
    return page


if __name__ == "__main__":
    serve()
