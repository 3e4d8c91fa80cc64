"""The `conversational-emotion-recognition` pipeline: the emotion of every turn of a dialogue, whole or as it goes on.

Shape legend: N turns, D_m width of modality m's vectors, C classes.
"""

import os
from collections.abc import Hashable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import logging

from .influences_triemo import Influences, explain_dialogue
from .presence_triemo import is_absent, say_once
from .samples_triemo import MASKS, check_top_k, checked_labels, ranked_scores
from .utterances_triemo import CLIP_STATES, VECTORS, UtteranceEncoder

__all__ = ["DIALOGUE_TASK", "ConversationalEmotionRecognitionPipeline", "DialogueSession"]

logger = logging.get_logger(__name__)

DIALOGUE_TASK = "conversational-emotion-recognition"
TURN_KEYS = ("text", "audio", "video", "image", "speaker")
_PROCESSING = ("use_sound_track", "sampling_rate", "num_frames", "frame_rate", "limits")
# What each medium of a turn may carry.
_CARRIES = {"text": ("text",), "audio": ("audio",), "image": ("vision",), "video": ("audio", "vision")}
_UNKNOWN_SPEAKER = -1
_TURNS_AT_ONCE = 64  # turns whose media are in memory at once


class ConversationalEmotionRecognitionPipeline(Pipeline):
    """
    Emotion scores for every turn of a dialogue, from its words, sound and picture and from the turns around it.

    A dialogue is a list of turns, or `{"turns": [...], "dialogue": "its name"}`, where the turns may be any iterable,
    read in parts. A turn is a dict with any of `text`, `audio`, `video`, `image`, each in any form `TriemoProcessor`
    takes and empty cells counting as not given, and `speaker`: a name or a number, or None where unknown. Only who is
    the same counts, not the names. A list of dialogues, a generator or a dataset of them gives a list of answers each.

    The model is a `TriemoForEmotionSequence`. The towers that make vectors for one over vectors are those of the
    checkpoint that its config names (`UtteranceEncoder.of`), or of the `encoder` given here; one with towers of its
    own reads by them, and has no `explain`.

    Parameters, at construction or call:
        top_k: how many labels a turn has, best first; all by default.
        candidate_labels: the labels to choose among, a list or a string with commas; all by default.
        batch_size: turns that go through the towers at once (default 16).
        keep_empty: a turn of which nothing can be read has an empty answer and is context for the others, which see
            that its speaker had a turn; by default it is an error that names dialogue and turn.
        explain: say for each turn what moved its answer: the other turns, by occlusion, and its modalities and the
            context, by Shapley values (`explain_dialogue`). The effects are what the score of its label loses.
        use_sound_track, sampling_rate, num_frames, frame_rate, limits: as of the other pipeline, for every turn.
        return_notes: add `notes` to each turn, what was noticed of it; otherwise each kind of note is logged once.

    The answer is a list with a dict for each turn: `speaker`, `label`, `score`, `scores` (a list of label and score,
    best first), `modalities` (what it was read from); with `explain` also `influences` (turns, counted from 1, with
    the `effect` of each, strongest first), `without_input`, the label's score of a turn that carries nothing, and
    `contributions` (by modality, and `"context"`), which make up the way from there to `score`.

    Example:
        >>> reader = pipeline("conversational-emotion-recognition", model="checkpoints/triemo-small-dialogue")
        >>> reader([{"speaker": "ann", "text": "You did what?"}, {"speaker": "bob", "audio": "turn2.wav"}])
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, encoder: UtteranceEncoder | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.model.config
        if not hasattr(self.model, "encode_clips"):
            raise ValueError(f"{DIALOGUE_TASK} needs a TriemoForEmotionSequence, got {type(self.model).__name__}.")
        if encoder is None:
            # Remote code of the one was allowed, and the other is its own base.
            remote = type(self.model).__module__.startswith("transformers_modules.")
            encoder = UtteranceEncoder.of(self.model, **({"trust_remote_code": True} if remote else {}))
        expected = {name: getattr(config, f"{name}_feature_size") for name in config.modalities}
        if config.step_aligned and encoder.widths != expected:
            raise ValueError(f"encoder: gives vectors of {encoder.widths} values, expected {expected}.")
        encoder.model.to(self.device, self.model.dtype)
        self.encoder = encoder

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        candidate_labels: Any = None,
        explain: bool | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        known = (*_PROCESSING, "keep_empty", "return_notes", "turns_at_once")
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            raise ValueError(
                f"{DIALOGUE_TASK} got unknown parameters {unknown}; accepted: top_k, candidate_labels, batch_size, "
                f"explain, {', '.join(known[:-1])}."
            )
        check_top_k(top_k)
        if explain and self.model.config.resolved_problem_type == "regression":
            raise ValueError("explain: needs scores of classes, and this model's problem_type is 'regression'.")
        if explain and not self.model.config.step_aligned:
            raise ValueError("explain: needs a model over vectors, and this one has towers of its own.")
        chosen = {"top_k": top_k, "candidate_labels": checked_labels(candidate_labels, self.model.config)}
        answer = {name: value for name, value in chosen.items() if value is not None}
        forward = {"explain": explain, "candidate_labels": chosen["candidate_labels"]}
        return kwargs, {name: value for name, value in forward.items() if value is not None}, answer

    def __call__(self, inputs: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> Any:
        """The answer for one dialogue, a list of them for a list of dialogues; for a generator, an iterator."""
        if isinstance(inputs, list):
            if not inputs:
                raise ValueError("inputs: got an empty list, expected the turns of a dialogue, or dialogues.")
            if all(isinstance(turn, Mapping) and "turns" not in turn for turn in inputs):
                inputs = {"turns": inputs}
            else:
                inputs = [
                    {"turns": one, "dialogue": str(number)} if isinstance(one, list) else one
                    for number, one in enumerate(inputs, start=1)
                ]
        turns_at_once = batch_size or self._batch_size
        if turns_at_once is not None:
            kwargs["turns_at_once"] = turns_at_once
        return super().__call__(inputs, *args, batch_size=1, **kwargs)

    def session(self, keep_empty: bool = False, **parameters: Any) -> "DialogueSession":
        """A live dialogue (`DialogueSession`). Raises ValueError where the model needs what comes later."""
        return DialogueSession(self, keep_empty=keep_empty, **parameters)

    def preprocess(self, input_: Any, **parameters: Any) -> dict[str, Any]:
        """
        One dialogue to the model's tensors, a batch of one, with what the answer repeats of the turns in `turns`.

        Raises:
            ValueError: no turns, unknown keys, media that cannot be read, or a turn that carries nothing.
        """
        if isinstance(input_, list):
            input_ = {"turns": input_}
        if not isinstance(input_, Mapping) or "turns" not in input_ or set(input_) - {"turns", "dialogue"}:
            got = sorted(map(str, input_)) if isinstance(input_, Mapping) else type(input_).__name__
            raise ValueError(f'a dialogue is a list of turns, or {{"turns", "dialogue"}}; got {got}.')
        name = input_.get("dialogue")
        numbers = _Speakers()
        parts: list[dict[str, Any]] = []
        turns = iter(input_["turns"])
        while some := list(islice(turns, _TURNS_AT_ONCE)):
            parts.append(self.read_turns(some, numbers, sum(len(p["turns"]) for p in parts) + 1, name, **parameters))
        if not parts:
            raise ValueError(f"{_place(name)}: has no turn, expected at least one.")
        joined: dict[str, Any] = {
            key: torch.cat([part[key] for part in parts], dim=1) for key in parts[0] if key != "turns"
        }
        return {**joined, "turns": [turn for part in parts for turn in part["turns"]]}

    def read_turns(
        self,
        turns: list[Any],
        speakers: "_Speakers",
        first: int,
        dialogue: str | None = None,
        keep_empty: bool = False,
        return_notes: bool = False,
        turns_at_once: int | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """Tensors (1, some, ...) of consecutive turns, the first with the number `first`, and their `turns`."""
        for number, turn in enumerate(turns, start=first):
            unknown = sorted(map(str, set(turn) - set(TURN_KEYS))) if isinstance(turn, Mapping) else None
            if unknown or unknown is None:
                got = f"the keys {unknown}" if unknown else type(turn).__name__
                raise ValueError(
                    f"{_place(dialogue, number)}: a turn is a dict with {', '.join(TURN_KEYS)}; got {got}."
                )
        if turns_at_once is not None:
            self.encoder.batch_size = turns_at_once
        read = [key for key, carried in _CARRIES.items() if set(carried) & set(self.encoder.layers)]
        given = [{key: value for key, value in turn.items() if key in read} for turn in turns]
        try:
            vectors = self.encoder(given, first=first, return_notes=True, **parameters)
        except ValueError as error:
            raise ValueError(f"{_place(dialogue)}: {error}") from error
        notes = vectors.pop("notes")
        for row, turn in enumerate(turns):
            left_out = [key for key in _CARRIES if key not in read and not is_absent(turn.get(key))]
            notes[row] += [f"{_CARRIES[key][-1]}: this model reads {' and '.join(read)} alone" for key in left_out]
        masks = torch.stack([vectors[MASKS[name]].bool() for name in VECTORS if MASKS[name] in vectors])
        for row, there in enumerate(masks.any(0).tolist()):
            if not (there or keep_empty):
                raise ValueError(
                    f"{_place(dialogue, first + row)}: there is nothing to read from ({'; '.join(notes[row])}); "
                    "keep_empty=True keeps such turns as context."
                )
        if not return_notes:
            say_once(logger, [note for said in notes for note in said])
        told = [
            {"speaker": None if is_absent(turn.get("speaker")) else turn["speaker"]}
            | ({"notes": notes[row]} if return_notes else {})
            for row, turn in enumerate(turns)
        ]
        tensors = {key: value.unsqueeze(0) for key, value in vectors.items()}
        tensors["speakers"] = torch.tensor([[speakers.number(turn["speaker"]) for turn in told]])
        tensors["utterance_mask"] = torch.ones(1, len(turns), dtype=torch.long)
        return {**tensors, "turns": told}

    def _forward(
        self, model_inputs: dict[str, Any], explain: bool = False, candidate_labels: list[str] | None = None
    ) -> dict[str, Any]:
        inputs = {name: value for name, value in model_inputs.items() if name != "turns"}
        logits = self.model(**self.taken(inputs)).logits.float().cpu()[0]
        outputs = {"logits": logits, "present": self.present(inputs)[0], "turns": model_inputs["turns"]}
        if explain:
            names = self.model.config.id2label
            left_out = [index for index, name in names.items() if candidate_labels and name not in candidate_labels]
            outputs["influences"] = self.influences(inputs, logits, left_out)
        return outputs

    @staticmethod
    def taken(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the model takes of a dialogue's tensors: beside states of clips no masks of their modalities."""
        left_out = tuple(MASKS.values()) if CLIP_STATES in inputs else ()
        return {name: value for name, value in inputs.items() if name not in left_out}

    def present(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(batch, N, 3) bool, which of text, audio, vision a turn has."""
        nothing = torch.zeros_like(inputs["utterance_mask"])
        return torch.stack([inputs.get(mask, nothing) for mask in MASKS.values()], dim=-1).bool().cpu()

    def influences(self, inputs: Mapping[str, torch.Tensor], logits: torch.Tensor, left_out: list[int]) -> Influences:
        """What moved the answers of one dialogue, whose logits are (N, C), with classes `left_out` of the choice."""
        config = self.model.config
        values = {name: inputs[VECTORS[name]][0] for name in config.modalities if VECTORS[name] in inputs}
        # Bits of the present modalities to the temperature that goes with them.
        bits = torch.tensor([1, 2, 4])
        subsets = [[bool(code & bit) for bit in (1, 2, 4)] for code in range(8)]
        temperatures = torch.tensor([config.temperature_of(subset) if any(subset) else 1.0 for subset in subsets])

        def score(index: torch.Tensor, masks: Mapping[str, torch.Tensor]) -> torch.Tensor:
            row: dict[str, torch.Tensor] = {VECTORS[name]: value[index] for name, value in values.items()}
            row |= {MASKS[name]: mask.long().to(self.device) for name, mask in masks.items()}
            row["speakers"] = inputs["speakers"][0][index]
            row["utterance_mask"] = torch.ones(index.shape, dtype=torch.long, device=self.device)
            found = self.model(**row).logits.float().cpu()
            found = found / temperatures[(self.present(row) * bits).sum(-1)].unsqueeze(-1)
            found[..., left_out] = -torch.inf
            is_share = config.resolved_problem_type != "multi_label_classification"
            return found.softmax(-1) if is_share else found.sigmoid()

        masks = {name: inputs[MASKS[name]][0].cpu() for name in values}
        allowed = logits.index_fill(-1, torch.tensor(left_out, dtype=torch.long), -torch.inf)
        return explain_dialogue(score, masks, allowed.argmax(-1))

    def postprocess(
        self, model_outputs: dict[str, Any], top_k: int | None = None, candidate_labels: list[str] | None = None
    ) -> list[dict[str, Any]]:
        """The answer of each turn; without label and scores where it carried nothing."""
        influences = model_outputs.get("influences")
        answers = []
        for index, turn in enumerate(model_outputs["turns"]):
            present = model_outputs["present"][index].tolist()
            scores = []
            if any(present):
                logits = model_outputs["logits"][index].numpy()
                scores = ranked_scores(logits, self.model.config, present, top_k, candidate_labels)
            best = scores[0] if scores else {"label": None, "score": None}
            modalities = [name for name, is_there in zip(MASKS, present, strict=True) if is_there]
            answer = {"speaker": turn["speaker"], **best, "scores": scores, "modalities": modalities}
            if influences is not None and scores:
                effects = influences.effects[index]
                order = [j for j in effects.abs().argsort(descending=True).tolist() if effects[j] != 0]
                answer["influences"] = [{"turn": j + 1, "effect": float(effects[j])} for j in order]
                answer["contributions"] = influences.contributions[index]
                answer["without_input"] = float(influences.empty[index])
            answers.append({**answer, **({"notes": turn["notes"]} if "notes" in turn else {})})
        return answers

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[list[dict[str, Any]]]:
        """One dialogue after the other: each is a batch of turns already."""
        return (self.run_single(one, preprocess_params, forward_params, postprocess_params) for one in inputs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        The model, its processor where it has towers of its own, and this file where the config names it, as in a
        checkpoint from the Hub.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        if not self.model.config.step_aligned:
            self.encoder.processor.save_pretrained(save_directory)
        if getattr(self.model.config, "custom_pipelines", None):
            custom_object_save(self, save_directory)


class DialogueSession:
    """
    A dialogue as it goes on: each turn is answered when it comes, from what came before, and never again. A push costs
    the same however long the dialogue is; the answers are those of the whole dialogue at once.

    Args:
        reader: the pipeline, with a model that sees only what came before (`context_causal`), at most `context_window`
            turns of it.
        keep_empty: as of the pipeline.
        parameters: of the pipeline's call: `top_k`, `candidate_labels`, `return_notes`, `num_frames`, ...

    Raises:
        ValueError: a model that sees what comes later, or sees back without an end; unknown parameters.
    """

    def __init__(
        self, reader: ConversationalEmotionRecognitionPipeline, keep_empty: bool = False, **parameters: Any
    ) -> None:
        self.reader = reader
        preparing, forward, self._postprocessing = reader._sanitize_parameters(**parameters)
        if forward.get("explain"):
            raise ValueError("explain: answers of a session are given once; explain the whole dialogue when it ended.")
        self._preparing = {**preparing, "keep_empty": keep_empty}
        self._cache = reader.model.new_cache()
        self._speakers = _Speakers()
        self.turns = 0

    def push(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        """
        The answer for the next turn, as the pipeline gives it. A turn that is refused (ValueError) does not count.
        """
        tensors = self.reader.read_turns([turn], self._speakers, self.turns + 1, **self._preparing)
        told = tensors.pop("turns")
        with torch.inference_mode():
            inputs = {name: value.to(self.reader.device) for name, value in tensors.items()}
            logits = self.reader.model.push(self._cache, **self.reader.taken(inputs))[0].float().cpu()
        self.turns += 1
        outputs = {"logits": logits, "present": self.reader.present(inputs)[0], "turns": told}
        return self.reader.postprocess(outputs, **self._postprocessing)[0]


class _Speakers:
    """Numbers for the names of a dialogue's speakers, in the order in which they come."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def number(self, name: Hashable) -> int:
        """-1 where the name is None."""
        return _UNKNOWN_SPEAKER if name is None else self._numbers.setdefault(name, len(self._numbers))


def _place(dialogue: str | None, turn: int | None = None) -> str:
    parts = [
        "the dialogue" if dialogue is None else f"dialogue {dialogue}",
        *([] if turn is None else [f"turn {turn}"]),
    ]
    return ", ".join(parts)
