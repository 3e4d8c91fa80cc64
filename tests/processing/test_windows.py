"""Long recordings: where windows begin and end, what each holds, and that a stream in pieces gives the same ones."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import sine, write_clip, write_sound
from tiny_checkpoint import tiny_classifier, tiny_processor

from triemo.processing import TASK, MultimodalEmotionRecognitionPipeline, load_audio, load_frames
from triemo.processing.recordings_triemo import Piece, recording_seconds, stream_recording
from triemo.processing.windows_triemo import WindowCutter, joined_notes, timed_words, window_plan

RATE = 16000


@pytest.fixture(scope="module")
def reader() -> MultimodalEmotionRecognitionPipeline:
    torch.manual_seed(0)
    return MultimodalEmotionRecognitionPipeline(model=tiny_classifier(), processor=tiny_processor(), task=TASK)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 s at 10 Hz with a tone that changes every second."""
    tones = np.concatenate([sine(1, 48000, 200 + 60 * second) for second in range(13)], axis=1)
    return write_clip(tmp_path_factory.mktemp("long") / "long.mp4", frames=130, rate=10, sound=tones)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def spans(reader: MultimodalEmotionRecognitionPipeline, input_, **options) -> list[tuple[float, float]]:
    return [window["timestamp"] for window in reader(input_, return_timestamps=True, **options)]


def approximately(times: list[tuple[float, float]], tolerance: float = 1e-6) -> list:
    return [pytest.approx(pair, abs=tolerance) for pair in times]


def by_label(scores: list[dict]) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in scores}


def same(one: list[dict], other: list[dict], tolerance: float = 1e-5) -> None:
    assert by_label(one) == pytest.approx(by_label(other), abs=tolerance)


# ----- where they begin and end --------------------------------------------------------------------------------------


def test_windows_cover_the_recording(reader):
    """From 0 to its end; a rest below a third of a window stays with the one before, a longer one begins earlier."""
    for seconds, wanted in {
        5.3: [(0, 5.3)],
        8.0: [(0, 4), (4, 8)],
        9.0: [(0, 4), (4, 9)],
        10.0: [(0, 4), (4, 8), (6, 10)],
    }.items():
        assert spans(reader, {"audio": noise(seconds)}) == approximately(wanted)
    assert spans(reader, {"audio": noise(9)}, chunk_length_s=3, stride_length_s=(0.5, 0.5)) == approximately(
        [(0, 3), (2, 5), (4, 7), (6, 9)]
    )


def test_a_pause_parts_windows():
    """The silence before, between and after what is said stays out, but for a second."""
    sound = np.concatenate([np.zeros(3 * RATE), noise(3), np.zeros(3 * RATE), noise(2), np.zeros(4 * RATE)])
    cutter = WindowCutter(window_plan(), RATE, ["sound"])
    windows = cutter.push(Piece("sound", 15.0, sound=sound.astype(np.float32))) + cutter.finish()
    found = [(window.start, window.end) for window in windows]
    assert found == approximately([(0, 2), (2, 6), (6, 8), (8, 12), (11, 15)])
    assert [round(window.heard, 1) for window in windows] == [0, 3, 0, 2, 0]


def test_wrong_windows_are_refused(reader):
    for options, message in (
        ({"chunk_length_s": 0.1}, "chunk_length_s must be at least 0.5 seconds, got 0.1"),
        ({"chunk_length_s": "4"}, "chunk_length_s must be a number of seconds"),
        ({"stride_length_s": 3}, "stride_length_s must leave half of a window of 4 seconds, got 3 and 3"),
        ({"start": -1}, "start must be a number of seconds from 0, got -1"),
        ({"start": 5, "end": 4}, "end must lie after start, got 4 and 5"),
        ({"start": 99}, "start must lie within the recording of 6.00 seconds, got 99"),
        ({"people": "both"}, "people must be 'main', 'all' or a box"),
    ):
        with pytest.raises(ValueError, match=message):
            reader({"audio": noise(6)}, **options)


# ----- what they hold ------------------------------------------------------------------------------------------------


def test_a_window_is_read_as_its_part_of_the_file_would_be(reader, long_clip):
    wave = load_audio(long_clip)
    frames, times = load_frames(long_clip, frame_rate=10)
    windows = reader(long_clip, return_timestamps=True)
    assert [window["timestamp"] for window in windows] == approximately([(0, 4), (4, 8), (8, 13)], 0.06)
    for window in windows[:2]:
        start, end = window["timestamp"]
        assert window["modalities"] == ["audio", "vision"] and set(window) == {
            "timestamp",
            "scores",
            "modalities",
            "people",
        }
        shown = [int(np.searchsorted(times, t + 1e-4, side="right")) - 1 for t in start + (np.arange(4) + 0.5)]
        tensors = reader.processor.image_processor([[frames[i] for i in shown]], times=[times[shown] - start])
        sound = wave[round(start * RATE) : round(end * RATE)]
        tensors |= reader.processor.feature_extractor(sound, sampling_rate=RATE)
        with torch.no_grad():
            logits = reader.model(**{name: torch.from_numpy(value) for name, value in tensors.items()}).logits[0]
        scores = logits.softmax(-1).numpy()
        labels = reader.model.config.id2label
        wanted = {labels[index]: float(score) for index, score in enumerate(scores)}
        assert by_label(window["scores"]) == pytest.approx(
            wanted, abs=1e-2
        )  # a shown frame may be one earlier that others build on


