"""Parts of the comparison with and without pretraining; the fine-tuning itself is replaced by made-up scores."""

import json

import numpy as np
import pytest
from tiny_checkpoint import tiny_classifier

from triemo.training.recipes import few_labels
from triemo.training.recipes.few_labels import SharedLabels, best_rate, pretrained_weights, share_of_labels

LABELS = [[row % 7] for row in range(140)] + [[0, 3]]


def test_the_share_is_drawn_from_every_group_of_labels():
    rows = share_of_labels(LABELS, 0.1, seed=0)
    drawn = [tuple(LABELS[row]) for row in rows]
    assert rows == sorted(set(rows)) and rows == share_of_labels(LABELS, 0.1, seed=0)
    assert [drawn.count((index,)) for index in range(7)] == [2] * 7 and drawn.count((0, 3)) == 1
    assert rows != share_of_labels(LABELS, 0.1, seed=1)


def test_only_rows_of_the_share_are_trained_on():
    labels = {name: LABELS for name in ("text", "audio", "vision")}
    rows = {name: share_of_labels(LABELS, 0.1, seed) for seed, name in enumerate(labels)}
    data = SharedLabels(labels, rows, 200, seed=0)
    seen = {name: set() for name in labels}
    for index in range(200):
        item = data[index]
        for name, row in item["rows"].items():
            seen[name].add(row)
            assert item["label"][LABELS[row]].min() > 0
    assert all(seen[name] == set(rows[name]) for name in labels)


def test_a_new_joint_encoder_takes_only_what_was_aligned():
    model = tiny_classifier()
    taken = {name.removeprefix("triemo.").split(".")[0] for name in pretrained_weights(model, new_joint=True)}
    modalities = ("text", "audio", "vision")
    aligned = {f"{name}_{part}" for name in modalities for part in ("tower", "projection")}
    assert taken == aligned | {"audio_embedding", "vision_embedding"}
    assert set(pretrained_weights(model, new_joint=False)) == set(model.state_dict())


def test_validation_chooses_the_rate():
    assert best_rate({1e-4: {"text": 0.5, "audio": 0.3}, 3e-4: {"text": 0.4, "audio": 0.5}}) == 3e-4


def test_both_arms_choose_alike_and_the_table_holds_what_they_chose(tmp_path, monkeypatch):
    """Validation likes the high rate without pretraining and the low one with it; the test likes the opposite."""
    asked = []

    def made_up(run, arm, seed, rate, corpora, splits):
        asked.append((arm, seed, rate, splits))
        likes = (rate > 2e-4) == (arm == "without")
        test = {"text": 0.3 + 0.1 * seed, "audio": 0.2} if likes else {"text": 0.9, "audio": 0.9}
        scores = {"validation": {"text": 0.5 + 0.1 * likes}, "test": test}
        return {split: scores[split] for split in splits}

    monkeypatch.setattr(few_labels, "run_arm", made_up)
    monkeypatch.setattr(few_labels, "Corpora", lambda *arguments: None)
    arguments = ["--output", str(tmp_path), "--seeds", "0,1,2", "--learning_rates", "1e-4,3e-4"]
    result = few_labels.main(arguments)
    assert len(asked) == 8 and all("validation" not in splits for _, seed, _, splits in asked if seed)
    assert {(arm, rate) for arm, seed, rate, _ in asked if seed} == {("without", 3e-4), ("with", 1e-4)}
    expected = {"mean": pytest.approx(0.4), "standard_deviation": pytest.approx(np.std([0.3, 0.4, 0.5], ddof=1))}
    assert result["with"]["text"]["uar"] == expected
    assert result["without"]["audio"]["uar"]["mean"] == pytest.approx(0.2)
    written = json.loads((tmp_path / "few_labels.json").read_text())
    assert written["10% of labels"] == result
    assert written["settings"]["learning_rate"] == {"without": 3e-4, "with": 1e-4}
    few_labels.main(arguments)
    assert len(asked) == 8  # what is done is not run again
