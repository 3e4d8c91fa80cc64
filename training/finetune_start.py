"""Where `finetune.py` starts: a checkpoint or a model composed of encoders, its processor, a head for the labels."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoTokenizer, ImageProcessingMixin

from triemo.modeling import MODALITIES, TriemoConfig, TriemoForEmotionClassification
from triemo.modeling.towers_triemo import takes_waveform
from triemo.processing import TriemoFeatureExtractor, TriemoImageProcessor, TriemoProcessor
from triemo.training.finetune_arguments import DEFAULT_MODEL, ModelArguments
from triemo.training.finetune_data import infer_problem

__all__ = ["Start", "build_start", "compose_model", "fit_head", "load_model"]

logger = logging.getLogger(__name__)


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


def build_start(args: ModelArguments, parts: Mapping[str, tuple[Any, float]], streaming: bool = False) -> Start:
    """The model that `args` name, with a head for the labels of the training parts (of a stream: for --labels)."""
    vectors = {
        modality: len(data[0][f"{modality}_features"][0])
        for modality in MODALITIES
        for data, _ in parts.values()
        if not streaming and f"{modality}_features" in data.column_names
    }
    composed = bool(vectors) or any(getattr(args, f"{name}_encoder") for name in MODALITIES)
    model, processor = compose_model(args, vectors) if composed else load_model(args.model)
    wanted = [name.strip() for name in args.labels.split(",")] if args.labels else None
    if streaming:
        own = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
        problem, soft = args.problem_type or model.config.problem_type or "single_label_classification", False
        names = wanted or own
    else:
        problem, soft, names = infer_problem(parts, args.problem_type)
    is_new = fit_head(model, problem, names, wanted)
    is_whole = not (Path(args.model) / "adapter_config.json").is_file()
    return Start(model, processor, soft, args.model if is_whole and not composed and not is_new else None)


def load_model(name: str) -> tuple[TriemoForEmotionClassification, TriemoProcessor]:
    """
    A checkpoint and its processor, by folder or Hub id, in float32; of a folder with an adapter, its base with the
    adapter merged in. Raises ValueError naming what cannot be loaded.
    """
    try:
        processor = TriemoProcessor.from_pretrained(name)
        if not (Path(name) / "adapter_config.json").is_file():
            return TriemoForEmotionClassification.from_pretrained(name, dtype=torch.float32), processor
        base = adapted_weights(Path(name))
        model = PeftModel.from_pretrained(base, name).merge_and_unload()
        return model, processor
    except OSError as error:
        raise ValueError(f"model: cannot load {name}: {error}") from error


def adapted_weights(folder: Path) -> TriemoForEmotionClassification:
    """The model that the adapter in a folder was trained on: the weights beside it, else what its config names."""
    weights = folder / "model.safetensors"
    if not weights.is_file():
        name = PeftConfig.from_pretrained(folder).base_model_name_or_path
        return TriemoForEmotionClassification.from_pretrained(name, dtype=torch.float32)
    # By the folder's name the adapter would be loaded as well.
    config = TriemoConfig.from_pretrained(folder)
    options: dict[str, Any] = {"config": config, "state_dict": load_file(weights), "dtype": torch.float32}
    return TriemoForEmotionClassification.from_pretrained(None, **options)


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
    tokenizer_name = names["text"] or DEFAULT_MODEL
    limit = {"model_max_length": config.max_text_positions} if names["text"] else {}
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name, **limit)
    extractor: Any = TriemoFeatureExtractor()
    if takes_waveform(config):
        extractor = AutoFeatureExtractor.from_pretrained(names["audio"])
    elif config.audio_config is not None and config.audio_config.model_type == "triemo_audio":
        extractor = TriemoFeatureExtractor(feature_size=config.audio_config.num_mel_bins)
    elif names["audio"]:
        extractor = AutoFeatureExtractor.from_pretrained(names["audio"])
    detector = Path(DEFAULT_MODEL) / "face_detector.safetensors"
    picture = TriemoImageProcessor(
        face_detector_weights=detector if detector.is_file() else None, **image_settings(names["vision"], config)
    )
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
    before = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
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
    config.class_weights, config.calibration_temperature = None, 1.0
    model.num_labels = config.num_labels
    head = type(model.classifier)(config)
    for module in head.modules():
        model._init_weights(module)
    model.classifier = head.to(next(model.parameters()).dtype)
    outside = sorted(set(names) - set(own))
    reason = f"before it was {before} of {', '.join(own)}"
    logger.warning(f"The head is made anew for {', '.join(labels)} ({problem_type}): {reason}.")
    return True
