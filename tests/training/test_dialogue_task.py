"""`--task dialogues`: a table of turns becomes a head over a checkpoint's towers that stands on its own."""

import csv
import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoint import save_tiny_checkpoint
from tiny_data import write_dialogues, write_spoken_dialogues, write_table
from tiny_runs import arguments
from transformers import AutoModelForTokenClassification

from triemo.modeling import TriemoForEmotionSequence
from triemo.processing import UtteranceEncoder
from triemo.training.arguments import parse_arguments
from triemo.training.data.collation import EmotionCollator
from triemo.training.data.dialogues import DialogueClips, Dialogues, readable_utterances
from triemo.training.data.utterance_vectors import utterance_vectors
from triemo.training.finetune import main
from triemo.training.sources import load_dialogues
from triemo.training.start import load_model

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
        ({"lora": "true"}, "lora: has no meaning where the towers of --model stay still; give --towers tuned"),
        ({"freeze_towers": "text"}, "freeze_towers: has no meaning where the towers of --model stay still"),
        ({"composites": 3}, "composites: has no meaning with --task dialogues"),
        ({"towers": "warm"}, "towers: got 'warm', expected cached or tuned"),
        ({"towers": "tuned", "vectors": "there"}, "vectors: has no meaning with --towers tuned"),
        ({"towers": "tuned", "task": "clips"}, "towers: got 'tuned', which is for --task dialogues"),
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


# Towers that learn -------------------------------------------------------------------------------------------


def tuned(place, output, **changes):
    given = {"table": place / "spoken" / "turns.csv", "model_config": "{}", "towers": "tuned", "num_train_epochs": 1}
    return dialogues(place, output, **given | {"per_device_train_batch_size": 2} | changes)


@pytest.fixture(scope="module")
def spoken(place):
    write_spoken_dialogues(place / "spoken")
    return place


@pytest.fixture(scope="module")
def learned(spoken):
    return main(tuned(spoken, "tuned", freeze_towers="vision", context_type="graph"))


def test_towers_learn_with_the_context(spoken, learned):
    """Words, voices and faces of whole dialogues; what of the towers is frozen stays bit for bit."""
    found = learned
    assert (
        found["steps"] == 2 and found["test"]["turns"]["samples"] == 4 and found["validation"]["turns"]["samples"] == 3
    )
    before, after = (load_file(spoken / name / "model.safetensors") for name in ("tiny", "tuned"))
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert {"text_tower", "audio_tower", "layers", "fusion"} <= changed and "vision_tower" not in changed
    model, processor = load_model(str(spoken / "tuned"))
    assert type(model) is TriemoForEmotionSequence and model.config.context_type == "graph" and processor is not None
    assert model.config.label2id["joy"] == 3 and not (spoken / "tuned" / "vectors").exists()


def test_the_score_is_that_of_the_tuned_model(spoken, learned):
    """The test's dialogue through the folder alone, each of its turns with what it has."""
    model, processor = load_model(str(spoken / "tuned"))
    with (spoken / "spoken" / "turns.csv").open() as file:
        turns = [row for row in csv.DictReader(file) if row["split"] == "test"]
    clips = []
    for row in turns:
        given = {name: row[name] for name in ("text",) if row[name]}
        for name, argument in (("audio", "audio"), ("image", "images")):
            given |= {argument: str(spoken / "spoken" / row[name])} if row[name] else {}
        clips.append(dict(processor(**given)))
    with torch.inference_mode():
        batch = processor.pad(clips)
        logits = model.eval()(**batch, speakers=torch.arange(len(turns))[None] % 2).logits[0]
    best = [model.config.id2label[index] for index in logits.argmax(-1).tolist()]
    right = sum(label == row["label"] for label, row in zip(best, turns, strict=True))
    assert right / len(turns) == pytest.approx(learned["test"]["turns"]["accuracy"])
    loss = torch.nn.functional.cross_entropy(
        logits, torch.tensor([model.config.label2id[row["label"]] for row in turns])
    )
    assert float(loss) == pytest.approx(learned["test"]["turns"]["loss"], abs=1e-5)


