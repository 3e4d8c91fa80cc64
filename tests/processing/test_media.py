"""Sound and frames of every kind of source, their clocks, and what is refused."""

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import (
    HEIGHT,
    WIDTH,
    index_of,
    picture,
    sine,
    write_clip,
    write_damaged,
    write_sound,
    write_truncated,
)
from PIL import Image

from triemo.processing import media_limits, media_triemo
from triemo.processing.media_triemo import load_audio, load_frames, probe_media


def indices(source, **kwargs):
    return [index_of(frame) for frame in load_frames(source, **kwargs)[0]]


def sources_of(path):
    content = path.read_bytes()
    return {
        "Path": path,
        "str": str(path),
        "file URL": path.as_uri(),
        "bytes": content,
        "dict of bytes": {"bytes": content, "path": path.name},
        "dict of path": {"bytes": None, "path": str(path)},
    }


# Sound


@pytest.mark.parametrize("kind", ["Path", "str", "file URL", "bytes", "dict of bytes", "dict of path"])
def test_every_kind_of_source_gives_the_same_sound_and_frames(media, kind):
    expected_sound, expected_frames = load_audio(media / "clip.mp4"), load_frames(media / "clip.mp4", num_frames=3)
    source = sources_of(media / "clip.mp4")[kind]
    np.testing.assert_array_equal(load_audio(source), expected_sound)
    frames, times = load_frames(source, num_frames=3)
    np.testing.assert_array_equal(np.stack(frames), np.stack(expected_frames[0]))
    np.testing.assert_array_equal(times, expected_frames[1])


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 96000])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_of_any_rate_and_channels_becomes_the_same_sine_at_16_khz(tmp_path, rate, channels):
    path = write_sound(tmp_path / "sine.wav", sine(1, rate, channels=channels), rate)
    waveform = load_audio(path)
    assert waveform.dtype == np.float32 and abs(len(waveform) - 16000) <= 1
    np.testing.assert_allclose(waveform[200:15800], sine(1, 16000)[0, 200:15800], atol=1e-3)


def test_stereo_is_the_mean_of_its_channels_and_does_not_clip(tmp_path):
    left, right = sine(1, 16000, level=0.9), sine(1, 16000, hertz=1000, level=0.9)
    for sound in (np.vstack([left, right]), np.vstack([left, left])):
        path = write_clip(tmp_path / "stereo.mkv", frames=25, sound=sound, sound_rate=16000)  # AAC decodes to floats
        np.testing.assert_allclose(load_audio(path)[500:15000], sound.mean(0)[500:15000], atol=0.05)


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "libmp3lame"), ("a.flac", "flac"), ("a.ogg", "libopus")])
def test_compressed_sound_keeps_its_pitch_and_level(tmp_path, name, codec):
    waveform = load_audio(write_sound(tmp_path / name, sine(1, 48000, channels=2), 48000, codec))
    spectrum = np.abs(np.fft.rfft(waveform[:16000]))
    assert spectrum.argmax() == 440
    assert 0.45 < np.abs(waveform[2000:14000]).max() < 0.55


def test_sound_of_an_mp4_at_another_rate(media):
    at_8, at_16 = load_audio(media / "clip.mp4", sampling_rate=8000), load_audio(media / "clip.mp4")
    assert abs(len(at_16) - 2 * len(at_8)) <= 2
    np.testing.assert_allclose(at_8[200:15000], at_16[400:30000:2], atol=5e-3)


def test_sound_that_begins_after_the_picture_stays_on_the_picture_s_clock(tmp_path):
    clip = write_clip(tmp_path / "late.mkv", sound=sine(1.5, 48000), sound_start_seconds=0.5)
    waveform = load_audio(clip)
    assert np.abs(waveform[:7500]).max() < 0.01 < 0.4 < np.abs(waveform[8000:9000]).max()
    assert len(waveform) / 16000 == pytest.approx(2.0, abs=0.04)


def test_picture_that_begins_after_the_sound_has_later_times(tmp_path):
    clip = write_clip(tmp_path / "late.mkv", frames=10, sound=sine(1, 48000), picture_start_seconds=0.4)
    assert load_frames(clip)[1][0] == pytest.approx(0.4, abs=0.03)  # 21 ms of encoder delay before the sound's zero


