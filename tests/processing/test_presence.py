"""What carries nothing is absent, nothing is cut off silently, and the caller is told of both."""

import logging

import numpy as np
import pandas
import pytest
import torch
from media_files import sine, write_clip, write_sound
from tiny_checkpoint import picture, tiny_classifier, tiny_processor

from triemo.modeling import TriemoConfig
from triemo.processing import TASK, MultimodalEmotionRecognitionPipeline, TriemoProcessor, load_audio, pictures_triemo
from triemo.processing.presence_triemo import _said, is_absent, name_emoji, unheard

RATE = 16000


@pytest.fixture(scope="module")
def processor() -> TriemoProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def reader(processor) -> MultimodalEmotionRecognitionPipeline:
    return MultimodalEmotionRecognitionPipeline(model=tiny_classifier(), processor=processor, task=TASK)


def same(found: dict, wanted: dict) -> None:
    assert set(found) == set(wanted)
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], atol=0, rtol=0)


def notes_of(processor: TriemoProcessor, **sample) -> list[str]:
    return processor(**sample, return_notes=True)["notes"][0]


# ----- sound ---------------------------------------------------------------------------------------------------------


def test_silence_is_not_a_voice(processor, reader, tmp_path):
    """Of digital silence, hiss at -70 dB and a constant offset, with text, only the text is left."""
    noise = np.random.default_rng(0).normal(0, 10 ** (-70 / 20), RATE).astype(np.float32)
    for sound in (np.zeros(RATE, np.float32), noise, np.full(RATE, 0.3, np.float32)):
        path = write_sound(tmp_path / "silent.wav", sound[None], RATE)
        same(processor(text="i am happy", audio=path), processor(text="i am happy"))
        assert reader({"text": "i am happy", "audio": path}) == reader({"text": "i am happy"})
        (note,) = notes_of(processor, text="i am happy", audio=path)
        assert note.startswith("audio: silence (0.00 of 1.00 s are above -60 dB)")
    with pytest.raises(ValueError, match="every sample is audio: silence"):
        processor(audio=path)


def test_a_sound_too_short_for_a_syllable_is_absent(processor):
    """10 ms alone, and 10 ms of a tone in a second of silence; a quarter of a second is heard."""
    blip = np.zeros(RATE, np.float32)
    blip[:160] = sine(0.01, RATE)[0]
    for sound, reason in ((blip[:160], "0.010 s is too short to hold a syllable"), (blip, "silence (0.01 of 1.00 s")):
        given = {"array": sound, "sampling_rate": RATE}
        assert reason in notes_of(processor, text="so sad", audio=given)[0]
        assert "input_features" not in processor(text="so sad", audio=given)
    assert unheard(sine(0.25, RATE)[0], RATE) is None


def test_a_muted_sound_track_is_absent(processor, tmp_path):
    clip = write_clip(tmp_path / "muted.mp4", sound=np.zeros((1, 96000), np.float32))
    batch = processor(videos=clip, return_notes=True)
    assert "input_features" not in batch and "pixel_values" in batch
    assert batch["notes"][0][0].startswith("audio: silence")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_channels_in_opposite_phase_are_not_averaged(tmp_path, name):
    """Their mean is silence: the louder one is read, and the caller is told. Others are averaged as before."""
    codec = {"a.wav": "pcm_s16le", "a.flac": "flac", "a.mp3": "libmp3lame"}[name]
    voice = sine(1, RATE, level=0.4)[0]
    path = write_sound(tmp_path / name, np.stack([voice, -0.98 * voice]), RATE, codec)
    notes: list[str] = []
    waveform = load_audio(path, notes=notes)
    assert np.abs(waveform[2000:14000]).max() == pytest.approx(0.4, abs=0.03)
    assert notes == ["audio: the channels cancel each other out (opposite phase), so only channel 0 was read"]
    path = write_sound(tmp_path / name, np.stack([voice, 0.5 * voice]), RATE, codec)
    assert np.abs(load_audio(path, notes=notes)[2000:14000]).max() == pytest.approx(0.3, abs=0.03)
    assert len(notes) == 1


