"""Timelines: the files that tell of one, the moments that stand out, and a live session that equals the file."""

import csv
import io
import json

import numpy as np
import pytest
from media_files import sine, write_clip, write_sound

from triemo.processing import load_audio, load_frames
from triemo.serving.timeline.files import as_csv, as_json_lines, as_srt, as_textgrid, as_vtt, stretches
from triemo.serving.timeline.live import StreamingSession
from triemo.serving.timeline.marks import clock, colours_of
from triemo.serving.timeline.pictures import timeline_page
from triemo.serving.timeline.recordings import Moment, moments_that_stand_out, read_timeline


def moment(start: float, end: float, joy: float | None, **fields) -> Moment:
    scores = {} if joy is None else {"joy": joy, "sadness": 1 - joy}
    return Moment(start, end, scores=scores, modalities=["audio"] if scores else [], **fields)


MOMENTS = [
    moment(0, 4, 0.9, person=1, loudness=-20.0),
    moment(4, 8, 0.7, person=1, loudness=-25.0),
    moment(8, 10, None),
    moment(10, 14, 0.1, person=1, text='she said "no"', picture=np.zeros((9, 16, 3), np.uint8)),
    moment(12, 16, 0.8, person=1),
]


def test_rows_and_subtitles():
    rows = [json.loads(line) for line in as_json_lines(MOMENTS).splitlines()]
    assert rows[0] == {
        "start": 0,
        "end": 4,
        "person": 1,
        "label": "joy",
        "confidence": 0.9,
        "scores": {"joy": 0.9, "sadness": pytest.approx(0.1)},
        "modalities": ["audio"],
        "loudness": -20.0,
        "text": None,
        "notes": [],
    }
    assert rows[2]["label"] is None and rows[2]["scores"] == {}
    table = list(csv.DictReader(io.StringIO(as_csv(MOMENTS))))
    assert [row["label"] for row in table] == ["joy", "joy", "", "sadness", "joy"]
    assert float(table[3]["score_sadness"]) == pytest.approx(0.9) and table[2]["score_joy"] == ""
    # One stretch for as long as a label goes on; of two windows that overlap the later has the time.
    assert stretches(MOMENTS) == [
        (0, 8, "joy", pytest.approx(0.8)),
        (10, 12, "sadness", pytest.approx(0.9)),
        (12, 16, "joy", 0.8),
    ]
    assert as_srt(MOMENTS).startswith("1\n00:00:00,000 --> 00:00:08,000\njoy 80 %\n\n2\n00:00:10,000 --> ")
    assert as_vtt(MOMENTS).startswith("WEBVTT\n\n00:00:00.000 --> 00:00:08.000\njoy 80 %\n")
    assert clock(3725.9) == "1:02:05" and clock(59) == "0:59"
    assert clock(59.96, tenths=True) == "1:00.0" and clock(3725.94, tenths=True) == "1:02:05.9" and clock(None) == ""


def test_a_textgrid_has_no_gaps():
    """Each interval begins where the one before ended, from the first second to the last, as Praat asks for."""
    lines = [line.strip() for line in as_textgrid(MOMENTS).splitlines()]
    assert lines[:2] == ['File type = "ooTextFile"', 'Object class = "TextGrid"']
    first = lines[lines.index("item [1]:") : lines.index("item [2]:")]
    bounds = [float(line.split()[-1]) for line in first if line.startswith(("xmin", "xmax"))][2:]
    assert bounds == [0, 8, 8, 10, 10, 12, 12, 16]
    assert [line for line in first if line.startswith("text")] == [
        'text = "joy"', 'text = "-"', 'text = "sadness"', 'text = "joy"',
    ]  # fmt: skip


def test_what_stands_out_differs_from_the_mean():
    # Joy is 0.625 on average: 0.9 and 0.1 are a quarter or more away, 0.7 and 0.8 are not.
    assert [one.start for one in moments_that_stand_out(MOMENTS)] == [0, 10]
    assert [one.start for one in moments_that_stand_out(MOMENTS, most=1)] == [10]
    assert moments_that_stand_out([moment(0, 4, 0.5), moment(4, 8, 0.6)]) == []


