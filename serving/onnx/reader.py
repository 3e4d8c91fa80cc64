"""The pipeline's call on onnxruntime, without torch: what `triemo export` wrote, from a file on disk to scores.

    reader = OnnxEmotionReader("onnx/")
    reader("clip.mp4", top_k=3)
    reader("interview.mp4", return_timestamps=True)
    reader([{"text": "Leave me alone."}, {"audio": "voice.wav"}], batch_size=2)

Needs onnxruntime, tokenizers, numpy, Pillow and, for sound and video files, PyAV; the command line also typer.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

from triemo.serving.onnx.faces import OnnxFaceDetector, load_session
from triemo.serving.onnx.processing.faces_triemo import resolve_face_detector
from triemo.serving.onnx.processing.media_sources_triemo import (
    current_limits,
    fetch,
    is_media_source,
    media_limits,
)
from triemo.serving.onnx.processing.media_triemo import (
    check_sampling_rate,
    from_rated_array,
    is_rated_array,
    load_audio,
    resample_by_ffmpeg,
    waveform_from_array,
)
from triemo.serving.onnx.processing.people_triemo import FaceTracks, checked_people
from triemo.serving.onnx.processing.pictures_triemo import Clip, checked_image_settings, picture_arrays
from triemo.serving.onnx.processing.presence_triemo import (
    NothingToReadError,
    check_text,
    is_absent,
    name_emoji,
    unheard,
    unknown_words,
    words_at,
)
from triemo.serving.onnx.processing.samples_triemo import (
    MASKS,
    TOLD,
    has_sound,
    present_modalities,
    read_input,
    sample_frames,
    stack_padded,
)
from triemo.serving.onnx.processing.window_reader_triemo import WindowReader, nothing_left
from triemo.serving.onnx.processing.windows_triemo import Recording, Window, WindowCutter, WindowPlan, window_plan
from triemo.training.export import GRAPHS, METADATA, TOKENIZER

__all__ = ["OnnxConfig", "OnnxEmotionReader", "OnnxInputs"]

_FLOATS = ("input_values", "pixel_values", "video_times")
_KINDS = {name: np.float32 if name in _FLOATS else np.int64 for name in (*_FLOATS, "input_ids", *MASKS.values())}
_TEXT_INPUTS = ("input_ids", "attention_mask")
_UNHEARD_RATE = 16_000  # Hz, of a recording's sound where the graph hears none


@dataclass(frozen=True)
class OnnxConfig:
    """What of a checkpoint's config the runtime needs; names as there."""

    id2label: dict[int, str]
    resolved_problem_type: str
    calibration_temperature: float | dict[str, float]
    min_score: float | dict[str, float] = 0.0
    sampling_rate: int | None = None
    video_frame_rate: float | None = None

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    def temperature_of(self, modality_mask: Sequence[bool]) -> float:
        """The calibration temperature for a sample that has these of text, audio, vision."""
        return _of_subset(self.calibration_temperature, modality_mask, 1.0)

    def min_score_of(self, modality_mask: Sequence[bool]) -> float:
        """The score below which the answer for such a sample is uncertain."""
        return _of_subset(self.min_score, modality_mask, 0.0)


def _of_subset(given: float | Mapping[str, float], modality_mask: Sequence[bool], default: float) -> float:
    if not isinstance(given, Mapping):
        return float(given)
    subset = "+".join(name for name, present in zip(MASKS, modality_mask, strict=True) if present)
    return float(given.get(subset, default))


