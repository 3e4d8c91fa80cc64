"""What a Hugging Face Inference Endpoint runs: `EndpointHandler`, beside a published checkpoint's files.

A request is JSON:

    {"inputs": "I can't believe it!"}
    {"inputs": {"text": "...", "audio": "<base64>", "video": "data:video/mp4;base64,..."}, "parameters": {"top_k": 3}}
    {"inputs": [{"image": "https://..."}, "a sentence", ...]}

and to a model of conversations, whose turns are told by what was said before and by whom:

    {"inputs": {"turns": [{"speaker": "agent", "text": "..."}, {"speaker": "customer", "audio": "<base64>"}]}}

Requests are answered from many threads: media are decoded side by side, the model takes one batch at a time, and who
finds the house full, or would wait past the deadline, is told when to come again (`BusyError`, HTTP 503).

This file stands alone: of the model's code it uses only what `pipeline` loads from the same folder.
"""

import base64
import binascii
import copy
import io
import ipaddress
import math
import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from itertools import combinations
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import av
import torch
from PIL import Image
from transformers import PreTrainedConfig, pipeline

__all__ = [
    "BusyError",
    "EndpointHandler",
    "Limits",
    "check_media",
    "checked_text",
    "fetch_url",
    "is_public",
    "limits_from_environment",
    "open_url",
    "present_modalities",
    "subsets_of",
]

TASK = "multimodal-emotion-recognition"
DIALOGUE_TASK = "conversational-emotion-recognition"
DIALOGUE_MODEL = "TriemoForEmotionSequence"
URL_SECONDS = 60.0  # for all of a download
CONNECT_SECONDS = 10.0
MOST_REDIRECTS = 4
# Of a batch: how many rows, and how many seconds of sound or video times rows, padding included.
ROWS_AT_ONCE = 16
SECONDS_AT_ONCE = 120.0
DECODERS = 4  # at work at once: each may hold a video's frames in memory
# Key of each modality's mask in the model's input; all zero is how an absent modality looks.
MASKS = {"text": "attention_mask", "audio": "audio_attention_mask", "vision": "video_attention_mask"}
MOST_NAME_CHARACTERS = 100  # of a speaker
_MEDIA = ("audio", "image", "video")
_SWITCHES = ("notes", "subsets")
_DIALOGUE_SWITCHES = ("explain", "keep_empty", "notes")
_OF_THE_PIPELINE = ("seconds", "pixels", "frame_pixels", "frames")
# Of 2000::/3, the one part of IPv6 that is given out: what leads elsewhere (6to4, Teredo), and what is for papers.
_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_IPV6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
# Protocols' own, of which libraries call parts global, and the relays of 6to4.
_SPECIAL_IPV4 = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24")))


@dataclass(frozen=True)
class Limits:
    """
    What one request may hold.

    Args:
        inputs: in a list.
        turns: of all dialogues together.
        characters: of a text.
        media_bytes: of all media together, decoded from base64.
        seconds: of a sound or a video.
        total_seconds: of all sounds and videos together.
        pixels: of a picture.
        frame_pixels: of a video's frame.
        frames: of a video.
        deadline_seconds: from its arrival to its answer, waiting included.
        requests: at work or waiting at once, of all clients.
    """

    inputs: int = 32
    turns: int = 500
    characters: int = 10_000
    media_bytes: int = 50_000_000
    seconds: float = 120.0
    total_seconds: float = 240.0
    pixels: int = 36_000_000
    frame_pixels: int = 36_000_000
    frames: int = 14_400
    deadline_seconds: float = 60.0
    requests: int = 16

    @property
    def media(self) -> dict[str, float]:
        """The `limits` of the pipeline, fields of its `MediaLimits`. Those not named here are as they are there."""
        return {name: getattr(self, name) for name in _OF_THE_PIPELINE}


class BusyError(RuntimeError):
    """
    No answer now; the same request may have one later.

    Args:
        reason: why.
        retry_after: seconds after which to try again.
    """

    status_code = 503

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(f"{reason}; try again in {retry_after} seconds.")
        self.headers = {"Retry-After": str(retry_after)}


