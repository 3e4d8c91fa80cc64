"""What a run starts from, and what of it learns.

A checkpoint or a model composed of encoders, a processor that fits it, and the heads that the run needs; then frozen
towers, adapters, class weights and the rates of its parts.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoFeatureExtractor, AutoTokenizer, ImageProcessingMixin
from transformers.utils import cached_file

from triemo.modeling import (
    MODALITIES,
    TriemoConfig,
    TriemoForEmotionClassification,
    TriemoForEmotionSequence,
    TriemoForPreTraining,
)
from triemo.processing import TriemoFeatureExtractor, TriemoImageProcessor, TriemoProcessor
from triemo.training.arguments import ModelArguments, PretrainModelArguments
from triemo.training.common import default_model, parse_weights
from triemo.training.sources import infer_problem

__all__ = [
    "DEFAULT_LORA_TARGETS",
    "Start",
    "add_lora",
    "build_pretraining_model",
    "build_start",
    "check_folder",
    "class_weights",
    "compose_model",
    "enter_as_projected",
    "fit_head",
    "freeze",
    "load_model",
    "parameter_groups",
    "parse_names",
    "part_lr_factors",
    "projected_modalities",
    "still_modules",
]

logger = logging.getLogger(__name__)


# Fine-tuning -------------------------------------------------------------------------------------------------


@dataclass
class Start:
    """
    Args:
        model: with a head for the labels.
        processor: that fits it.
        soft_labels: whether targets are probabilities, because some single-label rows name several classes.
        name: Hub id or folder that holds exactly this model; None when it was composed or got a new head.
    """

    model: TriemoForEmotionClassification
    processor: TriemoProcessor
    soft_labels: bool
    name: str | None


def build_start(args: ModelArguments, parts: Mapping[str, tuple[Any, float]] | None) -> Start:
    """The model that `args` name, with a head for the labels of the training parts; None is a stream: for --labels."""
    vectors = {
        modality: len(data[0][f"{modality}_features"][0])
        for modality in MODALITIES
        for data, _ in (parts or {}).values()
        if f"{modality}_features" in data.column_names
    }
    composed = bool(vectors) or any(getattr(args, f"{name}_encoder") for name in MODALITIES)
    model, processor = compose_model(args, vectors) if composed else load_model(args.model, allow_new_head=True)
    if isinstance(model, TriemoForEmotionSequence):
        raise ValueError(f"model: {args.model} labels the utterances of dialogues, which is --task dialogues.")
    wanted = [name.strip() for name in args.labels.split(",")] if args.labels else None
    if parts is None:
        own = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
        problem, soft = args.problem_type or model.config.resolved_problem_type, False
        names = wanted or own
    else:
        problem, soft, names = infer_problem(parts, args.problem_type)
    is_new = fit_head(model, problem, names, wanted)
    is_whole = not (Path(args.model) / "adapter_config.json").is_file()
    return Start(model, processor, soft, args.model if is_whole and not composed and not is_new else None)


def fit_head(
    model: TriemoForEmotionClassification, problem_type: str, names: Sequence[str], wanted: Sequence[str] | None
) -> bool:
    """
    Give the model a head for these labels, if its own is another.

    Args:
        model: changed in place.
        problem_type: of the labels.
        names: class names in the data (for regression, names of the targets).
        wanted: class names in the order asked for; None leaves it to the model and the data.

    Returns:
        Whether the head was made anew.

    Raises:
        ValueError: naming the classes of the data that are not among those wanted.
    """
    config = model.config
    own = [str(config.id2label[index]) for index in range(config.num_labels)]
    before = config.resolved_problem_type
    if wanted is not None:
        outside = sorted(set(names) - set(wanted))
        if outside:
            raise ValueError(f"labels: got {', '.join(outside)} in the data, expected some of {', '.join(wanted)}.")
    fits = list(wanted) == own if wanted is not None else set(names) <= set(own)
    if problem_type == "regression":
        fits = len(names) == len(own)
    config.problem_type = problem_type
    if before == problem_type and fits:
        return False
    labels = list(wanted or names)
    config.id2label, config.label2id = dict(enumerate(labels)), {name: index for index, name in enumerate(labels)}
    config.calibration_temperature = 1.0
    model.num_labels = config.num_labels
    head = type(model.classifier)(config)
    for module in head.modules():
        model._init_weights(module)
    model.classifier = head.to(next(model.parameters()).dtype)
    outside = sorted(set(names) - set(own))
    reason = f"before it was {before} of {', '.join(own)}"
    logger.warning(f"The head is made anew for {', '.join(labels)} ({problem_type}): {reason}.")
    return True


# Pretraining -------------------------------------------------------------------------------------------------


def build_pretraining_model(args: PretrainModelArguments) -> tuple[TriemoForPreTraining, TriemoProcessor]:
    """
    The model that `args` name, in float32, and a processor that fits it.

    Raises:
        ValueError: naming what cannot be loaded, or when the model has nothing to be pretrained on.
    """
    given = {name: getattr(args, name) for name in ("mlm_weight", "contrastive_weight", "frame_weight")}
    fields: dict[str, Any] = {name: float(value) for name, value in given.items() if value is not None}
    fields["mlm_uses_joint_states"] = args.mlm_uses_joint_states
    if any(getattr(args, f"{name}_encoder") for name in MODALITIES):
        composed, processor = compose_model(args, {})
        return with_heads(composed.triemo, composed.config, fields), processor
    if (Path(args.model) / "adapter_config.json").is_file():
        merged, processor = load_model(args.model)
        return with_heads(merged.triemo, merged.config, fields, args.towers_only), processor
    check_folder(args.model)
    try:
        processor = TriemoProcessor.from_pretrained(args.model)
        config = TriemoConfig.from_pretrained(args.model)
        set_fields(config, fields)
        options: dict[str, Any] = {"config": config, "dtype": torch.float32, "allow_new_head": True}
        model = TriemoForPreTraining.from_pretrained(args.model, **options)
    except OSError as error:
        raise ValueError(f"model: cannot load {args.model}: {error}") from error
    return (with_heads(model.triemo, config, {}, towers_only=True) if args.towers_only else model), processor


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


def set_fields(config: TriemoConfig, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        setattr(config, name, value)


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
    parts = [name for name, _ in model.triemo.named_children()]
    return parse_weights(args.part_lr_factors, "part_lr_factors", parts, default=None)


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


# Checkpoints and composed models -----------------------------------------------------------------------------


def load_model(name: str, allow_new_head: bool = False) -> tuple[Any, TriemoProcessor | None]:
    """
    A checkpoint and its processor, by folder or Hub id, in float32; of a folder with an adapter, its base with the
    adapter merged in. A `TriemoForEmotionClassification`, or the `TriemoForEmotionSequence` that a model of dialogues
    is; one over vectors has no processor. With `allow_new_head` it may be one of another head, such as pretraining's,
    which a warning says. Raises ValueError naming what cannot be loaded.
    """
    check_folder(name, ("config.json",))
    try:
        config = TriemoConfig.from_pretrained(name)
        of_dialogues = TriemoForEmotionSequence.__name__ in (config.architectures or ())
        kind = TriemoForEmotionSequence if of_dialogues else TriemoForEmotionClassification
        processor = None
        if not config.step_aligned:
            check_folder(name)
            processor = TriemoProcessor.from_pretrained(name)
        if not (Path(name) / "adapter_config.json").is_file():
            # A conversation's classifier belongs to its context: neither starts at random beside the other.
            options = {"dtype": torch.float32, "allow_new_head": allow_new_head and not of_dialogues}
            return kind.from_pretrained(name, **options), processor
        return PeftModel.from_pretrained(adapted_weights(Path(name), kind), name).merge_and_unload(), processor
    except OSError as error:
        raise ValueError(f"model: cannot load {name}: {error}") from error


def check_folder(name: str, needed: Sequence[str] = ("config.json", "processor_config.json")) -> None:
    """Raises ValueError naming what the folder of a checkpoint lacks and the loading would not name."""
    lacks = [file for file in needed if Path(name).is_dir() and not (Path(name) / file).is_file()]
    if lacks:
        raise ValueError(f"model: {name} lacks {', '.join(lacks)}.")


def adapted_weights(folder: Path, kind: Any = TriemoForEmotionClassification) -> Any:
    """
    The model, of this class, that the adapter in a folder was trained on: the weights beside it, else what its config
    names. Its head may be new: the adapter brings one.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file():
        name = PeftConfig.from_pretrained(folder).base_model_name_or_path
        return kind.from_pretrained(name, dtype=torch.float32, allow_new_head=True)
    # By the folder's name the adapter would be loaded as well.
    config = TriemoConfig.from_pretrained(folder)
    options: dict[str, Any] = {"config": config, "state_dict": load_file(weights), "dtype": torch.float32}
    return kind.from_pretrained(None, allow_new_head=True, **options)


