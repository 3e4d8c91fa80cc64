"""Log-mel equal to Whisper's and MFCC to torchaudio's, whatever the batch; sources, rates, round trips, refusals."""

import importlib.util
import json
import logging
import sys

import numpy as np
import pytest
import torch
import torchaudio
from media_files import sine
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
from transformers.pipelines.base import pad_collate_fn

from triemo.processing.feature_extraction_triemo import TriemoFeatureExtractor
from triemo.processing.media_triemo import load_audio
from triemo.processing.presence_triemo import _said

TYPES = ["log_mel", "mfcc", "waveform"]


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def features_of(outputs):
    return outputs["input_values"] if "input_values" in outputs else outputs["input_features"]


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 399, 400, 16000, 16123, 5 * 16000 + 1, 29 * 16000])
def test_log_mel_equals_whisper_on_the_valid_frames(samples):
    wave = noise(samples)
    wave[-1] = 1.0  # a click at the very end: the loudest frame lies past it, and sets the floor
    expected = WhisperFeatureExtractor()(wave, sampling_rate=16000, return_attention_mask=True, return_tensors="np")
    frames = -(-samples // 160)
    outputs = TriemoFeatureExtractor()(wave, sampling_rate=16000, return_tensors="np")
    assert outputs["input_features"].shape == (1, frames, 80)
    assert expected["attention_mask"].sum() == outputs["audio_attention_mask"].sum() == frames
    np.testing.assert_allclose(outputs["input_features"][0], expected["input_features"][0].T[:frames], atol=1e-4)


def test_silence_and_speech_levels_by_hand():
    """Silence is log10(1e-10) = -10 everywhere, its own loudest value: (-10 + 4) / 4."""
    outputs = TriemoFeatureExtractor()(np.zeros(16000, np.float32), sampling_rate=16000)
    np.testing.assert_allclose(outputs["input_features"], -1.5)
    loud = TriemoFeatureExtractor()(noise(16000), sampling_rate=16000)["input_features"]
    quiet = TriemoFeatureExtractor()(noise(16000) / 10, sampling_rate=16000)["input_features"]
    np.testing.assert_allclose(loud - quiet, 2 / 4, atol=1e-4)  # a tenth of the amplitude: 2 in log10 of the power


def test_a_long_clip_is_cut_into_pieces_without_a_seam(monkeypatch):
    from triemo.processing import feature_extraction_triemo

    wave = noise(16000 * 3)
    whole = TriemoFeatureExtractor()(wave, sampling_rate=16000)["input_features"]
    monkeypatch.setattr(feature_extraction_triemo, "_CHUNK_FRAMES", 7)
    pieces = TriemoFeatureExtractor()(wave, sampling_rate=16000)["input_features"]
    np.testing.assert_allclose(pieces, whole, atol=1e-6)


@pytest.mark.parametrize("coefficients", [13, 40])
def test_mfcc_equals_torchaudio_on_the_clip_alone_and_in_a_batch(coefficients):
    clips = [noise(samples, seed) for seed, samples in enumerate((16000, 7777, 40001))]
    reference = torchaudio.transforms.MFCC(
        16000, coefficients, melkwargs={"n_fft": 400, "hop_length": 160, "n_mels": 80}
    )
    extractor = TriemoFeatureExtractor("mfcc", feature_size=coefficients)
    outputs = extractor(clips, sampling_rate=16000, return_tensors="pt")
    for index, clip in enumerate(clips):
        frames = -(-len(clip) // 160)
        expected = reference(torch.from_numpy(clip)).T[:frames]
        torch.testing.assert_close(outputs["input_features"][index, :frames], expected, atol=1e-4, rtol=0)


def test_mfcc_of_a_clip_shorter_than_its_window():
    features = TriemoFeatureExtractor("mfcc")(noise(50), sampling_rate=16000)["input_features"]
    assert features.shape == (1, 1, 40) and np.isfinite(features).all()


@pytest.mark.parametrize("do_normalize", [True, False])
def test_waveform_equals_wav2vec2(do_normalize):
    clips = [noise(5000) + 0.3, noise(8000, 1)]
    stock = Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True)
    expected = stock(clips, sampling_rate=16000, padding=True, return_tensors="np")
    extractor = TriemoFeatureExtractor("waveform", do_normalize=do_normalize)
    outputs = extractor(clips, sampling_rate=16000, return_tensors="np")
    np.testing.assert_allclose(outputs["input_values"], expected["input_values"], atol=1e-5)
    np.testing.assert_array_equal(outputs["audio_attention_mask"], expected["attention_mask"])


@pytest.mark.parametrize("feature_type", TYPES)
def test_a_clip_gives_the_very_same_features_alone_and_in_a_batch(feature_type):
    clips = [noise(samples, seed) for seed, samples in enumerate((9000, 160, 31234))]
    extractor = TriemoFeatureExtractor(feature_type)
    together = extractor(clips, sampling_rate=16000, return_tensors="pt")
    mask = together["audio_attention_mask"]
    assert mask.dtype == torch.int64 and features_of(together).dtype == torch.float32
    for index, clip in enumerate(clips):
        alone = features_of(extractor(clip, sampling_rate=16000, return_tensors="pt"))[0]
        assert mask[index].sum() == len(alone) and mask[index, : len(alone)].all()
        assert torch.equal(features_of(together)[index, : len(alone)], alone)
        assert (features_of(together)[index, len(alone) :] == 0).all()


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_a_sine_at_any_rate_becomes_the_sine_at_16_khz(rate):
    extractor = TriemoFeatureExtractor("waveform", do_normalize=False)
    for source in (sine(1, rate)[0], {"array": sine(1, rate, channels=2), "sampling_rate": rate}):
        wave = extractor(source, sampling_rate=rate)["input_values"][0]
        np.testing.assert_allclose(wave[200:15800], sine(1, 16000)[0, 200:15800], atol=2e-3)
        assert np.abs(np.fft.rfft(wave)).argmax() == 440


def test_sources_of_one_clip_give_the_same_features(media):
    path = media / "sound.wav"
    extractor = TriemoFeatureExtractor()
    expected = extractor(load_audio(path), sampling_rate=16000)["input_features"]
    content = path.read_bytes()
    wave = load_audio(path)
    sources = [path, str(path), path.as_uri(), content, {"bytes": content, "path": None}, torch.from_numpy(wave)]
    sources += [wave.tolist(), wave.astype(np.float64), {"array": wave, "sampling_rate": 16000}, wave[None]]
    for source in sources:
        np.testing.assert_array_equal(extractor(source, sampling_rate=16000)["input_features"], expected)
    batch = extractor(sources[:-1], sampling_rate=16000)["input_features"]
    np.testing.assert_array_equal(batch, np.repeat(expected, len(sources) - 1, axis=0))
    assert extractor(media / "clip.mp4")["input_features"].shape[1] == pytest.approx(200, abs=2)


def test_an_array_without_a_rate_is_taken_as_16_khz_with_one_warning(caplog):
    extractor = TriemoFeatureExtractor(sampling_rate=15999)  # a message of its own, not yet given by another test
    logger = logging.getLogger("triemo.processing.feature_extraction_triemo")
    logger.addHandler(caplog.handler)
    logger.propagate = False  # or the root's handler takes each message a second time
    first = extractor(noise(1000))["input_features"]
    np.testing.assert_array_equal(first, extractor(noise(1000), sampling_rate=15999)["input_features"])
    extractor(noise(1000))
    logger.removeHandler(caplog.handler)
    logger.propagate = True
    assert len(caplog.records) == 1 and "15999 Hz" in caplog.records[0].getMessage()


def test_padding_and_truncation():
    extractor = TriemoFeatureExtractor()
    clips = [noise(16000), noise(8000)]

    def shape(**kwargs):
        return extractor(clips, sampling_rate=16000, return_tensors="np", **kwargs)["input_features"].shape

    assert shape() == shape(padding="longest") == (2, 100, 80)
    assert shape(padding="max_length", max_length=150) == (2, 150, 80)
    assert shape(max_length=30, truncation=True) == (2, 30, 80)
    assert shape(pad_to_multiple_of=64) == (2, 128, 80)
    separate = extractor(clips, sampling_rate=16000, padding=False)
    assert [clip.shape for clip in separate["input_features"]] == [(100, 80), (50, 80)]
    assert [mask.sum() for mask in separate["audio_attention_mask"]] == [100, 50]
    assert set(extractor(clips, sampling_rate=16000, return_attention_mask=False)) == {"input_features"}


@pytest.mark.parametrize("feature_type", TYPES)
def test_the_stock_pipeline_s_collation_gives_what_a_batch_gives(feature_type):
    extractor = TriemoFeatureExtractor(feature_type)
    clips = [noise(9000), noise(4000, 1)]
    items = [extractor(clip, sampling_rate=16000, return_tensors="pt") for clip in clips]
    collated = pad_collate_fn(None, extractor)(items)
    expected = extractor(clips, sampling_rate=16000, return_tensors="pt")
    assert set(collated) == set(expected) == set(extractor.model_input_names)
    for name in expected:
        assert torch.equal(collated[name], expected[name])


@pytest.mark.parametrize(
    "extractor",
    [
        TriemoFeatureExtractor(),
        TriemoFeatureExtractor("mfcc", feature_size=13, n_mels=64, n_fft=512, hop_length=128),
        TriemoFeatureExtractor("waveform", do_normalize=False, sampling_rate=8000),
    ],
)
def test_round_trip_through_disk_is_exact_and_small(extractor, tmp_path):
    extractor(noise(4000), sampling_rate=16000)  # whatever a call keeps must not be saved
    extractor.save_pretrained(tmp_path)
    again = TriemoFeatureExtractor.from_pretrained(tmp_path)
    assert again.to_dict() == extractor.to_dict()
    assert again.model_input_names == extractor.model_input_names and again.frame_rate == extractor.frame_rate
    first, second = (e(noise(4000), sampling_rate=16000) for e in (extractor, again))
    np.testing.assert_array_equal(features_of(first), features_of(second))
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert all(isinstance(value, (int, float, str, bool)) for value in saved.values())


def test_a_torchaudio_that_does_not_load_says_what_to_do(tmp_path, monkeypatch):
    from triemo.processing import resampling_triemo

    (tmp_path / "torchaudio.py").write_text("raise OSError('libc10_cuda.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchaudio")
    spec = importlib.util.spec_from_file_location("triemo.processing.resampling_again", resampling_triemo.__file__)
    with pytest.raises(ImportError, match=r"(?s)triemo.serving.repair_torchaudio.*libc10_cuda"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_who_calls_it_alone_is_told_of_silence(caplog):
    """As the stock audio-classification pipeline does; the processor would leave such sound out."""
    _said.clear()
    extractor = TriemoFeatureExtractor()
    with caplog.at_level(logging.WARNING, logger="triemo"):
        extractor(sine(1, 16000)[0], sampling_rate=16000)
        assert not caplog.records
        features = extractor([np.zeros(16000, np.float32)] * 2, sampling_rate=16000)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "Silence (0.00 of 1.00 s are above -60 dB), and yet it is read as a voice" in said
    assert features["audio_attention_mask"].all()


def test_frame_rate():
    assert TriemoFeatureExtractor().frame_rate == 100.0
    assert TriemoFeatureExtractor("mfcc", sampling_rate=8000, hop_length=100).frame_rate == 80.0
    assert TriemoFeatureExtractor("waveform").frame_rate == 16000.0


BAD_CALLS = {
    "empty array": (np.zeros(0, np.float32), 16000, "at least one sample"),
    "empty list": ([], 16000, "empty list"),
    "None": (None, 16000, "NoneType"),
    "None in a batch": ([noise(100), None], 16000, "Audio 1 of the batch.*NoneType"),
    "NaN in a batch": ([noise(100), np.float32([np.nan])], 16000, "Audio 1 of the batch.*NaN"),
    "infinite": (np.float32([np.inf]), 16000, "infinite"),
    "rank 0": (np.float32(1)[...], 16000, "shape"),
    "rank 3": (np.zeros((1, 2, 3), np.float32), 16000, "shape"),
    "rate 0": (noise(100), 0, "positive whole number of Hz, got 0"),
    "rate -1": (noise(100), -1, "got -1"),
    "no rate in the dict": ({"array": noise(100)}, 16000, "sampling_rate"),
    "no such file": ("gone.wav", None, "gone.wav"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused(name):
    source, rate, reason = BAD_CALLS[name]
    with pytest.raises(ValueError, match=reason):
        TriemoFeatureExtractor()(source, sampling_rate=rate)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"feature_type": "spectrogram"}, "feature_type"),
        ({"feature_size": 0}, "feature_size"),
        ({"feature_type": "waveform", "feature_size": 80}, "waveform"),
        ({"feature_type": "mfcc", "feature_size": 90}, "n_mels"),
        ({"feature_type": "mfcc", "n_mfcc": 13}, "feature_size"),
        ({"hop_length": 500}, "hop_length"),
        ({"n_fft": 400.0}, "n_fft"),
        ({"sampling_rate": 0}, "sampling_rate"),
        ({"padding_side": "left"}, "padding_side"),
    ],
)
def test_bad_settings_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        TriemoFeatureExtractor(**arguments)
