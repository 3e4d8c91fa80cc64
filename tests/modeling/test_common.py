"""What every Hugging Face model does: save and load, dtypes, backends, checkpointing, resizing, tuples, LoRA."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import KEYS, all_inputs, text_inputs, tiny_audio_config, tiny_config, tiny_model
from tiny_pretraining import batch_of_five, pretraining_model
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForVideoClassification,
    ViTConfig,
)

from triemo.modeling import TriemoForEmotionClassification, TriemoModel
from triemo.modeling.layers_triemo import masked_mean

AUTO_CLASSES = [
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForVideoClassification,
]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
LORA_TARGETS = r".*\.(q|k|v|out)_proj|.*text_tower.*\.(query|value)"


@pytest.mark.parametrize("auto_class", AUTO_CLASSES, ids=lambda c: c.__name__)
def test_save_and_load_through_the_auto_classes(tmp_path, auto_class):
    model, inputs = tiny_model(), all_inputs()
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    loaded = auto_class.from_pretrained(tmp_path).eval()
    assert type(loaded) is TriemoForEmotionClassification
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_base_model_and_head_exchange_weights(tmp_path):
    model, inputs = tiny_model(), all_inputs()
    model.save_pretrained(tmp_path / "head")
    base, info = AutoModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert type(base) is TriemoModel and not info["missing_keys"]
    torch.testing.assert_close(base.eval()(**inputs).pooler_output, model.triemo(**inputs).pooler_output)
    base.save_pretrained(tmp_path / "base")
    options = {"output_loading_info": True, "allow_new_head": True}
    head, info = TriemoForEmotionClassification.from_pretrained(tmp_path / "base", **options)
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"classifier"}
    torch.testing.assert_close(head.eval().triemo(**inputs).pooler_output, base(**inputs).pooler_output)


def test_loads_in_another_process(tmp_path):
    model, inputs = tiny_model(), text_inputs()
    model.save_pretrained(tmp_path)
    code = (
        "import json, sys, torch, triemo.modeling\n"
        "from transformers import AutoModelForSequenceClassification as A\n"
        "m = A.from_pretrained(sys.argv[1]).eval()\n"
        "print(json.dumps(m(input_ids=torch.tensor(json.loads(sys.argv[2]))).logits.tolist()))\n"
    )
    ids = json.dumps(inputs["input_ids"].tolist())
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path), ids], capture_output=True, text=True, check=True)
    torch.testing.assert_close(
        torch.tensor(json.loads(run.stdout)), model(**inputs).logits.detach(), atol=1e-6, rtol=1e-5
    )


def test_eager_and_sdpa_agree_and_attentions_come_in_either():
    model, inputs = tiny_model(), all_inputs()
    inputs["audio_attention_mask"][1, 20:] = 0
    results = {}
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        assert model.config._attn_implementation == model.triemo.text_tower.encoder.config._attn_implementation
        results[backend] = model(**inputs, output_attentions=True, output_hidden_states=True)
        plain = model(**inputs)
        torch.testing.assert_close(plain.logits, results[backend].logits, atol=1e-5, rtol=1e-4)
        assert plain.attentions is None and plain.hidden_states is None and plain.fusion_attentions is None
    torch.testing.assert_close(results["eager"].logits, results["sdpa"].logits, atol=1e-5, rtol=1e-4)
    output = results["sdpa"]
    steps = 7 + 7 + 3  # tokens; 61 frames -> 31 steps -> 7 at 10 Hz; frames
    assert [a.shape for a in output.attentions] == [(2, 4, steps, steps)] * 2
    assert [h.shape for h in output.hidden_states] == [(2, steps, 32)] * 3
    assert len(output.fusion_attentions) == 6


def test_flash_is_declared_for_the_joint_part_and_skipped_by_encoders_without_it():
    from triemo.modeling.encoders_triemo import supported_attention

    model = tiny_model()
    assert TriemoModel._supports_flash_attn and type(model.triemo.audio_tower.encoder)._supports_flash_attn
    resnet = type(model.triemo.vision_tower.encoder)
    assert supported_attention(resnet, "flash_attention_2") == "eager"
    assert supported_attention(type(model.triemo.text_tower.encoder), "flash_attention_2") == "flash_attention_2"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads_and_stays_close(tmp_path, dtype):
    model, inputs = tiny_model(), all_inputs()
    model.save_pretrained(tmp_path)
    half = TriemoForEmotionClassification.from_pretrained(tmp_path, dtype=dtype).eval()
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    difference = (half(**inputs).logits.float() - model(**inputs).logits).abs().max()
    assert difference < 0.05 * model(**inputs).logits.abs().max() + 0.02


def test_gradient_checkpointing_gives_the_same_gradients():
    inputs, labels = all_inputs(), torch.tensor([0, 5])
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(hidden_dropout=0.0, classifier_dropout=0.0, attention_dropout=0.0)
        for module in (model.triemo.text_tower.encoder, model.triemo.vision_tower.encoder):
            module.eval()
        if checkpointing:
            # transformers 5.23 renamed it; both names do the same.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            assert all(layer.gradient_checkpointing for layer in model.triemo.layers)
        model.triemo.layers.train()
        model.triemo.audio_tower.train()
        model(**inputs, labels=labels).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 100
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4)


def test_tuple_output_is_the_dict_output_in_order():
    model, inputs = tiny_model(), all_inputs()
    labels = torch.tensor([0, 5])
    output = model(**inputs, labels=labels)
    as_tuple = model(**inputs, labels=labels, return_dict=False)
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits)
    assert len(as_tuple) == len(output.to_tuple())
    base = model.triemo(**inputs, return_dict=False)
    assert torch.equal(base[0], model.triemo(**inputs).last_hidden_state)


def test_resizing_the_token_embedding():
    model = tiny_model()
    model.resize_token_embeddings(120)
    assert model.get_input_embeddings().num_embeddings == model.config.text_config.vocab_size == 120
    assert model(input_ids=torch.tensor([[119, 5]])).logits.shape == (1, 7)


def test_initial_weights_are_seeded_and_positions_need_no_buffer():
    torch.manual_seed(3)
    first = TriemoForEmotionClassification(tiny_config())
    torch.manual_seed(3)
    second = TriemoForEmotionClassification(tiny_config())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    sinusoids_stored = [name for name, _ in first.triemo.named_buffers() if "position" in name and "tower" not in name]
    assert not sinusoids_stored


@pytest.mark.parametrize("subset", ["text", "audio", "vision", "all"])
def test_a_few_steps_of_training_lower_the_loss(subset):
    torch.manual_seed(0)
    model = TriemoForEmotionClassification(
        tiny_config(modality_dropout=0.3, audio_config=tiny_audio_config(use_weighted_layer_sum=True))
    ).train()
    inputs = all_inputs(8)
    if subset != "all":
        inputs = {key: inputs[key] for key in KEYS[subset]}
    labels = torch.arange(8) % 7
    if "input_features" in inputs:  # noise of one mean sounds the same in every clip
        inputs["input_features"] = inputs["input_features"] + labels.view(-1, 1, 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model(**inputs, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_lora_by_regular_expression_saves_the_head_and_reloads_exactly(tmp_path):
    model, inputs = tiny_model(), all_inputs()
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=LORA_TARGETS, modules_to_save=["classifier"], lora_dropout=0.0)
    peft = get_peft_model(model, config)
    trainable = {name for name, parameter in peft.named_parameters() if parameter.requires_grad}
    adapted = {
        name.split(".lora_")[0].removeprefix("base_model.model.triemo.") for name in trainable if "lora_" in name
    }
    expected = {f"layers.{i}.self_attn.{p}_proj" for i in range(2) for p in ("q", "k", "v", "out")}
    expected |= {f"audio_tower.encoder.{name}" for name in expected}
    expected |= {f"fusion.projections.{m}.{p}_proj" for p in ("q", "k", "v") for m in ("text", "audio", "vision")}
    layer = "text_tower.encoder.encoder.layer.{}.attention.self.{}"
    expected |= {layer.format(i, name) for i in range(2) for name in ("query", "value")}
    assert adapted == expected
    head = {name for name in trainable if "lora_" not in name}
    assert head and all("classifier.modules_to_save.default." in name for name in head)

    optimiser = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        loss = peft(**inputs, labels=torch.tensor([2, 3])).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        tuned = peft.eval()(**inputs).logits
    peft.save_pretrained(tmp_path / "adapter")
    base = TriemoForEmotionClassification.from_pretrained(tmp_path / "base").eval()
    assert (base(**inputs).logits - tuned).abs().max() > 1e-2
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    before, after = peft.state_dict(), reloaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():  # weights read from a file lie elsewhere in memory, which moves the last bit
        assert (reloaded(**inputs).logits - tuned).abs().max() < 1e-5


def test_traced_graph_runs_all_rows_and_agrees():
    """torch.export takes the path without data-dependent shapes; its outputs equal the eager ones."""
    model = tiny_model()
    inputs = all_inputs(3)
    inputs["audio_attention_mask"][1] = 0
    inputs["video_attention_mask"][2] = 0
    inputs["video_attention_mask"][0, 1:] = 0
    exported = torch.export.export(model, (), kwargs=inputs, strict=False).module()
    assert (exported(**inputs).logits - model(**inputs).logits).abs().max() < 1e-5


# Outputs on request, as in the library --------------------------------------------------------------------------


def test_attentions_under_a_flash_backend_are_those_of_the_eager_one():
    """The mask of flash kernels is (B, L); weights come from the eager backend, which needs one over keys."""
    model, inputs = tiny_model().triemo, all_inputs()
    inputs["audio_attention_mask"][1, 20:] = 0
    expected = model(**inputs, output_attentions=True)
    model.config._attn_implementation = "flash_attention_2"
    for modality in KEYS:  # the encoders would need the kernels
        model.tower(modality).encoder.config._attn_implementation = "eager"
    got = model(**inputs, output_attentions=True)
    for ours, theirs in zip(got.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")  # transformers' own use
def test_flex_attention_agrees_with_sdpa():
    vectors = {"text_feature_size": 4, "audio_feature_size": 3, "text_config": None, "audio_config": None}
    model = tiny_model(**vectors, vision_config=None, num_hidden_layers=1)  # one kernel is compiled
    inputs = {"text_features": torch.randn(2, 5, 4), "input_features": torch.randn(2, 20, 3)}
    inputs["audio_attention_mask"] = torch.tensor([[1] * 20, [1] * 9 + [0] * 11])
    with torch.no_grad():
        expected = model(**inputs).logits
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-4)


def test_pretraining_returns_states_and_attentions_too():
    model, batch = pretraining_model(), batch_of_five()
    output = model(**batch, output_attentions=True, output_hidden_states=True)
    steps = 7 + 7 + 3
    assert [state.shape for state in output.hidden_states] == [(5, steps, 32)] * 3
    assert [weights.shape for weights in output.attentions] == [(5, 4, steps, steps)] * 2
    assert output.loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    batch.pop("mlm_labels")
    assert len(model(**batch, output_hidden_states=True).hidden_states) == 3  # no loss reads them here


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.24.dev0"), reason="new in transformers 5.24")
def test_chosen_hidden_states_only():
    model, inputs = tiny_model(), all_inputs()
    every = model(**inputs, output_hidden_states=True).hidden_states
    some = model(**inputs, output_hidden_states=[0, 2]).hidden_states
    assert some[1] is None and torch.equal(some[0], every[0]) and torch.equal(some[2], every[2])


def test_unimodal_features_come_as_the_output_class_of_the_library():
    model, inputs = tiny_model().triemo, all_inputs()
    inputs["video_attention_mask"][1, 1:] = 0
    expected = model(**inputs)
    shapes = {"text": (2, 7, 32), "audio": (2, 31, 32), "vision": (2, 3, 16)}
    for modality, keys in KEYS.items():
        features = getattr(model, f"get_{modality}_features")
        output = features(**{key: inputs[key] for key in keys}, output_hidden_states=True)
        torch.testing.assert_close(output.pooler_output, expected[f"{modality}_embeds"])
        assert output.last_hidden_state.shape == shapes[modality] and len(output.hidden_states) == 3
        assert all(state.shape[0] == 2 for state in output.hidden_states)
        as_tuple = features(**{key: inputs[key] for key in keys}, return_dict=False)
        assert torch.equal(as_tuple[1], output.pooler_output)
    assert output.hidden_states[-1].shape[:2] == (2, 3)  # frames; the masked ones are zero
    assert output.hidden_states[-1][1, 1:].abs().max() == 0


def test_a_long_sound_in_half_precision_has_a_finite_mean():
    states = torch.full((2, 910, 4), 90.0, dtype=torch.float16)
    mask = torch.ones(2, 910, dtype=torch.long)
    mask[1, 455:] = 0
    assert torch.equal(masked_mean(states, mask), torch.full((2, 4), 90.0, dtype=torch.float16))


def test_adapters_in_every_modality_learn_under_reentrant_checkpointing():
    found = {}
    for reentrant in (False, True):
        vit = ViTConfig(image_size=32, patch_size=8, num_channels=1, **SIZES)
        model = tiny_model(vision_config=vit).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, target_modules=LORA_TARGETS))
        options = {"use_reentrant": reentrant}
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(options)
        model.enable_input_require_grads()
        model(**all_inputs(), labels=torch.tensor([0, 5])).loss.backward()
        found[reentrant] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, gradient in found[True].items() if gradient is None} == set()
    assert len(found[True]) == len(found[False]) > 60


def test_adapters_over_vectors_learn_under_reentrant_checkpointing():
    fields = {"text_config": None, "audio_config": None, "vision_config": None}
    model = tiny_model(**fields, text_feature_size=4, vision_feature_size=3).train()
    model = get_peft_model(model, LoraConfig(r=2, target_modules=r".*\.layers\..*(q|v)_proj"))
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": True})
    model.enable_input_require_grads()
    inputs = {"text_features": torch.randn(2, 5, 4), "vision_features": torch.randn(2, 3, 3)}
    model(**inputs, labels=torch.tensor([0, 5])).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
