"""The demo page without a browser: what it shows, its limits and errors, and that no file of a visitor stays."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np
import pytest
import torch
from media_files import sine, write_clip, write_sound
from PIL import Image

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'triemo[demo]'")

from gradio_client import Client, handle_file

from triemo.processing.explanations_triemo import subset_scores
from triemo.serving.page import app, visitors
from triemo.serving.page.clip import data_uri, explanation_html, face_pictures, problem_html, reading_html
from triemo.serving.reading import read_subsets
from triemo.serving.samples import Sample
from triemo.training.publish.space import assemble_space

SENTENCE = "oh wow you really came !"


@pytest.fixture(scope="module")
def reading(reader, assets):
    return read_subsets(reader, Sample("clip", None, {"video": str(assets / "demo.mp4"), "text": SENTENCE}))


@pytest.fixture(scope="module")
def client(reader):
    with app.open_page(reader) as url:
        yield Client(url, verbose=False, analytics_enabled=False)


def table(html: str, label: str) -> list[list[str]]:
    """Cells of each row of the table that is called so, without their markup."""
    body = re.search(rf'<table[^>]*aria-label="{label}">(.*?)</table>', html, re.DOTALL)
    assert body is not None, label
    rows = re.findall(r"<tr.*?>(.*?)</tr>", body[1], re.DOTALL)
    return [[re.sub(r"<[^>]+>", " ", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_every_number_is_the_model_s(reader, reading):
    html = reading_html(reading, [])
    scores = subset_scores(reader, reading.tensors)
    together = scores[("text", "audio", "vision")]
    best = sorted(together, key=together.get, reverse=True)
    shown = table(html, "Score of each emotion")
    assert [row[:2] for row in shown] == [[label, f"{100 * together[label]:.1f} %"] for label in best]
    head, *rows = table(html, "Score of each emotion from each combination")
    assert [" ".join(cell.split()) for cell in head[1:]] == [
        "words",
        "voice",
        "face",
        "words voice",
        "words face",
        "voice face",
        "words voice face",
    ]
    assert rows == [[label] + [f"{100 * by_label[label]:.0f}" for by_label in scores.values()] for label in best]
    marked = {
        label: row.count("triemo-best") for label, row in zip(best, html.split('<th scope="row">')[8:], strict=False)
    }
    tops = [max(by_label, key=by_label.get) for by_label in scores.values()]
    assert marked == {label: tops.count(label) for label in best}
    steps = table(html, "Contribution of words, voice and face")
    assert [row[0] for row in steps] == ["without input", "words", "voice", "face", "together"]
    numbers = [float(row[1]) for row in steps]
    assert numbers[0] == pytest.approx(100 / 7, abs=0.05)
    assert numbers[-1] == pytest.approx(100 * together[best[0]], abs=0.05)
    assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.25)  # each rounded
    assert "Read from words, voice, face (4 of 4 frames)." in html


def test_an_explanation_shows_what_moved_the_answer(client, reader, assets):
    """Each word, moment and frame with its number, and that the answer is uncertain where the checkpoint says so."""
    clip = {"video": str(assets / "demo.mp4"), "text": SENTENCE}
    told = reader(clip, explain=True)["explanation"]
    html = client.predict(handle_file(assets / "demo.mp4"), None, SENTENCE, True, api_name="/read")
    shown = re.findall(r'class="(triemo-\w+)" style="[^"]*" title="([-+][\d.]+)">([^<]+)</span>', html)
    assert [(number, word) for _, number, word in shown] == [
        (f"{100 * one['effect']:+.1f}", one["word"]) for one in told["words"]
    ]
    raised = {word for kind, _, word in shown if kind == "triemo-raised"}
    assert raised == {one["word"] for one in told["words"] if one["effect"] >= 0}
    for kind, label in (("moments", "Voice"), ("frames", "Face")):
        (strip,) = re.findall(rf'aria-label="{label}: ([^"]*)">(.*?)</div>', html)
        assert re.findall(r'title="([-+][\d.]+)"', strip[1]) == [f"{100 * one['effect']:+.1f}" for one in told[kind]]
        assert f"most {'at' if kind == 'frames' else 'from'} " in strip[0]
    several = explanation_html([{**told, "timestamp": (0.0, 4.0)}, {**told, "timestamp": (4.0, 8.0)}])
    assert "From 4.0 to 8.0 s" in several and several.count("triemo-strip") == 4
    assert "Uncertain" not in html and "What moved it" in html
    assert "What moved it" not in client.predict(None, None, SENTENCE, False, api_name="/read")


def test_an_uncertain_reading_says_so(client, reader, monkeypatch):
    monkeypatch.setattr(reader.model.config, "min_score", 0.999)
    assert "Uncertain: the best score is below" in client.predict(None, None, SENTENCE, False, api_name="/read")
    assert client.predict(None, None, SENTENCE, api_name="/emotions")["uncertain"] is True
    answer = client.predict(None, None, SENTENCE, True, api_name="/emotions")
    assert [one["word"] for one in answer["explanation"]["words"]] == SENTENCE.split()


def test_bars_begin_where_the_one_before_ends(reading):
    parts = {"text": 0.5, "audio": -0.3, "vision": 0.2}
    html = reading_html(replace(reading, empty=0.1, parts=parts), [])
    contributions = html[html.index("What makes it") :]
    bars = re.findall(r'class="triemo-bar([^"]*)" style="margin-left: ([\d.]+)%; width: ([\d.]+)%', contributions)
    expected = [("", 0, 10), ("", 10, 50), (" triemo-down", 30, 30), ("", 30, 20), ("", 0, 50)]
    assert [(kind, float(left), float(width)) for kind, left, width in bars] == expected


def test_what_is_shown_is_escaped(reading):
    evil = "<script>x</script>"
    scores = {
        subset: {evil if name == reading.label else name: score for name, score in by_label.items()}
        for subset, by_label in reading.scores.items()
    }
    evidence = replace(reading.evidence, missing=[f"no {evil}"], notes=[f"text: {evil}"])
    html = reading_html(replace(reading, scores=scores, label=evil, evidence=evidence), [])
    assert "<script" not in html and html.count("&lt;script&gt;") >= 5
    assert f"Text: {escape(evil)}." in html
    assert "<script" not in problem_html(evil)


def test_faces_are_the_pixels_the_model_got(reader, assets):
    """The other side is the processor itself, told not to normalise."""
    tensors = reader.prepare({"video": str(assets / "demo.mp4")})
    raw = reader.processor(videos=str(assets / "demo.mp4"), do_normalize=False, do_rescale=False)
    assert tensors["pixel_values"].shape[1] == 4
    pictures = face_pictures(reader, tensors, most=3)
    assert [seconds for seconds, _ in pictures] == [tensors["video_times"][0, frame].item() for frame in (0, 2, 3)]
    for (_, picture), frame in zip(pictures, (0, 2, 3), strict=True):
        expected = raw["pixel_values"][0, frame].permute(1, 2, 0).squeeze().numpy()
        assert np.abs(np.asarray(picture, dtype=np.float32) - expected).max() <= 0.51
    mask = torch.tensor([[0, 1, 0, 0]])
    assert len(face_pictures(reader, {**tensors, "video_attention_mask": mask})) == 1
    assert face_pictures(reader, {**tensors, "video_attention_mask": mask * 0}) == []
    assert face_pictures(reader, reader.prepare({"text": SENTENCE})) == []
    uri = data_uri(pictures[0][1])
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as again:
        assert np.array_equal(np.asarray(again), np.asarray(pictures[0][1]))


def test_words_alone(client):
    html = client.predict(None, None, SENTENCE, False, api_name="/read")
    assert "Read from words." in html and len(table(html, "Score of each emotion")) == 7
    assert "combination" not in html and "What makes it" not in html and "<img" not in html


def test_clip_voice_and_words(client, reader, assets, clips):
    clip, voice = {"video": handle_file(assets / "demo.mp4")}, handle_file(clips / "sound.wav")
    html = client.predict(clip["video"], voice, SENTENCE, False, api_name="/read")
    expected = reader({"video": str(assets / "demo.mp4"), "audio": str(clips / "sound.wav"), "text": SENTENCE})
    shown = table(html, "Score of each emotion")
    assert [row[:2] for row in shown] == [[entry["label"], f"{100 * entry['score']:.1f} %"] for entry in expected]
    assert html.count("<img") == 4  # one of each frame looked at


def test_programs_are_answered_in_json(client, reader, assets):
    answer = client.predict({"video": handle_file(assets / "demo.mp4")}["video"], None, SENTENCE, api_name="/emotions")
    clip = {"video": str(assets / "demo.mp4"), "text": SENTENCE}
    expected = reader(clip)
    assert [entry["label"] for entry in answer["scores"]] == [entry["label"] for entry in expected]
    assert [e["score"] for e in answer["scores"]] == pytest.approx([e["score"] for e in expected], abs=1e-6)
    assert answer["modalities"] == ["text", "audio", "vision"] and answer["missing"] == []
    assert answer["frames"] == {"with_face": 4, "sampled": 4}
    scores = subset_scores(reader, reader.prepare(clip))
    got = {tuple(part["modalities"]): part["scores"] for part in answer["subsets"]}
    assert got.keys() == scores.keys()
    assert all(got[subset] == pytest.approx(by_label, abs=1e-6) for subset, by_label in scores.items())
    parts = {name: part for name, part in answer["contributions"].items() if name != "label"}
    assert sum(parts.values()) == pytest.approx(answer["score"])
    assert str(assets) not in json.dumps(answer) and "gradio" not in json.dumps(answer)


def call(client: Client, **inputs: Any) -> tuple[str, Any]:
    """As serving/README.md tells people to: event and data of the answer, by HTTP alone."""
    url = f"{client.src}gradio_api/call"
    request = urllib.request.Request(
        f"{url}/v2/emotions", json.dumps(inputs).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{url}/emotions/{event}", timeout=60) as response:
        (kind, data), *_ = re.findall(r"event: (complete|error)\ndata: (.*)", response.read().decode())
    return kind, json.loads(data)


def test_a_call_by_name_over_http(client, reader):
    kind, (answer,) = call(client, words=SENTENCE)
    best = reader({"text": SENTENCE})[0]
    assert kind == "complete" and (answer["label"], answer["text"]) == (best["label"], SENTENCE)
    assert answer["score"] == pytest.approx(best["score"], abs=1e-6) and answer["modalities"] == ["text"]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "Nothing to read yet"),
        ({"words": "a" * 10_001}, "words: at most 10000 characters, got 10001"),
        ({"words": "oh \ud83d"}, "words: a lone surrogate at character 3"),
    ],
)
def test_limits_hold_in_calls_too(client, inputs, said):
    kind, answer = call(client, **inputs)
    assert kind == "error" and said in answer["error"]
    html = client.predict(None, None, "a" * 10_001, False, api_name="/read")
    assert "words: at most 10000 characters" in html


@pytest.mark.parametrize("name", ["video", "voice"])
def test_urls_in_calls_are_not_fetched(client, name, monkeypatch):
    fetched = []

    async def fetch(url: str, **_: Any) -> str:
        fetched.append(url)
        raise ValueError("fetched")

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", fetch)
    file = {"path": "https://example.com/large.mp4", "meta": {"_type": "gradio.FileData"}}
    kind, answer = call(client, **{name: file})
    assert fetched == [] and kind == "error" and "URLs are not fetched" in answer["error"]


def test_large_requests_are_refused_unread(client):
    host, port = client.src.removeprefix("http://").rstrip("/").split(":")
    call, upload = "/gradio_api/call/emotions", "/gradio_api/upload"
    refused = [
        (call, f"Content-Length: {visitors.CALL_BYTES + 1}\r\n\r\n".encode(), "413"),
        (call, b"Content-Length: 300000000\r\n\r\n", "413"),
        (upload, f"Content-Length: {visitors.UPLOAD_BYTES + 1}\r\n\r\n".encode(), "413"),
        # In chunks, which state no length.
        (call, b"Transfer-Encoding: chunked\r\n\r\n" + b"186a0\r\n" + b"x" * 100_000 + b"\r\n", "413"),
    ]
    for path, rest, status in refused:
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n".encode())
            connection.sendall(rest)
            if b"chunked" in rest:
                for _ in range(10):
                    connection.sendall(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
            assert connection.recv(1000).split()[1].decode() == status, path


def test_problems_are_said_in_place_of_a_reading(client, clips, tmp_path, monkeypatch):
    def answer(video=None, voice=None, words=None):
        given = [handle_file(file) if file else None for file in (video, voice)]
        return client.predict(*given, words, False, api_name="/read")

    assert "Nothing to read yet" in answer() and "Nothing to read yet" in answer(words="  ")
    broken = answer(clips / "broken.mp4")
    assert 'role="alert"' in broken and "broken.mp4" in broken and "/" not in re.sub(r"</\w+>", "", broken)
    assert "it has no picture track" in answer(clips / "sound.wav")
    assert "no face was found" in answer(clips / "empty.mp4")
    note = answer(clips / "faceless.mp4")
    assert "No face was found in 4 frames: read from voice alone." in note and 'role="alert"' not in note
    monkeypatch.setattr(visitors, "LIMITS", replace(visitors.LIMITS, seconds=1.5))
    assert "faceless.mp4: at most 1.5 seconds" in answer(clips / "faceless.mp4")
    long = write_sound(tmp_path / "long.wav", sine(2, 16000), 16000)
    assert "long.wav: at most 1.5 seconds" in answer(voice=long)
    monkeypatch.setattr(visitors, "LIMITS", replace(visitors.LIMITS, seconds=60.0, frame_pixels=99))
    assert "is beyond the limit frame_pixels=99" in answer(clips / "faceless.mp4")


def test_a_recording_without_a_stated_duration(client, tmp_path):
    """Browsers record into a stream of WebM whose header does not say how long it will be."""
    whole = write_clip(tmp_path / "whole.mkv", frames=20, sound=sine(0.8, 16000), sound_rate=16000).read_bytes()
    place = whole.index(b"\x44\x89\x88")  # the Duration element: an empty one in its place
    recorded = tmp_path / "recorded.webm"
    recorded.write_bytes(whole[:place] + b"\xec\x89" + b"\0" * 9 + whole[place + 11 :])
    html = client.predict(handle_file(recorded), None, None, False, api_name="/read")
    assert "Read from voice." in html, html


def test_uploads_go_with_their_visitor(tmp_path):
    files = [tmp_path / str(n) for n in range(3)]
    for file in files:
        file.touch()
    first, second, third = map(str, files)
    uploads = visitors.Uploads()
    uploads.keep("ann", [first, second])
    uploads.keep("bob", [second, third])
    uploads.keep("ann", [second])
    assert [file.exists() for file in files] == [False, True, True]
    uploads.forget("ann")
    assert [file.exists() for file in files] == [False, True, True]  # bob gave the same file
    uploads.forget("bob")
    uploads.forget("nobody")
    assert not any(file.exists() for file in files)


def test_the_page_asks_for_no_analytics_and_keeps_no_history(client, reader):
    page = app.build_app(reader)
    assert page.analytics_enabled is False
    assert page.delete_cache == (60, 600)
    config = client.config
    assert config["run_history"] is False and config["analytics_enabled"] is False
    assert [one["api_name"] for one in config["dependencies"] if one.get("api_visibility") == "public"] == ["emotions"]


def test_a_regression_model_is_refused(reader, monkeypatch):
    monkeypatch.setattr(reader.model.config, "problem_type", "regression")
    with pytest.raises(ValueError, match="regression"):
        app.build_app(reader)


def test_the_model_of_a_space(tmp_path, monkeypatch):
    monkeypatch.delenv("TRIEMO_MODEL", raising=False)
    assert app._model_of_the_space() is None  # here the file beside it is no Space's card
    monkeypatch.setattr(app, "__file__", str(tmp_path / "app.py"))
    (tmp_path / "README.md").write_text("---\nsdk: gradio\nmodels:\n- me/mine\n---\n")
    assert app._model_of_the_space() == "me/mine"
    monkeypatch.setenv("TRIEMO_MODEL", "other/model")
    assert app._model_of_the_space() == "other/model"


# Without what makes the checkout's own modules importable, as in a Space.
SPACE = """
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path[:0] = ["."]
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.mark.parametrize("place", ["command", "space"])
def test_serve_starts_and_leaves_nothing(place, tiny_checkpoint, reader, tmp_path):
    """`triemo serve`, and a Space's files alone; a signal ends them, and the temporary folder goes."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments, folder = ["-m", "triemo.serving.cli", "serve", "--model", str(tiny_checkpoint)], tmp_path
    if place == "space":
        folder = assemble_space(tmp_path / "space", "user/demo", str(tiny_checkpoint))
        arguments = ["-c", SPACE]
    environment = {**os.environ, "TMPDIR": str(temporary), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert url is not None, line
        with urllib.request.urlopen(url[0], timeout=30) as response:
            assert b"Triemo" in response.read()
        assert list(temporary.glob("triemo-page-*"))
        port = int(url[0].rpartition(":")[2])
        with pytest.raises(ValueError, match=f"port {port} .*in use"), app.open_page(reader, port=port):
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert not list(temporary.glob("triemo-page-*"))
