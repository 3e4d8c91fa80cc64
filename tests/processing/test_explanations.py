"""Shapley values by hand and by their properties; words, moments and frames against the model without them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media_files import sine
from PIL import Image, ImageFilter
from tiny_checkpoint import LABELS, picture, tiny_classifier, tiny_processor
from transformers import pipeline

from triemo.modeling import TriemoConfig
from triemo.processing import TASK, MultimodalEmotionRecognitionPipeline, load_audio, load_frames
from triemo.processing.contributions_triemo import shapley_values, uninformed_score
from triemo.processing.explanations_triemo import contributions, disagree


def test_three_modalities_by_hand():
    """Averages over the six orders in which words, voice and face may come, worked out on paper."""
    values = {
        ("text",): 0.4,
        ("audio",): 0.2,
        ("vision",): 0.1,
        ("text", "audio"): 0.7,
        ("text", "vision"): 0.5,
        ("audio", "vision"): 0.3,
        ("text", "audio", "vision"): 0.9,
    }
    # text: first 0.3 (twice), after audio 0.5, after vision 0.4, last 0.6 (twice): 2.7 / 6.
    # audio: first 0.1 (twice), after text 0.3, after vision 0.2, last 0.4 (twice): 1.5 / 6.
    # vision: first 0.0 (twice), after text 0.1, after audio 0.1, last 0.2 (twice): 0.6 / 6.
    shares = shapley_values(values, empty=0.1)
    assert shares == pytest.approx({"text": 0.45, "audio": 0.25, "vision": 0.1}, abs=1e-12)


def test_two_modalities_and_one():
    pair = {("text",): 0.5, ("vision",): 0.3, ("text", "vision"): 0.9}
    assert shapley_values(pair, empty=0.1) == pytest.approx({"text": 0.5, "vision": 0.3}, abs=1e-12)
    assert shapley_values({("audio",): 0.6}, empty=0.25) == pytest.approx({"audio": 0.35})


def test_axioms_on_an_arbitrary_game():
    """They add up; equals get the same; one who adds nothing gets nothing; more players than three work."""
    weight = {"a": 0.3, "b": 0.3, "c": 0.0, "d": -0.2}

    def value(subset):
        return sum(weight[player] for player in subset) + (0.4 if {"a", "b"} <= set(subset) else 0.0)

    names = tuple(weight)
    subsets = [tuple(n for i, n in enumerate(names) if code >> i & 1) for code in range(1, 16)]
    shares = shapley_values({subset: value(subset) for subset in subsets}, empty=0.0)
    assert shares == pytest.approx({"a": 0.5, "b": 0.5, "c": 0.0, "d": -0.2}, abs=1e-12)
    assert sum(shares.values()) == pytest.approx(value(names), abs=1e-12)


def test_a_missing_subset_is_refused():
    with pytest.raises(ValueError, match="got 2 subsets"):
        shapley_values({("text",): 0.5, ("text", "audio"): 0.5}, empty=0.1)
    with pytest.raises(ValueError, match="got 0 subsets"):
        shapley_values({}, empty=0.1)


def test_contributions_take_the_label_asked_for():
    scores = {("text",): {"joy": 0.9, "fear": 0.1}}
    assert contributions(scores, "fear", 0.5) == pytest.approx({"text": -0.4})


def test_uninformed_score_by_kind_of_problem():
    assert uninformed_score(TriemoConfig(num_labels=7)) == 1 / 7
    assert uninformed_score(TriemoConfig(problem_type="multi_label_classification", num_labels=7)) == 0.5
    with pytest.raises(ValueError, match="regression"):
        uninformed_score(TriemoConfig(num_labels=1))


# Through the pipeline ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> MultimodalEmotionRecognitionPipeline:
    model = tiny_classifier(calibration_temperature=1.5)
    return MultimodalEmotionRecognitionPipeline(model=model, processor=tiny_processor(), task=TASK)


@pytest.fixture(scope="module")
def sample() -> dict[str, Any]:
    """Four words, 1.6 s of a tone that grows, two frames."""
    sound = sine(1.6, 16000) * np.linspace(0.02, 1, 25600, dtype=np.float32)
    frames = np.stack([picture(0), picture(1)])
    return {"text": "What a happy day!", "audio": {"array": sound, "sampling_rate": 16000}, "video": frames}


def score_of(reader: MultimodalEmotionRecognitionPipeline, inputs: dict[str, torch.Tensor], label: str) -> float:
    """By the model itself."""
    with torch.no_grad():
        logits = reader.model(**inputs).logits[0].double()
    return float(torch.softmax(logits / 1.5, -1)[LABELS.index(label)])


def test_every_effect_is_what_the_model_loses_without_the_part(reader, sample):
    answer = reader(sample, explain=True)
    told = answer["explanation"]
    assert (told["label"], told["score"]) == (
        answer["scores"][0]["label"],
        pytest.approx(answer["scores"][0]["score"]),
    )
    assert told["without_input"] + sum(told["contributions"].values()) == pytest.approx(told["score"], abs=1e-9)
    assert told["without_input"] == 1 / 7 and list(told["contributions"]) == ["text", "audio", "vision"]

    inputs = reader.prepare(sample)
    whole, label = score_of(reader, inputs, told["label"]), told["label"]
    assert [entry["word"] for entry in told["words"]] == ["What", "a", "happy", "day!"]
    tokens = reader.processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert tokens[1:-1] == ["what", "a", "happy", "day", "!"] or tokens.count("day") == 1
    for entry, steps in zip(told["words"], ([1], [2], [3], list(range(4, len(tokens) - 1))), strict=True):
        mask = inputs["attention_mask"].clone()
        mask[0, steps] = 0
        without = score_of(reader, {**inputs, "attention_mask": mask}, label)
        assert entry["effect"] == pytest.approx(whole - without, abs=1e-6)

    assert [entry["timestamp"] for entry in told["moments"]] == [
        pytest.approx(pair, abs=0.01) for pair in ((0, 0.53), (0.53, 1.07), (1.07, 1.6))
    ]
    features = inputs["input_features"][0]
    quiet = features[features.sum(1).argmin()]
    for entry in told["moments"]:
        begin, end = (round(100 * second) for second in entry["timestamp"])
        silenced = features.clone()
        silenced[begin:end] = quiet
        without = score_of(reader, {**inputs, "input_features": silenced[None]}, label)
        assert entry["effect"] == pytest.approx(whole - without, abs=1e-6)

    assert [entry["time"] for entry in told["frames"]] == pytest.approx(inputs["video_times"][0].tolist(), abs=1e-3)
    for row, entry in enumerate(told["frames"]):
        mask = inputs["video_attention_mask"].clone()
        mask[0, row] = 0
        without = score_of(reader, {**inputs, "video_attention_mask": mask}, label)
        assert entry["effect"] == pytest.approx(whole - without, abs=1e-6)
    effects = [entry["effect"] for kind in ("words", "moments", "frames") for entry in told[kind]]
    assert min(map(abs, effects)) > 1e-5  # rounding could not tell them from nothing


def test_what_each_modality_says_alone_and_whether_they_disagree(reader, sample):
    told = reader(sample, explain=True)["explanation"]
    for name, key in (("text", "text"), ("audio", "audio"), ("vision", "video")):
        best = reader({key: sample[key]})[0]
        assert told["alone"][name] == {"label": best["label"], "score": pytest.approx(best["score"], abs=1e-6)}
    assert told["disagree"] == (len({said["label"] for said in told["alone"].values()}) > 1)
    one = reader({"text": sample["text"]}, explain=True)["explanation"]
    assert not one["disagree"] and "moments" not in one and "frames" not in one
    assert disagree({"text": {"label": "joy"}, "audio": {"label": "fear"}, "vision": {"label": "joy"}})


def test_explanations_in_a_batch_equal_those_alone(reader, sample):
    inputs = [sample, {"text": "afraid"}, {"audio": sample["audio"]}]
    for answer, given in zip(reader(inputs, explain=True, batch_size=3), inputs, strict=True):
        alone, told = reader(given, explain=True)["explanation"], answer["explanation"]
        assert set(told) == set(alone) and told["label"] == alone["label"]
        for kind in {"words", "moments", "frames"} & set(told):
            assert [e["effect"] for e in told[kind]] == pytest.approx([e["effect"] for e in alone[kind]], abs=1e-5)


def test_without_its_only_word_a_text_is_absent(reader):
    """And without its only modality a sample has the score that nobody knows better."""
    told = reader({"text": "afraid"}, explain=True)["explanation"]
    assert told["words"] == [{"word": "afraid", "effect": pytest.approx(told["score"] - 1 / 7)}]
    chosen = reader({"text": "afraid"}, explain=True, candidate_labels=["fear", "joy"])["explanation"]
    assert chosen["without_input"] == 0.5 and chosen["label"] in ("fear", "joy")


def test_words_of_a_text_in_windows(reader):
    """Their steps point at their own tokens, also beyond the tokenizer's limit; of Chinese each character is one."""
    text = "so happy " * 20 + "我很 sad"
    ids = reader.prepare({"text": text})["input_ids"][0]
    assert len(ids) > reader.processor.tokenizer.model_max_length
    words = reader.processor.words_of(text)
    assert [word for word, _ in words] == ["so", "happy"] * 20 + ["我", "很", "sad"]
    tokens = reader.processor.tokenizer.convert_ids_to_tokens(ids)
    for word, steps in words[:40]:
        assert "".join(tokens[step].removeprefix("##") for step in steps) == word
    steps = [step for _, several in words for step in several]
    assert len(steps) == len(set(steps)) == sum(token not in ("[CLS]", "[SEP]", "[PAD]") for token in tokens)


