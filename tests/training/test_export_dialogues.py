"""A conversation's head as one graph: whole dialogues of any number and length, without torch."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from triemo.modeling import TriemoConfig, TriemoForEmotionSequence
from triemo.serving.cli import app
from triemo.training.export import METADATA
from triemo.training.export.dialogues import export_dialogues_onnx


def tiny_head(**fields) -> TriemoForEmotionSequence:
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
    settings |= {"text_feature_size": 5, "audio_feature_size": 3, "audio_step_rate": None, "step_aligned": True}
    settings |= {"base_model_name_or_path": "somebody/towers"}
    model = TriemoForEmotionSequence(TriemoConfig(**settings, **fields)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    ("kind", "causal"),
    [("transformer", True), ("graph", False), ("recurrent", False)],
)
def test_the_graph_answers_as_torch_does(tmp_path, kind, causal):
    """Dialogues of other number and lengths than it was written with, one modality missing here and there."""
    model = tiny_head(context_type=kind, context_causal=causal)
    file = tmp_path / "new" / "dialogues.onnx"
    assert export_dialogues_onnx(model, file) < 1e-4
    session = onnxruntime.InferenceSession(str(file))
    for lengths in ([9, 4, 1], [1], [70, 33]):
        size = (len(lengths), max(lengths))
        inputs = {"text_features": torch.randn(*size, 5), "input_features": torch.randn(*size, 3)}
        inputs["attention_mask"] = (torch.arange(size[1]) < torch.tensor(lengths)[:, None]).long()
        inputs["audio_attention_mask"] = inputs["attention_mask"] * (torch.arange(size[1]) % 2)
        inputs["speakers"] = torch.randint(-1, 3, size)
        with torch.inference_mode():
            expected = model(**inputs)
        (logits,) = session.run(["logits"], {name: np.asarray(value) for name, value in inputs.items()})
        there = expected.utterance_mask.bool().numpy()
        np.testing.assert_allclose(logits[there], expected.logits.numpy()[there], atol=1e-4)
    (told,) = (json.loads(prop.value) for prop in onnx.load(file).metadata_props if prop.key == METADATA)
    assert told["base_model_name_or_path"] == "somebody/towers" and told["modalities"] == ["text", "audio"]


def test_the_command_writes_a_head_whose_towers_are_not_there(tmp_path):
    model = tiny_head(context_type="recurrent")
    model.save_pretrained(tmp_path / "head")
    run = CliRunner().invoke(app, ["export", "--model", str(tmp_path / "head"), "--output", str(tmp_path / "onnx")])
    assert run.exit_code == 0, run.output
    assert [file.name for file in (tmp_path / "onnx").iterdir()] == ["dialogue.onnx"]
    assert "dialogue.onnx" in run.stdout and "written in float32 alone" in run.stderr
    graph = onnx.load(tmp_path / "onnx" / "dialogue.onnx").graph
    assert [node.op_type for node in graph.node].count("LSTM") == 4  # two layers there and back
    clips = CliRunner().invoke(app, ["predict", "--model", str(tmp_path / "head"), "--text", "hello"])
    assert clips.exit_code == 1 and "labels the turns of conversations, which `triemo dialogue` reads" in clips.stderr


def test_a_model_of_clips_is_refused(tmp_path):
    config = TriemoConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, text_vocab_size=9)
    with pytest.raises(ValueError, match="got one whose utterances are clips"):
        export_dialogues_onnx(TriemoForEmotionSequence(config), tmp_path / "none.onnx")
    assert not list(tmp_path.iterdir())
