"""The emotion of every turn: whole and live, speakers, what a turn lacks, explanations, through disk and factory."""

import numpy as np
import pytest
import torch
from tiny_checkpoint import LABELS, picture, save_tiny_checkpoint, tiny_classifier, tiny_processor
from transformers import pipeline

from triemo.modeling import TriemoConfig, TriemoForEmotionSequence
from triemo.processing import DIALOGUE_TASK, ConversationalEmotionRecognitionPipeline, UtteranceEncoder
from triemo.processing.utterances_triemo import ClipEncoder

RATE = 16000
SOUND = {"array": np.random.default_rng(0).normal(0, 0.1, RATE // 2).astype(np.float32), "sampling_rate": RATE}
TURNS = [
    {"speaker": "ann", "text": "i am so happy of this day", "audio": SOUND},
    {"speaker": "bob", "text": "not fine", "image": picture()},
    {"speaker": "ann", "text": "what", "audio": None},
    {"speaker": None, "audio": SOUND},
    {"speaker": "bob", "text": "and you and we", "video": None},
]
WIDTHS = {"text_feature_size": 32, "audio_feature_size": 32, "vision_feature_size": 16}


def tiny_head(**fields) -> TriemoForEmotionSequence:
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    settings = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
    settings |= {"step_aligned": True, "context_type": "transformer", "calibration_temperature": {"text": 2.0}}
    settings |= {"id2label": names, "label2id": {name: index for index, name in names.items()}} | WIDTHS | fields
    model = TriemoForEmotionSequence(TriemoConfig(**settings)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def encoder() -> UtteranceEncoder:
    return UtteranceEncoder(tiny_classifier(), tiny_processor())


@pytest.fixture(scope="module")
def reader(encoder) -> ConversationalEmotionRecognitionPipeline:
    return ConversationalEmotionRecognitionPipeline(tiny_head(), encoder=encoder)


@pytest.fixture(scope="module")
def live(encoder) -> ConversationalEmotionRecognitionPipeline:
    head = tiny_head(context_causal=True, context_window=3)
    return ConversationalEmotionRecognitionPipeline(head, encoder=encoder)


def scores(answers) -> np.ndarray:
    """(turns, labels), in the order of the labels' names."""
    return np.array([[s["score"] for s in sorted(a["scores"], key=lambda s: s["label"])] for a in answers])


def test_the_answers_are_the_models(reader, encoder):
    vectors = encoder([{k: v for k, v in turn.items() if k != "speaker"} for turn in TURNS])
    inputs = {name: value[None] for name, value in vectors.items()}
    with torch.inference_mode():
        logits = reader.model(**inputs, speakers=torch.tensor([[4, 7, 4, -1, 7]])).logits[0]
    temperature = torch.tensor([1.0, 1.0, 2.0, 1.0, 2.0])  # of words alone it is 2
    expected = (logits / temperature[:, None]).softmax(-1).numpy()
    answers = reader(TURNS)
    order = np.argsort(LABELS)
    np.testing.assert_allclose(scores(answers), expected[:, order], atol=1e-5)
    assert [a["speaker"] for a in answers] == ["ann", "bob", "ann", None, "bob"]
    assert [a["modalities"] for a in answers] == [
        ["text", "audio"], ["text", "vision"], ["text"], ["audio"], ["text"]
    ]  # fmt: skip
    assert all(a["label"] == a["scores"][0]["label"] and a["score"] == a["scores"][0]["score"] for a in answers)
    two = reader(TURNS, top_k=1, candidate_labels="joy, anger", batch_size=2)
    assert {len(a["scores"]) for a in two} == {1} and {a["label"] for a in two} <= {"joy", "anger"}


def test_only_who_is_the_same_counts(reader):
    names = {"ann": 7, "bob": "Robert", None: None}
    renamed = [{**turn, "speaker": names[turn["speaker"]]} for turn in TURNS]
    assert np.array_equal(scores(reader(renamed)), scores(reader(TURNS)))
    swapped = [{**turn, "speaker": "ann"} for turn in TURNS]
    assert not np.allclose(scores(reader(swapped)), scores(reader(TURNS)), atol=1e-4)
    unknown = [{key: value for key, value in turn.items() if key != "speaker"} for turn in TURNS]
    nameless = [{**turn, "speaker": float("nan")} for turn in TURNS]
    assert np.array_equal(scores(reader(unknown)), scores(reader(nameless)))


def test_several_dialogues_and_iterators(reader, monkeypatch):
    """Each as alone; turns may come from an iterator, in parts."""
    alone = [scores(reader(TURNS)), scores(reader(TURNS[:2]))]
    together = reader([TURNS, TURNS[:2]])
    streamed = list(reader(one for one in ({"turns": iter(TURNS), "dialogue": "a"}, TURNS[:2])))
    for found in (together, streamed):
        for answers, expected in zip(found, alone, strict=True):
            np.testing.assert_allclose(scores(answers), expected, atol=1e-6)
    monkeypatch.setattr("triemo.processing.dialogue_pipeline_triemo._TURNS_AT_ONCE", 2)
    np.testing.assert_allclose(scores(reader({"turns": iter(TURNS)})), alone[0], atol=1e-6)


def test_live_answers_are_those_of_the_whole_dialogue(live):
    session = live.session(top_k=None)
    pushed = [session.push(turn) for turn in TURNS]
    np.testing.assert_allclose(scores(pushed), scores(live(TURNS)), atol=1e-5)
    assert [a["speaker"] for a in pushed] == ["ann", "bob", "ann", None, "bob"]
    # A turn that is refused leaves nothing behind.
    again = live.session()
    again.push(TURNS[0])
    with pytest.raises(ValueError, match="the dialogue, turn 2: there is nothing to read from"):
        again.push({"speaker": "bob", "text": " "})
    assert again.push(TURNS[1])["scores"] == pushed[1]["scores"]


def test_a_session_keeps_no_more_than_its_window(live):
    session = live.session()
    for number in range(8):
        session.push({"speaker": number % 2, "text": "fine"})
    cache = session._cache
    assert cache.seen == 8 and {state.shape[1] for state in cache.states.values()} == {3}


def test_a_model_that_sees_the_future_has_no_session(reader, live):
    with pytest.raises(ValueError, match="push: needs context_causal=True and a context_window"):
        reader.session()
    with pytest.raises(ValueError, match="explain: answers of a session are given once"):
        live.session(explain=True)


def test_a_turn_without_anything_is_named_or_kept_as_context(reader):
    silent = [*TURNS[:2], {"speaker": "ann", "text": "", "audio": {**SOUND, "array": SOUND["array"] * 0}}, *TURNS[3:]]
    with pytest.raises(ValueError, match=r"dialogue 2, turn 3: there is nothing to read from \(.*silence"):
        reader([TURNS, silent])
    with pytest.raises(ValueError, match="dialogue call 7, turn 3: there is nothing to read from"):
        reader({"turns": silent, "dialogue": "call 7"})
    kept = reader(silent, keep_empty=True, return_notes=True, explain=True)
    assert kept[2] | {"notes": None} == {
        "speaker": "ann", "label": None, "score": None, "scores": [], "modalities": [], "notes": None
    }  # fmt: skip
    assert "silence" in kept[2]["notes"][0] and kept[0]["notes"] == []
    without = reader([*silent[:2], *silent[3:]])
    assert not np.allclose(scores([kept[3]]), scores([without[2]]), atol=1e-5)  # that ann had a turn is seen


def test_what_the_model_does_not_read_is_told():
    """A head of words alone: media besides are not even opened."""
    words = UtteranceEncoder(tiny_classifier(), tiny_processor(), {"text": (-1,)})
    head = tiny_head(audio_feature_size=None, vision_feature_size=None)
    reader = ConversationalEmotionRecognitionPipeline(head, encoder=words)
    both = [{"text": "happy", "audio": "nowhere.wav", "video": "nowhere.mp4"}, {"text": "sad"}]
    answers = reader(both, return_notes=True)
    assert answers[0]["notes"] == ["audio: this model reads text alone", "vision: this model reads text alone"]
    assert answers[1]["notes"] == [] and answers[0]["modalities"] == ["text"]
    with pytest.raises(
        ValueError, match=r"turn 2: there is nothing to read from \(.*audio: this model reads text alone"
    ):
        reader([both[1], {"audio": "nowhere.wav"}])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "got an empty list"),
        ({"turns": []}, "the dialogue: has no turn"),
        ({"turn": TURNS}, r"a dialogue is a list of turns, .*got \['turn'\]"),
        ([{"text": "happy"}, "sad"], r"a dialogue is a list of turns, .*got \['text'\]"),
        ({"turns": ["happy"]}, "turn 1: a turn is a dict with text, .*got str"),
        ([{"text": "happy"}, {"words": "sad"}], r"turn 2: a turn is a dict with .*got the keys \['words'\]"),
        ({"turns": [{"text": "a"}, {"audio": "nowhere.wav"}], "dialogue": "x"}, "dialogue x: utterance 2: .*nowhere"),
    ],
)
def test_what_is_no_dialogue_is_refused_by_name(reader, given, message):
    with pytest.raises(ValueError, match=message):
        reader(given)


