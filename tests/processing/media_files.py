"""Makes the small media files that the tests read, with PyAV, at test time.

Picture n of a clip is a flat grey whose level is `GREY_START + n * GREY_STEP` (so that a decoded frame tells which one
it is), with a white block in the top left corner (so that it tells which way up it is).
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

GREY_START, GREY_STEP = 16, 4
WIDTH, HEIGHT, BLOCK = 128, 64, 32


def picture(index: int) -> np.ndarray:
    pixels = np.full((HEIGHT, WIDTH, 3), GREY_START + index * GREY_STEP % 200, dtype=np.uint8)
    pixels[:BLOCK, :BLOCK] = 255
    return pixels


def index_of(frame: np.ndarray) -> int:
    """Which picture a decoded frame is, by its level in the middle (within the first 50 of a clip)."""
    height, width = frame.shape[:2]
    middle = frame[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4]
    return round((float(middle.mean()) - GREY_START) / GREY_STEP)


def sine(seconds: float, rate: int, hertz: float = 440.0, channels: int = 1, level: float = 0.5) -> np.ndarray:
    """Of shape (channels, samples), float32; every channel the same."""
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def write_clip(
    path: Path,
    frames: int = 50,
    rate: int = 25,
    sound: np.ndarray | None = None,
    sound_rate: int = 48000,
    sound_start_seconds: float = 0.0,
    rotation: int | None = None,
    codec: str = "libx264",
    gop: int = 10,
    times: list[float] | None = None,
    picture_start_seconds: float = 0.0,
    pictures: Callable[[int], np.ndarray] = picture,
) -> Path:
    """A video file, with a sound track if `sound` (channels, samples) is given; `times` makes the rate variable."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate, options={"crf": "4"} if codec == "libx264" else {})
        video.height, video.width = pictures(0).shape[:2]
        video.pix_fmt = "yuv420p"
        video.gop_size, video.bit_rate = gop, 4_000_000
        clock = Fraction(1, 1000) if codec == "libx264" else Fraction(1, rate)
        video.codec_context.time_base = clock
        if rotation is not None:
            video.set_display_rotation(rotation)
        audio = None
        if sound is not None:
            audio = container.add_stream("aac", rate=sound_rate, layout="stereo" if len(sound) == 2 else "mono")
            audio.bit_rate = 192000
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(pictures(index), format="rgb24")
            seconds = times[index] if times is not None else Fraction(index, rate)
            frame.pts, frame.time_base = round((seconds + picture_start_seconds) / clock), clock
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            for start in range(0, sound.shape[1], 1024):
                chunk = np.ascontiguousarray(sound[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=audio.layout.name)
                frame.sample_rate, frame.time_base = sound_rate, Fraction(1, sound_rate)
                frame.pts = start + round(sound_start_seconds * sound_rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def write_sound(
    path: Path, sound: np.ndarray, rate: int, codec: str = "pcm_s16le", cover: bool = False, title: str | None = None
) -> Path:
    """A sound file from (channels, samples) floats; `cover` adds a cover picture as music players store it."""
    with av.open(str(path), "w") as container:
        if title is not None:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate, layout="stereo" if len(sound) == 2 else "mono")
        art = None
        if cover:
            art = container.add_stream("png", rate=1)
            art.width, art.height, art.pix_fmt = WIDTH, HEIGHT, "rgb24"
            art.disposition = av.stream.Disposition.attached_pic
        resampler = av.AudioResampler(format=stream.format.name, layout=stream.layout.name, rate=rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        if art is not None:
            image = av.VideoFrame.from_ndarray(picture(0), format="rgb24")
            container.mux([*art.encode(image), *art.encode(None)])
        fifo = av.AudioFifo()
        for part in resampler.resample(frame):
            fifo.write(part)
        size = stream.codec_context.frame_size or 1024
        while (part := fifo.read(size, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def write_truncated(path: Path, source: Path, keep: float) -> Path:
    """The first part of a file: of an mp4 its index, which stands at the end, is missing."""
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def write_damaged(path: Path, source: Path) -> Path:
    """A file with its middle third overwritten."""
    content = bytearray(source.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = np.random.default_rng(0).integers(0, 256, third, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    return path
