"""The released head: the one of its seeds that validation likes best, small, beside the towers it names."""

import json

import pytest
import yaml
from corpus_files import meld_row, write_meld
from tiny_checkpoint import save_tiny_checkpoint

from triemo.modeling import TriemoForEmotionSequence
from triemo.processing import UtteranceEncoder
from triemo.training.recipes.dialogue_head import main

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_head_that_validation_likes_best_is_released(tmp_path):
    emotions = ("joy", "anger", "fear", "neutral")
    rows = [meld_row(n, f"i am {emotions[n % 4]}", emotions[n % 4], n // 4, n % 4) for n in range(16)]
    write_meld(tmp_path, rows)
    save_tiny_checkpoint(tmp_path / "triemo-tiny")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "context_causal": True, "context_window": 4}
    settings = {"num_train_epochs": 1, "metric_for_best_model": "accuracy", "model_config": sizes}
    config = {
        "all": settings,
        "released": {"context_type": "graph", "corpus_options": {"cped": {"keep_unlabelled": True}}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--config", str(tmp_path / "config.yaml"), "--data", str(tmp_path), "--seeds", "0,1"]
    arguments += ["--model", str(tmp_path / "triemo-tiny"), "--base", "somebody/triemo-tiny"]
    arguments += ["--output", str(tmp_path / "runs"), "--checkpoint", str(tmp_path / "head")]
    metrics = main(arguments)
    runs = [json.loads((tmp_path / f"runs/graph_{seed}/results.json").read_text()) for seed in (0, 1)]
    best = max((0, 1), key=lambda seed: runs[seed]["validation"]["meld"]["accuracy"])
    assert metrics["chosen_seed"] == best
    assert metrics["test"]["meld"]["accuracy"] == pytest.approx(runs[best]["test"]["meld"]["accuracy"], abs=1e-6)
    assert json.loads((tmp_path / "head" / "metrics.json").read_text()) == metrics
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == [
        *("config.json", "metrics.json", "model.safetensors")
    ]
    head = TriemoForEmotionSequence.from_pretrained(tmp_path / "head")
    assert head.config.context_type == "graph" and head.config.context_causal
    assert UtteranceEncoder.of(head)([{"text": "i am happy"}])["attention_mask"].tolist() == [1]