def test_arrays_of_every_type_are_scaled_and_resampled():
    wave = sine(1, 8000)[0]
    expected = sine(1, 16000)[0]
    arrays = [wave, wave.astype(np.float64), np.stack([wave, wave]), torch.from_numpy(wave), wave.tolist()]
    arrays += [(wave * 2**15).astype(np.int16), (wave.astype(np.float64) * 2**31).astype(np.int32)]
    for array in arrays:
        waveform = load_audio({"array": array, "sampling_rate": 8000})
        assert waveform.shape == (16000,) and waveform.dtype == np.float32
        np.testing.assert_allclose(waveform[200:15800], expected[200:15800], atol=2e-3)
    np.testing.assert_array_equal(load_audio(np.array([0, 128, 255], dtype=np.uint8)), np.float32([-1, 0, 127 / 128]))
    np.testing.assert_array_equal(load_audio(np.array([-(2**15), 2**14], dtype=np.int16)), np.float32([-1, 0.5]))
    np.testing.assert_array_equal(load_audio(np.float32([[0, 1], [1, 0.5]])), np.float32([0.5, 0.75]))


def test_a_torchcodec_decoder_as_datasets_gives_it():
    class Decoder:
        def get_all_samples(self):
            return type("Samples", (), {"data": torch.from_numpy(sine(1, 8000, channels=2)), "sample_rate": 8000})()

    np.testing.assert_allclose(load_audio(Decoder())[200:15800], sine(1, 16000)[0, 200:15800], atol=2e-3)


def test_rates_without_a_common_divisor_need_no_huge_kernel():
    tracemalloc.start()
    waveform = load_audio({"array": sine(1, 44101)[0], "sampling_rate": 44101})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(len(waveform) - 16000) <= 1 and peak < 50e6
    np.testing.assert_allclose(waveform[200:15800], sine(1, 16000)[0, 200:15800], atol=1e-3)


BAD_SOUND = {
    "empty": (np.zeros(0, np.float32), "at least one sample"),
    "rank 3": (np.zeros((1, 2, 3), np.float32), "shape"),
    "transposed": (np.zeros((48000, 2), np.float32), "channels, samples"),
    "NaN": (np.float32([0, np.nan]), "1 NaN or infinite"),
    "infinite": (torch.tensor([0.0, float("inf")]), "1 NaN or infinite"),
    "int64": (np.array([1, 2]), "int64"),
    "text": (["a"], "numbers"),
    "object": (object(), "builtins.object"),
    "no rate": ({"array": np.zeros(5, np.float32)}, "sampling_rate"),
    "rate 0": ({"array": np.zeros(5, np.float32), "sampling_rate": 0}, "positive"),
    "rate 0.5": ({"array": np.zeros(5, np.float32), "sampling_rate": 22050.5}, "whole"),
    "empty dict": ({}, "array"),
    "None inside": ({"bytes": None, "path": None}, "not None"),
}


@pytest.mark.parametrize("name", BAD_SOUND)
def test_bad_sound_in_memory_is_refused(name):
    source, reason = BAD_SOUND[name]
    with pytest.raises(ValueError, match=reason):
        load_audio(source)


# Frames


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi", "clip.h264"])
def test_frames_shown_at_the_centres_of_equal_segments(tmp_path, name):
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    clip = write_clip(tmp_path / name, codec=codec)
    frames, times = load_frames(clip, num_frames=4)
    # Segments of 0.5 s: 0.25, 0.75, 1.25, 1.75 s, where frames 6, 18, 31 and 43 of 25 a second are on screen.
    assert [index_of(frame) for frame in frames] == [6, 18, 31, 43]
    np.testing.assert_allclose(times, [0.24, 0.72, 1.24, 1.72], atol=1e-3)
    assert frames[0].shape == (HEIGHT, WIDTH, 3) and frames[0].dtype == np.uint8 and times.dtype == np.float64


def test_frames_at_a_rate_and_its_limit(media):
    clip = media / "clip.mp4"
    assert indices(clip, frame_rate=5) == list(range(0, 50, 5))
    assert indices(clip, frame_rate=25) == list(range(50))
    assert indices(clip, frame_rate=100) == list(range(50))  # each frame once
    assert indices(clip, frame_rate=25, max_frames=5) == indices(clip, num_frames=5) == [5, 15, 25, 35, 45]
    assert indices(clip, max_frames=5) == [5, 15, 25, 35, 45]
    assert indices(clip) == list(range(50))
    np.testing.assert_allclose(load_frames(clip)[1], np.arange(50) / 25, atol=1e-6)


