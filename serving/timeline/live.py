"""Reading while it happens: a session that takes sound, frames and words in pieces, and a stream from a pipe."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from triemo.serving import printing
from triemo.serving.onnx.processing.media_sources_triemo import import_av, media_limits
from triemo.serving.onnx.processing.media_triemo import SOURCE_FRAME_RATE, check_sampling_rate
from triemo.serving.onnx.processing.recordings_triemo import FrameSampler, Piece, stream_container
from triemo.serving.onnx.processing.windows_triemo import Window, timed_words, window_plan
from triemo.serving.reading import load_reader
from triemo.serving.timeline.marks import clock
from triemo.serving.timeline.recordings import Moment, moment_of

__all__ = ["StreamingSession", "live"]

_LONGEST_SECONDS = 7 * 86_400.0


class StreamingSession:
    """
    Windows of a recording that comes in pieces, each as soon as it is complete: the same windows and answers as from
    the file, about a third of a window after it ends.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline, or an `OnnxEmotionReader`.
        tracks: which of "sound" and "picture" will be pushed.
        sampling_rate: of the sound, in Hz, until a push says otherwise; by default the rate that the model hears.
        chunk_length_s, stride_length_s, people: as in the pipeline.
        options: of the image processor, such as `num_frames`.

    Raises:
        ValueError: no such track, rate or window.

    Example:
        >>> session = StreamingSession(reader, sampling_rate=48000)
        >>> for samples, frame, seconds in camera:
        ...     for moment in session.push(sound=samples, frames=[(seconds, frame)]):
        ...         print(moment.start, moment.label)
        >>> session.close()
    """

    def __init__(
        self,
        reader: Any,
        tracks: Sequence[str] = ("sound", "picture"),
        sampling_rate: int | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: Any = None,
        people: Any = "main",
        **options: Any,
    ) -> None:
        if not tracks or set(tracks) - {"sound", "picture"}:
            raise ValueError(f"tracks must be some of 'sound' and 'picture', got {tracks!r}.")
        plan = window_plan(chunk_length_s, stride_length_s)
        self._reader, self._options = reader, options
        self._cutter = reader.processor.window_cutter(plan, tracks, people=people, **options)
        self.frame_rate = reader.processor.window_frame_rate(plan, **options)
        self._sampler = FrameSampler(self.frame_rate)
        self.sampling_rate = self._rate = self._cutter.sampling_rate  # that the model hears
        self._resampler: Any = None
        self._tune(self._rate if sampling_rate is None else sampling_rate)
        self._tracks = tuple(tracks)
        self._samples = 0
        self._heard = 0.0  # seconds of sound, before the resampler
        self._latest, self._step = -1.0, 1 / SOURCE_FRAME_RATE

    @property
    def heard(self) -> float:
        """Seconds of sound that were pushed, silence by `until` among them."""
        return self._heard

    def push(
        self,
        sound: np.ndarray | None = None,
        frames: Iterable[tuple[float, np.ndarray]] = (),
        words: Any = None,
        sampling_rate: int | None = None,
        until: float | None = None,
    ) -> list[Moment]:
        """
        Takes in what came.

        Args:
            sound: (samples,) floats within -1..1 that follow on those before.
            frames: seconds from the beginning and picture (height, width, 3) uint8 RGB of each, in order of time.
            words: `[{"text", "timestamp": (start, end)}, ...]`, before the window in which they were said is complete.
            sampling_rate: of this sound and what follows, in Hz; by default as before.
            until: seconds from the beginning before which nothing else will come. Sound that is missing there is
                silence, so that a track that stands still does not hold up the other one.

        Returns:
            The windows that are complete now.

        Raises:
            ValueError: sound, frames or words of another form, or frames that run backwards.
        """
        windows: list[Window] = []
        if words:
            self._cutter.add_words(timed_words(words))
        if sampling_rate is not None and sampling_rate != self._rate:
            windows += self._hear(self._last_resampled())
            self._tune(sampling_rate)
        if sound is not None:
            windows += self._listen(_checked_sound(sound))
        for seconds, frame in frames:
            if not seconds > self._latest:
                raise ValueError(f"frames must be in order of time, got {seconds} s after {self._latest} s.")
            if self._latest >= 0:
                self._step = float(seconds) - self._latest
            self._latest = float(seconds)
            windows += self._see(self._sampler.push(self._latest, _checked_frame(frame)))
        if until is not None:
            missing = round((until - self._heard) * self._rate)
            if "sound" in self._tracks and missing > 0:
                windows += self._listen(np.zeros(missing, dtype=np.float32))
            if "picture" in self._tracks and until > self._latest:
                self._latest = float(until)
                windows += self._see([*self._sampler.skip(self._latest), (self._latest, None)])
        return self._read(windows)

    def close(self) -> list[Moment]:
        """The windows that are left where the recording ends."""
        windows: list[Window] = []
        windows += self._hear(self._last_resampled())
        windows += self._see(self._sampler.finish(self._step))
        return self._read([*windows, *self._cutter.finish()])

    def follow(self, pieces: Iterable[Piece]) -> Iterator[Moment]:
        """The windows of a stream that is decoded already, to its end."""
        for piece in pieces:
            yield from self._read(self._cutter.push(piece))
        yield from self._read(self._cutter.finish())

    def _listen(self, sound: np.ndarray) -> list[Window]:
        self._heard += len(sound) / self._rate
        return self._hear(self._resampled(sound))

    def _hear(self, sound: np.ndarray) -> list[Window]:
        if not len(sound):
            return []
        self._samples += len(sound)
        return self._cutter.push(Piece("sound", self._samples / self._cutter.sampling_rate, sound=sound))

    def _see(self, shown: Iterable[tuple[float, Any]]) -> list[Window]:
        return [
            window for seconds, frame in shown for window in self._cutter.push(Piece("picture", seconds, None, frame))
        ]

    def _tune(self, sampling_rate: Any) -> None:
        """Sound has this rate from now on."""
        self._rate, self._resampler = check_sampling_rate(sampling_rate), None
        if self._rate != self._cutter.sampling_rate:
            self._resampler = import_av().AudioResampler(format="flt", layout="mono", rate=self._cutter.sampling_rate)

    def _resampled(self, sound: np.ndarray) -> np.ndarray:
        if self._resampler is None or not len(sound):
            return sound
        frame = import_av().AudioFrame.from_ndarray(np.ascontiguousarray(sound)[None], format="flt", layout="mono")
        frame.sample_rate = self._rate
        return _floats(self._resampler.resample(frame))

    def _last_resampled(self) -> np.ndarray:
        """What the resampler still holds."""
        return _floats(self._resampler.resample(None) if self._resampler is not None and self._samples else [])

    def _read(self, windows: Sequence[Window]) -> list[Moment]:
        items = []
        for window in windows:
            tensors = self._reader.processor.window_tensors(window, **self._options)
            window.release()
            items.append({**tensors, "window": window, "is_last": False})
        return [moment_of(self._reader, output) for output in self._reader.read_together(items)]


def _checked_sound(sound: Any) -> np.ndarray:
    samples = np.asarray(sound)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"sound must be floats of shape (samples,), got {samples.dtype} of shape {samples.shape}.")
    if not np.isfinite(samples).all():
        raise ValueError("sound must hold finite samples, got NaN or infinity.")
    return samples.astype(np.float32)


def _checked_frame(frame: Any) -> np.ndarray:
    pixels = np.asarray(frame)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"frames must be uint8 RGB of shape (height, width, 3), got {pixels.dtype} of shape {pixels.shape}."
        )
    return pixels


def _floats(frames: Sequence[Any]) -> np.ndarray:
    parts = [frame.to_ndarray()[0] for frame in frames]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def live(
    source: str,
    *,
    input_format: str | None = None,
    model: str | None = None,
    device: str | None = None,
    as_json: bool = False,
    **options: Any,
) -> None:
    """
    Read a stream and print each window as it is complete, until it ends or Ctrl-C is pressed.

    Args:
        source: "-" for what comes in a pipe, else a device, pipe or file as FFmpeg names it.
        input_format: as FFmpeg names it ("v4l2", "mpegts", ...); by default guessed.
        as_json: a JSON document a line.
        options: `chunk_length_s`, `stride_length_s`, `people`.

    Raises:
        ValueError: the stream cannot be read, or holds neither sound nor picture.
    """
    av = import_av()
    reader = load_reader(model, device)
    console = Console()
    name = "<stdin>" if source == "-" else source
    try:
        with (
            media_limits(seconds=_LONGEST_SECONDS),
            av.open(sys.stdin.buffer if source == "-" else source, format=input_format) as container,
        ):
            tracks = [
                track
                for track, kind in (("sound", "audio"), ("picture", "video"))
                if any(stream.type == kind for stream in container.streams)
            ]
            session = StreamingSession(reader, tracks, **options)
            pieces = stream_container(container, name, session.sampling_rate, session.frame_rate)
            for moment in session.follow(pieces):
                _print(console, moment, as_json)
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"Cannot read a stream from {name}: {error}.") from error
    except KeyboardInterrupt:
        return


def _print(console: Console, moment: Moment, as_json: bool) -> None:
    if as_json:
        print(json.dumps(moment.row(), ensure_ascii=False), flush=True)
        return
    told = (
        "nothing to read" if moment.label is None else f"{moment.label:<10} {printing.percent(moment.confidence or 0)}"
    )
    read = f"  ({printing.listed(moment.modalities)})" if moment.modalities else ""
    console.print(f"{clock(moment.start):>8} - {clock(moment.end):<8} {told}{read}", markup=False, highlight=False)
