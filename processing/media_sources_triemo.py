"""Where media comes from: a path, a URL, bytes or a `datasets` row become one open file and, by PyAV, a container.

PyAV carries FFmpeg inside its wheel, so no system package is needed. FFmpeg is only ever handed an open file, and
every protocol of its own is switched off: a play list dressed up as a video cannot make it open anything else.

What a file may ask for in time and memory is bounded by one set of limits, `MediaLimits`, for whoever reads it.
"""

import io
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

__all__ = [
    "MediaLimitError",
    "MediaLimits",
    "current_limits",
    "decode_frames",
    "fetch",
    "first_stream",
    "import_av",
    "is_media_source",
    "is_tensor",
    "media_limits",
    "open_container",
    "open_source",
]

DOWNLOAD_TIMEOUT_SECONDS = 30.0  # for connecting, and for each wait between two chunks

# What FFmpeg takes a file for by its name alone: a series of pictures, which it would open, and a terminal's text.
_NO_MEDIA = ("image2", "tty")

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://")


class MediaLimitError(ValueError):
    """A medium asks for more than `MediaLimits` allow; the message names it, the limit and how to raise it."""


@dataclass(frozen=True)
class MediaLimits:
    """
    What a file may ask for before it is refused. The defaults let through what phones and cameras make.

    Each field can be raised or lowered by `media_limits`, by the `limits` of the processor and the pipeline, and for a
    whole process by the environment variable TRIEMO_MAX_<FIELD>, such as TRIEMO_MAX_SECONDS. Page and endpoint have
    lower ones of their own for some fields, which the same variables set.

    Args:
        seconds: of sound. Three hours at 16 kHz are 0.7 GB.
        pixels: of a still, or of an animation's picture.
        frame_pixels: of a video's frame, of which a decoder holds many. 8K fits.
        frames: of a video. Two hours at 120 a second fit.
        animation_frames: of a GIF, APNG or WebP, which have no index and are decoded from the beginning.
        bytes: of a download, an open file or content in memory. A file on disk is read piece by piece.
        aspect: longer over shorter side of a picture.
        lowest_sampling_rate: of sound, Hz.
        sampling_rate: of sound, Hz.
    """

    seconds: float = 10_800.0
    pixels: int = 120_000_000
    frame_pixels: int = 36_000_000
    frames: int = 1_000_000
    animation_frames: int = 10_000
    bytes: int = 1 << 30
    aspect: float = 50.0
    lowest_sampling_rate: int = 1_000
    sampling_rate: int = 768_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"limits: {field.name} must be a number above 0, got {value!r}.")

    def check_size(self, width: int, height: int, name: str, field: str = "pixels") -> None:
        """ValueError if a picture of this size is beyond the limits; `field` is "pixels" or "frame_pixels"."""
        if width * height > getattr(self, field):
            self._refuse(name, f"a picture of {width} x {height} pixels", field)
        if max(width, height) > self.aspect * max(1, min(width, height)):
            self._refuse(name, f"a picture of {width} x {height} pixels", "aspect")

    def check(self, field: str, value: float, name: str, what: str) -> None:
        """ValueError if a `value` in the unit of `field` is beyond that limit; `what` says of what it is."""
        if value > getattr(self, field):
            self._refuse(name, what, field)

    def check_sampling_rate(self, rate: int, name: str) -> None:
        """ValueError if sound of this rate (Hz) is beyond the limits."""
        if rate < self.lowest_sampling_rate:
            self._refuse(name, f"sound at {rate} Hz", "lowest_sampling_rate")
        self.check("sampling_rate", rate, name, f"sound at {rate} Hz")

    def _refuse(self, name: str, what: str, field: str) -> None:
        raise MediaLimitError(
            f"Cannot read media from {name}: {what} is beyond the limit {field}={getattr(self, field):g}, which "
            f"media_limits({field}=...) or TRIEMO_MAX_{field.upper()} sets."
        )


_LIMITS: ContextVar[MediaLimits | None] = ContextVar("media_limits", default=None)


def current_limits() -> MediaLimits:
    """The limits in force here: those of `media_limits`, else of the environment, else the defaults."""
    limits = _LIMITS.get()
    return _limits_from_environment() if limits is None else limits


@contextmanager
def media_limits(limits: MediaLimits | Mapping[str, Any] | None = None, **changes: Any) -> Iterator[MediaLimits]:
    """
    Other limits for all media that are read inside the block, by this thread.

    Args:
        limits: a whole set, or fields of it; None for those in force.
        changes: fields of `MediaLimits`; those not given stay as they are.

    Raises:
        ValueError: neither of these, an unknown field or a value that is no positive number.
    """
    if not (limits is None or isinstance(limits, (MediaLimits, Mapping))):
        raise ValueError(f"limits: expected MediaLimits or a dict of its fields, got {type(limits).__name__}.")
    given = limits if isinstance(limits, MediaLimits) else current_limits()
    changes = {**(limits if isinstance(limits, Mapping) else {}), **changes}
    unknown = sorted(set(map(str, changes)) - {field.name for field in fields(MediaLimits)})
    if unknown:
        known = ", ".join(field.name for field in fields(MediaLimits))
        raise ValueError(f"limits: got {unknown}, expected any of {known}.")
    token = _LIMITS.set(replace(given, **changes))
    try:
        yield current_limits()
    finally:
        _LIMITS.reset(token)


def _limits_from_environment() -> MediaLimits:
    found: dict[str, Any] = {}
    for field in fields(MediaLimits):
        variable = f"TRIEMO_MAX_{field.name.upper()}"
        text = os.environ.get(variable)
        if text:
            try:
                found[field.name] = float(text)
            except ValueError as error:
                raise ValueError(f"{variable}: expected a number, got {text!r}.") from error
    return MediaLimits(**found)