def test_a_long_recording_is_explained_window_by_window(reader):
    draw = np.random.default_rng(0)
    sound = {"array": draw.uniform(-0.5, 0.5, 16000 * 21).astype(np.float32), "sampling_rate": 16000}
    answer = reader({"audio": sound}, explain=True)
    told = answer["explanation"]
    assert len(told) >= 2 and told[0]["timestamp"][0] == 0 and told[-1]["timestamp"][1] == pytest.approx(21, abs=0.05)
    for one in told:
        assert one["without_input"] + sum(one["contributions"].values()) == pytest.approx(one["score"], abs=1e-9)
        begin, end = one["timestamp"]
        moments = [moment["timestamp"] for moment in one["moments"]]
        assert moments[0][0] == pytest.approx(begin, abs=0.01) and moments[-1][1] == pytest.approx(end, abs=0.05)


# With the released checkpoint: the part that is said to matter most does, when it is really taken away -----------


@pytest.fixture(scope="module")
def released(checkpoint: Path) -> MultimodalEmotionRecognitionPipeline:
    return pipeline(TASK, model=str(checkpoint), device="cpu")


def drop(reader: Any, label: str, whole: float, inputs: list[Any]) -> np.ndarray:
    """What the score of the label loses on each of these."""
    answers = reader(inputs, batch_size=len(inputs))
    return whole - np.array([{e["label"]: e["score"] for e in answer}[label] for answer in answers])


