"""What a visitor may send, and what becomes of it: limits, refusals, and files that go with who gave them."""

import io
import threading
import time
import wave
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from triemo.serving.endpoint.handler import Limits, check_media, checked_text, limits_from_environment

__all__ = [
    "BodyLimit",
    "Uploads",
    "file_given",
    "long_limits",
    "refuse_urls",
    "sound_taken",
    "sweep_sounds",
    "words_given",
]

LIMITS = limits_from_environment()
TIMES_LONGER = 30  # than a clip may be a recording that is read window by window
HIGHEST_RATE = 192_000  # Hz, of a microphone
CALL_BYTES = 1_000_000  # of a call: the words, a frame, and the names of uploaded files
UPLOAD_BYTES = 2 * LIMITS.media_bytes + CALL_BYTES  # a video and a voice
_SECONDS_ON_THE_WAY = 5.0  # of a piece of sound, from its upload until it is taken
_LONGEST_WAV = 2**32 - 64  # bytes; a header that states more states none


def long_limits() -> Limits:
    """Those of a recording that is read window by window."""
    return replace(LIMITS, seconds=TIMES_LONGER * LIMITS.seconds, frames=TIMES_LONGER * LIMITS.frames)


def words_given(words: str) -> str:
    """Words, within the limits. Raises ValueError beyond them."""
    return checked_text(words, "words", LIMITS).strip()


def file_given(file: str, limits: Limits | None = None) -> dict[str, Any]:
    """
    A file in memory, under the name that the visitor knows.

    Args:
        limits: by default those of a clip.

    Raises:
        ValueError: beyond the limits, or deleted meanwhile.
    """
    name = Path(file).name
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"{name} was deleted meanwhile; add it once more.") from error
    check_media(content, name, limits or LIMITS)
    return {"bytes": content, "path": name}


def sound_taken(file: str) -> tuple[int, np.ndarray] | None:
    """
    Rate in Hz and samples (samples, channels) int16 of a piece of sound that a browser streams, whose file is deleted.
    None where it was already: pieces of the same content, which is silence, have one file.

    Raises:
        ValueError: it is no such piece.
    """
    path = Path(file)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if _is_streamed(content):  # a call may name another file
        path.unlink(missing_ok=True)
    try:
        with wave.open(io.BytesIO(content)) as sound:
            rate, channels, width = sound.getframerate(), sound.getnchannels(), sound.getsampwidth()
            samples = sound.readframes(len(content))
    except (wave.Error, EOFError) as error:
        raise ValueError(f"the microphone's sound is no WAV ({error}).") from error
    if width != 2 or not 0 < rate <= HIGHEST_RATE:
        got = f"{8 * width} bits at {rate} Hz"
        raise ValueError(f"the microphone's sound must have 16 bits at {HIGHEST_RATE} Hz at most, got {got}.")
    whole = len(samples) // (2 * channels) * 2 * channels
    return rate, np.frombuffer(samples[:whole], "<i2").reshape(-1, channels)


def sweep_sounds() -> None:
    """Deletes streamed pieces of sound that were lost on the way, and the empty folders of those that were taken."""
    before = time.time() - _SECONDS_ON_THE_WAY
    for folder in Path(get_upload_folder()).iterdir():
        with suppress(OSError):  # not empty, or another visitor's sweep came first
            if folder.is_dir() and folder.stat().st_mtime < before:
                for file in folder.glob("*.wav"):
                    with file.open("rb") as content:
                        is_lost = _is_streamed(content.read(12))
                    if is_lost:
                        file.unlink()
                folder.rmdir()


def _is_streamed(content: bytes) -> bool:
    """Whether it is a WAV that does not know its length, as browsers send them piece by piece."""
    return content[:4] == b"RIFF" and int.from_bytes(content[4:8], "little") > _LONGEST_WAV


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


def refuse_urls(component: Any) -> None:
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
