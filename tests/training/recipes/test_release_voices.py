"""The stages of the audio tower of many corpora, on made-up voices and a tiny random encoder."""

import inspect
import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from triemo.modeling import TriemoAudioModel
from triemo.processing.feature_extraction_triemo import TriemoFeatureExtractor
from triemo.training.corpora.labels import EMOTIONS
from triemo.training.recipes import release, voice_states, voice_tower
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.voice_states import CachedStates, Clip, StateRow, plan_rows, read_clips
from triemo.training.recipes.voice_tower import UpperLayers, corpus_scores, fit, pad_states, split_rows

RATE = 16000
PITCH = {"anger": 300, "joy": 800}
FIT = {"encoder": "encoder", "layers": 2, "epochs": 2, "epoch_rows": 32, "learning_rate": 1e-3, "batch_size": 8}


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
    monkeypatch.setattr(voice_states, "load_corpus", lambda name, root: corpora[name])
    config = WhisperConfig(
        d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=80, vocab_size=60,
        decoder_layers=1, decoder_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    WhisperEncoder(config).save_pretrained(tmp_path / "weights" / "encoder")
    monkeypatch.setattr(voice_states, "PART_ROWS", 7)
    return ReleaseRun(output=str(tmp_path / "runs"), weights=str(tmp_path / "weights"), seed=0)


@pytest.fixture
def cached(run):
    voice_states.train_voice_check(run, "check", corpora=["ravdess", "javanese"])
    settings = {"check": "check", "encoder": "encoder", "frozen_layers": 1, "copies": 1, "joined": 3, "seconds": 1.0}
    report = voice_states.train_voice_states(run, "states", **settings)
    return run, settings, report


def test_faulty_files_are_listed_and_left_out(run):
    report = voice_states.train_voice_check(run, "check", corpora=["ravdess", "javanese"])
    assert report["clips"] == {"ravdess": 14, "javanese": 16}
    faults = {item["path"].rsplit("/", 3)[1:][-1]: item["fault"] for item in report["left_out"]}
    assert set(faults) == {"0.wav", "1.wav"} and faults["0.wav"] == "silent"
    assert faults["1.wav"].startswith("duplicate of ") and "test" in faults["1.wav"]  # what is measured stays
    clips = read_clips(run.folder("check"))
    assert len(clips) == 30 and all(0.3 <= clip.seconds < 0.5 for clip in clips)
    run.open_licences = True
    assert voice_states.train_voice_check(run, "open", corpora=["ravdess", "javanese"])["clips"] == {"javanese": 16}
    with pytest.raises(ValueError, match="expected the stage of the voice check to have run"):
        read_clips(run.folder("nothing"))


def test_joined_rows_are_of_one_training_speaker_and_emotion():
    clips = [Clip(f"{n}", "a", "train" if n < 12 else "test", EMOTIONS[n % 2], f"s{n % 4}", 2.0) for n in range(16)]
    rows = plan_rows(clips, copies=2, joined=5, seconds=6.0, seed=0)
    assert rows[:16] == [StateRow((number,), 0) for number in range(16)]
    assert sum(row.copy == 1 and len(row.clips) == 1 for row in rows[:-5]) == 12
    for row in rows[-5:]:
        found = [clips[number] for number in row.clips]
        assert len({(clip.speaker, clip.label) for clip in found}) == 1 and len(set(row.clips)) == len(row.clips)
        assert all(clip.split == "train" for clip in found) and 2 <= len(found) <= 3
    assert rows == plan_rows(clips, copies=2, joined=5, seconds=6.0, seed=0)


def test_kept_states_are_those_of_the_frozen_layers_and_are_made_once(cached, monkeypatch):
    run, settings, report = cached
    folder = run.folder("states")
    data = CachedStates(folder)
    assert report["rows"] == len(data) == 30 + 14 + 3
    whole = voice_states.load_tower(run, "encoder", 3)
    for row in (0, 6, 7, 29):
        clip = data.clip(row)
        frames = TriemoFeatureExtractor()(clip.path, return_tensors="pt")["input_features"]
        with torch.no_grad():
            expected = whole(frames, output_hidden_states=True).hidden_states[1][0]
        assert torch.allclose(data[row]["states"], expected, atol=2e-3)
        assert data[row]["labels"].argmax() == EMOTIONS.index(clip.label)
    parts = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.npy")}
    assert len(parts) == 7
    (folder / "0003.npy").unlink()
    with pytest.raises(ValueError, match="got no 0003.npy"):
        CachedStates(folder)
    voice_states.train_voice_states(run, "states", **settings)
    again = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.npy")}
    assert {name for name in parts if again[name] != parts[name]} == {"0003.npy"}
    with pytest.raises(ValueError, match="got other clips or settings"):
        voice_states.train_voice_states(run, "states", **{**settings, "copies": 2})


def test_the_tower_is_what_was_trained_on_kept_states(cached):
    run, *_ = cached
    report = voice_tower.train_voice_tower(run, "audio", states="states", **FIT)
    assert {"eval_ravdess_uar", "eval_javanese_uar", "eval_score"} <= set(report["validation"])
    tower = TriemoAudioModel.from_pretrained(run.folder("audio")).eval()
    before = voice_states.load_tower(run, "encoder", 2)
    assert tower.config.num_hidden_layers == 2 and tower.config.attentive_pooling_size == 128
    assert torch.equal(tower.layers[0].fc1.weight, before.layers[0].fc1.weight)
    assert not torch.equal(tower.layers[1].fc1.weight, before.layers[1].fc1.weight)
    assert tower.pooling.expand.abs().sum() > 0
    data = CachedStates(run.folder("states"))
    batch = pad_states([data[0], data[3]])
    with torch.no_grad():
        kept = tower.continue_from(batch["states"], batch["mask"], 1)[0, : len(data[0]["states"])]
        frames = TriemoFeatureExtractor()(data.clip(0).path, return_tensors="pt")["input_features"]
        assert torch.allclose(kept, tower(frames).last_hidden_state[0], atol=2e-2)
    again = voice_tower.train_voice_tower(run, "audio", states="states", **FIT)
    assert again["validation"]["eval_score"] == report["validation"]["eval_score"]
    with pytest.raises(ValueError, match="states: got other with 2 layers, expected encoder with more than 1"):
        voice_tower.train_voice_tower(run, "other", states="states", **{**FIT, "encoder": "other"})


def test_nothing_of_a_corpus_left_out_is_trained_on(cached, monkeypatch):
    run, *_ = cached
    seen = []
    real = voice_tower.fit

    def watched(run, name, data, training, held, settings, **options):
        seen.append(({data.clip(row).corpus for row in training}, {data.clip(row).corpus for row in held}, len(held)))
        return real(run, name, data, training, held, settings, **options)

    monkeypatch.setattr(voice_tower, "fit", watched)
    report = voice_tower.train_left_out_corpora(run, "left", states="states", corpora=["ravdess"], **FIT)
    assert seen == [({"javanese"}, {"ravdess"}, 14)]
    assert report["mean_uar"] == report["left_out"]["ravdess"]["uar"] and report["left_out"]["ravdess"]["clips"] == 14
    voice_tower.train_left_out_corpora(run, "left", states="states", corpora=["ravdess"], **FIT)
    assert len(seen) == 1
    with pytest.raises(ValueError, match="got 'casia', of which the cache has no clip"):
        voice_tower.train_left_out_corpora(run, "left", states="states", corpora=["casia"], **FIT)
    training, held = split_rows(CachedStates(run.folder("states")))
    assert len(training) == 14 + 14 + 3 and len(held) == 8


def test_a_corpus_is_scored_among_its_own_classes():
    targets = np.eye(7)[[0, 3, 0, 1]]
    logits = np.zeros((4, 7))
    logits[:, 6] = 9  # nobody's class
    logits[[0, 1, 2, 3], [0, 3, 0, 2]] = 1
    scores = corpus_scores(logits, targets, ["a", "a", "a", "b"])
    assert scores == {"a_uar": 1.0, "b_uar": 1.0, "score": 1.0}


def test_shortened_clips_keep_at_least_half_of_their_steps():
    torch.manual_seed(0)
    model = UpperLayers(voice_model(), 1, 0.0, cut=1.0)
    mask = (torch.arange(40) < torch.tensor([[40], [12], [1]]).repeat(20, 1)).long()
    kept = model.shortened(mask)
    assert (kept <= mask).all() and (kept.sum(1) >= mask.sum(1) / 2).all() and (kept.sum(1) < mask.sum(1)).any()
    model.cut = 0.0
    assert torch.equal(model.shortened(mask), mask)


def voice_model() -> TriemoAudioModel:
    from triemo.modeling import TriemoAudioConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return TriemoAudioModel(TriemoAudioConfig(**sizes, attentive_pooling_size=4))


def test_the_config_of_the_next_release_is_what_the_stages_take():
    config = release.Path(release.__file__).parent / "configs" / "triemo-small-2.yaml"
    seed, stages = release.read_stages(config)
    assert seed == 0 and list(stages)[0] == "text"
    own = {"name", "kind", "states", "corpora"}
    for stage in yaml.safe_load(config.read_text())["stages"]:
        if stage["kind"] in ("voice_tower", "left_out_corpora"):
            options = {key: value for key, value in stage.items() if key not in own}
            inspect.signature(fit).bind(None, "", None, [], [], {}, **options)
    assert json.dumps(stages["text"][1])
