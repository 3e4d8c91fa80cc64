"""Where `pretrain.py` starts: a checkpoint or a model composed of encoders, with the heads of pretraining."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triemo.modeling import MODALITIES, TriemoConfig, TriemoForPreTraining
from triemo.processing import TriemoProcessor
from triemo.training.finetune_model import freeze, parse_names
from triemo.training.finetune_start import compose_model, load_model
from triemo.training.pretrain_arguments import PretrainModelArguments

__all__ = [
    "build_pretraining_model",
    "enter_as_projected",
    "part_lr_factors",
    "projected_modalities",
    "still_modules",
]


def build_pretraining_model(args: PretrainModelArguments) -> tuple[TriemoForPreTraining, TriemoProcessor]:
    """
    The model that `args` name, in float32, and a processor that fits it.

    Raises:
        ValueError: naming what cannot be loaded, or when the model has nothing to be pretrained on.
    """
    given = {name: getattr(args, name) for name in ("mlm_weight", "contrastive_weight", "frame_weight")}
    fields: dict[str, Any] = {name: float(value) for name, value in given.items() if value is not None}
    fields |= {"contrastive_soft_labels": args.soft_labels, "contrastive_local_loss": args.local_loss}
    fields |= {"mlm_uses_joint_states": args.mlm_uses_joint_states}
    if any(getattr(args, f"{name}_encoder") for name in MODALITIES):
        composed, processor = compose_model(args, {})
        return with_heads(composed.triemo, composed.config, fields), processor
    if (Path(args.model) / "adapter_config.json").is_file():
        merged, processor = load_model(args.model)
        return with_heads(merged.triemo, merged.config, fields, args.towers_only), processor
    try:
        processor = TriemoProcessor.from_pretrained(args.model)
        config = TriemoConfig.from_pretrained(args.model)
        set_fields(config, fields)
        model = TriemoForPreTraining.from_pretrained(args.model, config=config, dtype=torch.float32)
    except OSError as error:
        raise ValueError(f"model: cannot load {args.model}: {error}") from error
    return (with_heads(model.triemo, config, {}, towers_only=True) if args.towers_only else model), processor


def set_fields(config: TriemoConfig, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        setattr(config, name, value)


def with_heads(
    base: nn.Module, config: TriemoConfig, fields: dict[str, Any], towers_only: bool = False
) -> TriemoForPreTraining:
    """A new model for pretraining around the towers and, unless `towers_only`, the joint part of another one."""
    set_fields(config, fields)
    model = TriemoForPreTraining(config)
    weights = base.state_dict()
    if towers_only:
        weights = {name: value for name, value in weights.items() if "_tower." in name}
    model.triemo.load_state_dict(weights, strict=not towers_only)
    return model


def still_modules(model: TriemoForPreTraining, args: PretrainModelArguments) -> list[nn.Module]:
    """
    Freezes towers, and returns what stays in evaluation mode: these, and every BatchNorm that has learned its
    statistics elsewhere. A vision tower that starts at random has none to keep.
    """
    frozen = parse_names(args.freeze_towers, "freeze_towers", MODALITIES)
    still = freeze(model, frozen)
    composed = any(getattr(args, f"{name}_encoder") for name in MODALITIES) and args.vision_encoder is None
    if (composed or args.new_vision_tower) and "vision" in model.config.modalities and "vision" not in frozen:
        fresh = set(model.triemo.tower("vision").modules())
        still = [module for module in still if module not in fresh]
    return still


def part_lr_factors(model: TriemoForPreTraining, args: PretrainModelArguments) -> dict[str, float]:
    """`"text_tower:0.1,layers:0.5"` by part of the base model. Raises ValueError for another part or number."""
    factors: dict[str, float] = {}
    parts = [name for name, _ in model.triemo.named_children()]
    for part in filter(None, (part.strip() for part in args.part_lr_factors.split(","))):
        name, _, number = part.partition(":")
        try:
            factors[name] = float(number)
        except ValueError:
            factors[name] = 0.0
        if name not in parts or not 0 < factors[name] < float("inf"):
            raise ValueError(f"part_lr_factors: got {part!r}, expected one of {', '.join(parts)} and a number > 0.")
    return factors


def projected_modalities(model: TriemoForPreTraining, args: PretrainModelArguments) -> tuple[str, ...]:
    """
    Those of `joint_from_projections`.

    Raises:
        ValueError: naming an unknown modality, or when `projection_dim` and `hidden_size` differ.
    """
    config = model.config
    names = parse_names(args.joint_from_projections, "joint_from_projections", config.modalities)
    if names and config.projection_dim != config.hidden_size:
        raise ValueError(
            f"joint_from_projections: got a model of projection_dim {config.projection_dim}, expected that of its "
            f"hidden_size, {config.hidden_size}."
        )
    return names


@torch.no_grad()
def enter_as_projected(model: TriemoForPreTraining, modalities: Sequence[str]) -> None:
    """
    Puts the projections that the contrastive loss has taught in the place of those before the joint encoder, at the
    scale that they have there: fine-tuning reads the joint states, and what was aligned would not reach them.
    """
    for name in modalities:
        learned = getattr(model.triemo, f"{name}_projection").weight
        before = getattr(model.triemo, f"{name}_embedding").projection.weight
        before.copy_(learned * (before.norm() / learned.norm().clamp(min=1e-12)))
