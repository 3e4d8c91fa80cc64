"""The `multimodal-emotion-recognition` pipeline: emotion of any combination of text, sound and picture."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from types import GeneratorType
from typing import Any

import torch
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from .explanations_triemo import explain_sample, moved_in_time
from .media_sources_triemo import MediaLimits, media_limits
from .presence_triemo import NothingToReadError, say_once
from .samples_triemo import (
    MASKS,
    TASK,
    TOLD,
    check_top_k,
    checked_labels,
    is_uncertain,
    joined_scores,
    media_kind,
    present_modalities,
    read_input,
)
from .windows_triemo import Window, joined_notes, window_plan

__all__ = ["TASK", "MultimodalEmotionRecognitionPipeline", "media_kind"]

logger = logging.get_logger(__name__)

_AT_ONCE = 8  # windows of long inputs that go through the model together
_ANSWER_PARAMETERS = ("top_k", "candidate_labels", "min_score", "batch_size", "return_timestamps", "return_notes")
_INPUT_PARAMETERS = (
    "chunk_length_s",
    "stride_length_s",
    "start",
    "end",
    "people",
    "use_sound_track",
    "sampling_rate",
    "num_frames",
    "frame_rate",
    "limits",
    "explain",
    "skip_unreadable",
)
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class MultimodalEmotionRecognitionPipeline(ChunkPipeline):
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

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        candidate_labels: str | Sequence[str] | None = None,
        min_score: float | None = None,
        return_timestamps: bool | None = None,
        return_notes: bool | None = None,
        alone: bool | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        unknown = sorted(set(kwargs) - set(_INPUT_PARAMETERS))
        if unknown:
            raise ValueError(
                f"{TASK} got unknown parameters {unknown}; accepted: {', '.join(_ANSWER_PARAMETERS)}, "
                f"{', '.join(_INPUT_PARAMETERS)}."
            )
        check_top_k(top_k)
        if min_score is not None and (isinstance(min_score, bool) or not 0 <= min_score <= 1):
            raise ValueError(f"min_score must be a number from 0 to 1, got {min_score!r}.")
        window_plan(kwargs.get("chunk_length_s"), kwargs.get("stride_length_s"))
        candidates = checked_labels(candidate_labels, self.model.config)
        chosen = {
            "top_k": top_k,
            "candidate_labels": candidates,
            "min_score": min_score,
            "return_timestamps": return_timestamps,
            "return_notes": return_notes or kwargs.get("explain") or None,
            "alone": alone,
        }
        forward = {"explain": True, "candidate_labels": candidates} if kwargs.get("explain") else {}
        return kwargs, forward, {name: value for name, value in chosen.items() if value is not None}

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
            raise NothingToReadError(_nothing_left(notes))
        if explain:
            tensors["words"] = [self.processor.words_of(given["text"][0]) if "attention_mask" in tensors else []]
        if return_notes or explain:
            return {**tensors, "notes": [notes]}
        say_once(logger, notes)
        return tensors

    def preprocess(
        self,
        input_: Any,
        limits: MediaLimits | Mapping[str, float] | None = None,
        explain: bool = False,
        skip_unreadable: bool = False,
        **parameters: Any,
    ) -> Iterator[dict[str, Any]]:
        """
        One input as its windows: for each the tensors of a batch of one, with `explain` its `words` and the steps of
        their tokens, its `window` and whether it `is_last`.

        Raises:
            ValueError: bad input, unless `skip_unreadable`: then the last window holds nothing and says why.
        """
        before: dict[str, Any] | None = None
        try:
            with media_limits(limits):
                given = read_input(input_)
            for window, tensors in self.processor.windows(**given, limits=limits, return_tensors="pt", **parameters):
                window.release()
                if before is not None:
                    yield {**before, "is_last": False}
                before = {**(tensors if present_modalities(tensors) else {}), "window": window}
                if explain:
                    words = self.processor.words_of(window.text) if "attention_mask" in before else []
                    before["words"] = [words]
        except ValueError as error:
            if not skip_unreadable:
                raise
            if before is not None:
                yield {**before, "is_last": False}
            before = {"window": Window(0.0, 0.0, nothing=str(error))}
        if before is not None:
            yield {**before, "is_last": True}

    def windows_of(self, input_: Any, **parameters: Any) -> tuple[list[dict[str, Any]], list[str]]:
        """
        All windows of one input that hold something to read, as from `preprocess`, and what was noticed of the input.

        Raises:
            ValueError: bad input, or nothing to read from (`NothingToReadError`).
        """
        items = list(self.preprocess(input_, **parameters))
        windows: list[Window] = [item["window"] for item in items]
        kept = [item for item in items if present_modalities(item)]
        notes = _notes_of(windows, len(kept))
        if not kept:
            raise NothingToReadError(windows[-1].nothing or _nothing_left(notes))
        return kept, notes

    def read_windows(
        self, input_: Any, candidate_labels: str | Sequence[str] | None = None, **parameters: Any
    ) -> Iterator[dict[str, Any]]:
        """
        The windows of one input, each as soon as it and the few that go through the model with it are read.

        Args:
            input_: as in a call.
            candidate_labels: the labels that explanations choose among.
            parameters: as in a call, of the input.

        Yields:
            `window`, `logits` (1, classes), `modality_mask` (1, 3) bool, `is_last`, with `explain` a list of its
            `explanation`; of a window that holds nothing to read the mask is all False.
        """
        explained = {"explain": True, "candidate_labels": checked_labels(candidate_labels, self.model.config)}
        forward = explained if parameters.get("explain") else {}
        return self._read(self.preprocess(input_, **{**self._preprocess_params, **parameters}), 1, forward)

    def _read(
        self, items: Iterable[dict[str, Any]], batch_size: int, parameters: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        waiting: list[dict[str, Any]] = []
        for item in items:
            waiting.append(item)
            if sum(one["is_last"] for one in waiting) >= batch_size or len(waiting) >= max(batch_size, _AT_ONCE):
                yield from self.read_together(waiting, parameters)
                waiting = []
        yield from self.read_together(waiting, parameters)

    def read_together(
        self, items: list[dict[str, Any]], parameters: Mapping[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """
        Some windows, in one call of the model.

        Args:
            items: as from `preprocess`; of a window without tensors there is nothing to read.
            parameters: of `forward`.
        """
        told = ("window", "is_last", "number")
        tensors = [{name: value for name, value in item.items() if name not in told} for item in items]
        rows = [index for index, one in enumerate(tensors) if set(one) - set(TOLD)]
        outputs = (
            self.forward(self.processor.pad([tensors[index] for index in rows]), **(parameters or {})) if rows else {}
        )
        nothing = {
            "logits": torch.full((1, self.model.config.num_labels), float("nan")),
            "modality_mask": torch.zeros((1, len(MASKS)), dtype=torch.bool),
        }
        for index, item in enumerate(items):
            read = nothing
            if index in rows:
                row = rows.index(index)
                read = {name: values[row : row + 1] for name, values in outputs.items()}
            yield {**read, **{name: item[name] for name in told if name in item}}

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

    def postprocess(
        self,
        model_outputs: dict[str, Any] | list[dict[str, Any]],
        top_k: int | None = None,
        candidate_labels: str | Sequence[str] | None = None,
        min_score: float | None = None,
        return_timestamps: bool = False,
        return_notes: bool = False,
        alone: bool = False,
    ) -> Any:
        """
        Scores of the labels, best first; empty if there was nothing to read from.

        Args:
            model_outputs: of the windows of one input (`read_windows`), or of an input in one piece.
            top_k, candidate_labels, min_score, return_timestamps, return_notes: as in a call.
            alone: refuse an input from which nothing can be read.

        Raises:
            NothingToReadError: such an input.
        """
        choice: dict[str, Any] = {"top_k": top_k, "candidate_labels": candidate_labels, "min_score": min_score}
        if isinstance(model_outputs, Mapping):
            return self._scores([model_outputs], **choice)[0]
        windows: list[Window] = [output["window"] for output in model_outputs]
        read = sum(bool(output["modality_mask"].any()) for output in model_outputs)
        notes = _notes_of(windows, read)
        if not read:
            reason = windows[-1].nothing or _nothing_left(notes)
            if alone:
                raise NothingToReadError(reason)
            logger.warning(f"An input has an empty answer: {reason}")
            notes = [reason]
        elif not return_notes:
            say_once(logger, notes)
        if return_timestamps:
            return [
                self._answer([output], choice, output["window"].notes, return_notes, True) for output in model_outputs
            ]
        return self._answer(model_outputs, choice, notes, return_notes, False)

    def _answer(
        self,
        outputs: list[dict[str, Any]],
        choice: dict[str, Any],
        notes: list[str],
        return_notes: bool,
        with_time: bool,
    ) -> Any:
        """Of several windows together, or of one of them."""
        scores, uncertain = self._scores(outputs, **choice)
        if not return_notes and not with_time:
            return scores
        masks = torch.cat([output["modality_mask"] for output in outputs]).any(0)
        modalities = [name for name, is_there in zip(MASKS, masks.tolist(), strict=True) if is_there]
        answer: dict[str, Any] = {}
        if with_time:
            (window,) = (output["window"] for output in outputs)
            answer = {"timestamp": (window.start, window.end), "people": window.people}
        answer |= {"scores": scores, "modalities": modalities}
        if return_notes:
            if uncertain:
                scores[0].pop("uncertain")
            answer |= {"notes": notes, "uncertain": uncertain}
            explained = [
                (output["window"], moved_in_time(output["explanation"][0], output["window"].start))
                for output in outputs
                if output.get("explanation", [None])[0] is not None
            ]
            if explained and len(outputs) == 1:
                answer["explanation"] = explained[0][1]
            elif explained:
                answer["explanation"] = [
                    {"timestamp": (window.start, window.end), **explanation} for window, explanation in explained
                ]
        return answer

    def _scores(
        self,
        outputs: Sequence[Mapping[str, Any]],
        top_k: int | None,
        candidate_labels: str | Sequence[str] | None,
        min_score: float | None,
    ) -> tuple[list[dict[str, Any]], bool]:
        """The mean over windows, or the scores of the only piece, and whether they are uncertain, which the first
        entry says too."""
        outputs = [output for output in outputs if output["modality_mask"][0].any()]
        if not outputs:
            return [], False
        config = self.model.config
        masks = [output["modality_mask"][0].tolist() for output in outputs]
        scores = joined_scores(
            [output["logits"][0].float().numpy() for output in outputs],
            config,
            masks,
            [output["window"].held if "window" in output else 1.0 for output in outputs],
            top_k,
            candidate_labels,
        )
        uncertain = is_uncertain(scores, config, [any(column) for column in zip(*masks, strict=True)], min_score)
        return [{**scores[0], "uncertain": True}, *scores[1:]] if uncertain else scores, uncertain

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
        begun: dict[int, list[dict[str, Any]]] = {}
        answers: dict[int, Any] = {}  # of inputs that were read before their turn: workers take them alternately
        turn = 0
        for output in self._read(loader, batch_size, forward_params):
            number = output.pop("number")
            begun.setdefault(number, []).append(output)
            if output["is_last"]:
                answers[number] = self.postprocess(begun.pop(number), **postprocess_params)
            while turn in answers:
                yield answers.pop(turn)
                turn += 1

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


def _nothing_left(notes: Sequence[str]) -> str:
    reasons = f" ({'; '.join(notes)})" if notes else ""
    return f"no face was found, and the input has neither text nor sound besides{reasons}."


def _notes_of(windows: Sequence[Window], read: int) -> list[str]:
    """What the caller should know of an input: of a long one also in how many windows it was read."""
    notes = joined_notes([window.notes for window in windows])
    notes += [window.nothing for window in windows if window.nothing]
    notes += [note for window in windows for note in window.about]
    if len(windows) > 1:
        first, last = windows[0].start, windows[-1].end
        empty = len(windows) - read
        hold = f", {empty} of which hold nothing to read" if empty else ""
        notes.insert(0, f"recording: {last - first:.1f} s were read in {len(windows)} windows{hold}")
    return notes


def _picked(inputs: dict[str, torch.Tensor], rows: list[int]) -> dict[str, torch.Tensor]:
    """These rows of a batch, without the modalities that none of them has."""
    picked = {name: value[rows] for name, value in inputs.items()}
    if "attention_mask" in picked and not picked["attention_mask"].any():
        picked = {name: value for name, value in picked.items() if name not in _TEXT_INPUTS}
    return picked
