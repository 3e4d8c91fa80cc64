"""The five-fold benchmark: which folds run, and what is written of them."""

import json

import numpy as np
import pytest

from triemo.training.recipes import ravdess_folds


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """The folds that were trained, in order; fold n has an accuracy of n / 10."""
    done: list[int] = []

    def run_fold(run, fold, settings):
        assert settings["strength"] == 3000 and run.seed == 0
        done.append(fold)
        return {"accuracy": fold / 10, "uar": 0.5, "calm_dropped_weighted_f1": 0.6}

    monkeypatch.setattr(ravdess_folds, "run_fold", run_fold)
    return done


def test_all_folds_are_averaged_and_none_runs_twice(tmp_path, runs):
    tmp_path = tmp_path / "not" / "there"
    assert ravdess_folds.main(["--output", str(tmp_path), "--stage", "3"]) == {}
    assert not (tmp_path / "folds.json").exists()
    result = ravdess_folds.main(["--output", str(tmp_path)])
    assert runs == [3, 0, 1, 2, 4]
    assert json.loads((tmp_path / "folds.json").read_text()) == result
    values = np.arange(5) / 10
    expected = {"mean": pytest.approx(values.mean()), "standard_deviation": pytest.approx(values.std())}
    assert result["accuracy"] == expected and len(result["folds"]) == 5


def test_a_fold_that_is_none_is_refused(tmp_path, runs):
    with pytest.raises(ValueError, match="stage: got '5', expected all or a fold from 0 to 4"):
        ravdess_folds.main(["--output", str(tmp_path), "--stage", "5"])
