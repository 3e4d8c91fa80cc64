"""The multimodal pipeline, and the stock pipelines on the same checkpoint: each equals the model called directly."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from media_files import HEIGHT, sine, write_clip, write_damaged, write_sound, write_truncated
from PIL import Image
from tiny_checkpoint import LABELS, picture, save_tiny_checkpoint, tiny_classifier, tiny_processor
from transformers import AutoModelForVideoClassification, pipeline

from triemo.processing import TASK, MultimodalEmotionRecognitionPipeline, load_audio, load_frames, media_sources_triemo
from triemo.processing.media_sources_triemo import MediaLimits


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def reader(checkpoint) -> MultimodalEmotionRecognitionPipeline:
    return pipeline(TASK, model=str(checkpoint))


@pytest.fixture(scope="module")
def still(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stills") / "still.png"
    Image.fromarray(picture()).save(path)
    return path


@pytest.fixture
def own_reader() -> MultimodalEmotionRecognitionPipeline:
    """A pipeline whose config a test may change."""
    return MultimodalEmotionRecognitionPipeline(model=tiny_classifier(), processor=tiny_processor(), task=TASK)


def logits(model: torch.nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def same_answer(answer: list[dict[str, Any]], scores: torch.Tensor, atol: float = 1e-5) -> None:
    """All labels, best first, with these scores (classes,)."""
    assert [entry["score"] for entry in answer] == sorted((entry["score"] for entry in answer), reverse=True)
    found = {entry["label"]: entry["score"] for entry in answer}
    assert set(found) == set(LABELS)
    np.testing.assert_allclose([found[label] for label in LABELS], scores, atol=atol)


def same_answers(found: list, wanted: list) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        scores = {entry["label"]: entry["score"] for entry in other}
        same_answer(one, torch.tensor([scores[label] for label in LABELS]))


# ----- what goes in --------------------------------------------------------------------------------------------------


def test_each_kind_of_file_is_the_modality_it_holds(reader, media, still):
    """By content: a video counts with its sound track; a suffix says nothing."""
    for path, argument in ((media / "clip.mp4", "videos"), (media / "sound.wav", "audio"), (still, "images")):
        wanted = logits(reader.model, **reader.processor(**{argument: path}))[0].softmax(-1)
        unnamed = path.with_name(f"{argument}.bin")
        unnamed.write_bytes(path.read_bytes())
        forms = [str(path), path, path.as_uri(), path.read_bytes(), unnamed, {"bytes": None, "path": str(path)}]
        for form in [*forms, {"bytes": path.read_bytes(), "path": None}, {"path": str(path)}]:
            same_answer(reader(form), wanted)


def test_a_url_is_fetched_once(reader, media, media_url, monkeypatch):
    """For its kind, its frames and its sound together."""
    fetched = []
    download = media_sources_triemo._download
    monkeypatch.setattr(media_sources_triemo, "_download", lambda url: fetched.append(url) or download(url))
    same_answers([reader(f"{media_url}/clip.mp4")], [reader(media / "clip.mp4")])
    assert fetched == [f"{media_url}/clip.mp4"]
    with pytest.raises(ValueError, match=r"/nowhere\.mp4: .*404"):
        reader(f"{media_url}/nowhere.mp4")


def test_dicts_of_any_modalities(reader, media, still):
    clip, sound = str(media / "clip.mp4"), str(media / "sound.wav")
    wave = load_audio(sound)
    frames, times = load_frames(clip, num_frames=4)
    cases = [
        ({"text": "I am so happy"}, {"text": "I am so happy"}),
        ({"text": "so sad", "video": clip}, {"text": "so sad", "videos": clip}),
        ({"text": "so sad", "video": clip, "audio": sound}, {"text": "so sad", "videos": clip, "audio": sound}),
        ({"image": Image.open(still), "audio": None, "text": ""}, {"images": still}),
        ({"audio": {"array": wave, "sampling_rate": 16000}}, {"audio": sound}),
        ({"audio": wave.tolist()}, {"audio": sound}),
        ({"video": frames}, {"videos": np.stack(frames)}),
        ({"image": picture(3), "text": "fine"}, {"images": picture(3), "text": "fine"}),
    ]
    for sample, arguments in cases:
        same_answer(reader(sample), logits(reader.model, **reader.processor(**arguments))[0].softmax(-1))
    same_answer(
        reader({"video": clip}, use_sound_track=False, num_frames=2),
        logits(reader.model, **reader.processor(videos=clip, use_sound_track=False, num_frames=2))[0].softmax(-1),
    )
    same_answer(
        reader({"audio": wave}, sampling_rate=8000),
        logits(reader.model, **reader.processor(audio=wave, sampling_rate=8000))[0].softmax(-1),
    )


def mixed(media: Path, still: Path) -> list:
    return [
        {"text": "what a day this is"},
        str(media / "clip.mp4"),
        str(still),
        {"audio": str(media / "sound.wav"), "text": "i am afraid"},
        {"video": [picture(1), picture(2)], "text": "so angry"},
        str(media / "one.mp4"),
    ]


def test_batches_of_mixed_modalities_equal_single_calls(reader, media, still):
    inputs = mixed(media, still)
    one_by_one = [reader(input_) for input_ in inputs]
    tops = {answer[0]["label"] for answer in one_by_one}
    assert len(tops) > 1 and abs(one_by_one[0][0]["score"] - one_by_one[1][0]["score"]) > 1e-3
    for batch_size in (1, 4):
        same_answers(reader(inputs, batch_size=batch_size), one_by_one)
    same_answers(reader(inputs[::-1], batch_size=6)[::-1], one_by_one)


def test_generators_and_datasets_are_streamed(reader, media, still, tmp_path):
    sentences = ["i am so happy", "this is not fine", "we are afraid"]
    wanted = reader([{"text": sentence} for sentence in sentences])
    drawn = []

    def rows():
        for sentence in sentences:
            drawn.append(sentence)
            yield {"text": sentence}

    stream = iter(reader(rows()))
    same_answers([next(stream)], wanted[:1])
    assert len(drawn) < 3
    same_answers(list(stream), wanted[1:])

    table = datasets.Dataset.from_dict({"text": sentences, "image": [str(still), None, str(still)]})
    table = table.cast_column("image", datasets.Image())
    with_image = reader([{"text": s, "image": still if i != 1 else None} for i, s in enumerate(sentences)])
    same_answers(list(reader(table, batch_size=2)), with_image)
    same_answers(list(reader(table.to_iterable_dataset())), with_image)
    same_answers(list(reader(table.select_columns("text"))), wanted)


# ----- what comes out ------------------------------------------------------------------------------------------------


def test_top_k(reader):
    everything = reader({"text": "so happy"})
    assert len(everything) == 7 and sum(entry["score"] for entry in everything) == pytest.approx(1)
    assert reader({"text": "so happy"}, top_k=2) == everything[:2]
    assert reader([{"text": "so happy"}], top_k=99) == [everything]
    made_with = MultimodalEmotionRecognitionPipeline(model=reader.model, processor=reader.processor, top_k=1)
    assert made_with({"text": "so happy"}) == everything[:1]
    assert made_with({"text": "so happy"}, top_k=3) == everything[:3]


def test_candidate_labels_share_the_calibrated_scores_between_them(own_reader):
    """After the temperature: the scores of all labels, those of the others taken out, over what is left."""
    own_reader.model.config.calibration_temperature = 2.5
    everything = {entry["label"]: entry["score"] for entry in own_reader({"text": "so happy"})}
    wanted = ["sadness", "joy", "anger"]
    answer = own_reader({"text": "so happy"}, candidate_labels=wanted)
    total = sum(everything[label] for label in wanted)
    assert {entry["label"]: entry["score"] for entry in answer} == pytest.approx(
        {label: everything[label] / total for label in wanted}
    )
    assert [entry["score"] for entry in answer] == sorted((entry["score"] for entry in answer), reverse=True)
    # As zero-shot pipelines take them; in a batch; set when the pipeline is made; the best of them.
    assert own_reader({"text": "so happy"}, candidate_labels="sadness, joy,anger") == answer
    assert own_reader([{"text": "so happy"}], candidate_labels=wanted, top_k=1) == [answer[:1]]
    made = MultimodalEmotionRecognitionPipeline(
        model=own_reader.model, processor=own_reader.processor, candidate_labels=wanted
    )
    assert made({"text": "so happy"}) == answer


def test_candidate_labels_of_several_labels_keep_their_own_scores(own_reader):
    for problem in ("multi_label_classification", "regression"):
        own_reader.model.config.problem_type = problem
        everything = own_reader({"text": "so happy"})
        chosen = [entry for entry in everything if entry["label"] in ("fear", "joy")]
        assert own_reader({"text": "so happy"}, candidate_labels=["joy", "fear"]) == chosen


def test_unknown_candidate_labels_are_refused_by_name(reader):
    for wrong, named in ((["joy", "glee"], "got 'glee'"), ("bliss,glee", "got 'bliss', 'glee'"), ([], "got none")):
        with pytest.raises(ValueError, match=f"candidate_labels: {named}, expected some of anger, disgust"):
            reader({"text": "so happy"}, candidate_labels=wrong)


def test_an_answer_below_the_least_score_is_uncertain(own_reader):
    plain = own_reader({"text": "so happy"})
    best = plain[0]["score"]
    assert own_reader({"text": "so happy"}, min_score=best) == plain
    uncertain = [{**plain[0], "uncertain": True}, *plain[1:]]
    assert own_reader({"text": "so happy"}, min_score=best + 1e-6) == uncertain
    own_reader.model.config.min_score = {"text": best + 1e-6, "vision": 0.0}  # as it is stored with the checkpoint
    assert own_reader([{"text": "so happy"}]) == [uncertain]
    assert own_reader({"image": picture()})[0].keys() == {"label", "score"}
    assert own_reader({"text": "so happy"}, min_score=0) == plain
    told = own_reader({"text": "so happy"}, return_notes=True)
    assert told["uncertain"] is True and told["scores"] == plain
    # Between two labels it may be sure again; a value of a regression is never a certainty.
    assert own_reader({"text": "so happy"}, candidate_labels=[plain[0]["label"], plain[-1]["label"]]) != uncertain[:2]
    own_reader.model.config.problem_type = "regression"
    assert all("uncertain" not in entry for entry in own_reader({"text": "so happy"}, min_score=1.0))
    with pytest.raises(ValueError, match="min_score must be a number from 0 to 1, got 1.5"):
        own_reader({"text": "so happy"}, min_score=1.5)


def test_unreadable_inputs_among_many_are_skipped_on_request(reader, media, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_text("no sound at all")
    inputs = [str(media / "sound.wav"), str(broken), {"text": "so happy"}, {"text": 3}]
    answers = reader(inputs, skip_unreadable=True, return_notes=True, batch_size=2)
    assert [answer["modalities"] for answer in answers] == [["audio"], [], ["text"], []]
    assert answers[1]["scores"] == [] and not answers[1]["uncertain"] and "broken.wav" in answers[1]["notes"][-1]
    assert "text must be a string" in answers[3]["notes"][-1]
    same_answers([answers[0]["scores"], answers[2]["scores"]], [reader(inputs[0]), reader(inputs[2])])
    with pytest.raises(ValueError, match="broken.wav"):
        reader(inputs, batch_size=2)
    with pytest.raises(ValueError, match="broken.wav"):
        reader(str(broken), skip_unreadable=True)


def test_calibration_temperature_divides_the_logits(own_reader):
    raw = logits(own_reader.model, **own_reader.processor(text="so happy"))[0]
    same_answer(own_reader({"text": "so happy"}), raw.softmax(-1))
    own_reader.model.config.calibration_temperature = 2.0
    by_hand = np.exp(raw.numpy() / 2) / np.exp(raw.numpy() / 2).sum()
    same_answer(own_reader({"text": "so happy"}), torch.from_numpy(by_hand))


def test_each_subset_has_its_own_temperature(own_reader, media, still):
    inputs = {"text": {"text": "so happy"}, "text+vision": {"text": "so happy", "image": str(still)}}
    inputs["audio"] = {"audio": str(media / "sound.wav")}
    names = {"text": "text", "audio": "audio", "image": "images"}
    given = {name: {names[key]: [value] for key, value in sample.items()} for name, sample in inputs.items()}
    raw = {name: logits(own_reader.model, **own_reader.processor(**sample))[0] for name, sample in given.items()}
    own_reader.model.config.calibration_temperature = {"text": 2.0, "text+vision": 0.5}
    batch = own_reader(list(inputs.values()), batch_size=3)
    for (name, sample), answer in zip(inputs.items(), batch, strict=True):
        expected = (raw[name] / {"text": 2.0, "text+vision": 0.5, "audio": 1.0}[name]).softmax(-1)
        same_answer(answer, expected)
        same_answer(own_reader(sample), expected)


def test_multi_label_and_regression_scores(own_reader):
    raw = logits(own_reader.model, **own_reader.processor(text="so happy"))[0]
    own_reader.model.config.problem_type = "multi_label_classification"
    own_reader.model.config.calibration_temperature = 0.5
    same_answer(own_reader({"text": "so happy"}), 1 / (1 + torch.exp(-raw / 0.5)))
    own_reader.model.config.problem_type = "regression"
    same_answer(own_reader({"text": "so happy"}), raw)


def test_one_output_is_a_value_and_no_certainty(own_reader):
    """A softmax over one output is 1.0 whatever the input; without a problem_type it is regression, as in training."""
    model = own_reader.model
    model.config.problem_type, model.config.id2label = None, {0: "valence"}
    model.classifier.out_proj = torch.nn.Linear(model.config.hidden_size, 1)
    (answer,) = own_reader({"text": "so happy"})
    raw = logits(model, **own_reader.processor(text="so happy"))[0]
    assert answer == {"label": "valence", "score": pytest.approx(raw.item(), abs=1e-5)} and raw.item() != 1.0


def test_saved_pipeline_answers_the_same(own_reader, media, tmp_path):
    own_reader.model.config.calibration_temperature = 1.7
    own_reader.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path))
    assert type(loaded) is MultimodalEmotionRecognitionPipeline and not list(tmp_path.glob("*.py"))
    inputs = [{"video": str(media / "clip.mp4"), "text": "what a day"}, str(media / "sound.wav")]
    same_answers(loaded(inputs), own_reader(inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(checkpoint, reader, media, still, tmp_path, dtype):
    """As released: weights of 16 bits answer through all pipelines, close to those of 32."""
    AutoModelForVideoClassification.from_pretrained(checkpoint, dtype=dtype).save_pretrained(tmp_path)
    reader.processor.save_pretrained(tmp_path)
    half = pipeline(TASK, model=str(tmp_path))
    assert half.model.dtype == dtype
    inputs = mixed(media, still)
    for found, wanted in zip(half(inputs, batch_size=3), reader(inputs), strict=True):
        scores = {entry["label"]: entry["score"] for entry in wanted}
        same_answer(found, torch.tensor([scores[label] for label in LABELS]), atol=0.03)
    stock_inputs = {"text": "so happy", "audio": load_audio(media / "sound.wav"), "image": str(still)}
    for task, input_ in {**stock_inputs, "video": str(media / "clip.mp4")}.items():
        answer = stock(task, tmp_path)([input_])[0]
        assert sum(entry["score"] for entry in answer) == pytest.approx(1, abs=0.01)


# ----- what is refused -----------------------------------------------------------------------------------------------


def test_unknown_keys_and_parameters_are_refused(reader):
    with pytest.raises(ValueError, match=r"keys text, audio, video, image, got \['speech'\]"):
        reader({"text": "a", "speech": "b.wav"})
    with pytest.raises(ValueError, match=r"unknown parameters \['topk'\]; accepted: top_k"):
        reader({"text": "a"}, topk=3)
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="top_k must be a whole number of at least 1"):
            reader({"text": "a"}, top_k=wrong)
    for nothing in ({"text": None}, {"text": None, "audio": None}):
        with pytest.raises(ValueError, match="needs at least one of text, audio, video, image"):
            reader(nothing)
    for empty in ({"text": "  "}, {}):
        with pytest.raises(ValueError):
            reader(empty)
    with pytest.raises(ValueError, match="string or a list of strings, got list"):
        reader({"text": ["a", "b"]})


def test_a_clip_without_a_face_and_nothing_else_is_refused(own_reader, media):
    """With text besides it counts as text alone."""
    own_reader.processor.image_processor.face_detector = lambda frames: [np.zeros((0, 5)) for _ in frames]
    grey = np.full((70, 50, 3), 90, np.uint8)  # of one colour: a picture of something would be read whole
    for input_ in (str(media / "silent.mp4"), {"image": grey}):
        with pytest.raises(ValueError, match="no face was found, and the input has neither text nor sound"):
            own_reader(input_)
    same_answers([own_reader({"video": media / "silent.mp4", "text": "fine"})], [own_reader({"text": "fine"})])


def test_a_string_is_a_path(reader, tmp_path):
    with pytest.raises(ValueError, match=r'I am happy: No such file.*A sentence is given as \{"text": \.\.\.\}'):
        reader("I am happy")
    with pytest.raises(ValueError, match="nowhere.mp4: No such file"):
        reader(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match="Is a directory"):
        reader(str(tmp_path))
    with pytest.raises(ValueError, match="expected a path, a URL, bytes"):
        reader(3)


def test_bad_files_are_refused_by_name(reader, media, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all\n" * 20)
    write_truncated(tmp_path / "half.mp4", media / "clip.mp4", 0.5)
    Image.fromarray(picture()).save(tmp_path / "whole.png")
    write_truncated(tmp_path / "half.png", tmp_path / "whole.png", 0.5)
    for name in ("empty.mp4", "text.mp4", "half.mp4", "half.png"):
        for input_ in (str(tmp_path / name), {"text": "so happy", "video": str(tmp_path / name)}):
            with pytest.raises(ValueError, match=rf"Cannot read .*{name}"):
                reader(input_)
        with pytest.raises(ValueError, match=rf"Cannot read .*{name}"):
            reader([{"text": "so happy"}, str(tmp_path / name)], batch_size=2)
    with pytest.raises(ValueError, match=r"silent\.mp4: it has no sound track"):
        reader({"audio": str(media / "silent.mp4")})
    with pytest.raises(ValueError, match=r"sound\.wav: it has no picture track"):
        reader({"video": str(media / "sound.wav")})
    with pytest.raises(ValueError, match=r"sound\.wav: not an image"):
        reader({"image": str(media / "sound.wav")})
    with pytest.raises(ValueError, match=r"Cannot read .*whole\.png: a picture of .* is beyond the limit pixels=100"):
        reader(str(tmp_path / "whole.png"), limits={"pixels": 100})


def frame_scores(reader, frames: list[np.ndarray], times: np.ndarray) -> torch.Tensor:
    tensors = reader.processor.image_processor([frames], times=[times], return_tensors="pt")
    return logits(reader.model, **tensors)[0].softmax(-1)


def test_sound_of_any_rate_and_channels(reader, tmp_path):
    for rate in (8000, 96000):
        for channels in (1, 2):
            path = write_sound(tmp_path / f"{channels}.wav", sine(0.5, rate, channels=channels), rate)
            wave = load_audio(path)
            assert len(wave) == pytest.approx(8000, abs=16) and np.abs(wave).max() == pytest.approx(0.5, abs=0.05)
            features = reader.processor.feature_extractor(wave, sampling_rate=16000, return_tensors="pt")
            same_answer(reader(path), logits(reader.model, **features)[0].softmax(-1))
        mono, stereo = reader([str(tmp_path / "1.wav"), str(tmp_path / "2.wav")])
        scores = {entry["label"]: entry["score"] for entry in mono}
        same_answer(stereo, torch.tensor([scores[label] for label in LABELS]), atol=1e-3)


def test_clips_without_sound_of_one_frame_and_turned(reader, media, tmp_path):
    same_answer(reader(media / "silent.mp4"), frame_scores(reader, *load_frames(media / "silent.mp4", num_frames=4)))
    frames, times = load_frames(media / "one.mp4")
    assert len(frames) == 1
    same_answer(reader(media / "one.mp4"), frame_scores(reader, frames, times))
    stored, times = load_frames(write_clip(tmp_path / "stored.mp4"), num_frames=4)
    portrait = [np.rot90(frame) for frame in stored]
    assert portrait[0].shape[1] == HEIGHT
    found = reader(write_clip(tmp_path / "portrait.mp4", rotation=90))
    same_answer(found, frame_scores(reader, portrait, times))
    turned = frame_scores(reader, portrait, times) - frame_scores(reader, stored, times)
    assert turned.abs().max() > 1e-3


def test_stills_with_alpha_and_in_grey(reader, tmp_path):
    """Transparency lies over white; grey of 8 and of 16 bits is the picture of three equal channels."""
    rgb, grey = picture(), picture()[..., 0]
    alpha = np.full((*rgb.shape[:2], 1), 255, dtype=np.uint8)
    alpha[:20] = 0
    over_white = rgb.copy()
    over_white[:20] = 255
    files = {
        "rgba.png": (Image.fromarray(np.concatenate([rgb, alpha], axis=2)), over_white),
        "grey.png": (Image.fromarray(grey), np.repeat(grey[..., None], 3, axis=2)),
        "grey16.png": (Image.fromarray(grey.astype(np.uint16) * 257), np.repeat(grey[..., None], 3, axis=2)),
    }
    for name, (image, wanted) in files.items():
        image.save(tmp_path / name)
        same_answer(reader(tmp_path / name), frame_scores(reader, [wanted], np.zeros(1)))


def test_a_damaged_clip_answers_or_is_named(reader, media, tmp_path):
    write_damaged(tmp_path / "damaged.mp4", media / "clip.mp4")
    try:
        answer = reader(tmp_path / "damaged.mp4")
    except ValueError as error:
        assert "damaged.mp4" in str(error)
    else:
        assert sum(entry["score"] for entry in answer) == pytest.approx(1, abs=1e-5)


# ----- the stock pipelines on the same checkpoint --------------------------------------------------------------------


def stock(task: str, checkpoint: Path, **kwargs: Any) -> Any:
    pipe = pipeline(f"{task}-classification", model=str(checkpoint), top_k=7, **kwargs)
    assert type(pipe).__module__ == f"transformers.pipelines.{task}_classification"
    return pipe


def test_stock_text_classification(checkpoint, reader):
    """Padding of a batch changes nothing; the model's own temperature is 1, so the multimodal one agrees."""
    pipe = stock("text", checkpoint)
    sentences = ["i am so happy", "sad", "what a day this is and we are not fine"]
    for batch_size in (1, 2):
        for sentence, answer in zip(sentences, pipe(sentences, batch_size=batch_size), strict=True):
            tokens = reader.processor.tokenizer(sentence, return_tensors="pt")
            same_answer(answer, logits(reader.model, **tokens)[0].softmax(-1))
    same_answers(pipe(sentences), reader([{"text": sentence} for sentence in sentences]))