class OnnxEmotionReader(WindowReader):
    """
    Emotion scores for one input or many; inputs and answers as those of the `multimodal-emotion-recognition` pipeline.

    Args:
        path: the folder that `triemo export` wrote, or one of its graphs.
        precision: "fp32" or "int8", which of the folder's graphs.
        threads: processor threads; as many as there are cores by default.

    Raises:
        ValueError: no graph there, or one that `triemo export` did not write.
    """

    def __init__(self, path: str | Path, precision: str = "fp32", threads: int | None = None) -> None:
        path = Path(path).expanduser()
        if precision not in GRAPHS:
            raise ValueError(f"precision must be one of {sorted(GRAPHS)}, got {precision!r}.")
        file = path / GRAPHS[precision] if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"model: no graph at {file}, expected what `triemo export` writes.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; its optimiser warns of nodes that it leaves as they are
        if threads is not None:
            options.intra_op_num_threads = threads
        # Weights stored in int8 are expanded when the file is loaded, and not again at every call.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = load_session(file, options)
        facts = _facts(file, self.session.get_modelmeta().custom_metadata_map.get(METADATA))
        self.config = OnnxConfig(
            dict(enumerate(facts["labels"])),
            facts["problem_type"],
            facts["calibration_temperature"],
            facts.get("min_score", 0.0),
            facts.get("audio", {}).get("sampling_rate"),
            facts.get("video_frame_rate"),
        )
        folder = file.parent
        if "vision" in facts["modalities"] and facts["vision"]["face_detector"] == "auto":
            if facts["vision"]["do_detect_faces"] and not OnnxFaceDetector.is_in(folder):
                print(f"triemo: {folder} has no face_*.onnx; opencv looks for faces and finds fewer.", file=sys.stderr)

        def make_detector(detection_size: int, min_face_size: int) -> OnnxFaceDetector | None:
            if not OnnxFaceDetector.is_in(folder):
                return None
            return OnnxFaceDetector(folder, options, detection_size, min_face_size)

        shapes = {entry.name: entry.shape for entry in self.session.get_inputs()}
        self.processor = OnnxInputs(facts, folder, shapes, make_detector)
        (logits,) = self.session.run(["logits"], _least_inputs(shapes))
        if not np.isfinite(logits).all():
            raise ValueError(f"model: {file} answers with numbers that are not finite; export it once more.")

    @property
    def model(self) -> "OnnxEmotionReader":
        """Itself: as of a pipeline, `reader.model.config` is the config."""
        return self

    def __call__(self, inputs: Any, batch_size: int = 1, **parameters: Any) -> Any:
        """
        The answer for one input, a list of them for a list; for a generator or a dataset, an iterator.

        Args:
            inputs: path, URL or bytes of a video, sound or image file, or a dict with any of `text`, `audio`, `video`,
                `image`; or many of these.
            batch_size: how many inputs go through the graph at once; they may differ in modalities and lengths.
            parameters: as of the pipeline, with the same answers: `top_k`, `candidate_labels`, `min_score`,
                `chunk_length_s`, `stride_length_s`, `return_timestamps`, `start`, `end`, `people`, `use_sound_track`,
                `sampling_rate` (Hz), `num_frames`, `frame_rate` (Hz), `limits`, `return_notes`, `explain`,
                `skip_unreadable`.

        Raises:
            ValueError: an unknown parameter or label, media that cannot be read, or nothing to read from.
        """
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        of_input, forward, answer = self.sorted_parameters(**parameters)
        is_list = isinstance(inputs, (list, tuple))
        if not (is_list or isinstance(inputs, Iterator) or hasattr(inputs, "select_columns")):
            (alone,) = self.read_numbered(_numbered(self, [inputs], of_input), 1, forward, {**answer, "alone": True})
            return alone
        if is_list and not inputs:
            raise ValueError("inputs: got an empty list, expected at least one input.")
        answers = self.read_numbered(_numbered(self, inputs, of_input), batch_size, forward, answer)
        return list(answers) if is_list else answers

    def prepare(self, input_: Any, return_notes: bool = False, **parameters: Any) -> dict[str, Any]:
        """One input in one piece, whatever its length, to the arrays of a batch of one (`OnnxInputs.arrays`)."""
        arrays, notes = self.processor.arrays(input_, **parameters)
        return {**arrays, "notes": [notes]} if return_notes else arrays

    def forward(
        self, arrays: Mapping[str, Any], explain: bool = False, candidate_labels: list[str] | None = None
    ) -> dict[str, Any]:
        """`logits` (batch, classes) and `modality_mask` (batch, 3) bool, which of text, audio, vision each has; with
        `explain` also a list of `explanation`."""
        given = {name: value for name, value in arrays.items() if name not in TOLD}
        whole = self.processor.completed(given)
        present = self.processor.modality_mask(whole)
        outputs: dict[str, Any] = {"logits": self._logits(whole), "modality_mask": present}
        if explain:
            outputs["explanation"] = self.explained(given, arrays.get("words") or [], present, candidate_labels)
        return outputs

    def _logits(self, given: dict[str, np.ndarray]) -> np.ndarray:
        """As the pipeline: text in several windows is read one after the other, and the mean weighted by tokens."""
        limit = self.processor.text_limit
        if limit is None or given["input_ids"].shape[1] <= limit:
            return self.session.run(["logits"], given)[0]
        mask = given["attention_mask"]
        total, weight = np.zeros((len(mask), self.config.num_labels), np.float32), np.zeros((len(mask), 1), np.float32)
        for start in range(0, mask.shape[1], limit):
            tokens = mask[:, start : start + limit].sum(1)
            rows = np.flatnonzero(tokens) if start else np.arange(len(mask))
            window = {
                name: value[rows][:, start : start + limit] if name in _TEXT_INPUTS else value[rows]
                for name, value in given.items()
            }
            read = np.maximum(tokens[rows, None], 1).astype(np.float32)
            total[rows] += read * self.session.run(["logits"], window)[0]
            weight[rows] += read
        return total / weight


