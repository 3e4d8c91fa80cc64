"""Broken, lying and greedy media: an answer or an error that names the file, within small memory and time."""

import ctypes
import io
import json
import os
import subprocess
import sys
import threading
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import malformed_media
import numpy as np
import pytest
from media_files import sine, write_clip, write_sound
from PIL import Image

from triemo.processing import load_audio, load_frames, load_image, media_limits
from triemo.processing.media_sources_triemo import MediaLimits, current_limits
from triemo.processing.samples_triemo import media_kind, read_input


def outcomes(paths: list[Path]) -> dict[str, dict[str, str]]:
    """What became of each file, read by processes of small memory and time; one that ends a process is named too."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    left, found = [str(path) for path in paths], {}
    while left:
        process = subprocess.run(
            [sys.executable, malformed_media.__file__],
            input=json.dumps(left),
            capture_output=True,
            text=True,
            env=environment,
        )
        lines = [json.loads(line) for line in process.stdout.splitlines()]
        done = {line["path"]: line["outcomes"] for line in lines if "path" in line}
        found |= {Path(path).name: results for path, results in done.items()}
        left = left[len(done) :]
        if left:
            name = Path(left.pop(0)).name
            found[name] = {"process": f"ended with {process.returncode}: {process.stderr[-300:]}"}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("malformed")


def test_malformed_files_have_an_answer_or_a_named_error(folder):
    """Hundreds of every container, each read as an input, as sound, as a still and as frames."""
    paths = malformed_media.write_malformed(folder)
    assert len(paths) >= 500 and len({path.suffix for path in paths}) >= 18
    found = outcomes(paths)
    assert len(found) == len(paths)
    wrong = {name: results for name, results in found.items() if not set(results.values()) <= {"answer", "named"}}
    assert not wrong
    answered = sum("answer" in results.values() for results in found.values())
    assert 150 < answered < len(paths) - 150  # neither is all refused, nor anything taken
    refused = "whole_20000x1.png size_60000x60000.png rate_1.wav rate_100.wav large_177mp.png frames_200000.gif"
    refused += " wide_8192.mov thin_10000x1.mov gap_ten_hours_and_picture.mkv eps_as.png html_as.jpg codec_30583.wav"
    taken = "large_81mp.png large_rgba.png large_108mp.jpg large_108mp.tiff gap_ten_hours.mkv frames_9000.gif"
    assert {name: found[name]["whole"] for name in refused.split()} == dict.fromkeys(refused.split(), "named")
    assert {name: found[name]["whole"] for name in taken.split()} == dict.fromkeys(taken.split(), "answer")


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_files_that_name_others_open_nothing(tmp_path):
    """Play lists, descriptions and pictures with references, to a file and to an address, under every suffix."""
    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    secret = write_sound(tmp_path / "secret.wav", sine(0.5, 16000), 16000)
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)  # sees what FFmpeg opens, too
    assert libc.inotify_add_watch(watch, os.fsencode(secret), 0x20) > 0  # IN_OPEN
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/a.ts"
    written = []
    for target in (str(secret), secret.as_uri(), address, f"concat:{secret}", f"subfile,,start,0,end,0,,:{secret}"):
        documents = {
            "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
            "key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n',
            "concat": f"ffconcat version 1.0\nfile '{target}'\n",
            "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns={target}\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
            "mpd": f"<?xml version='1.0'?><MPD><Period><BaseURL>{target}</BaseURL></Period></MPD>",
            "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>',
            "asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
        }
        for kind, content in documents.items():
            for suffix in (kind, "mp4", "wav", "png", "txt"):
                path = tmp_path / f"{len(written)}_{kind}.{suffix}"
                path.write_text(content)
                written.append(path)
    for path in written:
        for read in (read_input, load_audio, load_frames, load_image):
            with pytest.raises(ValueError, match=path.name):
                read(path)
    server.shutdown()
    with pytest.raises(BlockingIOError):  # no event
        os.read(watch, 4096)
    secret.read_bytes()
    assert os.read(watch, 4096)
    os.close(watch)
    assert len(written) == 175 and not asked


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for read in (load_audio, load_frames, load_image, media_kind):
        with pytest.raises(ValueError, match=r"pipe\.wav: it is a pipe or a device"):
            read(tmp_path / "pipe.wav")
    with pytest.raises(ValueError, match="it is a pipe or a device"):
        load_audio("/dev/zero")


# ----- limits --------------------------------------------------------------------------------------------------------


def test_one_set_of_limits_for_all_media(tmp_path, media):
    Image.new("RGB", (400, 300)).save(tmp_path / "still.png")
    frames = [Image.new("L", (50, 40), shade) for shade in (0, 90, 180)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    cases = [
        (load_image, "still.png", "pixels", 400 * 300),
        (load_image, "still.png", "aspect", 4 / 3),
        (load_frames, "moving.gif", "animation_frames", 3),
        (load_frames, media / "clip.mp4", "frame_pixels", 96 * 64 * 9),
        (load_frames, media / "clip.mp4", "frames", 50),
        (load_audio, media / "sound.wav", "seconds", 1.0),
        (load_audio, media / "sound.wav", "sampling_rate", 48000),
    ]
    for read, name, field, needed in cases:
        path = tmp_path / name
        with media_limits(**{field: needed}):
            read(path)
        with media_limits(**{field: needed / 100}), pytest.raises(ValueError, match=rf"{path.name}.*limit {field}="):
            read(path)
    content = (media / "sound.wav").read_bytes()
    with media_limits(bytes=1000), pytest.raises(ValueError, match="beyond the limit bytes=1000"):
        load_audio(content)
    assert current_limits() == MediaLimits()
    with pytest.raises(ValueError, match=r"limits: got \['second'\], expected any of seconds"):
        with media_limits(second=3):
            pass
    with pytest.raises(ValueError, match="seconds must be a number above 0, got -1"):
        with media_limits(seconds=-1):
            pass


def test_limits_of_the_environment(monkeypatch, media):
    monkeypatch.setenv("TRIEMO_MAX_SECONDS", "0.2")
    with pytest.raises(ValueError, match=r"sound\.wav.*limit seconds=0\.2.*TRIEMO_MAX_SECONDS"):
        load_audio(media / "sound.wav")
    with media_limits(seconds=60):
        load_audio(media / "sound.wav")
    monkeypatch.setenv("TRIEMO_MAX_SECONDS", "long")
    with pytest.raises(ValueError, match="TRIEMO_MAX_SECONDS: expected a number, got 'long'"):
        load_audio(media / "sound.wav")


def test_a_set_of_limits_goes_in_whole_or_by_its_fields(media):
    with media_limits(MediaLimits(seconds=0.5)), pytest.raises(ValueError, match="limit seconds=0.5"):
        load_audio(media / "sound.wav")
    with media_limits({"seconds": 0.5}), media_limits(aspect=9) as limits:
        assert (limits.seconds, limits.aspect) == (0.5, 9)
        with media_limits(MediaLimits()):
            load_audio(media / "sound.wav")
    with pytest.raises(ValueError, match="limits: expected MediaLimits or a dict of its fields, got int"):
        with media_limits(5):
            pass


def test_pillows_own_limit_is_not_in_the_way(tmp_path, monkeypatch):
    """Who raises ours reads on where Pillow's would stop; the refusal is ours, and Pillow's is there again after."""
    Image.new("L", (90, 80)).save(tmp_path / "a.png")
    Image.new("L", (90, 80)).save(tmp_path / "a.tiff")
    Image.new("L", (90, 80)).save(tmp_path / "a.gif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in ("a.png", "a.tiff", "a.gif"):
        assert load_image(tmp_path / name).size == (90, 80)
        with media_limits(pixels=7199), pytest.raises(ValueError, match=rf"{name}.* 90 x 80 .*limit pixels=7199"):
            load_image(tmp_path / name)
    assert Image.MAX_IMAGE_PIXELS == 1000
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")


def test_pictures_in_memory_are_within_the_limits_too():
    for picture in (Image.new("RGB", (3000, 2)), np.zeros((2, 3000, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"the given .*3000 x 2 pixels is beyond the limit aspect=50"):
            load_image(picture)


def test_ordinary_media_are_read(tmp_path):
    """A phone's picture of 12 megapixels, a clip of 4K, and two hours of sound, here of a low rate."""
    noise = np.random.default_rng(0).integers(0, 256, (189, 252, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((4032, 3024)).save(tmp_path / "phone.jpg", quality=80)
    assert load_image(tmp_path / "phone.jpg").size == (4032, 3024)
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 3840, 2160, "yuv420p"
        for shade in (30, 200):
            frame = av.VideoFrame.from_ndarray(np.full((3240, 3840), shade, np.uint8), format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames, _ = load_frames(tmp_path / "clip.mp4")
    assert [frame.shape for frame in frames] == [(2160, 3840, 3)] * 2
    minute = np.tile(np.arange(-5000, 5000, 200, dtype=np.int16), 1200)[None]
    with av.open(str(tmp_path / "lecture.mka"), "w", format="matroska") as container:
        sound = container.add_stream("pcm_s16le", rate=1000, layout="mono")
        for index in range(120):
            frame = av.AudioFrame.from_ndarray(minute, format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 1000, Fraction(1, 1000), index * minute.size
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    assert len(load_audio(tmp_path / "lecture.mka", 1000)) == 2 * 3600 * 1000


def test_sizes_of_ordinary_media_are_within_the_limits():
    """A phone's 12 and 108 megapixels, panoramas, 4K and 8K frames, two hours of film and sound, at any usual rate."""
    limits = MediaLimits()
    for width, height in ((4032, 3024), (12000, 9000), (16000, 4000), (20000, 2500)):
        limits.check_size(width, height, "a")
    for width, height in ((3840, 2160), (4096, 2160), (7680, 4320), (1080, 2400)):
        limits.check_size(width, height, "a", "frame_pixels")
    for rate in (8000, 11025, 44100, 192_000):
        limits.check_sampling_rate(rate, "a")
    limits.check("seconds", 2 * 3600, "a", "two hours")
    limits.check("frames", 2 * 3600 * 120, "a", "two hours")


def test_large_pictures_are_shrunk_while_they_are_decoded(tmp_path):
    """By whole factors, upright as before; below 4,096 pixels nothing changes."""
    left = np.zeros((3000, 6300, 3), np.uint8)
    left[:, :3150, 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    for name, options in (("a.jpg", {"quality": 95}), ("a.png", {"compress_level": 1}), ("a.tiff", {})):
        Image.fromarray(left).save(tmp_path / name, exif=exif, **options)
        pixels = np.asarray(load_image(tmp_path / name))
        assert pixels.shape == (2100, 1000, 3) if name != "a.jpg" else pixels.shape[0] / pixels.shape[1] == 2.1
        height = len(pixels)
        assert abs(int(pixels[height // 4, 500, 0]) - 200) < 8 and pixels[3 * height // 4, 500, 0] < 8
    Image.fromarray(left[:, :4095]).save(tmp_path / "b.png", compress_level=1)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "b.png")), left[:, :4095])


# ----- what is accepted ----------------------------------------------------------------------------------------------


def test_animated_webp_is_a_video(tmp_path):
    shades = (30, 120, 210)
    frames = [Image.new("RGB", (64, 48), (shade, shade, shade)) for shade in shades]
    for name in ("a.webp", "a.gif", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=[100, 300, 200])
        assert media_kind(tmp_path / name) == "video"
        pictures, times = load_frames(tmp_path / name)
        assert [round(float(picture.mean()), -1) for picture in pictures] == list(shades)
        np.testing.assert_allclose(times, [0.0, 0.1, 0.4], atol=0.011)
        assert len(load_frames(tmp_path / name, num_frames=2)[0]) == 2


def test_open_files_and_what_is_in_memory(media, tmp_path):
    wanted = load_audio(media / "sound.wav")
    with open(media / "sound.wav", "rb") as file:
        file.seek(100)  # it is read from its beginning
        np.testing.assert_array_equal(load_audio(file), wanted)
        assert media_kind(file) == "audio" and not file.closed
    content = io.BytesIO((media / "clip.mp4").read_bytes())
    given = read_input(content)
    assert set(given) == {"videos"} and len(load_frames(given["videos"])[0]) == 50
    with open(media / "sound.wav", encoding="latin-1") as file, pytest.raises(ValueError, match="open as text"):
        load_audio(file)
    image = Image.new("RGB", (60, 60))
    cases = {
        "images": [image, np.asarray(image), np.zeros((60, 60), np.uint8)],
        "audio": [wanted, {"array": wanted, "sampling_rate": 16000}, (16000, wanted), (wanted, 16000), wanted[None]],
        "videos": [np.zeros((3, 60, 60, 3), np.uint8)],
    }
    for argument, values in cases.items():
        for value in values:
            assert list(read_input(value)) == [argument]


def test_a_clip_of_which_the_index_is_lost_is_decoded_straight(tmp_path):
    clip = write_clip(tmp_path / "a.mkv", frames=40)
    for percent in range(2, 60, 3):
        cut = tmp_path / f"cut_{percent}.mkv"
        cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * percent // 100])
        try:
            assert 1 <= len(load_frames(cut, num_frames=4)[0]) <= 4
        except ValueError as error:
            assert cut.name in str(error)