def test_stock_audio_classification(checkpoint, reader):
    """From arrays, since files go through a system's ffmpeg there; a batch pads the mask with zeros."""
    pipe = stock("audio", checkpoint)
    rng = np.random.default_rng(0)
    waves = [0.1 * rng.standard_normal(samples).astype(np.float32) for samples in (4000, 9000, 6500)]
    for batch_size in (1, 2):
        for wave, answer in zip(waves, pipe(waves, batch_size=batch_size), strict=True):
            features = reader.processor.feature_extractor(wave, sampling_rate=16000, return_tensors="pt")
            same_answer(answer, logits(reader.model, **features)[0].softmax(-1))
    sounds = [{"array": wave, "sampling_rate": 16000} for wave in waves]
    same_answers(pipe(sounds), reader([{"audio": sound} for sound in sounds]))


def test_stock_image_classification(checkpoint, reader, still):
    pipe = stock("image", checkpoint)
    stills = [Image.fromarray(picture(seed)) for seed in range(3)]
    for batch_size in (1, 2):
        for image, answer in zip(stills, pipe(stills, batch_size=batch_size), strict=True):
            pixels = reader.processor.image_processor(image, return_tensors="pt")
            same_answer(answer, logits(reader.model, **pixels)[0].softmax(-1))
    same_answers([pipe(str(still))], [reader(str(still))])