def test_the_answer_is_the_mean_of_the_windows_by_what_they_hold(reader):
    """Silence has no say; two seconds that are heard have half the say of four. In a list it is the same."""
    sound = np.concatenate([noise(4, 1), noise(4, 2), np.zeros(6 * RATE, np.float32), noise(2, 3)])
    windows = reader({"audio": sound}, return_timestamps=True)
    heard = [window for window in windows if window["scores"]]
    assert [window["modalities"] for window in windows if not window["scores"]] == [[]]
    weights = np.array([4.0, 4.0, 2.0]) / 10
    wanted = {
        label: sum(w * by_label(window["scores"])[label] for w, window in zip(weights, heard, strict=True))
        for label in reader.model.config.id2label.values()
    }
    told = reader({"audio": sound}, return_notes=True)
    assert by_label(told["scores"]) == pytest.approx(wanted, abs=1e-5)
    assert "recording: 16.0 s were read in 4 windows, 1 of which hold nothing to read" in told["notes"]
    same(reader([{"audio": sound}, {"text": "so sad"}], batch_size=2)[0], told["scores"])


def test_workers_share_the_inputs(reader):
    """Two processes prepare them; answers stand in the order of the inputs, long ones among short ones."""
    inputs = [{"audio": noise(seconds, seed)} for seed, seconds in enumerate((9, 1, 2, 8, 1))]
    for one, other in zip(reader(inputs, num_workers=2, batch_size=2), reader(inputs), strict=True):
        same(one, other)


def test_short_input_is_read_whole(reader, media):
    for input_ in (media / "clip.mp4", {"audio": noise(5.2)}, {"text": "so sad"}):
        (window,) = reader(input_, return_timestamps=True)
        assert window["scores"] == reader(input_)
        tensors = reader.prepare(input_ if isinstance(input_, dict) else str(input_))
        assert reader.postprocess(reader.forward(tensors)) == reader(input_)


def test_words_go_to_their_windows(reader):
    text = [{"text": "i am so happy", "timestamp": (1, 2)}, {"text": "this is not fine", "timestamp": (6.0, None)}]
    sound = {"audio": noise(8)}
    windows = reader({**sound, "text": text}, return_timestamps=True)
    for window, words, part in zip(windows, ("i am so happy", "this is not fine"), (0, 4), strict=True):
        same(window["scores"], reader({"audio": noise(8)[part * RATE : (part + 4) * RATE], "text": words}))
    same(reader({**sound, "text": {"chunks": text}}), reader({**sound, "text": text}))
    for window in reader({**sound, "text": "so happy"}, return_timestamps=True):
        assert window["modalities"] == ["text", "audio"]
    told = reader({**sound, "text": "so happy " * 40}, return_notes=True)
    assert "text: it has no times, so its words were spread evenly over the recording" in told["notes"]
    with pytest.raises(ValueError, match="text: item 0 ends at 1 s, before it starts at 2 s"):
        reader({**sound, "text": [{"text": "so", "timestamp": (2, 1)}]})
    assert [word.middle for word in timed_words([{"text": "a b", "timestamp": (0, 4)}])] == [1, 3]


def test_a_part_of_the_recording(reader, long_clip):
    (part,) = reader(long_clip, start=4, end=8, return_timestamps=True)
    assert part["timestamp"] == pytest.approx((4, 8), abs=0.06)
    same(part["scores"], reader(long_clip, return_timestamps=True)[1]["scores"], tolerance=1e-3)


def test_the_processor_cuts_for_others(reader, long_clip):
    """A user of the model alone gets the very windows of the pipeline."""
    answers = reader(long_clip, return_timestamps=True)
    found = list(reader.processor.windows(videos=long_clip))
    assert [(window.start, window.end) for window, _ in found] == [answer["timestamp"] for answer in answers]
    for (_, tensors), answer in zip(found, answers, strict=True):
        with torch.no_grad():
            scores = reader.model(**tensors).logits[0].softmax(-1)
        assert max(by_label(answer["scores"]).values()) == pytest.approx(float(scores.max()), abs=1e-5)


