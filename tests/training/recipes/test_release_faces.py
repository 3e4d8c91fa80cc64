"""The stage of the face tower on made-up corpora in the official layouts."""

import hashlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ResNetModel

from triemo.processing import TriemoImageProcessor
from triemo.training.recipes import faces
from triemo.training.recipes.faces import AveragedClassifiers, FaceClassifiers, FaceCorpora, face_scores
from triemo.training.recipes.stages import ReleaseRun

TINY = {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
JOY = [0, 9, 0, 0, 0, 0, 0, 0, 0, 1]
TIE = [0, 0, 5, 0, 0, 0, 5, 0, 0, 0]


def png(level: int, side: int, mode: str = "L") -> dict:
    file = io.BytesIO()
    pixels = np.random.default_rng(level).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def face_table(images: list[dict], labels: list[str], **columns: list) -> dict[str, list]:
    hashes = [hashlib.sha1(image["bytes"]).hexdigest() for image in images]
    return {"image": images, "label": labels, "pixel_hash": hashes, **columns}


class Rows(dict):
    """Columns with as many rows as their labels."""

    def __len__(self) -> int:
        return len(self["label"])


@pytest.fixture
def corpora(monkeypatch):
    """Twelve faces a split of either corpus, in place of the registry's."""
    fer_names = ["anger", "joy", "fear", "neutral"] * 3
    own_names = ["angry", "happy", "fear", "neutral"] * 3
    votes = [JOY, TIE] * 6
    fer, plus, raf = {}, {}, {}
    for place, split in enumerate(("train", "validation", "test")):
        small = [png(100 * place + row, 48) for row in range(12)]
        large = [png(1000 + 100 * place + row, 100, "RGB") for row in range(12)]
        fer[split] = Rows(face_table(small, fer_names))
        plus[split] = Rows(face_table(small, fer_names, own_label=own_names, votes=votes))
        raf[split] = Rows(face_table(large, ["joy"] * 8 + ["disgust"] * 2 + ["sadness"] * 2))
    found = {"fer2013": fer, "ferplus": plus, "raf_db": raf}
    monkeypatch.setattr(faces, "load_corpus", lambda name, root, **options: found[name])
    monkeypatch.setattr(faces, "read_ferplus_votes", lambda root, rows: {s: np.array(votes) for s in rows})
    monkeypatch.setattr(faces, "RESNET", TINY)
    return found


def test_targets_and_views(corpora):
    """Votes as probabilities, smoothed labels, nothing of FER2013's for RAF-DB; rarer classes come more often."""
    data = FaceCorpora(corpora["ferplus"]["train"], corpora["raf_db"]["train"], 32, 2.0, 0.5, 0.07)
    assert data.pixels.shape == (24, 32, 32) and data.pixels.dtype == torch.uint8
    assert data.targets[0, :7].tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert data.targets[1, :7].tolist() == [0, 0, 0.5, 0, 0, 0, 0.5]
    assert data.targets[0, 7:].tolist() == pytest.approx([0.94, *[0.01] * 6])
    assert data.targets[12, :7].tolist() == pytest.approx([0.01, 0.01, 0.01, 0.94, 0.01, 0.01, 0.01])
    assert (data.targets[12:, 7:] == 0).all()
    assert data.tight.tolist() == [False] * 12 + [True] * 12
    assert data.views[:2].tolist() == [1, 3]  # half of the second face's votes are for fear
    assert data.views[12:].sum() == pytest.approx(24)
    assert data.views[20] / data.views[12] == pytest.approx(2)  # two against eight, to the power of a half


def test_held_out_faces_are_what_the_processor_makes_of_them(corpora):
    votes = {"test": np.array([JOY, TIE] * 6)}
    held = faces.held_out_faces(corpora["fer2013"], votes, corpora["raf_db"], "test")
    assert held.labels[0].tolist() == [0, 3, -1] and held.labels[12:14].tolist() == [[1, 3, 0], [1, -1, 3]]
    picture = Image.open(io.BytesIO(corpora["raf_db"]["test"]["image"][3]["bytes"]))
    alone = TriemoImageProcessor(do_detect_faces=False)(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(held.pixel_values[3], alone[0, 0])


def test_scores_of_each_protocol():
    labels = np.array([[0, 3, -1], [0, 5, -1], [1, 3, 0], [1, -1, 4]])
    logits = np.zeros((4, 14))
    logits[[0, 1, 2, 3], [3, 3, 3, 4]] = 1
    logits[[2, 3], [7, 11]] = 2
    scores = face_scores(logits, labels)
    assert [scores[f"{name}_accuracy"] for name in ("raf_db", "ferplus", "fer2013")] == [0.5, 1, 0.5]
    blended = face_scores(logits, labels, share=0.5)
    assert [blended[f"{name}_accuracy"] for name in ("raf_db", "ferplus", "fer2013")] == [0.5, 0, 1]


def test_a_weighted_sum_of_both_classifiers_is_one_linear_classifier():
    torch.manual_seed(0)
    model = FaceClassifiers(ResNetModel(faces.ResNetConfig(**TINY))).eval()
    images = torch.randn(3, 1, 32, 32)
    logits = model(images)
    merged = torch.nn.Linear(16, 7)
    with torch.no_grad():
        merged.weight.copy_(0.7 * model.head.weight[:7] + 0.3 * model.head.weight[7:])
        merged.bias.copy_(0.7 * model.head.bias[:7] + 0.3 * model.head.bias[7:])
    pooled = model.tower(pixel_values=images).pooler_output.flatten(1)
    assert torch.allclose(merged(pooled), 0.7 * logits[:, :7] + 0.3 * logits[:, 7:], atol=1e-5)


def test_the_mean_follows_the_weights_and_answers_outside_training():
    model = AveragedClassifiers(FaceClassifiers(ResNetModel(faces.ResNetConfig(**TINY))), decay=0.5)
    before = model.mean.head.bias.clone()
    with torch.no_grad():
        model.live.head.bias += 1
    model.update()
    assert torch.allclose(model.mean.head.bias, before + 1 - 2 / 11)  # the first step keeps 2 / 11 of it
    for _ in range(20):
        model.update()
    assert torch.allclose(model.mean.head.bias, before + 1, atol=1e-4)
    with torch.no_grad():
        model.live.head.bias += 5
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(model.eval()(images), model.mean.eval()(images))
    assert not any(p.requires_grad for p in model.mean.parameters())


def test_stage_trains_resumes_and_hands_over(corpora, tmp_path):
    """A stage starts from the tower and the classifiers of another; a stage that was done gives the same answers."""
    run = ReleaseRun(output=str(tmp_path), seed=0)
    settings = {"epochs": 2, "learning_rate": 0.01, "size": 32, "raf_db_views": 10.0}
    report = faces.train_faces(run, "first", **settings)
    assert set(report["validation_blends"]) == {"0.0", "0.1", "0.2", "0.3", "0.4", "0.5"}
    assert report["validation_blends"]["0.0"]["raf_db_accuracy"] == report["validation"]["raf_db_accuracy"]
    tower = ResNetModel.from_pretrained(tmp_path / "first")
    again = faces.train_faces(run, "first", **settings)
    assert again == report
    for name, value in ResNetModel.from_pretrained(tmp_path / "first").state_dict().items():
        assert torch.equal(value, tower.state_dict()[name])
    faces.train_faces(run, "second", **{**settings, "start": "first", "learning_rate": 0.0, "size": 64})
    moved = ResNetModel.from_pretrained(tmp_path / "second").state_dict()
    weights = [name for name in moved if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(moved[name], tower.state_dict()[name], atol=1e-6) for name in weights)
