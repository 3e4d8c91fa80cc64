"""What a pretrained model knows before any fine-tuning: linear probes, zero-shot emotion, masked words.

Linear probe: a logistic regression on frozen embeddings. Zero-shot, as CLIP classifies images (Radford et al., 2021):
the embeddings of several sentences a class are averaged, and a voice, face or text belongs to the class whose average
is the most similar. Masked words: what voice and face add to their prediction.

Shapes: n rows, C classes, P projection size.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from triemo.modeling import TriemoForPreTraining
from triemo.modeling.losses_triemo import IGNORE_INDEX
from triemo.training.data.collation import INPUTS, MASKS, VECTORS, NoModalityError, only, present_modalities
from triemo.training.data.composites import SUBSETS
from triemo.training.data.masking import PretrainCollator
from triemo.training.metrics.retrieval import Embedded
from triemo.training.metrics.scores import classification_scores

__all__ = [
    "SENTENCES",
    "class_vectors",
    "linear_probe_scores",
    "masked_word_losses",
    "read_sentences",
    "sentence_scores",
    "zero_shot_scores",
]

logger = logging.getLogger(__name__)


# Linear probe ------------------------------------------------------------------------------------------------

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse of the regularisation, as scikit-learn's C


def linear_probe_scores(
    train: Embedded, validation: Embedded | None, test: Embedded, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """
    Scores on `test` by subset (`"audio"`, `"text+audio"`, ...), on rows that have all of it and one class; vectors of
    several modalities are joined. Classes weigh alike. The strength of the regularisation is the one with the best UAR
    on `validation`, 1.0 without one. A subset without rows, or with one class in training, is left out.
    """
    result = {}
    for subset in SUBSETS:
        parts = [None if part is None else _features(part, subset) for part in (train, validation, test)]
        (x, y), chosen_on, (x_test, y_test) = parts  # type: ignore[misc]
        known = np.isin(y_test, y)
        if len(set(y)) < 2 or not known.any():
            continue
        best, best_uar, probe = STRENGTHS[-1], -1.0, None
        has_validation = chosen_on is not None and bool(np.isin(chosen_on[1], y).any())
        for strength in STRENGTHS if has_validation else STRENGTHS[-1:]:
            fitted = make_pipeline(
                StandardScaler(),
                LogisticRegression(C=strength, max_iter=2000, class_weight="balanced", random_state=seed),
            ).fit(x, y)
            uar = _scores(fitted, *chosen_on)["uar"] if has_validation and chosen_on is not None else 0.0
            if uar > best_uar:
                best, best_uar, probe = strength, uar, fitted
        left = int((~known).sum())
        if left:
            logger.warning(f"{'+'.join(subset)}: {left} test rows are of classes that training lacks; not scored.")
        scores = _scores(probe, x_test[known], y_test[known])
        result["+".join(subset)] = {"train_samples": len(y), "samples": int(known.sum()), "strength": best} | scores
    return result


def _features(part: Embedded, subset: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(n, sum of P) and class names (n,) of the rows that have the subset and one class."""
    rows, vectors = part.pairs(subset)
    if not len(rows):
        return np.empty((0, 0)), np.empty(0, dtype=object)
    labelled = part.labels[rows] != ""
    return np.concatenate(vectors, axis=1)[labelled], part.labels[rows][labelled]


def _scores(probe: Any, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    names = list(probe.classes_)
    known = np.isin(labels, names)
    targets = np.array([names.index(label) for label in labels[known]])
    return classification_scores(probe.predict_log_proba(features[known]), targets)


# Zero-shot ---------------------------------------------------------------------------------------------------

# How one is, and how one does something; the second fits after "a person speaking".
_WORDS = {
    "anger": ("angry", "angrily"),
    "disgust": ("disgusted", "with disgust"),
    "fear": ("afraid", "fearfully"),
    "joy": ("happy", "happily"),
    "neutral": ("calm", "calmly and without emotion"),
    "sadness": ("sad", "sadly"),
    "surprise": ("surprised", "with surprise"),
}
_TEMPLATES = {
    "speaking": ("a person speaking {1}", "someone who says this {1}", "the voice of a person who is {0}"),
    "looking": ("a person who looks {0}", "a photo of a person who is {0}", "the face of someone who feels {0}"),
    "feeling": ("I am so {0}!", "I feel {0}.", "I am {0} about this."),
}
_SAYINGS = {
    "anger": ("I hate this, it makes me so mad!", "What is wrong with you?", "Leave me alone!"),
    "disgust": ("That is disgusting.", "Ew, this is so gross.", "It makes me sick."),
    "fear": ("I am scared, please help me.", "This is terrifying.", "I am so worried and nervous."),
    "joy": ("This is wonderful, I love it!", "Thank you so much, I am so glad.", "Haha, that is great!"),
    "neutral": ("I will be there at three.", "It is on the second page.", "The meeting is on Monday."),
    "sadness": ("I am so sorry for your loss.", "I miss her so much.", "This breaks my heart."),
    "surprise": ("Oh my god, I can't believe it!", "Wow, I did not expect that.", "Really? What happened?"),
}
# Sentences by set and class, fixed before any figure was taken.
SENTENCES: dict[str, dict[str, tuple[str, ...]]] = {
    **{
        name: {label: tuple(template.format(*words) for template in templates) for label, words in _WORDS.items()}
        for name, templates in _TEMPLATES.items()
    },
    "saying": _SAYINGS,
}


def read_sentences(file: str | Path) -> dict[str, dict[str, tuple[str, ...]]]:
    """
    Sentences of one's own from a JSON file, `{"joy": ["...", ...], ...}`, as the set `own`.

    Raises:
        ValueError: when the file cannot be read or holds anything else.
    """
    try:
        given = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"sentences: cannot read {file}: {error}") from error
    is_whole = isinstance(given, dict) and len(given) > 1
    if not is_whole or not all(
        isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) for texts in given.values()
    ):
        raise ValueError(f"sentences: got {file}, expected two classes or more, each with a list of sentences.")
    return {"own": {label: tuple(texts) for label, texts in given.items()}}


