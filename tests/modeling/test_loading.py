"""A checkpoint whose weights are missing, of another shape, too many or not finite is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny_models import all_inputs, tiny_config, tiny_model, tiny_text_config
from tiny_pretraining import pretraining_model
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, BertModel

from triemo.modeling import (
    TriemoAudioModel,
    TriemoForEmotionClassification,
    TriemoForEmotionSequence,
    TriemoForPreTraining,
    TriemoModel,
)


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **fields) -> None:
    """Fields of config.json; of a part with two underscores, such as `audio_config__num_hidden_layers`."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in fields.items():
        part, _, inner = name.rpartition("__")
        (config[part] if part else config)[inner] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_model().save_pretrained(tmp_path)
    return tmp_path


def drop(name):
    return lambda weights: weights.pop(name)


def put(name, value):
    return lambda weights: weights.update({name: value})


FAULTS = {
    "a layer's weight": (drop("triemo.layers.0.fc1.weight"), "lacks triemo.layers.0.fc1.weight"),
    "an encoder's weight": (
        drop("triemo.text_tower.encoder.embeddings.word_embeddings.weight"),
        "lacks triemo.text_tower.encoder.embeddings.word_embeddings.weight",
    ),
    "the head": (drop("classifier.dense.weight"), "lacks classifier.dense.weight.*allow_new_head=True"),
    "another shape": (
        put("triemo.layers.0.fc1.weight", torch.zeros(48, 30)),
        r"another shape of triemo.layers.0.fc1.weight \(48, 30\) \(expected \(48, 32\)\)",
    ),
    "a weight too many": (put("triemo.layers.2.fc1.weight", torch.zeros(48, 32)), "no place for: triemo.layers.2.fc1"),
    "NaN": (put("classifier.dense.bias", torch.full((32,), float("nan"))), "not finite in classifier.dense.bias"),
    "infinity": (
        put("triemo.audio_embedding.projection.bias", torch.tensor([float("inf")] * 32)),
        "not finite in triemo.audio_embedding.projection.bias",
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_weights_that_cannot_be_right_are_named(folder, fault):
    change, message = FAULTS[fault]
    change_weights(folder, change)
    for auto_class in (AutoModelForSequenceClassification, TriemoForEmotionClassification):
        with pytest.raises(ValueError, match=message):
            auto_class.from_pretrained(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 3}, r"lacks (triemo\.)?layers.2"),
        ({"num_hidden_layers": 1}, r"no place for: (triemo\.)?layers.1"),
        ({"audio_config__num_hidden_layers": 3}, r"lacks (triemo\.)?audio_tower.encoder.layers.2"),
        ({"text_config__num_hidden_layers": 1}, r"no place for: (triemo\.)?text_tower.encoder.encoder.layer.1"),
        ({"calibration_temperature": float("nan")}, "calibration_temperature must be a number above 0, got nan"),
        (
            {"calibration_temperature": {"text": float("inf")}},
            "must be a number above 0, got inf",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_named(folder, fields, message):
    change_config(folder, **fields)
    for auto_class in (AutoModel, AutoModelForSequenceClassification):
        with pytest.raises(ValueError, match=message):
            auto_class.from_pretrained(folder)


def test_a_new_head_is_made_on_request_only(folder, tmp_path, caplog):
    TriemoModel.from_pretrained(folder).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="lacks classifier.dense.bias.*allow_new_head=True"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="lacks logit_scale.weight, mlm_head"):
        AutoModelForPreTraining.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", allow_new_head=True, num_labels=3)
    assert model(**all_inputs()).logits.shape == (2, 3)
    change_weights(tmp_path / "base", drop("layers.1.fc1.weight"))
    with pytest.raises(ValueError, match="lacks triemo.layers.1.fc1.weight"):  # no part of the head
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", allow_new_head=True)


def test_a_head_of_another_size_is_made_as_everywhere_in_the_library(folder):
    with pytest.raises(ValueError, match=r"another shape of classifier.out_proj.bias \(7,\) \(expected \(3,\)\)"):
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)
    assert model(**all_inputs()).logits.shape == (2, 3)
    change_config(folder, intermediate_size=40)
    with pytest.raises(ValueError, match="another shape of triemo.layers.0.fc1"):
        AutoModelForSequenceClassification.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_a_head_that_the_settings_leave_out_is_left_out(tmp_path):
    pretraining_model(frame_weight=1.0).save_pretrained(tmp_path)
    loaded = TriemoForPreTraining.from_pretrained(tmp_path, mlm_weight=0.0)
    assert loaded.mlm_head is None and loaded.logit_scale is not None and len(loaded.frame_heads) == 2


