"""What the joint part learns from besides composites: films, silence, wrong words, on made-up corpora."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from triemo.training.corpora.labels import EMOTIONS, label2id
from triemo.training.recipes import joint_corpora
from triemo.training.recipes.joint import TriModalCollator, faint_noise
from triemo.training.recipes.joint_corpora import AllCorpora, film_faces, still_faces
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.voice_means import Clip


def picture(level: int) -> dict:
    file = io.BytesIO()
    Image.fromarray(np.full((48, 48), level, np.uint8)).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def corpora(monkeypatch):
    """Two sentences, a voice and two films, three faces; a film shows two frames, the other no face."""
    clips = [
        Clip("a.wav", "ravdess", "train", "anger", "1", 1.0),
        Clip("b.mp4", "javanese", "train", "joy", "2", 1.0),
        Clip("c.mp4", "javanese", "train", "fear", "2", 1.0),
        Clip("d.mp4", "javanese", "test", "joy", "3", 1.0),
    ]
    joy, tie = [0, 9, 0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 5, 0, 0, 0, 5, 0, 0, 0]
    tables = {
        "ferplus": {"image": [picture(10), picture(20)], "label": ["joy", "fear"], "votes": [joy, tie]},
        "raf_db": {"image": [picture(30)], "label": ["sadness"]},
    }
    monkeypatch.setattr(joint_corpora, "read_clips", lambda folder: clips)
    monkeypatch.setattr(joint_corpora, "load_corpus", lambda name, root: {"train": tables[name]})
    monkeypatch.setattr(
        joint_corpora, "load_texts", lambda root, name, split: (["one two three", "别碰我"], [[0], [3]])
    )
    seen = []

    def faces(films, weights):
        seen.extend(clip.path for clip in films)
        return [torch.full((2, 96, 96), 200, dtype=torch.uint8), torch.zeros(0, 96, 96, dtype=torch.uint8)]

    monkeypatch.setattr(joint_corpora, "film_faces", faces)
    monkeypatch.setattr(joint_corpora, "log_mel_frames", lambda paths: [torch.full((40, 80), float(ord(paths[0][0])))])
    found = AllCorpora(ReleaseRun(seed=0), "train", ["goemotions"], "check", ["ferplus", "raf_db"])
    assert seen == ["b.mp4", "c.mp4"]  # nobody of the test
    return found


def test_rows_of_a_split(corpora):
    assert corpora.labels["audio"] == [[label2id[name]] for name in ("anger", "joy", "fear")]
    assert corpora.labels["vision"] == [[label2id[name]] for name in ("joy", "sadness", "joy")]
    assert corpora.pairs == [{"audio": 1, "vision": 2}] and corpora.frames == {2: [2, 3]}
    assert corpora.pixels[:, 0, 0].tolist() == [10, 30, 200, 200]
    assert corpora.text_rows == {"goemotions": (0, 2)}
    assert float(corpora.clips[1][0, 0]) == ord("b") and len(list(corpora.clips)) == 3


def test_a_film_shows_its_frames_and_a_still_one(corpora):
    collate = TriModalCollator(corpora, None, augment=False)
    items = [{"rows": {"vision": row}, "label": np.eye(7, dtype=np.float32)[0]} for row in (2, 1)]
    batch = collate(items)
    assert batch["video_attention_mask"].tolist() == [[1, 1], [1, 0]]
    level = (batch["pixel_values"][:, :, 0, 0, 0] * 0.25 + 0.5) * 255
    assert level[0].tolist() == pytest.approx([200, 200], abs=0.01) and float(level[1, 0]) == pytest.approx(
        30, abs=0.01
    )
    collate.augment = True
    for _ in range(10):
        assert collate(items)["video_attention_mask"][0].sum() == 2


def test_silence_and_wrong_words_take_the_place_of_voice_and_words(corpora):
    torch.manual_seed(0)
    collate = TriModalCollator(corpora, None, augment=False)
    silent = collate.voices([{"rows": {"audio": 0}, "silent": True}, {"rows": {"audio": 0}}])
    assert (silent["input_features"][1, :40] == ord("a")).all() and silent["input_features"][0].max() < 2
    assert 100 <= int(silent["audio_attention_mask"][0].sum()) <= 300
    heard = {collate.misheard("one two three four five six seven eight") for _ in range(20)}
    assert len(heard) > 10 and all(len(text.split()) == 8 and text.split()[1] != "" for text in heard)
    chinese = {collate.misheard("别碰我") for _ in range(20)}
    assert all(len(text) == 3 for text in chinese) and len(chinese) > 1
    assert faint_noise().shape[1] == 80


def test_votes_without_a_majority_and_other_corpora(corpora):
    pixels, labels = still_faces(ReleaseRun(), "ferplus", "train")
    assert labels == [EMOTIONS.index("joy")] and pixels.shape == (1, 96, 96)
    with pytest.raises(ValueError, match="face_corpora: got 'ravdess', expected some of ferplus and raf_db"):
        still_faces(ReleaseRun(), "ravdess", "train")


def test_films_need_a_detector(tmp_path):
    assert film_faces([], None) == []
    with pytest.raises(ValueError, match="weights: got no face detector for films"):
        film_faces([Clip("b.mp4", "javanese", "train", "joy", "2", 1.0)], str(tmp_path))
