"""A conversation's head as one graph: whole dialogues of any number and length, without torch."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from triemo.modeling import TriemoConfig, TriemoForEmotionSequence
from triemo.training.export import METADATA
from triemo.training.export.dialogues import export_dialogues_onnx


def test_the_graph_answers_as_torch_does(tmp_path):
    """Dialogues of other number and length than it was written with, one modality missing here and there."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
    fields = {"text_feature_size": 5, "audio_feature_size": 3, "audio_step_rate": None, "step_aligned": True}
    config = TriemoConfig(**sizes, **fields, context_type="transformer", base_model_name_or_path="somebody/towers")
    model = TriemoForEmotionSequence(config).eval()
    file = tmp_path / "dialogues.onnx"
    assert export_dialogues_onnx(model, file) < 1e-5
    inputs = {"text_features": torch.randn(3, 9, 5), "input_features": torch.randn(3, 9, 3)}
    inputs["attention_mask"] = (torch.arange(9) < torch.tensor([[9], [4], [1]])).long()
    inputs["audio_attention_mask"] = inputs["attention_mask"] * (torch.arange(9) % 2)
    inputs["speakers"] = torch.randint(-1, 3, (3, 9))
    with torch.inference_mode():
        expected = model(**inputs)
    session = onnxruntime.InferenceSession(str(file))
    (logits,) = session.run(["logits"], {name: np.asarray(value) for name, value in inputs.items()})
    there = expected.utterance_mask.bool().numpy()
    np.testing.assert_allclose(logits[there], expected.logits.numpy()[there], atol=1e-5)
    (told,) = (json.loads(prop.value) for prop in onnx.load(file).metadata_props if prop.key == METADATA)
    assert told["base_model_name_or_path"] == "somebody/towers" and told["modalities"] == ["text", "audio"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_vocab_size": 9}, "got one whose utterances are clips"),
        ({"text_feature_size": 9, "step_aligned": True, "context_type": "recurrent"}, "context_type: got recurrent"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, fields, message):
    config = TriemoConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, **fields)
    with pytest.raises(ValueError, match=message):
        export_dialogues_onnx(TriemoForEmotionSequence(config), tmp_path / "none.onnx")
    assert not list(tmp_path.iterdir())
