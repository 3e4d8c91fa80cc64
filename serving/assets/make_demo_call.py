"""Make the example of a conversation: `python -m triemo.serving.assets.make_demo_call`.

`assets/call.opus` is a made call to a telephone company, of two voices that espeak-ng speaks; `assets/call.srt` is
what they say and when. Both are kept, so that nobody needs espeak-ng.
"""

import argparse
import io
import subprocess
from pathlib import Path

import av
import numpy as np

from triemo.processing import load_audio

__all__ = ["ASSETS", "CALL", "VOICES", "main", "make_call"]

ASSETS = Path(__file__).parent
SAMPLING_RATE = 16000  # Hz
PAUSE_SECONDS = 0.4
BIT_RATE = 14_000
# What espeak-ng is told: voice, pitch (0 to 99), words a minute, loudness (0 to 200).
VOICES = {
    "agent": ("en-us+f3", 62, 165, 90),
    "customer": ("en-gb+m3", 42, 160, 90),
    "customer, angry": ("en-gb+m3", 66, 190, 170),
    "customer, glad": ("en-gb+m3", 70, 175, 120),
}
CALL = (
    ("agent", "Hello, this is Clara from Northwind Telecom. How can I help you?"),
    ("customer", "Hi. My internet has been down since Monday."),
    ("agent", "Okay. May I have your customer number?"),
    ("customer", "It is four four seven one two. I gave it to your colleague yesterday."),
    ("agent", "Thank you. I see that a technician was booked for Tuesday."),
    ("customer", "Nobody came. I waited the whole day and nobody even called me."),
    ("agent", "I can offer you a new appointment next week."),
    ("customer, angry", "Next week? Are you kidding me? This is ridiculous!"),
    ("agent", "There is nothing earlier in my system."),
    ("customer, angry", "I hate this company! You keep lying to me and I am sick of it!"),
    ("agent", "You are right, and I am very sorry. Let me call the technician myself. He can come today at three."),
    ("customer, glad", "Today? Oh wow, really? I didn't expect that!"),
    ("agent", "Yes, today at three, and this month is free for you."),
    ("customer, glad", "That is wonderful! Thank you so much, you made my day!"),
    ("agent", "It was my pleasure. Have a lovely evening."),
)


def speak(text: str, voice: str) -> np.ndarray:
    """
    A sentence, (samples,) at `SAMPLING_RATE`.

    Raises:
        FileNotFoundError: espeak-ng is not installed.
    """
    name, pitch, speed, loudness = VOICES[voice]
    command = ["espeak-ng", "-v", name, "-p", str(pitch), "-s", str(speed), "-a", str(loudness), "--stdout", text]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    return load_audio(spoken, SAMPLING_RATE)


def make_call(folder: Path) -> list[Path]:
    """Write `call.opus` and `call.srt`; they appear only when they are complete."""
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLING_RATE), dtype=np.float32)
    parts, cues, seconds = [pause], [], PAUSE_SECONDS
    for number, (voice, text) in enumerate(CALL, start=1):
        sound = speak(text, voice)
        end = seconds + len(sound) / SAMPLING_RATE
        speaker = voice.partition(",")[0].capitalize()
        cues.append(f"{number}\n{_stamp(seconds)} --> {_stamp(end)}\n{speaker}: {text}\n")
        parts += [sound, pause]
        seconds = end + PAUSE_SECONDS
    contents = {"call.opus": _opus(np.concatenate(parts)), "call.srt": "\n".join(cues).encode()}
    for name, content in contents.items():
        part = folder / f"{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)
    return [folder / name for name in contents]


def _stamp(seconds: float) -> str:
    milliseconds = round(1000 * seconds)
    return f"00:{milliseconds // 60_000:02d}:{milliseconds // 1000 % 60:02d},{milliseconds % 1000:03d}"


def _opus(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg") as target:
        stream = target.add_stream("libopus", rate=SAMPLING_RATE, layout="mono")
        stream.bit_rate = BIT_RATE
        whole = np.clip(samples * 32767, -32768, 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(whole, format="s16", layout="mono")
        frame.sample_rate = SAMPLING_RATE
        target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return buffer.getvalue()


def main() -> None:
    """Command line: write the call, by default over the one in the assets."""
    parser = argparse.ArgumentParser(description="Make the call of two synthetic voices, and its transcript.")
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder to write to")
    for file in make_call(parser.parse_args().output):
        print(f"wrote {file} ({file.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
