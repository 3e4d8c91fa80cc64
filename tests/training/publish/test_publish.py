"""Round trips through a Hub: published by our command, loaded over HTTP where the package is not installed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from loopback_hub import TOKEN, LoopbackHub
from remote_loading import (
    MODELS,
    PROCESSORS,
    SENTENCE,
    fresh_environment,
    load_elsewhere,
    logits_here,
    pipelines,
    run_elsewhere,
    same_scores,
    scores_here,
    write_media,
)
from safetensors.torch import load_file, save_file
from tiny_checkpoint import FACE_DETECTOR, tiny_classifier, tiny_processor
from transformers import AutoModelForVideoClassification, AutoProcessor
from typer.testing import CliRunner

from triemo.processing import TASK
from triemo.serving.cli import app
from triemo.training.arguments import ModelArguments
from triemo.training.publish.checks import check_loads, first_example
from triemo.training.publish.folder import assemble_repository
from triemo.training.publish.push import push_folder
from triemo.training.start import add_lora


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own; the Hub takes plain LFS as well
        patch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def online(hub: LoopbackHub) -> dict[str, str]:
    """The environment of a process that uses this Hub."""
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fresh_environment(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    tiny_classifier().save_pretrained(folder)
    settings = {"face_detector": "mtcnn", "face_detector_weights": FACE_DETECTOR, "assume_cropped_below": 128}
    tiny_processor(**settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """As finetune.py leaves it: the adapter beside the weights that it was trained on."""
    folder = tmp_path_factory.mktemp("adapter")
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    wrapped = add_lora(tiny_classifier(), ModelArguments(lora_r=2))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    wrapped.peft_config["default"].base_model_name_or_path = "/somewhere/else"
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def published(hub: LoopbackHub, tiny: Path, adapter: Path) -> LoopbackHub:
    """By the command, all its checks included; the adapters without the check, which they pass like the model."""
    options = ["--checkpoint", str(tiny), "--private", "--message", "First weights"]
    done = CliRunner().invoke(app, ["publish", "user/tiny", *options])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("user/tiny: ") and "in one commit, http://" in done.output
    for name, base in (("user/adapter", "user/tiny"), ("user/whole-adapter", None)):
        push_folder(assemble_repository(adapter, adapter / ".." / f"{name}-folder", name, base_model=base), name)
    return hub


def test_published_repository_loads_over_http(published, online, python, tiny, adapter, tmp_path):
    """Every Auto class, pipelines, what its user saves and pushes again, and adapters, as from the package."""
    files = write_media(tmp_path)
    tensors = dict(AutoProcessor.from_pretrained(tiny)(text=[SENTENCE, None], videos=[None, files["clip"]]))
    save_file(tensors, tmp_path / "inputs.safetensors")
    tasks = (TASK, "text-classification", "audio-classification")
    chosen = {task: pipelines(files)[task] for task in tasks}
    found = load_elsewhere(
        tmp_path,
        "user/tiny",
        [],
        online,
        python,
        inputs=str(tmp_path / "inputs.safetensors"),
        models=MODELS,
        processors=PROCESSORS,
        pipelines=chosen,
        push_again="user/again",
        saved=str(tmp_path / "saved"),
        adapters=["user/adapter", "user/whole-adapter"],
    )
    wanted = logits_here(tiny, tensors)
    for name in MODELS:
        assert found["classes"][name].startswith("transformers_modules."), name
        same_scores(found["scores"][name], wanted[name])
        same_scores(found[str(tmp_path / "saved")][name], wanted[name])
        same_scores(found["user/again"][name], wanted[name])
    wanted = scores_here(tiny, files)
    for task in tasks:
        same_scores(found["scores"][task], wanted[task])
    with torch.no_grad():
        adapted = AutoModelForVideoClassification.from_pretrained(adapter)(**tensors).logits.tolist()
    assert (
        torch.tensor(adapted) - torch.tensor(found["scores"]["AutoModelForVideoClassification"])
    ).abs().max() > 0.01
    same_scores(found["user/adapter"], adapted)
    same_scores(found["user/whole-adapter"], adapted)


def test_published_in_one_commit_with_all_that_belongs_to_it(published):
    repo = published.repos["models", "user/tiny"]
    assert repo.private and repo.log() == ["First weights", "initial commit"]
    files = published.files("user/tiny")
    assert {"model.safetensors", "face_detector.safetensors", "handler.py", "requirements.txt", "README.md"} <= set(
        files
    )
    assert not {name for name in files if name.endswith((".bin", ".pt"))}
    lines = files["requirements.txt"].decode().splitlines()
    assert {line.rstrip("<>=.,0123456789") for line in lines} >= {"torch", "transformers", "av", "pillow"}
    config = json.loads(files["config.json"])
    assert set(config["auto_map"]) >= {
        "AutoConfig",
        "AutoModelForPreTraining",
        "AutoModelForTokenClassification",
        *MODELS,
    }
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "video-classification" and "user/tiny" in first_example(card.text)

    small, whole = published.files("user/adapter"), published.files("user/whole-adapter")
    assert "model.safetensors" not in small and "model.safetensors" in whole
    for files, base in ((small, "user/tiny"), (whole, "user/whole-adapter")):
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == base
    assert ModelCard(small["README.md"].decode()).data.base_model == "user/tiny"


def test_card_of_the_released_checkpoint_runs_from_an_empty_folder(hub, online, python, checkpoint, tmp_path):
    """Five lines, copied into a file; `triemo` is not installed there."""
    folder = assemble_repository(checkpoint, tmp_path / "folder", "triemo/triemo-small")
    push_folder(folder, "triemo/triemo-small", api=HfApi())
    card = hub.files("triemo/triemo-small")["README.md"].decode()
    lines = [line for line in first_example(card).splitlines() if line]
    assert len(lines) == 5
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "use.py").write_text("\n".join(lines))
    done = run_elsewhere(["use.py"], empty, {**online, "OMP_NUM_THREADS": "1"}, python)
    label = lines[-1].partition("  # ")[2]
    assert label in json.loads((checkpoint / "config.json").read_text())["label2id"]
    assert done.stdout.strip() == label


def test_what_does_not_load_in_a_clean_process_is_refused(tiny, tmp_path):
    folder = assemble_repository(tiny, tmp_path / "folder", "user/tiny")
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.out_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not load where triemo is not installed.*classifier\.out_proj\.weight"):
        check_loads(folder, "user/tiny")