def test_a_conversation_is_no_clip_and_its_towers_are_those_of_any_model(tmp_path):
    TriemoForEmotionSequence(tiny_config(context_type="transformer")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no place for: context."):
        TriemoForEmotionClassification.from_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is TriemoModel
    tiny_model().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="lacks context..*allow_new_head"):
        TriemoForEmotionSequence.from_pretrained(tmp_path / "clip", context_type="graph")


def test_an_audio_tower_by_itself_is_loaded_as_strictly(tmp_path):
    TriemoAudioModel(tiny_config().audio_config).save_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), TriemoAudioModel)
    change_weights(tmp_path, drop("layers.1.fc1.weight"))
    with pytest.raises(ValueError, match="lacks layers.1.fc1.weight"):
        AutoModel.from_pretrained(tmp_path)


def test_an_encoder_without_all_its_weights_becomes_no_tower(tmp_path):
    BertModel(tiny_text_config()).save_pretrained(tmp_path)
    change_weights(tmp_path, put("encoder.layer.0.output.dense.bias", torch.full((32,), float("nan"))))
    with pytest.raises(ValueError, match="not finite in encoder.layer.0.output.dense.bias"):
        TriemoModel.from_encoders_pretrained(text=tmp_path)
    change_weights(tmp_path, drop("encoder.layer.0.output.dense.bias"))
    with pytest.raises(ValueError, match="lacks encoder.layer.0.output.dense.bias"):
        TriemoModel.from_encoders_pretrained(text=tmp_path)


def test_a_checkpoint_of_one_modality_with_projections_of_its_fusion_still_loads(tmp_path):
    model = tiny_model(audio_config=None, vision_config=None)
    assert not list(model.triemo.fusion.parameters())
    model.save_pretrained(tmp_path)
    older = {f"triemo.fusion.projections.text.{name}_proj.weight": torch.randn(32, 32) for name in "qkv"}
    change_weights(tmp_path, lambda weights: weights.update(older))
    loaded = TriemoForEmotionClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    model = tiny_model(vision_config=None)
    model.save_pretrained(tmp_path / "two")
    change_weights(tmp_path / "two", put("triemo.fusion.projections.vision.q_proj.weight", torch.randn(32, 32)))
    with pytest.raises(ValueError, match="no place for: triemo.fusion.projections.vision"):
        TriemoForEmotionClassification.from_pretrained(tmp_path / "two")


@pytest.mark.parametrize("place", ["beside", "elsewhere"])
def test_an_adapter_whose_base_lacks_weights_is_refused(folder, tmp_path_factory, place, monkeypatch):
    """The library tells only of the adapter's own weights, and starts its base's at random."""
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)
    adapted = folder if place == "beside" else tmp_path_factory.mktemp("adapter")
    model = TriemoForEmotionClassification.from_pretrained(folder)
    model.add_adapter(LoraConfig(r=2, target_modules=["fc1"], modules_to_save=["classifier"]))
    model.save_pretrained(adapted)
    assert (adapted / "adapter_config.json").is_file()
    again = TriemoForEmotionClassification.from_pretrained(adapted)
    inputs = all_inputs(2)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model.eval()(**inputs).logits, rtol=0, atol=1e-6)
    change_weights(folder, drop("classifier.dense.weight"))  # which the adapter has
    TriemoForEmotionClassification.from_pretrained(adapted)
    change_weights(folder, drop("triemo.layers.0.fc2.weight"))
    with pytest.raises(ValueError, match="lacks triemo.layers.0.fc2.weight"):
        TriemoForEmotionClassification.from_pretrained(adapted)
    (folder / "model.safetensors").unlink()
    with pytest.raises((OSError, ValueError), match=r"no file named .*model\.safetensors"):
        TriemoForEmotionClassification.from_pretrained(adapted)
