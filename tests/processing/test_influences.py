"""What moved an answer, against games whose shares are known."""

import pytest
import torch

from triemo.processing.influences_triemo import explain_dialogue

WORTH = {"text": 1.0, "audio": 0.5}
MASKS = {"text": torch.tensor([1, 1, 0, 1]), "audio": torch.tensor([1, 0, 1, 0])}


def linear(index, masks):
    """Class 1 of turn i scores what i carries, plus a tenth of what each turn before it carries, in a row's order."""
    held = sum(worth * masks[name].double() for name, worth in WORTH.items())
    before = held.cumsum(1) - held
    first = held + 0.1 * before
    return torch.stack([1 - first, first], dim=-1)


LABELS = torch.ones(4, dtype=torch.long)


def test_an_additive_game_gives_each_its_own():
    found = explain_dialogue(linear, MASKS, LABELS)
    held = [1.5, 1.0, 0.5, 1.0]
    expected = [[0.1 * held[j] if j < i else 0.0 for j in range(4)] for i in range(4)]
    torch.testing.assert_close(found.effects, torch.tensor(expected))
    assert found.contributions == [
        pytest.approx({"text": 1.0, "audio": 0.5, "context": 0.0}, abs=1e-6),
        pytest.approx({"text": 1.0, "context": 0.15}, abs=1e-6),
        pytest.approx({"audio": 0.5, "context": 0.25}, abs=1e-6),
        pytest.approx({"text": 1.0, "context": 0.3}, abs=1e-6),
    ]


def test_what_works_only_together_is_shared():
    """Text counts if something was said before: half to the text, half to the context. The rest needs neither."""

    def together(index, masks):
        said = masks["text"].bool()
        before = said.long().cumsum(1) - said.long() > 0
        score = 0.2 + 0.6 * (said & before).double()
        return torch.stack([score, 1 - score], dim=-1)

    masks = {"text": torch.ones(3, dtype=torch.long)}
    found = explain_dialogue(together, masks, torch.zeros(3, dtype=torch.long))
    assert found.contributions[0] == pytest.approx({"text": 0.0, "context": 0.0})
    assert found.contributions[2] == pytest.approx({"text": 0.3, "context": 0.3})
    assert found.empty.tolist() == pytest.approx([0.2] * 3)
    assert found.effects[1].tolist() == pytest.approx([0.6, 0.0, 0.0])
    assert found.effects[2].tolist() == pytest.approx([0.0, 0.0, 0.0])  # either of the two before is enough


def test_a_long_dialogue_is_explained_by_its_surroundings():
    """With a reach of one a row has three turns, and who stands two turns before is not seen."""
    found = explain_dialogue(linear, MASKS, LABELS, reach=1)
    assert found.effects[1].tolist() == pytest.approx([0.15, 0.0, 0.0, 0.0])
    assert found.effects[3].tolist() == pytest.approx([0.0, 0.0, 0.05, 0.0])
    assert found.contributions[2] == pytest.approx({"audio": 0.5, "context": 0.1}, abs=1e-6)


def test_one_turn_has_no_context():
    masks = {name: mask[:1] for name, mask in MASKS.items()}
    found = explain_dialogue(linear, masks, LABELS[:1])
    assert found.effects.tolist() == [[0.0]]
    assert found.contributions == [pytest.approx({"text": 1.0, "audio": 0.5})]
