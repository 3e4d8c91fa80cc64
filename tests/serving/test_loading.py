"""Where the command line finds a checkpoint, and what it says where it does not."""

import os
import shutil
from pathlib import Path

import pytest
import torch

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
