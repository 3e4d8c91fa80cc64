"""Utterances to vectors: what a conversation's model reads, which has no towers of its own.

Shape legend: N utterances, D_m width of modality m's vectors.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForVideoClassification, AutoProcessor
from transformers.utils import logging

from .media_sources_triemo import MediaLimits, media_limits
from .presence_triemo import NothingToReadError, is_absent, say_once
from .samples_triemo import MASKS, read_input

__all__ = ["CLIP_STATES", "DEFAULT_LAYERS", "VECTORS", "ClipEncoder", "UtteranceEncoder"]

logger = logging.get_logger(__name__)

# The tensors of `TriemoForEmotionSequence`, by modality.
VECTORS = {"text": "text_features", "audio": "input_features", "vision": "vision_features"}
CLIP_STATES = "clip_states"
DEFAULT_LAYERS = {"text": (-1,), "audio": (-1,), "vision": (-1,)}


class UtteranceEncoder:
    """
    The utterances of a dialogue, in words, sound and pictures, as the vectors that `TriemoForEmotionSequence` takes.

    A modality's vector is the mean over time of its tower's states, each modality alone, so that a vector depends on
    its utterance only: it can be kept, and a live call encodes each turn once.

    Args:
        model: a `TriemoForEmotionClassification` (or another head) whose towers encode; put into evaluation mode.
        processor: its `TriemoProcessor`.
        layers: by modality, the layers whose means are joined into the vector, 0 the embeddings, -1 the tower's
            output; a modality that is not named is not read. Defaults to the towers' outputs. Only -1 where states
            are not (batch, steps, width), as in image encoders.
        batch_size: utterances a pass through a tower.

    Example:
        >>> encode = UtteranceEncoder(base, processor, head.config.utterance_layers)
        >>> vectors = encode([{"text": "You did what?"}, {"audio": "turn2.wav"}])
        >>> head(**{name: value[None] for name, value in vectors.items()}, speakers=torch.tensor([[0, 1]])).logits
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        layers: Mapping[str, Sequence[int]] | None = None,
        batch_size: int = 16,
    ) -> None:
        has = model.config.modalities
        given = {name: tuple(DEFAULT_LAYERS[name]) for name in has} if layers is None else dict(layers)
        unknown = sorted(set(given) - set(has))
        if unknown or not given:
            raise ValueError(f"layers: got {sorted(given)}, expected some of {', '.join(has)}, which the model has.")
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected 1 or more.")
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size
        self.layers = {name: tuple(given[name]) for name in MASKS if name in given}
        self.base = getattr(model, model.base_model_prefix, model)

    @classmethod
    def of(cls, head: Any, batch_size: int = 16, **hub_kwargs: Any) -> "UtteranceEncoder":
        """
        The encoder of a conversation's model: of one over vectors, from the checkpoint that its config names; of one
        that has towers, a `ClipEncoder` over itself.

        Args:
            head: a `TriemoForEmotionSequence`, over vectors with `base_model_name_or_path` in its config. A folder of
                that name beside the head's own goes before the Hub, so that what lies together needs no network.
            batch_size: utterances a pass through a tower.
            hub_kwargs: of `from_pretrained`, such as `trust_remote_code=True`.

        Raises:
            ValueError: a config that names no checkpoint, or towers whose vectors have another width.
        """
        config = head.config
        if not config.step_aligned:
            return ClipEncoder(head, AutoProcessor.from_pretrained(head.name_or_path, **hub_kwargs), batch_size)
        name = config.base_model_name_or_path
        if not name:
            raise ValueError("base_model_name_or_path: the config names no checkpoint whose towers made the vectors.")
        beside = Path(head.name_or_path).parent / Path(name).name
        place = str(beside) if (beside / "config.json").is_file() else name
        model = AutoModelForVideoClassification.from_pretrained(place, **hub_kwargs)
        processor = AutoProcessor.from_pretrained(place, **hub_kwargs)
        layers = config.utterance_layers or {name: DEFAULT_LAYERS[name] for name in config.modalities}
        encoder = cls(model.to(head.device), processor, layers, batch_size)
        # A modality without layers comes as vectors of the user's own.
        own = {name: getattr(config, f"{name}_feature_size") for name in encoder.layers}
        if own != encoder.widths:
            raise ValueError(f"{place} gives vectors of {encoder.widths} values, expected {own}.")
        return encoder

    @property
    def widths(self) -> dict[str, int]:
        """D_m, by modality."""
        return {name: len(layers) * self.base.tower(name).width for name, layers in self.layers.items()}

    def __call__(
        self,
        utterances: Sequence[Any],
        limits: MediaLimits | Mapping[str, float] | None = None,
        return_notes: bool = False,
        first: int = 0,
        **parameters: Any,
    ) -> dict[str, Any]:
        """
        Args:
            utterances: each as the pipeline takes it, such as a dict with any of `text`, `audio`, `video`, `image`.
            limits: `MediaLimits`, or fields of it.
            return_notes: add `notes`, a list for each utterance of what the processor noticed; otherwise each kind is
                logged once.
            first: the number of the first utterance, as errors count.
            parameters: of the processor, such as `sampling_rate` or `use_sound_track`.

        Returns:
            `text_features` (N, D_text) and `attention_mask` (N,), `input_features` and `audio_attention_mask`,
            `vision_features` and `video_attention_mask`, of those modalities that are read, on the CPU in float32. A
            mask is 0 where an utterance lacks the modality, its vector then zero; an utterance that carries nothing at
            all (silence, an empty cell) has zeros in all masks, and its notes say why.

        Raises:
            ValueError: no utterance, or one that cannot be read, naming its position.
        """
        if not len(utterances):
            raise ValueError("utterances: got none, expected at least one.")
        vectors: dict[str, Any] = self.nothing(len(utterances))
        notes: list[list[str]] = [[] for _ in utterances]
        # Utterances of like length together: a batch is padded to its longest.
        order = sorted(range(len(utterances)), key=lambda row: _rough_length(utterances[row]))
        for start in range(0, len(order), self.batch_size):
            rows, prepared = [], []
            for row in order[start : start + self.batch_size]:
                tensors, notes[row] = self.prepare(utterances[row], first + row, limits, parameters)
                if tensors:
                    rows.append(row)
                    prepared.append(tensors)
            if rows:
                for name, value in self.encode(self.processor.pad(prepared)).items():
                    vectors[name][rows] = value
        if return_notes:
            vectors["notes"] = notes
        else:
            say_once(logger, [note for said in notes for note in said])
        return vectors

    def nothing(self, count: int) -> dict[str, torch.Tensor]:
        """The result for so many utterances that hold nothing."""
        values = {VECTORS[name]: torch.zeros(count, width) for name, width in self.widths.items()}
        return values | {MASKS[name]: torch.zeros(count, dtype=torch.long) for name in self.layers}

    def prepare(
        self,
        utterance: Any,
        row: int,
        limits: MediaLimits | Mapping[str, float] | None,
        parameters: Mapping[str, Any],
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """One utterance's tensors (1, ...), empty where nothing of it can be read, and its notes."""
        cells = utterance.values() if isinstance(utterance, Mapping) else [utterance]
        if all(is_absent(cell) for cell in cells):
            return {}, ["nothing is given in it"]
        try:
            with media_limits(limits):
                given = {name: [value] for name, value in read_input(utterance).items()}
            tensors = dict(self.processor(**given, limits=limits, return_notes=True, **parameters))
        except NothingToReadError as error:
            return {}, [str(error)]
        except ValueError as error:
            raise ValueError(f"utterance {row}: {error}") from error
        (notes,) = tensors.pop("notes")
        return tensors, notes

    def encode(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch of the processor's tensors (B, ...) to vectors (B, D_m) and masks (B,), by their names."""
        read = {name: layers for name, layers in self.layers.items() if MASKS[name] in batch}
        if not read:
            return {}
        device = self.base.device
        with torch.inference_mode():
            found = self.base.tower_means(layers=read, **{name: value.to(device) for name, value in batch.items()})
        vectors = {VECTORS[name]: value.float().cpu() for name, value in found.items()}
        return vectors | {MASKS[name]: batch[MASKS[name]].any(1).long() for name in found}


class ClipEncoder(UtteranceEncoder):
    """
    The same for a `TriemoForEmotionSequence` that has towers of its own: in place of vectors by modality there are
    `clip_states` (N, D), what its context sees of each utterance, zeros for one that holds nothing.

    Args:
        model: with towers; put into evaluation mode.
        processor: its `TriemoProcessor`.
        batch_size: utterances a pass.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 16) -> None:
        super().__init__(model, processor, batch_size=batch_size)

    def nothing(self, count: int) -> dict[str, torch.Tensor]:
        masks = {MASKS[name]: torch.zeros(count, dtype=torch.long) for name in self.layers}
        return {CLIP_STATES: torch.zeros(count, self.model.config.hidden_size), **masks}

    def encode(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch of the processor's tensors (B, ...) to `clip_states` (B, D) and masks (B,), by their names."""
        with torch.inference_mode():
            found = self.model.encode_clips(**{name: value.to(self.base.device) for name, value in batch.items()})
        masks = {mask: batch[mask].any(1).long() for mask in MASKS.values() if mask in batch}
        return {CLIP_STATES: found.float().cpu(), **masks}


def _rough_length(utterance: Any) -> int:
    text = utterance.get("text") if isinstance(utterance, Mapping) else None
    return len(text) if isinstance(text, str) else 0