def test_parameters_are_checked(reader, encoder):
    with pytest.raises(ValueError, match=r"unknown parameters \['top'\]; accepted: top_k"):
        reader(TURNS, top=3)
    with pytest.raises(ValueError, match="top_k must be a whole number"):
        reader(TURNS, top_k=0)
    with pytest.raises(ValueError, match="needs a TriemoForEmotionSequence, got TriemoForEmotionClassification"):
        ConversationalEmotionRecognitionPipeline(tiny_classifier(), encoder=encoder)
    with pytest.raises(ValueError, match="encoder: gives vectors of .* values, expected .*'text': 31"):
        ConversationalEmotionRecognitionPipeline(tiny_head(text_feature_size=31), encoder=encoder)


def test_explanations_add_up_and_name_the_turns_that_moved_an_answer(reader):
    """Contributions make up the way from nothing to the score; a named turn taken away changes it by its effect."""
    answers = reader(TURNS, explain=True)
    for answer in [*answers, *reader(TURNS, explain=True, candidate_labels=["fear", "joy"])]:
        assert set(answer["contributions"]) == {*answer["modalities"], "context"}
        assert sum(answer["contributions"].values()) == pytest.approx(
            answer["score"] - answer["without_input"], abs=1e-5
        )
    for index, answer in enumerate(answers):
        strongest = answer["influences"][0]
        assert abs(strongest["effect"]) == max(abs(one["effect"]) for one in answer["influences"])
        emptied = [{"speaker": t["speaker"]} if n == strongest["turn"] else t for n, t in enumerate(TURNS, start=1)]
        left = {s["label"]: s["score"] for s in reader(emptied, keep_empty=True)[index]["scores"]}
        assert answer["score"] - left[answer["label"]] == pytest.approx(strongest["effect"], abs=1e-5)


