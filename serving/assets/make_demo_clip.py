"""Make the demo's clip from its parts: `python -m triemo.serving.assets.make_demo_clip`.

`assets/demo.mp4` shows a portrait, slowly zoomed, while a synthetic voice says the sentence of `assets/demo.txt`.

- The voice, `assets/demo.flac` (16 kHz, mono), was synthesised with espeak-ng 1.51 and is kept, so that nobody needs
  espeak-ng:

      espeak-ng -v en-us+f3 -p 68 -s 160 -w demo.wav -f demo.txt
      ffmpeg -i demo.wav -ar 16000 -ac 1 -sample_fmt s16 -compression_level 12 demo.flac

- The portrait is the astronaut of `skimage.data`, a NASA picture of Eileen Collins in the public domain.
"""

import argparse
from pathlib import Path

import av
import numpy as np
from PIL import Image

__all__ = ["ASSETS", "main", "make_demo_clip", "portrait_frames"]

ASSETS = Path(__file__).parent

FRAME_RATE = 25  # Hz
WIDTH, HEIGHT = 640, 480  # pixels
PORTRAIT = (60.0, 0.0, 380.0, 240.0)  # x0, y0, x1, y1 in the 512 x 512 picture; 4:3, face in the middle
ZOOM = 0.9  # width of the last crop as a part of the first


def portrait_frames(picture: Image.Image, count: int) -> list[Image.Image]:
    """`count` frames of WIDTH x HEIGHT, each a slightly closer crop of the portrait than the one before.

    Args:
        picture: the RGB picture, 512 x 512 pixels.
        count: number of frames, at least 1.

    Raises:
        ValueError: if `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"count: got {count}, expected at least 1 frame")
    x0, y0, x1, y1 = PORTRAIT
    frames = []
    for step in np.linspace(0.0, 1.0, count):
        inset = step * (1.0 - ZOOM) / 2
        box = (
            x0 + inset * (x1 - x0),
            y0 + inset * (y1 - y0),
            x1 - inset * (x1 - x0),
            y1 - inset * (y1 - y0),
        )
        frames.append(picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box))
    return frames


def make_demo_clip(speech: Path, output: Path) -> None:
    """Mux the portrait and the speech into one mp4 (H.264 and AAC), as long as the speech.

    Args:
        speech: audio file, mono.
        output: the mp4 to write; it appears only when it is complete.

    Raises:
        ModuleNotFoundError: without scikit-image, which only this script needs (`pip install triemo[dev]`).
    """
    import skimage.data

    picture = Image.fromarray(skimage.data.astronaut())
    with av.open(str(speech)) as source:
        sampling_rate = source.streams.audio[0].rate
        samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in source.decode(audio=0)])
    count = int(np.ceil(len(samples) / sampling_rate * FRAME_RATE))

    partial = output.with_name(output.name + ".part")
    with av.open(str(partial), "w", format="mp4") as target:
        # x264 is absent from some builds of FFmpeg; MPEG-4 part 2 is in all of them.
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        video = target.add_stream(codec, rate=FRAME_RATE)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if codec == "libx264":
            video.options = {"crf": "26", "preset": "veryslow"}
        audio = target.add_stream("aac", rate=sampling_rate, layout="mono")
        audio.bit_rate = 48_000
        for image in portrait_frames(picture, count):
            target.mux(video.encode(av.VideoFrame.from_image(image)))
        target.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        sound.sample_rate = sampling_rate
        target.mux(audio.encode(sound))
        target.mux(audio.encode(None))
    partial.replace(output)


def main() -> None:
    """Command line: write the clip, by default over the one in the assets."""
    parser = argparse.ArgumentParser(description="Make the demo clip from the kept speech and a portrait.")
    parser.add_argument("--speech", type=Path, default=ASSETS / "demo.flac", help="audio file of the spoken sentence")
    parser.add_argument("--output", type=Path, default=ASSETS / "demo.mp4", help="mp4 to write")
    arguments = parser.parse_args()
    make_demo_clip(arguments.speech, arguments.output)
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