def test_channels_of_an_array_in_opposite_phase(processor):
    voice = sine(1, RATE)[0]
    given = {"array": np.stack([-0.5 * voice, voice, -0.5 * voice]), "sampling_rate": RATE}
    np.testing.assert_array_equal(load_audio(given), voice)
    assert "opposite phase" in notes_of(processor, audio=given)[0]


def test_float_sound_in_16_bit_scale_is_refused(processor, tmp_path):
    """As pictures in 0..255 are. Samples a little over full scale, as after resampling, are sound."""
    voice = sine(1, RATE)[0]
    for wrong in (voice * 32767, torch.from_numpy(voice * 32767), (voice * 32767).tolist()):
        with pytest.raises(ValueError, match=r"floats must be within -1\.\.1, got a sample of 163"):
            processor(audio={"array": wrong, "sampling_rate": RATE})
    processor(audio={"array": voice * 3, "sampling_rate": RATE})
    from scipy.io import wavfile

    wavfile.write(tmp_path / "loud.wav", RATE, voice * 32767)
    with pytest.raises(ValueError, match=r"loud\.wav: its floats must be within -1\.\.1, got a sample of 163"):
        load_audio(tmp_path / "loud.wav")


def test_tuples_of_rate_and_samples(processor):
    """Gradio's (rate, array of (samples, channels)), torchaudio's (tensor of (channels, samples), rate), alone and in
    a batch."""
    voice = sine(0.5, 8000, channels=2)
    wanted = processor(audio={"array": voice, "sampling_rate": 8000})
    ints = (voice.T * 32768).astype(np.int16)
    for given in ((torch.from_numpy(voice), 8000), (voice[0], 8000), (8000, voice.T), (voice.T, 8000)):
        same(processor(audio=given), wanted)
        assert processor(audio=[given, None, given])["audio_attention_mask"].any(1).tolist() == [True, False, True]
    found = processor(audio=(8000, ints))
    torch.testing.assert_close(found["input_features"], wanted["input_features"], atol=1e-2, rtol=0)


# ----- text ----------------------------------------------------------------------------------------------------------


def test_emoji_count_by_their_names(processor, reader):
    assert name_emoji("well done😂😂!", lambda character: True) == "well done face with tears of joy !"
    assert name_emoji("ok 👍🏽", lambda character: True) == "ok  thumbs up sign "
    assert name_emoji("❤️ 語", lambda character: True) == " heavy black heart  語"
    assert name_emoji("well done😂", lambda character: False) == "well done😂"
    decoded = processor.tokenizer.decode(processor(text="so 😡")["input_ids"][0])
    assert processor.tokenizer.unk_token not in decoded
    angry, glad = (reader({"text": f"what a day {emoji}"}) for emoji in "😡😂")
    assert angry != glad


def test_text_of_unknown_tokens_is_absent_and_of_many_is_told(processor):
    given = {"text": "Это совсем", "images": picture()}
    same(processor(**given), processor(images=picture()))
    assert notes_of(processor, **given) == [
        "text: none of its 2 tokens is known to the tokenizer, so it counts as absent"
    ]
    assert "every sample is text: none of its 2 tokens" in str(
        pytest.raises(ValueError, processor, text="Это совсем").value
    )
    assert notes_of(processor, text="happy это совсем") == [
        "text: 2 of 3 tokens are unknown to the tokenizer (another script?)"
    ]
    assert notes_of(processor, text="happy sad это") == []
    batch = processor(text=["so happy", "это"], images=[None, picture()])
    assert batch["attention_mask"].any(1).tolist() == [True, False]


def test_text_beyond_the_limit_is_told_or_read_in_windows(processor, reader):
    """The limit is 32 tokens, two of them special: 70 words are windows of 30, 30 and 10, weighted 32, 32, 12."""
    words = (["happy"] * 60 + ["sad", "afraid"] * 20)[:70]
    text = " ".join(words)
    assert notes_of(processor, text=text) == ["text: the last 40 of 70 tokens were cut off (limit 32)"]
    answer = reader({"text": text}, return_notes=True)
    assert answer["notes"] == ["text: its 70 tokens were read in 3 windows of at most 32"]
    pieces = [" ".join(words[start : start + 30]) for start in (0, 30, 60)]
    with torch.no_grad():
        logits = torch.cat([reader.model(**processor(text=piece)).logits for piece in pieces])
    weights = torch.tensor([[32.0], [32.0], [12.0]])
    wanted = ((weights * logits).sum(0) / weights.sum()).softmax(-1)
    assert [entry["score"] for entry in answer["scores"]] == pytest.approx(
        sorted(wanted.tolist(), reverse=True), abs=1e-5
    )
    one_by_one = [answer["scores"], reader({"text": "so sad"}), reader({"image": picture()})]
    together = reader([{"text": text}, {"text": "so sad"}, {"image": picture()}], batch_size=3)
    for found, expected in zip(together, one_by_one, strict=True):
        assert [e["label"] for e in found] == [e["label"] for e in expected]
        assert [e["score"] for e in found] == pytest.approx([e["score"] for e in expected], abs=1e-5)


