"""Lays a checkpoint out as a Hub repository that loads where only transformers is installed.

Beside weights, configs and tokenizer it holds the sources of `modeling` and `processing`, flat, and the maps that tell
the Auto classes and `pipeline` which class lives in which file.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from triemo.modeling import TriemoConfig, TriemoForEmotionClassification, TriemoForPreTraining, TriemoModel
from triemo.processing import (
    TASK,
    MultimodalEmotionRecognitionPipeline,
    TriemoFeatureExtractor,
    TriemoImageProcessor,
    TriemoProcessor,
)

__all__ = ["assemble_hub_folder"]

_CLASSIFIES = ("SequenceClassification", "AudioClassification", "ImageClassification", "VideoClassification")
_MODEL_CLASSES: dict[str, type] = {
    "AutoConfig": TriemoConfig,
    "AutoModel": TriemoModel,
    "AutoModelForPreTraining": TriemoForPreTraining,
    **{f"AutoModelFor{task}": TriemoForEmotionClassification for task in _CLASSIFIES},
}
# Parts of processor_config.json: the Auto class that reads each, and our class.
_PARTS: dict[str, tuple[str, type]] = {
    "feature_extractor": ("AutoFeatureExtractor", TriemoFeatureExtractor),
    "image_processor": ("AutoImageProcessor", TriemoImageProcessor),
}
_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER_CONFIG, _ADAPTER = "adapter_config.json", "adapter_model.safetensors"
_NEEDED = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
_OPTIONAL = (
    "face_detector.safetensors",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "metrics.json",
    "LICENSE",
)


def assemble_hub_folder(
    checkpoint: Path, output: Path, repo: str | None = None, base_model: str | None = None
) -> Path:
    """
    Write what a Hub repository of this checkpoint holds, the code it needs included.

    Args:
        checkpoint: folder with `model.safetensors` (or its shards and their index), `config.json`,
            `processor_config.json`, `tokenizer.json` and `tokenizer_config.json`, as `save_pretrained` of model and
            processor write them, and the face detector's weights if the image processor wants them. Or an adapter's:
            besides `adapter_config.json` and `adapter_model.safetensors`, and weights only where `base_model` is None.
        output: folder to write; it must not exist or be empty. It appears only once it is complete.
        repo: the repository's name on the Hub, where an adapter finds the weights beside it.
        base_model: the repository in which an adapter finds its weights instead.

    Returns:
        `output`.

    Raises:
        ValueError: a file is missing or cannot be read, the checkpoint is of another model, or `output` is in use.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output must be a new or empty folder, got {output}, which is not.")
    written = {"config.json": _model_config, "processor_config.json": _processor_config}
    files = _check_present(checkpoint, _NEEDED)
    is_adapter = (checkpoint / _ADAPTER_CONFIG).is_file()
    if is_adapter:
        files += _check_present(checkpoint, [_ADAPTER_CONFIG, _ADAPTER])
        written[_ADAPTER_CONFIG] = partial(_adapter_config, base=base_model or repo)
    if not (is_adapter and base_model):
        files += _weight_files(checkpoint)
    configs = {name: write(checkpoint) for name, write in written.items()}
    files += [checkpoint / name for name in _OPTIONAL if (checkpoint / name).is_file()]
    files += _source_files()

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as parent:
        folder = Path(parent) / output.name
        folder.mkdir()
        for file in files:
            shutil.copyfile(file, folder / file.name)
        for name, values in configs.items():
            _write_json(folder / name, values)
        if output.exists():
            output.rmdir()
        folder.rename(output)
    return output


def _model_config(checkpoint: Path) -> dict[str, Any]:
    config = _read_json(checkpoint / "config.json")
    if config.get("model_type") != TriemoConfig.model_type:
        raise ValueError(
            f"{checkpoint / 'config.json'} must have model_type {TriemoConfig.model_type!r}, got "
            f"{config.get('model_type')!r}."
        )
    config["auto_map"] = {auto: _reference(cls) for auto, cls in _MODEL_CLASSES.items()}
    pipeline = {"impl": _reference(MultimodalEmotionRecognitionPipeline), "pt": ["AutoModelForVideoClassification"]}
    config["custom_pipelines"] = {TASK: {**pipeline, "type": "multimodal"}}
    return config


def _processor_config(checkpoint: Path) -> dict[str, Any]:
    """Each part carries a map of its own, because AutoImageProcessor and AutoFeatureExtractor read theirs alone."""
    config = _read_json(checkpoint / "processor_config.json")
    config["auto_map"] = {"AutoProcessor": _reference(TriemoProcessor)}
    for name, (auto, cls) in _PARTS.items():
        if name not in config:
            raise ValueError(f"{checkpoint / 'processor_config.json'} lacks {name}.")
        # Another library's extractor (wav2vec 2.0's, say) needs no code from us.
        if config[name].get(f"{name}_type") == cls.__name__:
            config[name]["auto_map"] = {auto: _reference(cls)}
    if config["image_processor"].get("face_detector") == "mtcnn":
        _check_present(checkpoint, ["face_detector.safetensors"])
    return config


def _adapter_config(checkpoint: Path, base: str | None) -> dict[str, Any]:
    if not base:
        raise ValueError(f"repo: {checkpoint} holds an adapter, which has to name where its base is, got no name.")
    return _read_json(checkpoint / _ADAPTER_CONFIG) | {"base_model_name_or_path": base, "revision": None}


def _weight_files(checkpoint: Path) -> list[Path]:
    names = [_WEIGHTS]
    if not (checkpoint / _WEIGHTS).is_file() and (checkpoint / _WEIGHTS_INDEX).is_file():
        names = [_WEIGHTS_INDEX, *sorted(set(_read_json(checkpoint / _WEIGHTS_INDEX)["weight_map"].values()))]
    return _check_present(checkpoint, names)


def _check_present(checkpoint: Path, names: Iterable[str]) -> list[Path]:
    files = [checkpoint / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"checkpoint {checkpoint} lacks {', '.join(missing)}.")
    return files


def _source_files() -> list[Path]:
    """The files of the published classes and the siblings that these import, directly or not."""
    classes = {*_MODEL_CLASSES.values(), TriemoProcessor, MultimodalEmotionRecognitionPipeline}
    entries = {str(sys.modules[cls.__module__].__file__) for cls in (*classes, *(cls for _, cls in _PARTS.values()))}
    files = {Path(name) for entry in entries for name in (entry, *get_relative_import_files(entry))}
    by_name = {file.name: file for file in files}
    if len(by_name) < len(files):
        raise ValueError(f"modeling and processing must not share a file name, got {sorted(map(str, files))}.")
    return sorted(files)


def _reference(cls: type) -> str:
    """How the Hub names a class: its file without suffix, a dot, its name."""
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")
