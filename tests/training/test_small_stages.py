"""The stages of `train_small.py` on tiny random towers and seeded made-up corpora."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizerFast, ResNetConfig, ResNetModel

from triemo.modeling import TriemoAudioConfig, TriemoAudioModel, TriemoForEmotionClassification
from triemo.training import small_joint, train_small
from triemo.training.composites import CompositeDataset, draw_composites
from triemo.training.label_maps import EMOTIONS
from triemo.training.pooled_classifier import PooledClassifier, average_checkpoints
from triemo.training.small_evaluate import save_half

WORDS = ["angry", "gross", "scared", "happy", "plain", "sad", "wow"]


def tiny_audio() -> TriemoAudioModel:
    config = TriemoAudioConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    return TriemoAudioModel(config)


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

    def __init__(self, data: str | None, split: str, calm: str = "neutral") -> None:
        classes = [row % 7 for row in range(14)]
        self.labels = {name: [[index] for index in classes] for name in ("text", "audio", "vision")}
        self.texts = [WORDS[index] for index in classes]
        self.clips = [torch.full((20 + 2 * row, 80), index / 7.0) for row, index in enumerate(classes)]
        self.pixels = torch.stack([torch.full((48, 48), 30 * index, dtype=torch.uint8) for index in classes])
        self.voice = Dataset.from_dict({"original_label": [EMOTIONS[index] for index in classes]})


@pytest.fixture
def collate(towers):
    return small_joint.TriModalCollator(
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
    assert counts.min() == 1 and counts.max() == small_joint.MAX_FRAMES
    assert (batch["video_times"].diff(dim=1) >= 0).all()
    assert (batch["pixel_values"][batch["video_attention_mask"] == 0] == 0).all()


def test_predictions_come_in_the_order_of_the_items(model, collate):
    items = draw_composites(collate.corpora.labels, per_class=2, seed=0)
    for item, name in zip(items, ["text", "audio", "vision"] * 5, strict=False):
        del item["rows"][name]
    alone = torch.cat([small_joint.predict_logits(model, collate, [item]) for item in items])
    assert torch.allclose(small_joint.predict_logits(model, collate, items, batch_size=5), alone, atol=1e-5)


def test_joint_stage_trains_resumes_and_leaves_the_towers_alone(towers, monkeypatch, tmp_path):
    monkeypatch.setattr(small_joint, "Corpora", MadeUpCorpora)
    args = train_small.SmallArguments(output=str(towers), joint_steps=3)
    torch.manual_seed(0)
    report = small_joint.train_joint(args)
    assert set(report["validation_composites"]) >= {"text", "audio+vision", "text+audio+vision"}
    trained = TriemoForEmotionClassification.from_pretrained(towers / "joint")
    for name, kind in (("audio", TriemoAudioModel), ("vision", ResNetModel)):
        before = kind.from_pretrained(towers / name).state_dict()
        after = trained.triemo.tower(name).encoder.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())
    assert trained.config.label_smoothing == 0
    resumed = small_joint.train_joint(args)
    assert resumed["validation_composites"] == report["validation_composites"]


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
    classifier = PooledClassifier(tiny_audio(), 7).eval()
    features, mask = torch.randn(1, 30, 80), torch.ones(1, 30, dtype=torch.long)
    padded = torch.nn.functional.pad(features, (0, 0, 0, 14))
    padded_mask = torch.nn.functional.pad(mask, (0, 14))
    alone = classifier(input_features=features, attention_mask=mask)["logits"]
    batched = classifier(input_features=padded, attention_mask=padded_mask)["logits"]
    assert torch.allclose(alone, batched, atol=1e-5)


def test_checkpoints_are_averaged_newest_first(tmp_path):
    for step, value in ((9, 100.0), (10, 1.0), (11, 3.0)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file({"w": torch.full((2,), value)}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
    assert average_checkpoints(tmp_path, 2)["w"].tolist() == [2, 2]
    with pytest.raises(ValueError, match="got no checkpoint"):
        average_checkpoints(tmp_path / "empty", 2)


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


def test_stage_reports_are_written_and_not_repeated(tmp_path, monkeypatch):
    calls = []

    def stage(name: str) -> SimpleNamespace:
        def train(args) -> dict:
            calls.append(name.rsplit("_", 1)[1])
            return {"minutes": 1.0}

        return SimpleNamespace(**{f"train_{name.rsplit('_', 1)[1]}": train})

    monkeypatch.setattr(train_small, "import_module", stage)
    options = ["--output", str(tmp_path), "--seed", "5", "--threads", str(torch.get_num_threads())]
    train_small.main(["--stage", "text", *options])
    assert json.loads((tmp_path / "text.json").read_text())["seed"] == 5
    train_small.main(["--stage", "all", *options])
    assert calls == ["text", "vision", "audio", "joint", "evaluate"]
    with pytest.raises(ValueError, match="stage: got 'speech'"):
        train_small.main(["--stage", "speech", *options])


def test_local_encoder_folder_wins_over_the_hub_id(tmp_path):
    (tmp_path / "whisper-tiny.en-encoder").mkdir()
    args = train_small.SmallArguments(weights=str(tmp_path))
    assert args.encoder("openai/whisper-tiny.en") == str(tmp_path / "whisper-tiny.en-encoder")
    assert args.encoder("roberta-base") == "roberta-base"