def test_a_lone_surrogate_is_named(processor):
    with pytest.raises(
        ValueError, match=r"valid Unicode, got a lone surrogate '\\ud83d' as character 3 of the text at 1"
    ):
        processor(text=["fine", "so \ud83d"])


# ----- empty cells, and how the caller is told -----------------------------------------------------------------------

EMPTY = [None, float("nan"), np.float32("nan"), pandas.NA, pandas.NaT, "", "  "]


def test_empty_cells_are_absent(processor, reader):
    """A row as pandas gives it, for pipeline and processor alike."""
    assert all(map(is_absent, EMPTY)) and not any(map(is_absent, [0, 0.0, "0", [], "nan", b""]))
    wanted = reader({"text": "so happy"})
    for empty in EMPTY:
        assert reader({"text": "so happy", "audio": empty, "video": empty, "image": empty}) == wanted
        same(processor(text="so happy", audio=empty, videos=empty, images=empty), processor(text="so happy"))
    batch = processor(text=["so happy", *EMPTY], images=[picture(), *[picture()] * len(EMPTY)])
    assert batch["attention_mask"].any(1).tolist() == [True, *[False] * len(EMPTY)]
    with pytest.raises(ValueError, match="needs at least one of text, audio, video, image"):
        reader({"text": pandas.NA, "audio": float("nan")})


def test_a_batch_does_not_lose_the_others(reader, caplog):
    """What has nothing to read from has an empty answer among many, and is refused alone."""
    silence = {"audio": {"array": np.zeros(RATE, np.float32), "sampling_rate": RATE}}
    inputs = [{"text": "so happy"}, silence, {"image": picture(), "text": "so sad"}]
    for batch_size in (1, 3):
        with caplog.at_level(logging.WARNING, logger="transformers"):
            answers = reader(inputs, batch_size=batch_size)
        assert [len(answer) for answer in answers] == [7, 0, 7]
        expected = reader(inputs[2])
        assert [e["score"] for e in answers[2]] == pytest.approx([e["score"] for e in expected], abs=1e-5)
        told = reader(inputs, batch_size=batch_size, return_notes=True)
        assert [one["modalities"] for one in told] == [["text"], [], ["text", "vision"]]
        assert "silence" in told[1]["notes"][0] and told[0]["notes"] == []
    with pytest.raises(ValueError, match="silence"):
        reader(silence)


def test_each_kind_of_note_is_logged_once_and_kept_out_of_the_tensors(processor, caplog):
    _said.clear()
    silence = [{"array": np.zeros(size, np.float32), "sampling_rate": RATE} for size in (RATE, 2 * RATE)]
    with caplog.at_level(logging.WARNING, logger="triemo"):
        batch = processor(text=["so happy", "so sad"], audio=silence)
        processor(text=["so happy", "so sad"], audio=silence)
    assert sum("Silence" in record.getMessage() for record in caplog.records) == 1
    assert all(isinstance(value, torch.Tensor) for value in batch.values())
    with_notes = [
        processor(text="so happy", audio=silence[0], return_notes=True),
        processor(text="sad", return_notes=True),
    ]
    collated = processor.pad(with_notes)
    assert [len(said) for said in collated["notes"]] == [1, 0]


def test_one_set_of_masks_for_model_and_processing():
    """Neither may import the other."""
    from triemo.modeling import inputs_triemo
    from triemo.processing import samples_triemo

    assert list(samples_triemo.MASKS.items()) == list(inputs_triemo.MASKS.items())
    assert pictures_triemo.MODEL_FRAME_RATE == TriemoConfig().video_frame_rate
