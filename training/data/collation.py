"""Rows of a corpus to the model's batch: media decoded and processed, labels encoded, augmentation while training.

Shapes: B samples, F frames of a clip, S audio samples; everything is padded to the longest of the batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from triemo.modeling import MODALITIES
from triemo.modeling.inputs_triemo import MASKS, present_modalities
from triemo.processing import TriemoProcessor, load_audio, probe_media
from triemo.processing.presence_triemo import NothingToReadError
from triemo.training.common import joined_seed
from triemo.training.data.augmentation import augment_log_mel, warp_log_mel

__all__ = [
    "INPUTS",
    "MASKS",
    "PROBLEM_TYPES",
    "EmotionCollator",
    "NoModalityError",
    "augment_frames",
    "augment_waveform",
    "encode_label",
    "only",
    "present_modalities",
]

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
# Precomputed vectors: the column of a table, the tensor it becomes.
VECTORS = {"text": "text_features", "audio": "input_features", "vision": "vision_features"}
INPUTS = {
    "text": ("input_ids", "token_type_ids"),
    "audio": ("input_values", "audio_times"),
    "vision": ("pixel_values", "video_times"),
}


class NoModalityError(ValueError):
    """A row is readable but holds nothing for the model: no words, no sound, no face found."""


class EmotionCollator:
    """
    Turns rows `{"text", "audio", "video", "image", "label"}` (each optional; `text_features`, `audio_features` and
    `vision_features` hold precomputed vectors) into a batch of the model. `row` is what errors call a row.

    The random draws of a row depend on `seed` and on its `ticket` alone (a number that the sampler gives out, another
    one in every epoch). So they are the same in a resumed run, with any number of workers and of processes, and no
    other random number of the training moves.

    Args:
        processor: a [`TriemoProcessor`].
        label2id: class names and ids; None for regression.
        problem_type: one of `PROBLEM_TYPES`.
        augment: vary sound and pictures; only for training.
        seed: of the augmentation.
        modalities: what the model has of text, audio, vision; the rest of a row is left alone.
        soft_labels: single-label targets as probabilities (B, classes), for corpora where some rows name several
            classes.
        max_length: longest text in tokens; None for the tokenizer's own limit.
    """

    def __init__(
        self,
        processor: TriemoProcessor,
        label2id: Mapping[str, int] | None = None,
        problem_type: str = PROBLEM_TYPES[0],
        augment: bool = False,
        seed: int = 0,
        modalities: Sequence[str] = MODALITIES,
        soft_labels: bool = False,
        max_length: int | None = None,
    ) -> None:
        if problem_type not in PROBLEM_TYPES:
            raise ValueError(f"problem_type: got {problem_type!r}, expected one of {', '.join(PROBLEM_TYPES)}.")
        if problem_type != "regression" and not label2id:
            raise ValueError(f"label2id: got {label2id!r}, expected class names and ids for {problem_type}.")
        self.processor, self.label2id, self.problem_type = processor, dict(label2id or {}), problem_type
        self.augment, self.seed, self.modalities = augment, seed, tuple(modalities)
        self.soft_labels, self.max_length = soft_labels, max_length

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Raises:
            ValueError: naming the row: media that cannot be read, nothing in it for the model, an unknown label.
        """
        return self.collate([self.prepare(row) for row in rows])

    def collate(self, samples: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows that `prepare` has made tensors of, as a batch."""
        return dict(self.processor.pad(samples))

    def prepare(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors (1, ...) of one row and its target, `labels`."""
        sample: dict[str, Any] = dict(self.encode(row))
        label = self.encode_label(row)
        return sample if label is None else {**sample, "labels": label}

    def encode(self, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """
        Tensors (1, ...) of one row, without its label.

        Raises:
            NoModalityError: when no word, no sound and no face is in it, or all that is there is silence or unknown.
            ValueError: naming the row, when its media cannot be read.
        """
        where = row.get("row") or "row"
        with torch.random.fork_rng(devices=[], enabled=self.augment):
            if self.augment:
                torch.manual_seed(joined_seed(self.seed, int(row.get("ticket") or 0)))
            try:
                sample = self.process(row)
            except (NoModalityError, NothingToReadError) as error:
                raise NoModalityError(f"{where}: {error}") from error
            except (ValueError, OSError) as error:
                raise ValueError(f"{where}: {error}") from error
        return sample

    def process(self, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        sources = self.sources(row)
        sample: dict[str, torch.Tensor] = {}
        if sources:
            if self.augment and self.takes_waveform:
                self.augment_sound(sources)
            options = {} if self.max_length is None else {"max_length": self.max_length}
            sample = dict(self.processor(**sources, use_sound_track="audio" in self.modalities, **options))
        if self.augment:
            self.augment_tensors(sample)
        for modality in self.modalities:
            vectors = row.get(f"{modality}_features")
            if vectors is not None:
                sample[VECTORS[modality]] = torch.tensor(vectors, dtype=torch.float32)[None]
                sample[MASKS[modality]] = torch.ones(1, len(vectors), dtype=torch.long)
        if not present_modalities(sample):
            needed = ", ".join(self.modalities)
            raise NoModalityError(f"got nothing for the model in it (no face found?), expected some of {needed}.")
        return sample

    def sources(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The processor's arguments for a row, of the modalities that the model has."""
        sources = {}
        text, audio, video, image = (row.get(name) for name in ("text", "audio", "video", "image"))
        if "text" in self.modalities and text is not None and str(text).strip():
            sources["text"] = str(text)
        if "audio" in self.modalities and audio is not None:
            sources["audio"] = [audio]
        if "vision" in self.modalities and image is not None and video is None:
            sources["images"] = [image]
        if video is not None and "vision" in self.modalities:
            sources["videos"] = [video]
        elif video is not None and "audio" in self.modalities and audio is None and probe_media(video).has_audio:
            sources["audio"] = [video]
        return sources

    @property
    def takes_waveform(self) -> bool:
        return "input_values" in self.processor.feature_extractor.model_input_names

    def augment_sound(self, sources: dict[str, Any]) -> None:
        """Put a varied waveform in the place of the sound; log-mel frames are varied after extraction instead."""
        if "audio" in sources:
            source = sources["audio"][0]
        elif "videos" in sources and "audio" in self.modalities and probe_media(sources["videos"][0]).has_audio:
            source = sources["videos"][0]
        else:
            return
        rate = self.processor.feature_extractor.sampling_rate
        waveform = augment_waveform(torch.from_numpy(load_audio(source, rate)))
        sources["audio"] = [{"array": waveform.numpy(), "sampling_rate": rate}]

    def augment_tensors(self, sample: dict[str, torch.Tensor]) -> None:
        extractor = self.processor.feature_extractor
        if "input_features" in sample and getattr(extractor, "feature_type", "log_mel") == "log_mel":
            clip = warp_log_mel(sample["input_features"][0])
            mask = torch.ones(1, len(clip), dtype=sample["audio_attention_mask"].dtype)
            sample["input_features"], sample["audio_attention_mask"] = augment_log_mel(clip[None], mask), mask
        if "pixel_values" in sample and bool(sample["video_attention_mask"].any()):
            sample["pixel_values"] = augment_frames(sample["pixel_values"][0])[None]

    def encode_label(self, row: Mapping[str, Any]) -> np.ndarray | None:
        """The target of a row; None when it has none. Raises ValueError naming the row."""
        try:
            return encode_label(row.get("label"), self.label2id, self.problem_type, self.soft_labels)
        except ValueError as error:
            raise ValueError(f"{row.get('row') or 'row'}: {error}") from error


def only(sample: dict[str, torch.Tensor], subset: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors of some modalities of a row, or of a dialogue's utterances."""
    names = {name for modality in subset for name in (MASKS[modality], VECTORS[modality], *INPUTS[modality])}
    return {name: tensor for name, tensor in sample.items() if name in names}


def encode_label(
    label: Any, label2id: Mapping[str, int], problem_type: str = PROBLEM_TYPES[0], soft: bool = False
) -> np.ndarray | None:
    """
    A class id; with `soft`, equal probabilities of the classes named, (classes,); for several labels multi-hot
    (classes,); for regression floats (targets,). None stays None.

    Raises:
        ValueError: naming an unknown label, or the kind of label that does not fit the problem.
    """
    if label is None:
        return None
    if problem_type == "regression":
        try:
            values = np.atleast_1d(np.asarray(label, dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise ValueError(f"label: got {label!r}, expected a number or numbers for regression.") from error
        if not np.isfinite(values).all():
            raise ValueError(f"label: got {label!r}, expected finite numbers.")
        return values
    names = [label] if isinstance(label, (str, int, float)) else list(label)
    unknown = [name for name in names if str(name) not in label2id]
    if unknown:
        alike = next((name for name in label2id if str(name).casefold() == str(unknown[0]).strip().casefold()), None)
        meant = "" if alike is None else f" {alike!r} differs in letter case alone: write it so, or give --labels."
        raise ValueError(f"label: got {unknown[0]!r}, expected one of {', '.join(map(str, label2id))}.{meant}")
    ids = sorted({label2id[str(name)] for name in names})
    if problem_type == "single_label_classification" and not soft:
        if len(ids) != 1:
            raise ValueError(f"label: got {label!r}, expected one class.")
        return np.asarray(ids[0], dtype=np.int64)
    target = np.zeros(len(label2id), dtype=np.float32)
    if not ids and problem_type == "single_label_classification":
        raise ValueError("label: got an empty list, expected one or more classes.")
    target[ids] = 1.0 if problem_type == "multi_label_classification" else 1.0 / len(ids)
    return target


def augment_waveform(waveform: torch.Tensor, max_gain: float = 6.0) -> torch.Tensor:
    """Sound (S,) with a gain of up to `max_gain` dB either way and, half of the time, noise 15 to 40 dB below it."""
    gain, level = (torch.rand(2) * 2 - 1) * max_gain, -15.0 - 25.0 * torch.rand(())
    noisy = waveform + torch.randn_like(waveform) * waveform.square().mean().sqrt() * 10 ** (level / 20)
    return (noisy if torch.rand(()) < 0.5 else waveform) * 10 ** (gain[0] / 20)


def augment_frames(frames: torch.Tensor, max_degrees: float = 15.0) -> torch.Tensor:
    """
    Normalised frames (F, channels, height, width) of one clip, all turned alike: mirrored half of the time, rotated up
    to `max_degrees`, scaled and shifted up to 10 %, contrast and brightness changed up to 30 %.
    """
    angle, zoom, across, down, contrast, light = (torch.rand(6) * 2 - 1).tolist()
    turn, scale = np.deg2rad(angle * max_degrees), 1 + 0.1 * zoom
    mirror = -1.0 if torch.rand(()) < 0.5 else 1.0
    cosine, sine = float(np.cos(turn) / scale), float(np.sin(turn) / scale)
    theta = frames.new_tensor([[mirror * cosine, -mirror * sine, 0.1 * across], [sine, cosine, 0.1 * down]])
    grid = F.affine_grid(theta.expand(len(frames), 2, 3), list(frames.shape), align_corners=False)
    turned = F.grid_sample(frames, grid, padding_mode="border", align_corners=False)
    centre = turned.mean((1, 2, 3), keepdim=True)
    return (turned - centre) * (1 + 0.3 * contrast) + centre + 0.3 * light