def test_fewer_frames_than_asked_for_come_once_each(media, tmp_path):
    assert indices(media / "one.mp4", num_frames=8) == [0]
    assert indices(media / "clip.mp4", num_frames=200) == list(range(50))
    uneven = write_clip(tmp_path / "uneven.mkv", frames=5, times=[0, 0.04, 0.08, 0.12, 3.0])
    assert indices(uneven, num_frames=8) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(load_frames(uneven, num_frames=8)[1], [0, 0.04, 0.08, 0.12, 3.0], atol=2e-3)


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
def test_jumping_to_key_frames_gives_what_decoding_everything_gives(tmp_path, monkeypatch, name):
    clip = write_clip(tmp_path / name, frames=400, gop=25, sound=sine(16, 16000), sound_rate=16000)
    decoded = []
    timed = media_triemo.timed_frames

    def counted(*args):
        for item in timed(*args):
            decoded.append(item[0])
            yield item

    monkeypatch.setattr(media_triemo, "timed_frames", counted)
    jumped, jumped_times = load_frames(clip, num_frames=4)
    jumped_count = len(decoded)
    monkeypatch.setattr(media_triemo, "_REORDERED_FRAMES", 10**6)  # no key frame is ever far enough back
    decoded.clear()
    straight, straight_times = load_frames(clip, num_frames=4)
    np.testing.assert_array_equal(jumped_times, straight_times)
    np.testing.assert_array_equal(np.stack(jumped), np.stack(straight))
    assert jumped_count < len(decoded) * 0.7


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_rotation_turns_the_frames_upright(tmp_path, degrees):
    clip = write_clip(tmp_path / "turned.mp4", frames=3, rotation=degrees)
    frame = load_frames(clip, num_frames=1)[0][0]
    expected = np.rot90(picture(1), degrees // 90)  # counterclockwise, as FFmpeg defines the angle
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 4
    info = probe_media(clip)
    assert (info.height, info.width) == expected.shape[:2]


def test_frames_in_memory_are_clips_too():
    stack = np.stack([picture(index) for index in range(10)])
    tensor = torch.from_numpy(stack).permute(0, 3, 1, 2)
    for source in (list(stack), stack, tensor, [Image.fromarray(frame) for frame in stack]):
        frames, times = load_frames(source, num_frames=5, source_frame_rate=10)
        np.testing.assert_array_equal(np.stack(frames), stack[1::2])
        np.testing.assert_allclose(times, [0.1, 0.3, 0.5, 0.7, 0.9])
        assert len(load_frames(source, num_frames=20)[0]) == 10
    assert indices(stack, frame_rate=5, source_frame_rate=10) == [0, 2, 4, 6, 8]
    assert load_frames(picture(0))[1].tolist() == load_frames(Image.fromarray(picture(0)))[1].tolist() == [0.0]


def test_still_image_file_is_a_clip_of_one_frame(tmp_path):
    Image.fromarray(picture(3)).save(tmp_path / "still.png")
    frames, times = load_frames(tmp_path / "still.png", num_frames=8)
    np.testing.assert_array_equal(frames[0], picture(3))
    assert len(frames) == 1 and times.tolist() == [0.0]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"num_frames": 2, "frame_rate": 5}, "not both"),
        ({"num_frames": 0}, "num_frames"),
        ({"max_frames": 1.5}, "max_frames"),
        ({"frame_rate": 0}, "frame_rate"),
        ({"frame_rate": float("nan")}, "frame_rate"),
    ],
)
def test_impossible_requests_are_refused(media, request_, reason):
    with pytest.raises(ValueError, match=reason):
        load_frames(media / "clip.mp4", **request_)


