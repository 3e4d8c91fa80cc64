"""Hundreds of broken, lying and greedy media files of every container, made from good ones by a fixed seed.

Run as a script, it reads the files that it is told of, within 1.5 GB of memory and 20 seconds of processor time each,
and prints one line for each: what became of it. Without torch, whose address space alone is larger than that.
"""

import io
import json
import resource
import signal
import struct
import sys
import zlib
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

MEMORY_BYTES = 1_500_000_000
PROCESSOR_SECONDS = 20


def write_malformed(folder: Path) -> list[Path]:
    """Writes them all and returns their paths; what each is stands in its name."""
    written = []
    for name, content in chain(_damaged(), _renamed(), _absurd_headers(), _other_documents(), _greedy()):
        path = folder / name
        path.write_bytes(content)
        written.append(path)
    return written


def good_files() -> dict[str, bytes]:
    """One small whole file of every container, by its suffix."""
    import numpy as np
    from media_files import picture, sine, write_clip, write_sound
    from PIL import Image

    files: dict[str, bytes] = {}
    folder = Path(_temporary())
    for suffix, codec in (
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("mov", "libx264"),
        ("ts", "libx264"),
        ("avi", "mpeg4"),
    ):
        files[suffix] = write_clip(folder / f"a.{suffix}", frames=20, codec=codec, sound=sine(0.8, 48000)).read_bytes()
    files["webm"] = _webm(folder / "a.webm")
    for suffix, codec in (
        ("wav", "pcm_s16le"),
        ("mp3", "libmp3lame"),
        ("flac", "flac"),
        ("ogg", "libopus"),
        ("m4a", "aac"),
    ):
        files[suffix] = write_sound(folder / f"a.{suffix}", sine(0.8, 48000, channels=2), 48000, codec).read_bytes()
    pictures = [Image.fromarray(np.kron(picture(i), np.ones((2, 2, 1), np.uint8))) for i in range(6)]
    for suffix in ("png", "jpg", "webp", "bmp", "tiff", "ppm", "jp2"):
        pictures[0].save(folder / f"a.{suffix}")
        files[suffix] = (folder / f"a.{suffix}").read_bytes()
    for suffix, kind in (("gif", "GIF"), ("apng", "PNG"), ("anim.webp", "WEBP")):
        buffer = io.BytesIO()
        pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:], duration=80)
        files[suffix] = buffer.getvalue()
    return files


def _temporary() -> str:
    import tempfile

    return tempfile.mkdtemp()


def _webm(path: Path) -> bytes:
    import av
    from media_files import picture

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24").reformat(64, 48)))
        container.mux(stream.encode(None))
    return path.read_bytes()


