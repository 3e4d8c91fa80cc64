"""The server: its statuses, and many clients at once, hostile ones among them.

Every answer is the one its request gets alone, and memory does not grow.
"""

import base64
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from endpoint_service import post, publish, serve
from malformed_media import png
from media_files import sine, write_clip, write_sound
from PIL import Image
from test_dialogue_pipeline import tiny_head
from tiny_checkpoint import save_tiny_checkpoint

import triemo.processing  # noqa: F401  registers the pipeline, which a published folder names itself
from triemo.serving.endpoint import server
from triemo.serving.endpoint.handler import EndpointHandler, Limits
from triemo.serving.endpoint.server import most_body_bytes

CLIENTS, REQUESTS, ROUNDS = 16, 100, 4
SENTENCES = ["oh wow", "i miss you", "you really came !", "so happy to see you", "am fine", "can ' t believe it"]


def resident_bytes(process: int) -> int:
    """Of a process, without what is only mapped from files; 0 where the system does not say."""
    status = Path(f"/proc/{process}/status")
    if not status.is_file():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Each single modality, pairs, all three, lists, top_k, subsets, and bad and hostile ones, all different."""
    folder = tmp_path_factory.mktemp("media")

    def encoded(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    sounds = [
        encoded(write_sound(folder / f"{n}.wav", sine(0.2 + 0.1 * n, 16000, 150 + 90 * n), 16000)) for n in range(4)
    ]
    clips = [
        encoded(write_clip(folder / f"{n}.mp4", frames=4 + n, sound=sine(0.3, 16000, 200), sound_rate=16000))
        for n in range(3)
    ]
    faces = []
    for n in range(3):
        noise = np.random.default_rng(n).integers(0, 256, (32 + 8 * n, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{n}.png")
        faces.append(encoded(folder / f"{n}.png"))
    inputs = [
        *SENTENCES,
        *({"audio": sound} for sound in sounds),
        *({"image": face} for face in faces),
        *({"video": clip} for clip in clips),
        {"text": SENTENCES[0], "audio": sounds[1]},
        {"text": SENTENCES[1], "image": faces[2]},
        {"audio": sounds[3], "image": faces[0]},
        {"text": SENTENCES[2], "audio": sounds[2], "image": faces[1]},
        {"text": SENTENCES[3], "video": clips[1]},
        [SENTENCES[4], {"audio": sounds[0]}, {"text": SENTENCES[5], "image": faces[0]}],
        {"audio": "no base64!"},
        {"video": sounds[0]},
    ]
    parameters = [{}, {"top_k": 2}, {"subsets": True}]
    made = [{"inputs": given, "parameters": parameters[n % 3]} for n, given in enumerate(inputs)]
    minutes = {"audio": encoded(write_sound(folder / "long.wav", np.zeros((1, 119 * 1000), np.float32), 1000))}
    hostile = [
        {"inputs": SENTENCES[0], "parameters": {"top_k": 0}},
        {"inputs": {"image": base64.b64encode(png_header(60_000, 60_000)).decode()}},
        {"inputs": {"image": base64.b64encode(png_header(9_000, 9_000)).decode()}},
        {"inputs": {"image": base64.b64encode(png(20_000, 1)).decode()}},
        {"inputs": {"audio": encoded(write_sound(folder / "hour.wav", np.zeros((1, 121 * 1000), np.float32), 1000))}},
        {"inputs": [minutes, minutes, minutes]},
        {"inputs": {"audio": "http://127.0.0.1:1/x"}},
        {"inputs": {"video": "file:///etc/passwd"}},
        {"inputs": {"video": base64.b64encode(b"#EXTM3U\nhttp://127.0.0.1:1/x.ts\n").decode()}},
        {"inputs": "a" * 10_001},
        {"inputs": "\ud83d"},
        {"inputs": [SENTENCES[0]] * 33},
        {"inputs": 7},
        [],
        b"{",
        b"[" * 100_000,
        b"\xff\xfe\x00",
    ]
    return [*made, *hostile]


def png_header(width: int, height: int) -> bytes:
    """A picture of so many pixels that says so and holds none of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def same(got: object, expected: object) -> bool:
    """Equal, scores up to rounding."""
    if isinstance(expected, dict):
        return isinstance(got, dict) and got.keys() == expected.keys() and all(same(got[k], expected[k]) for k in got)
    if isinstance(expected, list):
        return isinstance(got, list) and len(got) == len(expected) and all(map(same, got, expected))
    return got == pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else got == expected


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """URL and number of the process of `python -m triemo.serving.endpoint.server`."""
    command = [sys.executable, "-m", "triemo.serving.endpoint.server", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[1], process.pid
        finally:
            process.terminate()


def test_a_conversations_model_that_was_not_published(tmp_path):
    """In a process of its own, where nothing but the server registers the classes."""
    save_tiny_checkpoint(tmp_path / "towers")
    tiny_head(base_model_name_or_path="somebody/towers").save_pretrained(tmp_path / "head")
    with served(tmp_path / "head") as (url, _):
        status, answers = post(url, {"inputs": {"turns": [{"speaker": "a", "text": "happy"}, {"text": "sad"}]}})
    assert status == 200 and [answer["speaker"] for answer in answers] == ["a", None]


def test_mixed_requests_of_many_clients(tiny_checkpoint, requests, tmp_path):
    folder = publish(tiny_checkpoint, tmp_path / "hub")
    with served(folder) as (url, process):
        expected = [post(url, request) for request in requests]
        assert [status for status, _ in expected] == [200] * 22 + [400] * (len(requests) - 22)
        assert all(list(answer) == ["error"] and answer["error"] for _, answer in expected[22:])
        distinct = {str(answer) for _, answer in expected}
        assert len(distinct) == len(requests)  # or a mix-up of two would not be seen

        start = threading.Barrier(CLIENTS)

        seconds: list[float] = []

        def client(number: int) -> list[tuple[int, tuple]]:
            start.wait()
            answers = []
            for n in range(number, REQUESTS, CLIENTS):
                begin = time.monotonic()
                answers.append((n % len(requests), post(url, requests[n % len(requests)])))
                seconds.append(time.monotonic() - begin)
            return answers

        def all_clients() -> list[tuple[int, tuple]]:
            with ThreadPoolExecutor(CLIENTS) as pool:
                return [answer for answers in pool.map(client, range(CLIENTS)) for answer in answers]

        all_clients()
        sizes = []
        for _ in range(ROUNDS):
            answers = all_clients()
            sizes.append(resident_bytes(process) / 1e6)
    p50, p95 = np.percentile(seconds, [50, 95])
    shown = ", ".join(f"{size:.1f}" for size in sizes)
    print(f"{CLIENTS} clients, {REQUESTS} requests: median {p50:.3f} s, p95 {p95:.3f} s, memory {shown} MB")
    assert p95 < Limits().deadline_seconds
    assert len(answers) == REQUESTS
    wrong = [number for number, answer in answers if not same(answer[1], expected[number][1])]
    assert not wrong
    assert all(answer[0] == expected[number][0] for number, answer in answers)
    # From the second round on it goes up and down by a few MB; each decoder that stays would be more than one.
    assert max(sizes) - sizes[0] < 10, f"{shown} MB after each {REQUESTS} requests"


@pytest.fixture(scope="module")
def handler(tiny_checkpoint):
    return EndpointHandler(str(tiny_checkpoint))


@pytest.fixture
def url(handler):
    with serve(handler) as address:
        yield address


def raw(url: str, sent: bytes, wait: float = 0.0) -> str:
    """The answer to bytes that no client library would send; the socket stays open until it comes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(sent)
        time.sleep(wait)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    return answer.decode()


def test_statuses(url):
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.status == 200
    status, scores = post(url, {"inputs": SENTENCES[0], "parameters": {"top_k": 2}})
    assert status == 200 and [sorted(entry) for entry in scores] == [["label", "score"]] * 2
    status, answer = post(url, {"inputs": {"audio": "no base64!"}})
    assert status == 400 and answer["error"].startswith("inputs.audio: neither base64")
    assert post(url, b"no json")[1]["error"].startswith("the request is no JSON")
    assert raw(url, b"POST / HTTP/1.1\r\n\r\n").startswith("HTTP/1.0 411")
    assert raw(url, b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n").startswith("HTTP/1.0 411")


def test_too_large_a_request_is_refused_unread(url, handler):
    most = most_body_bytes(handler.limits)
    begin = time.monotonic()
    answer = raw(url, f"POST / HTTP/1.1\r\nContent-Length: {most + 1}\r\n\r\n".encode())
    assert answer.startswith("HTTP/1.0 413") and f"{most} bytes" in answer
    assert time.monotonic() - begin < 20
    # The largest that the limits admit is not.
    texts = json.dumps({"inputs": ["\U0001f600" * handler.limits.characters] * handler.limits.inputs})
    assert len(texts) + handler.limits.media_bytes * 4 / 3 < most


def test_a_request_that_does_not_arrive_gives_its_place_back(url, handler, monkeypatch):
    monkeypatch.setattr(server, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(server._Service, "timeout", 0.5)
    answer = raw(url, b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    assert answer.startswith("HTTP/1.0 408") and handler._requests == 0
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    while handler._requests:
        time.sleep(0.01)
    assert post(url, {"inputs": SENTENCES[0]})[0] == 200


def test_a_full_house_answers_503_and_when_to_come_again(url, handler, monkeypatch):
    monkeypatch.setattr(handler, "limits", Limits(requests=1))
    with handler.admitted():
        large = json.dumps({"inputs": SENTENCES[0], "pad": "x" * 5_000_000}).encode()  # sent while it is refused
        for request in (json.dumps({"inputs": SENTENCES[0]}).encode(), large):
            with pytest.raises(urllib.error.HTTPError) as raised:
                urllib.request.urlopen(urllib.request.Request(url, request), timeout=30)
            assert raised.value.status == 503 and int(raised.value.headers["Retry-After"]) >= 1
            assert "busy with 1 requests" in json.load(raised.value)["error"]
    assert post(url, {"inputs": SENTENCES[0]})[0] == 200
