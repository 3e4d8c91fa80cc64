"""Models of dialogues scored by subset and group, over vectors and over clips."""

import json
from pathlib import Path

import pytest
import torch
from sklearn.metrics import confusion_matrix
from tiny_checkpoint import save_tiny_checkpoint
from tiny_data import write_dialogues, write_spoken_dialogues
from tiny_runs import arguments

from triemo.processing import UtteranceEncoder
from triemo.training.data.columns import MEDIA_COLUMNS
from triemo.training.evaluate_model import main
from triemo.training.finetune import main as finetune
from triemo.training.sources import SourceArguments, load_dialogues
from triemo.training.start import load_model

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = '{"hidden_size": 16, "num_attention_heads": 2}'
KINDS = {"vectors": {"model_config": CONFIG}, "clips": {"towers": "tuned"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate_dialogues")
    save_tiny_checkpoint(folder / "tiny")
    write_spoken_dialogues(folder / "spoken")
    for kind, changes in KINDS.items():
        given = {"task": "dialogues", "table": folder / "spoken" / "turns.csv", "num_train_epochs": 1} | changes
        finetune(arguments(folder, kind, **given))
    return folder


def command(place: Path, kind: str, output: str, **changes) -> list[str]:
    values = {"model": place / kind, "table": place / "spoken" / "turns.csv", "use_cpu": "true", "batch_size": 2}
    values |= {"output": place / output, "plot": "false", "split": "train", "group": "dialogue_length"} | changes
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def evaluated(place):
    return {kind: main(command(place, kind, f"{kind}_1")) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_each_subset_counts_the_utterances_that_have_it(evaluated, kind):
    """Of eleven one is silent and one has no label; cells are empty by turns, see `write_spoken_dialogues`."""
    scores = evaluated[kind]["parts"]["turns"]
    told = {name: scores[name] for name in ("samples", "left_out", "dialogues", "without_label")}
    assert told == {"samples": 11, "left_out": 1, "dialogues": 4, "without_label": 1}
    assert {name: row["samples"] for name, row in scores["subsets"].items()} == {
        **{"present": 9, "text": 6, "audio": 6, "vision": 5, "text+audio": 3, "text+vision": 5},
        **{"audio+vision": 2, "text+audio+vision": 2},
    }
    groups = scores["subsets"]["present"]["groups"]
    assert {name: group["samples"] for name, group in groups.items()} == {"1-4": 9}


@pytest.mark.parametrize("kind", KINDS)
def test_present_is_what_training_scored(place, kind):
    found = main(command(place, kind, f"{kind}_test", split="test", group="speaker"))["parts"]["turns"]["subsets"]
    trained = json.loads((place / kind / "results.json").read_text())["test"]["turns"]
    for name in ("samples", "accuracy", "macro_f1", "weighted_f1"):
        assert found["present"][name] == pytest.approx(trained[name], abs=1e-6), name
    assert {name: group["samples"] for name, group in found["present"]["groups"].items()} == {"a": 2, "b": 2}


def test_a_subset_is_the_dialogue_with_nothing_else(place, evaluated):
    """Words alone: the utterances that have some, one after the other, and of the others nothing."""
    model, _ = load_model(str(place / "vectors"))
    encoder = UtteranceEncoder.of(model)
    (data, _), labels = (
        load_dialogues(SourceArguments(table=str(place / "spoken" / "turns.csv")))["train"]["turns"],
        [],
    )
    answers = []
    for name in dict.fromkeys(data["dialogue"]):
        turns = [row for row in data if row["dialogue"] == name and row["text"]]
        vectors = encoder([{"text": row["text"]} for row in turns])
        inputs = {key: vectors[key][None] for key in ("text_features", "attention_mask")}
        with torch.inference_mode():
            found = model.eval()(**inputs, speakers=torch.tensor([["ab".index(row["speaker"]) for row in turns]]))
        answers += [int(best) for best, row in zip(found.logits[0].argmax(-1), turns, strict=True) if row["label"]]
        labels += [model.config.label2id[row["label"]] for row in turns if row["label"]]
    expected = confusion_matrix(labels, answers, labels=range(model.config.num_labels)).tolist()
    assert evaluated["vectors"]["parts"]["turns"]["subsets"]["text"]["confusion_matrix"] == expected
    assert len(answers) == 6 and set(MEDIA_COLUMNS) & set(data.column_names)


def test_temperatures_of_a_head_are_stored(place, tmp_path):
    table = write_dialogues(tmp_path / "turns.csv", ("train",) * 2 + ("validation",) * 20 + ("test",) * 2)
    head = place / "calibrated"
    given = {"task": "dialogues", "table": table, "num_train_epochs": 1, "model_config": CONFIG}
    finetune(arguments(place, "calibrated", **given))
    options = {"table": table, "calibrate": "true", "split": "test", "batch_size": 8}
    result = main(command(place, "calibrated", "calibrated_scores", **options))
    assert list(result["calibration"]["after"]) == ["text"] and result["calibration"]["samples"] >= 50
    assert json.loads((head / "config.json").read_text())["calibration_temperature"] == result["temperature"]


def test_vectors_of_another_width_are_refused(place, tmp_path):
    row = {"dialogue": "a", "turn": 0, "label": "joy", "text_features": [[1.0, 2.0]], "split": "test"}
    (tmp_path / "narrow.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"narrow: got vectors of \{'text': 2\} values"):
        main(command(place, "vectors", "none", table=tmp_path / "narrow.jsonl", split="test"))
