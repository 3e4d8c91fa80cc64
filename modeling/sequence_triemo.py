"""Conversations: one label for every utterance of a dialogue, from what is said, how, with what face, and what came
before.

Shape legend: B dialogues, N utterances of the longest, U utterances of all dialogues, D hidden size, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_triemo import TriemoConfig
from .contexts_triemo import TriemoContext, TriemoContextCache, keep_last, visible_utterances
from .distributed_triemo import is_distributed
from .inputs_triemo import ModalityInputs, TriemoInputs, check_shape, takes_inputs
from .losses_triemo import emotion_loss
from .modeling_triemo import PRETRAINING_KEYS, TriemoClassificationHead, TriemoModel, TriemoPreTrainedModel


@dataclass
class TriemoSequenceOutput(ModelOutput):
    """
    Args:
        loss: scalar, when labels are given.
        logits: (B, N, C), before softmax; arbitrary at padding.
        utterance_mask: (B, N) int64, 1 where there is an utterance.
        fusion_attentions: on request, of utterances given as vectors, (B, H, N, N) keyed `("text", "audio")`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    utterance_mask: torch.Tensor | None = None
    fusion_attentions: dict[tuple[str, str], torch.Tensor] | None = None


class TriemoForEmotionSequence(TriemoPreTrainedModel):
    """
    Emotion of every utterance of a dialogue.

    With `config.step_aligned` an utterance is one vector of each modality: `text_features`, `input_features` and
    `vision_features` of shape (B, N, width), with masks (B, N) of where an utterance has the modality. The joint
    encoder sees one utterance at a time, the six directed attentions run over the dialogue, step by step.

    Without it, utterances are clips, U of all dialogues one after the other, as [`TriemoModel`] takes them, and
    `utterance_index` (B, N) says which of them each dialogue is made of, -1 at its end where it is shorter.

    Then `config.context_type` lets utterances know of one another.
    """

    _keys_to_ignore_on_load_unexpected = [PRETRAINING_KEYS]
    head_prefixes = ("classifier.", "context.")

    def __init__(self, config: TriemoConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.triemo = TriemoModel(config)
        self.context = TriemoContext(config)
        self.classifier = TriemoClassificationHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Token embedding of the text tower."""
        return self.triemo.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.triemo.set_input_embeddings(value)

    @can_return_tuple
    @takes_inputs
    def forward(
        self,
        labels: torch.Tensor | None = None,
        speakers: torch.Tensor | None = None,
        utterance_index: torch.Tensor | None = None,
        utterance_mask: torch.Tensor | None = None,
        clip_states: torch.Tensor | None = None,
        **inputs: Unpack[TriemoInputs],
    ) -> TriemoSequenceOutput:
        """
        Args:
            labels: (B, N) class ids, -100 where there is none.
            speakers: (B, N) int64, a number for each speaker of a dialogue, -1 where unknown; any numbers, for only
                whether two are the same counts.
            utterance_index: (B, N) int64, for clips; see above.
            utterance_mask: (B, N), for vectors and `clip_states`: 1 where there is an utterance. One without any
                modality is then context for the others, which see that its speaker had a turn; without this argument
                it is an error.
            clip_states: (B, N, D), what `encode_clips` has made of the clips before, in their place, with
                `utterance_mask`; zeros for one without any modality.
            inputs: as in [`TriemoModel`].

        Raises:
            ValueError: an utterance without any modality, naming dialogue and turn, or shapes that do not fit.
        """
        options: Any = inputs
        attentions = None
        if self.config.step_aligned:
            if utterance_index is not None or clip_states is not None:
                name = "utterance_index" if clip_states is None else "clip_states"
                raise ValueError(f"{name} is for clips; this model takes step-aligned vectors.")
            wanted = bool(options.get("output_attentions", self.config.output_attentions))
            given = ModalityInputs.collect(self.config, inputs)
            mask = check_utterances(given, utterance_mask)
            joint, masks = self.joint_states(given)
            visible = visible_utterances(mask, self.config.context_causal, self.config.context_window)
            states, attentions = self.triemo.fusion(joint, masks, wanted, visible)
        elif clip_states is not None:
            mask = torch.ones_like(clip_states[..., 0]) if utterance_mask is None else utterance_mask
            states, mask = clip_states, mask.long()
            check_shape("utterance_mask", mask, states.shape[:2])
        else:
            if utterance_mask is not None:
                raise ValueError("utterance_mask is for step-aligned vectors; of clips, utterance_index says it.")
            states, mask = self.gather_clips(self.triemo(**inputs, return_dict=True), utterance_index)
        if speakers is not None:
            check_shape("speakers", speakers, mask.shape)
        logits = self.classifier(self.context(states, mask, speakers))
        return TriemoSequenceOutput(
            loss=None if labels is None else emotion_loss(logits, labels, self.config),
            logits=logits,
            utterance_mask=mask,
            fusion_attentions=attentions,
        )

    def encode_clips(self, **inputs: Unpack[TriemoInputs]) -> torch.Tensor:
        """Clips, as [`TriemoModel`] takes them, to what the context sees of each, (U, D)."""
        return self.triemo(**inputs, return_dict=True).pooler_output

    def new_cache(self) -> TriemoContextCache:
        """What `push` keeps of running dialogues, empty. Raises ValueError as `push` does."""
        self._check_live()
        return TriemoContextCache()

    def _check_live(self) -> int:
        """The context's window; ValueError where a push cannot give what the whole dialogue gives."""
        window = self.config.context_window
        if not self.config.context_causal or window is None:
            raise ValueError(
                f"push: needs context_causal=True and a context_window, got {self.config.context_causal} and {window}."
            )
        return window

    def push(
        self,
        cache: TriemoContextCache,
        speakers: torch.Tensor | None = None,
        utterance_mask: torch.Tensor | None = None,
        clip_states: torch.Tensor | None = None,
        **inputs: Unpack[TriemoInputs],
    ) -> torch.Tensor:
        """
        The next utterances of running dialogues. What was pushed before is kept in `cache`, up to `context_window`
        utterances, so that a push costs the same however long the dialogue is, and gives what the whole dialogue at
        once gives.

        Args:
            cache: a `new_cache()` at the start of the dialogues; changed in place.
            speakers: (B, new), as in `forward`, the same numbers in every push.
            utterance_mask: (B, new), as in `forward`, all ones.
            clip_states: (B, new, D), as in `forward`.
            inputs: vectors (B, new, width) with their masks; without `config.step_aligned` clips, one a dialogue.

        Returns:
            Logits (B, new, C).

        Raises:
            ValueError: a model that sees the future or sees back without an end, or an utterance without any modality.
        """
        window = self._check_live()
        if self.config.step_aligned:
            given = ModalityInputs.collect(self.config, inputs)
            there = check_utterances(given, utterance_mask)
            new = there.shape[1]
            joint, masks = self.joint_states(given)
            nothing = torch.zeros_like(next(iter(joint.values())))
            for modality in self.config.modalities:
                state, mask = joint.get(modality, nothing), masks.get(modality, torch.zeros_like(there))
                if modality in cache.modalities:
                    kept_state, kept_mask = cache.modalities[modality]
                    state, mask = torch.cat([kept_state, state], dim=1), torch.cat([kept_mask, mask], dim=1)
                cache.modalities[modality] = keep_last(state, window), keep_last(mask, window)
                joint[modality], masks[modality] = state, mask
            there = torch.ones_like(masks[self.config.modalities[0]])
            fused, _ = self.triemo.fusion(joint, masks, visible=visible_utterances(there, True, window))
            states = fused[:, -new:]
        else:
            states = self.encode_clips(**inputs).unsqueeze(1) if clip_states is None else clip_states
        return self.classifier(self.context.push(states, speakers, cache))

    def joint_states(self, given: ModalityInputs) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """H_m (B, N, D) and masks (B, N), by modality, of utterances as vectors: each alone in the joint encoder."""
        model = self.triemo
        batch, steps = next(iter(given.masks.values())).shape
        flat = ModalityInputs(
            {m: value.reshape(batch * steps, 1, *value.shape[2:]) for m, value in given.values.items()},
            {m: mask.reshape(batch * steps, 1) for m, mask in given.masks.items()},
            dict.fromkeys(given.values),
        )
        everywhere = is_distributed()
        if everywhere:
            flat.add_missing(self.config, self.device)
        if self.training and self.config.modality_dropout > 0:
            flat.drop_modalities(self.config.modality_dropout)
        outputs = {m: model.run_tower(m, flat, everywhere) for m in flat.values}
        embedded = {m: model.embed_steps(m, output) for m, output in outputs.items()}
        joint = model.split_steps(model.encode_jointly(embedded, flat.masks), flat.masks)
        if everywhere:
            # No loss here reads the unimodal embeddings; without them DDP reports unused parameters.
            unread = sum(model.embed_unimodal(m, output).sum() for m, output in outputs.items())
            first = next(iter(joint))
            joint[first] = joint[first] + 0.0 * unread
        states = {m: state.reshape(batch, steps, -1) for m, state in joint.items()}
        return states, {m: mask.reshape(batch, steps) for m, mask in flat.masks.items()}

    def gather_clips(self, outputs: Any, index: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Fused states (U, D) and `utterance_index` (B, N) -> states (B, N, D), zero at padding, and mask (B, N)."""
        clips = outputs.pooler_output
        if index is None:
            # Without it all clips are one dialogue.
            return clips.unsqueeze(0), torch.ones(1, len(clips), dtype=torch.long, device=clips.device)
        if index.dim() != 2 or index.is_floating_point():
            raise ValueError(f"utterance_index must be integers (dialogues, utterances), got {tuple(index.shape)}.")
        if not torch.compiler.is_compiling() and bool((index >= len(clips)).any() | (index < -1).any()):
            raise ValueError(f"utterance_index must be from -1 to {len(clips) - 1}, got up to {int(index.max())}.")
        mask = (index >= 0).long()
        return clips[index.clamp(min=0)] * mask.unsqueeze(-1).to(clips.dtype), mask


def check_utterances(given: ModalityInputs, stated: torch.Tensor | None = None) -> torch.Tensor:
    """
    The mask (B, N) of utterances: as `stated`, or all up to a dialogue's last one that has a modality.

    Raises:
        ValueError: naming dialogue and turn of one without any modality before that, or of one that has a modality
            where none is stated.
    """
    if not given.masks:
        given.check_presence()
    some = torch.stack([mask.bool() for mask in given.masks.values()]).any(0)
    if stated is not None:
        check_shape("utterance_mask", stated, some.shape)
        there = stated.bool()
        gaps = (some & ~there) | (~there[:, :-1] & there[:, 1:]).any(1, keepdim=True)
        if not torch.compiler.is_compiling() and bool(gaps.any()):
            dialogue, turn = gaps.nonzero()[0].tolist()
            raise ValueError(
                f"utterance_mask: dialogue {dialogue} has an utterance at or after {turn}, where it says none; "
                "zeros may stand at a dialogue's end alone."
            )
        return there.long()
    after = some.flip(1).long().cumsum(1).flip(1) > 0
    if not torch.compiler.is_compiling():
        empty = (after & ~some).nonzero()
        if len(empty):
            dialogue, turn = empty[0].tolist()
            raise ValueError(f"utterance {turn} of dialogue {dialogue} has no modality: all its masks are zero.")
        gone = (~after[:, 0]).nonzero().flatten().tolist()
        if gone:
            raise ValueError(f"dialogues {gone} of the batch have no utterance: every mask row of theirs is zero.")
    return after.long()


__all__ = ["TriemoForEmotionSequence", "TriemoSequenceOutput", "check_utterances"]