def test_stock_video_classification(checkpoint, reader, media):
    """It takes the first `num_frames` frames, as one clip, without their times."""
    pipe = stock("video", checkpoint)
    frames, _ = load_frames(media / "clip.mp4")
    for count in (4, 2):
        pixels = reader.processor.image_processor(frames[:count], return_tensors="pt")
        assert pixels["pixel_values"].shape[:2] == (1, count)
        wanted = logits(reader.model, **pixels)[0].softmax(-1)
        same_answer(pipe(str(media / "clip.mp4"), **({} if count == 4 else {"num_frames": count})), wanted)
    answers = pipe([str(media / "clip.mp4"), str(media / "silent.mp4")])
    same_answers(answers[:1], [pipe(str(media / "clip.mp4"))])


# ----- other problems than one label ---------------------------------------------------------------------------------


def test_a_model_of_one_output_answers_with_its_value(media):
    """As its loss has it: regression, whatever the config leaves unsaid. A softmax over one output is 1 for all."""
    model = tiny_classifier(num_labels=1, id2label={0: "valence"}, label2id={"valence": 0})
    model.config.problem_type = None
    reader = MultimodalEmotionRecognitionPipeline(model=model, processor=tiny_processor(), task=TASK)
    for sample, arguments in (({"text": "so sad"}, {"text": "so sad"}), ({"image": picture()}, {"images": picture()})):
        raw = logits(model, **reader.processor(**arguments))[0, 0]
        (entry,) = reader(sample)
        assert entry["label"] == "valence" and entry["score"] == pytest.approx(raw.item(), abs=1e-6)
        assert entry["score"] != pytest.approx(1.0)


