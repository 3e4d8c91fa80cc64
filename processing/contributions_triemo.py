"""What each of several inputs adds to an answer. In plain Python, for every runtime."""

from collections.abc import Mapping
from math import factorial
from typing import Any

__all__ = ["shapley_values", "uninformed_score"]


def shapley_values(values: Mapping[tuple[str, ...], float], empty: float) -> dict[str, float]:
    """
    Shapley values (Shapley, 1953) of the players of the largest subset, by their definition: for player i of n,

        sum over S without i of |S|! (n - |S| - 1)! / n! * (v(S + i) - v(S)).

    They add up to v(all) - v(nobody).

    Args:
        values: v of every non-empty subset; names within a subset in the order of the largest.
        empty: v of nobody.

    Raises:
        ValueError: a subset is missing.
    """
    players = max(values, key=len, default=())
    expected = 2 ** len(players) - 1
    if not players or len(values) != expected:
        raise ValueError(f"values: got {len(values)} subsets of {players}, expected all {expected} non-empty ones.")
    worth = {frozenset(subset): value for subset, value in values.items()} | {frozenset(): empty}
    count = len(players)
    shares = {}
    for player in players:
        without = [subset for subset in worth if player not in subset]
        shares[player] = sum(
            factorial(len(subset))
            * factorial(count - len(subset) - 1)
            / factorial(count)
            * (worth[subset | {player}] - worth[subset])
            for subset in without
        )
    return shares


def uninformed_score(config: Any, labels: int | None = None) -> float:
    """
    The score of a label before anything is seen: the model answers only where it has a modality, so this is a
    convention. One of C classes has the uniform prior 1/C; in multi-label each label is as likely as not.

    Args:
        config: the model's.
        labels: how many there are to choose among; all of the config's by default.

    Raises:
        ValueError: for regression, which has no such value.
    """
    if config.resolved_problem_type == "regression":
        raise ValueError("contributions need class probabilities, and this model's problem_type is 'regression'.")
    return 0.5 if config.resolved_problem_type == "multi_label_classification" else 1 / (labels or config.num_labels)
