"""The pieces of fine-tuning by themselves: arguments, order of rows, heads, adapters, rates, folders."""

import json
from collections import Counter

import pytest
import torch
from datasets import Dataset
from tiny_checkpoint import LABELS, tiny_classifier
from torch import nn

from triemo.training.arguments import DataArguments, ModelArguments, parse_arguments
from triemo.training.data.sampling import MAX_COPIES, CompositeRows, EmotionRows, MixtureSampler
from triemo.training.sources import (
    class_counts,
    infer_problem,
    load_splits,
    parse_column_map,
    parse_corpora,
    parse_corpus_options,
)
from triemo.training.start import add_lora, class_weights, fit_head, freeze, parameter_groups

# Arguments ---------------------------------------------------------------------------------------------------


def test_the_command_line_overrides_yaml_and_yaml_the_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("corpora: {meld: 1, goemotions: 0.5}\nlearning_rate: 3e-5\nlora: true\nfreeze_towers: [audio]\n")
    common = ["--config", str(file), "--output_dir", str(tmp_path), "--use_cpu"]
    model, data, training = parse_arguments([*common, "--learning_rate", "1e-3", "--lora", "false"])
    assert parse_corpora(data.corpora) == {"meld": 1.0, "goemotions": 0.5}
    assert (training.learning_rate, model.lora, model.freeze_towers) == (1e-3, False, "audio")
    assert parse_arguments(common)[2].learning_rate == 3e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir", "x"], "got neither"),
        (["--output_dir", "x", "--table", "a.csv", "--corpora", "meld"], "got both"),
        (["--table", "a.csv"], "output_dir"),
        (["--output_dir", "x", "--table", "a.csv", "--streaming"], "max_steps"),
        (["--output_dir", "x", "--table", "a.csv", "--layerwise_lr_decay", "1.5"], "layerwise_lr_decay: got 1.5"),
    ],
)
def test_arguments_that_contradict_each_other(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*arguments, "--use_cpu"])