def test_empty_inputs_are_refused(reader):
    with pytest.raises(ValueError, match="inputs: got an empty list, expected at least one input"):
        reader([])


def test_what_is_in_memory_is_an_input_by_itself(reader, media, still):
    """PIL images, arrays, sound with its rate, open files."""
    wave = load_audio(media / "sound.wav")
    of_sound = reader({"audio": {"array": wave, "sampling_rate": 16000}})
    for sound in ({"array": wave, "sampling_rate": 16000}, (16000, wave), (torch.from_numpy(wave)[None], 16000)):
        same_answers([reader(sound)], [of_sound])
    of_still = reader({"image": str(still)})
    for form in (Image.open(still), picture(), torch.from_numpy(picture()).permute(2, 0, 1)):
        same_answers([reader(form)], [of_still])
    with open(media / "clip.mp4", "rb") as file:
        same_answers([reader(file)], [reader(media / "clip.mp4")])
        same_answers([reader({"video": file})], [reader(media / "clip.mp4")])


def test_limits_and_notes_of_a_call(reader, media):
    with pytest.raises(ValueError, match=r"sound\.wav.*limit seconds=0\.5"):
        reader(media / "sound.wav", limits={"seconds": 0.5})
    with pytest.raises(ValueError, match=r"sound\.wav.*limit seconds=0\.5"):
        reader(media / "sound.wav", limits=MediaLimits(seconds=0.5))
    told = reader(media / "sound.wav", return_notes=True, top_k=1)
    scores = reader(media / "sound.wav", top_k=1)
    assert told == {"scores": scores, "modalities": ["audio"], "notes": [], "uncertain": False}
