"""Runs on two processes against the same on one: tables and streams, all modalities and different ones per process."""

import csv
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoint import save_tiny_checkpoint, tiny_tokenizer
from tiny_data import write_dialogues, write_spoken_dialogues, write_table
from tiny_models import tiny_text_config
from tiny_runs import arguments, predicted_logits
from two_processes import run_two_processes

from triemo.training.data.packing import pack_clips

pytestmark = pytest.mark.usefixtures("one_thread")

# Nothing is drawn from a state that processes do not share: no dropout, and the augmentation goes by row.
COMMON = {
    **{"max_steps": 2, "optim": "sgd", "learning_rate": 0.05, "save_strategy": "no", "eval_strategy": "epoch"},
    **{"load_best_model_at_end": "false", "per_device_eval_batch_size": 2, "length_buckets": "false"},
    "weight_decay": 0,  # of a gradient that is not there one process makes nothing, two make a zero
}
# One file, read in its order: each of two readers takes every second row, and both together a global batch.
STREAM = {"streaming": "true", "shuffle_buffer": 1}
FINETUNE = {"modality_dropout": 0}
DIALOGUES = {"task": "dialogues", "table": "dialogues.csv", "length_buckets": "true"}
DIALOGUES |= {"model_config": '{"hidden_dropout": 0.0, "classifier_dropout": 0.0, "speaker_dropout": 0.0}'}
TUNED = DIALOGUES | {"towers": "tuned", "table": "spoken/turns.csv", "model_config": '{"speaker_dropout": 0.0}'}
PRETRAIN = {"soft_labels": "true", "validation_rows": 5}
RUNS = {
    "finetune_table": ("finetune", FINETUNE),
    "finetune_stream": ("finetune", FINETUNE | STREAM),
    "finetune_apart": ("finetune", FINETUNE | STREAM | {"table": "apart/table.csv", "per_device_eval_batch_size": 1}),
    "finetune_shards": ("finetune", FINETUNE | STREAM | {"table": "shards"}),
    "finetune_dialogues": ("finetune", FINETUNE | DIALOGUES),
    "finetune_dialogues_tuned": ("finetune", FINETUNE | TUNED),
    "finetune_dialogues_lora": ("finetune", FINETUNE | TUNED | {"lora": "true", "lora_merge": "true"}),
    "pretrain_table": ("pretrain", PRETRAIN),
    "pretrain_stream": ("pretrain", PRETRAIN | STREAM | {"table": "shards"}),
    "pretrain_apart": ("pretrain", PRETRAIN | STREAM | {"table": "apart/table.csv", "contrastive_weight": 0}),
}
TABLES = ("data", "apart")
SCORED = ("finetune_dialogues", "finetune_dialogues_tuned")  # runs whose models are evaluated
SPEED = ("runtime", "per_second", "peak_memory", "clips_per_second")


