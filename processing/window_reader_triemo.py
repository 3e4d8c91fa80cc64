"""Reading window by window, for every runtime: an input's windows, a few of them through the model together, and their
answers joined.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

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
    present_modalities,
    read_input,
)
from .windows_triemo import Window, joined_notes, window_plan

__all__ = ["WindowReader", "nothing_left"]

logger = logging.getLogger(__name__)

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


class WindowReader:
    """
    What the readers of all runtimes share. Tensors are torch's or NumPy's, which are only indexed.

    A reader has a `processor` with the `windows`, `words_of` and `pad` of a `TriemoProcessor`, a `model` with a
    `config`, and `forward`, which takes what `pad` returns, `explain` and `candidate_labels`, and returns `logits`
    (batch, classes), `modality_mask` (batch, 3) bool and, if asked, a list of `explanation` (`explained`).
    """

    processor: Any
    model: Any
    forward: Any

    def sorted_parameters(
        self,
        top_k: int | None = None,
        candidate_labels: str | Sequence[str] | None = None,
        min_score: float | None = None,
        return_timestamps: bool | None = None,
        return_notes: bool | None = None,
        alone: bool | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        """
        A call's parameters, those of the input, of `forward` and of the answer.

        Raises:
            ValueError: an unknown parameter, or one that cannot be.
        """
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
            for window, tensors in self.processor.windows(**given, limits=limits, **parameters):
                window.release()
                if before is not None:
                    yield {**before, "is_last": False}
                before = {**(tensors if present_modalities(tensors) else {}), "window": window}
                if explain:
                    words = self.processor.words_of(window.text) if MASKS["text"] in before else []
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
            raise NothingToReadError(windows[-1].nothing or nothing_left(notes))
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
        return self._read(self.preprocess(input_, **parameters), 1, explained if parameters.get("explain") else {})

    def read_numbered(
        self, items: Iterable[dict[str, Any]], batch_size: int, forward: Mapping[str, Any], answer: Mapping[str, Any]
    ) -> Iterator[Any]:
        """
        The answers of many inputs, in their order, which go through the model together.

        Args:
            items: the windows of all inputs, from `preprocess`, each with the `number` of its input from 0. Those of
                one input are in order; the inputs may be mixed.
            batch_size: how many inputs, or eight windows of longer ones, go through the model at once.
            forward, answer: parameters of `forward` and `postprocess`.
        """
        begun: dict[int, list[dict[str, Any]]] = {}
        answers: dict[int, Any] = {}  # of inputs that were read before their turn: workers take them alternately
        turn = 0
        for output in self._read(items, batch_size, forward):
            number = output.pop("number")
            begun.setdefault(number, []).append(output)
            if output["is_last"]:
                answers[number] = self.postprocess(begun.pop(number), **answer)
            while turn in answers:
                yield answers.pop(turn)
                turn += 1

    def _read(
        self, items: Iterable[dict[str, Any]], batch_size: int, parameters: Mapping[str, Any]
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
            "logits": np.full((1, self.model.config.num_labels), np.nan, dtype=np.float32),
            "modality_mask": np.zeros((1, len(MASKS)), dtype=bool),
        }
        for index, item in enumerate(items):
            read = nothing
            if index in rows:
                row = rows.index(index)
                read = {name: values[row : row + 1] for name, values in outputs.items()}
            yield {**read, **{name: item[name] for name in told if name in item}}

    def explained(
        self, batch: Mapping[str, Any], words: Sequence, present: Any, candidate_labels: list[str] | None
    ) -> list[dict[str, Any] | None]:
        """
        What the answer for each row of a batch rests on; None of a row that has no modality.

        Args:
            words: of each row, as `explain_sample` takes them; none where they are unknown.
            present: (batch, 3) bool, which modalities each row has.
            candidate_labels: the labels to choose among.
        """
        told = words or [[]] * len(present)
        return [
            explain_sample(self, {name: value[[row]] for name, value in batch.items()}, told[row], candidate_labels)
            if bool(here.any())
            else None
            for row, here in enumerate(present)
        ]

    def postprocess(
        self,
        model_outputs: Mapping[str, Any] | list[dict[str, Any]],
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
            reason = windows[-1].nothing or nothing_left(notes)
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
        held = np.concatenate([np.asarray(output["modality_mask"]) for output in outputs])
        modalities = [name for name, column in zip(MASKS, held.T, strict=True) if column.any()]
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
            [np.asarray(output["logits"][0]) for output in outputs],
            config,
            masks,
            [output["window"].held if "window" in output else 1.0 for output in outputs],
            top_k,
            candidate_labels,
        )
        uncertain = is_uncertain(scores, config, [any(column) for column in zip(*masks, strict=True)], min_score)
        return [{**scores[0], "uncertain": True}, *scores[1:]] if uncertain else scores, uncertain


def nothing_left(notes: Sequence[str]) -> str:
    """Why there is nothing to read, from what was noticed."""
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
