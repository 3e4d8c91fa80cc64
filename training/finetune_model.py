"""What of the model learns in `finetune.py`, and how fast: frozen towers, LoRA, class weights, layer-wise rates."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from triemo.modeling import TriemoForEmotionClassification
from triemo.training.finetune_arguments import ModelArguments

__all__ = ["DEFAULT_LORA_TARGETS", "add_lora", "class_weights", "freeze", "parameter_groups", "parse_names"]

logger = logging.getLogger(__name__)

# Attention projections by the names that encoder families give them; a convolutional vision tower has none, so there
# its convolutions. The head is trained as a whole.
DEFAULT_LORA_TARGETS = (
    r"triemo\.(.*\.)?([qkv]_proj|out_proj|query|key|value|attention\.output\.dense"
    r"|(query|key|value)_proj|[qkv]_lin|out_lin|linear_([qkv]|out)|pwconv[12]|convolution)"
)
_LAYER = re.compile(r"(text|audio|vision)_tower\..*?\.(?:layers?|stages|blocks)\.(\d+)\.")
_TOWER = re.compile(r"(text|audio|vision)_tower\.")
_BOTTOM = re.compile(r"embed|conv|feature|patch")


def parse_names(text: str, what: str, accepted: Sequence[str]) -> tuple[str, ...]:
    """Comma-separated names of `accepted`, or `all`. Raises ValueError naming `what`."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    names = list(accepted) if names == ["all"] else names
    for name in names:
        if name not in accepted:
            raise ValueError(f"{what}: got {name!r}, expected some of {', '.join(accepted)}.")
    return tuple(names)


def class_weights(text: str, counts: Mapping[str, float]) -> list[float] | None:
    """
    None for `none`; rows / (classes * rows of the class) for `balanced`; else the numbers given.

    Raises:
        ValueError: naming what is no number, their wrong count, or the class without a row.
    """
    if text == "none":
        return None
    if text == "balanced":
        empty = [name for name, count in counts.items() if not count]
        if empty:
            logger.warning(f"class_weights: no training row is {', '.join(empty)}; its weight is 1.")
        present = [count for count in counts.values() if count]
        mean = sum(present) / len(present)
        return [round(mean / count, 6) if count else 1.0 for count in counts.values()]
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"class_weights: got {text!r}, expected none, balanced or numbers.") from error
    if len(weights) != len(counts) or min(weights) < 0:
        raise ValueError(f"class_weights: got {text!r}, expected {len(counts)} numbers of 0 or more.")
    return weights


def freeze(model: TriemoForEmotionClassification, towers: Sequence[str]) -> list[nn.Module]:
    """
    Freeze towers. Returns the modules that must stay in evaluation mode: these, and every BatchNorm, whose running
    statistics small batches (and rows without a picture) would spoil.
    """
    still: list[nn.Module] = []
    for name in towers:
        if name not in model.config.modalities:
            raise ValueError(f"freeze_towers: got {name}, but the model has {', '.join(model.config.modalities)}.")
        still.append(model.triemo.tower(name).requires_grad_(False))
    return still + [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def add_lora(model: TriemoForEmotionClassification, args: ModelArguments, frozen: Sequence[str] = ()) -> Any:
    """
    Wrap a model with adapters; they and the head are all that learns.

    Raises:
        ValueError: when the targets match nothing in a tower, or something else would be trained.
    """
    pattern = args.lora_targets or DEFAULT_LORA_TARGETS
    still = rf"triemo\.({'|'.join(frozen)})_tower\..*" if frozen else None
    targets = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
        and re.fullmatch(pattern, name)
        and not name.startswith("classifier.")
        and not (still and re.fullmatch(still, name))
    }
    for modality in model.config.modalities:
        inside = any(name.startswith(f"triemo.{modality}_tower.") for name in targets)
        if model.triemo.tower(modality).encoder is not None and modality not in frozen and not inside:
            raise ValueError(
                f"lora_targets: {pattern!r} matches no layer of the {modality} tower; name some, or put it in "
                "--freeze_towers."
            )
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=pattern,
        exclude_modules=still,
        modules_to_save=["classifier"],
    )
    wrapped = get_peft_model(model, config)
    head = {f"classifier.modules_to_save.default.{name}" for name in ("dense", "out_proj")}
    expected = {f"base_model.model.{name}.lora_{half}.default" for name in targets for half in "AB"}
    expected |= {f"base_model.model.{name}" for name in head}
    trained = {name.rpartition(".")[0] for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    if trained != expected:
        odd = sorted(trained ^ expected)[:5]
        raise ValueError(f"lora_targets: expected adapters of {len(targets)} layers and the head to learn, not {odd}.")
    return wrapped


def parameter_groups(
    model: nn.Module,
    rate: float,
    weight_decay: float,
    factor: float,
    decayed: set[str],
    part_factors: Mapping[str, float] | None = None,
) -> list:
    """
    Groups for the optimizer: `rate` for head and joint part, in a tower `rate` * `factor` to the power of 1 for the
    top layer, 2 for the next, and so on down to the embeddings (layer-wise decay, Howard and Ruder, 2018). Rates
    in a part of the model are multiplied by its number in `part_factors`, such as `{"text_tower": 0.1}`.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    depths: dict[str, int] = {}
    for match in filter(None, map(_LAYER.search, names)):
        depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    groups: dict[tuple[int, float, bool], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer, tower = _LAYER.search(name), _TOWER.search(name)
            power = 0
            if layer:
                power = depths[layer[1]] - int(layer[2])
            elif tower:
                power = depths.get(tower[1], 0) + 1 if _BOTTOM.search(name[tower.end() :]) else 1
            share = next((value for part, value in (part_factors or {}).items() if part in name.split(".")), 1.0)
            groups.setdefault((power, share, name in decayed), []).append(parameter)
    return [
        {"params": parameters, "lr": rate * share * factor**power, "weight_decay": weight_decay if is_decayed else 0.0}
        for (power, share, is_decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