def test_yaml_keys_that_are_no_arguments(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rat: 1\n")
    with pytest.raises(ValueError, match="learning_rat"):
        parse_arguments(["--config", str(tmp_path / "run.yaml")])


def test_column_maps_in_both_spellings():
    expected = {"text": "Utterance", "label": "Emotion"}
    assert parse_column_map("text=Utterance,label=Emotion") == parse_column_map(json.dumps(expected)) == expected
    with pytest.raises(ValueError, match="column_map"):
        parse_column_map("text")


# Order -------------------------------------------------------------------------------------------------------


def test_an_epoch_draws_weight_times_rows_and_others_in_the_next():
    sampler = MixtureSampler([10, 4, 8], [0.5, 2.0, 1.25], seed=1, lengths=None, batch_size=4)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert list(sampler) == epochs[-1]  # the same however often it is asked, as after a resume
        rows = Counter(ticket % 22 for ticket in epochs[-1])
        assert sum(rows[row] for row in range(10)) == 5 and max(rows[row] for row in range(10)) == 1
        assert [rows[row] for row in range(10, 14)] == [2] * 4
        assert sum(rows[row] for row in range(14, 22)) == 10 and min(rows[row] for row in range(14, 22)) == 1
        assert len(epochs[-1]) == len(sampler) == 23
        assert all(ticket // 22 // MAX_COPIES == epoch for ticket in epochs[-1])
    assert len({*epochs[0], *epochs[1]}) == 46  # no draw has the ticket of another
    assert [ticket % 22 for ticket in epochs[0]] != [ticket % 22 for ticket in epochs[1]]


def test_batches_hold_rows_of_like_length():
    lengths = [number % 7 * 100 for number in range(70)]
    sampler = MixtureSampler([70], [1.0], seed=0, lengths=lengths, batch_size=5)
    order = [lengths[ticket % 70] for ticket in sampler]
    spread = [max(order[i : i + 5]) - min(order[i : i + 5]) for i in range(0, 70, 5)]
    assert sorted(ticket % 70 for ticket in sampler) == list(range(70))
    assert sum(spread) / len(spread) < 250  # in random batches about 450


def test_broken_rows_are_replaced_up_to_the_share_and_the_ticket_reaches_the_row():
    data = Dataset.from_list([{"text": str(number), "row": f"t:{number}"} for number in range(10)])

    def prepare(row):
        if row["text"] == "3":
            raise ValueError("unreadable")
        return row

    rows = EmotionRows([data], prepare, max_broken_share=0.2)
    items = [rows[20 + number] for number in range(10)]
    assert [item["ticket"] for item in items] == list(range(20, 30))
    assert items[3]["text"] != "3" and rows[23]["text"] == items[3]["text"]
    with pytest.raises(ValueError, match="t:3"):
        EmotionRows([data], prepare, max_broken_share=0.0)[3]


def test_composites_join_rows_of_one_emotion():
    texts = Dataset.from_list([{"text": f"{label} words", "label": label} for label in LABELS])
    sounds = Dataset.from_list([{"audio": {"path": f"{label}.wav"}, "label": label} for label in LABELS])
    faces = Dataset.from_list([{"image": {"path": f"{label}.png"}, "label": label} for label in LABELS])
    parts = {"a": (texts, 1.0), "b": (sounds, 1.0), "c": (faces, 1.0)}
    rows = EmotionRows([CompositeRows(parts, 30, seed=0)])
    seen = set()
    for ticket in range(30):
        row = rows[ticket]
        sources = [row.get("text"), (row.get("audio") or {}).get("path"), (row.get("image") or {}).get("path")]
        assert all(source.startswith(row["label"]) for source in sources if source)
        seen.add(sum(source is not None for source in sources))
    assert seen == {1, 2, 3}
    assert {key: value for key, value in rows[3].items() if key != "ticket"} != rows[33]  # drawn anew each epoch


def test_a_composite_of_several_faces_and_sentences_of_one_emotion():
    """Two of each emotion: both are drawn, the same ones again, and the first is the one that stands alone."""
    texts = [{"text": f"{label}_{number}", "label": label} for label in LABELS for number in range(2)]
    sounds = Dataset.from_list([{"audio": {"path": f"{label}.wav"}, "label": label} for label in LABELS])
    faces = [{"image": {"path": f"{label}_{number}"}, "label": label} for label in LABELS for number in range(2)]
    parts = {"a": (Dataset.from_list(texts), 1.0), "b": (sounds, 1.0), "c": (Dataset.from_list(faces), 1.0)}
    one, several = CompositeRows(parts, 60, seed=0), CompositeRows(parts, 60, seed=0, faces=3, sentences=2)
    seen = set()
    for ticket in range(60):
        row, still = several.draw(ticket), one.draw(ticket)
        assert row == several.draw(ticket) and row["label"] == still["label"]
        if len({"text", "audio", "image"} & set(still)) == 1:
            assert row == still
            continue
        names = row["text"].split() if "text" in still else []
        frames = [frame["path"] for frame in row["video"]] if "image" in still else []
        assert "image" not in row and row.get("audio") == still.get("audio")
        assert names[:1] == ([still["text"]] if "text" in still else [])
        assert frames[:1] == ([still["image"]["path"]] if "image" in still else [])
        assert len(names) in (0, 2) and len(frames) in (0, 3)
        assert {name.partition("_")[0] for name in names + frames} <= {row["label"]}
        seen |= {("text", len(set(names))), ("image", len(set(frames)))}
    assert seen == {("text", number) for number in (0, 1, 2)} | {("image", number) for number in (0, 1, 2)}


# Labels and head ---------------------------------------------------------------------------------------------


def parts_of(*labels):
    return {"a": (Dataset.from_dict({"label": list(labels)}), 1.0)}


def test_the_problem_is_read_off_the_labels():
    assert infer_problem(parts_of("joy", "anger")) == ("single_label_classification", False, ["anger", "joy"])
    assert infer_problem(parts_of(["joy"], ["joy", "fear"]))[0] == "multi_label_classification"
    mixed = {**parts_of("joy"), "b": (Dataset.from_dict({"label": [["joy", "fear"]]}), 1.0)}
    assert infer_problem(mixed) == ("single_label_classification", True, ["fear", "joy"])
    assert infer_problem(parts_of(0.5, 1.0)) == ("regression", False, ["target_0"])
    assert infer_problem(parts_of([0.5, 1.0]))[2] == ["target_0", "target_1"]
    with pytest.raises(ValueError, match="expected one kind"):
        infer_problem({**parts_of("joy"), "b": (Dataset.from_dict({"label": [0.5]}), 1.0)})


def test_the_head_stays_where_it_fits_and_is_made_anew_where_not(caplog):
    model = tiny_classifier()
    before = model.classifier.out_proj.weight.clone()
    assert not fit_head(model, "single_label_classification", ["anger", "joy"], None)
    assert torch.equal(model.classifier.out_proj.weight, before)
    assert fit_head(model, "single_label_classification", ["calm", "joy"], None)
    assert model.classifier.out_proj.weight.shape == (2, 32) and model.config.id2label == {0: "calm", 1: "joy"}
    assert "The head is made anew for calm, joy" in caplog.text
    assert model(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([1])).logits.shape == (1, 2)
    with pytest.raises(ValueError, match="got calm in the data, expected some of joy, fear"):
        fit_head(tiny_classifier(), "single_label_classification", ["calm", "joy"], ["joy", "fear"])


def test_class_weights():
    counts = {"a": 3.0, "b": 1.0, "c": 0.0}
    assert class_weights("none", counts) is None
    assert class_weights("balanced", counts) == [pytest.approx(2 / 3, abs=1e-6), 2.0, 1.0]
    assert class_weights("balanced:0.5", counts) == [pytest.approx((2 / 3) ** 0.5, abs=1e-6), round(2**0.5, 6), 1.0]
    assert class_weights("1,2,0.5", counts) == [1.0, 2.0, 0.5]
    with pytest.raises(ValueError, match="class_weights: got 'balanced:much', expected balanced or such as"):
        class_weights("balanced:much", counts)
    with pytest.raises(ValueError, match="expected 3 numbers"):
        class_weights("1,2", counts)


def test_class_counts_share_a_row_of_several_classes():
    several = {"a": (Dataset.from_dict({"label": [["joy", "fear"], ["joy"]]}), 2.0)}
    assert class_counts(several, ["fear", "joy", "anger"]) == {"fear": 1.0, "joy": 3.0, "anger": 0.0}


# What learns -------------------------------------------------------------------------------------------------


def test_lora_trains_adapters_of_every_tower_and_the_head_alone():
    wrapped = add_lora(tiny_classifier(), ModelArguments(lora_r=2))
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    for place in ("text_tower", "audio_tower", "vision_tower", "triemo.layers", "fusion"):
        assert any(place in name and "lora_A" in name for name in trained), place
    assert all("lora_" in name or "classifier.modules_to_save.default." in name for name in trained)
    assert not any("lora_" in name and "classifier" in name for name in trained)

    frozen = add_lora(tiny_classifier(), ModelArguments(), frozen=("audio", "vision"))
    names = [name for name, parameter in frozen.named_parameters() if parameter.requires_grad]
    assert any("text_tower" in name for name in names) and not any("audio_tower" in name for name in names)
    with pytest.raises(ValueError, match="matches no layer of the vision tower"):
        add_lora(tiny_classifier(), ModelArguments(lora_targets=r"triemo\..*_proj|.*\.query"))


def test_layerwise_rates_fall_towards_the_bottom_and_take_every_parameter_once():
    model = tiny_classifier()
    names = dict(model.named_parameters())
    groups = parameter_groups(model, 1.0, 0.1, 0.5, {name for name in names if name.endswith("weight")})
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rate) == len(names)
    tower = "triemo.text_tower.encoder.encoder.layer.{}.attention.self.query.weight"
    assert rate[id(names[tower.format(1)])] == 0.5 and rate[id(names[tower.format(0)])] == 0.25
    assert rate[id(names["triemo.text_tower.encoder.embeddings.word_embeddings.weight"])] == 0.125
    assert rate[id(names["triemo.audio_tower.encoder.conv1.weight"])] == 0.125
    assert rate[id(names["triemo.audio_tower.encoder.layer_norm.weight"])] == 0.5
    assert rate[id(names["classifier.dense.weight"])] == rate[id(names["triemo.layers.0.fc1.weight"])] == 1.0
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert id(names["classifier.dense.weight"]) in decayed and id(names["classifier.dense.bias"]) not in decayed


def test_a_part_with_a_rate_of_its_own_keeps_the_steps_between_its_layers():
    model = tiny_classifier()
    names = dict(model.named_parameters())
    groups = parameter_groups(model, 1.0, 0.1, 0.5, set(names), {"text_tower": 0.1, "audio_projection": 0.2})
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rate) == len(names)
    tower = "triemo.text_tower.encoder.encoder.layer.{}.attention.self.query.weight"
    assert [rate[id(names[tower.format(layer)])] for layer in (1, 0)] == pytest.approx([0.05, 0.025])
    assert rate[id(names["triemo.audio_tower.encoder.conv1.weight"])] == 0.125
    assert rate[id(names["triemo.text_projection.weight"])] == 1.0
    assert rate[id(names["triemo.audio_projection.weight"])] == 0.2


def test_frozen_towers_and_batch_norms_stay_still():
    model = tiny_classifier()
    still = freeze(model, ["text"])
    assert not any(parameter.requires_grad for parameter in model.triemo.text_tower.parameters())
    assert any(parameter.requires_grad for parameter in model.triemo.vision_tower.parameters())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(norm in still for norm in norms)


def test_options_reach_the_corpus(data_root):
    options = '{"ravdess": {"calm": "drop", "fold": 4}}'
    args = DataArguments(corpora="ravdess", data=str(data_root), classes="own", corpus_options=options)
    splits = load_splits(args)
    rows = splits["test"]["ravdess"][0]
    assert set(rows["speaker"]) == {"1", "4", "9", "22"} and "calm" not in set(rows["label"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("{calm: drop}", "which is no JSON"),
        ('{"ravdess": "drop"}', "expected a mapping such as"),
        ('{"meld": {"clips": false}}', "got .'meld'., expected some of the corpora ravdess"),
    ],
)
def test_wrong_options_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_corpus_options(text, ["ravdess"])
