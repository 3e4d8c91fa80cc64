"""The endpoint of a conversation's model: requests with turns, what is refused by name, and over HTTP."""

import base64
import io
import wave

import numpy as np
import pytest
from endpoint_service import post, serve
from test_dialogue_pipeline import tiny_head
from tiny_checkpoint import save_tiny_checkpoint

from triemo.serving.endpoint.handler import EndpointHandler, Limits
from triemo.serving.reading import load_dialogue_reader

TURNS = [
    {"speaker": "agent", "text": "i am so happy"},
    {"speaker": "customer", "text": "not fine"},
    {"speaker": "agent", "text": "what a day"},
]


def sound(seconds: float) -> str:
    """A WAV of noise, in base64."""
    buffer = io.BytesIO()
    samples = np.random.default_rng(0).integers(-9000, 9000, round(8000 * seconds), dtype=np.int16)
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endpoint")
    save_tiny_checkpoint(folder / "towers")
    tiny_head(base_model_name_or_path="somebody/towers").save_pretrained(folder / "head")
    return folder / "head"


@pytest.fixture(scope="module")
def handler(checkpoint):
    return EndpointHandler(str(checkpoint), Limits(turns=5, seconds=3, total_seconds=4))


def test_turns_are_answered_as_by_the_pipeline(handler, checkpoint):
    turns = [*TURNS, {"speaker": "customer", "audio": sound(0.5)}]
    answers = handler({"inputs": {"turns": turns, "dialogue": "call 7"}, "parameters": {"explain": True, "top_k": 2}})
    assert [answer["speaker"] for answer in answers] == ["agent", "customer", "agent", "customer"]
    assert answers[3]["modalities"] == ["audio"] and {len(answer["scores"]) for answer in answers} == {2}
    assert all(set(answer["contributions"]) == {*answer["modalities"], "context"} for answer in answers)
    reader = load_dialogue_reader(str(checkpoint), "cpu")
    expected = reader(TURNS)
    renamed = [{**turn, "speaker": {"agent": 1, "customer": None}[turn["speaker"]]} for turn in TURNS]
    several = handler({"inputs": [{"turns": TURNS}, {"turns": TURNS[:1]}, {"turns": TURNS[:1]}]})
    assert [len(one) for one in several] == [3, 1, 1]
    assert [answer["score"] for answer in several[0]] == pytest.approx([a["score"] for a in expected], abs=1e-5)
    assert handler({"inputs": {"turns": renamed}})[1]["speaker"] is None


def test_an_empty_turn_is_named_or_kept(handler):
    turns = [TURNS[0], {"speaker": "customer", "text": None}]
    with pytest.raises(ValueError, match="dialogue call 7, turn 2: there is nothing to read from"):
        handler({"inputs": {"turns": turns, "dialogue": "call 7"}})
    kept = handler({"inputs": {"turns": turns}, "parameters": {"keep_empty": True, "notes": True}})
    assert kept[1]["label"] is None and kept[1]["notes"] == ["nothing is given in it"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"inputs": "a sentence"}, "inputs: this model reads conversations"),
        ({"inputs": [{"turns": TURNS}, {"text": "x"}]}, r"inputs\[1\]: this model reads conversations"),
        ({"inputs": {"turns": TURNS, "more": 1}}, "inputs: this model reads conversations"),
        ({"inputs": {"turns": []}}, "dialogue inputs: has no turn"),
        ({"inputs": {"turns": ["hello"]}}, "inputs, turn 1: expected an object, got str"),
        ({"inputs": {"turns": [{"words": "x"}]}}, r"inputs, turn 1: .*got the keys \['words'\]"),
        ({"inputs": {"turns": [{"text": "x", "speaker": ["a"]}]}}, "inputs, turn 1: a speaker is a name"),
        ({"inputs": {"turns": [{"text": "x", "speaker": "a" * 101}]}}, "inputs, turn 1: a speaker is a name"),
        ({"inputs": {"turns": [{"audio": "/etc/passwd"}]}}, "inputs, turn 1.audio: neither base64"),
        ({"inputs": {"turns": [{"text": "x"}] * 6}}, "the dialogues of a request may have 5 turns together"),
        (
            {"inputs": {"turns": [{"audio": sound(2.5)}] * 2}},
            "turn 2: the sounds and videos of a request may last 4 sec",
        ),
        ({"inputs": {"turns": TURNS}, "parameters": {"subsets": True}}, r"got \['subsets'\], expected top_k, explain"),
    ],
)
def test_what_is_refused_is_named(handler, request_, message):
    with pytest.raises(ValueError, match=message):
        handler(request_)


def test_over_http_and_to_the_other_kind_of_model(handler, checkpoint):
    with serve(handler) as url:
        status, answers = post(url, {"inputs": {"turns": TURNS}})
        assert status == 200 and len(answers) == 3
        status, answers = post(url, {"inputs": {"turns": [{}]}})
        assert status == 400 and "turn 1: there is nothing to read from" in answers["error"]
    single = EndpointHandler(str(checkpoint.parent / "towers"))
    with pytest.raises(ValueError, match="turns are for a model of conversations"):
        single({"inputs": {"turns": TURNS}})
