"""Pretraining on unlabelled clips: L = w_mlm L_MLM + w_cl L_CL + w_frame L_frame.

Shape legend: B batch, L_m steps of modality m in the joint encoder, D hidden size, P projection size, V vocabulary,
T masked tokens of the batch, S masked sound and face steps.

    input ids, masked ------ text tower -----> E_text  --+
    audio ------------------ audio tower --+-> E_audio --+-> joint encoder -> H_text at the masked tokens -> L_MLM
    frames ----------------- vision tower -+-> E_vision -+
    the same three towers' pooled states, of the sentence as it was before masking -> z_text, z_audio, z_vision -> L_CL

z_text comes from the unmasked sentence, put together again from `input_ids` and `mlm_labels`: what is aligned is what
`get_text_features` gives, and a sentence of one word does not lose it. The text tower therefore runs on both. No z_m
has seen another modality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .configuration_triemo import TriemoConfig
from .distributed_triemo import is_distributed, mean_over_processes
from .inputs_triemo import ModalityInputs, TriemoInputs, check_shape, takes_inputs
from .losses_triemo import IGNORE_INDEX, contrastive_losses
from .modeling_triemo import TriemoModel, TriemoPreTrainedModel
from .towers_triemo import TowerOutput

FRAME_MODALITIES = ("audio", "vision")
# Share of sound and face steps that L_frame hides where the caller does not say which.
FRAME_MASK_PROBABILITY = 0.15


@dataclass
class TriemoForPreTrainingOutput(ModelOutput):
    """
    Losses are scalars in float32. In distributed training they are those of the global batch, the same on every
    process.

    Args:
        loss: weighted sum of the parts.
        mlm_loss: cross-entropy, mean over all masked tokens.
        contrastive_loss: mean of the next three over those that the batch has.
        text_audio_loss, text_vision_loss, audio_vision_loss: symmetric InfoNCE; 0 where no sample has the pair, None
            where the model lacks it.
        frame_loss: mean over masked sound and face steps; None with `frame_weight` 0.
        mlm_logits: (T, V), of the masked tokens alone, row by row as `mlm_labels` has them.
        token_losses: (T,), what `mlm_loss` is the mean of.
        frame_errors: (S,), what `frame_loss` is the mean of.
        text_embeds, audio_embeds, vision_embeds: unimodal embeddings, (B, P), of norm 1; zeros where absent.
        modality_mask: (B, 3) bool, which of text, audio, vision each sample has.
        logit_scale: 1 / temperature, a scalar.
        hidden_states: on request, joint states before the first layer and after each, (B, sum of L_m, D).
        attentions: on request, attention weights of each joint layer, (B, H, sum of L_m, sum of L_m).
    """

    loss: torch.Tensor | None = None
    mlm_loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    text_audio_loss: torch.Tensor | None = None
    text_vision_loss: torch.Tensor | None = None
    audio_vision_loss: torch.Tensor | None = None
    frame_loss: torch.Tensor | None = None
    mlm_logits: torch.Tensor | None = None
    token_losses: torch.Tensor | None = None
    frame_errors: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    vision_embeds: torch.Tensor | None = None
    modality_mask: torch.Tensor | None = None
    logit_scale: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ClampFromAbove(torch.autograd.Function):
    """min(value, maximum), whose gradient is kept where it would bring the value back below the maximum."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, maximum: float) -> torch.Tensor:
        ctx.save_for_backward(value)
        ctx.maximum = maximum
        return value.clamp(max=maximum)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (value,) = ctx.saved_tensors
        (gradient,) = gradients
        # A plain clamp has no gradient above the maximum: a scale that an optimiser step took there would stay.
        return torch.where((value < ctx.maximum) | (gradient > 0), gradient, torch.zeros_like(gradient)), None


class TriemoLogitScale(nn.Module):
    """Learned factor of the similarities, 1 / temperature: exp(weight), at most exp(`logit_scale_max`)."""

    def __init__(self, config: TriemoConfig):
        super().__init__()
        self.maximum = float(config.logit_scale_max)
        # One element, not a scalar: FSDP2 shards along the first axis.
        self.weight = nn.Parameter(torch.full((1,), float(config.logit_scale_init_value)))

    def forward(self) -> torch.Tensor:
        """The factor, a scalar in float32."""
        return ClampFromAbove.apply(self.weight.float(), self.maximum).exp().squeeze(0)


