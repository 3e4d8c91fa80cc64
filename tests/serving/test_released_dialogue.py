"""The released head of conversations: small, beside the towers that it names, and it answers as its card says."""

import json
from pathlib import Path

import pytest

from triemo.serving.reading import load_dialogue_reader

QUARREL = [
    {"speaker": "ann", "text": "I got the job! I start on Monday!"},
    {"speaker": "bob", "text": "Oh my God, that is wonderful!"},
    {"speaker": "ann", "text": "And you forgot to pick up the kids again? Are you kidding me?"},
    {"speaker": "bob", "text": "Get off my back! I hate it when you shout at me!"},
]


@pytest.fixture(scope="module")
def head(repo_root) -> Path:
    folder = repo_root / "checkpoints" / "triemo-small-dialogue"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no released weights at {folder}")
    return folder


@pytest.fixture(scope="module")
def reader(head, checkpoint):
    return load_dialogue_reader(str(head), "cpu")


def test_it_is_small_and_stands_on_the_released_towers(head):
    assert sum(path.stat().st_size for path in head.iterdir()) < 15e6
    config = json.loads((head / "config.json").read_text())
    assert config["base_model_name_or_path"] == "triemo/triemo-small"
    metrics = json.loads((head / "metrics.json").read_text())
    assert metrics["test"]["meld"]["samples"] == 2610
    assert config["calibration_temperature"] == metrics["calibration_temperature"]


def test_it_reads_a_quarrel(reader):
    labels = [turn["label"] for turn in reader(QUARREL)]
    assert labels[:2] == ["joy", "joy"] and labels[3] == "anger"


def test_live_answers_are_those_of_the_whole(reader):
    """What it was trained for: later turns change nothing, and turn by turn gives the same."""
    session = reader.session()
    live = [session.push(turn)["score"] for turn in QUARREL]
    assert live == pytest.approx([turn["score"] for turn in reader(QUARREL)], abs=1e-5)