class EndpointHandler:
    """
    Answers requests, from any number of threads.

    Args:
        path: the published checkpoint's folder.
        limits: by default `limits_from_environment`.

    URLs are refused unless the environment variable `TRIEMO_ALLOW_URLS` is 1.
    """

    def __init__(self, path: str = "", limits: Limits | None = None) -> None:
        self.limits = limits or limits_from_environment()
        self.allow_urls = os.environ.get("TRIEMO_ALLOW_URLS", "") == "1"
        device = "cuda" if torch.cuda.is_available() else "cpu"
        fields, _ = PreTrainedConfig.get_config_dict(path)
        self.reads_dialogues = DIALOGUE_MODEL in (fields.get("architectures") or ())
        task = DIALOGUE_TASK if self.reads_dialogues else TASK
        self.reader: Any = pipeline(task, model=path, trust_remote_code=True, device=device, dtype=torch.float32)
        # Tokenizers change their own state in a call, so whoever decodes has a processor of their own. The turns of a
        # dialogue are decoded as the model gets to them, by who has the model.
        self._decoders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(0 if self.reads_dialogues else DECODERS):
            decoder = copy.copy(self.reader)
            decoder.processor = copy.deepcopy(self.reader.processor)
            self._decoders.put(decoder)
        # Threads that stay: malloc keeps memory, and OpenMP a team of threads, for every thread that ever worked here.
        self._decoding = ThreadPoolExecutor(DECODERS, "triemo-decode")
        self._model = ThreadPoolExecutor(1, "triemo-model")  # two batches at once would only share the same cores
        self._counting = threading.Lock()
        self._requests = 0
        self._usual_seconds = 1.0  # of a request, a running mean

    def __call__(self, data: Mapping[str, Any]) -> Any:
        """
        Args:
            data: `inputs`: a sentence, or a dict with any of `text`, `audio`, `image`, `video`, the media as base64,
                data URI or, where allowed, URL; or a list of these. Raw bytes of a file and a PIL image, which the
                service makes of requests that are not JSON, are taken too.
                `parameters`, optional: `top_k`, how many labels; `notes`, true for what was left out, cut or guessed;
                `subsets`, true for the scores of every combination of the modalities too.
                Of a model of conversations, `inputs` is a dialogue or a list of them: a dict with `turns`, each a dict
                as above, with `speaker` besides, and, if you like, its name as `dialogue`. Its parameters are `top_k`,
                `notes`, `explain` and `keep_empty`, as of its pipeline.

        Returns:
            `[{"label", "score"}, ...]`, best first, for one input, a list of these for a list. With `notes` or
            `subsets`, in place of each: `{"scores", "modalities", "notes"}`, with `subsets` also
            `"subsets": [{"modalities", "scores"}, ...]`. For a dialogue, a list with what its pipeline says of each
            turn.

        Raises:
            ValueError: bad input, named; the service answers 400 with `{"error": message}`.
            BusyError: too many requests, or no answer before the deadline.
        """
        with self.admitted() as deadline:
            return self.answer(data, deadline)

    @contextmanager
    def admitted(self) -> Iterator[float]:
        """
        A place among the requests that are answered.

        Yields:
            The deadline of the request, on `time.monotonic`'s clock.

        Raises:
            BusyError: there is none.
        """
        with self._counting:
            if self._requests >= self.limits.requests:
                raise BusyError(f"busy with {self._requests} requests", self._retry_after())
            self._requests += 1
        begin = time.monotonic()
        try:
            yield begin + self.limits.deadline_seconds
        finally:
            with self._counting:
                self._requests -= 1
                self._usual_seconds += 0.1 * (time.monotonic() - begin - self._usual_seconds)

    def answer(self, data: Mapping[str, Any], deadline: float) -> Any:
        """As a call, for a request that was `admitted`."""
        if not isinstance(data, Mapping) or "inputs" not in data:
            raise ValueError('the request must be a JSON object with the key "inputs".')
        inputs = data["inputs"]
        switches = _DIALOGUE_SWITCHES if self.reads_dialogues else _SWITCHES
        top_k, options = _checked_parameters(data.get("parameters"), switches)
        many = isinstance(inputs, list)
        if many and not 1 <= len(inputs) <= self.limits.inputs:
            raise ValueError(f"inputs: expected 1 to {self.limits.inputs} in a list, got {len(inputs)}.")
        if self.reads_dialogues:
            answers = self._dialogues(inputs if many else [inputs], many, top_k, options, deadline)
            return answers if many else answers[0]
        room = self.limits.media_bytes
        samples = {}
        for index, given in enumerate(inputs if many else [inputs]):
            where = f"inputs[{index}]" if many else "inputs"
            samples[where], room = self._sample(given, where, room, deadline)
        rows = self._done_in_time(self._decoding, deadline, self._prepared, samples, deadline)
        answers = self._read(rows, top_k, options, deadline)
        return answers if many else answers[0]

    def _dialogues(
        self, inputs: list[Any], many: bool, top_k: int | None, options: set[str], deadline: float
    ) -> list[Any]:
        """What the pipeline says of each turn of each dialogue, all of them within the limits before one is read."""
        room = self.limits.media_bytes
        samples: dict[str, dict[str, Any]] = {}
        dialogues = []
        for index, given in enumerate(inputs):
            where = f"inputs[{index}]" if many else "inputs"
            is_dialogue = isinstance(given, Mapping) and isinstance(given.get("turns"), list)
            if not is_dialogue or set(given) - {"turns", "dialogue"}:
                raise ValueError(
                    f"{where}: this model reads conversations, and expects an object with a list of turns."
                )
            turns = []
            for number, turn in enumerate(given["turns"], start=1):
                field = f"{where}, turn {number}"
                if not isinstance(turn, Mapping):
                    raise ValueError(f"{field}: expected an object, got {type(turn).__name__}.")
                carried = {name: value for name, value in turn.items() if name != "speaker" and value is not None}
                # What has nothing in it goes to the pipeline, which keeps it or names it.
                sample, room = self._sample(carried, field, room, deadline) if carried else ({}, room)
                samples[field] = sample
                if len(samples) > self.limits.turns:
                    raise ValueError(
                        f"{where}: the dialogues of a request may have {self.limits.turns} turns together."
                    )
                turns.append({**sample, "speaker": _checked_speaker(turn.get("speaker"), field)})
            dialogues.append({"turns": turns, "dialogue": given.get("dialogue", where)})
        self._done_in_time(self._decoding, deadline, self._lengths, samples, deadline)
        parameters: dict[str, Any] = {"return_notes" if name == "notes" else name: True for name in options}
        parameters |= {"limits": self.limits.media} | ({"top_k": top_k} if top_k else {})
        return self._done_in_time(self._model, deadline, self._read_dialogues, dialogues, parameters)

    def _read_dialogues(self, dialogues: list[dict[str, Any]], parameters: dict[str, Any]) -> list[Any]:
        return [self.reader(one, **parameters) for one in dialogues]

    def _retry_after(self) -> int:
        """Seconds in which about half of the requests here should be done."""
        seconds = min(self._usual_seconds * self._requests / 2, self.limits.deadline_seconds)
        return max(1, math.ceil(seconds))

    def _late(self) -> BusyError:
        with self._counting:
            seconds = self._retry_after()
        return BusyError(f"no answer within {self.limits.deadline_seconds:g} seconds", seconds)

    def _sample(self, given: Any, where: str, room: int, deadline: float) -> tuple[dict[str, Any], int]:
        """The pipeline's input, with its media in memory, and the bytes that are left."""
        if isinstance(given, str):
            given = {"text": given}
        elif isinstance(given, Image.Image):
            return {"image": given}, room
        elif isinstance(given, (bytes, bytearray)):  # the pipeline sees what it is
            content = self._content(given, where, room, deadline)
            return {"bytes": content, "path": where}, room - len(content)
        if not isinstance(given, Mapping):
            raise ValueError(f"{where}: expected a string or an object, got {type(given).__name__}.")
        unknown = sorted(set(given) - {"text", *_MEDIA})
        present = {name: value for name, value in given.items() if value is not None}
        if unknown or not present:
            got = f"the keys {unknown}" if unknown else "none of them"
            hint = "; turns are for a model of conversations" if "turns" in unknown else ""
            raise ValueError(f"{where}: an object may have the keys text, {', '.join(_MEDIA)}; got {got}{hint}.")
        sample: dict[str, Any] = {}
        for name, value in present.items():
            field = f"{where}.{name}"
            if name == "text":
                sample[name] = checked_text(value, field, self.limits)
                continue
            content = self._content(value, field, room, deadline)
            room -= len(content)
            sample[name] = {"bytes": content, "path": field}  # the name that errors call it by
        return sample, room

    def _content(self, value: Any, field: str, room: int, deadline: float) -> bytes:
        """The bytes of a medium. A string is never a path: whoever sends one would read the machine's files."""
        if isinstance(value, (bytes, bytearray)):
            _check_size(len(value), field, room)
            return bytes(value)
        if not isinstance(value, str):
            raise ValueError(f"{field}: expected base64, a data URI or a URL, got {type(value).__name__}.")
        if value[:8].lower().startswith(("http://", "https://")):
            if not self.allow_urls:
                raise ValueError(f"{field}: URLs are switched off here (TRIEMO_ALLOW_URLS); send base64.")
            return fetch_url(value, field, room, min(URL_SECONDS, deadline - time.monotonic()))
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

    def _done_in_time(self, pool: ThreadPoolExecutor, deadline: float, work: Callable, *arguments: Any) -> Any:
        """What `work` returns or raises in a thread of the pool; BusyError where that is not before the deadline."""
        future = pool.submit(work, *arguments)
        try:
            wait([future], timeout=max(0.0, deadline - time.monotonic()))
            if not future.done():
                future.cancel()
                raise self._late()
            return future.result()
        finally:
            del future  # or an error would hold itself by its traceback, and with it the request's media

    def _prepared(self, samples: Mapping[str, dict[str, Any]], deadline: float) -> list[list["_Row"]]:
        """The model's input for each sample's windows, all samples within the limits before the first is decoded."""
        decoder = self._decoders.get()  # as many as there are threads for it
        try:
            lengths = self._lengths(samples, deadline)
            rows = []
            for (where, sample), seconds in zip(samples.items(), lengths, strict=True):
                try:
                    windows, notes = decoder.windows_of(sample, limits=self.limits.media)
                    # What is short is one window, which lasts as long as it does.
                    spans = [one["window"].end - one["window"].start for one in windows]
                    spans = spans if len(spans) > 1 else [max(seconds, default=0.0)]
                    rows.append(
                        [
                            _Row(_tensors(one), span, one["window"], notes)
                            for one, span in zip(windows, spans, strict=True)
                        ]
                    )
                except ValueError as error:
                    named = str(error) if where in str(error) else f"{where}: {error}"
                    raise ValueError(named) from error
                self._check_time(deadline)
            return rows
        finally:
            self._decoders.put(decoder)

    def _lengths(self, samples: Mapping[str, dict[str, Any]], deadline: float) -> list[list[float]]:
        """Seconds of each sample's media. Raises ValueError for what is beyond the limits."""
        most = max(self.limits.total_seconds, self.limits.seconds)
        left = most
        lengths = []
        for where, sample in samples.items():
            media = [sample] if "bytes" in sample else [value for value in sample.values() if _is_file(value)]
            lengths.append([check_media(one["bytes"], one["path"], self.limits) for one in media])
            left -= sum(lengths[-1])
            if left < 0:
                raise ValueError(
                    f"{where}: the sounds and videos of a request may last {most:g} seconds together, and these "
                    "last longer; send them one by one."
                )
            self._check_time(deadline)
        return lengths

    def _check_time(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise self._late()

    def _read(self, samples: list[list["_Row"]], top_k: int | None, options: set[str], deadline: float) -> list[Any]:
        if not options:
            return list(self._scores(samples, top_k, deadline))
        present = []
        for rows in samples:
            found = {name for row in rows for name in present_modalities(row.tensors)}
            present.append(tuple(name for name in MASKS if name in found))
        kept = [subsets_of(names) if "subsets" in options else [names] for names in present]
        parts = self._scores(
            [
                [row.only(subset) for row in rows if set(subset) & set(present_modalities(row.tensors))]
                for rows, chosen in zip(samples, kept, strict=True)
                for subset in chosen
            ],
            top_k,
            deadline,
        )
        answers = []
        for rows, names, chosen in zip(samples, present, kept, strict=True):
            scores = [{"modalities": list(subset), "scores": next(parts)} for subset in chosen]
            answer = {"scores": scores[-1]["scores"], "modalities": list(names), "notes": rows[0].notes}
            answers.append({**answer, "subsets": scores} if "subsets" in options else answer)
        return answers

    def _scores(
        self, samples: list[list["_Row"]], top_k: int | None, deadline: float
    ) -> Iterator[list[dict[str, Any]]]:
        """Of each sample the mean of its windows."""
        lengths = iter([len(rows) for rows in samples])
        waiting = next(lengths, 0)
        read: list[dict[str, Any]] = []
        for batch in _batches([row for rows in samples for row in rows]):
            outputs = self._done_in_time(self._model, deadline, self._forward, batch)
            for index, one in enumerate(batch):
                row = {name: values[index : index + 1] for name, values in outputs.items()}
                read.append({**row, "window": one.window})
                if len(read) == waiting:
                    yield self.reader.postprocess(read, top_k=top_k)
                    read, waiting = [], next(lengths, 0)

    def _forward(self, batch: list["_Row"]) -> dict[str, Any]:
        return self.reader.forward(self.reader.processor.pad([row.tensors for row in batch]))


@dataclass(frozen=True)
class _Row:
    """The model's input for one window of a sample, how many seconds it lasts, the pipeline's own account of it, and
    what was noted of the sample."""

    tensors: dict[str, Any]
    seconds: float
    window: Any = None
    notes: list[str] = field(default_factory=list)

    def only(self, subset: tuple[str, ...]) -> "_Row":
        """The same window with no other modalities than these."""
        absent = {mask for name, mask in MASKS.items() if name not in subset}
        masks = {mask: self.tensors[mask] * 0 for mask in absent & set(self.tensors)}
        return _Row({**self.tensors, **masks}, self.seconds, self.window, self.notes)


def _tensors(window: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in window.items() if name not in ("window", "is_last")}


def _batches(rows: list[_Row]) -> Iterator[list[_Row]]:
    """In order, and no batch larger than the model is to be held for, but for a single row."""
    batch: list[_Row] = []
    for row in rows:
        longest = max(other.seconds for other in [*batch, row])
        if batch and (len(batch) == ROWS_AT_ONCE or (len(batch) + 1) * longest > SECONDS_AT_ONCE):
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _is_file(value: Any) -> bool:
    return isinstance(value, Mapping) and "bytes" in value


def present_modalities(tensors: Mapping[str, Any]) -> tuple[str, ...]:
    """What a batch of one has of text, audio, vision, in this order: those whose mask is not all zero."""
    return tuple(name for name, mask in MASKS.items() if mask in tensors and bool(tensors[mask].any()))


def subsets_of(modalities: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All non-empty subsets, the single ones first, all together last."""
    return [subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size)]


def checked_text(value: Any, name: str, limits: Limits) -> str:
    """
    The text.

    Raises:
        ValueError: no string, too long, or no text (JSON can hold half of a surrogate pair).
    """
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a string, got {type(value).__name__}.")
    if len(value) > limits.characters:
        raise ValueError(f"{name}: at most {limits.characters} characters, got {len(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: a lone surrogate at character {error.start} is no text.") from error
    return value


def check_media(content: bytes, name: str, limits: Limits) -> float:
    """
    Refuse what lasts too long, before any of it is read. Headers are not believed: sound is decoded and counted, time
    stamps are read from the packets. Sizes are the pipeline's to check.

    Args:
        content: a picture, a sound or a video.
        name: what the error calls it.

    Returns:
        How many seconds it lasts; 0 for a picture and for what cannot be read.

    Raises:
        ValueError: longer, or of more frames, than the limits. What cannot be read at all is left to the pipeline.
    """
    try:
        # No nested opens: a play list must not make FFmpeg open anything else. Titles that are no UTF-8 are taken, by
        # PyAV before 19 only when told to; later ones have no such option.
        lenient = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
        file = av.open(io.BytesIO(content), options={"protocol_whitelist": "none"}, **lenient)
    except (av.FFmpegError, OSError, ValueError, IndexError):
        return 0.0
    with file:
        return _check_streams(file, name, limits)


def _check_streams(file: Any, name: str, limits: Limits) -> float:
    longest = 0.0
    begin = (file.start_time or 0) / 1e6
    streams = [stream for stream in file.streams if stream.type in ("audio", "video") and stream.codec_context]
    if not streams:  # subtitles, say, which the pipeline refuses
        return longest
    heard = dict.fromkeys((stream.index for stream in streams), 0.0)
    frames = dict.fromkeys(heard, 0)
    packets = file.demux(streams)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError):
            return longest  # where the file breaks off, the pipeline stops too
        if packet is None:
            return longest
        stream = packet.stream
        end = 0.0 if packet.pts is None else float((packet.pts + (packet.duration or 0)) * packet.time_base) - begin
        if stream.type == "audio":
            try:
                heard[stream.index] += sum(frame.samples / (frame.sample_rate or 1) for frame in packet.decode())
            except (av.FFmpegError, ValueError):
                continue  # damaged packets are skipped by the pipeline too
        else:
            frames[stream.index] += packet.size > 0
        longest = max(longest, end, heard[stream.index])
        if longest > limits.seconds:
            raise ValueError(f"{name}: at most {limits.seconds:g} seconds, and this lasts longer.")
        if frames[stream.index] > limits.frames:
            raise ValueError(f"{name}: at most {limits.frames} frames, and this has more.")


def fetch_url(url: str, name: str, most_bytes: int, seconds: float = URL_SECONDS) -> bytes:
    """
    Download from a public address. Each host, also of a redirect, is resolved once, refused if any of its addresses is
    not public, and connected to at the very address that was checked. Proxies of the environment are not used.

    Args:
        url: http or https.
        name: what the error calls it.
        most_bytes: a longer answer is refused, whatever its header says.
        seconds: for all of it, redirects included, however slowly it drips.

    Raises:
        ValueError: not a public address, unreachable, too slow, too large, or an answer other than 200.
    """
    deadline = time.monotonic() + seconds
    for _ in range(MOST_REDIRECTS + 1):
        with open_url(url, name, deadline) as response:
            if response.status in (301, 302, 303, 307, 308) and response.getheader("Location"):
                url = urljoin(url, response.getheader("Location"))
                continue
            if response.status != 200:
                raise ValueError(f"{name}: the URL answered with status {response.status}.")
            content = _read_at_most(response, name, most_bytes)
        # Without a stated length, an answer that the timer cut off ends like a whole one.
        if time.monotonic() >= deadline:
            raise ValueError(f"{name}: the URL's answer took more than {seconds:g} seconds.")
        return content
    raise ValueError(f"{name}: more than {MOST_REDIRECTS} redirects.")


@contextmanager
def open_url(
    url: str, name: str, deadline: float, body: bytes | None = None, allow_private: bool = False
) -> Iterator[HTTPResponse]:
    """
    The answer to one request: GET, or POST where there is a `body` (JSON). Redirects are not followed, and proxies of
    the environment not used.

    Args:
        url: http or https.
        name: what the error calls it.
        deadline: when the connection is cut, on `time.monotonic`'s clock.
        body: to send.
        allow_private: connect to any address; otherwise the host is refused if any of its addresses is not public.

    Raises:
        ValueError: not a public address, unreachable, or broken off, also while the answer is read.
    """
    parts = _checked_parts(url, name)
    timer = None
    try:
        connection = _connect(parts, name, allow_private)
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), _hang_up, [connection.sock])
        timer.start()
        with connection.sock:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"User-Agent": "triemo", "Accept": "*/*"}
            if body is not None:
                headers["Content-Type"] = "application/json"
            connection.request("GET" if body is None else "POST", target, body, headers)
            yield connection.getresponse()
    except (OSError, HTTPException, UnicodeError) as error:
        raise ValueError(f"{name}: the URL cannot be read ({type(error).__name__}).") from error
    finally:
        if timer is not None:
            timer.cancel()


def _checked_parts(url: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port or the brackets
        known = False
    if not known:
        raise ValueError(f"{name}: expected an http or https URL, got {url[:200]!r}.")
    return parts


def _connect(parts: SplitResult, name: str, allow_private: bool) -> HTTPConnection:
    secure = parts.scheme == "https"
    host, port = str(parts.hostname), parts.port or (443 if secure else 80)
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found or not (allow_private or all(map(is_public, found))):
        raise ValueError(f"{name}: the URL does not lead to a public address.")
    connection = (HTTPSConnection if secure else HTTPConnection)(host, port, timeout=CONNECT_SECONDS)
    connection.sock = socket.create_connection((found[0], port), timeout=CONNECT_SECONDS)
    if secure:
        connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
    return connection


def is_public(address: str) -> bool:
    """
    Whether an IP address is of the public internet. Of IPv6 only what is given out counts: what carries an IPv4
    address inside may lead to any.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return ip in _PUBLIC_IPV6 and ip.is_global and not any(ip in network for network in _SPECIAL_IPV6)
        ip = ip.ipv4_mapped
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _SPECIAL_IPV4)


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
        raise ValueError(f"{name}: the URL's answer broke off or took too long.")
    return bytes(content)


def _check_size(size: int, name: str, room: int) -> None:
    if size > room:
        raise ValueError(f"{name}: the media of a request may have no more bytes than the limit; {room} are left.")


def _checked_speaker(value: Any, name: str) -> str | int | None:
    if value is None or isinstance(value, str | int) and len(str(value)) <= MOST_NAME_CHARACTERS:
        return value
    raise ValueError(f"{name}: a speaker is a name of at most {MOST_NAME_CHARACTERS} characters, or a number.")


def _checked_parameters(given: Any, switches: Sequence[str]) -> tuple[int | None, set[str]]:
    """`top_k`, and which of the switches are on."""
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ValueError(f"parameters: expected an object, got {type(given).__name__}.")
    unknown = sorted(set(given) - {"top_k", *switches})
    if unknown:
        raise ValueError(f"parameters: got {unknown}, expected top_k, {' or '.join(switches)}.")
    top_k = given.get("top_k")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise ValueError(f"parameters.top_k: expected a whole number of at least 1, got {top_k!r}.")
    for name in switches:
        if not isinstance(given.get(name) or False, bool):
            raise ValueError(f"parameters.{name}: expected true or false, got {given[name]!r}.")
    return top_k, {name for name in switches if given.get(name)}


def limits_from_environment() -> Limits:
    """
    Those of `Limits`, where the environment says nothing else: `TRIEMO_MAX_MEGABYTES`, `TRIEMO_MAX_SECONDS`,
    `TRIEMO_MAX_PIXELS`, `TRIEMO_MAX_FRAME_PIXELS`, `TRIEMO_MAX_FRAMES`, `TRIEMO_DEADLINE_SECONDS`,
    `TRIEMO_MAX_REQUESTS`.

    Raises:
        ValueError: one of them is no number above 0.
    """
    found: dict[str, Any] = {}
    for variable, limit, factor in (
        ("TRIEMO_MAX_MEGABYTES", "media_bytes", 1_000_000),
        *((f"TRIEMO_MAX_{name.upper()}", name, 1) for name in _OF_THE_PIPELINE),
        ("TRIEMO_DEADLINE_SECONDS", "deadline_seconds", 1),
        ("TRIEMO_MAX_REQUESTS", "requests", 1),
    ):
        text = os.environ.get(variable)
        if text:
            try:
                value = float(text)
            except ValueError as error:
                raise ValueError(f"{variable}: expected a number, got {text!r}.") from error
            kind = type(getattr(Limits, limit))
            if not math.isfinite(value) or kind(value * factor) <= 0:
                raise ValueError(f"{variable}: expected a number above 0, got {text!r}.")
            found[limit] = kind(value * factor)
    return Limits(**found)
