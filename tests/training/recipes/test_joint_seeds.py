"""The joint stage over several seeds: what is kept, what is not done twice, and which start is named the better."""

import pytest

from triemo.training.recipes import joint_seeds
from triemo.training.recipes.joint_seeds import numbers, train_joint_seeds
from triemo.training.recipes.stages import ReleaseRun


def test_each_start_and_seed_is_trained_once(tmp_path, monkeypatch):
    done = []

    def train(run, name, start, **joint):
        done.append((name, start, run.seed))
        (tmp_path / "joint").mkdir(exist_ok=True)
        return {"validation_composites": {"text": {"uar": 0.5 + 0.1 * (start is None)}, "audio": {"uar": 0.5}}}

    class Loads:
        @classmethod
        def from_pretrained(cls, folder):
            return cls()

        def to(self, device):
            return self

    monkeypatch.setattr(joint_seeds, "train_joint", train)
    monkeypatch.setattr(joint_seeds, "TriemoForEmotionClassification", Loads)
    monkeypatch.setattr(joint_seeds, "AutoTokenizer", Loads)
    figures = {"meld_test": {"weighted_f1": 0.6, "samples": 10}, "per_class": {"anger": {"uar": 1.0}}}
    monkeypatch.setattr(joint_seeds, "measured", lambda run, *given, **corpora: (None, figures, {}, {}))
    settings = {"text_corpora": ["a", "a"], "voice_check": "v", "face_corpora": ["f"], "steps": 1}
    run = ReleaseRun(output=str(tmp_path), seed=9)
    report = train_joint_seeds(run, "joint", starts={"pre": "pretrained", "none": None}, seeds=[0, 1], **settings)
    assert done == [("joint/pre_0", "pretrained", 0), ("joint/pre_1", "pretrained", 1)] + [
        ("joint/none_0", None, 0),
        ("joint/none_1", None, 1),
    ]
    assert report["better"] == "none"
    assert report["validation_uar"]["none"]["mean"] == pytest.approx(0.55)
    assert report["test"]["pre"] == {"meld_test/weighted_f1": {"mean": 0.6, "standard_deviation": 0.0}}
    assert train_joint_seeds(run, "joint", starts={"none": None}, seeds=[1], **settings)["seeds"] == [1]
    assert len(done) == 4


def test_numbers_are_the_measures_by_their_path():
    nested = {"a": {"b": {"uar": 0.5, "loss": 1.0}, "text": "x"}, "joined_voices": {"of": 28, "right_at_4_s": 3}}
    assert numbers(nested) == {"a/b/uar": 0.5, "joined_voices/right_at_4_s": 3.0}