def test_a_tuned_model_goes_on_learning(spoken, learned):
    again = main(tuned(spoken, "tuned_again", model=spoken / "tuned", freeze_towers="vision"))
    assert again["parameters"] == learned["parameters"] and again["losses"][0] < learned["losses"][0]


def test_adapters_on_the_towers(spoken):
    """They, the context and the head learn; the folder has the base beside them, and merges into the same answers."""
    found = main(tuned(spoken, "adapted", lora="true", lora_r=2, freeze_towers="vision"))
    folder = spoken / "adapted"
    names = set(load_file(folder / "adapter_model.safetensors"))
    parts = {name.split(".lora")[0].split(".")[3] for name in names if ".lora_" in name}
    assert {"text_tower", "audio_tower", "layers", "fusion"} == parts
    whole = {name.split(".")[2] for name in names if ".lora_" not in name}
    assert whole == {"classifier", "context"} and found["trained_parameters"] < found["parameters"] / 2
    base, tiny = load_file(folder / "model.safetensors"), load_file(spoken / "tiny" / "model.safetensors")
    assert all(torch.equal(base[name], value) for name, value in tiny.items() if "tower" in name)
    merged, processor = load_model(str(folder))
    adapted = AutoModelForTokenClassification.from_pretrained(folder)
    batch = processor(text=["i am so happy", "this is a sad day"])
    with torch.inference_mode():
        answers = [model.eval()(**batch).logits for model in (merged, adapted)]
    torch.testing.assert_close(answers[0], answers[1])
    main(tuned(spoken, "adapted_merged", lora="true", lora_r=2, freeze_towers="vision", lora_merge="true"))
    with torch.inference_mode():
        torch.testing.assert_close(load_model(str(spoken / "adapted_merged"))[0].eval()(**batch).logits, answers[0])


def test_each_draw_of_an_utterance_is_varied_anew(spoken, caplog):
    model, processor = load_model(str(spoken / "tiny"))
    args = parse_arguments(tuned(spoken, "none"))[1]
    data = load_dialogues(args)["train"]["turns"][0]
    collator = EmotionCollator(processor, model.config.label2id, augment=True)
    with caplog.at_level(logging.WARNING):
        part = Dialogues.of(data, readable_utterances(data, collator), model.config.label2id, "turns")
    assert "turns: 1 of 11 utterances hold nothing to read, as utterance 1 of dialogue 'd1'" in caplog.text
    rows = DialogueClips([part], collator)
    sounds = [rows[ticket]["clips"][0]["pixel_values"] for ticket in (0, len(rows), 0)]
    assert torch.equal(sounds[0], sounds[2]) and not torch.equal(sounds[0], sounds[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "whole"}, "towers: .*whole is a head over vectors and has none to tune; give the checkpoint"),
        ({"model_config": '{"hidden_size": 8}'}, "model_config: got hidden_size, expected some of context_layers"),
        ({"table": "vectors.jsonl"}, "towers: got text_features in vectors, which go into no tower"),
    ],
)
def test_what_cannot_be_tuned_is_refused(spoken, finished, changes, message):
    (spoken / "vectors.jsonl").write_text(
        "\n".join(
            json.dumps({"dialogue": d, "turn": 0, "label": "joy", "text_features": [[1.0]], "split": s})
            for d, s in (("x", "train"), ("y", "validation"))
        )
    )
    changes = {name: value if name == "model_config" else spoken / value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        main(tuned(spoken, "refused", **changes))


def test_a_model_of_dialogues_is_no_start_for_clips_or_a_head(spoken, learned):
    with pytest.raises(ValueError, match="reads dialogues by towers of its own, which --towers tuned goes on with"):
        main(tuned(spoken, "head_of_tuned", model=spoken / "tuned", towers="cached"))
    rows = [f"i am so happy {letter},joy" for letter in "abcdefghijkl"]
    (spoken / "clips.csv").write_text("\n".join(["text,label", *rows]))
    with pytest.raises(ValueError, match="labels the utterances of dialogues, which is --task dialogues"):
        main(arguments(spoken, "clips_of_head", model=spoken / "tuned", table=spoken / "clips.csv"))
