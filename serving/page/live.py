"""The page's third tab: camera and microphone, read while it happens."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from triemo.serving.page import visitors
from triemo.serving.page.clip import problem_html
from triemo.serving.page.recording import timeline_html
from triemo.serving.printing import listed, percent
from triemo.serving.timeline.html import data_uri
from triemo.serving.timeline.live import StreamingSession
from triemo.serving.timeline.marks import clock
from triemo.serving.timeline.pictures import timeline_png
from triemo.serving.timeline.recordings import Moment

__all__ = ["LiveEvents", "LiveReading", "live_html", "live_tab"]

MOST_VISITORS = 4  # whose cameras and microphones are followed at once
STRIDE_SECONDS = 1.0  # that windows share with each neighbour: a new one is complete every two seconds
SHOWN_SECONDS = 60.0  # of the curve
_LATEST_SECONDS = 1.5  # after which what has not come does not count as late, but as missing
_OFF_SECONDS = 0.5  # by which sound may be early or late before it is moved to where it was heard
_FRAMES_WAITING = 64
_FRAMES_PER_SECOND = 4
_LONGEST_SIDE = 640  # pixels of a frame
_NAME = "Live reading"

NOTHING_YET = (
    '<p class="triemo-empty">Press Start. The browser asks for the camera and the microphone; either alone will do. '
    "The first answer comes after about seven seconds.</p>"
)
# One button presses those of both recorders, as soon as they are there.
START = """
async () => {
  const press = async (selector) => {
    for (let tries = 0; tries < 50; tries++) {
      const button = document.querySelector(selector);
      if (button) return button.click();
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  };
  press("#triemo-microphone button.record-button");
  const camera = "#triemo-camera", to_record = `${camera} .button-wrap button`;
  if (!document.querySelector(to_record)) await press(`${camera} [title='grant webcam access'] button`);
  if (!document.querySelector(`${camera} [title='stop recording']`)) press(to_record);
}
"""
STOP = """
() => {
  document.querySelector("#triemo-microphone .stop-button")?.click();
  document.querySelector("#triemo-camera .button-wrap button:has([title='stop recording'])")?.click();
}
"""


class LiveReading:
    """
    What one visitor's camera and microphone show. Sound and frames are taken in as they come, from any thread, and
    read by `advance`; when something happened is told from when it came, for browsers do not say.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline.
        now: seconds on a clock that never goes back.
    """

    def __init__(self, reader: Any, now: Callable[[], float] = time.monotonic) -> None:
        self._session = StreamingSession(reader, stride_length_s=STRIDE_SECONDS)
        self._now = now
        self._began: float | None = None
        self._sound: list[tuple[float, int, np.ndarray]] = []
        self._frames: list[tuple[float, np.ndarray]] = []
        self._latest_frame = -1.0
        self._lock = threading.Lock()
        self._at_work = threading.Lock()
        self.moments: list[Moment] = []
        self.is_closed = False
        self.problem: str | None = None  # with what came, for who looks next

    @property
    def seconds(self) -> float:
        """Since the first sound or frame."""
        return 0.0 if self._began is None else self._now() - self._began

    def hear(self, sampling_rate: int, samples: np.ndarray) -> None:
        """Sound that ends now: (samples,) or (samples, channels), floats within -1..1 or 16-bit."""
        sound = np.asarray(samples)
        if sound.dtype == np.int16:
            sound = sound.astype(np.float32) / 32768
        with self._lock:
            if self._began is None:
                self._began = self._now() - len(sound) / sampling_rate
            mono = sound.mean(axis=1, dtype=np.float32) if sound.ndim == 2 else sound
            self._sound.append((self.seconds, sampling_rate, mono))

    def see(self, frame: np.ndarray) -> None:
        """A picture (height, width, 3) uint8 RGB of this moment."""
        factor = max(1, max(frame.shape[:2]) // _LONGEST_SIDE)
        small = np.asarray(Image.fromarray(frame).reduce(factor))
        with self._lock:
            if self._began is None:
                self._began = self._now()
            seconds = self.seconds
            if seconds > self._latest_frame:
                self._latest_frame = seconds
                self._frames = [*self._frames, (seconds, small)][-_FRAMES_WAITING:]

    def advance(self) -> list[Moment]:
        """
        Reads what has come, and returns the windows that are complete now.

        Raises:
            ValueError: sound that is none, such as NaN or a rate of 0.
        """
        with self._at_work:
            if self._began is None or self.is_closed:
                return []
            return self._kept(self._take_in())

    def close(self) -> list[Moment]:
        """The windows that are left; nothing is taken in afterwards."""
        with self._at_work:
            if self.is_closed:
                return []
            self.is_closed = True
            if self._began is None:
                return []
            return self._kept([*self._take_in(), *self._session.close()])

    def _take_in(self) -> list[Moment]:
        with self._lock:
            sound, self._sound = self._sound, []
            frames, self._frames = self._frames, []
            until = self.seconds - _LATEST_SECONDS
        found: list[Moment] = []
        for came, rate, samples in sound:
            # Where the browser lost sound there is silence, and what it sends twice or too late is cut.
            off = came - len(samples) / rate - self._session.heard
            if off > _OFF_SECONDS:
                samples = np.concatenate([np.zeros(round(off * rate), dtype=np.float32), samples])
            elif off < -_OFF_SECONDS:
                samples = samples[round(-off * rate) :]
            found += self._session.push(sound=samples, sampling_rate=rate)
        return found + self._session.push(frames=frames, until=max(0.0, until))

    def _kept(self, found: Sequence[Moment]) -> list[Moment]:
        kept = [replace(moment, picture=None) for moment in found]
        self.moments += kept
        return kept


class LiveEvents:
    """
    What happens at the tab's events; each visitor has a reading, None before Start.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline.
        turn: is held while the reader is at work.
        longest: seconds after which a reading stops by itself.
    """

    def __init__(self, reader: Any, turn: AbstractContextManager, longest: float) -> None:
        self._reader, self._turn, self._longest = reader, turn, longest

    def start(self) -> tuple[LiveReading, Any, str]:
        """A new reading, the timer and the result."""
        return LiveReading(self._reader), gr.Timer(active=True), live_html(None)

    def hear(self, reading: LiveReading | None, file: str | None) -> None:
        """A piece of sound; what is wrong with it is said at the next second."""
        if not file:
            return
        try:
            sound = visitors.sound_taken(file)
            if sound is not None and reading is not None and not reading.is_closed:
                reading.hear(*sound)
        except ValueError as error:
            if reading is not None:
                reading.problem = str(error)

    def see(self, reading: LiveReading | None, frame: np.ndarray | None) -> None:
        """A frame."""
        if reading is not None and frame is not None and not reading.is_closed:
            reading.see(frame)

    def go_on(self, reading: LiveReading | None) -> tuple[Any, Any]:
        """The result and the timer, every second."""
        if reading is None or reading.is_closed:
            return gr.skip(), gr.Timer(active=False)
        if reading.seconds > self._longest:
            return self.stop(reading)
        try:
            if reading.problem is not None:
                raise ValueError(reading.problem)
            with self._turn:
                found = reading.advance()
        except ValueError as error:
            reading.is_closed = True
            return problem_html(str(error)), gr.Timer(active=False)
        shown = live_html(reading) if found or not reading.moments else gr.skip()
        # Stopped or reset meanwhile, which has the last word.
        return (gr.skip(), gr.skip()) if reading.is_closed else (shown, gr.skip())

    def stop(self, reading: LiveReading | None) -> tuple[Any, Any]:
        """The result and the timer: all that was read, as of a recording."""
        if reading is None or reading.is_closed:
            return gr.skip(), gr.Timer(active=False)
        try:
            with self._turn:
                reading.close()
            visitors.sweep_sounds()
            if not reading.moments:
                raise ValueError("Nothing came from the camera or the microphone.")
            return timeline_html(reading.moments, _NAME), gr.Timer(active=False)
        except ValueError as error:
            return problem_html(str(error)), gr.Timer(active=False)

    def reset(self, reading: LiveReading | None) -> tuple[None, Any, str]:
        """No reading, the timer and the result."""
        if reading is not None:
            reading.is_closed = True
        visitors.sweep_sounds()
        return None, gr.Timer(active=False), NOTHING_YET


def live_tab(reader: Any, turn: AbstractContextManager) -> None:
    """The tab's components, within a `gr.Tab`; arguments as of `clip_tab`."""
    longest = visitors.long_limits().seconds
    with gr.Row():
        camera = gr.Image(
            label="Camera",
            sources=["webcam"],
            streaming=True,
            elem_id="triemo-camera",
            height=300,
            webcam_options=gr.WebcamOptions(
                constraints={"video": {"width": {"ideal": _LONGEST_SIDE}, "height": {"ideal": 480}}}
            ),
        )
        with gr.Column():
            microphone = gr.Audio(
                label="Microphone",
                sources=["microphone"],
                streaming=True,
                type="filepath",
                elem_id="triemo-microphone",
            )
            with gr.Row():
                begin = gr.Button("Start", variant="primary", min_width=80)
                end = gr.Button("Stop", min_width=80)
                reset = gr.Button("Reset", min_width=80)
    result = gr.HTML(NOTHING_YET, elem_id="triemo-live", padding=False, container=True, min_height=120)

    events, visit = LiveEvents(reader, turn, longest), gr.State()
    timer = gr.Timer(1.0, active=False)
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    begin.click(events.start, outputs=[visit, timer, result], js=START, **private)
    end.click(events.stop, visit, [result, timer], js=STOP, **private)
    reset.click(events.reset, visit, [visit, timer, result], js=STOP, **private)
    timer.tick(events.go_on, visit, [result, timer], concurrency_limit=MOST_VISITORS, **private)
    streamed: dict[str, Any] = {"time_limit": longest, "concurrency_limit": MOST_VISITORS, **private}
    microphone.stream(events.hear, [visit, microphone], stream_every=0.5, concurrency_id="sound", **streamed)
    camera.stream(
        events.see, [visit, camera], stream_every=1 / _FRAMES_PER_SECOND, concurrency_id="frames", **streamed
    )


def live_html(reading: LiveReading | None) -> str:
    """What is read at the moment, and the curve of the last minute."""
    if reading is None or not reading.moments:
        waiting = "Waiting for the camera or the microphone."
        if reading is not None and reading.seconds > 0:
            waiting = f"{clock(reading.seconds)} so far. The first answer comes after about seven seconds."
        return f'<p class="triemo-empty" role="status">{waiting}</p>'
    latest = reading.moments[-1]
    recent = [replace(one, person=None) for one in reading.moments if one.end > latest.end - SHOWN_SECONDS]
    span = f"{clock(latest.start)} to {clock(latest.end)}"
    if latest.label is None or latest.confidence is None:
        said = f'<p class="triemo-lead">Nothing to read</p><p>{span}: no face, no voice.</p>'
    else:
        said = (
            f'<p class="triemo-lead"><strong>{escape(latest.label)}</strong> {percent(latest.confidence)}</p>'
            f"<p>{span}, read from {escape(listed(latest.modalities))}.</p>"
        )
    curve = ""
    if any(one.scores for one in recent):
        picture = data_uri(timeline_png(recent, "The last minute", width=7))
        curve = f'<img src="{picture}" alt="Scores of each emotion over the last minute">'
    return f'<div class="triemo-reading triemo-live" aria-live="polite">{said}{curve}</div>'
