"""The figures that README and model card quote are those of metrics.json; a table has the rows that were measured."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from triemo.training.common import HUB_MODEL
from triemo.training.corpora.registry import CORPORA
from triemo.training.publish.card import (
    LICENSE,
    PROBES,
    RELEASED,
    TEMPLATE,
    check_card,
    eval_results,
    origin,
    plain_card,
    released_card,
)
from triemo.training.publish.figures import details_table, figure_rows, figures_table, interval, replace_figures

SUBSETS = ("text", "audio", "vision", "text+audio", "text+vision", "audio+vision", "text+audio+vision")


class Reader:
    """Answers like the pipeline, always the same."""

    class model:  # noqa: N801
        class config:  # noqa: N801
            id2label = {0: "joy", 1: "anger"}

    def __call__(self, sample: dict, top_k: int) -> list[dict]:
        return [{"label": "joy", "score": 0.51}][:top_k]


def scores(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "macro_f1": accuracy - 0.02, "uar": accuracy - 0.01, "weighted_f1": accuracy + 0.01}


@pytest.fixture
def metrics() -> dict[str, Any]:
    """Every key that a release may have."""
    per_class = {
        "anger": {"precision": 0.5, "recall": 0.6, "f1": 0.545, "support": 100},
        "joy": {"precision": 0.9, "recall": 0.8, "f1": 0.847, "support": 300},
    }
    return {
        "model": "triemo-small",
        "parameters": 1234567,
        "seed": 0,
        "command": "python training/recipes/release.py",
        "corpora_sha256": {"goemotions": "a", "meld": "b"},
        "ledger": {"text_tower": ["goemotions", "meld"], "audio_tower": ["ravdess"], "vision_tower": ["fer2013"]},
        "ravdess_actors": {"train": [1, 2, 18]},
        "protocols": {"fer2013": "face alone"},
        "training_minutes": {"text": 30.0, "vision": 90.0},
        "versions": {"torch": "2.13.0"},
        "figures": {
            "goemotions_test": {"multi_label": {"macro_f1": 0.636}, "single_label": scores(0.70)},
            "meld_test": scores(0.61),
            "fer2013_private_test": {**scores(0.75), "uar": 0.7},
            "ravdess_actors_21_24_calm_merged": scores(0.8),
            "ravdess_actors_21_24_calm_dropped": scores(0.79),
            "composites_test_synthetic": {name: scores(0.5 + 0.05 * i) for i, name in enumerate(SUBSETS)},
            "expected_calibration_error": {
                "text": {"before": 0.09, "after": 0.03},
                "audio": {"before": 0.07, "after": 0.06, "if_calibrated": 0.055},
            },
            "per_class": {"fer2013": per_class},
            "subgroups": {"ravdess_gender": {"male": {"uar": 0.72, "samples": 120}, "female": {"uar": 0.74}}},
            "calibration_temperatures": {"text": 1.31, "audio": 0.87},
            "ravdess_five_folds": {"accuracy": [0.8, 0.79, 0.74, 0.75, 0.67], "uar": {"mean": 0.74, "std": 0.03}},
            "meld_fine_tuned": {
                "full": {
                    "test": {"meld": {"weighted_f1": {"mean": 0.62, "standard_deviation": 0.004}}},
                    "settings": {"seeds": [1, 2, 3], "lora": False},
                }
            },
            "pretraining": {
                "few_labels": {
                    "10% of labels": {
                        "with": {"audio": {"uar": {"mean": 0.55, "standard_deviation": 0.01}}},
                        "without": {"audio": {"uar": {"mean": 0.5, "standard_deviation": 0.02}}},
                    },
                    "settings": {"steps": 60},
                },
                "zero_shot": {"zero_shot": {"fer2013": {"vision": {"chance": 0.143, "all": {"uar": 0.326}}}}},
            },
        },
    }


def card_of(metrics: dict[str, Any]) -> str:
    shown = {"example_label": "joy", "has_handler": True, "has_onnx": False}
    return released_card(TEMPLATE.read_text("utf-8"), "user/model", metrics, Reader(), **shown)


def test_replacing_keeps_the_rest_and_is_idempotent():
    document = "before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n"
    once = replace_figures(document, "| new |")
    assert once == "before\n<!-- figures -->\n| new |\n<!-- /figures -->\nafter\n"
    assert replace_figures(once, "| new |") == once
    with pytest.raises(ValueError, match="expected the marks"):
        replace_figures("no marks here", "| new |")


def test_readme_quotes_the_measured_figures(repo_root: Path, checkpoint: Path):
    document = (repo_root / "README.md").read_text()
    table = figures_table(json.loads((checkpoint / "metrics.json").read_text()))
    assert replace_figures(document, table) == document, "run: python training/publish/figures.py"
    values = [line.split("|")[3].strip() for line in table.splitlines() if line.startswith("| ")]
    assert len([value for value in values if value[:1].isdigit()]) >= 10


def test_card_of_the_release_is_made_of_its_figures(checkpoint: Path):
    released = json.loads((checkpoint / "metrics.json").read_text())
    text = card_of(released)
    check_card(text, released)
    results = ModelCard(text).data.eval_results
    assert {r.dataset_config for r in results if "composites" in r.dataset_type} == set(SUBSETS)
    measured = {r.dataset_type for r in results}
    assert measured >= {"google-research-datasets/go_emotions", "ravdess", "fer2013"}
    ledger = [line for line in text.splitlines() if line.startswith(("| `text_tower`", "| `audio_tower`"))]
    assert any("GoEmotions" in line and line.endswith(f"| {CORPORA['goemotions'].licence} |") for line in ledger)
    assert any("RAVDESS" in line and line.endswith("| CC BY-NC-SA 4.0 |") for line in ledger)


def test_what_was_measured_has_a_row_and_what_was_not_has_none(metrics):
    whole = figures_table(metrics) + details_table(metrics)
    assert "| MELD, official test, words alone | weighted F1 | 0.620 | - |" in whole
    assert (
        "| GoEmotions, words | expected calibration error, before / after temperature | 0.090 / 0.030 | - |" in whole
    )
    assert "before / after temperature (0.055 if calibrated perfectly) | 0.070 / 0.060 |" in whole
    assert "| anger | 100 | 0.500 | 0.600 | 0.545 |" in whole
    assert "| male | 120 | 0.720 |\n| female | - | 0.740 |" in whole
    assert "| accuracy | 0.750 ± 0.051 over 5 |\n| uar | 0.740 ± 0.030 |" in whole
    assert "| full, test, meld, weighted f1 | 0.620 ± 0.004 |" in whole and "seeds" not in whole
    assert "| audio | 0.500 ± 0.020 | 0.550 ± 0.010 |" in whole and "| audio | 0.870 |" in whole
    assert "| fer2013, vision | all | 0.326 |" in whole and "steps" not in whole

    for name in list(metrics["figures"]):
        fewer = copy.deepcopy(metrics)
        del fewer["figures"][name]
        lines = set((figures_table(fewer) + details_table(fewer)).splitlines())
        assert set(whole.splitlines()) - lines, name
        check_card(card_of(fewer), fewer)
    assert figures_table({}) == details_table({}) == ""
    moved = {**metrics, "per_class": metrics["figures"].pop("per_class")}
    assert figures_table(moved) + details_table(moved) == whole


def test_intervals_cover_what_they_say(metrics):
    """Against test sets drawn from the recalls: 95 of 100 lie within, for accuracy and for UAR."""
    assert interval(metrics, "goemotions_test.single_label.weighted_f1") is None
    assert interval(metrics, "ravdess_actors_21_24_calm_merged.uar") is None
    draw = random.Random(0)
    for measure in ("accuracy", "uar"):
        low, high = map(float, str(interval(metrics, f"fer2013_private_test.{measure}")).split("-"))
        inside = 0
        for _ in range(1000):
            right = [sum(draw.random() < recall for _ in range(n)) for recall, n in ((0.6, 100), (0.8, 300))]
            value = sum(right) / 400 if measure == "accuracy" else (right[0] / 100 + right[1] / 300) / 2
            inside += low <= value <= high
        assert 0.93 < inside / 1000 < 0.975, measure
    other = copy.deepcopy(metrics)
    other["figures"]["fer2013_private_test"]["accuracy"] = 0.76  # not what these recalls give
    assert interval(other, "fer2013_private_test.accuracy") is None


def test_the_template_says_that_it_is_one_and_a_card_does_not(metrics):
    _, front_matter, body = TEMPLATE.read_text("utf-8").split("---\n", 2)
    assert "license:" in front_matter
    assert body.strip().splitlines()[0].startswith("{# This is a template")
    assert "template" not in card_of(metrics).lower()


def test_a_card_of_ones_own_model_names_base_licence_and_figures(tmp_path):
    """What finetune.py left in results.json, started from a copy of the released weights."""
    (tmp_path / "metrics.json").write_text(json.dumps({"model": RELEASED}))
    scores = {"loss": 1.2, "samples": 120.0, "accuracy": 0.7512, "uar": 0.7, "macro_f1": 0.68, "weighted_f1": 0.74}
    results = {
        "started_from": {str(tmp_path): "folder"},
        "validation": {"calls": scores},
        "test": {"calls": scores | {"accuracy": 0.5}},
    }
    text = plain_card("me/calls", ["joy", "anger"], "print(1)\n", None, False, results)
    card = ModelCard(text)
    assert (card.data.base_model, card.data.license) == (HUB_MODEL, LICENSE)
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert f"https://huggingface.co/{HUB_MODEL}" in text and f"under {LICENSE}" in text
    assert "| split | data | samples | macro F1 | weighted F1 | UAR | accuracy |" in text
    assert "| test | calls | 120 | 0.680 | 0.740 | 0.700 | 0.500 |" in text
    check_card(text, None)

    others = plain_card("me/calls", ["joy"], "", None, False, {"started_from": {"a/text": "hub", "b/voice": "hub"}})
    assert ModelCard(others).data.base_model == ["a/text", "b/voice"] and ModelCard(others).data.license is None
    assert "No figures were measured" in others and "not found here" in others
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# mine\n")
    assert origin(results) == ([], "mit") and origin({}) == ([], None)


def test_no_temperature_of_the_release_worsens_its_calibration():
    file = TEMPLATE.parent / "checkpoints" / "triemo-small" / "metrics.json"
    errors = json.loads(file.read_text("utf-8"))["figures"]["expected_calibration_error"]
    assert len(errors) == 4
    assert all(error["after"] <= error["before"] for error in errors.values()), errors


def test_what_was_not_chosen_on_validation_data_alone_is_said_beside_the_figures():
    for paper in (TEMPLATE, TEMPLATE.parent / "README.md"):
        text = " ".join(paper.read_text("utf-8").split())
        assert "chosen on validation data, with one exception: how the voice's states are pooled" in text, paper
        assert "compared on five folds of RAVDESS that include the test actors" in text, paper


def test_the_licence_of_the_released_weights_is_the_cards():
    assert ModelCard.load(TEMPLATE).data.license == LICENSE


def test_card_says_what_it_must(metrics):
    text = card_of(metrics)
    check_card(text, metrics)
    card = ModelCard(text)
    assert card.data.pipeline_tag == "video-classification" and card.data.language == ["en"]
    assert len(card.data.base_model) == 2 and "declare-lab/MELD" in card.data.datasets
    assert card.data.widget[0]["text"] and card.data.widget[1]["src"].endswith("user/model/resolve/main/demo.mp4")
    assert card.data.model_name == "model"
    for line in (
        "| `text_tower` | MELD: lines of a TV series | GPL-3.0 |",
        "| `audio_tower` | RAVDESS: acted voices of 24 actors, two sentences | CC BY-NC-SA 4.0 |",
        "of RAVDESS actors\n1-18, of FER2013 no image",
        "- fer2013: anger, recall 0.600",
        "2.0 hours in all",
        "2.0 h x 2 x 15 W = 0.06 kWh",
        "beyond the subgroups above.",
        "**Not for** hiring, policing",
        "| That trick was sick, do it again! | joy | joy | 0.51 |",
        "1,234,567 parameters",
    ):
        assert line in text, line
    assert sum("(wrong)" in line for line in text.splitlines()) == sum(meant != "joy" for _, meant in PROBES)
    assert "{{" not in text and "{%" not in text and "`onnx/`" not in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("| accuracy | 0.750 |", "| accuracy | 0.790 |", "its tables are not those"),
        ("| anger | 100 | 0.500 |", "| anger | 100 | 0.900 |", "its tables are not those"),
        ("value: 0.62\n", "value: 0.72\n", "model-index is not that"),
        ("recall 0.600", "recall 0.912", "no figure 0.912"),
        ("<!-- figures -->", "", "expected the marks"),
        ("- en\n", "- English\n", "language: got 'English'"),
        ("---\nlicense", "license", "expected metadata"),
    ],
)
def test_card_with_other_figures_is_refused(metrics, old, new, message):
    text = card_of(metrics)
    assert old in text
    with pytest.raises(ValueError, match=message):
        check_card(text.replace(old, new, 1), metrics)


def test_result_left_out_of_model_index_is_noticed(metrics):
    card = ModelCard(card_of(metrics))
    card.data.eval_results = card.data.eval_results[:-1]
    with pytest.raises(ValueError, match="model-index"):
        check_card(str(card), metrics)
    assert len(eval_results(metrics)) == 10 + 14


def test_plain_card_of_ones_own_model():
    text = plain_card("user/mine", ["calm", "loud"], "print(1)  # 1\n", "user/base", is_adapter=True)
    check_card(text, None)
    data = ModelCard(text).data
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", "user/base", "adapter")
    assert "calm, loud" in text and "hiring" in text.lower() and "print(1)  # 1\n```" in text


def test_tests_of_many_corpora_have_rows_and_what_was_left_out_has_a_table():
    figures = {
        "xed_zh_test": {"multi_label": {"macro_f1": 0.41}, "single_label": {"macro_f1": 0.5}},
        "smp2020_virus_test": {"macro_f1": 0.61},
        "javanese_clips_test": {"audio": {"uar": 0.5}, "audio+vision": {"uar": 0.7}},
        "voice_left_out_corpora": {"casia": {"uar": 0.512, "clips": 300}},
        "joined_voices": {"of": 28, "right_at_4_s": 20, "right_at_12_s": 19},
        "expected_calibration_error": {"audio_casia": {"before": 0.1, "after": 0.05}},
    }
    rows = {path: (test.shown, measure, value) for path, test, measure, value in figure_rows({"figures": figures})}
    assert rows["xed_zh_test.multi_label.macro_f1"] == ("XED, Chinese, words alone", "macro F1, multi-label", 0.41)
    assert rows["smp2020_virus_test.macro_f1"][1:] == ("macro F1", 0.61)
    assert rows["javanese_clips_test.audio+vision.uar"][0].endswith("voice and face") and len(rows) == 4
    assert "| casia, voice | expected calibration error, before / after temperature | 0.100 / 0.050 |" in (
        figures_table({"figures": figures})
    )
    details = details_table({"figures": figures})
    assert "| casia | 0.512 | 300 |" in details and "| right at 12 s | 19 |" in details