def test_removing_the_marked_word_costs_more_than_a_random_one(released):
    """The word is cut from the sentence, which the explanation never did. Random: the mean over all other words."""
    sentences = [
        "I am so happy that you came to see us today",
        "Leave me alone, I hate you and all of this",
        "We were terrified when the lights went out last night",
        "That is a disgusting thing to put into a soup",
        "My grandmother died and I miss her so much",
    ]
    marked, random = [], []
    for sentence in sentences:
        told = released({"text": sentence}, explain=True)["explanation"]
        words = sentence.split()
        assert [entry["word"] for entry in told["words"]] == words
        left = [{"text": " ".join(words[:i] + words[i + 1 :])} for i in range(len(words))]
        lost = drop(released, told["label"], told["score"], left)
        best = int(np.argmax([entry["effect"] for entry in told["words"]]))
        marked.append(lost[best])
        random.append(np.delete(lost, best).mean())
    assert np.mean(marked) > np.mean(random) + 0.1
    assert all(np.array(marked) > np.array(random))


def test_silencing_the_marked_moment_costs_more_than_a_random_one(released, repo_root):
    """Of the demo's synthetic voice, silenced in the waveform."""
    sound = load_audio(str(repo_root / "serving" / "assets" / "demo.flac"), 16000)
    given = {"array": sound, "sampling_rate": 16000}
    told = released({"audio": given}, explain=True)["explanation"]
    silenced = []
    for entry in told["moments"]:
        begin, end = (round(16000 * second) for second in entry["timestamp"])
        silenced.append({"audio": {**given, "array": np.r_[sound[:begin], np.zeros(end - begin, "f4"), sound[end:]]}})
    lost = drop(released, told["label"], told["score"], silenced)
    best = int(np.argmax([entry["effect"] for entry in told["moments"]]))
    assert lost[best] > np.delete(lost, best).mean() + 0.05


def test_blackening_the_marked_frame_costs_more_than_a_random_one(released, repo_root):
    """The demo's face, clear in one of the frames and blurred ever more in the others."""
    face = Image.fromarray(load_frames(str(repo_root / "serving" / "assets" / "demo.mp4"), num_frames=1)[0][0])
    blurs = (4, 8, 0, 6)
    frames = np.stack([np.asarray(face.filter(ImageFilter.GaussianBlur(blur))) for blur in blurs])
    told = released({"video": frames}, explain=True)["explanation"]
    assert len(told["frames"]) == len(blurs)
    blackened = [{"video": np.where(np.arange(len(blurs))[:, None, None, None] == i, 0, frames)} for i in range(4)]
    lost = drop(released, told["label"], told["score"], blackened)
    best = int(np.argmax([entry["effect"] for entry in told["frames"]]))
    assert lost[best] > np.delete(lost, best).mean() + 0.01
