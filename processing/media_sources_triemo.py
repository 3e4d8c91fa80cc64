"""Where media comes from: a path, a URL, bytes or a `datasets` row become one open file and, by PyAV, a container.

PyAV carries FFmpeg inside its wheel, so no system package is needed. FFmpeg is only ever handed an open file, and
every protocol of its own is switched off: a play list dressed up as a video cannot make it open anything else.
"""

import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

__all__ = [
    "MAX_DOWNLOAD_BYTES",
    "decode_frames",
    "fetch",
    "first_stream",
    "import_av",
    "is_media_source",
    "is_tensor",
    "open_container",
    "open_source",
]

MAX_DOWNLOAD_BYTES = 1 << 30  # 1 GiB: a feature film fits, an endless live stream does not fill the disk
DOWNLOAD_TIMEOUT_SECONDS = 30.0  # for connecting, and for each wait between two chunks

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://")


def is_media_source(source: Any) -> bool:
    """Whether `source` names or holds an encoded file: str, path, bytes, or a dict with "bytes" or "path"."""
    if isinstance(source, Mapping):
        in_memory = source.get("array") is not None or source.get("raw") is not None
        return not in_memory and ("bytes" in source or "path" in source)
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview))


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor; asked without importing torch, for where nothing did there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def fetch(source: Any) -> Any:
    """A source behind an http(s) URL as `{"bytes", "path"}`, for who opens it more than once; others as they are."""
    if isinstance(source, str) and urlsplit(source).scheme.lower() in ("http", "https"):
        with open_source(source) as (file, name):
            return {"bytes": file.read(), "path": name}
    return source


@contextmanager
def open_source(source: Any) -> Iterator[tuple[BinaryIO, str]]:
    """Open an encoded source for reading.

    Args:
        source: path (`str` or `os.PathLike`), `http(s)://` or `file://` URL, bytes, or `{"bytes", "path"}` as
            `datasets` gives with `decode=False` (the bytes are used where there are any, else the path).

    Yields:
        A seekable binary file and the name that error messages use: the path, the URL or "<bytes>".

    Raises:
        ValueError: nothing there, not readable, a folder, empty, a URL that fails or is too large, or another type.
    """
    file, name = _open(source)
    with file:
        if file.seek(0, io.SEEK_END) == 0:
            raise ValueError(f"Cannot read media from {name}: it is empty (0 bytes).")
        file.seek(0)
        yield file, name


def _open(source: Any) -> tuple[BinaryIO, str]:
    if isinstance(source, Mapping):
        path, content = source.get("path"), source.get("bytes")
        if content is not None:
            return io.BytesIO(content), str(path) if path else "<bytes>"
        if path is None:
            raise ValueError(
                'Media given as a dict needs "bytes" or "path" that is not None (or "array" and "sampling_rate" for '
                f"sound), got the keys {sorted(map(str, source))}."
            )
        source = path
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), "<bytes>"
    if isinstance(source, str) and (scheme := _SCHEME.match(source)):
        if scheme[1].lower() in ("http", "https"):
            return _download(source), source
        if scheme[1].lower() != "file":
            raise ValueError(f"Cannot read media from {source}: expected an http, https or file URL, got {scheme[1]}.")
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"Cannot read media from {source}: a file URL names this machine, got {parts.netloc!r}.")
        source = url2pathname(unquote(parts.path))
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            'Cannot read media: expected a path, a URL, bytes or {"bytes", "path"}, '
            f"got {type(source).__module__}.{type(source).__name__}."
        )
    try:
        return Path(source).expanduser().open("rb"), os.fspath(source)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~user unknown; ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"Cannot read media from {os.fspath(source)}: {reason}.") from error


def _download(url: str) -> BinaryIO:
    """Fetch into an unnamed temporary file, so that a long video does not fill the memory."""
    try:
        # huggingface_hub carries one of two packages under this name, by its major version.
        from huggingface_hub.utils import httpx
    except ImportError:
        import httpx
    file = tempfile.TemporaryFile()
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            response.raise_for_status()
            size = 0
            for chunk in response.iter_bytes():
                size += len(chunk)
                if size > MAX_DOWNLOAD_BYTES:
                    raise ValueError(f"Cannot read media from {url}: it is larger than {MAX_DOWNLOAD_BYTES} bytes.")
                file.write(chunk)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        file.close()
        raise ValueError(f"Cannot read media from {url}: {str(error) or type(error).__name__}.") from error
    except BaseException:
        file.close()
        raise
    return file


def import_av() -> Any:
    """PyAV, here only: every import outside a try block would make it a condition for loading the model's code."""
    try:
        import av
    except ImportError as error:
        raise ImportError("Reading sound and video files needs PyAV: `pip install av`.") from error
    return av


@contextmanager
def open_container(file: BinaryIO, name: str) -> Iterator[Any]:
    """Open the file as a PyAV input container, from its beginning; ValueError with the name if FFmpeg cannot."""
    av = import_av()
    file.seek(0)
    try:
        # No nested opens (HLS, DASH, concat lists): see the module's docstring. PyAV before 19 refuses titles that are
        # no UTF-8 unless told not to; since then it takes them and has no such option.
        lenient = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
        container = av.open(file, mode="r", options={"protocol_whitelist": "none"}, **lenient)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"Cannot read media from {name}: {reason} (not a sound or video file, or cut off before its index)."
        ) from error
    with container:
        yield container


def first_stream(container: Any, kind: str) -> Any | None:
    """The first "audio" or "video" stream that can be decoded, or None. Cover art is a picture, not a video."""
    attached_picture = import_av().stream.Disposition.attached_pic
    for stream in container.streams:
        if stream.type != kind or stream.codec_context is None:
            continue
        if kind == "video" and stream.disposition & attached_picture:
            continue
        return stream
    return None


def decode_frames(container: Any, stream: Any, errors: list[Exception]) -> Iterator[Any]:
    """Decode one stream from where the container stands, passing over what is damaged.

    A packet that cannot be decoded is skipped, and where the file itself breaks off decoding ends; each error is
    appended to `errors`, so that the caller can name it if nothing came out at all.
    """
    av = import_av()
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
        except (av.FFmpegError, OSError) as error:
            errors.append(error)
            return
        try:
            yield from packet.decode()
        except (av.FFmpegError, ValueError) as error:
            errors.append(error)
