"""A repository's weights in the forms that people load them in."""

from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint, tiny_processor
from transformers import AutoModelForVideoClassification

from triemo.training.publish.folder import assemble_hub_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    checkpoint = save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    return assemble_hub_folder(checkpoint, tmp_path_factory.mktemp("hub") / "folder")


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = dict(tiny_processor().tokenizer("I am so happy", return_tensors="pt"))
    tensors["input_features"] = torch.randn(1, 40, 80, generator=generator)
    tensors["audio_attention_mask"] = torch.ones(1, 40, dtype=torch.long)
    return tensors


def scores(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.inference_mode():
        return model.eval()(**inputs).logits.float().softmax(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_reads_the_same(folder, inputs, dtype):
    whole = AutoModelForVideoClassification.from_pretrained(folder)
    half = AutoModelForVideoClassification.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    torch.testing.assert_close(scores(half, inputs, dtype), scores(whole, inputs), atol=0.03, rtol=0)


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_map_gives_the_very_scores(folder, inputs, device_map):
    whole = AutoModelForVideoClassification.from_pretrained(folder)
    placed = AutoModelForVideoClassification.from_pretrained(folder, device_map=device_map)
    if {str(parameter.device) for parameter in placed.parameters()} != {"cpu"}:
        pytest.skip("a GPU is here, and its scores differ in the last digits")
    assert torch.equal(scores(placed, inputs), scores(whole, inputs))


def test_half_weights_move_no_class_of_the_release(checkpoint):
    """bfloat16 on sentences: the same top class, scores within what eight bits of mantissa leave."""
    model = AutoModelForVideoClassification.from_pretrained(checkpoint)
    half = AutoModelForVideoClassification.from_pretrained(checkpoint, dtype=torch.bfloat16)
    ids = torch.tensor([[101, 1045, 2572, 2061, 3407, 102], [101, 1045, 2293, 2023, 3185, 102]])
    full, low = scores(model, {"input_ids": ids}), scores(half, {"input_ids": ids})
    assert torch.equal(full.argmax(-1), low.argmax(-1))
    torch.testing.assert_close(low, full, atol=0.03, rtol=0)
