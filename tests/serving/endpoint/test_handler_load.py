"""Many clients at once: every answer is the one its request gets alone, and memory does not grow."""

import base64
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from endpoint_service import load_handler, post, publish, serve
from media_files import sine, write_clip, write_sound
from PIL import Image

CLIENTS, REQUESTS = 8, 200
SENTENCES = ["oh wow", "i miss you", "you really came !", "so happy to see you", "am fine", "can ' t believe it"]


def resident_bytes() -> int:
    """Of this process, without what is only mapped from files; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Twenty-five different ones: each single modality, pairs, all three, lists, top_k, subsets, and bad ones."""
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
    return [*made, {"inputs": SENTENCES[0], "parameters": {"top_k": 0}}]


def same(got: object, expected: object) -> bool:
    """Equal, scores up to rounding."""
    if isinstance(expected, dict):
        return isinstance(got, dict) and got.keys() == expected.keys() and all(same(got[k], expected[k]) for k in got)
    if isinstance(expected, list):
        return isinstance(got, list) and len(got) == len(expected) and all(map(same, got, expected))
    return got == pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else got == expected


def test_mixed_requests_of_many_clients(tiny_checkpoint, requests, tmp_path):
    folder = publish(tiny_checkpoint, tmp_path / "hub")
    handler = load_handler(folder).EndpointHandler(str(folder))
    with serve(handler) as url:
        expected = [post(url, request) for request in requests]
        assert [status for status, _ in expected].count(400) == 3
        distinct = {str(answer) for _, answer in expected}
        assert len(distinct) == len(requests)  # or a mix-up of two would not be seen

        start = threading.Barrier(CLIENTS)

        def client(number: int) -> list[tuple[int, tuple]]:
            start.wait()
            mine = range(number, REQUESTS, CLIENTS)
            return [(n % len(requests), post(url, requests[n % len(requests)])) for n in mine]

        def all_clients() -> list[tuple[int, tuple]]:
            with ThreadPoolExecutor(CLIENTS) as pool:
                return [answer for answers in pool.map(client, range(CLIENTS)) for answer in answers]

        all_clients()  # memory pools of so many threads fill once
        growths = []
        for _ in range(2):  # a pool may grow once more, a leak grows every time
            gc.collect()
            before = resident_bytes()
            answers = all_clients()
            gc.collect()
            growths.append(resident_bytes() - before)
        grown = min(growths)
    assert len(answers) == REQUESTS
    wrong = [number for number, answer in answers if not same(answer[1], expected[number][1])]
    assert not wrong
    assert all(answer[0] == expected[number][0] for number, answer in answers)
    assert grown < 20e6, f"{grown / 1e6:.1f} MB more after {REQUESTS} requests"
