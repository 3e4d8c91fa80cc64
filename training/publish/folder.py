"""All that a Hub repository of a checkpoint holds: its files and code, card, endpoint handler, ONNX graphs.

So that it loads where only transformers is installed, the sources of `modeling` and `processing` lie in it, flat, with
the maps that tell the Auto classes and `pipeline` which class lives in which file.
"""

import ast
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from triemo.modeling import (
    TriemoConfig,
    TriemoForEmotionClassification,
    TriemoForEmotionSequence,
    TriemoForPreTraining,
    TriemoModel,
)
from triemo.processing import (
    DIALOGUE_TASK,
    TASK,
    ConversationalEmotionRecognitionPipeline,
    MultimodalEmotionRecognitionPipeline,
    TriemoFeatureExtractor,
    TriemoImageProcessor,
    TriemoProcessor,
)
from triemo.training.publish.card import (
    EXAMPLE,
    RELEASED,
    TEMPLATE,
    check_card,
    dialogue_card,
    plain_card,
    read_metrics,
    released_card,
)
from triemo.training.publish.checks import check_no_pickles, first_example
from triemo.training.start import load_model

__all__ = ["PROJECT", "assemble_hub_folder", "assemble_repository", "modules_of", "requirements_of"]

PROJECT = Path(__file__).resolve().parents[2]
_SERVING = PROJECT / "serving"
_UNFILLED = "[More Information Needed]"  # in the card that peft puts beside every adapter