def test_causal_answers_are_moved_by_earlier_turns_only(live):
    answers = live(TURNS, explain=True)
    assert answers[0]["influences"] == [] and answers[0]["contributions"]["context"] == pytest.approx(0, abs=1e-6)
    assert all(one["turn"] <= index for index, a in enumerate(answers) for one in a["influences"])
    assert answers[4]["influences"]


def test_by_the_librarys_factory_from_a_folder(tmp_path, reader):
    """The towers lie beside the head, by the name in its config."""
    save_tiny_checkpoint(tmp_path / "towers")
    tiny_head(base_model_name_or_path="somebody/towers").save_pretrained(tmp_path / "head")
    loaded = pipeline(DIALOGUE_TASK, model=str(tmp_path / "head"))
    np.testing.assert_allclose(scores(loaded(TURNS)), scores(reader(TURNS)), atol=1e-5)
    loaded.save_pretrained(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors"}


# With towers of its own ----------------------------------------------------------------------------------------


def clip_model(**fields) -> TriemoForEmotionSequence:
    config = tiny_classifier(context_type="transformer", **fields).config
    torch.manual_seed(0)
    model = TriemoForEmotionSequence(config).eval()
    torch.nn.init.normal_(model.classifier.out_proj.weight)
    return model


def test_a_model_with_towers_reads_by_them(tmp_path):
    """Through disk and factory, the answers of its clips in one pass."""
    model, processor = clip_model(), tiny_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    reader = pipeline(DIALOGUE_TASK, model=str(tmp_path))
    clips = [
        dict(processor(text=TURNS[0]["text"], audio=[SOUND["array"]], sampling_rate=RATE)),
        dict(processor(text=TURNS[1]["text"], images=[TURNS[1]["image"]])),
        dict(processor(text="what")),
        dict(processor(audio=[SOUND["array"]], sampling_rate=RATE)),
        dict(processor(text=TURNS[4]["text"])),
    ]
    with torch.inference_mode():
        logits = model(**processor.pad(clips), speakers=torch.tensor([[0, 1, 0, -1, 1]])).logits[0]
    expected = logits.softmax(-1).numpy()[:, np.argsort(LABELS)]
    answers = reader(TURNS, batch_size=2)
    reader.save_pretrained(tmp_path / "again")
    again = pipeline(DIALOGUE_TASK, model=str(tmp_path / "again"))(TURNS, batch_size=2)
    assert np.array_equal(scores(again), scores(answers))
    np.testing.assert_allclose(scores(answers), expected, atol=1e-5)
    assert [answer["modalities"] for answer in answers][1:4] == [["text", "vision"], ["text"], ["audio"]]
    with pytest.raises(ValueError, match="explain: needs a model over vectors"):
        reader(TURNS, explain=True)
    with pytest.raises(ValueError, match="turn 2: there is nothing to read from"):
        reader([TURNS[0], {"text": ""}])
    kept = reader([TURNS[0], {"text": "", "speaker": "bob"}, TURNS[2]], keep_empty=True)
    assert kept[1]["label"] is None and not np.allclose(scores(kept[2:]), scores(reader([TURNS[0], TURNS[2]])[1:]))


def test_a_live_model_with_towers_answers_as_of_the_whole_dialogue():
    model = clip_model(context_causal=True, context_window=2)
    reader = ConversationalEmotionRecognitionPipeline(model, encoder=ClipEncoder(model, tiny_processor()))
    session = reader.session()
    np.testing.assert_allclose(scores([session.push(turn) for turn in TURNS]), scores(reader(TURNS)), atol=1e-5)
