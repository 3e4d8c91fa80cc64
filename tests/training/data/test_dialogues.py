"""Dialogues out of the rows of a table: order of turns, who speaks, what is left out, padding, scale."""

import logging

import pytest
import torch
from datasets import Dataset

from triemo.modeling import TriemoConfig, TriemoForEmotionSequence
from triemo.training.data.dialogues import DialogueRows, Dialogues, Standardised, collate_dialogues, group_turns

LABELS = {"joy": 0, "anger": 1}
ROWS = {
    "dialogue": ["b", "a", "b", "a", "b"],
    "turn": ["10", "1", "9", "0", "11"],
    "speaker": ["Ann", "Bob", "Cid", None, "Ann"],
    "label": ["joy", "anger", None, "joy", "anger"],
    "row": [f"t.csv:{number}" for number in range(2, 7)],
}


def vectors(rows: int = 5, width: int = 3) -> dict[str, torch.Tensor]:
    """The row's number in every place."""
    values = torch.arange(rows).float().unsqueeze(1).expand(-1, width).clone()
    return {"text_features": values, "attention_mask": torch.ones(rows, dtype=torch.long)}


def dialogues(**changes) -> Dialogues:
    return Dialogues.of_vectors(Dataset.from_dict(ROWS | changes), vectors(), LABELS, "table")


def test_turns_are_numbers_and_put_in_order(caplog):
    with caplog.at_level(logging.WARNING):
        assert group_turns(Dataset.from_dict(ROWS), "table") == [[2, 0, 4], [3, 1]]
    assert "the turns of 2 dialogues are not in their order" in caplog.text
    without = Dataset.from_dict({name: values for name, values in ROWS.items() if name != "turn"})
    with caplog.at_level(logging.WARNING):
        assert group_turns(without, "table") == [[0, 2, 4], [1, 3]]
    assert "table: has no column turn, so the turns of a dialogue are taken to stand in their order" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"turn": ["1", "1", "1", "0", "2"]},
            "turn: got 1 of dialogue 'b' in t.csv:2 and in t.csv:4, expected it once",
        ),
        ({"turn": ["1", "x", "2", "0", "3"]}, "turn: got 'x' in t.csv:3, expected a number"),
        ({"dialogue": ["b", None, "b", "a", "b"]}, "dialogue: got none in t.csv:3, expected the name of one"),
    ],
)
def test_what_is_no_dialogue_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        group_turns(Dataset.from_dict(ROWS | changes), "table")


def test_items_and_batches():
    rows = DialogueRows([dialogues()])
    batch = collate_dialogues([rows[0], rows[3]])  # a ticket of the second epoch is dialogue 1
    assert rows.lengths() == [3, 2]
    assert batch["text_features"][:, :, 0].tolist() == [[2, 0, 4], [3, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 0, 1], [0, 1, -100]]
    assert batch["speakers"].tolist() == [[0, 1, 1], [-1, 0, -1]]
    assert rows.groups() == ["0: b", "0: b", "0: a", "0: a"]


def test_an_utterance_of_nothing_is_left_out_and_named(caplog):
    found = vectors()
    found["attention_mask"][[0, 1, 3]] = 0
    with caplog.at_level(logging.WARNING):
        left = Dialogues.of_vectors(Dataset.from_dict(ROWS), found, LABELS, "table")
    assert left.turns == [[2, 4]] and left.names == ["b"]
    assert "3 of 5 utterances hold nothing to read, as utterance 1 of dialogue 'b'" in caplog.text
    found["attention_mask"][:] = 0
    with pytest.raises(ValueError, match="table: got no utterance with words, sound or a face"):
        Dialogues.of_vectors(Dataset.from_dict(ROWS), found, LABELS, "table")


def test_the_scale_of_vectors_ends_in_the_weights():
    """What was learned on standardised vectors answers alike to them as they are; a constant value counts nothing."""
    part = dialogues()
    part.vectors["text_features"][:, 1] *= 1000
    part.vectors["text_features"][:, 2] = 7
    scale = Standardised([part])
    rows = DialogueRows([part], scale)
    values = collate_dialogues([rows[0], rows[1]])["text_features"]
    known = values[torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()]
    torch.testing.assert_close(known[:, :2].mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(known[:, :2].std(0, unbiased=False), torch.ones(2))
    assert not known[:, 2].any()
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "step_aligned": True}
    model = TriemoForEmotionSequence(TriemoConfig(text_feature_size=3, **sizes)).eval()
    with torch.inference_mode():
        before = model(**{n: v[None] for n, v in rows[0].items()}).logits
        scale.fold_into(model)
        assert rows[0]["text_features"][:, 2].tolist() == [7, 7, 7]
        after = model(**{n: v[None] for n, v in rows[0].items()}).logits
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
