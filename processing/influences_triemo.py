"""What moved the answers of a dialogue: which other turns, by occlusion, and which modality, by Shapley values.

Shape legend: N turns, R rows of a batch, n turns of a row, C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .contributions_triemo import shapley_values
from .explanations_triemo import subsets_of

__all__ = ["CONTEXT", "Influences", "explain_dialogue"]

CONTEXT = "context"  # stands beside the modalities for all that the other turns tell
REACH = 64  # turns on each side of one that are looked at; longer dialogues are explained piece by piece
_TURNS_AT_ONCE = 4096  # of all rows of a batch

# Turns (R, n) by their position in the dialogue and masks (R, n) by modality, to scores (R, n, C).
Score = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Influences:
    """
    Args:
        effects: (N, N): by how much the score of turn i's label falls when turn j carries nothing. Zero on the
            diagonal, and where j is more than `REACH` turns away.
        contributions: of each turn, what its modalities and the `"context"` add to the score of its label, beginning
            at `empty`. They add up to that score.
        empty: (N,) what that score is of a turn that carries nothing, alone.
    """

    effects: torch.Tensor
    contributions: list[dict[str, float]]
    empty: torch.Tensor


def explain_dialogue(
    score: Score, masks: Mapping[str, torch.Tensor], labels: torch.Tensor, reach: int = REACH
) -> Influences:
    """
    Occlusion leaves a turn its place and its speaker and takes all that it carries. The players of the Shapley values
    (exact: all subsets) are the modalities that the turn has and `"context"`; without context it is a dialogue of one
    turn.

    Args:
        score: the model's scores of turns; it is called with turns that carry nothing.
        masks: (N,) by modality, nonzero where a turn has it.
        labels: (N,) the class of each turn that is explained.
        reach: turns on each side that are looked at. In a dialogue of more than `2 * reach + 1` turns scores are those
            of a turn in its surroundings, not in the whole dialogue.
    """
    count = len(labels)
    size = min(count, 2 * reach + 1)
    # A turn's surroundings: as many turns for each, so that they are rows of one batch.
    begins = (torch.arange(count) - reach).clamp(0, count - size)
    around = begins[:, None] + torch.arange(size)
    place = torch.arange(count) - begins  # of the turn itself in its row
    own = torch.arange(count)[:, None]
    here = {name: mask.bool() for name, mask in masks.items()}

    def scores_of(index: torch.Tensor, shown: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(R, n), the score of each turn's label."""
        rows = max(1, _TURNS_AT_ONCE // index.shape[1])
        parts = [
            score(index[start : start + rows], {name: mask[start : start + rows] for name, mask in shown.items()})
            for start in range(0, len(index), rows)
        ]
        return torch.cat(parts).gather(-1, labels[index].unsqueeze(-1)).squeeze(-1)

    given = {name: mask[around] for name, mask in here.items()}
    hidden = {name: mask.scatter(1, place[:, None], False) for name, mask in given.items()}
    # Where the dialogue fits into one piece, all rows would be the same.
    whole = scores_of(around[:1], {name: mask[:1] for name, mask in given.items()}).expand(count, -1)
    whole = whole if size == count else scores_of(around, given)
    without = scores_of(around, hidden)
    effects = torch.zeros(count, count).scatter(1, around, (whole - without).float()).T.clone()
    effects.fill_diagonal_(0)

    nothing = torch.zeros(count, 1, dtype=torch.bool)
    empty = scores_of(own, dict.fromkeys(here, nothing)).squeeze(1)
    worth: list[dict[tuple[str, ...], float]] = [{} for _ in range(count)]
    for turn in range(count):
        present = tuple(name for name, mask in here.items() if mask[turn])
        players = (*present, CONTEXT) if count > 1 else present
        worth[turn] = dict.fromkeys(subsets_of(players), 0.0)
        if players == (*present, CONTEXT):
            worth[turn][players] = float(whole[turn, place[turn]])
            worth[turn][(CONTEXT,)] = float(without[turn, place[turn]])
    for with_context in (True, False):
        asked = [
            (turn, subset)
            for turn, values in enumerate(worth)
            for subset in values
            if (CONTEXT in subset) == with_context and len(subset) > with_context
            if not (with_context and len(subset) == len(max(values, key=len)))
        ]
        if not asked:
            continue
        turns = torch.tensor([turn for turn, _ in asked])
        index = (around if with_context else own)[turns]
        at = place[turns] if with_context else torch.zeros_like(turns)
        shown = {}
        for name, mask in here.items():
            kept = torch.tensor([name in subset for _, subset in asked]) & mask[turns]
            shown[name] = mask[index].scatter(1, at[:, None], kept[:, None])
        found = scores_of(index, shown).gather(1, at[:, None]).squeeze(1).tolist()
        for (turn, subset), value in zip(asked, found, strict=True):
            worth[turn][subset] = value
    shares = [
        shapley_values(values, alone) if values else {} for values, alone in zip(worth, empty.tolist(), strict=True)
    ]
    return Influences(effects, shares, empty)