def argv(place: Path, name: str, processes: int) -> list[str]:
    _, changes = RUNS[name]
    changes = COMMON | changes | {"per_device_train_batch_size": 4 // processes}
    if "table" in changes:
        changes["table"] = place / str(changes["table"])
    return arguments(place, f"{name}_{processes}", **changes)


def scored(place: Path, name: str, processes: int) -> list[str]:
    """A whole dialogue a pass, so that both of two processes have some."""
    given = {"model": place / f"{name}_1", "table": place / "spoken" / "turns.csv", "split": "train", "batch_size": 1}
    given |= {"group": "dialogue_length", "output": place / f"{name}_scored_{processes}", "use_cpu": "true"}
    given |= {"vectors": place / "vectors", "plot": "false"}
    return [text for key, value in given.items() for text in (f"--{key}", str(value))]


def apart(rows: int) -> dict[str, str]:
    """Cells by which every second row has words alone, and the others voice and face."""
    cells = {f"_{row}_text": "i am so happy" if row % 2 == 0 else "" for row in range(rows)}
    cells |= {f"_{row}_audio": "" if row % 2 == 0 else f"{row}.wav" for row in range(rows)}
    return cells | {f"_{row}_image": "" if row % 2 == 0 else f"{row}.png" for row in range(rows)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint without dropout, a table, one whose rows have words or voice and face in turn, and its shards."""
    folder = tmp_path_factory.mktemp("processes")
    text = tiny_text_config()
    text.vocab_size, text.hidden_dropout_prob, text.attention_probs_dropout_prob = len(tiny_tokenizer()), 0.0, 0.0
    save_tiny_checkpoint(folder / "tiny", text_config=text, hidden_dropout=0.0, classifier_dropout=0.0)
    table = write_table(folder / "data", train=8, validation=5, test=3)
    write_dialogues(folder / "dialogues.csv")
    write_spoken_dialogues(folder / "spoken")
    write_table(folder / "apart", train=8, validation=5, test=3, **apart(16))
    with table.open(encoding="utf-8") as file:
        rows = [row | {"key": f"{number}.wav"} for number, row in enumerate(csv.DictReader(file))]
    with (folder / "transcripts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["key", "text", "label", "split"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    pack_clips(folder / "data", folder / "shards", folder / "transcripts.csv")
    return folder


@pytest.fixture(scope="module")
def results(place):
    """`{name: (results of one process, of two)}`, the two started once for all runs."""
    alone = {name: import_module(f"triemo.training.{RUNS[name][0]}").main(argv(place, name, 1)) for name in RUNS}
    runs = [(RUNS[name][0], argv(place, name, 2)) for name in RUNS]
    runs += [("evaluate_model", scored(place, name, 2)) for name in SCORED]
    runs += [("predict", [str(place / "tiny"), str(place / name / "table.csv"), str(place / name)]) for name in TABLES]
    (place / "runs.json").write_text(json.dumps(runs))
    run_two_processes(Path(__file__).parent / "several_runs.py", place / "runs.json")
    return {
        name: (found, json.loads((place / f"{name}_2" / "results.json").read_text())) for name, found in alone.items()
    }


def figures(found: dict) -> dict[str, float]:
    """All numbers of nested results by place, without those of speed."""
    flat: dict[str, float] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{key}": number for key, number in figures(value).items()}
        elif isinstance(value, (int, float)) and not any(part in name for part in SPEED):
            flat[name] = value
    return flat


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_figures_of_one(place, results, name):
    """Losses of training, validation and test, and the weights: the global batches are the same."""
    one, two = results[name]
    assert (one["arguments"]["world_size"], two["arguments"]["world_size"]) == (1, 2) and two["steps"] == 2
    assert len(two["losses"]) == 2 and two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    scored = [split for split in ("validation", "test") if split in one]
    assert scored and all(figures(one[split]) for split in scored)
    for split in scored:
        assert figures(two[split]) == pytest.approx(figures(one[split]), abs=1e-5), split
    torch.testing.assert_close(
        load_file(place / f"{name}_2" / "model.safetensors"),
        load_file(place / f"{name}_1" / "model.safetensors"),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("name", TABLES)
def test_two_processes_predict_the_logits_of_one(place, results, name):
    """Of every row in every subset, on both of them; in `apart` their batches hold different modalities."""
    alone = predicted_logits(str(place / "tiny"), str(place / name / "table.csv"))
    assert len(alone["present"]) == 8 and all(any(values) for values in alone["present"].values())
    for process in range(2):
        shared = json.loads((place / f"{name}_{process}").read_text())
        assert {subset: list(rows) for subset, rows in shared.items()} == {s: list(rows) for s, rows in alone.items()}
        for subset, rows in alone.items():
            for row, logits in rows.items():
                assert shared[subset][row] == pytest.approx(logits, abs=1e-5), (subset, row)


@pytest.mark.parametrize("name", SCORED)
def test_two_processes_score_dialogues_as_one(place, results, name):
    """Of each subset, bit for bit; the vectors are made once, by one of the two."""
    alone = import_module("triemo.training.evaluate_model").main(scored(place, name, 1))["parts"]
    assert json.loads((place / f"{name}_scored_2" / "evaluation.json").read_text())["parts"] == alone
    assert alone["turns"]["subsets"]["text"]["samples"] == 6
    if name == "finetune_dialogues":
        assert len(list((place / "vectors").iterdir())) == 1


def test_every_part_of_the_pretraining_loss_is_that_of_one_process(results):
    for name in ("pretrain_table", "pretrain_stream"):
        for part in ("mlm_loss", "text_audio_loss", "text_vision_loss", "audio_vision_loss"):
            alone, shared = ([entry.get(part) for entry in run["history"] if "loss" in entry] for run in results[name])
            assert shared == pytest.approx(alone, abs=1e-5) and any(alone), (name, part)
