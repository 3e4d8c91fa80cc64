"""Loading a checkpoint once, for every command: where it lies, on which device it runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

if TYPE_CHECKING:
    import torch

__all__ = ["HUB_MODEL", "checkpoint_folder", "default_model", "load_reader", "pick_device"]

HUB_MODEL = "triemo/triemo-small"
CHECKOUT = Path(__file__).resolve().parent.parent
NEEDED_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # no code: the installed package is what runs
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")


def load_reader(model: str | None = None, device: str | None = None) -> Any:
    """
    The pipeline of a checkpoint, in float32 whatever the weights were saved in; of what `triemo export` wrote an
    `OnnxEmotionReader`, which has the same call and does not import torch.

    Args:
        model: folder or Hub id, or an exported graph or its folder; by default the released checkpoint.
        device: as torch names it ("cpu", "cuda", "cuda:1", "mps"); by default a GPU if there is one.

    Raises:
        ValueError: no checkpoint there, not a Triemo classifier, or no such device.
    """
    name = model or default_model()
    if _holds_graph(name):
        return _onnx_reader(name, device)
    import torch  # here only, with all that imports it: a graph is read without torch
    from safetensors import SafetensorError
    from transformers import PreTrainedConfig
    from transformers.utils import logging

    from triemo.modeling import TriemoConfig, TriemoForEmotionClassification
    from triemo.processing import MultimodalEmotionRecognitionPipeline, TriemoProcessor

    place = pick_device(device)
    folder = checkpoint_folder(name)
    if not (folder / "config.json").is_file():
        raise ValueError(f"model: {name} holds no config.json, expected a saved Triemo checkpoint.")
    try:
        fields, _ = PreTrainedConfig.get_config_dict(folder)
        if fields.get("model_type") != TriemoConfig.model_type:
            raise ValueError(f"model: {name} holds a {fields.get('model_type')!r} model, expected 'triemo'.")
        logging.disable_progress_bar()
        weights = TriemoForEmotionClassification.from_pretrained(folder, dtype=torch.float32)
        processor = TriemoProcessor.from_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model: cannot load {name}: {error}") from error
    return MultimodalEmotionRecognitionPipeline(model=weights, processor=processor, device=place)


def _holds_graph(model: str) -> bool:
    """Whether it is an exported graph, or a folder of them and no checkpoint."""
    path = Path(model).expanduser()
    if path.is_dir():
        return any(path.glob("model*.onnx")) and not (path / "config.json").is_file()
    return path.suffix == ".onnx"


def _onnx_reader(model: str, device: str | None) -> Any:
    if device not in (None, "cpu"):
        raise ValueError(f"device: graphs run on cpu here, got {device!r}.")
    try:
        from triemo.serving.onnx_reader import OnnxEmotionReader
    except ImportError as error:
        raise ValueError(
            f"model: reading {model} needs onnxruntime: pip install 'triemo[export]' ({error})."
        ) from error
    return OnnxEmotionReader(model)


def default_model() -> str:
    """The released checkpoint of this checkout, else its id on the Hub."""
    folder = CHECKOUT / "checkpoints" / "triemo-small"
    return str(folder) if (folder / "model.safetensors").is_file() else HUB_MODEL


def checkpoint_folder(model: str) -> Path:
    """
    The local folder of a checkpoint. A Hub id is looked up in the cache, and only what is not there is downloaded,
    with a line on stderr that says so.

    Raises:
        ValueError: neither a folder nor a Hub id, or a Hub id that is neither cached nor to be had.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(model):
        raise ValueError(f"model: got {model!r}, expected a checkpoint's folder or a Hub id such as {HUB_MODEL}.")
    try:
        cached = Path(snapshot_download(model, allow_patterns=NEEDED_FILES, local_files_only=True))
        if (cached / "config.json").exists() and any(cached.glob("*.safetensors")):
            return cached
    except (LocalEntryNotFoundError, HFValidationError):
        pass  # never downloaded
    print(f"triemo: {model} is no folder here and not in the cache; downloading it from the Hub.", file=sys.stderr)
    try:
        return Path(snapshot_download(model, allow_patterns=NEEDED_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model: {model} is neither a folder here nor to be had from the Hub: {reason}") from error


def pick_device(device: str | None = None) -> torch.device:
    """
    The device by name, or the best there is.

    Raises:
        ValueError: a name torch does not know, or a device that this machine lacks.
    """
    import torch

    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked: Any = torch.device(device)
        torch.zeros(1, device=picked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch raises any of these, some over many lines, where it was built without the device or finds none.
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: cannot use {device!r}: {reason}") from error
    return picked
