"""The `multimodal-emotion-recognition` pipeline: emotion of any combination of text, sound and picture."""

import os
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import torch
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .explanations_triemo import explain_sample
from .media_sources_triemo import MediaLimits, media_limits
from .presence_triemo import NothingToReadError, say_once
from .samples_triemo import (
    MASKS,
    TASK,
    TOLD,
    checked_labels,
    is_uncertain,
    media_kind,
    present_modalities,
    ranked_scores,
    read_input,
)

__all__ = ["TASK", "MultimodalEmotionRecognitionPipeline", "media_kind"]

logger = logging.get_logger(__name__)

_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class MultimodalEmotionRecognitionPipeline(Pipeline):
    """
    Emotion scores for one input or many.

    An input is the path, URL, bytes or open file of a video, sound or image, a PIL image, an array or tensor, sound as
    `{"array", "sampling_rate"}` or a tuple of the two, or a dict with any of `text`, `audio`, `video`, `image`, each
    in any form `TriemoProcessor` takes. A list, a generator or a dataset of inputs gives an answer each; there an
    input of which nothing is left to read from (no face, silence) has an empty answer, where alone it is refused.

    Text beyond the tokenizer's limit is read in windows, and the logits are their mean, weighted by tokens. The
    model's `calibration_temperature` is applied before the softmax.

    Parameters, at construction or call:
        top_k: how many labels to return, best first; all by default.
        candidate_labels: the labels to choose among, a list or a string with commas; all by default. Their calibrated
            scores are divided by their sum (`ranked_scores`).
        min_score: what the best score must reach, or the first entry of an answer has `"uncertain": True` besides; by
            default what is stored with the checkpoint.
        batch_size: how many inputs go through the model at once; they may have different modalities and lengths.
        use_sound_track: whether the sound of a video counts (default True).
        sampling_rate: of sound given as an array, in Hz.
        num_frames, frame_rate: how frames are taken from videos.
        limits: `MediaLimits`, or fields of it such as `{"seconds": 60}`.
        return_notes: answer with `{"scores", "modalities", "notes", "uncertain"}`: besides the list of scores, what it
            was read from and what was noticed of the input (`TriemoProcessor`). Otherwise each kind of note is logged
            once.
        explain: answer so, and with `explanation`: what each modality, word, moment of sound and frame added to the
            score, and whether words, voice and face disagree (`explain_sample`). It takes as many more
            readings of the input as that has parts.
        skip_unreadable: in a list or a stream, an input that cannot be read has an empty answer, and its last note
            says why; otherwise it ends the call.

    Example:
        >>> reader = pipeline("multimodal-emotion-recognition", model="triemo/triemo-small", trust_remote_code=True)
        >>> reader({"video": "clip.mp4", "text": "I can't believe it!"}, top_k=2)
    """

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        candidate_labels: str | Sequence[str] | None = None,
        min_score: float | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        known = ["use_sound_track", "sampling_rate", "num_frames", "frame_rate", "limits"]
        known += ["return_notes", "explain", "skip_unreadable"]
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            raise ValueError(
                f"{TASK} got unknown parameters {unknown}; accepted: top_k, candidate_labels, min_score, batch_size, "
                f"{', '.join(known)}."
            )
        if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
            raise ValueError(f"top_k must be a whole number of at least 1, got {top_k!r}.")
        if min_score is not None and (isinstance(min_score, bool) or not 0 <= min_score <= 1):
            raise ValueError(f"min_score must be a number from 0 to 1, got {min_score!r}.")
        candidates = checked_labels(candidate_labels, self.model.config)
        chosen = {"top_k": top_k, "candidate_labels": candidates, "min_score": min_score}
        forward = {"explain": True, "candidate_labels": candidates} if kwargs.get("explain") else {}
        return kwargs, forward, {name: value for name, value in chosen.items() if value is not None}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The answer for one input, a list of them for a list; for a generator or a dataset, an iterator."""
        if isinstance(inputs, list) and not inputs:
            raise ValueError("inputs: got an empty list, expected at least one input.")
        if hasattr(inputs, "select_columns"):  # of the library datasets, which the base class takes for one input
            inputs = (row for row in inputs)
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(
        self, input_: Any, limits: MediaLimits | Mapping[str, float] | None = None, **parameters: Any
    ) -> dict[str, torch.Tensor]:
        """
        One input to the tensors of a batch of one, and with `return_notes=True` its `notes`, a list of one list; with
        `explain=True` also its `words` and the steps of their tokens, a list of one list.

        Raises:
            ValueError: bad input, or nothing to read from (`NothingToReadError`).
        """
        with media_limits(limits):
            given = read_input(input_)
        # A list in a batch of one is one clip's frames or one sound's samples, not a batch.
        given = {name: [value] for name, value in given.items()}
        wants_words = parameters.pop("explain", False)
        wants_notes = parameters.pop("return_notes", False) or wants_words
        tensors = dict(
            self.processor(
                **given, return_tensors="pt", text_windows=True, limits=limits, return_notes=True, **parameters
            )
        )
        (notes,) = tensors.pop("notes")
        if not present_modalities(tensors):
            reasons = f" ({'; '.join(notes)})" if notes else ""
            raise NothingToReadError(f"no face was found, and the input has neither text nor sound besides{reasons}.")
        if wants_words:
            has_text = "attention_mask" in tensors
            tensors["words"] = [self.processor.words_of(given["text"][0]) if has_text else []]
        if wants_notes:
            return {**tensors, "notes": [notes]}
        say_once(logger, notes)
        return tensors

    def _preprocess_of_many(self, input_: Any, skip_unreadable: bool = False, **parameters: Any) -> dict[str, Any]:
        """
        As `preprocess`, but what has nothing to read from, and with `skip_unreadable` what cannot be read, is one
        masked token, so that the others are not lost.
        """
        try:
            return self.preprocess(input_, **parameters)
        except ValueError as error:
            if not skip_unreadable and not isinstance(error, NothingToReadError):
                raise
            logger.warning(f"An input has an empty answer: {error}")
            nothing = {"input_ids": torch.full((1, 1), self.processor.tokenizer.pad_token_id, dtype=torch.long)}
            nothing["attention_mask"] = torch.zeros((1, 1), dtype=torch.long)
            wants_notes = parameters.get("return_notes") or parameters.get("explain")
            return {**nothing, "notes": [[str(error)]]} if wants_notes else nothing

    def _forward(
        self, model_inputs: dict[str, Any], explain: bool = False, candidate_labels: list[str] | None = None
    ) -> dict[str, Any]:
        inputs = {name: value for name, value in model_inputs.items() if name not in TOLD}
        size = len(next(iter(inputs.values())))
        present = torch.zeros((size, len(MASKS)), dtype=torch.bool)
        for column, mask in enumerate(MASKS.values()):
            if mask in inputs:
                present[:, column] = inputs[mask].any(1).cpu()
        logits = torch.full((size, self.model.config.num_labels), float("nan"))
        rows = present.any(1).nonzero().flatten().tolist()
        if rows:
            logits[rows] = self._logits(inputs if len(rows) == size else _picked(inputs, rows)).float().cpu()
        outputs: dict[str, Any] = {"logits": logits, "modality_mask": present}
        if explain:
            words = model_inputs.get("words") or [[]] * size
            outputs["explanation"] = [
                explain_sample(self, _picked(inputs, [row]), words[row], candidate_labels) if row in rows else None
                for row in range(size)
            ]
        return {**outputs, "notes": model_inputs["notes"]} if "notes" in model_inputs else outputs

    def _logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(batch, classes). Text in several windows is read one window after the other, with all else beside it."""
        limit = self.processor.tokenizer.model_max_length
        if "input_ids" not in inputs or inputs["input_ids"].shape[1] <= limit:
            return self.model(**inputs).logits
        mask = inputs["attention_mask"]
        total = torch.zeros((len(mask), self.model.config.num_labels))
        weight = torch.zeros((len(mask), 1))
        for start in range(0, mask.shape[1], limit):
            tokens = mask[:, start : start + limit].sum(1)
            rows = (tokens > 0).nonzero().flatten().tolist() if start else list(range(len(mask)))
            window = {
                name: value[rows][:, start : start + limit] if name in _TEXT_INPUTS else value[rows]
                for name, value in inputs.items()
            }
            read = tokens[rows, None].clamp(min=1).float().cpu()
            total[rows] += read * self.model(**window).logits.float().cpu()
            weight[rows] += read
        return total / weight

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        top_k: int | None = None,
        candidate_labels: str | Sequence[str] | None = None,
        min_score: float | None = None,
    ) -> Any:
        """Scores of the labels, best first; empty if there was nothing to read from."""
        present = model_outputs["modality_mask"][0].tolist()
        scores = []
        if any(present):
            logits = model_outputs["logits"][0].float().numpy()
            scores = ranked_scores(logits, self.model.config, present, top_k, candidate_labels)
        uncertain = is_uncertain(scores, self.model.config, present, min_score)
        if "notes" not in model_outputs:
            return [{**scores[0], "uncertain": True}, *scores[1:]] if uncertain else scores
        modalities = [name for name, is_there in zip(MASKS, present, strict=True) if is_there]
        notes = model_outputs["notes"]
        if notes and isinstance(notes[0], list):  # of a batch the base class has taken the sample's list out already
            (notes,) = notes
        answer = {"scores": scores, "modalities": modalities, "notes": notes, "uncertain": uncertain}
        if "explanation" not in model_outputs:
            return answer
        explanation = model_outputs["explanation"]
        return {**answer, "explanation": explanation[0] if isinstance(explanation, list) else explanation}

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> PipelineIterator:
        """As the base class's, but samples with different modalities are collated by the processor."""
        prepared: Any = PipelineIterator(inputs, self._preprocess_of_many, preprocess_params)
        if isinstance(inputs, Sized):
            prepared = PipelineDataset(inputs, self._preprocess_of_many, preprocess_params)
        loader = torch.utils.data.DataLoader(
            prepared, num_workers=num_workers, batch_size=batch_size, collate_fn=self.processor.pad
        )
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Model and processor, and this file with them where the config names it, as in a checkpoint from the Hub."""
        # The base class would always name it, and the folder then asks for trust_remote_code even of the installed
        # package.
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
        if getattr(self.model.config, "custom_pipelines", None):
            custom_object_save(self, save_directory)


def _picked(inputs: dict[str, torch.Tensor], rows: list[int]) -> dict[str, torch.Tensor]:
    """These rows of a batch, without the modalities that none of them has."""
    picked = {name: value[rows] for name, value in inputs.items()}
    if "attention_mask" in picked and not picked["attention_mask"].any():
        picked = {name: value for name, value in picked.items() if name not in _TEXT_INPUTS}
    return picked
