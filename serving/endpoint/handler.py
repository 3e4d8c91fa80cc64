"""What a Hugging Face Inference Endpoint runs: `EndpointHandler`, beside a published checkpoint's files.

A request is JSON:

    {"inputs": "I can't believe it!"}
    {"inputs": {"text": "...", "audio": "<base64>", "video": "data:video/mp4;base64,..."}, "parameters": {"top_k": 3}}
    {"inputs": [{"image": "https://..."}, "a sentence", ...]}

This file stands alone: of the model's code it uses only what `pipeline` loads from the same folder.
"""

import base64
import binascii
import io
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from itertools import combinations
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import av
import torch
from PIL import Image, UnidentifiedImageError
from transformers import pipeline

__all__ = ["EndpointHandler", "Limits", "check_media", "fetch_url", "present_modalities", "subsets_of"]

TASK = "multimodal-emotion-recognition"
URL_SECONDS = 60.0  # for all of a download
CONNECT_SECONDS = 10.0
MOST_REDIRECTS = 4
ROWS_AT_ONCE = 16
# Key of each modality's mask in the model's input; all zero is how an absent modality looks.
MASKS = {"text": "attention_mask", "audio": "audio_attention_mask", "vision": "video_attention_mask"}
_MEDIA = ("audio", "image", "video")
# 6to4, Teredo, NAT64: public by themselves, yet they may lead to any IPv4 address.
_TUNNELS = tuple(map(ipaddress.ip_network, ("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48")))


@dataclass(frozen=True)
class Limits:
    """
    What one request may hold.

    Args:
        inputs: in a list.
        characters: of a text.
        media_bytes: of all media together, decoded from base64.
        seconds: of a sound or a video.
        pixels: of a picture or a video's frame.
        frames_per_second: of a video.
    """

    inputs: int = 32
    characters: int = 10_000
    media_bytes: int = 50_000_000
    seconds: float = 120.0
    pixels: int = 36_000_000
    frames_per_second: float = 120.0


