"""The page's live tab without a browser: what comes in pieces is read as the file, each piece in its place."""

import threading
import wave

import numpy as np
import pytest
from media_files import sine, write_sound

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'triemo[demo]'")
pytest.importorskip("matplotlib", reason="the curve needs matplotlib: pip install 'triemo[demo]'")

from triemo.processing import load_audio, load_frames
from triemo.serving.page import visitors
from triemo.serving.page.live import NOTHING_YET, STRIDE_SECONDS, LiveEvents, LiveReading, live_html
from triemo.serving.timeline.recordings import read_timeline

RATE = 16000


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def uploads(tmp_path, monkeypatch):
    """The folder of what browsers send."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


def piece(path, samples: np.ndarray, rate: int = RATE) -> str:
    """A file as browsers stream them: the header does not know how long it is."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    content = bytearray(path.read_bytes())
    content[4:8], content[40:44] = b"\xf7\xff\xff\xff", b"\xd3\xff\xff\xff"
    path.write_bytes(content)
    return str(path)


def test_what_comes_in_pieces_is_read_as_the_file(reader, clock, tmp_path, assets):
    """Sound and frames side by side, looked at every second: the windows of the file, and its answers."""
    tones = np.concatenate([sine(1, RATE, 200 + 60 * second) for second in range(12)], axis=1)
    wav = write_sound(tmp_path / "sound.wav", tones, RATE)
    sound = load_audio(wav)
    (frame,), _ = load_frames(assets / "demo.mp4", num_frames=1)
    live, found = LiveReading(reader, clock), []
    for tenth in range(120):
        if tenth % 2 == 0:
            live.see(frame)
        clock.seconds += 0.1
        live.hear(RATE, sound[tenth * 1600 : (tenth + 1) * 1600])
        if tenth % 10 == 9:
            found.append(len(live.advance()))
    live.close()
    assert live.moments[0].start == 0 and live.moments[-1].end == pytest.approx(12, abs=0.3)
    assert sum(found) >= 3 and live.close() == [] and live.advance() == []
    frames = np.stack([frame] * 60)
    wanted = list(read_timeline(reader, {"video": frames[:1], "audio": str(wav)}, stride_length_s=STRIDE_SECONDS))
    assert [(one.start, one.end) for one in live.moments[:-1]] == [(one.start, one.end) for one in wanted][:4]
    assert {tuple(one.modalities) for one in live.moments} == {("audio", "vision")}
    assert all(one.person == 1 and one.picture is None for one in live.moments)


def test_sound_alone_answers_as_its_file_does(reader, clock, tmp_path):
    """No frame ever comes, which holds nothing up; at another rate it is resampled across the pieces."""
    tones = np.concatenate([sine(1, 48000, 200 + 60 * second) for second in range(10)], axis=1)
    wav = write_sound(tmp_path / "sound.wav", tones, 48000)
    sound = np.round(tones[0] * 32767).astype(np.int16)
    live = LiveReading(reader, clock)
    for second in range(10):
        clock.seconds += 1
        live.hear(48000, sound[second * 48000 : (second + 1) * 48000])
        live.advance()
    assert len(live.moments) >= 2
    live.close()
    wanted = list(read_timeline(reader, str(wav), stride_length_s=STRIDE_SECONDS))
    for one, other in zip(live.moments[:2], wanted[:2], strict=True):
        assert (one.start, one.end, one.modalities) == (other.start, other.end, other.modalities)
        assert one.scores == pytest.approx(other.scores, abs=1e-3)


def test_lost_and_late_sound_stands_where_it_was_heard(reader, clock):
    live = LiveReading(reader, clock)

    def hear(seconds: float) -> None:
        clock.seconds += seconds
        live.hear(RATE, sine(seconds, RATE)[0])

    hear(1)
    clock.seconds += 2  # of which nothing came
    hear(1)
    live.advance()
    assert live._session.heard == pytest.approx(4, abs=0.01)
    live.hear(RATE, sine(1, RATE)[0])  # twice
    live.advance()
    assert live._session.heard == pytest.approx(4, abs=0.01)
    clock.seconds += 20  # the microphone was switched off: silence, except for what may be on its way
    live.advance()
    assert live._session.heard == pytest.approx(22.5, abs=0.01)
    assert live.moments[0].scores and not live.moments[-1].scores


def test_the_events_of_a_visit(reader, tmp_path):
    events = LiveEvents(reader, threading.Lock(), longest=60.0)
    live, timer, html = events.start()
    assert "Waiting for the camera or the microphone" in html and timer.active
    assert events.go_on(live)[0] == html
    for second in range(8):
        file = piece(tmp_path / f"{second}.wav", sine(1, RATE, 200 + 60 * second)[0])
        events.hear(live, file)
    assert list(tmp_path.glob("*.wav")) == []  # each is deleted as soon as it is taken
    events.hear(live, file)  # gone already: silence
    events.see(live, np.zeros((48, 64, 3), np.uint8))
    live._began -= 8  # they came within a moment
    live._sound = [(second + 1.0, rate, sound) for second, (_, rate, sound) in enumerate(live._sound)]
    html, _ = events.go_on(live)
    assert 'class="triemo-lead"><strong>' in html and "read from voice" in html and "data:image/png" in html
    html, timer = events.stop(live)
    assert "Live reading" in html and html.count("download=") == 3 and not timer.active
    assert events.stop(live)[0] == events.go_on(live)[0]  # nothing more is shown
    assert events.reset(live)[0] is None and events.reset(None)[2] == NOTHING_YET
    assert events.go_on(None)[1].active is False


def test_what_is_wrong_is_said(reader, tmp_path):
    events = LiveEvents(reader, threading.Lock(), longest=60.0)
    live, _, _ = events.start()
    (tmp_path / "text.wav").write_text("no sound at all")
    events.hear(live, str(tmp_path / "text.wav"))
    html, timer = events.go_on(live)
    assert "the microphone&#x27;s sound is no WAV" in html and 'role="alert"' in html and not timer.active
    assert (tmp_path / "text.wav").exists()  # not the browser's, so not ours to delete
    live, _, _ = events.start()
    assert "Nothing came from the camera" in events.stop(live)[0]
    live, _, _ = events.start()
    events.hear(live, piece(tmp_path / "fast.wav", np.zeros(10), 400_000))
    assert "at 192000 Hz at most, got 16 bits at 400000 Hz" in events.go_on(live)[0]


def test_a_reading_stops_by_itself(reader, clock):
    events = LiveEvents(reader, threading.Lock(), longest=5.0)
    live = LiveReading(reader, clock)
    live.hear(RATE, sine(1, RATE)[0])
    clock.seconds += 6
    html, timer = events.go_on(live)
    assert live.is_closed and not timer.active and "Live reading" in html


def test_where_nothing_is_seen_or_heard(reader, clock):
    live = LiveReading(reader, clock)
    live.hear(RATE, np.zeros(RATE, np.float32))
    clock.seconds += 1
    assert "0:02 so far" in live_html(live)
    clock.seconds += 9
    live.advance()
    assert "Nothing to read" in live_html(live)


def test_lost_pieces_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(visitors, "_SECONDS_ON_THE_WAY", -1)
    for name in ("lost", "taken", "kept"):
        (tmp_path / name).mkdir()
    piece(tmp_path / "lost" / "audio.wav", np.zeros(10))
    write_sound(tmp_path / "kept" / "audio.wav", sine(0.1, RATE), RATE)
    visitors.sweep_sounds()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "audio.wav").exists()
