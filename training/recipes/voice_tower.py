"""The audio tower of many corpora: the lower layers of Whisper's encoder as they are, and statistics of the voice.

The statistics tell the emotions of all corpora. They are a regularised linear map of the mean states, each class
counting alike: with so few speakers, whatever had more to learn read a corpus that it had never heard worse.

Shapes: N rows, L layers, D width of a state, C classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from tqdm.auto import tqdm

from triemo.training.corpora.labels import EMOTIONS, label2id
from triemo.training.metrics.scores import classification_scores
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.views import balanced_views
from triemo.training.recipes.voice import log_mel_frames, set_statistics, standardise_states
from triemo.training.recipes.voice_means import VoiceMeans, load_tower

__all__ = ["LinearVoices", "corpus_scores", "train_left_out_corpora", "train_voice_tower"]

STANDARDISED_ON = 400  # clips; their steps are many
LOGIT_OUT = -4.0  # a layer with this logit weighs 1 % in the average


class LinearVoices:
    """Logistic regression on the means of some layers.

    Args:
        means: of the clips.
        rows: to learn from.
        read_layers: layers, from 1, whose means are read.
        strength: scikit-learn's C, for weights of the rows that sum to their number.
        corpus_power: of `balanced_views`; classes always count alike.
    """

    def __init__(
        self, means: VoiceMeans, rows: Sequence[int], read_layers: Sequence[int], strength: float, corpus_power: float
    ) -> None:
        self.means, self.read_layers = means, list(read_layers)
        classes = np.array([label2id[means.clip(row).label] for row in rows])
        corpora = [means.clip(row).corpus for row in rows]
        weights = balanced_views(corpora, np.eye(len(EMOTIONS))[classes], len(rows), corpus_power, 0.0).numpy()
        values = self.read(rows)
        self.centre = np.average(values, 0, weights)
        self.deviation = np.sqrt(np.average((values - self.centre) ** 2, 0, weights)) + 1e-4
        model = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
        model.fit((values - self.centre) / self.deviation, classes, sample_weight=weights)
        self.taught, self.coefficients, self.intercept = model.classes_, model.coef_, model.intercept_
        if len(self.taught) == 2:  # scikit-learn gives the second class alone, over the first
            self.coefficients = np.concatenate([-model.coef_, model.coef_]) / 2
            self.intercept = np.concatenate([-model.intercept_, model.intercept_]) / 2

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """The means that are read, (N, layers read * D) float32."""
        return (
            self.means.values[rows][:, [layer - 1 for layer in self.read_layers]].reshape(len(rows), -1).astype("f4")
        )

    def logits(self, rows: Sequence[int]) -> np.ndarray:
        """(N, C); a class that no row taught has the least logit that there is."""
        found = np.full((len(rows), len(EMOTIONS)), np.finfo(np.float32).min)
        values = (self.read(rows) - self.centre) / self.deviation
        found[:, self.taught] = values @ self.coefficients.T + self.intercept
        return found


def corpus_scores(logits: np.ndarray, classes: np.ndarray, corpora: Sequence[str]) -> dict[str, float]:
    """UAR of each corpus over the classes that it has, which are then the only answers, and their mean as `score`."""
    names = np.array(corpora)
    scores = {}
    for name in dict.fromkeys(corpora):
        chosen = names == name
        absent = np.setdiff1d(np.arange(logits.shape[1]), classes[chosen])
        answers = logits[chosen].copy()
        answers[:, absent] = -np.inf
        scores[f"{name}_uar"] = classification_scores(answers, classes[chosen])["uar"]
    return {**scores, "score": float(np.mean(list(scores.values())))}


def scores_of(voices: LinearVoices, rows: Sequence[int]) -> dict[str, float]:
    """`corpus_scores` of some rows."""
    found = [voices.means.clip(row) for row in rows]
    classes = np.array([label2id[clip.label] for clip in found])
    return corpus_scores(voices.logits(rows), classes, [clip.corpus for clip in found])


def train_voice_tower(
    run: ReleaseRun,
    name: str,
    *,
    means: str,
    read_layers: Sequence[int],
    output_layers: Sequence[int],
    strengths: Sequence[float],
    corpus_power: float = 0.5,
) -> dict:
    """Fits the statistics to the training speakers, and saves the whole `TriemoAudioModel`.

    The strength is the one best on the validation speakers.

    Args:
        run: folders and seed.
        name: of the stage, whose folder gets the tower.
        means: stage of the means.
        read_layers, corpus_power: of `LinearVoices`.
        output_layers: layers, from 1, whose average the tower gives out, standardised.
        strengths: of `LinearVoices`, to choose from.
    """
    data = VoiceMeans(run.folder(means))
    rows = {
        split: [row for row in range(len(data.plan)) if data.clip(row).split == split]
        for split in ("train", "validation")
    }
    tried = {}
    for strength in strengths:
        voices = LinearVoices(data, rows["train"], read_layers, strength, corpus_power)
        tried[strength] = voices, scores_of(voices, rows["validation"])
    best = max(strengths, key=lambda strength: tried[strength][1]["score"])
    voices, scores = tried[best]
    layers, encoder = data.settings["layers"], data.settings["encoder"]
    fields = {"use_weighted_layer_sum": True, "statistics_size": len(EMOTIONS)}
    tower = load_tower(run, encoder, layers, **fields)
    # The statistics are means and deviations of all layers; what is not read counts nothing.
    width = tower.config.hidden_size
    places = np.concatenate([np.arange(width) + 2 * width * (layer - 1) for layer in read_layers])
    centre, deviation = np.zeros(2 * layers * width), np.full(2 * layers * width, np.inf)
    centre[places], deviation[places] = voices.centre, voices.deviation
    coefficients = np.zeros((len(EMOTIONS), 2 * layers * width))
    coefficients[np.ix_(voices.taught, places)] = voices.coefficients
    intercept = np.zeros(len(EMOTIONS))
    intercept[voices.taught] = voices.intercept
    deviation_of_logits = float(voices.logits(rows["train"])[:, voices.taught].std())
    set_statistics(tower, centre, deviation, coefficients, intercept, deviation_of_logits)
    with torch.no_grad():
        logits = [0.0 if layer + 1 in output_layers else LOGIT_OUT for layer in range(layers)]
        tower.layer_weights.copy_(torch.tensor(logits))
    recorded = [data.clip(row).path for row in rows["train"] if data.recorded(row)]
    chosen = np.random.default_rng(run.seed).permutation(len(recorded))[:STANDARDISED_ON]
    standardise_states(tower, log_mel_frames([recorded[index] for index in chosen]))
    tower.save_pretrained(run.folder(name))
    return {
        "validation": scores,
        "strength": best,
        "tried": {str(at): found["score"] for at, (_, found) in tried.items()},
    }


def train_left_out_corpora(
    run: ReleaseRun,
    name: str,
    *,
    means: str,
    corpora: Sequence[str],
    read_layers: Sequence[int],
    strength: float,
    corpus_power: float = 0.5,
) -> dict:
    """How well the voice does on people, languages and rooms that it never met: each corpus is left out once.

    What is fitted learns from every clip of the other corpora. All clips of the one left out are scored, as recorded,
    by UAR over its own classes, among which alone an answer is chosen.

    Args:
        run: folders and seed.
        name: of the stage.
        means: stage of the means.
        corpora: to leave out, one at a time.
        read_layers, strength, corpus_power: of `LinearVoices`.

    Raises:
        ValueError: for a corpus that there is no clip of.
    """
    data, found = VoiceMeans(run.folder(means)), {}
    for corpus in tqdm(corpora, name):
        training = [row for row in range(len(data.plan)) if data.clip(row).corpus != corpus]
        left_out = [row for row in range(len(data.plan)) if data.clip(row).corpus == corpus and data.recorded(row)]
        if not left_out:
            raise ValueError(f"corpora: got {corpus!r}, of which there is no clip, expected one of which there are")
        voices = LinearVoices(data, training, read_layers, strength, corpus_power)
        found[corpus] = {"uar": scores_of(voices, left_out)["score"], "clips": len(left_out)}
    return {"left_out": found, "mean_uar": float(np.mean([scores["uar"] for scores in found.values()]))}
