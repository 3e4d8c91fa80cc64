"""`--task dialogues`: a table of turns becomes a head over a checkpoint's towers that stands on its own."""

import csv
import json
import logging

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint
from tiny_data import write_dialogues, write_table
from tiny_runs import arguments
from transformers import AutoModelForTokenClassification

from triemo.processing import UtteranceEncoder
from triemo.training.arguments import parse_arguments
from triemo.training.data.utterance_vectors import utterance_vectors
from triemo.training.finetune import main
from triemo.training.sources import load_dialogues

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = json.dumps({"hidden_size": 16, "num_attention_heads": 2, "utterance_layers": {"text": [0, -1]}})


def dialogues(place, output, **changes):
    given = {"table": place / "dialogues.csv", "task": "dialogues", "model_config": CONFIG, "length_buckets": "true"}
    return arguments(place, output, **given | changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialogues")
    save_tiny_checkpoint(folder / "tiny")
    write_dialogues(folder / "dialogues.csv")
    return folder


@pytest.fixture(scope="module")
def finished(place):
    return main(dialogues(place, "whole"))


def test_a_table_of_turns_becomes_a_head_over_the_towers(place, finished):
    folder = place / "whole"
    # 8 dialogues in batches of 4, two epochs; only labelled utterances are counted and scored.
    assert finished["steps"] == 4 and sum(finished["class_counts"].values()) == 28 - 8
    assert finished["test"]["dialogues"]["samples"] == 5 and finished["validation"]["dialogues"]["samples"] == 6
    config = json.loads((folder / "config.json").read_text())
    assert config["base_model_name_or_path"] == str((place / "tiny").resolve())
    assert config["utterance_layers"] == {"text": [0, -1]} and config["text_feature_size"] == 64
    assert config["context_type"] == "transformer" and config["label2id"]["joy"] == 3
    assert not (folder / "tokenizer.json").exists() and (folder / "model.safetensors").stat().st_size < 1e6


def test_the_score_is_that_of_the_saved_model(place, finished):
    """All test utterances that have a label, through the folder alone."""
    head = AutoModelForTokenClassification.from_pretrained(place / "whole")
    encode = UtteranceEncoder.of(head)
    with (place / "dialogues.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    right = total = 0
    for name in dict.fromkeys(row["dialogue"] for row in rows):
        turns = [row for row in rows if row["dialogue"] == name]
        vectors = {key: value[None] for key, value in encode([{"text": row["text"]} for row in turns]).items()}
        with torch.inference_mode():
            best = head(**vectors, speakers=torch.arange(len(turns))[None] % 2).logits[0].argmax(-1)
        for row, index in zip(turns, best.tolist(), strict=True):
            right += row["label"] == head.config.id2label[index]
            total += row["label"] != ""
    assert right / total == pytest.approx(finished["test"]["dialogues"]["accuracy"])


def test_the_same_again_is_read_from_the_cache(place, finished, caplog):
    """By content: another context over the same table and towers encodes nothing anew."""
    with caplog.at_level(logging.INFO):
        args = parse_arguments(dialogues(place, "whole"))[1]
        data = load_dialogues(args)["train"]["dialogues"][0]
        assert data.features["turn"].dtype == "string" and data["label"][1] is None
        encoder = UtteranceEncoder.of(AutoModelForTokenClassification.from_pretrained(place / "whole"), batch_size=32)
        first = utterance_vectors(data, encoder, {}, place / "whole" / "vectors", "again")
        assert "once" not in caplog.text
        changed = data.map(lambda row: {"text": row["text"] + " day"})
        other = utterance_vectors(changed, encoder, {}, place / "other", "changed")
    assert "changed: 28 utterances go through the towers of text once" in caplog.text
    assert not torch.equal(first["text_features"], other["text_features"])


def test_a_head_goes_on_learning(place, finished):
    again = main(dialogues(place, "again", model=place / "whole", num_train_epochs=1))
    assert again["parameters"] == finished["parameters"] and again["losses"][0] < finished["losses"][0]


def test_vectors_of_the_table_need_no_towers(place, tmp_path):
    rows = [
        {"dialogue": name, "turn": turn, "label": "ab"[turn], "text_features": [[float(turn), 1.0]], "split": split}
        for name, split in (("x", "train"), ("y", "train"), ("z", "test"))
        for turn in (0, 1)
    ]
    table = tmp_path / "vectors.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    result = main(dialogues(place, "vectors", table=table, context_type="graph", num_train_epochs=1))
    config = json.loads((place / "vectors" / "config.json").read_text())
    assert config["base_model_name_or_path"] is None and config["text_feature_size"] == 2
    assert config["context_type"] == "graph" and not (place / "vectors" / "vectors").exists()
    assert result["labels"] == ["a", "b"] and result["test"]["vectors"]["samples"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "dialogue"}, "task: got 'dialogue', expected clips or dialogues"),
        ({"lora": "true"}, "lora: has no meaning with --task dialogues"),
        ({"context_type": "memory"}, "context_type: got 'memory', expected one of none, transformer"),
    ],
)
def test_arguments_that_do_not_go_together(place, changes, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(dialogues(place, "none", **changes))


def test_a_table_without_dialogues_is_refused(place):
    write_table(place / "clips", train=4, validation=2, test=2)
    with pytest.raises(ValueError, match="task: table has no column dialogue"):
        main(dialogues(place, "clips_run", table=place / "clips" / "table.csv"))