class EndpointHandler:
    """
    Answers requests, from any number of threads.

    Args:
        path: the published checkpoint's folder.
        limits: by default those of `Limits`, where the environment variables `TRIEMO_MAX_MEGABYTES` and
            `TRIEMO_MAX_SECONDS` say nothing else.

    URLs are refused unless the environment variable `TRIEMO_ALLOW_URLS` is 1.
    """

    def __init__(self, path: str = "", limits: Limits | None = None) -> None:
        self.limits = limits or _limits_from_environment()
        self.allow_urls = os.environ.get("TRIEMO_ALLOW_URLS", "") == "1"
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.reader: Any = pipeline(TASK, model=path, trust_remote_code=True, device=device, dtype=torch.float32)
        self._lock = threading.Lock()  # tokenizers change their own state in a call

    def __call__(self, data: Mapping[str, Any]) -> Any:
        """
        Args:
            data: `inputs`: a sentence, or a dict with any of `text`, `audio`, `image`, `video`, the media as base64,
                data URI or, where allowed, URL; or a list of these. Raw bytes of a file and a PIL image, which the
                service makes of requests that are not JSON, are taken too.
                `parameters`, optional: `top_k`, how many labels; `subsets`, true for the scores of every combination
                of the modalities too.

        Returns:
            `[{"label", "score"}, ...]`, best first, for one input, a list of these for a list. With `subsets`, in
            place of each: `{"scores", "modalities", "subsets": [{"modalities", "scores"}, ...]}`.

        Raises:
            ValueError: bad input, named; the service answers 400 with `{"error": message}`.
        """
        if not isinstance(data, Mapping) or "inputs" not in data:
            raise ValueError('the request must be a JSON object with the key "inputs".')
        inputs = data["inputs"]
        top_k, subsets = _checked_parameters(data.get("parameters"))
        many = isinstance(inputs, list)
        if many and not 1 <= len(inputs) <= self.limits.inputs:
            raise ValueError(f"inputs: expected 1 to {self.limits.inputs} in a list, got {len(inputs)}.")
        room = self.limits.media_bytes
        samples = {}
        for index, given in enumerate(inputs if many else [inputs]):
            where = f"inputs[{index}]" if many else "inputs"
            samples[where], room = self._sample(given, where, room)
        with self._lock:
            answers = self._read(samples, top_k, subsets)
        return answers if many else answers[0]

    def _sample(self, given: Any, where: str, room: int) -> tuple[dict[str, Any], int]:
        """The pipeline's input, with its media in memory and within the limits, and the bytes that are left."""
        if isinstance(given, str):
            given = {"text": given}
        elif isinstance(given, Image.Image):
            _check_pixels(given.width, given.height, where, self.limits)
            return {"image": given}, room
        elif isinstance(given, (bytes, bytearray)):  # the pipeline sees what it is
            content = self._content(given, where, room)
            check_media(content, where, self.limits)
            return {"bytes": content, "path": where}, room - len(content)
        if not isinstance(given, Mapping):
            raise ValueError(f"{where}: expected a string or an object, got {type(given).__name__}.")
        unknown = sorted(set(given) - {"text", *_MEDIA})
        present = {name: value for name, value in given.items() if value is not None}
        if unknown or not present:
            got = f"the keys {unknown}" if unknown else "none of them"
            raise ValueError(f"{where}: an object may have the keys text, {', '.join(_MEDIA)}; got {got}.")
        sample: dict[str, Any] = {}
        for name, value in present.items():
            field = f"{where}.{name}"
            if name == "text":
                sample[name] = self._text(value, field)
                continue
            content = self._content(value, field, room)
            room -= len(content)
            check_media(content, field, self.limits)
            sample[name] = {"bytes": content, "path": field}  # the name that errors call it by
        return sample, room

    def _text(self, value: Any, field: str) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{field}: expected a string, got {type(value).__name__}.")
        if len(value) > self.limits.characters:
            raise ValueError(f"{field}: at most {self.limits.characters} characters, got {len(value)}.")
        return value

    def _content(self, value: Any, field: str, room: int) -> bytes:
        """The bytes of a medium. A string is never a path: whoever sends one would read the machine's files."""
        if isinstance(value, (bytes, bytearray)):
            _check_size(len(value), field, room)
            return bytes(value)
        if not isinstance(value, str):
            raise ValueError(f"{field}: expected base64, a data URI or a URL, got {type(value).__name__}.")
        if value[:8].lower().startswith(("http://", "https://")):
            if not self.allow_urls:
                raise ValueError(f"{field}: URLs are switched off here (TRIEMO_ALLOW_URLS); send base64.")
            return fetch_url(value, field, room)
        encoded = value
        if value[:5].lower() == "data:":
            header, _, encoded = value.partition(",")
            if not header.lower().endswith(";base64"):
                raise ValueError(f"{field}: a data URI must be data:<type>;base64,<content>.")
        _check_size(len(encoded) * 3 // 4 - 2, field, room)
        try:
            content = base64.b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{field}: neither base64 nor a data URI nor an http(s) URL: {error}.") from error
        _check_size(len(content), field, room)
        return content

    def _read(self, samples: Mapping[str, dict[str, Any]], top_k: int | None, subsets: bool) -> list[Any]:
        prepared = []
        for where, sample in samples.items():
            try:
                prepared.append(self.reader.preprocess(sample))
            except ValueError as error:
                named = str(error) if where in str(error) else f"{where}: {error}"
                raise ValueError(named) from error
        if not subsets:
            return list(self._scores(prepared, top_k))
        present = [present_modalities(row) for row in prepared]
        kept = [subsets_of(names) for names in present]
        rows = [
            {**row, **{mask: row[mask] * 0 for name, mask in MASKS.items() if mask in row and name not in subset}}
            for row, chosen in zip(prepared, kept, strict=True)
            for subset in chosen
        ]
        scores = self._scores(rows, top_k)
        answers = []
        for names, chosen in zip(present, kept, strict=True):
            parts = [{"modalities": list(subset), "scores": next(scores)} for subset in chosen]
            answers.append({"scores": parts[-1]["scores"], "modalities": list(names), "subsets": parts})
        return answers

    def _scores(self, rows: list[dict[str, torch.Tensor]], top_k: int | None) -> Iterator[list[dict[str, Any]]]:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            chunk = rows[start : start + ROWS_AT_ONCE]
            outputs = self.reader.forward(self.reader.processor.pad(chunk))
            for index in range(len(chunk)):
                row = {name: values[index : index + 1] for name, values in outputs.items()}
                yield self.reader.postprocess(row, top_k=top_k)


def present_modalities(tensors: Mapping[str, Any]) -> tuple[str, ...]:
    """What a batch of one has of text, audio, vision, in this order: those whose mask is not all zero."""
    return tuple(name for name, mask in MASKS.items() if mask in tensors and bool(tensors[mask].any()))


def subsets_of(modalities: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All non-empty subsets, the single ones first, all together last."""
    return [subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size)]


def check_media(content: bytes, name: str, limits: Limits) -> None:
    """
    Refuse what would take too much time or memory to decode. Headers are not believed: sound is decoded and counted,
    time stamps are read from the packets.

    Args:
        content: a picture, a sound or a video.
        name: what the error calls it.

    Raises:
        ValueError: longer, larger or faster than the limits. What cannot be read at all is left to the pipeline.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            _check_pixels(image.width, image.height, name, limits)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error}.") from error
    except (UnidentifiedImageError, OSError, SyntaxError):
        pass  # no picture
    try:
        # No nested opens: a play list must not make FFmpeg open anything else. Titles that are no UTF-8 are taken, by
        # PyAV before 19 only when told to; later ones have no such option.
        lenient = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
        file = av.open(io.BytesIO(content), options={"protocol_whitelist": "none"}, **lenient)
    except (av.FFmpegError, OSError, ValueError, IndexError):
        return
    with file:
        _check_streams(file, name, limits)


def _check_streams(file: Any, name: str, limits: Limits) -> None:
    begin = (file.start_time or 0) / 1e6
    streams = [stream for stream in file.streams if stream.type in ("audio", "video") and stream.codec_context]
    heard = dict.fromkeys((stream.index for stream in streams), 0.0)
    frames = dict.fromkeys(heard, 0)
    for stream in streams:
        if stream.type == "video":
            _check_pixels(stream.codec_context.width, stream.codec_context.height, name, limits)
    packets = file.demux(streams)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError):
            return  # where the file breaks off, the pipeline stops too
        if packet is None:
            return
        stream = packet.stream
        end = 0.0 if packet.pts is None else float((packet.pts + (packet.duration or 0)) * packet.time_base) - begin
        if stream.type == "audio":
            try:
                heard[stream.index] += sum(frame.samples / (frame.sample_rate or 1) for frame in packet.decode())
            except (av.FFmpegError, ValueError):
                continue  # damaged packets are skipped by the pipeline too
        else:
            frames[stream.index] += packet.size > 0
        if max(end, heard[stream.index]) > limits.seconds:
            raise ValueError(f"{name}: at most {limits.seconds:g} seconds, and this lasts longer.")
        if frames[stream.index] > limits.seconds * limits.frames_per_second:
            raise ValueError(f"{name}: at most {limits.frames_per_second:g} frames per second, and this has more.")