def zero_shot_scores(
    embedded: Embedded,
    sets: Mapping[str, Mapping[str, Sequence[str]]],
    embed: Callable[[Sequence[str]], np.ndarray],
) -> dict[str, Any]:
    """
    `{modality: {"samples", "chance", set: {"accuracy", "uar", ...}}}`; the set `all` averages over every set's
    sentences. Rows of no class, or of one without sentences, are not scored; `chance` is the UAR of guessing among
    the classes that occur.
    """
    labels = list(next(iter(sets.values())))
    everything = {label: [text for by_class in sets.values() for text in by_class[label]] for label in labels}
    known = {name: class_vectors(by_class, embed) for name, by_class in {**sets, "all": everything}.items()}
    result: dict[str, Any] = {}
    for modality, vectors in embedded.vectors.items():
        truth = embedded.labels_of(modality)
        scored = np.isin(truth, labels)
        if not scored.any():
            continue
        targets = np.array([labels.index(name) for name in truth[scored]])
        result[modality] = {"samples": int(scored.sum()), "chance": 1 / len(labels)}
        for name, (names, prototypes) in known.items():
            order = [names.index(label) for label in labels]
            result[modality][name] = classification_scores(vectors[scored] @ prototypes[order].T, targets)
    return result


def class_vectors(
    sentences: Mapping[str, Sequence[str]], embed: Callable[[Sequence[str]], np.ndarray]
) -> tuple[list[str], np.ndarray]:
    """
    Class names (C,) and the unit vectors (C, P) of their averaged sentences.

    Args:
        sentences: of each class.
        embed: unit vectors (n, P) of n sentences.
    """
    vectors = [embed(list(texts)).mean(0) for texts in sentences.values()]
    return list(sentences), np.stack([vector / max(np.linalg.norm(vector), 1e-12) for vector in vectors])


def sentence_scores(
    vectors: np.ndarray, spoken: Sequence[str | None], embed: Callable[[Sequence[str]], np.ndarray]
) -> dict[str, float]:
    """Which of the distinct sentences each voice (n, P) says, where `spoken` (n,) knows: accuracy and chance."""
    sentences = sorted({sentence for sentence in spoken if sentence})
    if len(sentences) < 2:
        return {}
    known = np.array([bool(sentence) for sentence in spoken])
    targets = np.array([sentences.index(sentence) for sentence in spoken if sentence])
    scores = classification_scores(vectors[known] @ embed(sentences).T, targets)
    return {"samples": int(known.sum()), "sentences": len(sentences), "chance": 1 / len(sentences)} | scores


# Masked words ------------------------------------------------------------------------------------------------

OTHERS = tuple(name for m in ("audio", "vision") for name in (MASKS[m], VECTORS[m], *INPUTS[m]))


@torch.inference_mode()
def masked_word_losses(
    model: TriemoForPreTraining, collator: PretrainCollator, rows: Any, state: PartialState, batch_size: int
) -> dict[str, float]:
    """
    Cross-entropy, mean over masked tokens, of the rows with words and with a voice or a face. The same words are
    masked each time, and for every model with this tokenizer: they depend on the collator's seed and the row's number.

    Args:
        model: in evaluation mode.
        collator: makes tensors of a row and masks words.
        rows: an emotion table, or a list of rows.
        state: of the processes, which share the rows.
        batch_size: rows a forward pass, 2 or more.

    Returns:
        `tokens`, `matching` (with the row's own voice and face), `mismatched` (with those of another row of the batch)
        and `alone` (words only). Empty when there is no such row.

    Raises:
        ValueError: naming the row whose media cannot be read, or for a model without a masked-token head.
    """
    if model.mlm_head is None:
        raise ValueError("model: got one without a masked-token head, expected mlm_weight above 0.")
    found: list[tuple[int, dict[str, float]]] = []
    # Batches of nearly one size: a last one of one row would have no other row.
    batches = np.array_split(np.arange(len(rows)), max(1, len(rows) // max(2, batch_size)))
    for indices in batches[state.process_index :: state.num_processes]:
        samples = []
        for index in indices.tolist():
            try:
                sample = collator.prepare({**rows[index], "ticket": index})
            except NoModalityError as error:
                logger.warning(f"left out: {error}")
            else:
                samples += [sample] if {"text"} < set(present_modalities(sample)) else []
        if len(samples) < 2:
            continue
        batch = {name: tensor.to(state.device) for name, tensor in collator.collate(samples).items()}
        others = {name: tensor.roll(1, 0) if name in OTHERS else tensor for name, tensor in batch.items()}
        words = only(batch, ("text",)) | {"mlm_labels": batch["mlm_labels"]}
        sums = {
            name: float(model(**inputs, return_loss=False).token_losses.double().sum())
            for name, inputs in (("matching", batch), ("mismatched", others), ("alone", words))
        }
        found.append((int((batch["mlm_labels"] != IGNORE_INDEX).sum()), sums))
    gathered = gather_object(found)
    tokens = sum(count for count, _ in gathered)
    if not tokens:
        return {}
    names = ("matching", "mismatched", "alone")
    return {"tokens": tokens} | {name: sum(sums[name] for _, sums in gathered) / tokens for name in names}