def test_memory_holds_only_the_frames_returned(tmp_path):
    clip = write_clip(tmp_path / "long.mp4", frames=1500, gop=2000)  # one key frame: everything is decoded
    tracemalloc.start()
    frames, _ = load_frames(clip, num_frames=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(frames) == 4
    assert peak < 40 * frames[0].nbytes  # all 1500 would be 37 MB


# Both


def test_probe_tells_what_a_source_holds(media, tmp_path):
    clip = probe_media(media / "clip.mp4")
    assert (clip.has_audio, clip.has_video, clip.frame_rate, clip.width, clip.height) == (
        True,
        True,
        25,
        WIDTH,
        HEIGHT,
    )
    assert clip.duration_seconds == pytest.approx(2.0, abs=0.03)
    assert not probe_media(media / "silent.mp4").has_audio
    sound = probe_media(media / "sound.wav")
    assert (sound.has_audio, sound.has_video, sound.duration_seconds, sound.width) == (True, False, 1.0, None)
    assert probe_media({"array": np.zeros(8000, np.float32), "sampling_rate": 16000}).duration_seconds == 0.5
    assert probe_media(write_clip(tmp_path / "bare.h264")).duration_seconds is None
    assert probe_media([picture(0)] * 3).width == WIDTH


def test_cover_art_is_not_a_video(tmp_path):
    path = write_sound(tmp_path / "song.mp3", sine(1, 44100, channels=2), 44100, "libmp3lame", cover=True)
    assert not probe_media(path).has_video and len(load_audio(path)) == pytest.approx(16000, abs=100)
    with pytest.raises(ValueError, match="song.mp3.*no picture track"):
        load_frames(path)


def test_a_title_that_is_no_utf_8_does_not_matter(tmp_path):
    file = write_sound(tmp_path / "a.mp3", sine(0.5, 16000), 16000, "libmp3lame", title="TITLE")
    content = file.read_bytes()
    assert content.count(b"TITLE") == 1
    file.write_bytes(content.replace(b"TITLE", b"Sm\xf6rg"))
    assert np.abs(load_audio(file)).max() > 0.4


def test_a_missing_track_is_named(media):
    with pytest.raises(ValueError, match="silent.mp4.*no sound track"):
        load_audio(media / "silent.mp4")
    with pytest.raises(ValueError, match="sound.wav.*no picture track"):
        load_frames(media / "sound.wav")


@pytest.mark.parametrize("load", [load_audio, load_frames, probe_media])
def test_unreadable_sources_are_named_with_the_reason(media, tmp_path, load):
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is no film.\n" * 100)
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:9,\n{(media / 'clip.mp4').as_uri()}\n#EXT-X-ENDLIST\n")
    write_truncated(tmp_path / "cut.mp4", media / "clip.mp4", keep=0.7)
    reasons = {"zero.mp4": "empty", "text.mp4": "Invalid data", "cut.mp4": "Invalid data", "gone.mp4": "No such file"}
    for name, reason in (reasons | {"list.m3u8": "Invalid data", "": "directory"}).items():
        with pytest.raises(ValueError, match=f"{name}.*{reason}"):
            load(tmp_path / name)
    with pytest.raises(ValueError, match="<bytes>.*Invalid data"):
        load(b"no media at all" * 50)
    with pytest.raises(ValueError, match="<bytes>.*empty"):
        load({"bytes": b"", "path": None})
    with pytest.raises(ValueError, match="ftp"):
        load("ftp://example.com/clip.mp4")


def test_of_a_damaged_file_what_decodes_is_returned(media, tmp_path):
    damaged = write_damaged(tmp_path / "damaged.mp4", media / "clip.mp4")
    found = indices(damaged)
    assert found[:5] == [0, 1, 2, 3, 4] and 10 < len(found) <= 50
    waveform = load_audio(damaged)
    assert len(waveform) == len(load_audio(media / "clip.mp4"))  # the lost middle is silence: the rest keeps its time
    np.testing.assert_allclose(waveform[:4000], load_audio(media / "clip.mp4")[:4000], atol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux lists them")
def test_decoders_end_when_their_frames_are_read(media):
    """Nothing waits for the garbage collector: each decoder would keep its threads and a pool of whole frames."""
    load_frames(media / "clip.mp4", num_frames=3)
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/task"))
        for _ in range(4):
            load_frames(media / "clip.mp4", num_frames=3)
        assert len(os.listdir("/proc/self/task")) <= before
    finally:
        gc.enable()


def test_urls(media, media_url):
    np.testing.assert_array_equal(load_audio(f"{media_url}/clip.mp4"), load_audio(media / "clip.mp4"))
    assert indices(f"{media_url}/clip.mp4", num_frames=4) == [6, 18, 31, 43]
    with pytest.raises(ValueError, match="gone.mp4.*404"):
        load_audio(f"{media_url}/gone.mp4")
    with media_limits(bytes=100), pytest.raises(ValueError, match="clip.mp4.*beyond the limit bytes=100"):
        load_frames(f"{media_url}/clip.mp4")
    with pytest.raises(ValueError, match="http://127.0.0.1:9"):
        load_audio("http://127.0.0.1:9/clip.mp4")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path):
    path = write_sound(tmp_path / "secret.wav", sine(0.1, 16000), 16000)
    path.chmod(0)
    with pytest.raises(ValueError, match="secret.wav.*Permission"):
        load_audio(path)
