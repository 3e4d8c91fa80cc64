"""One processor for text, sound and pictures: what people have, to the tensors that the model takes.

Shapes: B samples; each modality keeps its own length and is padded to the longest of the batch.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import TensorType, logging

from .media_sources_triemo import MediaLimits, fetch, is_media_source, media_limits
from .media_triemo import is_rated_array, load_audio
from .people_triemo import checked_people
from .pictures_triemo import DEFAULT_IMAGE_SETTINGS
from .presence_triemo import (
    NothingToReadError,
    check_text,
    is_absent,
    name_emoji,
    say_once,
    unheard,
    unknown_words,
    words_at,
)
from .samples_triemo import MASKS, TOLD, has_sound, sample_frames, stack_padded
from .windows_triemo import Recording, Window, WindowCutter, WindowPlan, window_plan

__all__ = ["TriemoProcessor", "with_named_emoji"]

logger = logging.get_logger(__name__)

# Options of the tokenizer and of the feature extractor that a call may give; the image processor's are its fields.
_TEXT_OPTIONS = (
    "add_special_tokens",
    "max_length",
    "pad_to_multiple_of",
    "padding",
    "padding_side",
    "return_attention_mask",
    "return_token_type_ids",
    "truncation",
)
_AUDIO_OPTIONS = (
    "max_length",
    "pad_to_multiple_of",
    "padding",
    "return_attention_mask",
    "sampling_rate",
    "truncation",
)
_FILE_FIELDS = {"audio_tokenizer", "auto_map", "chat_template", "processor_class"}  # of any processor's file
# The library's own nesting of a call's options by modality.
_NESTED = ("audio_kwargs", "common_kwargs", "images_kwargs", "text_kwargs", "videos_kwargs")


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

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As every processor's; a field of the file that nothing knows is a ValueError rather than left out."""
        unknown = sorted(set(processor_dict) - set(cls.get_attributes()) - _FILE_FIELDS)
        if unknown:
            raise ValueError(f"processor_config.json has the unknown field(s) {unknown}; is it of a newer version?")
        return super().from_args_and_dict(args, processor_dict, **kwargs)

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
        text_windows: bool = False,
        limits: MediaLimits | Mapping[str, float] | None = None,
        return_notes: bool = False,
        return_tensors: str | TensorType | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Prepare one sample or a batch. Give any of the modalities; in a batch, None, NaN, pandas' NA or an empty string
        stand for what a sample lacks. What carries nothing is treated as lacking too: sound in which nothing is heard
        (`unheard`), text of which the tokenizer knows no word, a clip without a face.

        Args:
            images: a still (path, URL, bytes, open file, `{"bytes", "path"}`, array, tensor, PIL image); a list is a
                batch of stills, and may nest each sample's in a list of one or none.
            text: a string or a list of strings. An emoji that the tokenizer does not know goes by its name.
            videos: a clip: a file as above, a list of frames, an array (frames, height, width, channels), a tensor
                (frames, channels, height, width); a list of clips is a batch. Frames are sampled by the image
                processor's `num_frames` and `frame_rate`.
            audio: sound as path, URL, bytes, open file, `{"bytes", "path"}`, `{"array", "sampling_rate"}`, array
                (samples,) or a tuple of array and rate in either order; a list of these is a batch.
            sampling_rate: of arrays that do not state theirs, in Hz.
            use_sound_track: when no `audio` is given, take the sound of the video files that have any.
            text_windows: keep text beyond the tokenizer's limit as further windows, one after the other in the same
                row, each as long as the limit and with its own special tokens. The pipeline reads one after the other;
                the model alone refuses more than its positions. By default it is cut, and the caller is told how much.
            limits: `MediaLimits`, or fields of it as a dict, for this call.
            return_notes: add `notes`, a list for each sample of what was noticed: what counts as absent and why, what
                was cut, how many faces there were. They are no tensors and not for the model; each begins with
                "text:", "audio:" or "vision:". Otherwise each kind is logged once.
            return_tensors: `"pt"` or `"np"`.
            kwargs: options of the tokenizer (`padding`, `truncation`, `max_length`, `add_special_tokens`, ...), which
                go before those stored with it, and fields of the image processor (`num_frames=8`,
                `face_detector=None`, ...), for this call; or nested as `text_kwargs`, `images_kwargs`,
                `videos_kwargs`, `audio_kwargs` (of the feature extractor) and `common_kwargs`.

        Returns:
            The tensors of the modalities that at least one sample has, with their masks; a sample without one has
            zeros under a mask of zeros.

        Raises:
            ValueError: nothing given, batches of different sizes, a sample with both a still and a video, an unknown
                option, text that is no valid Unicode, or media that cannot be read or are beyond the limits; in a
                batch the sample's position is named.
        """
        text_options, image_options, audio_options = _sorted_options(kwargs)
        sampling_rate = audio_options.pop("sampling_rate", sampling_rate)
        return_tensors = kwargs.get("common_kwargs", {}).get("return_tensors", return_tensors)
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
        notes: list[list[str]] = [[] for _ in range(size)]

        own = {name: getattr(self.image_processor, name) for name in ("num_frames", "frame_rate")}
        sampling = {name: image_options.get(name, value) for name, value in own.items()}
        frames, waveforms = [], []
        for row in range(size):
            try:
                with media_limits(limits):
                    clip = fetch(clips[row])  # once, for frames and sound
                    frames.append(sample_frames(stills[row], clip, **sampling))
                    sound = sounds[row]
                    if sound is None and audio is None and use_sound_track and has_sound(clip):
                        sound = clip
                    waveforms.append(self._waveform(sound, sampling_rate, notes[row]))
            except ValueError as error:
                raise ValueError(f"sample {row}: {error}" if size > 1 else str(error)) from error
        data = {
            **self._text_tensors(texts, text_options, text_windows, notes),
            **self._audio_tensors(waveforms, audio_options),
        }
        # A still in which no face is found is taken whole if it is all there is of its sample.
        besides = [any(data[mask][row].any() for mask in MASKS.values() if mask in data) for row in range(size)]
        without_face = [
            "absent" if still is None else "crop" if other else "whole"
            for still, other in zip(stills, besides, strict=True)
        ]
        with media_limits(limits):
            data.update(self._picture_tensors(frames, without_face, image_options, notes))
        if not data:
            reasons = "; ".join(dict.fromkeys(note for said in notes for note in said))
            raise NothingToReadError(f"nothing to process: every sample is {reasons or 'None or empty text'}.")
        for modality, options in (("text", text_options), ("audio", audio_options)):
            if options.get("return_attention_mask") is False:
                data.pop(MASKS[modality], None)
        features = BatchFeature(data, tensor_type=return_tensors)
        if return_notes:
            features["notes"] = notes
        else:
            say_once(logger, [note for said in notes for note in said])
        return features

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
        limits: MediaLimits | Mapping[str, float] | None = None,
        return_tensors: str | TensorType | None = "pt",
        **kwargs: Any,
    ) -> Iterator[tuple[Window, BatchFeature]]:
        """
        One sample of any length in windows, each as the model takes it: a batch of one. The file is decoded once, as a
        stream, and memory does not grow with its length.

        What is no longer than a window and a third of one is a single window, prepared exactly as by a call.

        Args:
            images, text, videos, audio: one sample, as in a call. Words with times, `[{"text", "timestamp": (start,
                end)}, ...]` or the answer of the library's speech recognition, go to their windows; a string goes to
                each window if it is not longer than the tokenizer's limit, else its words are spread evenly.
            chunk_length_s: seconds of a window, 4 by default.
            stride_length_s: seconds that a window shares with each neighbour, one number or (left, right); 0 by
                default.
            start, end: the part of the recording to read, seconds; all by default.
            people: "main" reads in each window the face that is large, in the middle and moves its mouth when
                something is heard; "all" gives a window for each person, the sound and the words with the first; a
                box x0, y0, x1, y1 in pixels reads the person who is there.
            sampling_rate, use_sound_track, limits, return_tensors, kwargs: as in a call; `num_frames` are those of one
                window.

        Yields:
            The window, with its time, people and notes, and its tensors; no tensors where it holds nothing to read.

        Raises:
            ValueError: as in a call, and for windows that cannot be.
        """
        plan = window_plan(chunk_length_s, stride_length_s)
        given = {"text": text, "videos": videos, "audio": audio, "images": images}
        given = {name: value for name, value in given.items() if not is_absent(value)}
        rate = self.feature_extractor.sampling_rate if sampling_rate is None else sampling_rate
        with media_limits(limits):
            recording = Recording.of(given, rate, start, end, use_sound_track)
            if recording.fits(plan, people):
                yield self._whole(recording, sampling_rate, use_sound_track, limits, return_tensors, kwargs)
                return
            cutter = self.window_cutter(plan, recording.tracks, recording.start, people, **kwargs)
            everywhere = recording.place_words(cutter, self._fits)
            frame_rate, detection_size = self.window_frame_rate(plan, **kwargs), self.image_processor.detection_size
            for window in recording.windows(cutter, frame_rate, detection_size):
                yield window, self.window_tensors(window, everywhere, return_tensors, **kwargs)

    def window_cutter(
        self, plan: WindowPlan, tracks: Iterable[str], start: float = 0.0, people: Any = "main", **kwargs: Any
    ) -> WindowCutter:
        """
        What cuts a recording that comes piece by piece; the frames come at `window_frame_rate`.

        Args:
            plan: how long windows are.
            tracks: which of "sound" and "picture" will come.
            start: of the part that will come, seconds.
            people: as in `windows`.
            kwargs: fields of the image processor.
        """
        _, image_options, _ = _sorted_options(kwargs)
        faces = self.image_processor.face_tracks(image_options, self.window_frame_rate(plan, **kwargs))
        return WindowCutter(plan, self.feature_extractor.sampling_rate, tracks, start, faces, checked_people(people))

    def window_frame_rate(self, plan: WindowPlan, **kwargs: Any) -> float:
        """Frames a second (Hz) of a window."""
        _, options, _ = _sorted_options(kwargs)
        own = self.image_processor
        rate, count = options.get("frame_rate", own.frame_rate), options.get("num_frames", own.num_frames)
        return plan.frame_rate(count, rate)

    def window_tensors(
        self,
        window: Window,
        text: str | None = None,
        return_tensors: str | TensorType | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """
        The tensors of one window, a batch of one, none of what it lacks; what was noticed is added to its notes.

        Args:
            window: from a `WindowCutter`.
            text: said in every window, besides its own words.
            return_tensors: `"pt"` or `"np"`.
            kwargs: as in a call.
        """
        text_options, image_options, audio_options = _sorted_options(kwargs)
        audio_options.pop("sampling_rate", None)
        notes: list[list[str]] = [window.notes]
        window.text = text or window.text
        sound = window.sound
        if sound is not None:
            reason = unheard(sound, self.feature_extractor.sampling_rate)
            if reason is not None:
                window.notes.append(reason)
                window.sound = sound = None
        data = {
            **self._text_tensors([window.text], text_options, True, notes),
            **self._audio_tensors([sound], audio_options),
        }
        if window.frames:
            data.update(self.image_processor.window_arrays(window, image_options, has_more=bool(data)))
        return BatchFeature(data, tensor_type=return_tensors)

    def _whole(
        self,
        recording: Recording,
        sampling_rate: int | None,
        use_sound_track: bool,
        limits: MediaLimits | Mapping[str, float] | None,
        return_tensors: str | TensorType | None,
        options: dict[str, Any],
    ) -> tuple[Window, BatchFeature]:
        """A short sample as one window."""
        window = Window(0.0, recording.seconds, text=recording.plain_text)
        given = recording.given | ({} if recording.plain_text is None else {"text": recording.plain_text})
        try:
            features = self(
                # A list in a batch of one is one clip's frames or one sound's samples, not a batch.
                **{name: [value] for name, value in given.items()},
                sampling_rate=sampling_rate,
                use_sound_track=use_sound_track,
                text_windows=True,
                limits=limits,
                return_notes=True,
                return_tensors=return_tensors,
                **options,
            )
        except NothingToReadError as error:
            window.nothing = str(error)
            return window, BatchFeature({})
        (window.notes,) = features.pop("notes")
        if MASKS["vision"] in features:
            seen = features[MASKS["vision"]]
            window.faces = (int(seen.sum()), seen.shape[1])
        return window, features

    def _fits(self, text: str) -> bool:
        """Whether a text is within the tokenizer's limit."""
        return len(self.tokenizer(text, verbose=False)["input_ids"]) <= self.tokenizer.model_max_length

    def pad(self, features: list[Mapping[str, Any]], return_tensors: str | TensorType | None = "pt") -> BatchFeature:
        """
        Collate the results of single calls into one batch; it serves as a data collator. Samples may have different
        modalities and lengths; what one lacks becomes zeros under a mask of zeros.

        Args:
            features: dicts of tensors or arrays of shape (1, ...) or, for `labels`, any equal shapes; `notes` and
                `words` too, lists of one list.
            return_tensors: `"pt"` or `"np"`.
        """
        if not features:
            raise ValueError("pad needs at least one sample, got an empty list.")
        keys = dict.fromkeys(key for sample in features for key, value in sample.items() if value is not None)
        told = {
            name: [said for sample in features for said in sample.get(name) or [[]]] for name in TOLD if name in keys
        }
        data: dict[str, np.ndarray] = {}
        for key in (key for key in keys if key not in told):
            rows = [None if sample.get(key) is None else np.asarray(sample[key]) for sample in features]
            if key == "labels":
                shapes = [None if row is None else row.shape for row in rows]
                if len(set(shapes)) > 1:
                    raise ValueError(f"labels must be in every sample and of one shape, got the shapes {shapes}.")
                data[key] = np.stack([row for row in rows if row is not None])
                continue
            data[key] = stack_padded(rows, self.tokenizer.pad_token_id if key == "input_ids" else 0)
        batch = BatchFeature(data, tensor_type=return_tensors)
        batch.update(told)
        return batch

    def words_of(self, text: str) -> list[tuple[str, list[int]]]:
        """
        The words of a text, each with the steps of its tokens in what a call with `text_windows=True` returns for the
        text alone (`words_at`).
        """
        (named,) = with_named_emoji([text], self.tokenizer)
        settings = {**self._text_settings({}), "padding": False, "max_length": self.tokenizer.model_max_length}
        if settings["truncation"]:
            settings["return_overflowing_tokens"] = True
        windows = self.tokenizer([named], **settings, return_offsets_mapping=True)["offset_mapping"]
        return words_at(named, [pair for window in windows for pair in window])

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As every processor's; besides, it writes the face detector's weights beside the settings."""
        files = super().save_pretrained(save_directory)
        save_detector = getattr(self.image_processor, "save_face_detector", None)
        files = [*files, *([] if save_detector is None else save_detector(save_directory))]
        if push_to_hub:  # only now: what is uploaded is what lies in the folder
            kwargs.setdefault("repo_id", os.path.basename(os.path.abspath(save_directory)))
            self.push_to_hub(**kwargs)
        return files

    def _waveform(self, source: Any, sampling_rate: int | None, notes: list[str]) -> np.ndarray | None:
        """Mono samples at the feature extractor's rate; None without sound, or with nothing to hear in it."""
        if source is None:
            return None
        stated = isinstance(source, Mapping) or is_media_source(source) or hasattr(source, "get_all_samples")
        stated = stated or is_rated_array(source)
        rate = self.feature_extractor.sampling_rate
        if not stated and sampling_rate is not None:
            source = {"array": source, "sampling_rate": sampling_rate}
        elif not stated:
            logger.warning_once(f"audio given as an array without sampling_rate is taken to be at {rate} Hz.")
        waveform = load_audio(source, rate, notes)
        reason = unheard(waveform, rate)
        if reason is not None:
            notes.append(reason)
        return waveform if reason is None else None

    def _text_tensors(
        self, texts: list[str | None], options: dict, windows: bool, notes: list[list[str]]
    ) -> dict[str, np.ndarray]:
        for row, text in enumerate(texts):
            if text is not None:
                check_text(text, row)
        named = with_named_emoji(["" if text is None else text for text in texts], self.tokenizer)
        if not any(named):
            return {}
        settings = self._text_settings(options)
        tokens = dict(self.tokenizer(named, return_tensors="np", **settings))
        present = np.array([bool(text) for text in named])
        unknown, special = self.tokenizer.unk_token_id, set(self.tokenizer.all_special_ids)
        for row in np.flatnonzero(present).tolist():
            ids = tokens["input_ids"][row][tokens["attention_mask"][row] > 0].tolist()
            strange, own = unknown_words(ids, unknown, special)
            if strange == own:
                present[row] = False
                notes[row].append(f"text: none of its {own} tokens is known to the tokenizer, so it counts as absent")
            elif 2 * strange > own:
                notes[row].append(f"text: {strange} of {own} tokens are unknown to the tokenizer (another script?)")
        if not present.any():
            return {}
        if settings["truncation"]:
            tokens = self._beyond_the_limit(named, tokens, settings, windows, notes)
        # What stands in for no text is padding alone, as in `pad`.
        pad = {"input_ids": self.tokenizer.pad_token_id}
        kept = {name: np.where(present[:, None], values, pad.get(name, 0)) for name, values in tokens.items()}
        return {name: values.astype(np.int64) for name, values in kept.items()}

    def _text_settings(self, options: dict) -> dict[str, Any]:
        """A call's options of the tokenizer, then those stored with it, then ours."""
        stored = {name: value for name, value in self.tokenizer.init_kwargs.items() if name in _TEXT_OPTIONS}
        return {"padding": True, "truncation": True, **stored, **options, "return_attention_mask": True}

    def _beyond_the_limit(
        self, texts: list[str], tokens: dict[str, np.ndarray], settings: dict, windows: bool, notes: list[list[str]]
    ) -> dict[str, np.ndarray]:
        """The tokens; what was cut follows as further windows in the row if `windows`, else a note tells of it."""
        limit = settings.get("max_length") or self.tokenizer.model_max_length
        full = np.flatnonzero(tokens["attention_mask"].sum(axis=1) >= limit)
        rows = {name: list(np.split(values, len(texts))) for name, values in tokens.items()}
        special = self.tokenizer.num_special_tokens_to_add() if settings.get("add_special_tokens", True) else 0
        for row in full.tolist():
            whole = self.tokenizer(
                texts[row], **{**settings, "padding": False, "max_length": limit}, return_overflowing_tokens=True
            )
            parts = whole["input_ids"]
            cut = sum(len(part) - special for part in parts[1:])
            if cut > 0 and windows:
                for name in tokens:
                    rows[name][row] = np.concatenate(whole[name])[None]
                count = cut + limit - special
                notes[row].append(f"text: its {count} tokens were read in {len(parts)} windows of at most {limit}")
            elif cut > 0:
                notes[row].append(
                    f"text: the last {cut} of {cut + limit - special} tokens were cut off (limit {limit})"
                )
        if not windows:
            return tokens
        pad = {"input_ids": self.tokenizer.pad_token_id}
        return {name: stack_padded(values, pad.get(name, 0)) for name, values in rows.items()}

    def _audio_tensors(self, waveforms: list[np.ndarray | None], options: dict) -> dict[str, np.ndarray]:
        rows = [row for row, waveform in enumerate(waveforms) if waveform is not None]
        if not rows:
            return {}
        extracted = self.feature_extractor(
            [waveforms[row] for row in rows],
            sampling_rate=self.feature_extractor.sampling_rate,
            return_tensors="np",
            **{"padding": True, **options, "return_attention_mask": True},
        )
        # Other libraries' extractors call the mask of sound `attention_mask`, which here is the text's.
        named = {"audio_attention_mask" if key == "attention_mask" else key: extracted[key] for key in extracted}
        return {key: _at_rows(value, rows, len(waveforms)) for key, value in named.items()}

    def _picture_tensors(
        self,
        frames: list[tuple[list, np.ndarray] | None],
        without_face: list[str],
        options: dict,
        notes: list[list[str]],
    ) -> dict[str, np.ndarray]:
        if not any(frames):
            return {}
        clips = [None if clip is None else clip[0] for clip in frames]
        times = [None if clip is None else clip[1] for clip in frames]
        data = dict(
            self.image_processor(
                clips, times=times, without_face=without_face, return_notes=True, return_tensors="np", **options
            )
        )
        for said, more in zip(notes, data.pop("notes"), strict=True):
            said += more
        return data


