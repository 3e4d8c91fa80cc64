"""Whole pretraining runs of a tiny model on generated voices, faces and sentences."""

import csv
import json
import random
import signal
import time
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoint import save_tiny_checkpoint, tiny_tokenizer
from tiny_data import write_table
from tiny_models import tiny_text_config
from tiny_runs import arguments
from transformers import AutoModel

from triemo.modeling import TriemoForPreTraining, TriemoModel
from triemo.training.arguments import PretrainTrainingArguments, parse_pretrain_arguments
from triemo.training.data.packing import pack_clips
from triemo.training.pretrain import main
from triemo.training.sources import subset_weights
from triemo.training.start import load_model

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
# Losses of `finished` below: steps 1 to 6 of seed 3. They move only when the model, the masks, the data's order, the
# augmentation or the optimisation does; a change that was meant comes with new numbers.
GOLDEN = [5.771106, 5.371347, 5.316517, 5.051155, 5.079692, 5.401905]
PARTS = ("mlm_loss", "text_audio_loss", "text_vision_loss", "audio_vision_loss")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny checkpoint, one without dropout, a table, and its clips as shards."""
    folder = tmp_path_factory.mktemp("pretrain")
    save_tiny_checkpoint(folder / "tiny")
    text = tiny_text_config()
    text.vocab_size, text.hidden_dropout_prob, text.attention_probs_dropout_prob = len(tiny_tokenizer()), 0.0, 0.0
    save_tiny_checkpoint(folder / "still", text_config=text, hidden_dropout=0.0)
    table = write_table(folder / "data", train=12, validation=4, test=0)
    with table.open(encoding="utf-8") as file:
        rows = [row | {"key": f"{number}.wav"} for number, row in enumerate(csv.DictReader(file))]
    with (folder / "transcripts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["key", "text", "label", "split"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    pack_clips(folder / "data", folder / "shards", folder / "transcripts.csv", samples_per_shard=4)
    return folder


BRIEF = {"eval_strategy": "no", "save_strategy": "no"}
STREAM = {"streaming": "true", "max_steps": 8, "shuffle_buffer": 5, **BRIEF}


@pytest.fixture(scope="module")
def finished(place):
    return main(arguments(place, "whole"))


def test_golden_losses(finished):
    assert finished["losses"] == pytest.approx(GOLDEN, abs=1e-4)


def test_every_part_of_the_loss_is_logged_by_itself(finished):
    steps = [entry for entry in finished["history"] if "loss" in entry]
    assert len(steps) == 6
    for entry in steps:
        assert entry["loss"] == pytest.approx(entry["mlm_loss"] + entry["contrastive_loss"], abs=1e-5)
        pairs = [entry[name] for name in PARTS[1:] if name in entry]
        assert entry["contrastive_loss"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
        assert entry["clips_per_second"] > 0 and entry["peak_memory_megabytes"] > 100
        assert 0 < entry["audio_unpadded_share"] <= 1 and entry["logit_scale"] == pytest.approx(14.3, abs=0.3)
    validation = finished["validation"]
    assert {"loss", "contrastive_loss", *PARTS} <= set(validation)
    assert validation["loss"] == pytest.approx(validation["mlm_loss"] + validation["contrastive_loss"], abs=1e-5)


def test_the_folder_is_a_start_for_everything_else(place, finished):
    folder = place / "whole"
    before, after = load_file(place / "tiny" / "model.safetensors"), load_file(folder / "model.safetensors")
    for part in ("text_tower", "audio_tower", "vision_tower", "triemo.layers", "text_projection"):
        assert any(part in name and not torch.equal(before[name], after[name]) for name in before), part
    assert all(torch.equal(before[name], after[name]) for name in before if "running_" in name)
    assert not list(folder.glob("*.bin")) and json.loads((folder / "results.json").read_text())["steps"] == 6
    base = AutoModel.from_pretrained(folder)
    assert type(base) is TriemoModel
    torch.testing.assert_close(base.state_dict()["layers.0.fc1.weight"], after["triemo.layers.0.fc1.weight"])
    with pytest.raises(ValueError, match="lacks classifier.dense.bias.*allow_new_head"):
        load_model(str(folder))
    classifier, processor = load_model(str(folder), allow_new_head=True)
    torch.testing.assert_close(classifier.triemo.state_dict(), base.state_dict())
    torch.testing.assert_close(
        TriemoForPreTraining.from_pretrained(folder).mlm_head.dense.weight, after["mlm_head.dense.weight"]
    )
    assert processor(text="i am so happy")["input_ids"].shape[0] == 1


@pytest.mark.parametrize("kind", ["table", "shards"])
def test_a_killed_run_goes_on_with_the_very_losses_of_an_uninterrupted_one(place, kind):
    """Killed at a random step; the shards are read by two workers, and rows repeat over passes."""
    changes = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no", "lr_scheduler_type": "linear"}
    if kind == "shards":
        changes = STREAM | changes | {"table": place / "shards", "dataloader_num_workers": 2}
    else:
        changes |= {"num_train_epochs": 3}
    whole = main(arguments(place, f"uninterrupted_{kind}", **changes))["losses"]
    assert len(whole) == {"table": 9, "shards": 8}[kind]

    killed = place / f"killed_{kind}"
    # Forked rather than started anew: importing everything once more takes longer than the run.
    child = get_context("fork").Process(target=main, args=(arguments(place, killed.name, **changes),))
    step = killed / f"checkpoint-{random.randint(2, 5)}" / "trainer_state.json"
    child.start()
    deadline = time.monotonic() + 200
    while not step.exists():
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not (killed / "results.json").exists()
    results = main(arguments(place, killed.name, **changes))
    assert results["losses"] == pytest.approx(whole, abs=1e-6)
    (start,) = {entry["step"] for entry in results["history"]} - set(range(2, 20))
    assert start == 1


def test_cached_chunks_and_checkpointed_layers_change_nothing(place):
    changes = {"model": place / "still", "num_train_epochs": 1, "optim": "sgd", "learning_rate": 0.05, **BRIEF}
    whole = main(arguments(place, "uncached", **changes))["losses"]
    cached = main(arguments(place, "cached", **changes, cache_chunk_size=3))
    assert cached["losses"] == pytest.approx(whole, abs=1e-5)
    assert all(set(PARTS[:1]) <= set(entry) for entry in cached["history"] if "loss" in entry)
    # Its name since transformers 5.2x, and before.
    names = {field.name for field in fields(PretrainTrainingArguments)}
    option = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    checkpointed = main(arguments(place, "checkpointed", **changes, **{option: "true"}))["losses"]
    assert checkpointed == pytest.approx(whole, abs=1e-5)


def test_accumulated_steps_are_averaged(place):
    """Two batches of two as one step: L_MLM is the mean of theirs, not the sum."""
    changes = {"model": place / "still", "contrastive_weight": 0, "max_steps": 1, "optim": "sgd", **BRIEF}
    changes |= {"soft_labels": "true", "per_device_train_batch_size": 2, "learning_rate": 0.1}
    results = main(arguments(place, "accumulated", **changes, gradient_accumulation_steps=2))
    (entry,) = (entry for entry in results["history"] if "loss" in entry)
    assert entry["loss"] == pytest.approx(entry["mlm_loss"], abs=1e-5) and "contrastive_loss" not in entry


def test_a_stream_of_shards_learns_and_is_evaluated(place):
    results = main(arguments(place, "stream", **STREAM | {"table": place / "shards"}))
    steps = [entry for entry in results["history"] if "loss" in entry]
    assert [entry["broken_rows"] for entry in steps] == [0] * 8 and steps[-1]["passes"] == 2
    assert steps[-1]["mlm_loss"] < steps[0]["mlm_loss"]
    assert {"mlm_loss", "text_audio_loss"} <= set(results["validation"])


def test_a_composed_model_with_a_face_tower_of_its_own(place):
    """Encoders by folder, the face tower from nothing, and a second run that keeps only the towers of the first."""
    vision = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16]}
    vision |= {"depths": [1, 1], "layer_type": "basic"}
    fields = {"vision_config": vision, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    text = TriemoModel.from_pretrained(place / "tiny").text_tower.encoder
    text.save_pretrained(place / "bert")
    tiny_tokenizer().save_pretrained(place / "bert")
    changes = {"text_encoder": place / "bert", "model_config": json.dumps(fields), "max_steps": 1, **BRIEF}
    results = main(arguments(place, "composed", **changes))
    weights = load_file(place / "composed" / "model.safetensors")
    assert results["steps"] == 1 and not any("audio" in name for name in weights)
    moved = [value for name, value in weights.items() if "vision_tower" in name and name.endswith("running_mean")]
    assert moved and all(value.abs().sum() > 0 for value in moved)  # a new tower has no statistics to keep
    changes = {"model": place / "composed", "towers_only": "true", "learning_rate": 0.0, "max_steps": 1, **BRIEF}
    main(arguments(place, "towers", **changes))
    again = load_file(place / "towers" / "model.safetensors")
    for name, value in weights.items():
        if "_tower." in name:
            assert torch.equal(again[name], value), name
    assert not torch.equal(again["triemo.layers.0.fc1.weight"], weights["triemo.layers.0.fc1.weight"])


def test_parts_learn_at_rates_of_their_own(place):
    """A text tower whose factor is next to nothing stays; what it feeds does not."""
    changes = {"part_lr_factors": "text_tower:1e-9", "max_steps": 1, "weight_decay": 0, **BRIEF}
    main(arguments(place, "rates", **changes))
    before, after = (load_file(place / name / "model.safetensors") for name in ("tiny", "rates"))
    moved = {name for name in after if name in before and (after[name] - before[name]).abs().max() > 1e-5}
    assert not any("text_tower" in name for name in moved)
    for part in ("audio_tower", "vision_tower", "text_projection", "triemo.layers"):
        assert any(part in name for name in moved), part


def test_what_was_aligned_enters_the_joint_encoder(place):
    save_tiny_checkpoint(place / "square", projection_dim=32)
    changes = {"model": place / "square", "joint_from_projections": "audio,vision", "max_steps": 1, **BRIEF}
    main(arguments(place, "entered", **changes))
    before, after = (load_file(place / name / "model.safetensors") for name in ("square", "entered"))
    for name in ("text", "audio", "vision"):
        learned, entered = (
            after[f"triemo.{name}_projection.weight"],
            after[f"triemo.{name}_embedding.projection.weight"],
        )
        was = before[f"triemo.{name}_embedding.projection.weight"]
        assert torch.allclose(learned / learned.norm(), entered / entered.norm()) == (name != "text")
        assert float(entered.norm()) == pytest.approx(float(was.norm()), rel=0.1)


def test_batch_norm_of_a_new_vision_tower_follows_the_batches(place):
    """The running mean is no parameter: it moves in training mode alone."""
    name = "triemo.vision_tower.encoder.embedder.embedder.normalization.running_mean"
    before = load_file(place / "tiny" / "model.safetensors")[name]
    for new in ("false", "true"):
        main(arguments(place, f"vision_{new}", new_vision_tower=new, max_steps=1, **BRIEF))
        after = load_file(place / f"vision_{new}" / "model.safetensors")[name]
        assert torch.equal(before, after) == (new == "false")


def test_subsets_of_composites():
    assert subset_weights("text+audio, text+vision:4") == (0, 0, 0, 1, 4, 0, 0)
    for text, message in (
        ("text:1", "got 'text:1', expected some of text"),
        ("text+audio:-1", "got 'text.audio:-1'"),
        ("text+audio:0", "expected a weight above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            subset_weights(text)


def test_configs_of_the_small_model():
    """The second stage starts where the first ends."""
    configs = ROOT / "training" / "recipes" / "configs"
    first, second = (
        parse_pretrain_arguments(["--config", str(configs / f"{name}.yaml"), "--use_cpu"])
        for name in ("pretrain_small_projections", "pretrain_small")
    )
    assert second[0].model == first[2].output_dir
    for _, data, _ in (first, second):
        assert sum(subset_weights(data.composite_subsets)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streaming": "true"}, "streaming: a stream has no length"),
        ({"streaming": "true", "max_steps": 1, "table": "nowhere/*.tar"}, "got no tar or parquet file"),
        ({"corpora": "meld"}, "give one of --table and --corpora, got both"),
        ({"cache_chunk_size": 2, "gradient_accumulation_steps": 2}, "stands in for gradient_accumulation_steps"),
        ({"mlm_probability": 1}, "mlm_probability: got 1"),
        ({"composites": 5}, "name the --composite_corpora"),
        ({"composite_faces": 0}, "composite_faces: got 0"),
        ({"part_lr_factors": "layers:0.1,face:1"}, "part_lr_factors: got 'face:1', expected some of text_tower"),
        ({"joint_from_projections": "audio"}, "joint_from_projections: got a model of projection_dim 24"),
        ({"part_lr_factors": "layers:slow"}, "part_lr_factors: got 'layers:slow'"),
        ({"mlm_weight": 0, "contrastive_weight": 0}, "nothing to pretrain"),
    ],
)
def test_arguments_that_contradict_each_other(place, changes, message):
    with pytest.raises(ValueError, match=message):
        main(arguments(place, "refused", **changes))
