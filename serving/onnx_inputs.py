"""From one input, as people give it, to the arrays an exported graph takes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from triemo.serving.onnx_processing.clips_triemo import Clip
from triemo.serving.onnx_processing.face_crops_triemo import picture_arrays
from triemo.serving.onnx_processing.faces_triemo import resolve_face_detector
from triemo.serving.onnx_processing.image_settings_triemo import checked_image_settings
from triemo.serving.onnx_processing.media_sources_triemo import fetch, is_media_source
from triemo.serving.onnx_processing.media_triemo import load_audio, waveform_from_array
from triemo.serving.onnx_processing.samples_triemo import has_sound, read_input, sample_frames
from triemo.serving.onnx_processing.sampling_rates_triemo import check_sampling_rate, resample_by_ffmpeg
from triemo.serving.subsets import MASKS

__all__ = ["OnnxInputs"]


class OnnxInputs:
    """
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
        self._make_detector = make_detector
        self._detectors: dict[tuple[int, int], Any] = {}
        if "text" in self.modalities:
            file = folder / "tokenizer.json"
            if not file.is_file():
                raise ValueError(f"model: no tokenizer.json beside the graph in {folder}.")
            self.pad_token_id = facts["text"]["pad_token_id"]
            self._tokenizer = Tokenizer.from_file(str(file))
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(facts["text"]["max_length"])
        if "audio" in self.modalities:
            self._sampling_rate = facts["audio"]["sampling_rate"]
        if "vision" in self.modalities:
            self._settings = checked_image_settings(facts["vision"])
            self._video_frame_rate = facts["video_frame_rate"]

    def arrays(
        self,
        input_: Any,
        use_sound_track: bool = True,
        sampling_rate: int | None = None,
        **clip_options: Any,
    ) -> dict[str, np.ndarray]:
        """
        The arrays of what an input has, a batch of one.

        Args:
            input_: as the pipeline takes it.
            use_sound_track: whether the sound of a video counts.
            sampling_rate: of sound given as an array, in Hz.
            clip_options: `num_frames`, `frame_rate` (Hz).

        Raises:
            ValueError: unknown keys, unreadable media, a modality that the graph lacks, or nothing to read from.
        """
        given = read_input(input_)
        clip = fetch(given.get("videos"))
        data = self._text(given.get("text"))
        sound = given.get("audio")
        if sound is None and "audio" in self.modalities and use_sound_track and has_sound(clip):
            sound = clip
        for name, modality in (("text", "text"), ("audio", "audio"), ("videos", "vision"), ("images", "vision")):
            if given.get(name) is not None and modality not in self.modalities:
                raise ValueError(f"the input has {name}, but this model has no {modality} (it has {self.modalities}).")
        if sound is not None:
            waveform = self._waveform(sound, sampling_rate)
            data["input_values"] = waveform[None]
            data["audio_attention_mask"] = np.ones((1, len(waveform)), dtype=np.int64)
        if "vision" in self.modalities:
            settings = checked_image_settings({**self._settings, **clip_options})
            frames = sample_frames(given.get("images"), clip, settings["num_frames"], settings["frame_rate"])
            if frames is not None:
                pictures, _ = picture_arrays([Clip(*frames)], settings, lambda: self._detector(settings))
                data |= pictures
        if not any(data[mask].any() for mask in MASKS.values() if mask in data):
            raise ValueError("no face was found, and the input has neither text nor sound besides.")
        return data

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
            kind = np.float32 if name in ("input_values", "pixel_values", "video_times") else np.int64
            given[name] = np.zeros([batch, 1, *shape[2:]], dtype=kind)
        return given

    def modality_mask(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """(batch, 3) bool: which of text, audio, vision each sample has."""
        batch = len(next(iter(arrays.values())))
        absent = np.zeros(batch, dtype=bool)
        return np.stack([arrays[mask].any(1) if mask in arrays else absent for mask in MASKS.values()], axis=1)

    def _text(self, text: Any) -> dict[str, np.ndarray]:
        if text is None:
            return {}
        if not isinstance(text, str):
            raise ValueError(f"text must be a string, got {type(text).__name__}.")
        if not text.strip():
            return {}
        tokens = np.array([self._tokenizer.encode(text).ids], dtype=np.int64) if "text" in self.modalities else None
        return {} if tokens is None else {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}

    def _waveform(self, source: Any, sampling_rate: int | None) -> np.ndarray:
        """Mono samples at the graph's rate. Arrays are resampled by FFmpeg, as files are; torch is not asked."""
        if is_media_source(source):
            return load_audio(source, self._sampling_rate)
        rate = sampling_rate
        if isinstance(source, Mapping):
            rate = source.get("sampling_rate")
            source = source.get("array", source.get("raw"))
            if rate is None:
                raise ValueError('Sound given as {"array", ...} must state its "sampling_rate" in Hz, got none.')
        waveform = waveform_from_array(source)
        rate = self._sampling_rate if rate is None else check_sampling_rate(rate)
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
