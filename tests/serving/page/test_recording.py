"""The page's timeline: the numbers of the pipeline, files to download, and what is said of what cannot be read."""

import base64
import re
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from media_files import sine, write_clip, write_sound

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'triemo[demo]'")
pytest.importorskip("matplotlib", reason="the curve needs matplotlib: pip install 'triemo[demo]'")

from gradio_client import Client, handle_file

from triemo.serving.page import app, visitors
from triemo.serving.page.recording import read_recording, timeline_html
from triemo.serving.timeline.files import as_csv, as_json_lines
from triemo.serving.timeline.recordings import Moment, read_timeline

SRT = "1\n00:00:01,000 --> 00:00:02,000\nso happy\n\n2\n00:00:07,000 --> 00:00:08,000\ni miss you\n"
WORDS = [{"text": "so happy", "timestamp": (1, 2)}, {"text": "i miss you", "timestamp": (7, 8)}]


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    tones = np.concatenate([sine(1, 16000, 200 + 60 * second) for second in range(10)], axis=1)
    return write_clip(tmp_path_factory.mktemp("long") / "a <b>.mp4", 100, 10, tones, sound_rate=16000)


def downloads(html: str) -> dict[str, str]:
    """The content of each link, by the name under which a browser saves it."""
    links = re.findall(r'download="([^"]+)" href="data:[\w/]+;base64,([^"]*)"', html)
    return {name: base64.b64decode(content).decode() for name, content in links}


def test_a_recording_with_a_transcript(reader, long_clip, tmp_path):
    transcript = tmp_path / "said.srt"
    transcript.write_text(SRT)
    seen: list[float] = []
    html = read_recording(
        reader, nullcontext(), str(long_clip), str(transcript), progress=lambda done, desc: seen.append(done)
    )
    wanted = list(read_timeline(reader, {"video": str(long_clip), "text": WORDS}))
    files = downloads(html)
    assert list(files) == [f"a &lt;b&gt;.timeline{suffix}" for suffix in (".csv", ".jsonl", ".html")]
    csv, rows, page = files.values()
    assert csv == as_csv(wanted) and rows == as_json_lines(wanted) and page.startswith("<!doctype html>")
    assert "<b>" not in html and "so happy" in html and "i miss you" in html
    assert html.count("data:image/png;base64,") == 1 and "Every window" in html
    assert len(seen) == len(wanted) == 3 and seen == sorted(seen) and seen[-1] == pytest.approx(1, abs=0.02)


def test_people_have_rows_of_their_own():
    """Each with the seconds that were read, who was read longest first."""
    scores = [{"joy": 0.9, "fear": 0.1}, {"joy": 0.2, "fear": 0.8}]
    spans = [(0, 4, 1, 0), (4, 8, 2, 1), (8, 12, 2, 0), (12, 14, 2, 1)]
    moments = [Moment(start, end, person, scores[kind], ["vision"]) for start, end, person, kind in spans]
    html = timeline_html(moments, "two people")
    (table,) = re.findall(r"<h2>People</h2>.*?<tbody>(.*?)</tbody>", html, re.DOTALL)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    assert rows == [
        ["2", "0:04", "0:14", "0:10", "fear 60.0 %, joy 40.0 %", "face"],
        ["1", "0:00", "0:04", "0:04", "joy 100.0 %", "face"],
    ]


def test_what_cannot_be_read_is_said_in_its_place(reader, long_clip, clips, tmp_path, monkeypatch):
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{")
    silence = write_sound(tmp_path / "silence.wav", np.zeros((1, 16000), np.float32), 16000)
    with app.open_page(reader) as url:
        client = Client(url, verbose=False, analytics_enabled=False)

        def answer(recording=None, transcript=None, people="The main person") -> str:
            given = [handle_file(file) if file else None for file in (recording, transcript)]
            return client.predict(*given, people, api_name="/timeline")

        assert "Nothing to read yet" in answer()
        assert "face.png is a still" in answer(clips / "face.png")
        assert "broken.mp4" in answer(clips / "broken.mp4")
        assert "silence.wav: nothing could be read" in answer(silence)
        told = answer(clips / "sound.wav", wrong)
        assert "wrong.json: is no JSON" in told and str(tmp_path) not in told and "triemo-page" not in told
        assert list(downloads(answer(clips / "faceless.mp4", people="Everyone"))) == [
            f"faceless.timeline{suffix}" for suffix in (".csv", ".jsonl", ".html")
        ]
        monkeypatch.setattr(visitors, "LIMITS", replace(visitors.LIMITS, seconds=0.3))
        assert "at most 9 seconds" in answer(long_clip)