def compose_model(
    args: ModelArguments, vector_sizes: Mapping[str, int]
) -> tuple[TriemoForEmotionClassification, TriemoProcessor]:
    """
    A model of the encoders named in `args`, with a processor that fits them.

    Args:
        args: encoders and fields of the config.
        vector_sizes: modalities that the data brings as vectors, and their width.
    """
    names = {m: getattr(args, f"{m}_encoder") for m in MODALITIES}
    fields = json.loads(args.model_config) if args.model_config else {}
    fields |= {f"{m}_feature_size": size for m, size in vector_sizes.items() if names[m] is None}
    model = TriemoForEmotionClassification.from_encoders_pretrained(**names, **fields)
    config = model.config
    tokenizer_name = names["text"] or default_model()
    limit = {"model_max_length": config.max_text_positions} if names["text"] else {}
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name, **limit)
    extractor: Any = TriemoFeatureExtractor()
    if config.takes_waveform:
        extractor = AutoFeatureExtractor.from_pretrained(names["audio"])
    elif config.audio_config is not None and config.audio_config.model_type == "triemo_audio":
        extractor = TriemoFeatureExtractor(feature_size=config.audio_config.num_mel_bins)
    elif names["audio"]:
        extractor = AutoFeatureExtractor.from_pretrained(names["audio"])
    detector = cached_file(
        default_model(),
        "face_detector.safetensors",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    picture = TriemoImageProcessor(face_detector_weights=detector, **image_settings(names["vision"], config))
    return model, TriemoProcessor(picture, extractor, tokenizer)


def image_settings(encoder: str | None, config: Any) -> dict[str, Any]:
    """Size, channels and normalisation that a vision encoder was trained with; ours where it does not say."""
    if encoder is None:
        return {}
    channels = getattr(config.vision_config, "num_channels", 3)
    settings: dict[str, Any] = {"do_grayscale": channels == 1}
    try:
        given, _ = ImageProcessingMixin.get_image_processor_dict(encoder)
    except OSError:
        given = {}
    for name in ("image_mean", "image_std"):
        if name in given:
            settings[name] = given[name]
        elif channels != 1:
            settings[name] = [0.5] * channels
    size = given.get("crop_size") if given.get("do_center_crop") else given.get("size")
    size = size or getattr(config.vision_config, "image_size", None)
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    return settings | ({} if size is None else {"size": int(size)})


# What learns, and how fast -----------------------------------------------------------------------------------

# Attention projections by the names that encoder families give them; a convolutional vision tower has none, so there
# its convolutions. The head is trained as a whole.
DEFAULT_LORA_TARGETS = (
    r"triemo\.(.*\.)?([qkv]_proj|out_proj|query|key|value|attention\.output\.dense"
    r"|(query|key|value)_proj|[qkv]_lin|out_lin|linear_([qkv]|out)|pwconv[12]|convolution)"
)
_LAYER = re.compile(r"(text|audio|vision)_tower\..*?\.(?:layers?|stages|blocks)\.(\d+)\.")
_TOWER = re.compile(r"(text|audio|vision)_tower\.")
_BOTTOM = re.compile(r"embed|conv|feature|patch")


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


def add_lora(model: Any, args: ModelArguments, frozen: Sequence[str] = ()) -> Any:
    """
    Wrap a model with adapters; they and the head, with a conversation's context, are all that learns.

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
        and not name.startswith(model.head_prefixes)
        and not (still and re.fullmatch(still, name))
    }
    for modality in model.config.modalities:
        inside = any(name.startswith(f"triemo.{modality}_tower.") for name in targets)
        if model.triemo.tower(modality).encoder is not None and modality not in frozen and not inside:
            raise ValueError(
                f"lora_targets: {pattern!r} matches no layer of the {modality} tower; name some, or put it in "
                "--freeze_towers."
            )
    # Of each part of the head the modules that have weights; a context of `none` has no part.
    whole = {prefix.rstrip("."): set[str]() for prefix in model.head_prefixes}
    for name, _ in model.named_parameters():
        part, _, rest = name.rpartition(".")[0].partition(".")
        if part in whole:
            whole[part].add(rest)
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=pattern,
        exclude_modules=still,
        modules_to_save=[part for part, names in whole.items() if names],
    )
    wrapped = get_peft_model(model, config)
    head = {f"{part}.modules_to_save.default.{name}" for part, names in whole.items() for name in names}
    expected = {f"base_model.model.{name}.lora_{half}.default" for name in targets for half in "AB"}
    expected |= {f"base_model.model.{name}" for name in head}
    trained = {name.rpartition(".")[0] for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    if trained != expected:
        odd = sorted(trained ^ expected)[:5]
        raise ValueError(f"lora_targets: expected adapters of {len(targets)} layers and the head to learn, not {odd}.")
    return wrapped


def class_weights(text: str, counts: Mapping[str, float]) -> list[float] | None:
    """
    None for `none`; rows / (classes * rows of the class) for `balanced`, for `balanced:0.5` that to this power; else
    the numbers given.

    Raises:
        ValueError: naming what is no number, their wrong count, or the class without a row.
    """
    if text == "none":
        return None
    kind, _, power = text.partition(":")
    if kind == "balanced":
        try:
            exponent = float(power or 1)
        except ValueError as error:
            raise ValueError(f"class_weights: got {text!r}, expected balanced or such as balanced:0.5.") from error
        empty = [name for name, count in counts.items() if not count]
        if empty:
            logger.warning(f"class_weights: no training row is {', '.join(empty)}; its weight is 1.")
        present = [count for count in counts.values() if count]
        mean = sum(present) / len(present)
        return [round((mean / count) ** exponent, 6) if count else 1.0 for count in counts.values()]
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"class_weights: got {text!r}, expected none, balanced or numbers.") from error
    if len(weights) != len(counts) or min(weights) < 0:
        raise ValueError(f"class_weights: got {text!r}, expected {len(counts)} numbers of 0 or more.")
    return weights


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


def parse_names(text: str, what: str, accepted: Sequence[str]) -> tuple[str, ...]:
    """Comma-separated names of `accepted`, or `all`. Raises ValueError naming `what`."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    names = list(accepted) if names == ["all"] else names
    for name in names:
        if name not in accepted:
            raise ValueError(f"{what}: got {name!r}, expected some of {', '.join(accepted)}.")
    return tuple(names)
