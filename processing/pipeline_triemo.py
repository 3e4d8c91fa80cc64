"""The `multimodal-emotion-recognition` pipeline: emotion of any combination of text, sound and picture."""

import os
from collections.abc import Iterator, Mapping, Sized
from types import GeneratorType
from typing import Any

import torch
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from .media_sources_triemo import MediaLimits, media_limits
from .presence_triemo import NothingToReadError, say_once
from .samples_triemo import MASKS, TASK, TOLD, media_kind, present_modalities, read_input
from .window_reader_triemo import WindowReader, nothing_left

__all__ = ["TASK", "MultimodalEmotionRecognitionPipeline", "media_kind"]

logger = logging.get_logger(__name__)

_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class MultimodalEmotionRecognitionPipeline(WindowReader, ChunkPipeline):
    """
    Emotion scores for one input or many.

    An input is the path, URL, bytes or open file of a video, sound or image, a PIL image, an array or tensor, sound as
    `{"array", "sampling_rate"}` or a tuple of the two, or a dict with any of `text`, `audio`, `video`, `image`, each
    in any form `TriemoProcessor` takes. A list, a generator or a dataset of inputs gives an answer each; there an
    input of which nothing is left to read from (no face, silence) has an empty answer, where alone it is refused.

    What lasts longer than a window is read in windows, decoded as a stream: by default the answer is the mean of their
    scores, weighted by the seconds in which the person is heard, seen or has words, and a note says how many there
    were. Text beyond the tokenizer's limit is read in windows, and the logits are their mean, weighted by tokens. The
    model's `calibration_temperature` is applied before the softmax.

    Parameters, at construction or call:
        top_k: how many labels to return, best first; all by default.
        candidate_labels: the labels to choose among, a list or a string with commas; all by default. Their calibrated
            scores are divided by their sum (`ranked_scores`).
        min_score: what the best score must reach, or the first entry of an answer has `"uncertain": True` besides; by
            default what is stored with the checkpoint.
        batch_size: how many inputs go through the model at once; they may have different modalities and lengths.
            Windows of long inputs go through it eight at a time.
        chunk_length_s: seconds of a window, 4 by default; an input that is at most a third longer is read whole.
        stride_length_s: seconds that a window shares with each neighbour, one number or (left, right); 0 by default.
        return_timestamps: answer with a list of the windows, each `{"timestamp": (start, end), "scores", "modalities",
            "people"}`; with `return_notes` also "notes". `people` are those seen in the window: `id`, `box` (x0, y0,
            x1, y1 in pixels of the file), `times` and whether the window reads them, `read`.
        start, end: the part of a recording to read, seconds; all by default.
        people: whom to read, "main", "all" or a box x0, y0, x1, y1 (`TriemoProcessor.windows`).
        use_sound_track: whether the sound of a video counts (default True).
        sampling_rate: of sound given as an array, in Hz.
        num_frames, frame_rate: how frames are taken from videos, and from each window of a long one.
        limits: `MediaLimits`, or fields of it such as `{"seconds": 60}`.
        return_notes: answer with `{"scores", "modalities", "notes", "uncertain"}`: besides the list of scores, what it
            was read from and what was noticed of the input (`TriemoProcessor`). Otherwise each kind of note is logged
            once.
        explain: answer so, and with `explanation`: what each modality, word, moment of sound and frame added to the
            score, and whether words, voice and face disagree (`explain_sample`). It takes as many more
            readings of the input as that has parts. Of several windows it is a list, each with its `timestamp`.
        skip_unreadable: in a list or a stream, an input that cannot be read has an empty answer, and its last note
            says why; otherwise it ends the call.

    Example:
        >>> reader = pipeline("multimodal-emotion-recognition", model="triemo/triemo-small", trust_remote_code=True)
        >>> reader({"video": "clip.mp4", "text": "I can't believe it!"}, top_k=2)
        >>> reader("interview.mp4", return_timestamps=True)
    """

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        return self.sorted_parameters(**kwargs)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The answer for one input, a list of them for a list; for a generator or a dataset, an iterator."""
        if isinstance(inputs, list) and not inputs:
            raise ValueError("inputs: got an empty list, expected at least one input.")
        if hasattr(inputs, "select_columns"):  # of the library datasets, which the base class takes for one input
            inputs = (row for row in inputs)
        many = isinstance(inputs, (list, GeneratorType, torch.utils.data.Dataset))
        return super().__call__(inputs, *args, alone=not many, **kwargs)

    def prepare(
        self,
        input_: Any,
        limits: MediaLimits | Mapping[str, float] | None = None,
        return_notes: bool = False,
        explain: bool = False,
        **parameters: Any,
    ) -> dict[str, Any]:
        """
        One input in one piece, whatever its length: the tensors of a batch of one, and with `return_notes=True` its
        `notes`, a list of one list; with `explain=True` also its `words` and the steps of their tokens, a list of one
        list.

        Raises:
            ValueError: bad input, or nothing to read from (`NothingToReadError`).
        """
        with media_limits(limits):
            given = read_input(input_)
        # A list in a batch of one is one clip's frames or one sound's samples, not a batch.
        given = {name: [value] for name, value in given.items()}
        tensors = dict(
            self.processor(
                **given, return_tensors="pt", text_windows=True, limits=limits, return_notes=True, **parameters
            )
        )
        (notes,) = tensors.pop("notes")
        if not present_modalities(tensors):
            raise NothingToReadError(nothing_left(notes))
        if explain:
            tensors["words"] = [self.processor.words_of(given["text"][0]) if "attention_mask" in tensors else []]
        if return_notes or explain:
            return {**tensors, "notes": [notes]}
        say_once(logger, notes)
        return tensors

    def read_windows(self, input_: Any, *args: Any, **parameters: Any) -> Iterator[dict[str, Any]]:
        """As every reader's, with the parameters that were given at construction."""
        return super().read_windows(input_, *args, **{**self._preprocess_params, **parameters})

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
            outputs["explanation"] = self.explained(inputs, model_inputs.get("words") or [], present, candidate_labels)
        return outputs

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

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[Any]:
        """As the base class's, but inputs with different modalities and lengths go through the model together, and
        several windows of a long one."""
        loader = torch.utils.data.DataLoader(
            _WindowsOfInputs(inputs, self.preprocess, preprocess_params),
            num_workers=num_workers,
            batch_size=None,
            collate_fn=_unchanged,
        )
        return self.read_numbered(loader, batch_size, forward_params, postprocess_params)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Model and processor, and this file with them where the config names it, as in a checkpoint from the Hub."""
        # The base class would always name it, and the folder then asks for trust_remote_code even of the installed
        # package.
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
        if getattr(self.model.config, "custom_pipelines", None):
            custom_object_save(self, save_directory)


class _WindowsOfInputs(torch.utils.data.IterableDataset):
    """The windows of many inputs, each with the `number` of its input; of several workers each takes its share."""

    def __init__(self, inputs: Any, preprocess: Any, parameters: dict[str, Any]) -> None:
        self._inputs, self._preprocess, self._parameters = inputs, preprocess, parameters

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if isinstance(self._inputs, Sized):
            sized: Any = self._inputs
            numbered = ((number, sized[number]) for number in range(first, len(sized), step))
        else:
            numbered = ((number, one) for number, one in enumerate(self._inputs) if number % step == first)
        for number, input_ in numbered:
            for window in self._preprocess(input_, **self._parameters):
                yield {**window, "number": number}


def _unchanged(item: Any) -> Any:
    return item


def _picked(inputs: dict[str, torch.Tensor], rows: list[int]) -> dict[str, torch.Tensor]:
    """These rows of a batch, without the modalities that none of them has."""
    picked = {name: value[rows] for name, value in inputs.items()}
    if "attention_mask" in picked and not picked["attention_mask"].any():
        picked = {name: value for name, value in picked.items() if name not in _TEXT_INPUTS}
    return picked