def with_named_emoji(texts: Sequence[str], tokenizer: Any) -> list[str]:
    """The texts with each emoji that a tokenizer of the library has no token for by its name (`name_emoji`)."""
    unknown = tokenizer.unk_token_id

    @cache
    def is_unknown(character: str) -> bool:
        return unknown is not None and unknown in tokenizer(character, add_special_tokens=False)["input_ids"]

    return [name_emoji(text, is_unknown) for text in texts]


def _sorted_options(kwargs: Mapping[str, Any]) -> tuple[dict, dict, dict]:
    """A call's options for the tokenizer, the image processor and the feature extractor; ValueError for others."""
    flat = {name: value for name, value in kwargs.items() if name not in _NESTED}
    common = {name: value for name, value in (kwargs.get("common_kwargs") or {}).items() if name != "return_tensors"}
    pictures = {**(kwargs.get("images_kwargs") or {}), **(kwargs.get("videos_kwargs") or {})}
    nested = {"text": kwargs.get("text_kwargs") or {}, "images": pictures, "audio": kwargs.get("audio_kwargs") or {}}
    known = {"text": _TEXT_OPTIONS, "images": tuple(DEFAULT_IMAGE_SETTINGS), "audio": _AUDIO_OPTIONS}
    unknown = set(flat) | set(common)
    unknown -= {*_TEXT_OPTIONS, *DEFAULT_IMAGE_SETTINGS}
    for modality, options in nested.items():
        unknown |= set(options) - set(known[modality])
        twice = sorted(set(options) & set(flat) & set(known[modality]))
        if twice and modality != "audio":
            raise ValueError(f"options {twice} were given both by themselves and under {modality}_kwargs.")
    if unknown:
        options = sorted({*_TEXT_OPTIONS, *DEFAULT_IMAGE_SETTINGS, *_AUDIO_OPTIONS, *_NESTED})
        raise ValueError(f"unknown options {sorted(unknown)}; accepted: {', '.join(options)}.")
    given = {**common, **flat}
    # By themselves, padding and the like are the tokenizer's: the lengths of text and sound have nothing in common.
    shared = {name: given[name] for name in ("return_attention_mask",) if name in given}
    return (
        {**{name: given[name] for name in given if name in _TEXT_OPTIONS}, **nested["text"]},
        {**{name: given[name] for name in given if name in DEFAULT_IMAGE_SETTINGS}, **nested["images"]},
        {**shared, **nested["audio"]},
    )


