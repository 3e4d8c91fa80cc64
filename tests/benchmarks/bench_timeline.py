"""Seconds of work per second of recording, and peak memory, by length: decoding, faces and model apart.

    python tests/benchmarks/bench_timeline.py --minutes 1 5 20 60
    python tests/benchmarks/bench_timeline.py --minutes 1 20 --sound
    python tests/benchmarks/bench_timeline.py --minutes 600 --rate 1      # ten hours at a frame a second

A 720p clip is made from the demo clip, encoded once and repeated packet by packet. Each length runs in a process of
its own, whose peak memory is the kernel's figure; times are processor seconds of all threads, and on the clock.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SECONDS, SOUND_RATE = 20, 48_000
WIDTH, HEIGHT = 1280, 720


def make_clip(path: Path, rate: int) -> Path:
    """20 s of 720p with sound: the portrait of the demo clip, which moves about; `rate` frames a second."""
    from triemo.processing import load_audio, load_frames

    demo = ROOT / "serving" / "assets" / "demo.mp4"
    portrait = np.asarray(Image.fromarray(load_frames(demo, num_frames=1)[0][0]).resize((1440, 1080)))
    voice = np.tile(load_audio(demo, SOUND_RATE), SECONDS)[: SECONDS * SOUND_RATE]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "23"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
        for index in range(SECONDS * rate):
            x, y = (round(side * (1 + np.sin(index / pace)) / 2) for side, pace in ((160, 31), (360, 43)))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(portrait[y : y + HEIGHT, x : x + WIDTH]), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(video.encode(frame))
            start = index * SOUND_RATE // rate
            samples = voice[None, start : start + SOUND_RATE // rate]
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def repeat(source: Path, path: Path, minutes: float, kinds: tuple[str, ...]) -> Path:
    """The packets of a clip over and over, without decoding them."""
    with av.open(str(path), "w", format="matroska") as target:
        streams: dict[int, Any] = {}
        latest: dict[int, int] = {}
        for turn in range(round(minutes * 60 / SECONDS)):
            with av.open(str(source)) as clip:
                if not streams:
                    chosen = [stream for stream in clip.streams if stream.type in kinds]
                    streams = {stream.index: target.add_stream_from_template(stream) for stream in chosen}
                for packet in clip.demux([stream for stream in clip.streams if stream.index in streams]):
                    if packet.dts is None:
                        continue
                    shift = round(turn * SECONDS / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    index = packet.stream.index
                    if packet.dts <= latest.get(index, packet.dts - 1):  # a sound's last packet reaches a little over
                        continue
                    latest[index] = packet.dts
                    packet.stream = streams[packet.stream.index]
                    target.mux(packet)
    return path


def measure(file: str, sound: bool) -> dict[str, float]:
    """Of one recording, in this process."""
    from triemo.processing import MultimodalEmotionRecognitionPipeline
    from triemo.processing.people_triemo import FaceTracks
    from triemo.processing.recordings_triemo import recording_seconds, stream_recording
    from triemo.serving.reading import load_reader

    seconds = recording_seconds(file) or 0.0
    spent: dict[str, float] = {}

    def timed(name: str, function: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - began

        return run

    reader = load_reader(None, "cpu")
    began = time.process_time()
    for _ in stream_recording(None if sound else file, file, 16000, 4.0, longest_side=960):
        pass
    decode = time.process_time() - began
    patched: Any = FaceTracks
    patched.add, patched.people = timed("faces", FaceTracks.add), timed("people", FaceTracks.people)
    piped: Any = MultimodalEmotionRecognitionPipeline
    piped.forward = timed("model", MultimodalEmotionRecognitionPipeline.forward)
    began, clock = time.process_time(), time.perf_counter()
    windows = sum(1 for _ in reader.read_windows(file))
    total, on_the_clock = time.process_time() - began, time.perf_counter() - clock
    figures = {"decode": decode, **spent, "total": total, "clock": on_the_clock}
    return {
        "seconds": seconds,
        "windows": windows,
        **{name: round(value / seconds, 4) for name, value in figures.items()},
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 5, 20])
    parser.add_argument("--rate", type=int, default=25, help="frames a second of the recording")
    parser.add_argument("--sound", action="store_true", help="of the sound alone")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more wait for one another on a busy machine")
    parser.add_argument("--file", help="measure this recording in this process")
    arguments = parser.parse_args()
    if arguments.file:
        import torch

        torch.set_num_threads(arguments.threads)
        print(json.dumps(measure(arguments.file, arguments.sound)))
        return
    with tempfile.TemporaryDirectory() as folder:
        clip = make_clip(Path(folder) / "clip.mp4", arguments.rate)
        kinds = ("audio",) if arguments.sound else ("audio", "video")
        for minutes in arguments.minutes:
            path = repeat(clip, Path(folder) / f"{minutes:g}.mkv", minutes, kinds)
            command = [sys.executable, __file__, "--threads", str(arguments.threads), "--file", str(path)]
            command += ["--sound"] if arguments.sound else []
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