def assemble_repository(
    checkpoint: Path, output: Path, repo: str, base_model: str | None = None, card: Path | None = None
) -> Path:
    """
    Write the whole repository of a checkpoint or of a LoRA adapter.

    Args:
        checkpoint: as for `assemble_hub_folder`; its `metrics.json` and `onnx/` travel too.
        output: folder to write; it must not exist or be empty. It appears only once it is complete.
        repo: `user/name`.
        base_model: of an adapter, the repository of the model it was trained on; by default that model is published
            beside the adapter.
        card: a finished card, or a template with Jinja fields; by default the checkpoint's own README.md, for
            triemo-small `model_card.md`, and else a few lines that say what is known.

    Returns:
        `output`.

    Raises:
        ValueError: what is missing or cannot be read, a pickle, or a card whose figures are not those of metrics.json.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if not checkpoint.is_dir():
        raise ValueError(f"checkpoint: got {checkpoint}, which is no folder.")
    check_no_pickles(checkpoint)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        folder = assemble_hub_folder(checkpoint, Path(temporary) / output.name, repo, base_model)
        if (_SERVING / "endpoint" / "handler.py").is_file():
            shutil.copyfile(_SERVING / "endpoint" / "handler.py", folder / "handler.py")
        if (checkpoint / "onnx").is_dir():
            shutil.copytree(checkpoint / "onnx", folder / "onnx")
        lines = requirements_of(folder.glob("*.py"))
        (folder / "requirements.txt").write_text("\n".join(lines) + "\n", "utf-8")
        text = _card(checkpoint, folder, repo, base_model, card)
        check_card(text, read_metrics(checkpoint))
        (folder / "README.md").write_text(text, "utf-8")
        if "demo.mp4" in first_example(text):
            shutil.copyfile(_SERVING / "assets" / "demo.mp4", folder / "demo.mp4")
        check_no_pickles(folder, whole=True)
        if output.is_dir() and not any(output.iterdir()):
            output.rmdir()
        if output.exists():
            raise ValueError(f"output must be a new or empty folder, got {output}, which is not.")
        folder.rename(output)
    return output


def _card(checkpoint: Path, folder: Path, repo: str, base_model: str | None, card: Path | None) -> str:
    own = checkpoint / "README.md"
    metrics = read_metrics(checkpoint)
    is_released = (metrics or {}).get("model") == RELEASED and TEMPLATE.is_file()
    if card is None and own.is_file() and _UNFILLED not in own.read_text("utf-8"):
        return own.read_text("utf-8")
    if card is not None and "{{" not in (text := Path(card).read_text("utf-8")):
        return text
    if pipeline_of(checkpoint) is ConversationalEmotionRecognitionPipeline:
        results = checkpoint / "results.json"
        measured = _read_json(results) if metrics is None and results.is_file() else metrics
        return dialogue_card(repo, TriemoConfig.from_pretrained(folder), measured or {})
    logging.disable_progress_bar()
    model, processor = load_model(str(checkpoint))
    reader: Any = MultimodalEmotionRecognitionPipeline(model=model.eval(), processor=processor, device="cpu")
    template = card or (TEMPLATE if is_released else None)
    if template is None:
        is_adapter = (folder / "adapter_config.json").is_file()
        labels = list(model.config.id2label.values())
        results = checkpoint / "results.json"
        measured = _read_json(results) if results.is_file() else None
        return plain_card(repo, labels, _example(reader, repo), base_model, is_adapter, measured)
    with torch.inference_mode():
        label = reader({"video": str(_SERVING / "assets" / "demo.mp4"), "text": EXAMPLE})[0]["label"]
    shown = {"has_handler": (folder / "handler.py").is_file(), "has_onnx": (folder / "onnx").is_dir()}
    text = Path(template).read_text("utf-8")
    return released_card(text, repo, metrics or {}, reader, example_label=label, **shown)


def _example(reader: Any, repo: str) -> str:
    """Lines that use the model and end in a comment with what they print."""
    head = f'reader = pipeline("multimodal-emotion-recognition", model="{repo}", trust_remote_code=True)\n'
    config = reader.model.config
    if config.text_config is not None or config.text_vocab_size is not None:
        label = reader({"text": EXAMPLE})[0]["label"]
        lines = f'print(reader({{"text": "{EXAMPLE}"}})[0]["label"])  # {label}\n'
        return f"from transformers import pipeline\n\n{head}{lines}"
    label = reader(str(_SERVING / "assets" / "demo.mp4"))[0]["label"]
    lines = f'clip = hf_hub_download("{repo}", "demo.mp4")\nprint(reader(clip)[0]["label"])  # {label}\n'
    return f"from huggingface_hub import hf_hub_download\nfrom transformers import pipeline\n\n{head}{lines}"


# Files and configs -------------------------------------------------------------------------------------------

_CLASSIFIES = ("SequenceClassification", "AudioClassification", "ImageClassification", "VideoClassification")
_MODEL_CLASSES: dict[str, type] = {
    "AutoConfig": TriemoConfig,
    "AutoModel": TriemoModel,
    "AutoModelForPreTraining": TriemoForPreTraining,
    "AutoModelForTokenClassification": TriemoForEmotionSequence,
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
        base_model: the repository in which an adapter finds its weights instead, or a head over vectors its towers.

    Returns:
        `output`.

    Raises:
        ValueError: a file is missing or cannot be read, the checkpoint is of another model, or `output` is in use.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output must be a new or empty folder, got {output}, which is not.")
    written: dict[str, Any] = {"config.json": partial(_model_config, base=base_model)}
    head = is_head(checkpoint)
    written |= {} if head else {"processor_config.json": _processor_config}
    files = _check_present(checkpoint, _NEEDED[:1] if head else _NEEDED)
    is_adapter = (checkpoint / _ADAPTER_CONFIG).is_file()
    if is_adapter:
        files += _check_present(checkpoint, [_ADAPTER_CONFIG, _ADAPTER])
        written[_ADAPTER_CONFIG] = partial(_adapter_config, base=base_model or repo)
    if not (is_adapter and base_model):
        files += _weight_files(checkpoint)
    configs = {name: write(checkpoint) for name, write in written.items()}
    files += [checkpoint / name for name in _OPTIONAL if (checkpoint / name).is_file()]
    files += _source_files(pipeline_of(checkpoint))

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


def is_head(checkpoint: Path) -> bool:
    """Whether a checkpoint reads vectors that another one's towers make, and so has no processor."""
    file = checkpoint / "config.json"
    return file.is_file() and bool(_read_json(file).get("step_aligned"))


