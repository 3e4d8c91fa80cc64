"""One processor for text, sound and pictures: what people have, to the tensors that the model takes.

Shapes: B samples; each modality keeps its own length and is padded to the longest of the batch.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import TensorType, logging

from .media_sources_triemo import fetch, is_media_source
from .media_triemo import load_audio
from .pictures_triemo import DEFAULT_IMAGE_SETTINGS
from .samples_triemo import has_sound, sample_frames, stack_padded

__all__ = ["TriemoProcessor"]

logger = logging.get_logger(__name__)

_TEXT_OPTIONS = ("padding", "truncation", "max_length", "pad_to_multiple_of", "return_token_type_ids")


class TriemoProcessor(ProcessorMixin):
    """
    Wraps a fast tokenizer, a `TriemoFeatureExtractor` (or another sequence feature extractor) and a
    `TriemoImageProcessor`.

    Args:
        image_processor: for frames and stills.
        feature_extractor: for sound.
        tokenizer: for text.
    """

    def __init__(self, image_processor: Any, feature_extractor: Any, tokenizer: Any) -> None:
        super().__init__(image_processor, feature_extractor, tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Raises ValueError where the vocabulary is missing, for every word would be unknown."""
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        tokenizer = processor.tokenizer
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ValueError(
                f"{pretrained_model_name_or_path} has no tokenizer.json, or one without words: all text would be read "
                "as unknown. Copy it from the tokenizer's checkpoint, or save the processor there once more."
            )
        return processor

    @property
    def model_input_names(self) -> list[str]:
        """Keys that a call may return."""
        parts = (self.tokenizer, self.feature_extractor, self.image_processor)
        return list(dict.fromkeys(name for part in parts for name in part.model_input_names))

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        *,
        sampling_rate: int | None = None,
        use_sound_track: bool = True,
        return_tensors: str | TensorType | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Prepare one sample or a batch. Give any of the modalities; in a batch, None stands for what a sample lacks.

        Args:
            images: a still (path, URL, bytes, `{"bytes", "path"}`, array, tensor, PIL image); a list is a batch of
                stills.
            text: a string or a list of strings. An empty one counts as absent.
            videos: a clip: a file as above, a list of frames, an array (frames, height, width, channels), a tensor
                (frames, channels, height, width); a list of clips is a batch. Frames are sampled by the image
                processor's `num_frames` and `frame_rate`.
            audio: sound as path, URL, bytes, `{"bytes", "path"}`, `{"array", "sampling_rate"}` or array (samples,); a
                list of these is a batch.
            sampling_rate: of arrays that do not state theirs, in Hz.
            use_sound_track: when no `audio` is given, take the sound of the video files that have any.
            return_tensors: `"pt"` or `"np"`.
            kwargs: options of the tokenizer (`padding`, `truncation`, `max_length`) and fields of the image processor
                (`num_frames=8`, `face_detector=None`, ...) for this call.

        Returns:
            The tensors of the modalities that at least one sample has, with their masks; a sample without one has
            zeros under a mask of zeros.

        Raises:
            ValueError: nothing given, batches of different sizes, a sample with both a still and a video, an unknown
                option, or media that cannot be read; in a batch the sample's position is named.
        """
        unknown = set(kwargs) - set(_TEXT_OPTIONS) - set(DEFAULT_IMAGE_SETTINGS)
        if unknown:
            options = sorted([*_TEXT_OPTIONS, *DEFAULT_IMAGE_SETTINGS])
            raise ValueError(f"unknown options {sorted(unknown)}; accepted: {', '.join(options)}.")
        samples = {
            "images": _as_batch("images", images),
            "text": _as_batch("text", text),
            "videos": _as_batch("videos", videos),
            "audio": _as_batch("audio", audio),
        }
        sizes = {name: len(values) for name, values in samples.items() if values is not None}
        if not sizes:
            raise ValueError("nothing to process: give at least one of text, audio, videos, images.")
        if len(set(sizes.values())) > 1:
            raise ValueError(f"all modalities must have the same number of samples, got {sizes}.")
        size = next(iter(sizes.values()))
        stills, texts, clips, sounds = (values or [None] * size for values in samples.values())
        image_options = {name: kwargs[name] for name in kwargs if name in DEFAULT_IMAGE_SETTINGS}

        own = {name: getattr(self.image_processor, name) for name in ("num_frames", "frame_rate")}
        sampling = {name: image_options.get(name, value) for name, value in own.items()}
        frames, waveforms = [], []
        for row in range(size):
            try:
                clip = fetch(clips[row])  # once, for frames and sound
                frames.append(sample_frames(stills[row], clip, **sampling))
                sound = sounds[row]
                if sound is None and audio is None and use_sound_track and has_sound(clip):
                    sound = clip
                waveforms.append(self._waveform(sound, sampling_rate))
            except ValueError as error:
                raise ValueError(f"sample {row}: {error}" if size > 1 else str(error)) from error
        data = {
            **self._text_tensors(texts, {name: kwargs[name] for name in kwargs if name in _TEXT_OPTIONS}),
            **self._audio_tensors(waveforms),
            **self._picture_tensors(frames, image_options),
        }
        if not data:
            raise ValueError("nothing to process: every sample is None or empty text.")
        return BatchFeature(data, tensor_type=return_tensors)

    def pad(self, features: list[Mapping[str, Any]], return_tensors: str | TensorType | None = "pt") -> BatchFeature:
        """
        Collate the results of single calls into one batch; it serves as a data collator. Samples may have different
        modalities and lengths; what one lacks becomes zeros under a mask of zeros.

        Args:
            features: dicts of tensors or arrays of shape (1, ...) or, for `labels`, any equal shapes.
            return_tensors: `"pt"` or `"np"`.
        """
        if not features:
            raise ValueError("pad needs at least one sample, got an empty list.")
        keys = dict.fromkeys(key for sample in features for key, value in sample.items() if value is not None)
        data: dict[str, np.ndarray] = {}
        for key in keys:
            rows = [None if sample.get(key) is None else np.asarray(sample[key]) for sample in features]
            if key == "labels":
                shapes = [None if row is None else row.shape for row in rows]
                if len(set(shapes)) > 1:
                    raise ValueError(f"labels must be in every sample and of one shape, got the shapes {shapes}.")
                data[key] = np.stack([row for row in rows if row is not None])
                continue
            data[key] = stack_padded(rows, self.tokenizer.pad_token_id if key == "input_ids" else 0)
        return BatchFeature(data, tensor_type=return_tensors)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As every processor's; besides, it writes the face detector's weights beside the settings."""
        files = super().save_pretrained(save_directory)
        save_detector = getattr(self.image_processor, "save_face_detector", None)
        files = [*files, *([] if save_detector is None else save_detector(save_directory))]
        if push_to_hub:  # only now: what is uploaded is what lies in the folder
            kwargs.setdefault("repo_id", os.path.basename(os.path.abspath(save_directory)))
            self.push_to_hub(**kwargs)
        return files

    def _waveform(self, source: Any, sampling_rate: int | None) -> np.ndarray | None:
        """Mono samples at the feature extractor's rate; None without sound."""
        if source is None:
            return None
        stated = isinstance(source, Mapping) or is_media_source(source) or hasattr(source, "get_all_samples")
        if not stated and sampling_rate is not None:
            source = {"array": source, "sampling_rate": sampling_rate}
        elif not stated:
            rate = self.feature_extractor.sampling_rate
            logger.warning_once(f"audio given as an array without sampling_rate is taken to be at {rate} Hz.")
        return load_audio(source, self.feature_extractor.sampling_rate)

    def _text_tensors(self, texts: list[str | None], options: dict) -> dict[str, np.ndarray]:
        for row, text in enumerate(texts):
            if text is not None and not isinstance(text, str):
                raise ValueError(f"text must be a string or a list of strings, got {type(text).__name__} at {row}.")
        present = np.array([bool(text and text.strip()) for text in texts])
        if not present.any():
            return {}
        settings = {"padding": True, "truncation": True, **options}
        tokens = self.tokenizer([text or "" for text in texts], return_tensors="np", **settings)
        # What stands in for no text is padding alone, as in `pad`.
        pad = {"input_ids": self.tokenizer.pad_token_id}
        kept = {name: np.where(present[:, None], values, pad.get(name, 0)) for name, values in tokens.items()}
        return {name: values.astype(np.int64) for name, values in kept.items()}

    def _audio_tensors(self, waveforms: list[np.ndarray | None]) -> dict[str, np.ndarray]:
        rows = [row for row, waveform in enumerate(waveforms) if waveform is not None]
        if not rows:
            return {}
        extracted = self.feature_extractor(
            [waveforms[row] for row in rows],
            sampling_rate=self.feature_extractor.sampling_rate,
            padding=True,
            return_attention_mask=True,
            return_tensors="np",
        )
        # Other libraries' extractors call the mask of sound `attention_mask`, which here is the text's.
        named = {"audio_attention_mask" if key == "attention_mask" else key: extracted[key] for key in extracted}
        return {key: _at_rows(value, rows, len(waveforms)) for key, value in named.items()}

    def _picture_tensors(self, frames: list[tuple[list, np.ndarray] | None], options: dict) -> dict[str, np.ndarray]:
        if not any(frames):
            return {}
        clips = [None if clip is None else clip[0] for clip in frames]
        times = [None if clip is None else clip[1] for clip in frames]
        return dict(self.image_processor(clips, times=times, return_tensors="np", **options))


def _as_batch(name: str, values: Any) -> list | None:
    """The samples of one modality: what is one clip, sound, still or string becomes a batch of one."""
    if values is None:
        return None
    if isinstance(values, (np.ndarray, torch.Tensor)):
        single = {"images": (2, 3), "videos": (4,), "audio": (1,)}.get(name, ())
        return [values] if values.ndim in single else list(values)
    if not isinstance(values, (list, tuple)):
        return [values]
    if len(values) == 0:
        raise ValueError(f"{name} is an empty list; expected at least one sample.")
    if name == "audio" and isinstance(values[0], (int, float, np.number)):
        return [values]
    if name == "videos" and not any(_is_clip(value) for value in values):
        return [values]
    return list(values)


def _is_clip(value: Any) -> bool:
    """Whether an item of a list of videos is a clip by itself rather than a frame of the only one."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim == 4
    return value is None or isinstance(value, (list, tuple)) or is_media_source(value)


def _at_rows(values: np.ndarray, rows: list[int], size: int) -> np.ndarray:
    """Rows of a smaller batch in their places in the whole one, zeros elsewhere."""
    placed = np.zeros((size, *values.shape[1:]), dtype=values.dtype)
    placed[rows] = values
    return placed
