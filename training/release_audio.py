"""The audio tower of the small checkpoint: Whisper's encoder, whose voice statistics tell RAVDESS's eight classes.

Shapes: B batch.
"""

from collections.abc import Sequence

import numpy as np
import torch

from triemo.modeling import TriemoAudioModel
from triemo.training.corpora import load_ravdess
from triemo.training.emotion_metrics import classification_scores
from triemo.training.label_maps import RAVDESS_LABELS, label2id, map_label
from triemo.training.release_run import ReleaseRun, trainer_arguments
from triemo.training.voice_clips import VoiceClips
from triemo.training.voice_statistics import clip_logits, fit_statistics, standardise_states
from triemo.training.voice_tuning import TUNING, tune_encoder

__all__ = ["build_tower", "seven_classes", "train_audio"]

LOGIT_OUT = -4.0  # a layer with this logit weighs 1 % in the average


def build_tower(
    run: ReleaseRun,
    name: str,
    voices: VoiceClips,
    *,
    encoder: str,
    strength: float,
    epochs: int,
    learning_rate: float,
    tuned_layers: int,
    tuned_share: float,
) -> tuple[TriemoAudioModel, dict]:
    """Fits the statistics on Whisper's encoder, tunes it from there, and fits them again.

    Args:
        run: folders and seed.
        name: of the stage or fold.
        voices: of the training speakers. No epoch is chosen: the last is kept.
        encoder: Hub id of a Whisper model, or a folder.
        strength: of the ridge classifier, scikit-learn's alpha.
        epochs: passes over the clips.
        learning_rate: of the tuned layers, at its peak.
        tuned_layers: how many of the upper layers learn.
        tuned_share: how far the weights go from the encoder's to the tuned ones.

    Returns:
        The tower, and its scores over the training speakers, each unseen by the map that scored them: before tuning,
        and after, when the tuned layers had heard them.
    """
    torch.manual_seed(run.seed)
    options = {"use_weighted_layer_sum": True, "statistics_size": len(RAVDESS_LABELS), "hidden_dropout": 0.1}
    tower = TriemoAudioModel.from_whisper(run.encoder(encoder), **options).eval()
    scores = {"frozen": fit_statistics(tower, voices, strength)}
    arguments = trainer_arguments(run, name, num_train_epochs=epochs, learning_rate=learning_rate, **TUNING)
    tune_encoder(tower, voices, arguments, tuned_layers, tuned_share)
    # The tuned layers have heard every training speaker: only the frozen encoder tells how sure to be of a new one.
    scores["tuned"] = fit_statistics(tower, voices, strength, scores["frozen"]["temperature"])
    return tower, scores


def train_audio(run: ReleaseRun, name: str, *, output_layers: Sequence[int], **settings) -> dict:
    """Builds the tower on the training actors, standardises its states and saves it.

    Args:
        run: folders and seed.
        name: of the stage.
        output_layers: layers, from 1, whose average the tower gives out.
        settings: of `build_tower`.
    """
    corpus = load_ravdess(run.data)
    voices = {split: VoiceClips.of_ravdess(corpus[split]) for split in ("train", "validation")}
    tower, scores = build_tower(run, name, voices["train"], **settings)
    with torch.no_grad():
        logits = [0.0 if layer + 1 in output_layers else LOGIT_OUT for layer in range(len(tower.layers))]
        tower.layer_weights.copy_(torch.tensor(logits))
    standardise_states(tower, voices["train"].clips)
    tower.save_pretrained(run.folder(name))
    found = clip_logits(tower, voices["validation"].clips).numpy()
    scores["validation"] = classification_scores(found, np.array(voices["validation"].labels))
    return {"eight_classes": scores}


def seven_classes(logits: torch.Tensor) -> torch.Tensor:
    """Logits (B, 8) of RAVDESS's classes as probabilities (B, 7) of the shared ones: calm adds to neutral."""
    into = torch.zeros(len(RAVDESS_LABELS), len(label2id))
    for index, name in enumerate(RAVDESS_LABELS):
        into[index, label2id[map_label("ravdess", name)]] = 1.0
    return logits.softmax(-1) @ into.to(logits)
