"""The processor: what people have, one or a batch, to the model's tensors."""

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from media_files import sine, write_clip
from PIL import Image
from tiny_checkpoint import FACE_DETECTOR, picture, tiny_classifier, tiny_processor
from transformers import AutoProcessor, SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor

from triemo.processing import TriemoProcessor, load_audio, load_frames

TEXT_KEYS = {"input_ids", "token_type_ids", "attention_mask"}
AUDIO_KEYS = {"input_features", "audio_attention_mask"}
PICTURE_KEYS = {"pixel_values", "video_attention_mask", "video_times"}


@pytest.fixture(scope="module")
def processor() -> TriemoProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def still(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stills") / "still.png"
    Image.fromarray(picture()).save(path)
    return path


def same(found: dict, wanted: dict, atol: float = 0.0) -> None:
    assert set(found) == set(wanted)
    for key, values in wanted.items():
        assert found[key].dtype == values.dtype
        np.testing.assert_allclose(found[key], values, atol=atol, rtol=0, err_msg=key)


# ----- one sample ----------------------------------------------------------------------------------------------------


def test_every_modality_with_shapes_types_and_masks(processor, media):
    """Half a second of sound is 50 frames of 80 bins; `num_frames=4` of a clip of 2 s stand at 0.25, 0.75, ... s."""
    sound = {"array": sine(0.5, 8000)[0], "sampling_rate": 8000}
    batch = processor(text="I am so happy", audio=sound, videos=media / "clip.mp4")
    assert {key: (tuple(values.shape), values.dtype) for key, values in batch.items()} == {
        "input_ids": ((1, 6), torch.int64),
        "token_type_ids": ((1, 6), torch.int64),
        "attention_mask": ((1, 6), torch.int64),
        "input_features": ((1, 50, 80), torch.float32),
        "audio_attention_mask": ((1, 50), torch.int64),
        "pixel_values": ((1, 4, 1, 32, 32), torch.float32),
        "video_attention_mask": ((1, 4), torch.int64),
        "video_times": ((1, 4), torch.float32),
    }
    assert all(batch[key].all() for key in ("attention_mask", "audio_attention_mask", "video_attention_mask"))
    np.testing.assert_allclose(batch["video_times"][0], [0.24, 0.72, 1.24, 1.72], atol=0.041)
    assert processor.tokenizer.decode(batch["input_ids"][0]) == "[CLS] i am so happy [SEP]"
    assert set(batch) <= set(processor.model_input_names)
    as_numpy = processor(text="I am so happy", audio=sound, return_tensors="np")
    assert isinstance(as_numpy["input_features"], np.ndarray) and not set(as_numpy) & PICTURE_KEYS


def test_every_form_of_a_still_gives_the_same(processor, still):
    rgb = picture()
    wanted = processor(images=rgb)
    assert wanted["pixel_values"].shape == (1, 1, 1, 32, 32) and wanted["video_times"].tolist() == [[0.0]]
    forms = [
        str(still),
        still,
        still.as_uri(),
        still.read_bytes(),
        {"bytes": still.read_bytes(), "path": None},
        {"bytes": None, "path": str(still)},
        Image.open(still),
        torch.from_numpy(rgb).permute(2, 0, 1),
        rgb / 255.0,
    ]
    for form in forms:
        same(processor(images=form), wanted)


def test_every_form_of_a_sound_gives_the_same(processor, media):
    path = media / "sound.wav"
    wave = load_audio(path)
    wanted = processor(audio=str(path))
    forms = [
        path,
        path.read_bytes(),
        {"bytes": path.read_bytes(), "path": "sound.wav"},
        {"array": wave, "sampling_rate": 16000},
    ]
    for form in forms:
        same(processor(audio=form), wanted)
    for form in (wave, torch.from_numpy(wave), wave.tolist()):
        same(processor(audio=form, sampling_rate=16000), wanted)


def test_every_form_of_a_clip_gives_the_same(processor, media):
    path = media / "silent.mp4"
    wanted = processor(videos=str(path))
    same(processor(videos=path.read_bytes()), wanted)
    same(processor(videos={"bytes": None, "path": str(path)}), wanted)
    frames, _ = load_frames(path, num_frames=4)
    for form in (frames, [Image.fromarray(frame) for frame in frames], np.stack(frames)):
        np.testing.assert_array_equal(processor(videos=form)["pixel_values"], wanted["pixel_values"])
    channels_first = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(processor(videos=channels_first)["pixel_values"], wanted["pixel_values"])


def test_a_url_is_fetched_once(processor, media, media_url, monkeypatch):
    """Frames and sound of a clip behind a URL come out of one download."""
    from triemo.processing import media_sources_triemo as sources

    fetched = []
    download = sources._download
    monkeypatch.setattr(sources, "_download", lambda url: fetched.append(url) or download(url))
    found = processor(videos=f"{media_url}/clip.mp4")
    same(found, processor(videos=media / "clip.mp4"))
    assert fetched == [f"{media_url}/clip.mp4"] and "input_features" in found


def test_sound_track_is_used_left_out_or_replaced(processor, media):
    clip, sound = media / "clip.mp4", media / "sound.wav"
    with_track = processor(videos=clip)
    same({key: with_track[key] for key in AUDIO_KEYS}, processor(audio=clip))
    assert set(processor(videos=clip, use_sound_track=False)) == PICTURE_KEYS
    replaced = processor(videos=clip, audio=sound)
    same({key: replaced[key] for key in AUDIO_KEYS}, processor(audio=sound))
    assert set(processor(videos=media / "silent.mp4")) == PICTURE_KEYS
    assert set(processor(videos=load_frames(clip, num_frames=3)[0])) == PICTURE_KEYS


def test_options_reach_the_part_they_belong_to(processor, media):
    long = " ".join(["happy"] * 100)
    assert processor(text=long)["input_ids"].shape == (1, 32)
    assert processor(text="happy", padding="max_length", max_length=9)["attention_mask"].tolist() == [
        [1] * 3 + [0] * 6
    ]
    assert "token_type_ids" not in processor(text="happy", return_token_type_ids=False)
    clip = media / "silent.mp4"
    assert processor(videos=clip, num_frames=7, size=16)["pixel_values"].shape == (1, 7, 1, 16, 16)
    at_rate = processor(videos=clip, frame_rate=2, num_frames=None)
    np.testing.assert_allclose(at_rate["video_times"], [[0.0, 0.5, 1.0, 1.5]], atol=0.021)
    assert processor(images=picture(), do_grayscale=False)["pixel_values"].shape == (1, 1, 3, 32, 32)


# ----- batches -------------------------------------------------------------------------------------------------------


def samples(media: Path) -> list[dict[str, Any]]:
    """One sample for each way to lack something."""
    sound = {"array": sine(0.37, 16000)[0], "sampling_rate": 16000}
    return [
        {"text": "what a day this is", "videos": media / "clip.mp4"},
        {"text": "I am happy"},
        {"audio": sound},
        {"images": picture(1)},
        {"text": "   ", "videos": [picture(2), picture(3)], "audio": media / "sound.wav"},
    ]


def test_collating_single_calls_equals_the_batch_call(processor, media):
    """Exactly, and each row is what the sample gives alone, under zeros of the mask where it has nothing."""
    rows = samples(media)
    batch = {key: [row.get(key) for row in rows] for key in ("text", "videos", "images")}
    batch["audio"] = [row.get("audio") for row in rows]
    batch["audio"][0] = media / "clip.mp4"  # with a list of audio, no sound track is taken by itself
    together = processor(**batch)
    single = [processor(**row) for row in rows]
    same(processor.pad(single), together)
    same(processor.pad(single, return_tensors="np"), processor(**batch, return_tensors="np"))
    assert together["attention_mask"].any(1).tolist() == [True, True, False, False, False]
    assert together["audio_attention_mask"].any(1).tolist() == [True, False, True, False, True]
    assert together["video_attention_mask"].sum(1).tolist() == [4, 0, 0, 1, 2]
    assert (together["input_ids"][2:] == processor.tokenizer.pad_token_id).all()
    for row, alone in enumerate(single):
        for key, values in alone.items():
            steps = values.shape[1]
            np.testing.assert_array_equal(together[key][row, :steps], values[0], err_msg=f"{row} {key}")
            assert key == "input_ids" or not together[key][row, steps:].any()


def test_pad_takes_labels_and_refuses_some_without(processor):
    one, two = processor(text="happy"), processor(text="so very sad")
    labelled = [{**one, "labels": 3}, {**two, "labels": torch.tensor(5)}]
    assert processor.pad(labelled)["labels"].tolist() == [3, 5]
    soft = processor.pad([{**one, "labels": [0.5, 0.5]}, {**two, "labels": [1.0, 0.0]}])
    assert soft["labels"].tolist() == [[0.5, 0.5], [1.0, 0.0]]
    with pytest.raises(ValueError, match="labels must be in every sample"):
        processor.pad([labelled[0], two])
    with pytest.raises(ValueError, match="at least one sample"):
        processor.pad([])


def test_lists_of_pictures(processor, media):
    """Stills: a batch; frames: one clip; a list with a clip in it: a batch of clips."""
    first, second = picture(1), picture(2)
    assert processor(images=[first, second])["video_attention_mask"].tolist() == [[1], [1]]
    assert processor(images=np.stack([first, second]))["pixel_values"].shape[:2] == (2, 1)
    assert processor(videos=[first, second])["video_attention_mask"].tolist() == [[1, 1]]
    clips = processor(videos=[[first, second], str(media / "one.mp4")])
    assert clips["video_attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert processor(videos=np.stack([np.stack([first] * 3)] * 2))["pixel_values"].shape[:2] == (2, 3)
    assert processor(videos=[str(media / "one.mp4")] * 2)["pixel_values"].shape[:2] == (2, 1)
    np.testing.assert_array_equal(
        processor(images=[first, second])["pixel_values"][:, 0], processor(videos=[first, second])["pixel_values"][0]
    )


def test_datasets_rows(processor, media, still):
    """Audio as bytes, undecoded; images decoded to PIL; a column is a batch."""
    rows = {
        "sound": [
            {"bytes": (media / "sound.wav").read_bytes(), "path": None},
            {"bytes": None, "path": str(media / "sound.wav")},
        ],
        "face": [str(still), str(still)],
        "text": ["so happy", ""],
    }
    # Cast, since encoding an Audio feature asks for torchcodec even where there is nothing to encode.
    table = datasets.Dataset.from_dict(rows).cast_column("sound", datasets.Audio(decode=False))
    table = table.cast_column("face", datasets.Image(decode=True))
    found = processor(text=table[:]["text"], audio=table[:]["sound"], images=table[:]["face"])
    wanted = processor(text=["so happy", None], audio=[media / "sound.wav"] * 2, images=[picture()] * 2)
    same(found, wanted)
    one = processor(text=table[0]["text"], audio=table[0]["sound"], images=table[0]["face"])
    same(one, {key: values[:1] for key, values in wanted.items()})


def test_one_warning_for_arrays_without_a_rate(processor, caplog):
    wave = sine(0.2, 16000)[0]
    with caplog.at_level(logging.WARNING, logger="transformers"):
        found = processor(audio=[wave, wave])
    assert sum("without sampling_rate" in record.getMessage() for record in caplog.records) <= 1
    same(found, processor(audio=[wave, wave], sampling_rate=16000))
    resampled = processor(audio=wave, sampling_rate=8000)
    assert resampled["audio_attention_mask"].sum() == 2 * found["audio_attention_mask"][0].sum()


@pytest.mark.parametrize(
    "extractor", [Wav2Vec2FeatureExtractor(), SeamlessM4TFeatureExtractor()], ids=["wave", "fbank"]
)
def test_other_libraries_extractors(extractor, media):
    """Their mask is called `attention_mask`, which here is the text's: it is renamed."""
    usual = tiny_processor()
    processor = TriemoProcessor(usual.image_processor, extractor, usual.tokenizer)
    batch = processor(audio=[media / "sound.wav", None, media / "clip.mp4"], text=["so sad", "happy", None])
    name = "input_values" if isinstance(extractor, Wav2Vec2FeatureExtractor) else "input_features"
    assert set(batch) == TEXT_KEYS | {name, "audio_attention_mask"}
    assert batch["attention_mask"].shape != batch["audio_attention_mask"].shape
    waves = [load_audio(media / "sound.wav"), load_audio(media / "clip.mp4")]
    direct = extractor(waves, sampling_rate=16000, padding=True, return_attention_mask=True, return_tensors="np")
    np.testing.assert_allclose(batch[name][[0, 2]], direct[name], atol=1e-6)
    np.testing.assert_array_equal(batch["audio_attention_mask"][[0, 2]], direct["attention_mask"])
    assert not batch[name][1].any() and not batch["audio_attention_mask"][1].any()


# ----- errors and fallbacks ------------------------------------------------------------------------------------------

BAD_CALLS = {
    "nothing": ({}, "nothing to process: give at least one"),
    "all_absent": ({"text": ["", None], "audio": [None, None]}, "every sample is None or empty text"),
    "empty_text": ({"text": "  "}, "every sample is None or empty text"),
    "sizes": ({"text": ["a", "b"], "images": [picture()]}, r"same number of samples, got .*'images': 1.*'text': 2"),
    "option": ({"text": "a", "paddin": True}, r"unknown options \['paddin'\]"),
    "both": ({"images": picture(), "videos": [[picture()]]}, "either a still or a video, got both"),
    "both_in_batch": (
        {"images": [None, picture()], "videos": [[picture()], [picture()]]},
        "sample 1: a sample has either a still or a video",
    ),
    "empty_list": ({"images": []}, "images is an empty list"),
    "empty_clip": ({"videos": [[picture()], []]}, "sample 1: A video must have at least one frame"),
    "number_as_text": ({"text": ["a", 3]}, "text must be a string or a list of strings, got int at 1"),
    "nan": ({"audio": {"array": np.array([0.0, np.nan]), "sampling_rate": 16000}}, "finite samples"),
    "no_rate": ({"audio": {"array": np.zeros(9)}}, 'must state its "sampling_rate"'),
    "rate": ({"audio": {"array": np.zeros(9), "sampling_rate": -1}}, "sampling_rate"),
    "empty_sound": ({"audio": {"array": np.zeros(0), "sampling_rate": 16000}}, "at least one sample"),
    "rank": ({"audio": np.zeros((2, 2, 3, 4))}, "sample 0: Sound must be of shape"),
    "frames": ({"videos": [[picture()]], "num_frames": 0}, "num_frames must be a whole number of at least 1"),
    "number_as_clip": ({"videos": [["a.png"], 3]}, "sample 0: Cannot read media from a.png"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused(processor, name):
    arguments, reason = BAD_CALLS[name]
    with pytest.raises(ValueError, match=reason):
        processor(**arguments)


def test_bad_media_are_named_with_the_sample(processor, media, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    good, sound = str(media / "clip.mp4"), str(media / "sound.wav")
    with pytest.raises(ValueError, match=r"sample 1: .*empty\.mp4: it is empty"):
        processor(videos=[good, tmp_path / "empty.mp4"])
    with pytest.raises(ValueError, match=r"^Cannot read media from .*text\.mp4"):
        processor(videos=tmp_path / "text.mp4")
    with pytest.raises(ValueError, match=r"sample 2: .*sound\.wav: it has no picture track"):
        processor(videos=[good, None, sound])
    with pytest.raises(ValueError, match=r"sample 0: .*silent\.mp4: it has no sound track"):
        processor(audio=[str(media / "silent.mp4"), sound])
    with pytest.raises(ValueError, match=r"sample 1: Cannot read an image from .*text\.mp4: not an image"):
        processor(images=[picture(), tmp_path / "text.mp4"])
    with pytest.raises(ValueError, match=r"nowhere\.wav: No such file"):
        processor(audio=tmp_path / "nowhere.wav")


def test_a_clip_without_a_face_falls_back_to_the_text(media, caplog):
    """Its mask is zero, a warning says so, the model answers as for the text alone; with nothing else it refuses."""
    blind = tiny_processor(face_detector=lambda frames: [np.zeros((0, 5)) for _ in frames])
    model = tiny_classifier()
    with caplog.at_level(logging.WARNING, logger="transformers"):
        faceless = blind(videos=media / "silent.mp4", text="I am happy")
    assert any("No face was found" in record.getMessage() for record in caplog.records)
    assert not faceless["video_attention_mask"].any()
    with torch.no_grad():
        alone = model(**blind(text="I am happy"))
        torch.testing.assert_close(model(**faceless).logits, alone.logits, atol=1e-6, rtol=0)
        with pytest.raises(ValueError, match="no modality"):
            model(**blind(videos=media / "silent.mp4"))


# ----- files ---------------------------------------------------------------------------------------------------------


def test_round_trip_through_disk(media, tmp_path):
    """Settings of all three parts, and the face detector's weights beside them."""
    processor = tiny_processor(face_detector="mtcnn", face_detector_weights=FACE_DETECTOR, face_margin=0.3)
    processor.feature_extractor.hop_length = 200
    processor.tokenizer.model_max_length = 17
    files = processor.save_pretrained(tmp_path)
    assert {Path(file).name for file in files} >= {"processor_config.json", "face_detector.safetensors"}
    for loaded in (AutoProcessor.from_pretrained(tmp_path), TriemoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is TriemoProcessor
        assert loaded.to_dict() == processor.to_dict()
        assert (
            loaded.tokenizer.model_max_length == 17 and loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
        )
        weights = loaded.image_processor._face_detector_weights
        assert weights.keys() == processor.image_processor._face_detector_weights.keys()
        call = {"videos": media / "clip.mp4", "text": "this is the day"}
        same(loaded(**call), processor(**call))


def test_a_portrait_clip_and_its_sound_stay_together(processor, tmp_path):
    """Rotation is applied, and sound that begins half a second late does so in the tensors."""
    write_clip(tmp_path / "p.mp4", rotation=90, sound=sine(1.0, 16000), sound_rate=16000, sound_start_seconds=0.5)
    plain = write_clip(tmp_path / "plain.mp4")
    batch = processor(videos=[tmp_path / "p.mp4", plain], do_normalize=False)
    upright, stored = batch["pixel_values"][0, 0, 0], batch["pixel_values"][1, 0, 0]
    assert torch.allclose(upright, torch.rot90(stored), atol=0.1) and not torch.allclose(upright, stored, atol=0.1)
    loudness = batch["input_features"][0].amax(1)
    assert loudness[:40].max() < loudness[60:140].min()


# ----- the library's conventions -------------------------------------------------------------------------------------


def test_options_may_be_nested_by_modality(processor, media):
    """As every processor of the library takes them; given both ways they are refused."""
    sound = {"array": sine(0.37, 16000)[0], "sampling_rate": 16000}
    nested = processor(
        text="so happy",
        images=picture(),
        audio=sine(0.37, 8000)[0],
        text_kwargs={"padding": "max_length", "max_length": 9, "padding_side": "left"},
        images_kwargs={"do_rescale": False, "size": 16},
        audio_kwargs={"sampling_rate": 8000, "padding": "max_length", "max_length": 60},
        common_kwargs={"return_tensors": "np"},
    )
    assert isinstance(nested["input_ids"], np.ndarray)
    assert nested["attention_mask"].tolist() == [[0] * 5 + [1] * 4]
    assert nested["pixel_values"].shape == (1, 1, 1, 16, 16) and nested["pixel_values"].max() > 100
    assert nested["audio_attention_mask"].shape == (1, 60) and nested["audio_attention_mask"].sum() == 37
    bare = processor(text="so happy", add_special_tokens=False)
    assert processor.tokenizer.decode(bare["input_ids"][0]) == "so happy"
    assert set(processor(text="so happy", audio=sound, return_attention_mask=False)) == {
        "input_ids",
        "token_type_ids",
        "input_features",
    }
    with pytest.raises(ValueError, match=r"\['max_length'\] were given both by themselves and under text_kwargs"):
        processor(text="so happy", max_length=3, text_kwargs={"max_length": 4})
    for options in ({"text_kwargs": {"paddin": True}}, {"images_kwargs": {"sise": 3}}, {"common_kwargs": {"a": 1}}):
        with pytest.raises(ValueError, match="unknown options"):
            processor(text="so happy", **options)


def test_the_tokenizers_own_settings_go_before_the_defaults(tmp_path):
    processor = tiny_processor()
    processor.tokenizer.init_kwargs |= {"padding": "max_length", "max_length": 11}
    processor.save_pretrained(tmp_path)
    for ours in (processor, TriemoProcessor.from_pretrained(tmp_path)):
        assert ours(text="so happy")["input_ids"].shape == (1, 11)
        assert ours(text="so happy", padding=True)["input_ids"].shape == (1, 4)
        assert ours(text="so happy", max_length=5)["input_ids"].shape == (1, 5)


def test_stills_may_be_nested_by_sample(processor):
    batch = processor(text=["so happy", "so sad"], images=[[], [picture()]])
    assert batch["video_attention_mask"].tolist() == [[0], [1]]
    same(processor(images=[[picture(1)], [picture(2)]]), processor(images=[picture(1), picture(2)]))
    with pytest.raises(ValueError, match="images: sample 1 has 2 stills, expected one"):
        processor(images=[[picture()], [picture(), picture()]])


def test_unknown_fields_of_files_are_refused(processor, tmp_path):
    for part in (processor.image_processor, processor.feature_extractor):
        with pytest.raises(ValueError, match="hop_size"):
            type(part).from_dict({**part.to_dict(), "hop_size": 3})
    with pytest.raises(ValueError, match="hop_size"):
        type(processor.image_processor).from_dict(processor.image_processor.to_dict(), hop_size=3)
    with pytest.raises(ValueError, match=r"unknown field\(s\) \['hop_size'\]"):
        TriemoProcessor.from_args_and_dict([], {**processor.to_dict(), "hop_size": 3})
