"""The audio tower of the small checkpoint: Whisper's encoder, whose voice statistics tell RAVDESS's eight classes.

Shapes: B batch.
"""

from collections.abc import Sequence

import numpy as np
import torch

from triemo.modeling import TriemoAudioModel
from triemo.training.corpora.labels import RAVDESS_LABELS, label2id, map_label
from triemo.training.corpora.registry import load_corpus
from triemo.training.metrics.scores import classification_scores
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.voice import VoiceClips, clip_logits, fit_statistics, standardise_states

__all__ = ["build_tower", "seven_classes", "train_audio"]

LOGIT_OUT = -4.0  # a layer with this logit weighs 1 % in the average


def build_tower(
    run: ReleaseRun, voices: VoiceClips, encoder: str, strength: float
) -> tuple[TriemoAudioModel, dict[str, float]]:
    """Whisper's encoder as it is, with statistics fitted to `voices`.

    Args:
        run: folders and seed.
        voices: of the training speakers.
        encoder: Hub id of a Whisper model, or a folder.
        strength: of the ridge classifier, scikit-learn's alpha.

    Returns:
        The tower, and its scores over the training speakers, each unseen by the map that scored them.
    """
    torch.manual_seed(run.seed)
    options = {"use_weighted_layer_sum": True, "statistics_size": len(RAVDESS_LABELS)}
    tower = TriemoAudioModel.from_whisper(run.encoder(encoder), **options).eval()
    return tower, fit_statistics(tower, voices, strength)


def train_audio(run: ReleaseRun, name: str, *, encoder: str, strength: float, output_layers: Sequence[int]) -> dict:
    """Builds the tower on the training actors, standardises its states and saves it.

    Args:
        run: folders and seed.
        name: of the stage.
        encoder, strength: of `build_tower`.
        output_layers: layers, from 1, whose average the tower gives out.
    """
    corpus = load_corpus("ravdess", run.data, "own")
    voices = {split: VoiceClips.of_ravdess(corpus[split]) for split in ("train", "validation")}
    tower, scores = build_tower(run, voices["train"], encoder, strength)
    with torch.no_grad():
        logits = [0.0 if layer + 1 in output_layers else LOGIT_OUT for layer in range(len(tower.layers))]
        tower.layer_weights.copy_(torch.tensor(logits))
    standardise_states(tower, voices["train"].clips)
    tower.save_pretrained(run.folder(name))
    found = clip_logits(tower, voices["validation"].clips).numpy()
    validation = classification_scores(found, np.array(voices["validation"].labels))
    return {"eight_classes": {"unseen_training_speakers": scores, "validation": validation}}


def seven_classes(logits: torch.Tensor, calm_weight: float = 1.0) -> torch.Tensor:
    """Logits (B, 8) of RAVDESS's classes as probabilities (B, 7) of the shared ones: calm adds to neutral.

    `calm_weight` is what calm counts: RAVDESS has two calm clips for each neutral one.
    """
    into = torch.zeros(len(RAVDESS_LABELS), len(label2id))
    for index, name in enumerate(RAVDESS_LABELS):
        into[index, label2id[map_label("ravdess", name)]] = calm_weight if name == "calm" else 1.0
    merged = logits.softmax(-1) @ into.to(logits)
    return merged / merged.sum(-1, keepdim=True)
