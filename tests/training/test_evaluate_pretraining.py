"""Retrieval, zero-shot, probe and masked-word figures against hand-computed ones, and the script on a tiny table."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from tiny_checkpoint import tiny_processor
from tiny_data import write_table
from tiny_models import tiny_audio_config, tiny_config, tiny_text_config

from triemo.modeling import TriemoForPreTraining, TriemoModel
from triemo.training.evaluate_pretraining import main
from triemo.training.metrics.probes import (
    SENTENCES,
    class_vectors,
    linear_probe_scores,
    read_sentences,
    sentence_scores,
    zero_shot_scores,
)
from triemo.training.metrics.retrieval import (
    Embedded,
    join_embedded,
    mean_average_precision,
    recall_at,
    retrieval_scores,
)

NAMES = ("anger", "joy", "sadness")


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def clusters(rows: int, modalities=("text", "audio"), noise: float = 0.1, seed: int = 0) -> Embedded:
    """Rows of three classes around three axes, which all modalities share."""
    draw = np.random.default_rng(seed)
    kinds = np.arange(rows) % 3
    vectors = {m: unit(np.eye(3)[kinds] + noise * draw.normal(size=(rows, 3))) for m in modalities}
    labels = np.array([NAMES[kind] for kind in kinds], dtype=object)
    return Embedded(vectors, {m: np.arange(rows) for m in modalities}, labels)


def test_recall_by_hand_and_ties_do_not_count_as_found():
    similarities = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.7, 0.6, 0.5]])
    assert recall_at(similarities, (1, 2, 3)) == pytest.approx({"recall@1": 1 / 3, "recall@2": 2 / 3, "recall@3": 1.0})
    assert recall_at(np.ones((4, 4)), (1, 3, 4)) == {"recall@1": 0.0, "recall@3": 0.0, "recall@4": 1.0}


def test_average_precision_by_hand_and_by_scikit_learn():
    similarities = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4], [0.5, 0.4, 0.3, 0.2]])
    queries = np.array(["joy", "anger", ""], dtype=object)
    candidates = np.array(["joy", "anger", "joy", ""], dtype=object)
    scores = mean_average_precision(similarities, queries, candidates)
    # joy finds joy at places 1 and 3 of three; anger, whose order is reversed, anger at place 2.
    assert scores["per_class"] == pytest.approx({"joy": (1 + 2 / 3) / 2, "anger": 0.5})
    assert scores["map"] == pytest.approx((5 / 6 + 1 / 2) / 2) and scores["queries"] == 2
    assert scores["chance"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    draw = np.random.default_rng(0)
    values, asked, offered = draw.normal(size=(5, 40)), draw.integers(0, 3, 5), draw.integers(0, 3, 40)
    found = mean_average_precision(values, asked.astype(str).astype(object), offered.astype(str).astype(object))
    expected = [average_precision_score(offered == a, row) for a, row in zip(asked, values, strict=True)]
    assert found["map"] == pytest.approx(np.mean(expected))
    assert mean_average_precision(similarities, np.array(["fear"] * 3, dtype=object), candidates) == {}


def test_retrieval_takes_counterparts_from_one_row_and_emotions_from_all_corpora():
    one = clusters(30, ("text", "audio"), seed=1)
    other = clusters(12, ("vision",), seed=2)
    scores = retrieval_scores(join_embedded([one, other]), (1,), candidates=20)
    assert set(scores) == {
        f"{a}->{b}" for a in one.vectors | other.vectors for b in one.vectors | other.vectors if a != b
    }
    assert scores["text->audio"]["pairs"] == 20 and scores["text->audio"]["chance@1"] == 1 / 20
    assert "pairs" not in scores["text->vision"]
    assert scores["vision->text"]["by_emotion"]["map"] > 0.95
    assert scores["vision->text"]["by_emotion"]["chance"] == pytest.approx(1 / 3)


def test_pairs_are_matched_by_row_where_modalities_lack_some():
    part = clusters(6)
    part.rows["text"], part.vectors["text"] = np.array([0, 2, 5]), part.vectors["text"][[0, 2, 5]]
    part.rows["audio"], part.vectors["audio"] = np.array([2, 3, 5]), part.vectors["audio"][[2, 3, 5]]
    rows, vectors = part.pairs(("text", "audio"))
    assert rows.tolist() == [2, 5]
    assert np.array_equal(vectors[0], part.vectors["text"][1:]) and np.array_equal(
        vectors[1], part.vectors["audio"][::2]
    )


AXES = {"I am angry": [1, 0, 0], "rage": [1, 0.2, 0], "I am glad": [0, 1, 0], "so sad": [0, 0, 1]}


def embed(sentences):
    return unit([AXES[sentence] for sentence in sentences])


def test_zero_shot_takes_the_class_of_the_nearest_averaged_sentences():
    sets = {"own": {"anger": ("I am angry", "rage"), "joy": ("I am glad",), "sadness": ("so sad",)}}
    names, vectors = class_vectors(sets["own"], embed)
    assert names == list(NAMES) and np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert vectors[0] == pytest.approx(unit(embed(["I am angry", "rage"]).mean(0)))
    part = clusters(30)
    part.labels[:3] = ["", "fear", "fear"]
    scores = zero_shot_scores(part, sets, embed)
    assert scores["audio"]["samples"] == 27 and scores["audio"]["own"]["uar"] == 1.0
    assert scores["audio"]["chance"] == pytest.approx(1 / 3)
    wrong = {"own": {"anger": ("so sad",), "joy": ("I am glad",), "sadness": ("rage",)}}
    assert zero_shot_scores(part, wrong, embed)["audio"]["all"]["uar"] == pytest.approx(1 / 3)
    said = sentence_scores(part.vectors["audio"][3:6], ["I am angry", "I am glad", None], embed)
    assert said["accuracy"] == 1.0 and said["samples"] == 2 and said["chance"] == 0.5


def test_sentences_cover_the_seven_classes_and_own_ones_are_checked(tmp_path):
    assert all(len(by_class) == 7 for by_class in SENTENCES.values())
    assert "a person speaking angrily" in SENTENCES["speaking"]["anger"]
    file = tmp_path / "sentences.json"
    file.write_text(json.dumps({"joy": ["glad"], "anger": ["mad", "cross"]}))
    assert read_sentences(file) == {"own": {"joy": ("glad",), "anger": ("mad", "cross")}}
    file.write_text(json.dumps({"joy": "glad", "anger": ["mad"]}))
    with pytest.raises(ValueError, match="sentences: got .*expected two classes or more"):
        read_sentences(file)
    with pytest.raises(ValueError, match="sentences: cannot read"):
        read_sentences(tmp_path / "none.json")


def test_the_probe_learns_from_train_alone_and_joins_modalities():
    train, validation, test = clusters(90, seed=1), clusters(30, seed=2), clusters(30, seed=3)
    scores = linear_probe_scores(train, validation, test)
    assert set(scores) == {"text", "audio", "text+audio"} and min(s["uar"] for s in scores.values()) > 0.95
    assert scores["audio"]["train_samples"] == 90 and scores["audio"]["samples"] == 30
    shuffled = Embedded(train.vectors, train.rows, np.random.default_rng(0).permutation(train.labels))
    assert linear_probe_scores(shuffled, None, clusters(300, seed=4))["audio"]["uar"] < 0.6
    assert linear_probe_scores(train, None, test)["audio"]["strength"] == 1.0


# The script ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    processor = tiny_processor()
    text = tiny_text_config()
    text.vocab_size = len(processor.tokenizer)
    torch.manual_seed(0)
    model = TriemoForPreTraining(tiny_config(text_config=text, audio_config=tiny_audio_config(num_mel_bins=80)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    write_table(folder / "data", train=12, validation=6, test=9)
    return folder


def arguments(place, **changes):
    options = {"model": place / "model", "table": place / "data" / "table.csv", "batch_size": 4, "use_cpu": "true"}
    return [part for name, value in (options | changes).items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def evaluated(place):
    result = main(arguments(place, output=place / "out"))
    assert json.loads((place / "out" / "pretraining_evaluation.json").read_text()) == json.loads(json.dumps(result))
    return result


def test_every_task_reports(evaluated):
    assert len(evaluated["retrieval"]) == 6 and evaluated["retrieval"]["text->audio"]["pairs"] == 9
    zero_shot = evaluated["zero_shot"]["table"]
    assert set(zero_shot) == {"text", "audio", "vision"}
    assert set(zero_shot["audio"]) == {"samples", "chance", *SENTENCES, "all"}
    assert set(evaluated["probe"]["table"]) >= {"text", "audio", "vision", "text+audio+vision"}
    # Every third training row lacks a modality, in turn.
    assert evaluated["probe"]["table"]["text+audio+vision"]["train_samples"] == 8
    words = evaluated["words"]["table"]
    assert words["tokens"] >= 9 and len({words["matching"], words["mismatched"], words["alone"]}) == 3


def test_figures_do_not_depend_on_how_rows_are_batched(place, evaluated):
    again = main(arguments(place, batch_size=9, tasks="retrieval,zero_shot,words"))
    for name in ("tokens", "matching", "alone"):  # whose voice is another's depends on the batch
        assert again["words"]["table"][name] == pytest.approx(evaluated["words"]["table"][name], abs=1e-4)
    for name in ("retrieval", "zero_shot"):
        for one, other in zip(leaves(evaluated[name]), leaves(again[name]), strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def leaves(values):
    return [leaf for value in values.values() for leaf in (leaves(value) if isinstance(value, dict) else [value])]


def test_a_checkpoint_of_any_head_is_scored_but_has_no_masked_words(place, tmp_path):
    TriemoModel.from_pretrained(place / "model").save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    result = main(arguments(place, model=tmp_path, tasks="zero_shot,words"))
    assert "words" not in result and result["zero_shot"]["table"]["text"]["samples"] == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": "retrieval,guess"}, "tasks: got 'retrieval,guess', expected some of retrieval, zero_shot"),
        ({"ks": "1,x"}, "ks: got '1,x'"),
        ({"corpora": "ravdess"}, "data: give one of --table and --corpora, got both"),
        ({"split": "dev"}, "split: got 'dev'"),
        ({"model": "nowhere/at-all"}, "model: cannot load nowhere/at-all"),
    ],
)
def test_what_is_refused(place, change, message):
    with pytest.raises(ValueError, match=message):
        main(arguments(place, **change))