def _damaged() -> Iterator[tuple[str, bytes]]:
    import numpy as np

    for suffix, whole in good_files().items():
        rng = np.random.default_rng(len(whole))
        for percent in (1, 2, 3, 5, 8, 20, 50, 80, 97):
            yield f"cut_{percent}.{suffix}", whole[: max(1, len(whole) * percent // 100)]
        for seed in range(7):
            content = np.frombuffer(whole, np.uint8).copy()
            # A few bytes anywhere, or in the headers alone.
            places = rng.integers(0, len(content) if seed % 2 else min(200, len(content)), 3 + 10 * seed)
            content[places] = rng.integers(0, 256, len(places))
            yield f"flipped_{seed}.{suffix}", content.tobytes()
        for seed in range(4):
            content = bytearray(whole)
            start = int(rng.integers(0, len(content)))
            length = min(len(content) - start, int(rng.integers(1, len(content) // 2 + 2)))
            content[start : start + length] = bytes(length)
            yield f"zeroed_{seed}.{suffix}", bytes(content)
        yield f"headless.{suffix}", whole[len(whole) // 3 :]
        yield f"doubled.{suffix}", whole[: len(whole) // 2] + whole


def _renamed() -> Iterator[tuple[str, bytes]]:
    files = good_files()
    names = list(files)
    for index, (suffix, content) in enumerate(files.items()):
        yield f"really_{suffix.replace('.', '_')}.{names[(index + 5) % len(names)]}", content


def png(width: int, height: int, rows: int | None = None, mode: int = 2) -> bytes:
    """A black PNG of any size; of other `rows` of at most 70,000 pixels than its header says, if told."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bytes_a_pixel = {0: 1, 2: 3, 6: 4}[mode]
    deflate = zlib.compressobj(9)
    row = bytes(1 + (width if rows is None else min(width, 70_000)) * bytes_a_pixel)
    data = b"".join(deflate.compress(row) for _ in range(height if rows is None else rows)) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def wav(rate: int, seconds: float = 1.0, channels: int = 1, **header: int) -> bytes:
    """Silence of 16 bits at any rate; `codec`, `bits`, `size` and `said_channels` replace what its header says."""
    samples = bytes(2 * channels * max(1, int(rate * seconds))) if rate < 10**6 else bytes(2000)
    size = header.get("size", len(samples))
    block = 2 * channels
    form = struct.pack(
        "<HHIIHH",
        header.get("codec", 1),
        header.get("said_channels", channels),
        rate,
        min(rate * block, 2**32 - 1),
        block,
        header.get("bits", 16),
    )
    return (
        b"RIFF"
        + struct.pack("<I", min(36 + size, 2**32 - 1))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", size)
        + samples
    )


def _absurd_headers() -> Iterator[tuple[str, bytes]]:
    for width, height in (
        (20_000, 1),
        (1, 65_000),
        (60_000, 60_000),
        (2**31 - 1, 2**31 - 1),
        (1, 1),
        (0, 5),
        (9_000, 90),
    ):
        yield f"size_{width}x{height}.png", png(width, height, rows=min(height, 3))
    yield "whole_20000x1.png", png(20_000, 1)
    yield "whole_65000x1.png", png(65_000, 1)
    yield "whole_1x65000.png", png(1, 65_000)
    for name, rate in (("1", 1), ("100", 100), ("0", 0), ("4e9", 4_000_000_000)):
        yield f"rate_{name}.wav", wav(rate, seconds=3000 if 0 < rate < 200 else 1)
    for codec in (0, 2, 6, 7, 0x55, 0x161, 0x7777, 0xFFFE):
        yield f"codec_{codec}.wav", wav(16_000, codec=codec)
    for channels in (0, 3, 255, 65_535):
        yield f"channels_{channels}.wav", wav(16_000, said_channels=channels)
    for bits in (0, 1, 7, 64, 65_535):
        yield f"bits_{bits}.wav", wav(16_000, bits=bits)
    for size in (0, 2**31, 2**32 - 1):
        yield f"size_{size}.wav", wav(16_000, size=size)
    for width, height in ((65_535, 65_535), (0, 0), (30_000, 1)):
        screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
        picture = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00"
        yield f"size_{width}x{height}.gif", b"GIF89a" + screen + picture + b";"
        yield (
            f"size_{width}x{height}.bmp",
            b"BM"
            + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
            + bytes(90),
        )
        yield f"size_{width}x{height}.ppm", f"P6\n{width} {height}\n255\n".encode() + bytes(90)


def _other_documents() -> Iterator[tuple[str, bytes]]:
    page = (
        b"<!DOCTYPE html><html><head><title>404</title></head><body>" + b"<p>Not found</p>" * 200 + b"</body></html>"
    )
    documents = {
        "html": page,
        "json": json.dumps({"error": "not found", "code": 404}).encode() * 30,
        "text": b"This is no medium at all.\n" * 100,
        "zip": b"PK\x03\x04" + bytes(400),
        "pdf": b"%PDF-1.7\n" + b"1 0 obj <<>> endobj\n" * 50,
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>',
        "m3u8": b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "concat": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "zeros": bytes(5000),
        "ones": b"\xff" * 5000,
        "byte": b"\0",
    }
    for kind, content in documents.items():
        for suffix in ("jpg", "png", "mp4", "wav", "mkv"):
            yield f"{kind}_as.{suffix}", content


def _greedy() -> Iterator[tuple[str, bytes]]:
    """Well-formed, and asking for far more time or memory than their size lets guess."""
    from PIL import Image

    yield "large_81mp.png", png(9_000, 9_000)
    yield "large_rgba.png", png(10_000, 10_000, mode=6)
    yield "large_177mp.png", png(13_300, 13_300, mode=0)
    for suffix, kind in (("jpg", "JPEG"), ("tiff", "TIFF")):
        buffer = io.BytesIO()
        options = {"compression": "tiff_deflate"} if kind == "TIFF" else {}
        Image.new("L", (12_000, 9_000)).save(buffer, kind, **options)
        yield f"large_108mp.{suffix}", buffer.getvalue()
    for count, side in ((200_000, 2), (9_000, 900)):
        screen = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
        delay = b"\x21\xf9\x04\x00\x0a\x00\x00\x00"
        picture = delay + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
        yield f"frames_{count}.gif", screen + picture * count + b";"
    yield "wide_8192.mov", _video(8_192, 8_192)
    yield "thin_10000x1.mov", _video(10_000, 1)
    yield "thin_4000x40.mov", _video(4_000, 40)
    yield "gap_ten_hours.mkv", _sound_with_gap(36_000)
    yield "gap_ten_hours_and_picture.mkv", _sound_with_gap(36_000, picture=True)


def _video(width: int, height: int) -> bytes:
    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "gray"
        for _ in range(2):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.zeros((height, width), np.uint8), format="gray"))
            )
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _sound_with_gap(seconds: int, picture: bool = False) -> bytes:
    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        video = container.add_stream("mpeg4", rate=25) if picture else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
            black = av.VideoFrame.from_ndarray(np.zeros((64, 64), np.uint8), format="gray").reformat(format="yuv420p")
            container.mux([*video.encode(black), *video.encode(None)])
        for start in (0, seconds):
            frame = av.AudioFrame.from_ndarray(np.full((1, 16_000), 900, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), start * 16_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


# ----- the reader ----------------------------------------------------------------------------------------------------


def read_all(paths: list[str]) -> None:
    """Prints a JSON line for each path before it is read, and one with what came of it."""
    import numpy as np

    # The same files under another name: without what `import triemo.processing` registers, and so without torch.
    from triemo.serving.onnx.processing.media_triemo import load_audio, load_frames, load_image
    from triemo.serving.onnx.processing.pictures_triemo import (
        DEFAULT_IMAGE_SETTINGS,
        Clip,
        checked_image_settings,
        picture_arrays,
    )
    from triemo.serving.onnx.processing.samples_triemo import has_sound, read_input, sample_frames

    settings = checked_image_settings(DEFAULT_IMAGE_SETTINGS)

    def nothing_found(frames: list) -> list:
        return [np.zeros((0, 5)) for _ in frames]

    def whole(path: str) -> None:
        given = read_input(path)
        clip, sound = given.get("videos"), given.get("audio")
        if sound is not None or has_sound(clip):
            load_audio(clip if sound is None else sound)
        frames = sample_frames(given.get("images"), clip, 16, None)
        if frames is not None:
            picture_arrays([Clip(*frames)], settings, lambda *_: nothing_found)

    for path in paths:
        print(json.dumps({"begins": path}), flush=True)
        outcomes = {}
        for read in (whole, load_audio, load_image, load_frames):
            signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
            try:
                read(path) if read is not load_frames else read(path, num_frames=8)
                outcomes[read.__name__] = "answer"
            except ValueError as error:
                outcomes[read.__name__] = "named" if Path(path).name in str(error) else f"unnamed: {error}"
            except Exception as error:  # whatever else there is, is what is looked for
                outcomes[read.__name__] = f"{type(error).__module__}.{type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"path": path, "outcomes": outcomes}), flush=True)


if __name__ == "__main__":
    # What is written to, and not address space: the C library reserves 64 MB of that for every thread.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    read_all(json.loads(sys.stdin.read()))