def fetch_url(url: str, name: str, most_bytes: int) -> bytes:
    """
    Download from a public address. Each host, also of a redirect, is resolved once, refused if any of its addresses is
    not public, and connected to at the very address that was checked. Proxies of the environment are not used.

    Args:
        url: http or https.
        name: what the error calls it.
        most_bytes: a longer answer is refused, whatever its header says.

    Raises:
        ValueError: not a public address, unreachable, too slow, too large, or an answer other than 200.
    """
    for _ in range(MOST_REDIRECTS + 1):
        parts = _checked_parts(url, name)
        timer = None
        try:
            connection = _connect(parts, name)
            timer = threading.Timer(URL_SECONDS, _hang_up, [connection.sock])  # however slowly it drips
            timer.start()
            with connection.sock:
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", target, headers={"User-Agent": "triemo", "Accept": "*/*"})
                response = connection.getresponse()
                if response.status in (301, 302, 303, 307, 308) and response.getheader("Location"):
                    url = urljoin(url, response.getheader("Location"))
                    continue
                if response.status != 200:
                    raise ValueError(f"{name}: the URL answered with status {response.status}.")
                return _read_at_most(response, name, most_bytes)
        except (OSError, HTTPException, UnicodeError) as error:
            raise ValueError(f"{name}: the URL cannot be read ({type(error).__name__}).") from error
        finally:
            if timer is not None:
                timer.cancel()
    raise ValueError(f"{name}: more than {MOST_REDIRECTS} redirects.")


def _checked_parts(url: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port or the brackets
        known = False
    if not known:
        raise ValueError(f"{name}: expected an http or https URL, got {url[:200]!r}.")
    return parts


def _connect(parts: SplitResult, name: str) -> HTTPConnection:
    secure = parts.scheme == "https"
    host, port = str(parts.hostname), parts.port or (443 if secure else 80)
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found or not all(map(_is_public, found)):
        raise ValueError(f"{name}: the URL does not lead to a public address.")
    connection = (HTTPSConnection if secure else HTTPConnection)(host, port, timeout=CONNECT_SECONDS)
    connection.sock = socket.create_connection((found[0], port), timeout=CONNECT_SECONDS)
    if secure:
        connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
    return connection


def _is_public(address: str) -> bool:
    ip: Any = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    tunnelled = ip.version == 6 and any(ip in network for network in _TUNNELS)
    return ip.is_global and not ip.is_multicast and not tunnelled


def _hang_up(connected: socket.socket) -> None:
    try:
        connected.shutdown(socket.SHUT_RDWR)
    except OSError:
        connected.close()


def _read_at_most(response: HTTPResponse, name: str, most_bytes: int) -> bytes:
    _check_size(response.length or 0, name, most_bytes)
    content = bytearray()
    while chunk := response.read1(1 << 16):
        content += chunk
        _check_size(len(content), name, most_bytes)
    if response.length:  # of what was announced, this much never came
        raise ValueError(f"{name}: the URL's answer broke off or took more than {URL_SECONDS:g} seconds.")
    return bytes(content)


def _check_size(size: int, name: str, room: int) -> None:
    if size > room:
        raise ValueError(f"{name}: the media of a request may have no more bytes than the limit; {room} are left.")


def _check_pixels(width: int, height: int, name: str, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise ValueError(f"{name}: at most {limits.pixels} pixels, got {width} x {height}.")


def _checked_parameters(given: Any) -> tuple[int | None, bool]:
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ValueError(f"parameters: expected an object, got {type(given).__name__}.")
    unknown = sorted(set(given) - {"top_k", "subsets"})
    if unknown:
        raise ValueError(f"parameters: got {unknown}, expected top_k or subsets.")
    top_k, subsets = given.get("top_k"), given.get("subsets") or False
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise ValueError(f"parameters.top_k: expected a whole number of at least 1, got {top_k!r}.")
    if not isinstance(subsets, bool):
        raise ValueError(f"parameters.subsets: expected true or false, got {subsets!r}.")
    return top_k, subsets


def _limits_from_environment() -> Limits:
    found: dict[str, Any] = {}
    for variable, field, factor in (
        ("TRIEMO_MAX_MEGABYTES", "media_bytes", 1_000_000),
        ("TRIEMO_MAX_SECONDS", "seconds", 1),
    ):
        text = os.environ.get(variable)
        if text:
            try:
                value = float(text)
            except ValueError as error:
                raise ValueError(f"{variable}: expected a number, got {text!r}.") from error
            if not 0 < value < float("inf"):
                raise ValueError(f"{variable}: expected a number above 0, got {text!r}.")
            found[field] = type(getattr(Limits, field))(value * factor)
    return Limits(**found)
