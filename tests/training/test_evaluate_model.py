"""Scores against hand-computed ones, and an evaluation that is the same on one and on two processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import LABELS, save_tiny_checkpoint, tiny_processor
from tiny_data import write_table
from two_processes import run_two_processes

from triemo.modeling import TriemoForEmotionClassification
from triemo.processing import MultimodalEmotionRecognitionPipeline
from triemo.training.evaluate_model import main
from triemo.training.metrics import plots as evaluation_plot
from triemo.training.metrics.scores import EmotionMetric, scores_for_trainer

ROOT = Path(__file__).resolve().parents[2]

# Truth and prediction of eight samples of three classes; the confusion matrix follows by hand.
TRUTH = [0, 0, 0, 0, 1, 1, 2, 2]
PREDICTED = [0, 0, 1, 2, 1, 1, 1, 2]
GROUPS = ["f", "f", "m", "m", "f", "m", "f", ""]

pytestmark = pytest.mark.usefixtures("one_thread")


def logits_of(predicted, margin=2.0):
    return (np.eye(3)[predicted] * margin).tolist()


@pytest.fixture(scope="module")
def scores():
    metric = EmotionMetric(keep_in_memory=True)
    for rows in (slice(0, 5), slice(5, 8)):
        metric.add_batch(predictions=logits_of(PREDICTED)[rows], references=TRUTH[rows], groups=GROUPS[rows])
    return metric.compute(labels=["a", "b", "c"])


def test_metric_against_a_confusion_matrix_by_hand(scores):
    assert scores["confusion_matrix"] == [[2, 1, 1], [0, 2, 0], [0, 1, 1]]
    assert scores["samples"] == 8 and scores["accuracy"] == 5 / 8
    assert scores["uar"] == pytest.approx((2 / 4 + 2 / 2 + 1 / 2) / 3)
    f1 = {"a": 2 * 2 / (4 + 2), "b": 2 * 2 / (2 + 4), "c": 2 * 1 / (2 + 2)}  # 2 hits / (truth + predicted)
    assert {name: scores["per_class"][name]["f1"] for name in f1} == pytest.approx(f1)
    assert scores["macro_f1"] == pytest.approx(sum(f1.values()) / 3)
    assert scores["weighted_f1"] == pytest.approx((4 * f1["a"] + 2 * f1["b"] + 2 * f1["c"]) / 8)
    assert scores["per_class"]["a"] == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": f1["a"], "support": 4})


def test_calibration_error_and_its_temperature(scores):
    confidence = np.exp(2) / (np.exp(2) + 2)  # of every sample
    assert scores["expected_calibration_error"] == pytest.approx(abs(confidence - 5 / 8))
    warm = EmotionMetric(keep_in_memory=True).compute(
        predictions=logits_of(PREDICTED), references=TRUTH, groups=GROUPS, labels=["a", "b", "c"], temperature=4.0
    )
    assert warm["expected_calibration_error"] == pytest.approx(abs(np.exp(0.5) / (np.exp(0.5) + 2) - 5 / 8))


def test_subgroups_leave_out_samples_without_one(scores):
    assert {name: (group["samples"], group["accuracy"]) for name, group in scores["groups"].items()} == {
        "f": (4, 3 / 4),
        "m": (3, 1 / 3),
    }


def test_multi_label_and_regression():
    several = EmotionMetric("multi_label_classification", keep_in_memory=True).compute(
        predictions=[[1.0, -1.0], [2.0, 3.0]], references=[[1, 0], [0, 1]], groups=["", ""], labels=["a", "b"]
    )
    assert several["accuracy"] == 0.5
    assert several["macro_f1"] == pytest.approx((2 / 3 + 1) / 2) and several["micro_f1"] == pytest.approx(4 / 5)
    values = scores_for_trainer(np.array([[2.0], [3.0], [4.0]]), np.array([1.0, 2.0, 3.0]), "regression", ["valence"])
    # variance 2/3 each, shift 1
    assert values["ccc"] == pytest.approx((4 / 3) / (4 / 3 + 1)) and values["pearson"] == pytest.approx(1)
    assert values["mae"] == values["rmse"] == pytest.approx(1)


def test_soft_targets_are_scored_where_they_name_one_class():
    soft = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    scores = scores_for_trainer(np.array([[2.0, 0], [2.0, 0], [2.0, 0]]), soft, "single_label_classification", "ab")
    assert scores["samples"] == 2 and scores["accuracy"] == 0.5


# Whole evaluations -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    save_tiny_checkpoint(folder / "tiny")
    write_table(folder / "data", train=1, validation=4, test=7, _6_audio="", _8_text="", _8_image="")
    return folder


def arguments(place: Path, output: str | None = None, **changes) -> list[str]:
    values = {"model": place / "tiny", "table": place / "data" / "table.csv", "use_cpu": "true", "batch_size": 2}
    values |= {} if output is None else {"output": place / output}
    return [text for name, value in (values | changes).items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def evaluated(place):
    return main(arguments(place, "one", plot="false"))


def test_each_subset_is_scored_on_the_rows_that_have_it(place, evaluated):
    subsets = evaluated["parts"]["table"]["subsets"]
    assert {name: row["samples"] for name, row in subsets.items()} == {
        "present": 7,
        "text": 6,
        "audio": 6,
        "vision": 6,
        "text+audio": 5,
        "text+vision": 6,
        "audio+vision": 5,
        "text+audio+vision": 5,
    }
    assert json.loads((place / "one" / "evaluation.json").read_text())["parts"] == evaluated["parts"]
    assert sum(group["samples"] for group in subsets["text"]["groups"].values()) == 6


def test_a_subset_scores_what_the_model_says_of_it_alone(place, evaluated):
    model = TriemoForEmotionClassification.from_pretrained(place / "tiny").eval()
    processor = tiny_processor()
    matrix = np.zeros((7, 7), dtype=int)
    for row in range(5, 12):
        if row != 6:
            with torch.no_grad():
                inputs = processor(audio=str(place / "data" / f"{row}.wav"))
                predicted = int(model(**inputs).logits.argmax())
            matrix[LABELS.index(("anger", "joy", "sadness")[row % 3]), predicted] += 1
    assert evaluated["parts"]["table"]["subsets"]["audio"]["confusion_matrix"] == matrix.tolist()


def test_two_processes_give_the_very_figures_of_one(place, evaluated, tmp_path):
    script = tmp_path / "counted.py"
    script.write_text(
        "import sys, torch, torch.distributed as dist\n"
        "torch.set_num_threads(1)\n"
        "from triemo.training.evaluate_model import main\n"
        "main(sys.argv[1:])\n"
        "assert dist.get_world_size() == 2, dist.get_world_size()\n"
        "dist.destroy_process_group()\n"
    )
    run_two_processes(script, *arguments(place, "two", plot="false"))
    two = json.loads((place / "two" / "evaluation.json").read_text())
    assert {name: two[name] for name in two if name != "command"} == {
        name: evaluated[name] for name in evaluated if name != "command"
    }


def test_the_temperature_is_fitted_on_validation_and_stored(place, tmp_path):
    copy = save_tiny_checkpoint(place / "calibrated")
    splits = ["train"] * 2 + ["validation"] * 60 + ["test"] * 3
    words = ("i am so happy", "what a day", "this is not fine")
    rows = [
        f"{words[n % 3]} {'ab'[n % 2]},{('joy', 'anger', 'fear')[n % 3]},{split}" for n, split in enumerate(splits)
    ]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["text,label,split", *rows]) + "\n")
    options = {"model": copy, "table": table, "calibrate": "true", "batch_size": 32}
    result = main(arguments(place, **options))
    config = json.loads((copy / "config.json").read_text())
    assert config["calibration_temperature"] == result["calibration"]["after"] == result["temperature"]
    assert list(result["temperature"]) == ["text"] and result["temperature"]["text"] != 1.0
    assert result["calibration"]["samples"] == 60  # the validation rows, not the test's
    # Random weights are nowhere right in nine of ten cases, so no answer is called certain by that.
    assert result["calibration"]["selected"] == {"text": None} and config["min_score"] == result["min_score"] == {}
    assert not list(copy.glob("*.part"))
    table.write_text("\n".join(["text,label,split", *rows[:40], rows[-1]]) + "\n")
    with pytest.raises(ValueError, match="got 38 validation rows.*expected 50"):
        main(arguments(place, **options))


def test_the_least_score_is_picked_on_validation_stored_and_reported(place, tmp_path):
    """Of rows that have the label which random weights answer with."""
    copy = save_tiny_checkpoint(place / "selective")
    table = tmp_path / "table.csv"
    answer = MultimodalEmotionRecognitionPipeline(
        model=TriemoForEmotionClassification.from_pretrained(copy), processor=tiny_processor()
    )
    sentences = ("i am so happy", "what a day", "not fine")
    texts = [f"{words} {letter}" for words in sentences for letter in "abcdefghijklmnopqr"]
    labels = [found[0]["label"] for found in answer([{"text": text} for text in texts], batch_size=32)]
    labels[0] = "joy" if labels[0] != "joy" else "fear"
    rows = [f"{text},{label},validation" for text, label in zip(texts, labels, strict=True)]
    table.write_text("\n".join(["text,label,split", *rows, f"{texts[1]},{labels[1]},test"]) + "\n")
    result = main(arguments(place, "selective", model=copy, table=table, calibrate="true", batch_size=32))
    (picked,) = result["calibration"]["selected"].values()
    assert picked["accuracy"] >= 0.9 and picked["coverage"] >= 50 / 54
    config = json.loads((copy / "config.json").read_text())
    assert config["min_score"] == result["min_score"] == {"text": picked["min_score"]}
    scored = result["parts"]["table"]["subsets"]["text"]
    assert scored["selective"]["min_score"] == picked["min_score"]
    assert scored["risk_coverage"]["risk"] == [0.0] and scored["risk_coverage"]["area"] == 0.0
    assert (place / "selective" / "table_risk_coverage.png").is_file()


def test_a_table_without_splits_is_scored_on_the_rows_that_training_left_out_or_on_all_by_name(place, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("text,label\n" + "".join(f"i am so {word},joy\n" for word in "abcdefghij"))
    assert main(arguments(place, table=table, split="validation"))["parts"]["table"]["samples"] == 1
    assert main(arguments(place, table=table, split="all"))["parts"]["table"]["samples"] == 10
    with pytest.raises(ValueError, match="got 'test', but .* has train, validation; --split validation scores those"):
        main(arguments(place, table=table))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"_7_audio": "gone.wav"}, r"table.csv:9: .*gone.wav"),
        ({"_7_label": "glee"}, r"table.csv:9: label: got 'glee'"),
    ],
)
def test_what_cannot_be_scored_is_fatal_and_named(place, tmp_path, changed, message):
    table = write_table(tmp_path / "data", train=1, validation=4, test=4, **changed)
    with pytest.raises(ValueError, match=message):
        main(arguments(place, table=table))


def test_a_split_that_is_not_there(place, tmp_path):
    table = write_table(tmp_path / "data", train=1, validation=2, test=0)
    with pytest.raises(ValueError, match="split"):
        main(arguments(place, table=table))


def test_the_picture(evaluated, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra demo")
    evaluation_plot.plot_scores(evaluated["parts"]["table"]["subsets"], LABELS, "a title", tmp_path / "table.png")
    with Image.open(tmp_path / "table.png") as picture:
        assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(1 << 24)) > 20
    assert not list(tmp_path.glob("*.part"))


def test_without_matplotlib_it_says_so_before_it_scores(place, monkeypatch):
    monkeypatch.setattr(evaluation_plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="matplotlib is not installed"):
        main(arguments(place, "three"))