def pipeline_of(checkpoint: Path) -> Any:
    """The pipeline that reads with a checkpoint: that of conversations for a head and for one with its own towers."""
    architectures = _read_json(checkpoint / "config.json").get("architectures") or ()
    of_dialogues = is_head(checkpoint) or TriemoForEmotionSequence.__name__ in architectures
    return ConversationalEmotionRecognitionPipeline if of_dialogues else MultimodalEmotionRecognitionPipeline


def _model_config(checkpoint: Path, base: str | None = None) -> dict[str, Any]:
    config = _read_json(checkpoint / "config.json")
    if config.get("model_type") != TriemoConfig.model_type:
        raise ValueError(
            f"{checkpoint / 'config.json'} must have model_type {TriemoConfig.model_type!r}, got "
            f"{config.get('model_type')!r}."
        )
    config["auto_map"] = {auto: _reference(cls) for auto, cls in _MODEL_CLASSES.items()}
    reader = pipeline_of(checkpoint)
    task, kind = TASK, "AutoModelForVideoClassification"
    if reader is ConversationalEmotionRecognitionPipeline:
        task, kind = DIALOGUE_TASK, "AutoModelForTokenClassification"
    if is_head(checkpoint):
        towers = base or config.get("base_model_name_or_path")
        if towers and Path(towers).is_dir():
            raise ValueError(
                f"base-model: {checkpoint} reads the vectors of {towers}; name its repository on the Hub."
            )
        config["base_model_name_or_path"] = towers
    config["custom_pipelines"] = {task: {"impl": _reference(reader), "pt": [kind], "type": "multimodal"}}
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


def _source_files(pipeline: type) -> list[Path]:
    """The files of the published classes and the siblings that these import, directly or not."""
    classes = {*_MODEL_CLASSES.values(), TriemoProcessor, pipeline}
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


# What Python files import: of ours, to take it along; of others, to require it -------------------------------

# Import names that are not the distribution's.
_IMPORTED_AS = {"pillow": "PIL", "opencv-python-headless": "cv2", "pyyaml": "yaml", "scikit-learn": "sklearn"}


def requirements_of(files: Iterable[Path]) -> list[str]:
    """Of the libraries that Triemo requires, with their bounds, those that these files import anywhere."""
    imported = {name.partition(".")[0] for file in files for level, name in _imports(file) if not level}
    lines = set()
    for requirement in map(Requirement, metadata.requires("triemo") or []):
        name = requirement.name.lower()
        if name != "triemo" and _IMPORTED_AS.get(name, name.replace("-", "_")) in imported:
            lines.add(f"{name}{requirement.specifier}")
    return sorted(lines)


def modules_of(entry: Path, project: Path = PROJECT) -> set[Path]:
    """
    The files of `triemo` that a file imports, directly or not, with their packages.

    Args:
        entry: a Python file.
        project: the folder in which `modeling`, `processing`, `training` and `serving` lie.
    """
    found: set[Path] = set()
    waiting = [entry]
    while waiting:
        file = waiting.pop()
        for level, name in _imports(file):
            parts = name.split(".")
            if not level and parts[0] != "triemo":
                continue
            start, path = (file.parent, parts) if level else (project, parts[1:])
            # Every package on the way is imported too.
            places = [start.joinpath(*path[:length]) for length in range(1, len(path) + 1)]
            modules = [place / "__init__.py" if place.is_dir() else place.with_suffix(".py") for place in places]
            new = {module for module in modules if module.is_file()} - found
            found |= new
            waiting += new
    return found


def _imports(file: Path) -> Iterator[tuple[int, str]]:
    """Level (0 is absolute) and name of each module that an import may mean, wherever it stands in the file."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module
            yield from ((node.level, f"{node.module}.{alias.name}") for alias in node.names)