def _as_batch(name: str, values: Any) -> list | None:
    """The samples of one modality, None for those that lack it: what is one clip, sound, still or string becomes a
    batch of one."""
    if values is None:
        return None
    return [None if is_absent(value) else value for value in _listed(name, values)]


def _listed(name: str, values: Any) -> list:
    if isinstance(values, (np.ndarray, torch.Tensor)):
        single = {"images": (2, 3), "videos": (4,), "audio": (1,)}.get(name, ())
        return [values] if values.ndim in single else list(values)
    if not isinstance(values, (list, tuple)) or name == "audio" and is_rated_array(values):
        return [values]
    if len(values) == 0:
        raise ValueError(f"{name} is an empty list; expected at least one sample.")
    if name == "audio" and isinstance(values[0], (int, float, np.number)) and not is_absent(values[0]):
        return [values]
    if name == "videos" and not any(_is_clip(value) for value in values):
        return [values]
    if name == "images":
        return [_single_still(row, value) for row, value in enumerate(values)]
    return list(values)


def _single_still(row: int, value: Any) -> Any:
    """A sample's still, which may stand in a list of one; None for an empty list."""
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) > 1:
        raise ValueError(f"images: sample {row} has {len(value)} stills, expected one; frames of a clip go to videos.")
    return value[0] if value else None


def _is_clip(value: Any) -> bool:
    """Whether an item of a list of videos is a clip by itself rather than a frame of the only one."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim == 4
    return isinstance(value, (list, tuple)) or is_absent(value) or is_media_source(value)


def _at_rows(values: np.ndarray, rows: list[int], size: int) -> np.ndarray:
    """Rows of a smaller batch in their places in the whole one, zeros elsewhere."""
    placed = np.zeros((size, *values.shape[1:]), dtype=values.dtype)
    placed[rows] = values
    return placed
