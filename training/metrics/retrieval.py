"""Unimodal embeddings of every row, over any number of processes, and how well one modality retrieves another.

Shapes: n rows that have a modality, Q queries, G candidates, P projection size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from sklearn.metrics import average_precision_score

from triemo.modeling import MODALITIES
from triemo.training.data.collation import EmotionCollator, only, present_modalities
from triemo.training.metrics.subsets import encoded_batches

__all__ = [
    "Embedded",
    "SentenceEmbedder",
    "embed_rows",
    "join_embedded",
    "mean_average_precision",
    "recall_at",
    "retrieval_scores",
]


# Embeddings --------------------------------------------------------------------------------------------------

TIMES = ("audio_times", "video_times")  # an embedding without positions does not read them


@dataclass
class Embedded:
    """
    Args:
        vectors: (n, P) float32 of norm 1, by modality.
        rows: (n,) int64, the row of each vector, ascending, by modality.
        labels: a name for every row; "" where it has no label or several.
    """

    vectors: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    labels: np.ndarray

    def labels_of(self, modality: str) -> np.ndarray:
        """(n,) names."""
        return self.labels[self.rows[modality]]

    def pairs(self, modalities: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """The rows that have all of these modalities, (m,), and the vectors of each of them, (m, P)."""
        if not all(modality in self.rows for modality in modalities):
            return np.empty(0, dtype=np.int64), []
        shared = self.rows[modalities[0]]
        for modality in modalities[1:]:
            shared = np.intersect1d(shared, self.rows[modality], assume_unique=True)
        places = [np.searchsorted(self.rows[modality], shared) for modality in modalities]
        return shared, [self.vectors[m][place] for m, place in zip(modalities, places, strict=True)]


@torch.inference_mode()
def embed_rows(model: Any, collator: EmotionCollator, rows: Any, state: PartialState, batch_size: int) -> Embedded:
    """
    `get_text_features`, `get_audio_features` and `get_vision_features` of all rows. Rows that hold nothing for the
    model are named in the log.

    Args:
        model: a [`TriemoModel`].
        collator: makes tensors of a row.
        rows: an emotion table.
        state: of the processes, which share the rows.
        batch_size: rows a forward pass.

    Returns:
        The same on every process.

    Raises:
        ValueError: naming the row whose media cannot be read.
    """
    found: list[tuple[str, int, np.ndarray]] = []
    for samples, _ in encoded_batches(collator, rows, state, batch_size):
        for modality in model.config.modalities:
            held = [index for index, sample in samples.items() if modality in present_modalities(sample)]
            if held:
                inputs = collator.collate([only(samples[index], (modality,)) for index in held])
                vectors = _features(model, modality, inputs, state.device)
                found += [(modality, index, vector) for index, vector in zip(held, vectors, strict=True)]
    return _sorted(gather_object(found), label_names(rows))


def label_names(rows: Any) -> np.ndarray:
    """The name of each row's one class, "" where it has none or several."""
    values = rows["label"][:] if "label" in rows.column_names else [None] * len(rows)
    lists = [[value] if isinstance(value, (str, int)) else list(value or []) for value in values]
    return np.array([str(names[0]) if len(names) == 1 else "" for names in lists], dtype=object)


def join_embedded(parts: Sequence[Embedded]) -> Embedded:
    """Several tables as one; rows are numbered on."""
    starts = np.cumsum([0, *(len(part.labels) for part in parts)])
    vectors: dict[str, np.ndarray] = {}
    rows: dict[str, np.ndarray] = {}
    for modality in MODALITIES:
        holders = [(part, start) for part, start in zip(parts, starts, strict=False) if modality in part.rows]
        if holders:
            vectors[modality] = np.concatenate([part.vectors[modality] for part, _ in holders])
            rows[modality] = np.concatenate([part.rows[modality] + start for part, start in holders])
    return Embedded(vectors, rows, np.concatenate([part.labels for part in parts]))


class SentenceEmbedder:
    """
    Unit vectors (n, P) of n sentences by the text tower, each embedded once; the same on every process, without
    exchange.
    """

    def __init__(self, model: Any, collator: EmotionCollator, device: torch.device) -> None:
        self.model, self.collator, self.device = model, collator, device
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        fresh = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self.known]
        if fresh:
            samples = [only(self.collator.encode({"text": sentence}), ("text",)) for sentence in fresh]
            with torch.inference_mode():
                vectors = _features(self.model, "text", self.collator.collate(samples), self.device)
            self.known |= dict(zip(fresh, vectors, strict=True))
        return np.stack([self.known[sentence] for sentence in sentences])


def _features(model: Any, modality: str, inputs: dict[str, torch.Tensor], device: torch.device) -> np.ndarray:
    tensors = {name: tensor.to(device) for name, tensor in inputs.items() if name not in TIMES}
    return getattr(model, f"get_{modality}_features")(**tensors).pooler_output.float().cpu().numpy()


def _sorted(found: list[tuple[str, int, np.ndarray]], labels: np.ndarray) -> Embedded:
    by_modality: dict[str, dict[int, np.ndarray]] = {}
    for modality, index, vector in found:
        by_modality.setdefault(modality, {})[index] = vector
    ordered = {m: sorted(by_modality[m]) for m in MODALITIES if m in by_modality}
    return Embedded(
        {m: np.stack([by_modality[m][index] for index in indices]) for m, indices in ordered.items()},
        {m: np.array(indices, dtype=np.int64) for m, indices in ordered.items()},
        labels,
    )


# Retrieval ---------------------------------------------------------------------------------------------------

SAME = 1e-6  # one sentence, spoken twice, has two vectors that differ by rounding


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
