"""All that a Hub repository of a checkpoint holds: its files and code, card, endpoint handler, ONNX graphs."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from triemo.processing import MultimodalEmotionRecognitionPipeline
from triemo.training.finetune_start import load_model
from triemo.training.hub_folder import assemble_hub_folder
from triemo.training.publish_card import EXAMPLE, TEMPLATE, check_card, plain_card, read_metrics, released_card
from triemo.training.publish_checks import check_no_pickles, first_example
from triemo.training.publish_imports import PROJECT, requirements_of

__all__ = ["RELEASED", "assemble_repository"]

RELEASED = "triemo-small"  # the model that model_card.md is about
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
        if (_SERVING / "handler.py").is_file():
            shutil.copyfile(_SERVING / "handler.py", folder / "handler.py")
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
    logging.disable_progress_bar()
    model, processor = load_model(str(checkpoint))
    reader: Any = MultimodalEmotionRecognitionPipeline(model=model.eval(), processor=processor, device="cpu")
    template = card or (TEMPLATE if is_released else None)
    if template is None:
        is_adapter = (folder / "adapter_config.json").is_file()
        labels = list(model.config.id2label.values())
        return plain_card(repo, labels, _example(reader, repo), base_model, is_adapter)
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