# ----- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(160,), (7001, 333), (40000,)])
def test_pieces_of_any_size_give_the_same_windows(long_clip, sizes):
    """Sound and picture pushed in other pieces than the file's: the very same windows."""
    pieces = list(stream_recording(long_clip, long_clip, RATE, 4.0))
    whole = WindowCutter(window_plan(), RATE, ["sound", "picture"])
    wanted = [window for piece in pieces for window in whole.push(piece)] + whole.finish()
    sound = np.concatenate([piece.sound for piece in pieces if piece.sound is not None])
    frames = [piece for piece in pieces if piece.track == "picture"]
    live, found, at = WindowCutter(window_plan(), RATE, ["sound", "picture"]), [], 0
    for turn in range(len(sound)):
        part = sound[at : at + sizes[turn % len(sizes)]]
        at += len(part)
        if not len(part):
            break
        found += live.push(Piece("sound", at / RATE, sound=part))
        while frames and frames[0].end <= at / RATE:
            found += live.push(frames.pop(0))
    found += [window for piece in frames for window in live.push(piece)] + live.finish()
    assert len(found) == len(wanted) == 3
    for one, other in zip(found, wanted, strict=True):
        assert (one.start, one.end) == (other.start, other.end)
        np.testing.assert_array_equal(one.sound, other.sound)
        assert [frame.seconds for frame in one.frames] == [frame.seconds for frame in other.frames]


def test_streamed_sound_is_the_loaded_sound(long_clip, tmp_path):
    late = write_clip(tmp_path / "late.mp4", frames=90, rate=15, sound=sine(3, 48000), sound_start_seconds=2.0)
    wav = write_sound(tmp_path / "sound.wav", sine(7, 44100, channels=2), 44100)
    for path in (long_clip, late, wav):
        streamed = [piece.sound for piece in stream_recording(None, path, RATE, 4.0)]
        np.testing.assert_array_equal(np.concatenate(streamed), load_audio(path))
    part = [piece.sound for piece in stream_recording(None, wav, RATE, 4.0, start=2.5, end=4)]
    middle = load_audio(wav)[round(2.5 * RATE) : 4 * RATE]
    np.testing.assert_allclose(np.concatenate(part)[200:], middle[200:], atol=2e-3)  # the resampler starts anew


def test_careless_recordings(reader, tmp_path):
    """Sound that starts late, none at all, a rate that varies, one frame a second: windows cover each to its end."""
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.02, 0.3, 60)).tolist()
    made = {
        "late": write_clip(tmp_path / "late.mp4", 90, 10, sine(3, 48000), sound_start_seconds=6.0),
        "silent": write_clip(tmp_path / "silent.mp4", 90, 10),
        "varying": write_clip(tmp_path / "varying.mp4", 60, times=times),
        "slow": write_clip(tmp_path / "slow.mp4", 9, 1),
    }
    found = {name: reader(path, return_timestamps=True) for name, path in made.items()}
    for name, path in made.items():
        assert found[name][0]["timestamp"][0] == 0
        assert found[name][-1]["timestamp"][1] == pytest.approx(recording_seconds(path), abs=0.35), name
        assert all(sum(by_label(window["scores"]).values()) == pytest.approx(1) for window in found[name])
    assert [window["modalities"] for window in found["late"]][0] == ["vision"]
    assert found["late"][-1]["modalities"] == ["audio", "vision"]
    assert {tuple(window["modalities"]) for window in found["silent"]} == {("vision",)}


def test_twenty_minutes_at_a_frame_a_second(tmp_path):
    """One pass, in which a few windows' frames are held at a time, and each window has its own four."""
    path = write_clip(tmp_path / "slow.mp4", frames=1200, rate=1, gop=250)
    assert recording_seconds(path) == pytest.approx(1200, abs=0.1)
    cutter = WindowCutter(window_plan(), RATE, ["picture"])
    found, held = [], 0
    for piece in chain(stream_recording(path, None, RATE, 4.0), [None]):
        for window in cutter.finish() if piece is None else cutter.push(piece):
            found.append((window.start, window.end, [frame.seconds for frame in window.frames]))
        held = max(held, len(cutter._frames))
    assert held <= 12
    assert len(found) == 300
    for number, (start, end, times) in enumerate(found):
        assert (start, end) == pytest.approx((4 * number, 4 * number + 4))
        assert times == pytest.approx([start, start + 1, start + 2, start + 3])


def test_notes_of_windows_are_joined():
    assert joined_notes([["a: 1 of 2"], ["a: 2 of 3", "b"], []]) == [
        "a: 1 of 2 (in 2 of 3 windows)",
        "b (in 1 of 3 windows)",
    ]
    assert joined_notes([["a: 1"]]) == ["a: 1"]
