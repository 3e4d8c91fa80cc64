"""The stages of `release.py` on tiny random towers and seeded made-up corpora."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    ResNetConfig,
    ResNetModel,
    TrainingArguments,
)

from triemo.modeling import TriemoAudioConfig, TriemoAudioModel, TriemoForEmotionClassification, TriemoForPreTraining
from triemo.training.corpora.labels import EMOTIONS, label2id
from triemo.training.data.composites import CompositeDataset, draw_composites
from triemo.training.recipes import audio as release_audio
from triemo.training.recipes import joint as release_joint
from triemo.training.recipes import measure, pretrain_joint, release
from triemo.training.recipes.benchmarks import train_benchmarks
from triemo.training.recipes.measure import Measured, calibrate, save_half
from triemo.training.recipes.pretrain_joint import MaskedCollator, add_spoken_sentences
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.text import PooledClassifier, text_scores
from triemo.training.recipes.voice import voice_logits

WORDS = ["angry", "gross", "scared", "happy", "plain", "sad", "wow"]


def tiny_audio() -> TriemoAudioModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return TriemoAudioModel(TriemoAudioConfig(**sizes, statistics_size=8))


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A run's folder with the three towers and the tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(vocabulary)).save_pretrained(folder / "text")
    bert = BertConfig(vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(bert, add_pooling_layer=False).save_pretrained(folder / "text")
    tiny_audio().save_pretrained(folder / "audio")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    ResNetModel(ResNetConfig(num_channels=1, layer_type="basic", **sizes)).save_pretrained(folder / "vision")
    return folder


class MadeUpCorpora:
    """14 rows a modality; word, loudness and brightness tell the class."""

    def __init__(self, data: str | None, split: str, text_corpora: tuple[str, ...] = ("a", "b")) -> None:
        self.text_rows = {"a": (0, 8), "b": (8, 14)}
        classes = [row % 7 for row in range(14)]
        self.labels = {name: [[index] for index in classes] for name in ("text", "audio", "vision")}
        self.texts = [WORDS[index] for index in classes]
        self.clips = [torch.full((20 + 2 * row, 80), index / 7.0) for row, index in enumerate(classes)]
        self.pixels = torch.stack([torch.full((48, 48), 30 * index, dtype=torch.uint8) for index in classes])
        self.voice = Dataset.from_dict({"original_label": [EMOTIONS[index] for index in classes]})


@pytest.fixture
def collate(towers):
    return release_joint.TriModalCollator(
        MadeUpCorpora(None, "test"), AutoTokenizer.from_pretrained(towers / "text"), False
    )


@pytest.fixture
def model(towers):
    torch.manual_seed(0)
    names = {name: str(towers / name) for name in ("text", "audio", "vision")}
    return TriemoForEmotionClassification.from_encoders_pretrained(
        **names, hidden_size=16, intermediate_size=32, num_labels=7, projection_dim=8, num_attention_heads=2
    )


def test_absent_modalities_are_masked(collate):
    items = [
        {"rows": {"text": 3}, "label": np.eye(7, dtype=np.float32)[3]},
        {"rows": {"audio": 1, "vision": 1}, "label": np.eye(7, dtype=np.float32)[1]},
    ]
    batch = collate(items)
    assert batch["attention_mask"].any(1).tolist() == [True, False]
    assert batch["audio_attention_mask"].sum(1).tolist() == [0, 22]
    assert batch["video_attention_mask"].tolist() == [[0], [1]]
    assert batch["pixel_values"].shape == (2, 1, 1, 96, 96)
    assert "pixel_values" not in collate(items[:1])


def test_augmented_faces_become_clips_with_rising_times(collate):
    collate.augment = True
    batch = collate([{"rows": {"vision": row % 14}, "label": np.zeros(7, np.float32)} for row in range(40)])
    counts = batch["video_attention_mask"].sum(1)
    assert counts.min() == 1 and counts.max() == release_joint.MAX_FRAMES
    assert (batch["video_times"].diff(dim=1) >= 0).all()
    assert (batch["pixel_values"][batch["video_attention_mask"] == 0] == 0).all()


def test_predictions_come_in_the_order_of_the_items(model, collate):
    items = draw_composites(collate.corpora.labels, per_class=2, seed=0)
    for item, name in zip(items, ["text", "audio", "vision"] * 5, strict=False):
        del item["rows"][name]
    alone = torch.cat([release_joint.predict_logits(model, collate, [item]) for item in items])
    assert torch.allclose(release_joint.predict_logits(model, collate, items, batch_size=5), alone, atol=1e-5)


def test_joint_stage_trains_resumes_and_leaves_the_towers_alone(towers, monkeypatch):
    monkeypatch.setattr(release_joint, "Corpora", MadeUpCorpora)
    run = ReleaseRun(output=str(towers), seed=0)
    settings = {"text_corpora": ["a", "b"], "steps": 3, "batch_size": 12, "learning_rate": 1e-3, "balance": 1.0}
    settings |= {"label_smoothing": 0.0, "calm_weight": 0.5}
    settings |= {name: name for name in ("text", "audio", "vision")}
    report = release_joint.train_joint(run, "joint", **settings)
    assert set(report["validation_composites"]) >= {"text", "audio+vision", "text+audio+vision"}
    trained = TriemoForEmotionClassification.from_pretrained(towers / "joint")
    for name, kind in (("audio", TriemoAudioModel), ("vision", ResNetModel)):
        before = kind.from_pretrained(towers / name).state_dict()
        after = trained.triemo.tower(name).encoder.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())
    resumed = release_joint.train_joint(run, "joint", **settings)
    assert resumed["validation_composites"] == report["validation_composites"]


def test_a_frozen_tower_hears_each_clip_once():
    """And a clip of another length, or with other padding beside it, is what it is."""
    torch.manual_seed(0)
    tower, plain = tiny_audio().eval(), []
    states = tower.forward
    features, mask = torch.randn(3, 12, 80), torch.ones(3, 12, dtype=torch.long)
    mask[1, 7:] = 0
    wanted = tower(input_features=features, attention_mask=mask).last_hidden_state

    def counted(**given):
        plain.append(len(given["input_features"]))
        return states(**given)

    tower.forward = counted
    release_joint.remember_states(tower)
    first = tower(input_features=features, attention_mask=mask).last_hidden_state
    again = tower(input_features=features[1:2, :9], attention_mask=mask[1:2, :9]).last_hidden_state
    other = tower(input_features=features[1:2, :9], attention_mask=torch.ones(1, 9, dtype=torch.long))
    assert plain == [3, 1] and other.last_hidden_state.shape == (1, 5, 16)
    assert torch.allclose(first[0], wanted[0], atol=2e-3) and torch.allclose(first[1, :4], wanted[1, :4], atol=2e-3)
    assert again.shape == (1, 5, 16) and torch.equal(again[0, :4], first[1, :4])


class SpokenCorpora(MadeUpCorpora):
    """The made-up corpora as those of many voices: every clip but the last says one of two sentences."""

    def __init__(self, run, split, text_corpora, voice_check, face_corpora) -> None:
        super().__init__(run.data, split)
        self.voices = [SimpleNamespace(path=str(row)) for row in range(14)]
        self.frames, self.pairs = {}, [{"audio": 13, "vision": 13}]


def test_pretraining_hides_no_sentence_said_by_heart(towers):
    corpora = SpokenCorpora(ReleaseRun(), "train", [], "", [])
    pairs = add_spoken_sentences(corpora, {str(row): ("happy sad", "angry wow")[row % 2] for row in range(13)})
    assert corpora.texts[14:] == ["angry wow", "happy sad"] and len(corpora.labels["text"]) == 14
    assert pairs[:2] == [{"audio": 0, "text": 15}, {"audio": 1, "text": 14}] and len(pairs) == 13
    tokenizer = AutoTokenizer.from_pretrained(towers / "text")
    collate = MaskedCollator(corpora, tokenizer, 14, probability=1.0)
    label = np.eye(7, dtype=np.float32)
    batch = collate([
        {"rows": pairs[0], "label": label[0]},
        {"rows": {"text": 3}, "label": label[3]},
        {"rows": {"vision": 2}, "label": (label[0] + label[2]) / 2},
    ])  # fmt: skip
    assert batch["labels"].tolist() == [8, 3, -100]  # the second sentence, a class, two classes at once
    assert batch["mlm_labels"][0].eq(-100).all() and batch["mlm_labels"][1].ne(-100).sum() == 1
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "happy sad"


def test_joint_stage_goes_on_from_pretraining(towers, monkeypatch):
    rows = {"row": [str(row) for row in range(13)], "sentence": ["happy sad", "angry wow"] * 6 + ["wow"]}
    monkeypatch.setattr(pretrain_joint, "AllCorpora", SpokenCorpora)
    monkeypatch.setattr(pretrain_joint, "load_corpus", lambda name, root: {"train": rows})
    monkeypatch.setattr(release_joint, "Corpora", MadeUpCorpora)
    run, names = ReleaseRun(output=str(towers), seed=0), {name: name for name in ("text", "audio", "vision")}
    settings = {"text_corpora": ["a"], "voice_check": "v", "face_corpora": ["raf_db"], "spoken_corpora": ["ravdess"]}
    settings |= {"steps": 2, "batch_size": 16, "learning_rate": 1e-3}
    report = pretrain_joint.train_pretraining(run, "pretrained", **names, **settings)
    assert report["pairs"] == {"spoken": 13, "films": 1}
    before = TriemoForPreTraining.from_pretrained(towers / "pretrained").triemo.state_dict()
    settings = {"steps": 1, "batch_size": 12, "learning_rate": 0.0, "balance": 1.0, "label_smoothing": 0.0}
    release_joint.train_joint(
        run, "after", **names, **settings, text_corpora=["a", "b"], calm_weight=None, start="pretrained"
    )
    after = TriemoForEmotionClassification.from_pretrained(towers / "after").triemo.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_training_lowers_the_loss(model, collate):
    data = CompositeDataset(collate.corpora.labels, 64, seed=0)
    batch = collate([data[index] for index in range(64)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    losses = []
    for _ in range(25):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(np.log(7), rel=0.25)
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2


def test_pooled_classifier_ignores_padding():
    torch.manual_seed(0)
    bert = BertConfig(vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    classifier = PooledClassifier(BertModel(bert, add_pooling_layer=False), 7).eval()
    ids, mask = torch.randint(5, 12, (1, 6)), torch.ones(1, 6, dtype=torch.long)
    padded, padded_mask = (torch.nn.functional.pad(values, (0, 3)) for values in (ids, mask))
    alone = classifier(input_ids=ids, attention_mask=mask)["logits"]
    assert torch.allclose(alone, classifier(input_ids=padded, attention_mask=padded_mask)["logits"], atol=1e-5)


def test_calm_adds_to_neutral():
    logits = torch.tensor([[0.5, 0.25, 0.05, 0.05, 0.05, 0.04, 0.03, 0.03]]).log()  # in the order of RAVDESS
    expected = {"neutral": 0.75, "joy": 0.05, "sadness": 0.05, "anger": 0.05, "fear": 0.04, "disgust": 0.03}
    seven = dict(zip(EMOTIONS, release_audio.seven_classes(logits)[0].tolist(), strict=True))
    assert seven == pytest.approx({**expected, "surprise": 0.03})
    half = release_audio.seven_classes(logits, calm_weight=0.5)[0]
    assert half.sum() == pytest.approx(1)
    assert half[label2id["neutral"]] == pytest.approx(0.625 / 0.875)


def test_the_statistics_teach_the_voice_alone(model, collate, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = release_joint.FrozenTowerTrainer(model, arguments, calm_weight=0.5)
    subsets = ({"audio": 3}, {"text": 1, "audio": 2}, {"vision": 4}, {"audio": 5})
    batch = collate([{"rows": rows, "label": np.eye(7, dtype=np.float32)[0]} for rows in subsets])
    labels = batch.pop("labels")
    taught = trainer.taught(labels, batch, model)
    assert torch.equal(taught[1:3], labels[1:3])
    for row in (0, 3):
        clip = collate.corpora.clips[subsets[row]["audio"]]
        logits = voice_logits(model.triemo.audio_tower.encoder, clip[None], torch.ones(1, len(clip), dtype=torch.long))
        assert torch.allclose(taught[row], release_audio.seven_classes(logits, 0.5)[0], atol=1e-4)
    no_voice = collate([{"rows": {"text": 1}, "label": np.eye(7, dtype=np.float32)[0]}])
    assert trainer.taught(no_voice["labels"], no_voice, model) is no_voice["labels"]


def test_each_text_corpus_is_scored_by_its_own_protocol():
    targets = np.zeros((4, 7))
    targets[0, [0, 1]], targets[1, 2], targets[2, 3], targets[3, 4] = 0.5, 1, 1, 1
    logits = np.full((4, 7), -9.0)
    logits[0, [0, 1]], logits[1, 0], logits[2, 3], logits[3, 5] = 9, 9, 9, 9
    scores = text_scores(logits, targets, {"several": 2, "one": 2})
    # The first class is right once and wrong once, the second right, the third missed; the others do not occur.
    several = (2 / 3 + 1 + 0) / 3
    assert scores["several_macro_f1"] == pytest.approx(several)
    assert scores["one_weighted_f1"] == pytest.approx(0.5)
    assert scores["score"] == pytest.approx((several + 0.5) / 2)


def test_each_subset_gets_its_own_temperature(model, towers):
    corpora = MadeUpCorpora(None, "validation")
    measured = Measured(model, corpora, AutoTokenizer.from_pretrained(towers / "text"))
    sharp = torch.eye(7).repeat(20, 1)
    items = [{"rows": {"audio": row}, "label": np.eye(7)[row % 7]} for row in range(140)]
    for name in ("text", "audio", "vision"):
        measured.logits[name], measured.targets[name] = sharp.numpy(), sharp.numpy() > 0
    measured.text_rows = {"a": (0, 70), "b": (70, 140)}
    wrong = sharp.roll(1, dims=1) * 8
    speakers = [str(row % 10) for row in range(140)]
    found = calibrate(measured, {"text+audio": sharp, "audio+vision": wrong}, items, speakers)
    assert set(found) == {"text", "audio", "vision", "text+audio", "audio+vision"}
    assert found["text"] == found["text+audio"] == 0.25  # always right: as sure as is allowed
    assert found["audio+vision"] == 10.0  # always wrong and sure: as unsure as is allowed


def test_release_is_half_on_disk_and_single_when_loaded(model, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_half(model, tmp_path / "release")
    assert not (tmp_path / "release.part").exists()
    with safe_open(tmp_path / "release" / "model.safetensors", "pt") as file:
        stored = {file.get_tensor(name).dtype for name in file.keys() if "num_batches" not in name}
    assert stored == {torch.float16}
    loaded = TriemoForEmotionClassification.from_pretrained(tmp_path / "release")
    assert {value.dtype for value in loaded.state_dict().values() if value.is_floating_point()} == {torch.float32}
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, before[name].half().float() if value.is_floating_point() else before[name])


def test_release_of_many_parts_leaves_none_of_another(model, tmp_path, monkeypatch):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_half(model, tmp_path)
    monkeypatch.setattr(measure, "SHARD", "20KB")
    save_half(model.float(), tmp_path)
    parts = sorted(path.name for path in tmp_path.glob("model*.safetensors"))
    assert len(parts) > 1 and "model.safetensors" not in parts
    loaded = TriemoForEmotionClassification.from_pretrained(tmp_path).state_dict()
    kept = {name: value for name, value in before.items() if value.is_floating_point()}
    assert all(torch.equal(loaded[name], value.half().float()) for name, value in kept.items())
    monkeypatch.setattr(measure, "SHARD", "90MB")
    save_half(model.float(), tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


def test_stage_reports_are_written_and_not_repeated(tmp_path, monkeypatch):
    calls = []

    def train(run, stage_name, *, epochs: int = 1) -> dict:
        calls.append((stage_name, epochs, run.seed))
        return {}

    monkeypatch.setattr(release, "KINDS", dict.fromkeys(release.KINDS, train))
    config = tmp_path / "stages.yaml"
    config.write_text(
        "seed: 5\nstages: [{name: face, kind: vision, epochs: 3}, {name: words, kind: text}, "
        "{name: end, kind: evaluate}]"
    )
    options = ["--config", str(config), "--output", str(tmp_path), "--threads", str(torch.get_num_threads())]
    release.main(["--stage", "words", *options])
    report = json.loads((tmp_path / "words.json").read_text())
    assert report["seed"] == 5 and report["minutes"] >= 0
    release.main(["--seed", "6", *options])
    assert calls == [("words", 1, 5), ("face", 3, 6), ("end", 1, 6)]
    with pytest.raises(ValueError, match="stage: got 'speech', expected one of face, words, end, all"):
        release.main(["--stage", "speech", *options])
    config.write_text("seed: 5\nstages: [{name: face, kind: vision, speed: 3}]")
    with pytest.raises(ValueError, match="stage face: .*unexpected keyword argument 'speed'"):
        release.main(options)
    config.write_text("seed: 5\nstages: [{name: face, kind: smell}]")
    with pytest.raises(ValueError, match="face.kind: got 'smell'"):
        release.main(options)


def test_the_release_config_is_what_the_stages_take():
    seed, stages = release.read_stages(ReleaseRun().config)
    assert seed == 0 and list(stages)[-2:] == ["evaluate", "benchmarks"]


def test_benchmarks_that_were_run_stand_in_the_metrics(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"figures": {"a": 1}, "gone": {"old": 1}}))
    (tmp_path / "folds.json").write_text('{"accuracy": 0.5}')
    files = {"folds": {"eight": str(tmp_path / "folds.json")}, "gone": {"never": str(tmp_path / "never.json")}}
    how = {"folds": "five of them", "gone": "not at all"}
    train_benchmarks(ReleaseRun(checkpoint=str(tmp_path)), "benchmarks", files=files, protocols=how)
    expected = {"figures": {"a": 1}, "folds": {"eight": {"accuracy": 0.5}}, "protocols": {"folds": "five of them"}}
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected


def test_local_encoder_folder_wins_over_the_hub_id(tmp_path):
    (tmp_path / "whisper-tiny.en-encoder").mkdir()
    run = ReleaseRun(weights=str(tmp_path))
    assert run.encoder("openai/whisper-tiny.en") == str(tmp_path / "whisper-tiny.en-encoder")
    assert run.encoder("roberta-base") == "roberta-base"