def _numbered(
    reader: OnnxEmotionReader, inputs: Iterable[Any], parameters: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for number, input_ in enumerate(inputs):
        for window in reader.preprocess(input_, **parameters):
            yield {**window, "number": number}


def _facts(file: Path, described: str | None) -> dict[str, Any]:
    """A graph's description (`training.export.folder.describe`), once it is sure to be whole."""
    if described is None:
        raise ValueError(f"model: {file} carries no description, expected what `triemo export` writes.")
    try:
        facts = json.loads(described)
        modalities = facts["modalities"]
        expected = ["labels", "problem_type", "calibration_temperature"]
        expected += [name for name in modalities if name in MASKS]
        missing = [name for name in expected if name not in facts]
        temperature = facts.get("calibration_temperature", 1.0)
        temperatures = temperature.values() if isinstance(temperature, dict) else [temperature]
        is_whole = bool(facts.get("labels")) and set(modalities) <= set(MASKS) and not missing
        is_whole = is_whole and all(0 < value < math.inf for value in temperatures)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"model: the description in {file} is damaged ({error!r}); export it once more.") from error
    if not is_whole:
        lacks = f"lacks {missing}" if missing else "has no labels, unknown modalities or a temperature that is none"
        raise ValueError(f"model: the description in {file} {lacks}; export it once more.")
    return facts


def _least_inputs(shapes: Mapping[str, list]) -> dict[str, np.ndarray]:
    """One step of every modality, or a tenth of a second of silence."""
    steps = {"input_values": 1600, MASKS["audio"]: 1600}
    values = {
        name: np.zeros([1, steps.get(name, 1), *shape[2:]], dtype=_KINDS[name]) for name, shape in shapes.items()
    }
    return {name: value + 1 if name in MASKS.values() else value for name, value in values.items()}


def _tokenizer(file: Path) -> Tokenizer:
    if not file.is_file():
        raise ValueError(f"model: no {file.name} beside the graph in {file.parent}.")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # of the library, which raises no narrower class
        raise ValueError(f"model: {file} is damaged ({error}); copy or export it once more.") from error