def is_media_source(source: Any) -> bool:
    """Whether it names or holds an encoded file: str, path, bytes, an open file, a dict with "bytes" or "path"."""
    if isinstance(source, Mapping):
        in_memory = source.get("array") is not None or source.get("raw") is not None
        return not in_memory and ("bytes" in source or "path" in source)
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or _is_open_file(source)


def _is_open_file(source: Any) -> bool:
    return callable(getattr(source, "read", None)) and not hasattr(source, "get_all_samples")


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor; asked without importing torch, for where nothing did there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def fetch(source: Any) -> Any:
    """A source that can be read only once, behind an http(s) URL or in an open file, as `{"bytes", "path"}`, for who
    opens it more often; others as they are."""
    if _is_open_file(source) or isinstance(source, str) and _scheme(source) in ("http", "https"):
        with open_source(source) as (file, name):
            return {"bytes": file.read(), "path": name}
    return source


@contextmanager
def open_source(source: Any) -> Iterator[tuple[BinaryIO, str]]:
    """Open an encoded source for reading.

    Args:
        source: path (`str` or `os.PathLike`), `http(s)://` or `file://` URL, bytes, a file opened for binary reading,
            or `{"bytes", "path"}` as `datasets` gives with `decode=False` (the bytes are used where there are any,
            else the path).

    Yields:
        A seekable binary file and the name that error messages use: the path, the URL or "<bytes>".

    Raises:
        ValueError: nothing there, not readable, a folder, a pipe, empty, a URL that fails, more bytes than the limit,
            or another type.
    """
    file, name = _open(source)
    with file:
        size = file.seek(0, io.SEEK_END)
        if size == 0:
            raise ValueError(f"Cannot read media from {name}: it is empty (0 bytes).")
        if isinstance(file, io.BytesIO):
            current_limits().check("bytes", size, name, f"content of {size} bytes")
        file.seek(0)
        yield file, name


def _open(source: Any) -> tuple[BinaryIO, str]:
    if isinstance(source, Mapping):
        path, content = source.get("path"), source.get("bytes")
        if content is not None:
            if not isinstance(content, (bytes, bytearray, memoryview)):
                raise ValueError(f'Media given as a dict needs bytes under "bytes", got {type(content).__name__}.')
            return io.BytesIO(content), str(path) if path else "<bytes>"
        if path is None:
            raise ValueError(
                'Media given as a dict needs "bytes" or "path" that is not None (or "array" and "sampling_rate" for '
                f"sound), got the keys {sorted(map(str, source))}."
            )
        source = path
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), "<bytes>"
    if _is_open_file(source):
        return _content_of(source)
    if isinstance(source, str) and (scheme := _scheme(source)):
        if scheme in ("http", "https"):
            return _download(source), source
        if scheme != "file":
            raise ValueError(f"Cannot read media from {source}: expected an http, https or file URL, got {scheme}.")
        try:
            parts = urlsplit(source)
        except ValueError as error:  # of brackets
            raise ValueError(f"Cannot read media from {source}: {error}.") from error
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"Cannot read media from {source}: a file URL names this machine, got {parts.netloc!r}.")
        source = url2pathname(unquote(parts.path))
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            'Cannot read media: expected a path, a URL, bytes or {"bytes", "path"}, '
            f"got {type(source).__module__}.{type(source).__name__}."
        )
    name = os.fspath(source)
    try:
        path = Path(source).expanduser()
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return path.open("rb"), name
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~user unknown; ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"Cannot read media from {name}: {reason}.") from error
    # A pipe would be waited for, and a device may never end.
    raise ValueError(f"Cannot read media from {name}: it is a pipe or a device, expected a regular file.")


def _scheme(source: str) -> str:
    """The scheme of a URL in lower case, empty for a path."""
    match = _SCHEME.match(source)
    return match[1].lower() if match else ""


def _content_of(file: Any) -> tuple[BinaryIO, str]:
    """An open file from its beginning, as far as it can go back. The caller's file stays open."""
    name = getattr(file, "name", None)
    name = name if isinstance(name, str) else "<open file>"
    limit = current_limits().bytes
    try:
        if file.seekable():
            file.seek(0)
        content = file.read(int(limit) + 1)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"Cannot read media from {name}: {error}.") from error
    if not isinstance(content, bytes):
        raise ValueError(f"Cannot read media from {name}: it is open as text, expected a binary file.")
    return io.BytesIO(content), name


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
            size, limits = 0, current_limits()
            for chunk in response.iter_bytes():
                size += len(chunk)
                limits.check("bytes", size, url, f"a download of more than {limits.bytes} bytes")
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
    """Open the file as a PyAV input container, from its beginning; ValueError with the name if FFmpeg cannot, or fails
    later inside the block."""
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
        if container.format.name in _NO_MEDIA:
            raise ValueError(f"Cannot read media from {name}: Invalid data (not a sound or video file).")
        try:
            yield container
        except (av.FFmpegError, ValueError) as error:
            if name in str(error):
                raise
            raise ValueError(f"Cannot read media from {name}: {error}.") from error


def first_stream(container: Any, kind: str) -> Any | None:
    """The first "audio" or "video" stream that can be decoded, or None. Cover art is a picture, not a video."""
    attached_picture = import_av().stream.Disposition.attached_pic
    for stream in container.streams:
        if stream.type != kind or stream.codec_context is None:
            continue
        if kind == "video":
            if stream.disposition & attached_picture:
                continue
            # Headers are not believed: the decoder itself refuses larger frames before it asks for memory.
            stream.codec_context.options = {"max_pixels": str(int(current_limits().frame_pixels))}
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
