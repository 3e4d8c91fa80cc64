"""Bad input to the model and its config: a ValueError that names the field, what came and what is accepted."""

import inspect
import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_models import (
    all_inputs,
    audio_inputs,
    text_inputs,
    tiny_audio_config,
    tiny_config,
    tiny_model,
    tiny_text_config,
    vision_inputs,
)
from tiny_pretraining import pretraining_model
from transformers import AutoConfig, Wav2Vec2Config
from transformers.utils.generic import can_return_loss, find_labels

from triemo.modeling import TriemoConfig, TriemoForEmotionClassification, TriemoForPreTraining, TriemoModel
from triemo.modeling.inputs_triemo import TriemoInputs


def without_audio(batch: dict) -> dict:
    return {key: value for key, value in batch.items() if "audio" not in key and key != "input_features"}


BAD_INPUTS = {
    "nothing": ({}, "no modality at all"),
    "only labels": ({"labels": torch.tensor([1])}, "no modality at all"),
    "rank of ids": ({"input_ids": torch.ones(4, dtype=torch.long)}, r"input_ids.*\(batch, text_steps\).*got \(4,\)"),
    "rank of frames": ({"input_features": torch.randn(61, 20)}, r"input_features.*\(batch, audio_frames, bins\)"),
    "rank of pixels": ({"pixel_values": torch.randn(2, 1, 32, 32)}, r"pixel_values.*\(batch, frames, channels, h"),
    "zero steps": ({"input_ids": torch.ones(1, 0, dtype=torch.long)}, r"none of them 0, got \(1, 0\)"),
    "zero frames": ({"pixel_values": torch.randn(1, 0, 1, 32, 32)}, "none of them 0"),
    "bins": ({"input_features": torch.randn(1, 61, 80)}, "input_features must have 20 values a step"),
    "channels": ({"pixel_values": torch.randn(1, 2, 3, 32, 32)}, "pixel_values must have 1 channels"),
    "waveform": ({"input_values": torch.randn(1, 16000)}, "input_values was passed.*takes input_features for audio"),
    "vectors": ({"text_features": torch.randn(1, 3, 5)}, "text_features was passed.*takes input_ids for text"),
    "mask shape": (
        {"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.ones(2, 5)},
        r"attention_mask must have shape \(2, 4\), got \(2, 5\)",
    ),
    "mask alone": (
        {"input_ids": torch.ones(2, 4, dtype=torch.long), "video_attention_mask": torch.ones(2, 5)},
        "video_attention_mask was passed without the vision input",
    ),
    "times shape": (
        {"pixel_values": torch.randn(2, 3, 1, 32, 32), "video_times": torch.zeros(2, 4)},
        r"video_times must have shape \(2, 3\), got \(2, 4\)",
    ),
    "batch sizes": ({**text_inputs(2), **vision_inputs(3)}, "same batch size, got {'text': 2, 'vision': 3}"),
    "too long": ({"input_ids": torch.ones(1, 65, dtype=torch.long)}, "text has 65 steps.*at most 64.*truncat"),
}


@pytest.mark.parametrize("name", list(BAD_INPUTS))
def test_bad_input_is_refused_by_name(name):
    inputs, message = BAD_INPUTS[name]
    with pytest.raises(ValueError, match=message):
        tiny_model()(**inputs)


def test_a_sample_without_any_modality_is_named():
    batch = all_inputs(3)
    for mask in ("attention_mask", "audio_attention_mask", "video_attention_mask"):
        batch[mask][1] = 0
    with pytest.raises(ValueError, match=r"samples \[1\] of the batch have no modality"):
        tiny_model()(**batch)


def test_a_modality_the_model_lacks_is_refused():
    model = TriemoForEmotionClassification(tiny_config(audio_config=None)).eval()
    assert model(**without_audio(all_inputs())).logits.shape == (2, 7)
    with pytest.raises(ValueError, match="input_features was passed, but this model has no audio"):
        model(**all_inputs())


def test_a_waveform_shorter_than_one_step_is_named():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 37}
    waves = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 4), "num_feat_extract_layers": 2}
    config = Wav2Vec2Config(**sizes, **waves, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)
    model = TriemoForEmotionClassification(tiny_config(audio_config=config)).eval()
    mask = torch.ones(2, 800, dtype=torch.long)
    mask[1, 30:] = 0
    with pytest.raises(ValueError, match="audio of sample 1 has 30 samples, too few"):
        model(input_values=torch.randn(2, 800), audio_attention_mask=mask)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_feature_size": 5}, "text takes one of .*got text_config and text_feature_size"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ({"audio_step_rate": 0}, "audio_step_rate must be above 0 or None, got 0"),
        ({"video_frame_rate": -1.0}, r"'video_frame_rate'\s*:\s*ValueError: Value must be greater than 0, got -1.0"),
        ({"modality_dropout": 1.0}, r"'modality_dropout'\s*:\s*ValueError: .* equal to 0 and smaller than 1, got 1.0"),
        ({"hidden_dropout": 1.5}, r"'hidden_dropout'\s*:\s*ValueError: .*between 0.0 and 1.0, got 1.5"),
        ({"class_weights": [1.0, 2.0]}, r"unknown fields \['class_weights'\]"),
        ({"text_position_type": "rotary"}, "text_position_type"),
        ({"hidden_size": "big"}, "hidden_size"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tiny_config(**fields)


def test_a_misspelt_field_is_refused():
    with pytest.raises(ValueError, match="unknown fields \\['hiden_size'\\]"):
        TriemoConfig(hiden_size=32)


def test_a_field_of_a_newer_release_is_only_reported(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"model_type": "triemo",', '"model_type": "triemo", "from_2030": 1,'))
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == 32


def test_settings_of_a_run_in_an_older_config_say_nothing_any_more(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    retired = {"class_weights": [2.0] * 7, "label_smoothing": 0.1, "contrastive_local_loss": True}
    retired |= {"contrastive_soft_labels": False, "frame_mask_probability": 0.15}
    path.write_text(json.dumps(json.loads(path.read_text()) | retired))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.hidden_size == 32 and not retired.keys() & loaded.to_dict().keys()


def test_sub_config_without_a_model_type_is_refused():
    with pytest.raises(ValueError, match="text_config needs a 'model_type'"):
        TriemoConfig(text_config={"hidden_size": 3})
    with pytest.raises(StrictDataclassError, match="'text_config' with value 'bert-base-uncased'"):
        tiny_config(text_config="bert-base-uncased")


def test_a_model_without_modalities_is_refused():
    with pytest.raises(ValueError, match="TriemoConfig has no modality"):
        TriemoModel(TriemoConfig())


def test_step_aligned_config_is_refused_for_clips():
    with pytest.raises(ValueError, match="step_aligned must be False"):
        TriemoForEmotionClassification(tiny_config(step_aligned=True))


def test_config_round_trip_keeps_towers_and_fields(tmp_path):
    config = tiny_config(calibration_temperature=1.7, audio_step_rate=None)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    ours, theirs = config.to_dict(), again.to_dict()
    for values in (ours, theirs):
        values.pop("_name_or_path", None)
    assert ours == theirs
    assert again.modalities == ("text", "audio", "vision")
    assert again.text_config.to_dict() == tiny_text_config().to_dict()
    assert again.audio_config.hidden_size == tiny_audio_config().hidden_size


def test_temperatures_by_subset_survive_a_save(tmp_path):
    config = tiny_config(calibration_temperature={"text": 2.0, "text+vision": 0.5})
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    found = [again.temperature_of(mask) for mask in ([True, False, False], (1, 0, 1), [False, True, False])]
    assert found == [2.0, 0.5, 1.0]
    assert tiny_config(calibration_temperature=3).temperature_of([True, True, True]) == 3.0


def test_least_score_by_subset():
    config = tiny_config(min_score={"text": 0.4, "audio+vision": 0.7})
    assert [config.min_score_of(mask) for mask in ([1, 0, 0], [0, 1, 1], [1, 1, 1])] == [0.4, 0.7, 0.0]
    assert tiny_config(min_score=0.5).min_score_of([True, False, False]) == 0.5
    with pytest.raises((ValueError, StrictDataclassError), match="min_score must be a number from 0 to 1, got 1.2"):
        tiny_config(min_score={"text": 1.2})
    with pytest.raises((ValueError, StrictDataclassError), match="min_score: got the key 'vision.text'"):
        tiny_config(min_score={"vision+text": 0.2})


@pytest.mark.parametrize("wrong", [{"vision+text": 1.0}, {"all": 1.0}, {"text": 0.0}, {"text": "hot"}, -1.0])
def test_wrong_temperatures_are_refused(wrong):
    with pytest.raises((ValueError, StrictDataclassError), match="calibration_temperature"):
        tiny_config(calibration_temperature=wrong)


def test_feature_vectors_and_plain_token_ids_need_no_tower():
    config = tiny_config(
        text_config=None,
        audio_config=None,
        vision_config=None,
        text_vocab_size=50,
        audio_feature_size=6,
        vision_feature_size=9,
        audio_frame_rate=1.0,
        audio_step_rate=None,
    )
    model = TriemoForEmotionClassification(config).eval()
    inputs = {
        "input_ids": torch.randint(0, 50, (2, 4)),
        "input_features": torch.randn(2, 5, 6),
        "vision_features": torch.randn(2, 3, 9),
    }
    output = model(**inputs)
    assert output.logits.shape == (2, 7) and output.audio_embeds.shape == (2, 24)
    with pytest.raises(ValueError, match="vision_features must have 9 values a step"):
        model(vision_features=torch.randn(2, 3, 8))
    longer = torch.nn.functional.pad(inputs["input_features"], (0, 0, 0, 2), value=9.0)
    mask = torch.tensor([[1] * 5 + [0] * 2] * 2)
    padded = model(**{**inputs, "input_features": longer, "audio_attention_mask": mask})
    assert (padded.logits - output.logits).abs().max() < 1e-5
    assert audio_inputs()["input_features"].shape[-1] != 6


# What a forward pass takes ------------------------------------------------------------------------------------


def test_an_argument_that_there_is_not_is_refused_by_name():
    for model in (tiny_model(), tiny_model().triemo, pretraining_model()):
        ids = text_inputs()["input_ids"]
        with pytest.raises(
            TypeError, match="unexpected argument 'atention_mask'; it takes input_ids, attention_mask, "
        ):
            model(input_ids=ids, atention_mask=torch.zeros_like(ids))
    with pytest.raises(TypeError, match="forward got input_ids twice"):
        tiny_model()(ids, input_ids=ids)


def test_what_the_library_passes_itself_is_accepted_and_changes_nothing():
    model, inputs = tiny_model(), text_inputs()
    passed = {
        "num_items_in_batch": torch.tensor(2),
        "return_dict": True,
        "output_attentions": None,
        "use_cache": False,
    }
    passed |= {"inputs_embeds": None, "output_hidden_states": False}
    assert torch.equal(model(**inputs, **passed).logits, model(**inputs).logits)
    assert torch.equal(model(*inputs.values()).logits, model(**inputs).logits)  # by place, text first


def test_trainer_and_pipelines_find_the_names_in_the_signature():
    names = list(inspect.signature(tiny_model().forward).parameters)
    assert names == [*TriemoInputs.__annotations__, "labels", "inputs"]
    assert find_labels(TriemoForEmotionClassification) == ["labels"]
    assert find_labels(TriemoForPreTraining) == ["mlm_labels", "labels"] and can_return_loss(TriemoForPreTraining)
    assert not can_return_loss(TriemoForEmotionClassification)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "input_ids"),
        ({"text_config": None}, "input_features"),
        ({"text_config": None, "audio_config": None}, "pixel_values"),
        ({"text_config": None, "text_feature_size": 4}, "text_features"),
    ],
)
def test_the_main_input_is_one_that_the_model_takes(fields, name):
    model = TriemoForEmotionClassification(tiny_config(**fields))
    assert model.main_input_name == model.triemo.main_input_name == name


def test_vocab_size_is_that_of_the_tower_or_of_the_plain_vocabulary_also_after_a_resize(tmp_path):
    fields = {"audio_config": None, "vision_config": None}
    for text in ({}, {"text_config": None, "text_vocab_size": 99}):
        model = TriemoForEmotionClassification(tiny_config(**fields, **text))
        assert model.config.vocab_size == 99
        model.resize_token_embeddings(120)
        assert model.config.vocab_size == 120 == model.get_input_embeddings().num_embeddings
        model.save_pretrained(tmp_path)
        assert "vocab_size" not in json.loads((tmp_path / "config.json").read_text())
        assert AutoConfig.from_pretrained(tmp_path).vocab_size == 120
    assert not hasattr(tiny_config(text_config=None), "vocab_size")


def test_the_problem_is_resolved_in_one_place():
    assert tiny_config().resolved_problem_type == "single_label_classification"
    assert tiny_config(num_labels=1).resolved_problem_type == "regression"
    assert tiny_config(num_labels=1, problem_type="multi_label_classification").resolved_problem_type.startswith(
        "multi"
    )