class TriemoMaskedTokenHead(nn.Module):
    """Token logits from joint states, as BERT's (Devlin et al., 2019): (T, D) -> (T, V)."""

    def __init__(self, config: TriemoConfig, embedding: nn.Embedding):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, embedding.embedding_dim)
        self.activation = ACT2FN[config.hidden_act]
        self.layer_norm = nn.LayerNorm(embedding.embedding_dim, eps=config.layer_norm_eps)
        # The weight is the token embedding's (`tie_word_embeddings`).
        self.decoder = nn.Linear(embedding.embedding_dim, embedding.num_embeddings)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layer_norm(self.activation(self.dense(states))))


class TriemoForPreTraining(TriemoPreTrainedModel):
    """
    Masked language modelling from the joint states, contrastive alignment of the unimodal embeddings and, on request,
    prediction of masked sound and face steps. A part whose weight in the config is 0 is not built.

    Fusion has no part in any of these losses: it is frozen here and starts from where it was in fine-tuning.

    Raises:
        ValueError: if nothing is to be learned: text tokens are needed for L_MLM, two modalities for L_CL.
    """

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]
    head_prefixes = ("mlm_head.", "logit_scale.", "frame_heads.")

    mlm_head: TriemoMaskedTokenHead | None
    logit_scale: TriemoLogitScale | None

    def __init__(self, config: TriemoConfig):
        super().__init__(config)
        self.triemo = TriemoModel(config)
        self.mlm_head = self.logit_scale = None
        has_tokens = "text" in config.modalities and config.text_feature_size is None
        if has_tokens and config.mlm_weight > 0:
            embedding: Any = self.triemo.get_input_embeddings()
            self.mlm_head = TriemoMaskedTokenHead(config, embedding)
            source = next(name for name, module in self.named_modules() if module is embedding)
            self._tied_weights_keys = {"mlm_head.decoder.weight": f"{source}.weight"}
        if len(config.modalities) > 1 and config.contrastive_weight > 0:
            self.logit_scale = TriemoLogitScale(config)
        framed = [m for m in FRAME_MODALITIES if m in config.modalities and config.frame_weight > 0]
        self.frame_heads = nn.ModuleDict(
            {m: nn.Linear(config.hidden_size, self.triemo.tower(m).width) for m in framed}
        )
        if self.mlm_head is None and self.logit_scale is None and not framed:
            raise ValueError(
                f"nothing to pretrain: this model has {config.modalities} with mlm_weight {config.mlm_weight}, "
                f"contrastive_weight {config.contrastive_weight} and frame_weight {config.frame_weight}; expected "
                "text tokens, or two modalities, with a weight above 0."
            )
        self.post_init()
        self.freeze_unused()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a checkpoint of any other head gives towers and joint part."""
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading makes every parameter trainable again.
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_unused()
        return loaded

    def freeze_unused(self) -> None:
        """Without a gradient DDP would wait for these, and weight decay would wear them down."""
        self.triemo.fusion.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TriemoLogitScale):
            init.constant_(module.weight, float(self.config.logit_scale_init_value))

    def get_input_embeddings(self) -> nn.Module:
        """Token embedding of the text tower."""
        return self.triemo.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.triemo.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """Last layer of the masked-token head; None without one."""
        return None if self.mlm_head is None else self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the last layer of the masked-token head."""
        if self.mlm_head is not None:
            self.mlm_head.decoder = value

    @capture_outputs
    @takes_inputs
    def forward(
        self,
        mlm_labels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        audio_step_mask: torch.Tensor | None = None,
        vision_step_mask: torch.Tensor | None = None,
        return_loss: bool = True,
        local_loss: bool = False,
        **inputs: Unpack[TriemoInputs],
    ) -> TriemoForPreTrainingOutput:
        """
        `modality_dropout` has no effect here: it would take pairs away.

        Args:
            mlm_labels: (B, text steps) int64, the token that was masked, -100 at all other steps.
            labels: (B,) class ids, -100 where unknown; samples of one class are no negatives of one another.
            audio_step_mask, vision_step_mask: (B, L_m), 1 where `L_frame` hides a step; drawn at random, one a clip at
                least, when not given.
            return_loss: without it losses are None: for gradient caching, which computes them over many batches.
            local_loss: see [`contrastive_losses`].
            inputs: as in [`TriemoModel`], with masked tokens in `input_ids`.

        Raises:
            ValueError: naming the field, as [`TriemoModel`] does, and for labels that do not fit.
        """
        options: Any = inputs
        output_attentions = bool(options.get("output_attentions", self.config.output_attentions))
        given = ModalityInputs.collect(self.config, inputs)
        given.check_presence()
        self.check_mlm_labels(mlm_labels, inputs.get("input_ids"))
        # In evaluation, too: FSDP2 gathers weights there as well. Losses are over all processes in training only: in
        # evaluation these need not have equally many batches.
        everywhere = is_distributed()
        if everywhere:
            given.add_missing(self.config, self.device)

        base = self.triemo
        embeds: dict[str, Any] = {}
        towers: dict[str, TowerOutput] = {}
        for modality in given.values:
            if modality == "text" and mlm_labels is not None:
                tower, unmasked = self.run_text_twice(given, mlm_labels, everywhere)
            else:
                tower = unmasked = base.run_tower(modality, given, everywhere)
            embeds[f"{modality}_embeds"] = base.embed_unimodal(modality, unmasked)
            towers[modality] = base.to_joint_rate(modality, tower)

        hidden_steps = self.steps_to_hide(towers, {"audio": audio_step_mask, "vision": vision_step_mask})
        predicts_tokens = self.mlm_head is not None and "text" in towers and (mlm_labels is not None or everywhere)
        text_sees_others = self.config.mlm_uses_joint_states
        scale = None if self.logit_scale is None else self.logit_scale()
        joint: dict[str, torch.Tensor] = {}
        mlm_logits = token_losses = frame_errors = None
        asked = output_attentions or options.get("output_hidden_states", self.config.output_hidden_states)
        if hidden_steps or asked or (predicts_tokens and text_sees_others):
            joint = self.joint_states(towers, hidden_steps, output_attentions=output_attentions)
        elif everywhere and not predicts_tokens and scale is not None:
            # No loss reads the joint states here; a gradient of zero keeps their parameters in use.
            scale = scale + 0.0 * sum(states.float().sum() for states in self.joint_states(towers, {}).values())
        if predicts_tokens:
            read = joint if text_sees_others else self.joint_states(towers, {}, text_alone=True)
            mlm_logits, token_losses = self.predict_tokens(read["text"], towers["text"].mask, mlm_labels)
        if hidden_steps:
            frame_errors = self.predict_steps(joint, towers, hidden_steps)
        output = TriemoForPreTrainingOutput(
            mlm_logits=mlm_logits,
            token_losses=token_losses,
            frame_errors=frame_errors,
            modality_mask=given.modality_mask(),
            logit_scale=scale,
            **embeds,
        )
        if not return_loss:
            return output
        losses: dict[str, Any] = pretraining_losses(
            self.config, output, labels, everywhere and self.training, local_loss
        )
        return TriemoForPreTrainingOutput(**losses, **output)

    def check_mlm_labels(self, mlm_labels: torch.Tensor | None, input_ids: torch.Tensor | None) -> None:
        """Raises ValueError unless the labels fit the tokens."""
        if mlm_labels is None:
            return
        if input_ids is None:
            raise ValueError("mlm_labels was passed without the input_ids that it belongs to.")
        check_shape("mlm_labels", mlm_labels, input_ids.shape)
        if torch.compiler.is_compiling():
            return
        embedding: Any = self.get_input_embeddings()
        size = embedding.num_embeddings
        wrong = mlm_labels[(mlm_labels != IGNORE_INDEX) & ((mlm_labels < 0) | (mlm_labels >= size))]
        if len(wrong):
            raise ValueError(
                f"mlm_labels must be token ids from 0 to {size - 1} (or {IGNORE_INDEX}), got {int(wrong[0])}."
            )

    def run_text_twice(
        self, inputs: ModalityInputs, mlm_labels: torch.Tensor, everywhere: bool
    ) -> tuple[TowerOutput, TowerOutput]:
        """The text tower's states of the masked sentence and of the sentence before masking, from one call."""
        masked = inputs.values["text"]
        types = inputs.token_type_ids
        both = ModalityInputs(
            {"text": torch.cat([masked, torch.where(mlm_labels == IGNORE_INDEX, masked, mlm_labels)])},
            {"text": inputs.masks["text"].repeat(2, 1)},
            token_type_ids=None if types is None else types.repeat(2, 1),
        )
        output = self.triemo.run_tower("text", both, everywhere)
        pairs = zip(output.states.chunk(2), output.mask.chunk(2), strict=True)
        first, second = (TowerOutput(states, mask) for states, mask in pairs)
        return first, second

    def joint_states(
        self,
        towers: dict[str, TowerOutput],
        hidden_steps: dict[str, torch.Tensor],
        text_alone: bool = False,
        output_attentions: bool = False,
    ) -> dict[str, torch.Tensor]:
        """
        H_m, (B, L_m, D), by modality.

        Args:
            towers: their outputs, at the joint encoder's rate.
            hidden_steps: (B, L_m) bool, steps whose tower state is replaced by zeros.
            text_alone: in samples with text, attend to text only.
            output_attentions: have the attention weights recorded.
        """
        states, masks = {}, {m: output.mask for m, output in towers.items()}
        for modality, output in towers.items():
            if modality in hidden_steps:
                seen = ~hidden_steps[modality].unsqueeze(-1)
                output = TowerOutput(output.states * seen.to(output.states.dtype), output.mask, output.times)
            states[modality] = self.triemo.embed_steps(modality, output)
        if text_alone:
            has_text = masks["text"].any(1, keepdim=True)
            masks |= {m: mask * (~has_text).to(mask.dtype) for m, mask in masks.items() if m != "text"}
        return self.triemo.split_steps(self.triemo.encode_jointly(states, masks, output_attentions), masks)

    def predict_tokens(
        self, text: torch.Tensor, mask: torch.Tensor, mlm_labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (T, V) and cross-entropies (T,) of the masked tokens; the rest never meets the vocabulary."""
        if mlm_labels is None:
            mlm_labels = torch.full_like(mask, IGNORE_INDEX)
        chosen = (mlm_labels != IGNORE_INDEX) & mask.bool()
        logits = self.mlm_head(text[chosen])  # type: ignore[misc]
        return logits, nn.functional.cross_entropy(logits.float(), mlm_labels[chosen], reduction="none")

    def steps_to_hide(
        self, towers: dict[str, TowerOutput], given: dict[str, torch.Tensor | None]
    ) -> dict[str, torch.Tensor]:
        """(B, L_m) bool of sound and face, by modality; empty without L_frame."""
        hidden_steps = {}
        for modality in self.frame_heads:
            if modality not in towers:
                continue
            mask, wanted = towers[modality].mask.bool(), given[modality]
            if wanted is None:
                draw = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, 2.0)
                lowest = torch.zeros_like(mask).scatter_(1, draw.argmin(1, keepdim=True), True)
                wanted = (draw < FRAME_MASK_PROBABILITY) | lowest
            else:
                check_shape(f"{modality}_step_mask", wanted, mask.shape)
            hidden_steps[modality] = wanted.bool() & mask
        return hidden_steps

    def predict_steps(
        self, joint: dict[str, torch.Tensor], towers: dict[str, TowerOutput], hidden_steps: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """
        Mean squared error, (S,), between what the joint states of the hidden steps predict and the tower's states
        there, normalised to mean 0 and variance 1. The towers get no gradient as targets: they would make them all
        alike.
        """
        errors = []
        for modality, steps in hidden_steps.items():
            target = towers[modality].states[steps].detach().float()
            target = nn.functional.layer_norm(target, target.shape[-1:])
            errors.append((self.frame_heads[modality](joint[modality][steps]).float() - target).square().mean(-1))
        return torch.cat(errors)


def pretraining_losses(
    config: TriemoConfig,
    output: TriemoForPreTrainingOutput,
    labels: torch.Tensor | None,
    everywhere: bool,
    local_loss: bool = False,
) -> dict[str, torch.Tensor]:
    """
    `loss` and its parts from what the model gave for a batch, or for several put together.

    Args:
        config: of the model.
        output: embeddings, `modality_mask`, `logit_scale`, `token_losses` and `frame_errors` count.
        labels: (B,) class ids, -100 where unknown, or None.
        everywhere: over all processes; every process has to call this then.
        local_loss: see [`contrastive_losses`].
    """
    parts: dict[str, torch.Tensor] = {}
    weighted = []
    means = (("mlm", output.token_losses), ("frame", output.frame_errors))
    for name, values in means:
        if values is not None:
            count = values.new_tensor(float(len(values)))
            parts[f"{name}_loss"] = mean_over_processes(values.sum(), count, everywhere)
            weighted.append(getattr(config, f"{name}_weight") * parts[f"{name}_loss"])
    mask: Any = output.modality_mask
    embeds = {m: output[f"{m}_embeds"] for m in config.modalities if f"{m}_embeds" in output}
    if output.logit_scale is not None:
        some = next(iter(embeds.values()))
        absent = {m: torch.zeros_like(some) for m in config.modalities if m not in embeds}
        # The last collective of the forward pass is the first of the backward pass, on every process alike.
        parts |= contrastive_losses(embeds | absent, mask, output.logit_scale, config, labels, everywhere, local_loss)
        weighted.append(config.contrastive_weight * parts["contrastive_loss"])
    elif everywhere:
        # Without L_CL the projections get a gradient of zero.
        weighted.append(0.0 * torch.stack([embed.float().sum() for embed in embeds.values()]).sum())
    return {"loss": torch.stack(weighted).sum() if weighted else mask.new_zeros((), dtype=torch.float32), **parts}


__all__ = ["TriemoForPreTraining", "TriemoForPreTrainingOutput", "TriemoLogitScale", "pretraining_losses"]
