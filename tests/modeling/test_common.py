"""What every Hugging Face model does: save and load, dtypes, backends, checkpointing, resizing, tuples, LoRA."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import all_inputs, text_inputs, tiny_audio_config, tiny_config, tiny_model
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForVideoClassification,
)

from triemo.modeling import TriemoForEmotionClassification, TriemoModel

AUTO_CLASSES = [
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForVideoClassification,
]
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
    head, info = TriemoForEmotionClassification.from_pretrained(tmp_path / "base", output_loading_info=True)
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
    from tiny_models import KEYS

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