def test_one_page_tells_it_all():
    pytest.importorskip("matplotlib")
    page = timeline_page(MOMENTS, "a <clip>", ["audio: told"]).render()
    assert "<h1>a &lt;clip&gt;</h1>" in page and "she said &quot;no&quot;" in page and "audio: told" in page
    assert page.count("data:image/png;base64,") == 1 and page.count("data:image/jpeg;base64,") == 1
    assert "http" not in page.replace("http-equiv", "")
    with pytest.raises(ValueError, match="holds nothing that could be read"):
        timeline_page([moment(0, 4, None)], "empty")


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    tones = np.concatenate([sine(1, 16000, 200 + 60 * second) for second in range(10)], axis=1)
    return write_clip(tmp_path_factory.mktemp("long") / "long.mp4", 100, 10, tones, sound_rate=16000)


def test_a_live_session_equals_the_file(reader, tmp_path, long_clip):
    """Sound in odd pieces, frames at the camera's rate, words as they come: the very answers of the timeline."""
    wav = write_sound(tmp_path / "sound.wav", sine(10, 16000), 16000)
    frames, times = load_frames(long_clip)
    words = [{"text": "so happy", "timestamp": (1, 2)}, {"text": "i miss you", "timestamp": (7, 8)}]
    wanted = list(read_timeline(reader, {"video": np.stack(frames), "audio": str(wav), "text": words}))
    sound, at, found = load_audio(wav), 0, []
    session = StreamingSession(reader)
    found += session.push(words=words)
    # A list of frames is taken at 25 Hz where it is no file.
    waiting = [(index / 25, frame) for index, frame in enumerate(frames)]
    while at < len(sound):
        part = sound[at : at + 3001]
        at += len(part)
        due = [pair for pair in waiting if pair[0] <= at / 16000]
        waiting = waiting[len(due) :]
        found += session.push(sound=part, frames=due)
        if not waiting:
            break
    found += session.push(sound=sound[at:], frames=waiting) + session.close()
    assert len(found) == len(wanted) == 3
    for one, other in zip(found, wanted, strict=True):
        assert (one.start, one.end, one.person, one.text) == (other.start, other.end, other.person, other.text)
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_wrong_pieces_are_refused(reader):
    session = StreamingSession(reader, ["sound"])
    with pytest.raises(ValueError, match=r"sound must be floats of shape \(samples,\), got int16"):
        session.push(sound=np.zeros(10, np.int16))
    with pytest.raises(ValueError, match="frames must be uint8 RGB"):
        session.push(frames=[(0.0, np.zeros((4, 4), np.uint8))])
    with pytest.raises(ValueError, match="tracks must be some of 'sound' and 'picture'"):
        StreamingSession(reader, ["smell"])


def test_the_command_writes_what_is_asked_for(triemo, long_clip, tmp_path):
    """With a transcript, and the same file through a pipe's command."""
    (tmp_path / "said.json").write_text('[{"start": 1, "end": 2, "text": "so happy"}]', "utf-8")
    formats = [part for name in ("jsonl", "srt", "textgrid") for part in ("--format", name)]
    arguments = ["--output", tmp_path, "--transcript", tmp_path / "said.json"]
    result = triemo("timeline", long_clip, *arguments, *formats)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "long.timeline.jsonl").read_text("utf-8").splitlines()]
    assert rows[0]["start"] == 0 and rows[-1]["end"] == pytest.approx(10, abs=0.2) and rows[0]["text"] == "so happy"
    assert sorted(path.suffix for path in tmp_path.glob("long.timeline.*")) == [".TextGrid", ".jsonl", ".srt"]
    streamed = triemo("live", long_clip, "--json")
    live = [json.loads(line) for line in streamed.stdout.splitlines()]
    assert [row["start"] for row in live] == [row["start"] for row in rows]
    assert live[-1]["scores"] == pytest.approx(rows[-1]["scores"], abs=1e-4)
    assert triemo("timeline", long_clip, "--format", "doc").exit_code == 2


def test_an_emotion_has_one_colour_whatever_the_order_of_the_labels():
    assert colours_of(["joy", "bored", "anger"]) == [colours_of(["joy"])[0], "C1", colours_of(["anger"])[0]]


def test_predict_writes_timelines_too(triemo, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    write_sound(tmp_path / "voice.wav", sine(1, 16000), 16000)
    result = triemo("predict", "voice.wav", "--timeline")
    assert result.exit_code == 0, result.output
    assert sorted(path.suffix for path in tmp_path.glob("voice.timeline.*")) == [".csv", ".html", ".jsonl"]
    wrong = triemo("predict", "voice.wav", "--timeline", "--text", "so happy")
    assert wrong.exit_code == 2 and "--timeline takes files alone" in wrong.output
