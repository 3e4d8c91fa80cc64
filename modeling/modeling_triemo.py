"""Triemo: emotion from text, speech and video in any combination.

Shape legend: B batch, L_m steps of modality m in the joint encoder, D hidden size, P projection size, H heads.

Read top-down: inputs -> towers -> embedding -> joint encoder -> fusion -> head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_triemo import TriemoConfig
from .distributed_triemo import is_distributed
from .encoders_triemo import load_encoder, supported_attention, text_positions
from .fusion_triemo import TriemoFusion
from .inputs_triemo import VALUES, ModalityInputs, TriemoInputs, accepted_values, takes_inputs
from .layers_triemo import (
    RECORDED_OUTPUTS,
    TriemoEncoderLayer,
    attention_mask_for,
    masked_mean,
    sinusoidal_positions,
)
from .loading_triemo import StrictlyLoadedModel
from .losses_triemo import emotion_loss
from .towers_triemo import TowerOutput, TriemoAudioTower, TriemoTextTower, TriemoTower, TriemoVisionTower

# What only TriemoForPreTraining has; loading any other class from its checkpoint is no reason for a warning.
PRETRAINING_KEYS = r"^(mlm_head|logit_scale|frame_heads)\."
# What only TriemoForEmotionSequence has.
CONTEXT_KEYS = r"^context\."


@dataclass
class TriemoModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state: states of the joint encoder, (B, sum of L_m, D), in the order text, audio, vision.
        pooler_output: the fused state, (B, D); (B, L, D) when the config is step-aligned.
        text_embeds, audio_embeds, vision_embeds: unimodal embeddings, (B, P), of norm 1; zeros where absent.
        modality_mask: (B, 3) bool, which of text, audio, vision each sample has.
        step_masks: valid steps of each modality, (B, L_m), by name.
        hidden_states: on request, joint states before the first layer and after each, (B, sum of L_m, D).
        attentions: on request, attention weights of each joint layer, (B, H, sum of L_m, sum of L_m).
        fusion_attentions: on request, (B, H, L_m, L_n) keyed `("text", "audio")` for text attending to audio.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    vision_embeds: torch.Tensor | None = None
    modality_mask: torch.Tensor | None = None
    step_masks: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    fusion_attentions: dict[tuple[str, str], torch.Tensor] | None = None


@dataclass
class TriemoClassifierOutput(ModelOutput):
    """
    Args:
        loss: scalar, when labels are given.
        logits: (B, C), before softmax and before the calibration temperature.
        text_embeds, audio_embeds, vision_embeds, modality_mask, hidden_states, attentions, fusion_attentions: as in
            [`TriemoModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    vision_embeds: torch.Tensor | None = None
    modality_mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    fusion_attentions: dict[tuple[str, str], torch.Tensor] | None = None


class TriemoPreTrainedModel(StrictlyLoadedModel):
    """Loading, saving and initialisation shared by [`TriemoModel`] and its heads."""

    config: TriemoConfig
    config_class = TriemoConfig
    base_model_prefix = "triemo"
    input_modalities = ("text", "audio", "image", "video")
    supports_gradient_checkpointing = True
    # Losses are means over a batch here; a Trainer must not scale them by counts of its own.
    accepts_loss_kwargs = False
    _no_split_modules = ["TriemoEncoderLayer", "TriemoFusion"]
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = RECORDED_OUTPUTS

    def __init__(self, config: TriemoConfig):
        super().__init__(config)
        # The Trainer counts its elements and hands it to metrics on request.
        self.main_input_name = next(iter(accepted_values(config).values()), "input_ids")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TriemoModalityEmbedding):
            # Brings E_m to the scale of the positions, whatever the tower's width.
            init.xavier_uniform_(module.projection.weight)

    def enable_input_require_grads(self) -> None:
        """
        As in transformers, for every modality: what enters a checkpointed layer has to ask for a gradient, or the
        adapters inside get none, and that without a word.
        """
        super().enable_input_require_grads()
        base: Any = getattr(self, self.base_model_prefix, self)
        for modality in self.config.modalities:
            encoder = base.tower(modality).encoder
            entries = [getattr(base, f"{modality}_embedding")]
            if encoder is not None:
                # An encoder's first part stands where token embeddings stand.
                entries.append(next(encoder.children()))
            self._require_grads_hooks += [entry.register_forward_hook(require_gradient) for entry in entries]

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs: Any) -> None:
        """Switch the attention backend; an encoder that lacks the requested one keeps the best it has."""
        if isinstance(attn_implementation, str):
            base: Any = getattr(self, self.base_model_prefix, self)
            encoders = {f"{modality}_config": base.tower(modality).encoder for modality in self.config.modalities}
            attn_implementation = {"": attn_implementation} | {
                name: str(supported_attention(type(encoder), attn_implementation))
                for name, encoder in encoders.items()
                if encoder is not None
            }
        super().set_attn_implementation(attn_implementation, **kwargs)

    @classmethod
    def from_encoders_pretrained(
        cls,
        text: Any = None,
        audio: Any = None,
        vision: Any = None,
        encoder_kwargs: dict[str, dict] | None = None,
        **config_fields: Any,
    ) -> Any:
        """
        Compose a model of pretrained encoders; everything that joins them starts at random.

        Args:
            text, audio, vision: Hub id, folder or `PreTrainedModel` of an encoder, or None to leave the modality out
                (or to give it as vectors, `audio_feature_size=74`). Whisper's encoder becomes the built-in tower.
            encoder_kwargs: keyword arguments of `from_pretrained` by modality, for example
                `{"text": {"revision": "main"}}`.
            config_fields: fields of [`TriemoConfig`].

        Returns:
            A model of this class in float32 and evaluation mode.

        Example:
            >>> TriemoForEmotionClassification.from_encoders_pretrained(
            ...     text="roberta-base", audio="openai/whisper-tiny", vision="microsoft/resnet-18", num_labels=7
            ... )
        """
        names = {"text": text, "audio": audio, "vision": vision}
        encoders = {
            m: load_encoder(name, m, **(encoder_kwargs or {}).get(m, {}))
            for m, name in names.items()
            if name is not None
        }
        config_fields |= {f"{m}_config": encoder.config for m, encoder in encoders.items()}
        config = TriemoConfig(**config_fields)
        if "max_text_positions" not in config_fields and config.text_config is not None:
            tower_limit = getattr(config.text_config, "max_position_embeddings", None)
            config.max_text_positions = tower_limit or config.max_text_positions
            config.max_text_positions = text_positions(config, encoders["text"])
        model = cls(config)
        base: Any = getattr(model, model.base_model_prefix, model)
        for modality, encoder in encoders.items():
            # Only poolers, which the towers leave out, may be left over.
            missing, _ = base.tower(modality).encoder.load_state_dict(encoder.state_dict(), strict=False)
            if missing:
                raise ValueError(f"{modality} encoder {type(encoder).__name__} lacks the weights {missing[:3]}, ...")
        return model.eval()


def require_gradient(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook: floats that come out ask for a gradient, as copies, for some encoders write into them."""

    def asking(value: Any) -> Any:
        if not (torch.is_grad_enabled() and torch.is_tensor(value) and value.is_floating_point()):
            return value
        return value if value.requires_grad else value.requires_grad_(True).clone()

    return tuple(asking(value) for value in output) if isinstance(output, tuple) else asking(output)


class TriemoModalityEmbedding(nn.Module):
    """E_m = W_m X_m + P_m + type_m, with P an index for text and a sinusoid of seconds for audio and vision."""

    def __init__(self, config: TriemoConfig, modality: str, width: int):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.projection = nn.Linear(width, config.hidden_size)
        self.type_embedding = nn.Embedding(1, config.hidden_size)
        # One unit of position is one step at this rate, the same for audio and vision, so that times compare.
        self.position_rate = float(config.audio_step_rate or 10.0)
        learned = modality == "text" and config.text_position_type == "learned"
        self.position_embedding = nn.Embedding(config.max_text_positions, config.hidden_size) if learned else None
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, states: torch.Tensor, times: torch.Tensor | None) -> torch.Tensor:
        """(B, L, width), and times (B, L) in seconds or None for text -> (B, L, D)."""
        embedded = self.projection(states)
        index = torch.arange(states.shape[1], device=states.device)
        if self.position_embedding is not None:
            positions = self.position_embedding(index)
        else:
            positions = sinusoidal_positions(index if times is None else times * self.position_rate, self.hidden_size)
        return self.dropout(embedded + positions.to(embedded.dtype) + self.type_embedding.weight)


class TriemoModel(TriemoPreTrainedModel):
    """
    Towers, joint encoder and fusion: any subset of text, speech and video to one fused state.

    A modality is absent from a sample when it is not passed or its mask row is all zero; a batch that mixes subsets
    gives each sample what it gets alone.
    """

    # Loading the base model from a checkpoint with a head is no reason for a warning.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", CONTEXT_KEYS, PRETRAINING_KEYS]

    text_tower: TriemoTextTower
    audio_tower: TriemoAudioTower
    vision_tower: TriemoVisionTower

    def __init__(self, config: TriemoConfig):
        super().__init__(config)
        if not config.modalities:
            raise ValueError(
                "TriemoConfig has no modality: give text_config, audio_config or vision_config, or the width of "
                "precomputed vectors (text_feature_size, audio_feature_size, vision_feature_size)."
            )
        towers: dict[str, type] = {"text": TriemoTextTower, "audio": TriemoAudioTower, "vision": TriemoVisionTower}
        for modality in config.modalities:
            tower = towers[modality](config)
            setattr(self, f"{modality}_tower", tower)
            setattr(self, f"{modality}_embedding", TriemoModalityEmbedding(config, modality, tower.width))
            setattr(self, f"{modality}_projection", nn.Linear(tower.width, config.projection_dim, bias=False))
        self.layers = nn.ModuleList([TriemoEncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fusion = TriemoFusion(config)
        if len(config.modalities) == 1:
            # Checkpoints from when a fusion of one modality had projections.
            self._keys_to_ignore_on_load_unexpected = [
                *type(self)._keys_to_ignore_on_load_unexpected,
                r"fusion\.projections\.",
            ]
        self.post_init()

    def tower(self, modality: str) -> TriemoTower:
        """The tower of `"text"`, `"audio"` or `"vision"`."""
        return getattr(self, f"{modality}_tower")

    def get_input_embeddings(self) -> nn.Module:
        """Token embedding of the text tower; a plain vocabulary's when there is no tower."""
        if "text" not in self.config.modalities or self.config.text_feature_size is not None:
            raise NotImplementedError("This model has no token embedding.")
        encoder = self.text_tower.encoder
        return self.text_tower.token_embedding if encoder is None else encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding (used by `resize_token_embeddings`)."""
        if self.text_tower.encoder is None:
            self.text_tower.token_embedding = value
            self.config.text_vocab_size = value.num_embeddings
        else:
            self.text_tower.encoder.set_input_embeddings(value)

    @can_return_tuple
    @takes_inputs
    def get_text_features(self, **inputs: Unpack[TriemoInputs]) -> BaseModelOutputWithPooling:
        """
        Unimodal embedding of text for retrieval, arguments as in `forward`.

        Returns:
            `pooler_output` is the embedding, (B, P) of norm 1; `last_hidden_state` (B, L, C) and, on request,
            `hidden_states` are the tower's.
        """
        return self._unimodal_features("text", **inputs)

    @can_return_tuple
    @takes_inputs
    def get_audio_features(self, **inputs: Unpack[TriemoInputs]) -> BaseModelOutputWithPooling:
        """Unimodal embedding of speech for retrieval; see [`get_text_features`]."""
        return self._unimodal_features("audio", **inputs)

    @can_return_tuple
    @takes_inputs
    def get_vision_features(self, **inputs: Unpack[TriemoInputs]) -> BaseModelOutputWithPooling:
        """Unimodal embedding of video or images for retrieval; see [`get_text_features`]."""
        return self._unimodal_features("vision", **inputs)

    def _unimodal_features(self, modality: str, **inputs: Any) -> BaseModelOutputWithPooling:
        given = ModalityInputs.collect(self.config, inputs)
        if modality not in given.values:
            expected = [name for name, (of, *_) in VALUES.items() if of == modality]
            raise ValueError(f"get_{modality}_features got none of {expected}.")
        wants_states = inputs.get("output_hidden_states") or self.config.output_hidden_states
        output = self.run_tower(modality, given, **({"output_hidden_states": wants_states} if wants_states else {}))
        return BaseModelOutputWithPooling(
            last_hidden_state=output.states,
            pooler_output=self.embed_unimodal(modality, output),
            hidden_states=output.hidden_states,
        )

    @takes_inputs
    def tower_means(
        self, layers: Mapping[str, Sequence[int]] | None = None, **inputs: Unpack[TriemoInputs]
    ) -> dict[str, torch.Tensor]:
        """
        The mean over time of a tower's states, each modality alone: an utterance as one vector.

        Args:
            layers: by modality, which of its `hidden_states` are joined; -1, the default, is the tower's output.
            inputs: as in `forward`, of these modalities at least.

        Returns:
            (B, number of layers * C) by modality; zeros for a sample that lacks it.

        Raises:
            ValueError: a modality that the inputs lack, a layer that there is not, or states that are no vectors.
        """
        given = ModalityInputs.collect(self.config, inputs)
        means: dict[str, torch.Tensor] = {}
        for modality, wanted in (layers or dict.fromkeys(given.values, (-1,))).items():
            if modality not in given.values:
                raise ValueError(f"tower_means: got no {modality} among the inputs.")
            inside = any(layer != -1 for layer in wanted)
            output = self.run_tower(modality, given, **({"output_hidden_states": True} if inside else {}))
            states = [output.states]
            if inside:
                states = [*(output.hidden_states or ()), output.states]
            means[modality] = torch.cat([mean_of_layer(states, n, output.mask, modality) for n in wanted], dim=-1)
        return means

    def run_tower(
        self, modality: str, inputs: ModalityInputs, everywhere: bool = False, **request: Any
    ) -> TowerOutput:
        """One tower over a call's tensors; `everywhere`: even where no sample of this process has the modality."""
        tensors: dict[str, Any] = {"inputs": inputs.values[modality], "mask": inputs.masks[modality]}
        if modality == "text":
            tensors["token_type_ids"] = inputs.token_type_ids
        else:
            tensors["times"] = inputs.times[modality]
        return self.tower(modality)(**tensors, everywhere=everywhere, **request)

    def embed_unimodal(self, modality: str, output: TowerOutput) -> torch.Tensor:
        """z_m: projection of the mean tower state, of norm 1; taken before any step has seen another modality."""
        projection = getattr(self, f"{modality}_projection")
        pooled = masked_mean(output.states.to(projection.weight.dtype), output.mask)
        return nn.functional.normalize(projection(pooled), dim=-1)

    def to_joint_rate(self, modality: str, output: TowerOutput) -> TowerOutput:
        """Steps as the joint encoder takes them: sound is averaged to `audio_step_rate`."""
        return self.audio_tower.pool_steps(output) if modality == "audio" else output

    def embed_steps(self, modality: str, output: TowerOutput) -> torch.Tensor:
        """E_m, (B, L_m, D), of a tower's output at the joint encoder's rate."""
        embedding = getattr(self, f"{modality}_embedding")
        return embedding(output.states.to(embedding.projection.weight.dtype), output.times)

    @capture_outputs
    @takes_inputs
    def forward(self, **inputs: Unpack[TriemoInputs]) -> TriemoModelOutput:
        """
        Args:
            inputs: see [`TriemoInputs`], and what every model of the library takes: `output_attentions` returns the
                attentions of joint encoder and fusion, `output_hidden_states` the joint encoder's states.

        Raises:
            ValueError: naming the field, for a wrong rank or shape, a modality the model does not have, a text longer
                than its positions, or a sample without any modality.
            TypeError: naming an argument that there is not.
        """
        options: Any = inputs
        output_attentions = bool(options.get("output_attentions", self.config.output_attentions))
        given = ModalityInputs.collect(self.config, inputs)
        given.check_presence()
        # In evaluation, too: FSDP2 gathers weights there as well.
        everywhere = is_distributed()
        if everywhere:
            given.add_missing(self.config, self.device)
        if self.training and self.config.modality_dropout > 0:
            given.drop_modalities(self.config.modality_dropout)

        embeds: dict[str, Any] = {}
        states, masks = {}, {}
        for modality in given.values:
            output = self.run_tower(modality, given, everywhere)
            embeds[f"{modality}_embeds"] = self.embed_unimodal(modality, output)
            output = self.to_joint_rate(modality, output)
            states[modality] = self.embed_steps(modality, output)
            masks[modality] = output.mask

        joint = self.encode_jointly(states, masks, output_attentions)
        fused, fusion_attentions = self.fusion(self.split_steps(joint, masks), masks, output_attentions)
        if everywhere:
            # No loss of a head reads the unimodal embeddings; without them DDP reports unused parameters.
            fused = fused + 0.0 * sum(embed.sum() for embed in embeds.values()).to(fused.dtype)
        return TriemoModelOutput(
            last_hidden_state=joint,
            pooler_output=fused,
            modality_mask=given.modality_mask(),
            step_masks=masks,
            fusion_attentions=fusion_attentions,
            **embeds,
        )

    def encode_jointly(
        self, states: dict[str, torch.Tensor], masks: dict[str, torch.Tensor], output_attentions: bool = False
    ) -> torch.Tensor:
        """Attention within and between modalities over [E_text; E_audio; E_vision]; masked steps come out zero."""
        joint = torch.cat(list(states.values()), dim=1)
        valid = torch.cat(list(masks.values()), dim=1)
        attention_mask = attention_mask_for(self.config, joint, valid, output_attentions)
        for layer in self.layers:
            joint = layer(joint, attention_mask, output_attentions=output_attentions)
        return self.layer_norm(joint) * valid.unsqueeze(-1).to(joint.dtype)

    def split_steps(self, joint: torch.Tensor, masks: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Joint states (B, sum of L_m, D) -> H_m (B, L_m, D), by modality."""
        return dict(zip(masks, joint.split([mask.shape[1] for mask in masks.values()], dim=1), strict=True))


def mean_of_layer(states: Sequence[torch.Tensor], layer: int, mask: torch.Tensor, modality: str) -> torch.Tensor:
    """Mean (B, C) of one layer's states (B, L, C), or longer by padding, over the steps of `mask` (B, L)."""
    last = len(states) - 1
    if not -1 <= layer < max(last, 1):
        raise ValueError(f"layers: got {layer} for {modality}, expected -1 or 0 to {last - 1}.")
    if states[layer].dim() != 3:
        raise ValueError(f"layers: got {layer} for {modality}, whose states are no vectors there; expected -1.")
    return masked_mean(states[layer][:, : mask.shape[1]], mask)


class TriemoClassificationHead(nn.Module):
    """Two-layer head on the fused state."""

    def __init__(self, config: TriemoConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., C)."""
        return self.out_proj(self.dropout(self.activation(self.dense(self.dropout(states)))))


class TriemoForEmotionClassification(TriemoPreTrainedModel):
    """
    Emotion of a clip: one label (softmax), several (`problem_type="multi_label_classification"`) or real values such
    as valence and arousal (`problem_type="regression"`).
    """

    _keys_to_ignore_on_load_unexpected = [PRETRAINING_KEYS]
    head_prefixes = ("classifier.",)

    def __init__(self, config: TriemoConfig):
        super().__init__(config)
        if config.step_aligned:
            raise ValueError("TriemoForEmotionClassification labels clips; step_aligned must be False.")
        self.num_labels = config.num_labels
        self.triemo = TriemoModel(config)
        self.classifier = TriemoClassificationHead(config)
        self.post_init()
        # A conversation's classifier without the context that it learned with would answer, and wrongly.
        ignored: Any = self._keys_to_ignore_on_load_unexpected
        self._keys_to_ignore_on_load_unexpected = type(ignored)(keys for keys in ignored if keys != CONTEXT_KEYS)

    def get_input_embeddings(self) -> nn.Module:
        """Token embedding of the text tower."""
        return self.triemo.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.triemo.set_input_embeddings(value)

    @can_return_tuple
    @takes_inputs
    def forward(self, labels: torch.Tensor | None = None, **inputs: Unpack[TriemoInputs]) -> TriemoClassifierOutput:
        """
        Args:
            labels: (B,) class ids (-100 is ignored), or (B, C) soft targets, multi-hot labels or regression targets.
            inputs: as in [`TriemoModel`].
        """
        outputs = self.triemo(**inputs, return_dict=True)
        logits = self.classifier(outputs.pooler_output)
        return TriemoClassifierOutput(
            loss=None if labels is None else emotion_loss(logits, labels, self.config),
            logits=logits,
            text_embeds=outputs.text_embeds,
            audio_embeds=outputs.audio_embeds,
            vision_embeds=outputs.vision_embeds,
            modality_mask=outputs.modality_mask,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            fusion_attentions=outputs.fusion_attentions,
        )


__all__ = [
    "TriemoClassifierOutput",
    "TriemoForEmotionClassification",
    "TriemoModel",
    "TriemoModelOutput",
    "TriemoPreTrainedModel",
]