class OnnxInputs:
    """
    From one input, as people give it, to the arrays that an exported graph takes.

    Args:
        facts: the graph's description (`training.export.describe`).
        folder: holds `tokenizer.json`.
        shapes: of the graph's inputs by name, numbers where a side is fixed.
        make_detector: the face detector for a detection size and a smallest face, None where there is none.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        folder: Path,
        shapes: Mapping[str, list],
        make_detector: Callable[[int, int], Any],
    ) -> None:
        self.modalities: tuple[str, ...] = tuple(facts["modalities"])
        self.shapes = shapes
        self.pad_token_id = 0
        self.text_limit: int | None = None
        self._make_detector = make_detector
        self._detectors: dict[tuple[int, int], Any] = {}
        if "text" in self.modalities:
            self.pad_token_id = facts["text"]["pad_token_id"]
            self._tokenizer = _tokenizer(folder / TOKENIZER)
            self._tokenizer.no_padding()
            self.text_limit = facts["text"]["max_length"]
            self._tokenizer.enable_truncation(self.text_limit)
            self._unknown = _unknown_token(self._tokenizer)
        self._sampling_rate: int = facts["audio"]["sampling_rate"] if "audio" in self.modalities else _UNHEARD_RATE
        self._settings: dict[str, Any] = {}
        if "vision" in self.modalities:
            self._settings = dict(checked_image_settings(facts["vision"]))
            self._video_frame_rate = facts["video_frame_rate"]

    def arrays(
        self,
        input_: Any,
        use_sound_track: bool = True,
        sampling_rate: int | None = None,
        limits: Any = None,
        **clip_options: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """
        The arrays of what an input has, a batch of one, and what was noticed of it.

        Args:
            input_: as the pipeline takes it.
            use_sound_track: whether the sound of a video counts.
            sampling_rate: of sound given as an array, in Hz.
            limits: fields of `MediaLimits`.
            clip_options: `num_frames`, `frame_rate` (Hz).

        Raises:
            ValueError: unknown keys, unreadable media, a modality that the graph lacks, or nothing to read from.
        """
        notes: list[str] = []
        with media_limits(limits):
            data = self._arrays(self._checked(read_input(input_)), use_sound_track, sampling_rate, clip_options, notes)
        if not present_modalities(data):
            raise NothingToReadError(nothing_left(notes))
        return data, notes

    def windows(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        *,
        chunk_length_s: float | None = None,
        stride_length_s: float | tuple[float, float] | None = None,
        start: float = 0.0,
        end: float | None = None,
        people: Any = "main",
        sampling_rate: int | None = None,
        use_sound_track: bool = True,
        limits: Any = None,
        **clip_options: Any,
    ) -> Iterator[tuple[Window, dict[str, np.ndarray]]]:
        """As `TriemoProcessor.windows`: one sample of any length in windows, each with its arrays, a batch of one."""
        plan = window_plan(chunk_length_s, stride_length_s)
        given = {"text": text, "videos": videos, "audio": audio, "images": images}
        given = self._checked({name: value for name, value in given.items() if not is_absent(value)})
        with media_limits(limits):
            sound = given.get("audio")
            if sound is not None and not is_media_source(sound):
                waveform = self._waveform(sound, sampling_rate, [])
                given["audio"] = {"array": waveform, "sampling_rate": self._sampling_rate}
            hears = use_sound_track and "audio" in self.modalities
            recording = Recording.of(given, self._sampling_rate, start, end, hears)
            if recording.fits(plan, people):
                window = Window(0.0, recording.seconds, text=recording.plain_text)
                whole = recording.given | ({} if window.text is None else {"text": window.text})
                arrays = self._arrays(whole, use_sound_track, None, clip_options, window.notes)
                if MASKS["vision"] in arrays:
                    seen = arrays[MASKS["vision"]]
                    window.faces = (int(seen.sum()), seen.shape[1])
                yield window, arrays
                return
            cutter = self.window_cutter(plan, recording.tracks, recording.start, people, **clip_options)
            everywhere = recording.place_words(cutter, lambda words: not self._encoded(words)[0].overflowing)
            frame_rate = self.window_frame_rate(plan, **clip_options)
            detection_size = self._settings.get("detection_size", 0)
            for window in recording.windows(cutter, frame_rate, detection_size):
                yield window, self.window_tensors(window, everywhere, **clip_options)

    def window_cutter(
        self, plan: WindowPlan, tracks: Iterable[str], start: float = 0.0, people: Any = "main", **clip_options: Any
    ) -> WindowCutter:
        """As `TriemoProcessor.window_cutter`."""
        settings = checked_image_settings({**self._settings, **clip_options}) if self._settings else {}
        faces = None
        if settings and self._detector(settings) is not None:
            faces = FaceTracks(settings, self._detector, self.window_frame_rate(plan, **clip_options))
        return WindowCutter(plan, self._sampling_rate, tracks, start, faces, checked_people(people))

    def window_frame_rate(self, plan: WindowPlan, **clip_options: Any) -> float:
        """Frames a second (Hz) of a window."""
        settings = {**self._settings, **clip_options}
        return plan.frame_rate(settings.get("num_frames"), settings.get("frame_rate"))

    def window_tensors(self, window: Window, text: str | None = None, **clip_options: Any) -> dict[str, np.ndarray]:
        """As `TriemoProcessor.window_tensors`."""
        window.text = text or window.text
        data = self._text(window.text, window.notes)
        if window.sound is not None:
            heard = self._heard(window.sound, window.notes)
            if not heard:
                window.sound = None
            data |= heard
        if window.frames and "vision" in self.modalities:
            settings = checked_image_settings({**self._settings, **clip_options})
            pictures, (notes,) = picture_arrays([window.clip(bool(data))], settings, self._detector)
            data |= pictures
            window.notes += notes
        return data

    def words_of(self, text: str) -> list[tuple[str, list[int]]]:
        """As `TriemoProcessor.words_of`."""
        encoded, named = self._encoded(text)
        return words_at(named, [pair for window in (encoded, *encoded.overflowing) for pair in window.offsets])

    def pad(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As `TriemoProcessor.pad`: batches of one to one batch."""
        names = dict.fromkeys(name for sample in samples for name in sample)
        told = {name: [one for sample in samples for one in sample[name]] for name in TOLD if name in names}
        padding = {"input_ids": self.pad_token_id}
        return told | {
            name: stack_padded([sample.get(name) for sample in samples], padding.get(name, 0))
            for name in names
            if name not in told
        }

    def _checked(self, given: dict[str, Any]) -> dict[str, Any]:
        """ValueError for a modality that the graph lacks."""
        for name, modality in (("text", "text"), ("audio", "audio"), ("videos", "vision"), ("images", "vision")):
            if given.get(name) is not None and modality not in self.modalities:
                raise ValueError(f"the input has {name}, but this model has no {modality} (it has {self.modalities}).")
        return given

    def _arrays(
        self,
        given: Mapping[str, Any],
        use_sound_track: bool,
        sampling_rate: int | None,
        clip_options: dict,
        notes: list[str],
    ) -> dict[str, np.ndarray]:
        clip = fetch(given.get("videos"))
        data = self._text(given.get("text"), notes)
        sound = given.get("audio")
        if sound is None and "audio" in self.modalities and use_sound_track and has_sound(clip):
            sound = clip
        if sound is not None:
            data |= self._heard(self._waveform(sound, sampling_rate, notes), notes)
        if "vision" in self.modalities:
            settings = checked_image_settings({**self._settings, **clip_options})
            frames = sample_frames(given.get("images"), clip, settings["num_frames"], settings["frame_rate"])
            if frames is not None:
                without_face = "absent" if given.get("images") is None else "crop" if data else "whole"
                pictures, (told,) = picture_arrays([Clip(*frames, without_face)], settings, self._detector)
                data |= pictures
                notes += told
        return data

    def _heard(self, waveform: np.ndarray, notes: list[str]) -> dict[str, np.ndarray]:
        """The arrays of a sound, none where nothing is heard in it."""
        reason = unheard(waveform, self._sampling_rate)
        if reason is not None:
            notes.append(reason)
            return {}
        return {"input_values": waveform[None], MASKS["audio"]: np.ones((1, len(waveform)), dtype=np.int64)}

    def completed(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All of the graph's inputs: one masked step of each modality that a batch lacks, and times for stills."""
        given = dict(arrays)
        batch = len(next(iter(arrays.values())))
        for name, shape in self.shapes.items():
            if name in given:
                continue
            if name == "video_times" and "pixel_values" in given:
                steps = np.arange(given["pixel_values"].shape[1], dtype=np.float32) / np.float32(
                    self._video_frame_rate
                )
                given[name] = np.broadcast_to(steps, (batch, len(steps))).copy()
                continue
            given[name] = np.zeros([batch, 1, *shape[2:]], dtype=_KINDS[name])
        return given

    def modality_mask(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """(batch, 3) bool: which of text, audio, vision each sample has."""
        batch = len(next(iter(arrays.values())))
        absent = np.zeros(batch, dtype=bool)
        return np.stack([arrays[mask].any(1) if mask in arrays else absent for mask in MASKS.values()], axis=1)

    def _text(self, text: Any, notes: list[str]) -> dict[str, np.ndarray]:
        if text is None:
            return {}
        check_text(text, 0)
        if "text" not in self.modalities:
            return {}
        encoded, _ = self._encoded(text)
        special = {
            token for token, is_special in zip(encoded.ids, encoded.special_tokens_mask, strict=True) if is_special
        }
        strange, own = unknown_words(encoded.ids, self._unknown, special - {self._unknown})
        if strange == own:
            notes.append(f"text: none of its {own} tokens is known to the tokenizer, so it counts as absent")
            return {}
        if 2 * strange > own:
            notes.append(f"text: {strange} of {own} tokens are unknown to the tokenizer (another script?)")
        windows = [encoded, *encoded.overflowing]
        if len(windows) > 1:
            total = sum(len(window.ids) - sum(window.special_tokens_mask) for window in windows)
            notes.append(f"text: its {total} tokens were read in {len(windows)} windows of at most {self.text_limit}")
        tokens = np.array([[token for window in windows for token in window.ids]], dtype=np.int64)
        return {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}

    def _encoded(self, text: str) -> tuple[Encoding, str]:
        """The tokens of a text, and the text as they were cut from it."""
        named = name_emoji(text, self._is_unknown)
        return self._tokenizer.encode(named), named

    def _is_unknown(self, character: str) -> bool:
        return self._unknown in self._tokenizer.encode(character, add_special_tokens=False).ids

    def _waveform(self, source: Any, sampling_rate: int | None, notes: list[str]) -> np.ndarray:
        """Mono samples at the graph's rate. Arrays are resampled by FFmpeg, as files are; torch is not asked."""
        if is_media_source(source):
            return load_audio(source, self._sampling_rate, notes)
        rate = sampling_rate
        if is_rated_array(source):
            source = from_rated_array(source)
        if isinstance(source, Mapping):
            rate = source.get("sampling_rate")
            source = source.get("array", source.get("raw"))
            if rate is None:
                raise ValueError('Sound given as {"array", ...} must state its "sampling_rate" in Hz, got none.')
        waveform = waveform_from_array(source, notes)
        rate = self._sampling_rate if rate is None else check_sampling_rate(rate)
        current_limits().check_sampling_rate(rate, "an array")
        return waveform if rate == self._sampling_rate else resample_by_ffmpeg(waveform, rate, self._sampling_rate)

    def _detector(self, settings: Mapping[str, Any]) -> Any:
        kind = settings["face_detector"] if settings["do_detect_faces"] else None
        if kind is None:
            return None
        sizes = (settings["detection_size"], settings["min_face_size"])
        if sizes not in self._detectors:
            own = self._make_detector(*sizes) if kind in ("auto", "mtcnn") else None
            self._detectors[sizes] = resolve_face_detector(own or kind, None, *sizes)
        return self._detectors[sizes]


def _unknown_token(tokenizer: Tokenizer) -> int | None:
    """The id of the token that stands for what the vocabulary lacks; None where there is none."""
    name = getattr(tokenizer.model, "unk_token", None)
    return None if name is None else tokenizer.token_to_id(name)
