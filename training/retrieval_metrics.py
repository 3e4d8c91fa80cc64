"""Retrieval between modalities: recall@k of a row's own counterpart, mean average precision by emotion.

Shapes: Q queries, G candidates, P projection size.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from triemo.training.embeddings import Embedded

__all__ = ["mean_average_precision", "recall_at", "retrieval_scores"]

SAME = 1e-6  # one sentence, spoken twice, has two vectors that differ by rounding


def recall_at(similarities: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """
    Share of queries whose own candidate, the one of the same number, is among the first k of (Q, Q) similarities. A
    candidate that is as similar, to six digits, counts as before it: where all are alike, recall is not 1.
    """
    own = np.diagonal(similarities)[:, None]
    ranks = (similarities >= own - SAME).sum(1)
    return {f"recall@{k}": float((ranks <= k).mean()) for k in ks}


def mean_average_precision(similarities: np.ndarray, queries: np.ndarray, candidates: np.ndarray) -> dict[str, Any]:
    """
    A candidate is relevant where its class is the query's. Queries without a class, and those whose class no candidate
    has, are left out; candidates without a class too.

    Args:
        similarities: (Q, G).
        queries: (Q,) class names, "" where unknown.
        candidates: (G,) class names.

    Returns:
        `map` (mean over queries), `map_by_class` (mean of the classes' means), `chance` (the mean share of relevant
        candidates, about what random similarities give), `per_class` and `queries`. Empty where nothing can be scored.
    """
    asked = (queries != "") & np.isin(queries, candidates)
    offered = candidates != ""
    if not asked.any():
        return {}
    queries, candidates = queries[asked], candidates[offered]
    relevant = queries[:, None] == candidates[None]
    precision = average_precision_score(relevant.T, similarities[asked][:, offered].T, average=None)
    precision = np.atleast_1d(precision)
    per_class = {str(name): float(precision[queries == name].mean()) for name in sorted(set(queries))}
    return {
        "queries": len(queries),
        "map": float(precision.mean()),
        "map_by_class": float(np.mean(list(per_class.values()))),
        "chance": float(relevant.mean()),
        "per_class": per_class,
    }


def retrieval_scores(
    embedded: Embedded, ks: Sequence[int] = (1, 5, 10), candidates: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """
    Every direction, `{"text->audio": {"pairs", "recall@1", "chance@1", ..., "by_emotion": {...}}}`.

    Args:
        embedded: of one table, or of several: emotions are compared across them, counterparts stand in one row.
        ks: of recall@k.
        candidates: rows drawn for recall@k; all by default.
        seed: of that draw.
    """
    result: dict[str, Any] = {}
    for source, target in permutations(embedded.vectors, 2):
        scores: dict[str, Any] = {}
        rows, vectors = embedded.pairs((source, target))
        if len(rows) > 1:
            if candidates is not None and len(rows) > candidates:
                drawn = np.random.default_rng(seed).permutation(len(rows))[:candidates]
                vectors = [vector[drawn] for vector in vectors]
            count = len(vectors[0])
            scores["pairs"] = count
            scores |= recall_at(vectors[0] @ vectors[1].T, ks)
            scores |= {f"chance@{k}": min(1.0, k / count) for k in ks}
        similarities = embedded.vectors[source] @ embedded.vectors[target].T
        by_emotion = mean_average_precision(similarities, embedded.labels_of(source), embedded.labels_of(target))
        if by_emotion:
            scores["by_emotion"] = by_emotion
        if scores:
            result[f"{source}->{target}"] = scores
    return result
