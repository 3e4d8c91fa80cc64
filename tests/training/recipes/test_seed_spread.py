"""Mean and spread over the seeds of a fine-tuning run."""

import copy
import json

import pytest

from triemo.training.recipes.seed_spread import main, seed_spread


def results(*scores: float) -> list[dict]:
    """Runs of seeds 1, 2, ... with these weighted F1."""
    return [
        {
            "arguments": {"seed": seed, "learning_rate": 1e-4, "lora": True, "num_train_epochs": 3},
            "parameters": 1000,
            "trained_parameters": 14,
            "test": {"meld": {"samples": 2610.0, "loss": 1.0, "weighted_f1": score}},
        }
        for seed, score in enumerate(scores, start=1)
    ]


def test_scores_are_averaged_and_counts_are_not(tmp_path):
    for name, found in zip("abc", results(0.60, 0.62, 0.61), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(found))
    output = tmp_path / "new" / "spread.json"
    result = main([*(str(tmp_path / name) for name in "abc"), "--output", str(output)])
    assert json.loads(output.read_text()) == result
    spread = {"mean": pytest.approx(0.61), "standard_deviation": pytest.approx(0.01)}
    assert result["test"] == {"meld": {"weighted_f1": spread}}
    assert result["trained_share"] == pytest.approx(0.014)
    assert result["settings"]["seeds"] == [1, 2, 3] and result["settings"]["learning_rate"] == 1e-4


def changed(part: str, name: str, value) -> list[dict]:
    """Two runs of which the second differs in one thing."""
    found = copy.deepcopy(results(0.6, 0.6))
    found[1][part][name] = value
    return found


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (results(0.6), "runs: got 1, expected at least 2"),
        (changed("arguments", "seed", 1), r"seeds: got \[1, 1\], expected a different one"),
        (changed("arguments", "learning_rate", 2e-4), "seed 2: got another learning_rate than seed 1"),
        (
            changed("test", "goemotions", {}),
            r"seed 2: got test scores of \['goemotions', 'meld'\], expected \['meld'\]",
        ),
        ([{**run, "test": {}} for run in results(0.6, 0.7)], r"seed 1: got test scores of \[\], expected some"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        seed_spread(runs)


def test_a_run_that_is_not_finished_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"got no results.json in {tmp_path}, expected finished runs"):
        main([str(tmp_path)])
