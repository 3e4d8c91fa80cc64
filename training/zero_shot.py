"""Emotion of voices, faces and texts without a label in training: which class's sentences lie nearest.

As CLIP classifies images (Radford et al., 2021): the embeddings of several sentences a class are averaged, and a
voice, face or text belongs to the class whose average is the most similar.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triemo.training.class_scores import classification_scores
from triemo.training.embeddings import Embedded

__all__ = ["SENTENCES", "class_vectors", "read_sentences", "sentence_scores", "zero_shot_scores"]

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
