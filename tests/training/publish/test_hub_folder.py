"""A checkpoint laid out for the Hub: loads without the package, from a folder and from the Hub's cache."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from remote_loading import (
    MODELS,
    PROCESSORS,
    SENTENCE,
    load_elsewhere,
    logits_here,
    pipelines,
    same_scores,
    scores_here,
    write_media,
)
from safetensors.torch import load_file, save_file
from skimage import data
from tiny_checkpoint import FACE_DETECTOR, save_tiny_checkpoint, tiny_classifier, tiny_processor
from transformers import AutoProcessor

from triemo.modeling import TriemoForEmotionClassification
from triemo.processing import TASK, TriemoImageProcessor, TriemoProcessor
from triemo.training.publish.folder import assemble_hub_folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a face detector; the frames of clip.mp4 are small enough to count as face crops."""
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    tiny_classifier().save_pretrained(checkpoint)
    settings = {"face_detector": "mtcnn", "face_detector_weights": FACE_DETECTOR, "assume_cropped_below": 128}
    tiny_processor(**settings).save_pretrained(checkpoint)
    return assemble_hub_folder(checkpoint, tmp_path_factory.mktemp("hub") / "triemo-tiny")


def test_folder_loads_where_the_package_is_not_installed(hub_folder, files, tmp_path):
    """Every Auto class, every pipeline, and what its user saves again: as from the installed package."""
    sample = {"videos": files["clip"], "text": SENTENCE}
    tensors = dict(AutoProcessor.from_pretrained(hub_folder)(**sample))
    save_file(tensors, tmp_path / "inputs.safetensors")
    found = load_elsewhere(
        tmp_path,
        str(hub_folder),
        ["triemo"],
        inputs=str(tmp_path / "inputs.safetensors"),
        models=MODELS,
        processors=PROCESSORS,
        sample=sample,
        tensors=str(tmp_path / "tensors.safetensors"),
        pipelines=pipelines(files),
        save_again=TASK,
        saved=str(tmp_path / "saved"),
    )
    for name in (*MODELS, *PROCESSORS[:-1]):
        assert found["classes"][name].startswith("transformers_modules.triemo_hyphen_tiny."), name
    elsewhere = load_file(tmp_path / "tensors.safetensors")
    assert elsewhere.keys() == tensors.keys()
    for name, values in tensors.items():
        np.testing.assert_allclose(elsewhere[name], values, atol=1e-6, err_msg=name)
    wanted = logits_here(hub_folder, tensors) | scores_here(hub_folder, files)
    for name, values in wanted.items():
        same_scores(found["scores"][name], values)
    same_scores(found["scores"]["saved_again"], wanted[TASK])


def test_text_needs_neither_media_nor_face_packages(hub_folder, files, tmp_path):
    tokens = {name: torch.tensor([values]) for name, values in tiny_processor().tokenizer(SENTENCE).items()}
    save_file(tokens, tmp_path / "inputs.safetensors")
    found = load_elsewhere(
        tmp_path,
        str(hub_folder),
        ["triemo", "av", "cv2"],
        inputs=str(tmp_path / "inputs.safetensors"),
        models=["AutoModel"],
        processors=["AutoTokenizer"],
        pipelines={"text-classification": SENTENCE, TASK: {"text": SENTENCE}},
    )
    wanted = logits_here(hub_folder, tokens)["AutoModel"]
    same_scores(found["scores"]["AutoModel"], wanted)
    same_scores([found["scores"][TASK]], found["scores"]["text-classification"])


def test_installed_package_answers_without_trust(hub_folder):
    """The code in the folder is not asked for where the package is there, even if it is trusted."""
    assert type(AutoProcessor.from_pretrained(hub_folder)) is TriemoProcessor
    assert type(AutoProcessor.from_pretrained(hub_folder, trust_remote_code=True)) is TriemoProcessor
    image_processor = AutoProcessor.from_pretrained(hub_folder).image_processor
    assert type(image_processor) is TriemoImageProcessor and image_processor(data.astronaut())["pixel_values"].any()
    trusted = transformers.AutoModelForVideoClassification.from_pretrained(hub_folder, trust_remote_code=True)
    assert type(trusted) is TriemoForEmotionClassification


