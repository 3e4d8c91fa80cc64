"""Where the command line finds a checkpoint, and what it says where it does not."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, BertTokenizer

from triemo.processing import TriemoProcessor
from triemo.serving.reading import checkpoint_folder, load_reader, pick_device
from triemo.training import common
from triemo.training.common import HUB_MODEL, default_model


def test_half_precision_weights_are_computed_in_float32(reader, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "half")
    reader.model.to(torch.float16).save_pretrained(folder)
    reader.model.to(torch.float32)
    assert '"dtype": "float16"' in (folder / "config.json").read_text()
    assert load_reader(str(folder), "cpu").model.dtype == torch.float32


def test_default_is_the_checkouts_checkpoint_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "CHECKOUT", tmp_path)
    assert default_model() == HUB_MODEL == "triemo/triemo-small"
    folder = tmp_path / "checkpoints" / "triemo-small"
    folder.mkdir(parents=True)
    assert default_model() == HUB_MODEL  # a folder whose weights were not fetched
    (folder / "model.safetensors").touch()
    assert default_model() == str(folder)
    assert default_model("triemo-small-dialogue") == "triemo/triemo-small-dialogue"


def test_cached_hub_model_is_used_without_a_word(tiny_checkpoint, capfd):
    """Laid out as the Hub's client lays out its cache; the tests have no network."""
    cached = Path(os.environ["HF_HOME"]) / "hub" / "models--someone--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_checkpoint, cached / "snapshots" / ("0" * 40))
    assert load_reader("someone/tiny", "cpu").model.config.model_type == "triemo"
    assert capfd.readouterr() == ("", "")


def test_download_is_announced_and_its_failure_is_plain(capfd):
    with pytest.raises(ValueError, match="triemo/triemo-small is neither a folder here nor to be had from the Hub"):
        checkpoint_folder(HUB_MODEL)
    assert "downloading it from the Hub" in capfd.readouterr().err


def test_wrong_models_are_named(tmp_path):
    with pytest.raises(ValueError, match="expected a checkpoint's folder or a Hub id"):
        checkpoint_folder("./no-such-folder")
    with pytest.raises(ValueError, match="holds no config.json"):
        load_reader(str(tmp_path), "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds a 'bert' model, expected 'triemo'"):
        load_reader(str(tmp_path), "cpu")


def test_damaged_weights_are_named(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="model: cannot load .*cut"):
        load_reader(str(folder), "cpu")


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="device: cannot use 'toaster'"):
        pick_device("toaster")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: cannot use 'cuda'"):
            pick_device("cuda")


def changed(checkpoint: Path, folder: Path, **fields: Any) -> Path:
    """A copy of a checkpoint; each field is a file's stem and what becomes of its JSON, or None to remove it."""
    shutil.copytree(checkpoint, folder)
    for stem, change in fields.items():
        file = next(folder.glob(f"{stem}.*"))
        if change is None:
            file.unlink()
        elif isinstance(change, str):
            file.write_text(change)
        else:
            content = json.loads(file.read_text())
            change(content)
            file.write_text(json.dumps(content))
    return folder


def without(*names: str) -> Callable[[dict], None]:
    return lambda content: [content.pop(name) for name in names]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tokenizer": None}, "no tokenizer.json, or one without words"),
        ({"tokenizer": "{"}, "model: cannot load"),
        ({"tokenizer_config": None}, "no padding token, expected its tokenizer_config.json"),
        ({"processor_config": None}, "model: cannot load .*image processor"),
        ({"processor_config": "{"}, "processor_config.json.* is not a valid JSON file"),
        ({"processor_config": without("image_processor")}, "model: cannot load .*image processor"),
        ({"processor_config": without("feature_extractor")}, "model: cannot load .*feature extractor"),
        ({"config": "{"}, "config.json.* is not a valid JSON file"),
        ({"model": None}, "model: cannot load .*model.safetensors"),
    ],
)
def test_missing_and_broken_files_are_named(tiny_checkpoint, tmp_path, fields, said):
    """Without its vocabulary a checkpoint loaded, and everything that was said was neutral."""
    folder = changed(tiny_checkpoint, tmp_path / "it", **fields)
    with pytest.raises(ValueError, match=f"(?s){said}") as raised:
        load_reader(str(folder), "cpu")
    assert str(folder) in str(raised.value)


def test_another_checkpoint_s_tokenizer_is_named(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "it")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(400))]
    for count in (10, 400):
        vocabulary = {word: index for index, word in enumerate(words[:count])}
        BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
        with pytest.raises(ValueError, match=f"has {count} tokens and the model 2[0-9], expected as many"):
            load_reader(str(folder), "cpu")


def test_the_processor_alone_refuses_a_missing_vocabulary(tiny_checkpoint, tmp_path):
    """So pipelines and scripts do, which have no reader."""
    folder = changed(tiny_checkpoint, tmp_path / "it", tokenizer=None)
    for load in (TriemoProcessor.from_pretrained, AutoProcessor.from_pretrained):
        with pytest.raises(ValueError, match="no tokenizer.json"):
            load(folder)


def test_a_missing_face_detector_is_told(tiny_checkpoint, tmp_path, capfd):
    folder = changed(tiny_checkpoint, tmp_path / "it", face_detector=None)
    load_reader(str(folder), "cpu")
    assert "has no face_detector.safetensors; opencv looks for faces" in capfd.readouterr().err


def reweighted(folder: Path, change: Callable[[dict], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("classifier.out_proj.weight"), "classifier.out_proj.weight"),
        (lambda tensors: tensors["classifier.out_proj.bias"].fill_(float("nan")), "classifier.out_proj.bias"),
        (
            lambda tensors: tensors.update({"classifier.out_proj.bias": torch.zeros(9)}),
            "classifier.out_proj.bias",
        ),
    ],
    ids=["missing", "not finite", "wrong shape"],
)
def test_weights_that_are_not_the_model_s_are_named(tiny_checkpoint, tmp_path, change, said):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "it")
    reweighted(folder, change)
    with pytest.raises(ValueError, match=f"(?s)model: cannot load .*{said}"):
        load_reader(str(folder), "cpu")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"calibration_temperature": float("nan")}, "calibration_temperature"),
        ({"calibration_temperature": {"text": float("inf")}}, "calibration_temperature"),
        ({"num_hidden_layers": 3}, "layers"),
        ({"num_hidden_layers": 1}, "layers"),
    ],
)
def test_a_config_that_is_not_the_weights_is_named(tiny_checkpoint, tmp_path, fields, said):
    folder = changed(tiny_checkpoint, tmp_path / "it", config=lambda content: content.update(fields))
    with pytest.raises(ValueError, match=f"(?s)model: cannot load .*{said}"):
        load_reader(str(folder), "cpu")
