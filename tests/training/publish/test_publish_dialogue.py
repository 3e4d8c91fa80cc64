"""Models of conversations on the Hub: a head with its own weights alone and where its towers are, one with towers."""

import json

import pytest
from huggingface_hub import ModelCard
from tiny_checkpoint import tiny_classifier, tiny_processor

from triemo.modeling import TriemoConfig, TriemoForEmotionSequence
from triemo.training.publish.command import publish
from triemo.training.publish.folder import assemble_repository


@pytest.fixture
def head(tmp_path):
    """As `dialogue_head.py` leaves one."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
    fields = {"text_feature_size": 5, "step_aligned": True, "base_model_name_or_path": "triemo/triemo-small"}
    config = TriemoConfig(**sizes, **fields, context_type="transformer", context_causal=True)
    TriemoForEmotionSequence(config).save_pretrained(tmp_path / "head")
    scores = {"accuracy": 0.61234, "uar": 0.4, "macro_f1": 0.41, "weighted_f1": 0.6}
    metrics = {"model": "head", "test": {"meld": scores | {"samples": 2610}}}
    graph = {"test": {"weighted_f1": {"mean": 0.60644, "standard_deviation": 0.0045}}, "parameters": 515591}
    metrics["contexts"] = {"measure": "weighted_f1", "seeds": [0, 1], "contexts": {"graph": graph}}
    (tmp_path / "head" / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "head" / "vectors").mkdir()
    return tmp_path / "head"


def test_it_loads_without_triemo_and_its_card_has_its_figures(head, tmp_path):
    publish("me/head", head, dry_run=tmp_path / "out")  # loads it by every Auto class, in a process without triemo
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"sequence_triemo.py", "dialogue_pipeline_triemo.py", "model.safetensors", "README.md"} <= names
    assert not {"vectors", "tokenizer.json", "processor_config.json"} & names
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (task,) = config["custom_pipelines"]
    assert task == "conversational-emotion-recognition"
    assert config["custom_pipelines"][task]["pt"] == ["AutoModelForTokenClassification"]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    stated = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert stated == {"accuracy": 0.6123, "uar": 0.4, "macro f1": 0.41, "weighted f1": 0.6}
    assert card.data.base_model == "triemo/triemo-small" and "| meld | 0.612 | 0.400 | 0.410 | 0.600 |" in card.text
    assert "| graph | 0.606 | 0.004 | 515,591 |" in card.text


def test_towers_in_a_folder_of_ones_own_need_a_name_on_the_hub(head, tmp_path):
    config = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path)}))
    with pytest.raises(ValueError, match="base-model: .*name its repository on the Hub"):
        assemble_repository(head, tmp_path / "out", "me/head")
    assemble_repository(head, tmp_path / "out", "me/head", base_model="me/towers")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["base_model_name_or_path"] == "me/towers"


def test_one_with_towers_of_its_own_reads_by_itself(tmp_path):
    """Without triemo its card's example and its endpoint answer, words through its own tower."""
    TriemoForEmotionSequence(tiny_classifier(context_type="graph").config).save_pretrained(tmp_path / "tuned")
    tiny_processor().save_pretrained(tmp_path / "tuned")
    publish("me/tuned", tmp_path / "tuned", dry_run=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["custom_pipelines"]) == ["conversational-emotion-recognition"]
    assert config["auto_map"]["AutoModelForTokenClassification"].endswith(".TriemoForEmotionSequence")
    assert (tmp_path / "out" / "processor_config.json").is_file()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "A Triemo model that reads" in card.text and "towers of its own" in card.text
