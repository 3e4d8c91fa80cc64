"""The stages of the audio tower of many corpora, on made-up voices and a tiny random encoder."""

import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from triemo.modeling import TriemoAudioModel
from triemo.modeling.audio_tower_triemo import voiced_steps
from triemo.processing.feature_extraction_triemo import TriemoFeatureExtractor
from triemo.training.corpora.labels import EMOTIONS
from triemo.training.recipes import release, voice_means, voice_tower
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.voice import voice_logits
from triemo.training.recipes.voice_means import Clip, VoiceMeans, VoiceRow, plan_rows, read_clips
from triemo.training.recipes.voice_tower import LinearVoices, corpus_scores

RATE = 16000
PITCH = {"anger": 300, "joy": 800}
LEFT = {"means": "means", "read_layers": [1, 2], "strength": 0.1}


def write(path, samples) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return str(path)


def tone(hertz: float, seconds: float, seed: int) -> np.ndarray:
    time = np.arange(int(RATE * seconds)) / RATE
    return 0.3 * np.sin(2 * np.pi * hertz * time) + 0.02 * np.random.default_rng(seed).standard_normal(len(time))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two corpora of two emotions, whose pitch tells them, in place of the registry's; a silent clip and a double."""
    corpora = {}
    for place, corpus in enumerate(("ravdess", "javanese")):
        corpora[corpus] = {}
        for at, split in enumerate(("train", "validation", "test")):
            rows = {"row": [], "label": [], "speaker": []}
            for number in range(8 if split == "train" else 4):
                label = list(PITCH)[number % 2]
                seed = 100 * place + 10 * at + number
                path = tmp_path / corpus / split / f"{number}.wav"
                rows["row"].append(write(path, tone(PITCH[label], 0.3 + 0.02 * number, seed)))
                rows["label"].append(label)
                rows["speaker"].append(f"{split}{number // 4}")
            corpora[corpus][split] = rows
    train = corpora["ravdess"]["train"]
    write(Path(train["row"][0]), np.zeros(RATE))
    shutil.copy(corpora["ravdess"]["test"]["row"][1], train["row"][1])
    assert train["label"][1] == corpora["ravdess"]["test"]["label"][1]
    monkeypatch.setattr(voice_means, "load_corpus", lambda name, root: corpora[name])
    config = WhisperConfig(
        d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=80, vocab_size=60,
        decoder_layers=1, decoder_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    WhisperEncoder(config).save_pretrained(tmp_path / "weights" / "encoder")
    monkeypatch.setattr(voice_means, "PART_ROWS", 7)
    return ReleaseRun(output=str(tmp_path / "runs"), weights=str(tmp_path / "weights"), seed=0)


@pytest.fixture
def kept(run):
    voice_means.train_voice_check(run, "check", corpora=["ravdess", "javanese"])
    settings = {"check": "check", "encoder": "encoder", "layers": 2, "copies": 1, "joined": 3, "seconds": 1.0}
    report = voice_means.train_voice_means(run, "means", **settings)
    return run, settings, report


def test_faulty_files_are_listed_and_left_out(run):
    report = voice_means.train_voice_check(run, "check", corpora=["ravdess", "javanese"])
    assert report["clips"] == {"ravdess": 14, "javanese": 16}
    faults = {item["path"].rsplit("/", 3)[1:][-1]: item["fault"] for item in report["left_out"]}
    assert set(faults) == {"0.wav", "1.wav"} and faults["0.wav"] == "silent"
    assert faults["1.wav"].startswith("duplicate of ") and "test" in faults["1.wav"]  # what is measured stays
    clips = read_clips(run.folder("check"))
    assert len(clips) == 30 and all(0.3 <= clip.seconds < 0.5 for clip in clips)
    run.open_licences = True
    assert voice_means.train_voice_check(run, "open", corpora=["ravdess", "javanese"])["clips"] == {"javanese": 16}
    with pytest.raises(ValueError, match="expected the stage of the voice check to have run"):
        read_clips(run.folder("nothing"))


def test_joined_rows_are_of_one_training_speaker_and_emotion():
    clips = [Clip(f"{n}", "a", "train" if n < 12 else "test", EMOTIONS[n % 2], f"s{n % 4}", 2.0) for n in range(16)]
    rows = plan_rows(clips, copies=2, joined=5, seconds=6.0, seed=0)
    assert rows[:16] == [VoiceRow((number,), 0) for number in range(16)]
    assert sum(row.copy == 1 and len(row.clips) == 1 for row in rows[:-5]) == 12
    for row in rows[-5:]:
        found = [clips[number] for number in row.clips]
        assert len({(clip.speaker, clip.label) for clip in found}) == 1 and len(set(row.clips)) == len(row.clips)
        assert all(clip.split == "train" for clip in found) and 2 <= len(found) <= 3
    assert rows == plan_rows(clips, copies=2, joined=5, seconds=6.0, seed=0)


def test_means_are_those_of_the_voiced_steps_and_are_made_once(kept):
    run, settings, report = kept
    folder = run.folder("means")
    data = VoiceMeans(folder)
    assert report["rows"] == len(data.plan) == 30 + 14 + 3 and data.values.shape == (47, 2, 16)
    tower = voice_means.load_tower(run, "encoder", 2)
    for row in (0, 6, 7, 29):
        frames = TriemoFeatureExtractor()(data.clip(row).path, return_tensors="pt")["input_features"]
        with torch.no_grad():
            states = tower(frames, output_hidden_states=True).hidden_states[2][0]
        voiced = voiced_steps(frames, torch.ones(frames.shape[:2], dtype=torch.long))[0].bool()
        assert torch.allclose(torch.from_numpy(data.values[row, 1]).float(), states[voiced].mean(0), atol=2e-3)
    parts = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.npy")}
    assert len(parts) == 7
    (folder / "0003.npy").unlink()
    with pytest.raises(ValueError, match="got no 0003.npy"):
        VoiceMeans(folder)
    voice_means.train_voice_means(run, "means", **settings)
    again = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.npy")}
    assert {name for name in parts if again[name] != parts[name]} == {"0003.npy"}
    with pytest.raises(ValueError, match="got other clips or settings"):
        voice_means.train_voice_means(run, "means", **{**settings, "copies": 2})
    with pytest.raises(ValueError, match="layers: got 4, expected 1 to 3"):
        voice_means.load_tower(run, "encoder", 4)


def test_the_towers_statistics_are_the_linear_map_of_the_means(kept):
    """And, of an encoder at random, they tell pitches of speakers who were not trained on better than chance, 0.5."""
    run, *_ = kept
    settings = {"read_layers": [1, 2], "output_layers": [1, 2], "strengths": [1e-4, 10.0]}
    report = voice_tower.train_voice_tower(run, "audio", means="means", **settings)
    assert report["validation"]["score"] >= 0.75 and set(report["tried"]) == {"0.0001", "10.0"}
    tower = TriemoAudioModel.from_pretrained(run.folder("audio")).eval()
    assert tower.config.num_hidden_layers == 2 and len(tower.layers) == 2
    data = VoiceMeans(run.folder("means"))
    training = [row for row in range(len(data.plan)) if data.clip(row).split == "train"]
    voices = LinearVoices(data, training, [1, 2], report["strength"], 0.5)
    for row in (0, 14):
        frames = TriemoFeatureExtractor()(data.clip(row).path, return_tensors="pt")["input_features"]
        mask = torch.ones(frames.shape[:2], dtype=torch.long)
        with torch.no_grad():
            states = tower(frames, output_hidden_states=True).hidden_states[1:]
        means = np.concatenate([layer[0, voiced_steps(frames, mask)[0].bool()].mean(0).numpy() for layer in states])
        expected = voices.coefficients @ ((means - voices.centre) / voices.deviation) + voices.intercept
        logits = voice_logits(tower, frames, mask)[0].numpy()
        np.testing.assert_allclose(logits[voices.taught], expected, atol=1e-3)
    with pytest.raises(ValueError, match="expected that stage to have run"):
        voice_tower.train_voice_tower(run, "other", means="nothing", **settings)


def test_nothing_of_a_corpus_left_out_is_trained_on(kept, monkeypatch):
    run, *_ = kept
    seen = []
    real = voice_tower.LinearVoices

    def watched(means, rows, *given):
        seen.append({(means.clip(row).corpus, means.clip(row).split) for row in rows})
        return real(means, rows, *given)

    monkeypatch.setattr(voice_tower, "LinearVoices", watched)
    report = voice_tower.train_left_out_corpora(run, "left", corpora=["ravdess"], **LEFT)
    assert seen == [{("javanese", split) for split in ("train", "validation", "test")}]
    assert report["mean_uar"] == report["left_out"]["ravdess"]["uar"] and report["left_out"]["ravdess"]["clips"] == 14
    with pytest.raises(ValueError, match="got 'casia', of which there is no clip"):
        voice_tower.train_left_out_corpora(run, "left", corpora=["casia"], **LEFT)


def test_a_corpus_is_scored_among_its_own_classes():
    logits = np.zeros((4, 7))
    logits[:, 6] = 9  # nobody's class
    logits[[0, 1, 2, 3], [0, 3, 0, 2]] = 1
    scores = corpus_scores(logits, np.array([0, 3, 0, 1]), ["a", "a", "a", "b"])
    assert scores == {"a_uar": 1.0, "b_uar": 1.0, "score": 1.0}


def test_the_config_of_the_next_release_is_what_the_stages_take():
    config = release.Path(release.__file__).parent / "configs" / "triemo-small-2.yaml"
    seed, stages = release.read_stages(config)  # binds every stage's settings
    assert seed == 0 and list(stages)[0] == "text"
    assert json.dumps(stages["text"][1])
