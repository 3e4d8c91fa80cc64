"""One graph without breaks under `torch.compile`, and the ways weights are loaded: types, places, their spellings."""

import logging
from pathlib import Path

import pytest
import torch
from tiny_models import KEYS, all_inputs, text_inputs, tiny_model

from triemo.modeling import TriemoForEmotionClassification

BACKEND = "eager"  # traces as every backend does, and generates no code


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of the tests before
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    return folder


def inputs_of(batch: int, **absent: bool) -> dict[str, torch.Tensor]:
    """Inputs of all modalities; of those named absent the masks are zero in the first sample."""
    torch.manual_seed(batch)
    inputs = all_inputs(batch)
    for modality in absent:
        inputs[KEYS[modality][1]][0] = 0
    return inputs


def test_whole_model_is_one_graph():
    """The second batch lacks voice and face in a row: the same graph runs on all rows."""
    model = tiny_model()
    compiled = torch.compile(model, fullgraph=True, backend=BACKEND)
    for inputs in (inputs_of(2), inputs_of(2, audio=True, vision=True)):
        with torch.no_grad():
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-4)


def test_joint_encoder_and_fusion_have_no_graph_break():
    model = tiny_model().triemo
    states = {m: torch.randn(2, steps, 32) for m, steps in (("text", 5), ("audio", 7), ("vision", 3))}
    masks = {m: torch.ones(state.shape[:2], dtype=torch.long) for m, state in states.items()}
    masks["audio"][0, 4:] = 0

    def joined(states, masks):
        return model.fusion(model.split_steps(model.encode_jointly(states, masks), masks), masks)[0]

    explained = torch._dynamo.explain(joined)(states, masks)
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1


def test_new_lengths_and_batches_share_one_dynamic_graph():
    model = tiny_model()
    graphs = []

    def counting(graph, example):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting, dynamic=True)
    with torch.no_grad():
        for batch, steps in ((2, 7), (3, 9), (5, 12)):
            inputs = text_inputs(batch, steps)
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-4)
    assert len(graphs) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_of_weights(saved, dtype):
    model = TriemoForEmotionClassification.from_pretrained(saved, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    inputs = inputs_of(2)
    with torch.no_grad():
        logits = model(**inputs).logits
        expected = tiny_model()(**inputs).logits
    assert logits.dtype == dtype and torch.isfinite(logits).all()
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 0.25, torch.float16: 0.05}[dtype]
    assert (logits.float() - expected).abs().max() < tolerance * max(1.0, float(expected.abs().max()))


def test_older_spelling_of_the_type_is_taken_too(saved):
    # A deprecation of transformers' own, which the tests' handler would raise on; here it is asked for.
    quiet = logging.getLogger("transformers")
    handlers, quiet.handlers = quiet.handlers, []
    try:
        model = TriemoForEmotionClassification.from_pretrained(saved, torch_dtype=torch.bfloat16)
    finally:
        quiet.handlers = handlers
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, {"triemo": "cpu", "classifier": "cpu"}])
def test_device_map(saved, device_map):
    model = TriemoForEmotionClassification.from_pretrained(saved, device_map=device_map).float().cpu()
    inputs = inputs_of(2)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, tiny_model()(**inputs).logits, atol=1e-5, rtol=1e-4)


def test_int8_weights(saved):
    """torchao's weights in int8, the way transformers loads them; convolutions stay as they are."""
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from transformers import TorchAoConfig

    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    model = TriemoForEmotionClassification.from_pretrained(saved, quantization_config=config, dtype=torch.float32)
    inputs = inputs_of(2)
    with torch.no_grad():
        logits, expected = model(**inputs).logits, tiny_model()(**inputs).logits
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()
    assert not torch.equal(logits, expected)
