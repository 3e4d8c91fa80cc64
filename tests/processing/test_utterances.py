"""Utterances to vectors: what they are made of, in what order, and what an utterance lacks."""

import numpy as np
import pytest
import torch
from tiny_checkpoint import picture, save_tiny_checkpoint, tiny_classifier, tiny_processor

from triemo.modeling import TriemoConfig, TriemoForEmotionSequence
from triemo.processing import UtteranceEncoder

RATE = 16000
SOUND = {"array": np.random.default_rng(0).normal(0, 0.1, RATE // 2).astype(np.float32), "sampling_rate": RATE}
UTTERANCES = [
    {"text": "i am so happy of this day and of you"},
    {"audio": SOUND},
    {"text": "not fine", "image": picture(), "audio": None},
    {"text": "", "audio": np.nan},
    {"text": "angry", "audio": SOUND},
]


@pytest.fixture(scope="module")
def encoder() -> UtteranceEncoder:
    return UtteranceEncoder(tiny_classifier(), tiny_processor(), {"text": (1, -1), "audio": (-1,), "vision": (-1,)}, 2)


def test_vectors_stand_at_their_utterance_and_masks_say_what_is_there(encoder):
    vectors = encoder(UTTERANCES, return_notes=True)
    assert encoder.widths == {"text": 64, "audio": 32, "vision": 16}
    assert {name: tuple(value.shape) for name, value in vectors.items() if name.endswith("features")} == {
        "text_features": (5, 64),
        "input_features": (5, 32),
        "vision_features": (5, 16),
    }
    assert vectors["attention_mask"].tolist() == [1, 0, 1, 0, 1]
    assert vectors["audio_attention_mask"].tolist() == [0, 1, 0, 0, 1]
    assert vectors["video_attention_mask"].tolist() == [0, 0, 1, 0, 0]
    assert not vectors["text_features"][[1, 3]].any() and not vectors["vision_features"][[0, 1, 3, 4]].any()
    assert vectors["notes"][3] == ["nothing is given in it"] and vectors["notes"][0] == []
    # The sound is the same, whatever is said beside it and in whatever batch.
    torch.testing.assert_close(vectors["input_features"][1], vectors["input_features"][4])
    alone = encoder(UTTERANCES[2:3])
    torch.testing.assert_close(alone["text_features"][0], vectors["text_features"][2])


def test_a_vector_is_the_mean_of_the_layers_states(encoder):
    tokens = encoder.processor(text=UTTERANCES[0]["text"])
    with torch.inference_mode():
        bert = encoder.base.text_tower.encoder(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True
        )
    expected = torch.cat([bert.hidden_states[1].mean(1), bert.last_hidden_state.mean(1)], -1)[0]
    torch.testing.assert_close(encoder(UTTERANCES)["text_features"][0], expected)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"text": (3,)}, "layers: got 3 for text, expected -1 or 0 to 2"),
        ({"vision": (1,)}, "layers: got 1 for vision, whose states are no vectors there; expected -1"),
        ({"smell": (-1,)}, "layers: got .*smell.*, expected some of text, audio, vision"),
    ],
)
def test_layers_that_there_are_not(encoder, layers, message):
    with pytest.raises(ValueError, match=message):
        UtteranceEncoder(encoder.model, encoder.processor, layers)(UTTERANCES)


def test_what_cannot_be_read_is_named_by_its_place(encoder):
    with pytest.raises(ValueError, match="utterance 1: .*nowhere.wav"):
        encoder([{"text": "fine"}, {"audio": "nowhere.wav"}])
    with pytest.raises(ValueError, match="utterances: got none"):
        encoder([])


def test_a_head_finds_its_towers_beside_it(tmp_path):
    """By the name in its config, and refuses towers of another width."""
    save_tiny_checkpoint(tmp_path / "towers")
    fields = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "step_aligned": True}
    fields |= {"base_model_name_or_path": "somebody/towers", "utterance_layers": {"text": [0, -1]}}
    head = TriemoForEmotionSequence(TriemoConfig(text_feature_size=64, **fields))
    head.save_pretrained(tmp_path / "head")
    head = TriemoForEmotionSequence.from_pretrained(tmp_path / "head")
    vectors = UtteranceEncoder.of(head)(UTTERANCES[:1])
    assert set(vectors) == {"text_features", "attention_mask"}
    assert head(**{name: value[None] for name, value in vectors.items()}).logits.shape == (1, 1, 2)
    head.config.audio_feature_size = 5  # no layers: vectors of one's own
    assert UtteranceEncoder.of(head).widths == {"text": 64}
    head.config.text_feature_size = 99
    with pytest.raises(ValueError, match="gives vectors of {'text': 64} values, expected {'text': 99}"):
        UtteranceEncoder.of(head)
    head.config.base_model_name_or_path = None
    with pytest.raises(ValueError, match="base_model_name_or_path: the config names no checkpoint"):
        UtteranceEncoder.of(head)
