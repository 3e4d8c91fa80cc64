"""The comparison of contexts: its runs are finetune.py's, its table their means, and its settings are arguments."""

import json

import pytest
import yaml
from tiny_checkpoint import save_tiny_checkpoint
from tiny_data import write_dialogues

from triemo.training.arguments import parse_arguments
from triemo.training.recipes.contexts import CONFIG, main, table_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_table_of_means_over_seeds(tmp_path, capsys):
    save_tiny_checkpoint(tmp_path / "tiny")
    table = write_dialogues(tmp_path / "turns.csv")
    sizes = {"hidden_size": 16, "num_attention_heads": 2}
    settings = {"table": str(table), "num_train_epochs": 1, "learning_rate": 1e-3, "model_config": sizes}
    config = {"all": {"metric_for_best_model": "weighted_f1"}, "corpora": {"mine": settings}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--config", str(tmp_path / "config.yaml"), "--corpus", "mine", "--contexts", "none,graph"]
    arguments += ["--layers", "0,-1", "--vectors", str(tmp_path / "vectors")]
    arguments += ["--seeds", "1,2", "--model", str(tmp_path / "tiny"), "--output", str(tmp_path / "out")]
    result = main(arguments)
    runs = [json.loads((tmp_path / f"out/mine/graph_{seed}/results.json").read_text()) for seed in (1, 2)]
    scores = [found["test"]["turns"]["weighted_f1"] for found in runs]
    graph = result["contexts"]["graph"]
    assert graph["test"]["weighted_f1"]["mean"] == pytest.approx(sum(scores) / 2)
    assert graph["parameters"] == runs[0]["parameters"] > result["contexts"]["none"]["parameters"]
    assert graph["samples"] == 5 and json.loads((tmp_path / "out/mine.json").read_text()) == result
    assert len(list((tmp_path / "vectors").iterdir())) == 3  # a split each, whatever the context and seed
    assert result["settings"]["model_config"] == sizes | {"utterance_layers": {"text": [0, -1]}}
    assert json.loads((tmp_path / "out/mine/none_1/config.json").read_text())["text_feature_size"] == 64
    assert capsys.readouterr().out.splitlines()[-1] == table_of(result["contexts"], "weighted_f1").splitlines()[-1]
    with pytest.raises(ValueError, match="corpus: got 'theirs', expected one of mine"):
        main([*arguments, "--corpus", "theirs"])
    with pytest.raises(ValueError, match="layers: got 'last', expected whole numbers such as 8,10,-1"):
        main([*arguments, "--layers", "last"])


def test_the_settings_are_arguments_of_finetune():
    read = yaml.safe_load(CONFIG.read_text())
    for name, own in read["corpora"].items():
        given = read["all"] | own | {"task": "dialogues", "output_dir": "runs/none"}
        argv = [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}" for key, value in given.items()]
        assert parse_arguments([*argv, "--use_cpu", "true"])[1].corpora == own["corpora"], name