def test_remote_files_import_only_each_other(hub_folder):
    """And none is there that nothing imports."""
    names = {file.stem for file in hub_folder.glob("*.py")}
    imported = set()
    for file in hub_folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(alias.name.partition(".")[0] in {"triemo", *names} for alias in node.names), file.name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert str(node.module).partition(".")[0] not in {"triemo", *names}, file.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 and node.module in names, f"{file.name}: {ast.unparse(node)}"
                imported.add(node.module)
    config = json.loads((hub_folder / "config.json").read_text())
    processor = json.loads((hub_folder / "processor_config.json").read_text())
    maps = [config["auto_map"], processor["auto_map"], processor["feature_extractor"]["auto_map"]]
    maps.append(processor["image_processor"]["auto_map"])
    references = [reference for auto_map in maps for reference in auto_map.values()]
    references.append(config["custom_pipelines"][TASK]["impl"])
    assert names == imported | {reference.partition(".")[0] for reference in references}
    others = {"AutoConfig", "AutoModelForPreTraining", "AutoModelForTokenClassification"}
    assert set(config["auto_map"]) == others | set(MODELS)
    for reference in references:
        module, _, cls = reference.partition(".")
        tree = ast.parse((hub_folder / f"{module}.py").read_text("utf-8"))
        assert cls in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_what_is_missing_is_named_and_nothing_is_written(tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint")
    output = tmp_path / "out" / "folder"
    (checkpoint / "tokenizer.json").rename(checkpoint / "moved")
    with pytest.raises(ValueError, match=r"lacks tokenizer\.json"):
        assemble_hub_folder(checkpoint, output)
    (checkpoint / "moved").rename(checkpoint / "tokenizer.json")
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"lacks model\.safetensors"):
        assemble_hub_folder(checkpoint, output)
    (checkpoint / "pytorch_model.bin").rename(checkpoint / "model.safetensors")

    settings = json.loads((checkpoint / "processor_config.json").read_text())
    settings["image_processor"]["face_detector"] = "mtcnn"
    (checkpoint / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"lacks face_detector\.safetensors"):
        assemble_hub_folder(checkpoint, output)
    (checkpoint / "face_detector.safetensors").write_bytes(FACE_DETECTOR.read_bytes())

    config = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(config.replace('"model_type": "triemo"', '"model_type": "bert"'))
    with pytest.raises(ValueError, match="model_type 'triemo', got 'bert'"):
        assemble_hub_folder(checkpoint, output)
    (checkpoint / "config.json").write_text(config[:-20])
    with pytest.raises(ValueError, match="config.json is not JSON"):
        assemble_hub_folder(checkpoint, output)
    (checkpoint / "config.json").write_text(config)

    assert not output.exists()
    output.mkdir(parents=True)
    (checkpoint / "optimizer.bin").write_bytes(b"pickle")
    assert assemble_hub_folder(checkpoint, output) == output
    assert {file.suffix for file in output.iterdir()} == {".py", ".json", ".safetensors"}
    assert [file.name for file in output.parent.iterdir()] == ["folder"]
    with pytest.raises(ValueError, match="new or empty folder"):
        assemble_hub_folder(checkpoint, output)


def test_shards_travel_with_their_index(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    model = tiny_classifier()
    model.save_pretrained(checkpoint, max_shard_size="200KB")
    tiny_processor().save_pretrained(checkpoint)
    shards = {file.name for file in checkpoint.glob("model-*.safetensors")}
    assert len(shards) > 1
    folder = assemble_hub_folder(checkpoint, tmp_path / "folder")
    assert shards == {file.name for file in folder.glob("model-*.safetensors")}
    loaded = TriemoForEmotionClassification.from_pretrained(folder)
    for name, values in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], values), name
    (checkpoint / max(shards)).unlink()
    with pytest.raises(ValueError, match=max(shards)):
        assemble_hub_folder(checkpoint, tmp_path / "other")
